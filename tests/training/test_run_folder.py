"""With which settings a run is continued."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.old_keys import upgraded_values
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.training.run_folder import CONFIG_JSON, RunFolder
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import to_values


def started(tmp_path: Path, values: dict[str, object]) -> RunFolder:
    """Return a run whose newest checkpoint, of version 0.1.0, holds these settings."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / CONFIG_JSON).write_text(json.dumps(values))
    return RunFolder(tmp_path / "run")


def settings(*overrides: str) -> dict[str, object]:
    return to_values(load_config("train", TrainConfig, overrides))


def test_everything_that_differs_is_named_so_that_it_can_be_set_back(tmp_path: Path) -> None:
    before = ["model.flow=null", "model.output.gain=0.5", "optim.lr=0.5", "data.stride=[1,2]", "data.num_workers=3"]
    run = started(tmp_path, settings(*before))
    now = "data.stride=1 model.flow.estimator=dis model.flow.short_side=224 model.output=null optim.lr=0.001"
    with pytest.raises(UserError) as caught:
        run.check_config(settings(*now.split()))
    found = re.search("started with (.*), now it is (.*); set it back", str(caught.value))
    assert found is not None
    assert found[2] == now
    run.check_config(settings(*found[1].split()))


def test_keys_of_another_kind_of_data_do_not_count(tmp_path: Path) -> None:
    """The camera's default was another one in 0.1.0, and no video folder has that key."""
    folder = ["data=video_folder", "data.root=/videos"]
    stored = settings(*folder)
    data = stored["data"]
    assert isinstance(data, dict)
    data["motion"] = "moving"
    del data["camera_motion"]
    upgrade = partial(upgraded_values, schema=TrainConfig)
    started(tmp_path / "a", stored).check_config(settings(*folder), upgrade)
    with pytest.raises(
        UserError, match=r"started with data\.camera_motion=moving, now it is data\.camera_motion=mixed;"
    ):
        started(tmp_path / "b", settings("data.camera_motion=moving")).check_config(settings(), upgrade)


def test_a_key_that_is_newer_than_the_run_counts_as_its_default(tmp_path: Path) -> None:
    stored = settings("model.output=null")
    for group, key in (("teacher", "min_confidence"), ("data", "labels"), ("data", "labels_check")):
        values = stored[group]
        assert isinstance(values, dict)
        del values[key]
    upgrade = partial(upgraded_values, schema=TrainConfig)
    run = started(tmp_path, stored)
    run.check_config(settings("model.output=null"), upgrade)
    with pytest.raises(UserError, match=r"with teacher\.min_confidence=1\.0, now it is teacher\.min_confidence=2\.0;"):
        run.check_config(settings("model.output=null", "teacher.min_confidence=2"), upgrade)
    with pytest.raises(UserError, match=r"started with model\.output=null, now"):
        run.check_config(settings(), upgrade)
