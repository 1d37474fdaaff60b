"""Everything that a run needs to go on as if it had never stopped, as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videomamba_depth.models.checkpoint import STUDENT_WEIGHTS, check_student_weights, read_weights, student_weights
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.training.objective import Tail
from videomamba_depth.training.schedule import WeightAverage
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.checkpoint import STEP, check_step, check_tensors, load_tensors, save_tensors, step_folder
from videomamba_depth.utils.errors import UserError

TRAINER_JSON = "trainer.json"
_TRAINER_TENSORS = "trainer.safetensors"
_WEIGHT, _OPTIMIZER = "weight.", "optimizer."  # before the names of its tensors
_RANK = "rank"  # key among the metadata of a rank's carry


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


@dataclass(frozen=True)
class TrainingState:
    """What all ranks of a run share, with one name per tensor for saving and for taking up.

    `trainer.safetensors` holds the weights and the optimizer's state, `trainer.json` the step, the position and the
    gradient scaler; the average of the weights is the checkpoint's student.
    """

    student: VideoMambaDepth
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: WeightAverage

    def save(self, folder: Path, step: int, position: Position) -> None:
        """Write everything but the student's own files."""
        tensors = {f"{_WEIGHT}{name}": t for name, t in student_weights(self.student).items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
        save_tensors(folder / _TRAINER_TENSORS, tensors, {STEP: str(step)})
        about = {"step": step, **asdict(position), "scaler": self.scaler.state_dict()}
        write_json(folder / TRAINER_JSON, about)

    def take_up(self, folder: Path) -> tuple[int, Position]:
        """Load what is in a checkpoint and return where it goes on; call it inside `resuming`.

        Raises:
            Exception: as `read_shared`, or weights or states of another model or precision.
        """
        step, position, tensors, scaler = read_shared(folder)
        average = read_weights(folder / STUDENT_WEIGHTS, step)
        own, weights = student_weights(self.student), _below(_WEIGHT, tensors)
        check_student_weights(own, weights, str(folder), same_dtype=True)
        check_student_weights(own, average, str(folder / STUDENT_WEIGHTS), same_dtype=True)
        state = self._optimizer_state(_below(_OPTIMIZER, tensors))
        self.student.load_state_dict(weights, strict=False)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.scaler.load_state_dict(scaler)
        self.average.average = {name: t.to(own[name].device) for name, t in average.items()}
        return step, position

    def _optimizer_state(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Return the optimizer's state out of tensors named `<parameter>.<key>`.

        A parameter that never had a gradient has no state; every other has all of it.

        Raises:
            ValueError: a state is not whole, or of another shape or dtype than its parameter.
        """
        parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        for i, found in state.items():
            moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), (tuple(parameters[i].shape), parameters[i].dtype))
            check_tensors(f"{_OPTIMIZER}{i}", found, {**moments, "step": ((), torch.float32)})
        return state


def read_shared(folder: Path) -> tuple[int, Position, dict[str, Tensor], dict[str, Any]]:
    """Read what `TrainingState.save` wrote: (step, position, tensors, scaler).

    Raises:
        Exception: damaged files, or those of another step than the folder's name says.
    """
    about = json.loads((folder / TRAINER_JSON).read_text(encoding="utf-8"))
    step, batch, frame = (_count(about[name]) for name in ("step", "batch", "frame"))
    if step_folder(folder.parent, step).name != folder.name:
        raise ValueError(f"{TRAINER_JSON} is of step {step}")
    return step, Position(batch, frame), read_weights(folder / _TRAINER_TENSORS, step), dict(about["scaler"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Turn whatever a damaged checkpoint leads to while it is taken up into a `UserError` with the remedy."""
    try:
        yield
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        reason = str(error) if isinstance(error, UserError | ValueError) else repr(error)
        raise UserError(
            f"cannot resume from '{folder}' ({reason}); delete that folder to go back to the one before"
        ) from error


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{TRAINER_JSON} holds {value!r} where a count belongs")
    return value


def carry_file(folder: Path, rank: int) -> Path:
    """Return where a rank's carry is."""
    return folder / f"rank_{rank}.safetensors"


def saved_ranks(folder: Path) -> int:
    """Return of how many processes a checkpoint holds the carries."""
    return len(list(folder.glob("rank_*.safetensors")))


def save_carry(folder: Path, rank: int, carry: Carry, step: int) -> None:
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
    save_tensors(carry_file(folder, rank), tensors, {**metadata, STEP: str(step), _RANK: str(rank)})


def load_carry(folder: Path, rank: int, device: torch.device, step: int) -> Carry:
    """Read what `save_carry` wrote, and set the random state; call it inside `resuming`.

    Raises:
        Exception: a damaged file, or that of another step or rank.
    """
    path = carry_file(folder, rank)
    tensors, metadata = load_tensors(path)
    check_step(metadata, step, path)
    if metadata.get(_RANK, str(rank)) != str(rank):
        raise ValueError(f"{path.name} is of rank {metadata[_RANK]}")
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    tensors = {name: t.to(device) for name, t in tensors.items()}
    states = tail = None
    if "signature" in metadata:
        states = DepthState.from_tensors(_below("state.", tensors), metadata)
    if "tail.0" in tensors:
        summaries = tuple(tensors[name] for name in sorted(tensors) if name.startswith("summary."))
        frames = [tensors[f"tail.{i}"] for i in range(len(Tail._fields) - 1)]
        tail = Tail._make([*frames, summaries])
    return Carry(states, tail)
