"""Score teacher, filters and students on fresh worlds; whatever does not depend on a student is kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from videomamba_depth.evaluation.baselines import Baseline, default_baselines, run_baseline
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.feature_average import FEATURE_ROW
from videomamba_depth.evaluation.judge import Judge
from videomamba_depth.evaluation.report import to_jsonable, write_text
from videomamba_depth.evaluation.world_depth import run_student, run_teacher
from videomamba_depth.evaluation.worlds import World, WorldSpec, is_intact, load_world, read_array, write_folder
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.atomic import disk_errors, replacing, to_json
from videomamba_depth.utils.metrics import clip_scale_and_shift

log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]
"""{row: {metric: value}} of one world, see `Judge.scores`."""


@dataclass(frozen=True)
class Teacher:
    """The framewise teacher, and a text that names its weights and input size."""

    encoder: DepthAnythingEncoder
    digest: str


@dataclass(frozen=True)
class Student:
    """A student to be judged: its row's name, how long it remembers, and a digest of all that decides its depth."""

    name: str
    model: VideoMambaDepth
    weights_sha256: str
    digest: str
    memory: float = 1.0


@dataclass(frozen=True)
class Desk:
    """What every world is judged with.

    cache: folder of the worlds. max_depth_m: ground truth beyond it does not count.
    """

    cache: Path
    teacher: Teacher
    flow: FlowEstimator
    flow_name: str = "dis"
    max_depth_m: float = 30.0


@torch.inference_mode()
def score_world(spec: WorldSpec, desk: Desk, students: list[Student], keep_depth: bool = False) -> Scores:
    """Return the scores of every row on one world, rendering and running only what is not kept yet.

    keep_depth: also keep the students' depth on this world, for pictures (`depth_rows`).
    """
    world = load_world(desk.cache, spec, desk.flow, desk.flow_name)
    folder = scores_folder(world, desk)
    judges: list[Judge] = []  # built for the first row that has no score yet
    scores: Scores = {}
    for name, depth in untrained_rows(world, desk).items():
        scores[name] = _judged(folder / f"{name}.json", depth, world, desk, judges)
    for student in students:
        path, kept = (_student_path(folder, student, suffix) for suffix in (".json", ".npy"))
        if keep_depth and not kept.is_file():
            _save(kept, _run(student, world))
        depth = partial(read_array, kept) if kept.is_file() else partial(_run, student, world)
        scores[student.name] = _judged(path, depth, world, desk, judges)
    return scores


def untrained_rows(world: World, desk: Desk) -> dict[str, Callable[[], np.ndarray]]:
    """Return functions that give the depth [F,H,W] of every row that no student is needed for."""
    folder = teacher_folder(world, desk)
    teacher = read_array(folder / "teacher.npy")
    filters = {name: partial(_filtered, baseline, teacher, world) for name, baseline in default_baselines().items()}
    return {"teacher": lambda: teacher, **filters, FEATURE_ROW: partial(read_array, folder / f"{FEATURE_ROW}.npy")}


def depth_rows(
    spec: WorldSpec, desk: Desk, students: list[Student], rows: Sequence[str]
) -> dict[str, Callable[[], np.ndarray]]:
    """Return functions that give the depth [F,H,W] of the teacher, of some untrained rows and of all students.

    Every row is brought to the teacher by one affine for the whole video. A student's depth must have been kept by
    `score_world`.
    """
    world = load_world(desk.cache, spec, desk.flow, desk.flow_name)
    untrained, folder = untrained_rows(world, desk), scores_folder(world, desk)
    found: dict[str, Callable[[], np.ndarray]] = {n: untrained[n] for n in ("teacher", *rows) if n in untrained}
    for student in students:
        found[student.name] = partial(read_array, _student_path(folder, student, ".npy"))
    teacher = untrained["teacher"]()
    return {name: partial(_like_teacher, depth, teacher) for name, depth in found.items()}


def _like_teacher(depth: Callable[[], np.ndarray], teacher: np.ndarray) -> np.ndarray:
    values = depth()
    scale, shift = clip_scale_and_shift(values, teacher, np.ones(values.shape, dtype=bool))
    return (scale * values + shift).astype(np.float32)


def _filtered(baseline: Baseline, teacher: np.ndarray, world: World) -> np.ndarray:
    return run_baseline(baseline, teacher, world.estimated_motion())


def _run(student: Student, world: World) -> np.ndarray:
    return run_student(student.model, world, student.memory)


def _student_path(folder: Path, student: Student, suffix: str) -> Path:
    return folder / f"student-{student.digest[:16]}{suffix}"


def scores_folder(world: World, desk: Desk) -> Path:
    """Return where scores are kept; another one as soon as a filter or a metric changes."""
    digest = code_digest(run_baseline.__module__, Judge.__module__)
    return teacher_folder(world, desk) / f"scores-{digest}-{desk.max_depth_m:g}m"


def teacher_folder(world: World, desk: Desk) -> Path:
    """Return the folder with the teacher's depth on a world and the advected feature average's; run them if needed."""
    code = code_digest(run_teacher.__module__, DepthAnythingEncoder.__module__)
    folder = world.folder / f"teacher-{desk.teacher.digest}-{code}"
    if not is_intact(folder):
        write_folder(folder, run_teacher(desk.teacher.encoder, world), {})
    return folder


def _judged(
    path: Path, depth: Callable[[], np.ndarray], world: World, desk: Desk, judges: list[Judge]
) -> dict[str, float]:
    """Return the scores in `path`; judge the row first where they are not there, or damaged."""
    scores = _read_scores(path)
    if scores is None:
        if not judges:
            judges.append(Judge(world, untrained_rows(world, desk)["teacher"](), desk.max_depth_m))
        scores = judges[0].scores(depth())
        values = to_jsonable(scores)
        write_text(path, to_json({"sha256": _digest(values), "scores": values}) + "\n")
    return {metric: float(value) for metric, value in scores.items()}


def _read_scores(path: Path) -> dict[str, float] | None:
    """Return kept scores; None where there are none, or they are not what was written."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["sha256"] != _digest(kept["scores"]):
            raise ValueError("other SHA-256")
        return {metric: math.nan if value is None else float(value) for metric, value in kept["scores"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s): its row is scored again", path, error)
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def _save(path: Path, values: np.ndarray) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)
