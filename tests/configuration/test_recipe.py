"""The default is the recipe, for any teacher; what is printed for a training builds it."""

from __future__ import annotations

import shlex

import pytest
from test_printed_commands import printed

from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.data.labels.stabilized_cache import OFFLINE_TARGETS

TRAININGS = sorted(
    command.split("train.py", 1)[1].partition(";")[0]
    for command in printed()
    if "train.py" in command
    and "pretrain" not in command
    and "[group" not in command
    and "--" not in command.split("train.py", 1)[1]
)


@pytest.mark.parametrize("command", TRAININGS)
def test_a_printed_training_follows_the_motion_and_has_steady_targets(command: str) -> None:
    arguments = [argument for argument in shlex.split(command) if argument not in ("-m", "...", "…")]
    swept = [argument.partition(",")[0] if "[" not in argument else argument for argument in arguments]
    config = load_config("train", TrainConfig, [a.replace("$seed", "0") for a in swept])
    assert config.model.flow is not None
    assert config.model.output is not None
    assert config.loss.target in OFFLINE_TARGETS or config.data.labels is not None  # which are steady already
    assert config.model.temporal().s2.initial_gain == 0.8


def test_there_are_printed_trainings() -> None:
    assert len(TRAININGS) > 5


@pytest.mark.parametrize("teacher", ["embedded", "depth_anything_v2", "depth_anything_v2_metric"])
def test_every_teacher_has_the_same_default(teacher: str) -> None:
    video = load_config("train", TrainConfig, [f"teacher={teacher}", "data=video_folder", "data.root=/videos"])
    embedded = load_config("train", TrainConfig, ["experiment=embedded"])
    assert (video.model, video.loss) == (embedded.model, embedded.loss)
    assert load_config("train", TrainConfig, [f"teacher={teacher}"]).data.camera_motion == "mixed"


def test_the_plain_stack_is_a_choice() -> None:
    config = load_config("train", TrainConfig, ["model=plain_stack", "loss=raw"])
    assert (config.model.flow, config.model.output, config.loss.target) == (None, None, "raw")
    scales = config.model.temporal()
    assert [s.num_blocks for s in (scales.s0, scales.s1, scales.s2, scales.s3)] == [1, 1, 2, 2]
    assert {s.initial_gain for s in (scales.s0, scales.s1, scales.s2, scales.s3)} == {0.0}


def test_a_scale_says_what_differs_from_the_common_one() -> None:
    config = load_config(
        "train", TrainConfig, ["model.scale.heads=2", "model.s2.heads=1", "model.s1.initial_gain=null"]
    )
    assert (config.model.s1.heads, config.model.s2.heads, config.model.s1.initial_gain) == (2, 1, 0.0)
    assert load_config("train", TrainConfig, ["model.s3=null"]).model.s3.heads == 4


def test_a_group_that_is_null_comes_back_with_one_of_its_keys() -> None:
    model = load_config("train", TrainConfig, ["model=plain_stack", "model.flow.short_side=100"]).model
    assert model.flow is not None
    assert (model.flow.estimator, model.flow.short_side) == ("dis", 100)
