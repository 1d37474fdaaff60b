"""Everything that a run needs to go on as if it had never stopped, as safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from videomamba_depth.models.checkpoint import read_weights
from videomamba_depth.models.state import DepthState
from videomamba_depth.training.objective import Tail
from videomamba_depth.utils.errors import UserError

TRAINER_JSON = "trainer.json"
_TRAINER_TENSORS = "trainer.safetensors"


@dataclass(frozen=True)
class Position:
    """Where in the stream of clips the next chunk lies."""

    batch: int = 0  # index of the clip batch
    frame: int = 0  # first frame of the next chunk; > 0 in the middle of a clip


@dataclass(frozen=True)
class Carry:
    """What one rank carries from chunk to chunk in the middle of a clip."""

    states: DepthState | None = None
    tail: Tail | None = None


def save_shared(
    folder: Path, step: int, position: Position, tensors: dict[str, Tensor], scaler: dict[str, Any]
) -> None:
    """Write what all ranks share: weights and optimizer state by flat names, the step, the position."""
    _save(tensors, folder / _TRAINER_TENSORS)
    about = {"step": step, "batch": position.batch, "frame": position.frame, "scaler": scaler}
    (folder / TRAINER_JSON).write_text(json.dumps(about), encoding="utf-8")


def load_shared(folder: Path) -> tuple[int, Position, dict[str, Tensor], dict[str, Any]]:
    """Read what `save_shared` wrote: (step, position, tensors, scaler).

    Raises:
        UserError: damaged files.
    """
    try:
        about = json.loads((folder / TRAINER_JSON).read_text(encoding="utf-8"))
        position = Position(about["batch"], about["frame"])
        return about["step"], position, read_weights(folder / _TRAINER_TENSORS), about["scaler"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UserError(
            f"cannot resume from '{folder}' ({error}); delete that folder to go back to the one before"
        ) from error


def save_carry(folder: Path, rank: int, carry: Carry) -> None:
    """Write one rank's carried states, tail and random state."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    metadata: dict[str, str] = {}
    if carry.states is not None:
        tensors |= {f"state.{name}": t for name, t in carry.states.tensors().items()}
        metadata = carry.states.metadata()
    if carry.tail is not None:
        *frames, summaries = carry.tail
        tensors |= {f"tail.{i}": t for i, t in enumerate(frames)}
        tensors |= {f"summary.{i:03d}": t for i, t in enumerate(summaries)}
    _save(tensors, folder / f"rank_{rank}.safetensors", metadata)


def load_carry(folder: Path, rank: int, device: torch.device) -> Carry:
    """Read what `save_carry` wrote, and set the random state.

    Raises:
        UserError: the run had fewer ranks, or the file is damaged.
    """
    path = folder / f"rank_{rank}.safetensors"
    if not path.is_file():
        raise UserError(f"'{folder}' holds no state of rank {rank}; resume with the number of processes it ran with")
    tensors = read_weights(path)
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = {name: t.to(device) for name, t in tensors.items()}
    states = tail = None
    if metadata:
        named = {name.removeprefix("state."): t for name, t in tensors.items() if name.startswith("state.")}
        states = DepthState.from_tensors(named, metadata)
    if "tail.0" in tensors:
        summaries = tuple(tensors[name] for name in sorted(tensors) if name.startswith("summary."))
        frames = [tensors[f"tail.{i}"] for i in range(len(Tail._fields) - 1)]
        tail = Tail._make([*frames, summaries])
    return Carry(states, tail)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, path, metadata=metadata)
