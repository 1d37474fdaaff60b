"""The folder of a run: what is in it, when it may be continued, and what is logged into it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from videomamba_depth.data.labels.cache_format import TeacherKey
from videomamba_depth.models.checkpoint import read_description
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.models.teachers import open_encoder
from videomamba_depth.training.trainer_state import resuming
from videomamba_depth.utils.atomic import disk_errors, to_json, write_text
from videomamba_depth.utils.checkpoint import list_steps, step_folder, verify_files, whole_folder
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.extras import require
from videomamba_depth.utils.lock import exclusive
from videomamba_depth.utils.logger import JsonLines

log = logging.getLogger(__name__)

CONFIG_JSON = "config.json"  # in a checkpoint: the resolved config that it was trained with
LABELS_JSON = "labels.json"  # likewise: what decides its labels, where the student's own encoder does not

MAY_CHANGE = (
    "run_dir",
    "name",
    "data.num_workers",
    "data.labels_check",
    "trainer.steps",
    "trainer.threads",
    "trainer.prefetch",
    "trainer.label_memory_gb",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.log_every",
    "trainer.picture_every",
    "trainer.logger",
)
"""Keys that may differ when a run is continued; any other would make the result depend on when it was stopped."""


_SYNTHETIC_ONLY = ("data.world", "data.camera_motion", "data.num_worlds")


class RunFolder:
    """`config.yaml`, `encoder/`, `checkpoints/step_*/`, `last`, `metrics.jsonl`, `pictures/`, `tensorboard/`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.encoder = self.path / "encoder"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.path / "last"
        self.metrics = self.path / "metrics.jsonl"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, if there is one."""
        steps = list_steps(self.checkpoints)
        return step_folder(self.checkpoints, steps[-1]) if steps else None

    def check_config(
        self, config: dict[str, Any], upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda stored: stored
    ) -> None:
        """Refuse to continue a run that was started with other settings.

        Args:
            upgrade: gives what an older version stored, `{full key: value}`, its keys of today.

        Raises:
            UserError: naming every key that differs and both values, or the settings cannot be read.
        """
        newest = self.newest_checkpoint()
        if newest is None:
            return
        with resuming(newest):
            verify_files(newest, [CONFIG_JSON])
            before = _comparable(upgrade(_flatten(json.loads((newest / CONFIG_JSON).read_text(encoding="utf-8")))))
        now = _comparable(_flatten(json.loads(to_json(config))))
        keys = sorted(before.keys() | now.keys())
        changed = [key for key in keys if before.get(key) != now.get(key) and key not in MAY_CHANGE]
        if changed:
            raise UserError(
                f"run '{self.path}' was started with {_as_overrides(before, changed)}, now it is"
                f" {_as_overrides(now, changed)}; set it back to continue, or start another run with name=..."
            )

    def write_config(self, config: dict[str, Any]) -> None:
        """Save the resolved config, atomically, for people to read."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, yaml.safe_dump(config, sort_keys=False))

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run for this process, see `exclusive`."""
        return exclusive(self.path / ".lock", f"run '{self.path}'")

    def check_labels(self, labelled_by: TeacherKey, teacher: Teacher) -> None:
        """Refuse to continue a run with other labels than it was started with.

        Args:
            labelled_by: what decides the labels; runs before it was stored pass.
            teacher: whose weights are known under former names too.

        Raises:
            UserError: naming what differs.
        """
        newest = self.newest_checkpoint()
        if newest is None or not (newest / LABELS_JSON).is_file():
            return
        with resuming(newest):
            verify_files(newest, [LABELS_JSON])
            stored = TeacherKey.from_dict(json.loads((newest / LABELS_JSON).read_text(encoding="utf-8")))
        if teacher.has_weights(stored.weights_sha256):
            stored = replace(stored, weights_sha256=labelled_by.weights_sha256)
        if difference := labelled_by.difference(stored):
            raise UserError(
                f"run '{self.path}' was started with other labels, {stored.model_id}: {difference}; restore them to"
                " continue, or start another run with name=..."
            )

    def keep_encoder(self, encoder: Teacher) -> None:
        """Put a copy of the frozen encoder beside the checkpoints, so that they can be run anywhere.

        Raises:
            UserError: the run was started with other weights, or the copy that is there is damaged.
        """
        own, newest = encoder.weights_sha256(), self.newest_checkpoint()
        if newest is not None:
            with resuming(newest):
                about = read_description(newest)["encoder"]
                stored = about.get("teacher", about)["weights_sha256"]
            if stored != own:
                raise UserError(
                    f"run '{self.path}' was started with other weights of '{encoder.model_id}'; restore them to"
                    " continue, or start another run with name=..."
                )
        if not self.encoder.is_dir():
            with whole_folder(self.encoder) as staging:
                encoder.save_pretrained(staging)
            return
        try:
            if open_encoder(str(self.encoder)).weights_sha256() != own:
                raise UserError("it has other weights")
        except UserError as error:
            raise UserError(
                f"the copy of the encoder in '{self.encoder}' is damaged ({error}); delete that folder: the next start"
                " writes it again"
            ) from error


class RunLog:
    """Sends one record per log interval to `metrics.jsonl` and to TensorBoard or Weights & Biases.

    Args:
        start_step: step resumed from; records of later ones, left by a run that was killed, are dropped.
        backend: "tensorboard", "wandb" or "none".
    """

    def __init__(self, run: RunFolder, start_step: int, backend: str, config: dict[str, Any]) -> None:
        self._lines = JsonLines(run.metrics, keep_up_to_step=start_step)
        self._board: Any = None
        self._wandb: Any = None
        if backend == "tensorboard":
            require("tensorboard", "trainer.logger=tensorboard (or take trainer.logger=none)")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.tensorboard), purge_step=start_step)
        elif backend == "wandb":
            self._wandb = _start_wandb(run, config)

    def write(self, record: Mapping[str, float]) -> None:
        """Log one record; `step` is the number of the step, other keys are slash names."""
        self._lines.write(record)
        step = int(record["step"])
        values = {key: value for key, value in record.items() if key != "step"}
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def picture(self, step: int, rgb: np.ndarray) -> None:
        """Log a picture, uint8 `[H, W, 3]`."""
        if self._board is not None:
            self._board.add_image("pictures/student_teacher", rgb, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self._lines.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(run: RunFolder, config: dict[str, Any]) -> Any:
    wandb = require("wandb", "trainer.logger=wandb")
    return wandb.init(dir=str(run.path), name=run.path.name, id=run.path.name, resume="allow", config=config)


def _comparable(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the length of the learning rate's curve filled in; version 0.1.0 had no key for it.

    What has no effect is left out: keys of another kind of data, and `model.scale`, which leads to what stands in full
    in `model.s0` to `model.s3`.
    """
    unused = ("model.scale.",) if flat["data.kind"] == "synthetic" else ("model.scale.", *_SYNTHETIC_ONLY)
    flat = {key: value for key, value in flat.items() if not key.startswith(unused)}
    return flat | {"trainer.total_steps": flat.get("trainer.total_steps") or flat["trainer.steps"]}


def _as_overrides(flat: dict[str, Any], keys: Iterable[str]) -> str:
    """Return what a config holds under some keys as overrides; keys of a group that is null are one, GROUP=null."""
    overrides: dict[str, None] = {}
    for key in keys:
        group = next((name for name in _prefixes(key) if name in flat), key)
        value = flat.get(group)
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        overrides[f"{group}={text}"] = None
    return " ".join(overrides)


def _prefixes(key: str) -> Iterator[str]:
    """Yield a key, its group, the group of that and so on."""
    while key:
        yield key
        key = key.rpartition(".")[0]


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
