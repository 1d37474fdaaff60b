"""Build what evaluation needs from the values of its config."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import torch

from videomamba_depth.configuration.build import build_flow_estimator, flow_key
from videomamba_depth.configuration.evaluate_schema import SPLITS, EvaluateFreshConfig, name_checkpoints
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.fresh import Desk, Scores, Student, Teacher, depth_rows, score_world
from videomamba_depth.evaluation.html import ClipPictures, ClipView
from videomamba_depth.evaluation.world_depth import run_student
from videomamba_depth.evaluation.worlds import WorldSet, WorldSpec, load_world
from videomamba_depth.models.checkpoint import load_student, load_teacher, read_description, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder, hash_tensors
from videomamba_depth.models.videomamba_depth import VideoMambaDepth, check_memory
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError


def world_set(config: EvaluateFreshConfig) -> WorldSet:
    """Return the worlds of the split."""
    family, seed = SPLITS[config.split]
    w = config.worlds
    return WorldSet(
        family,
        seed if w.first_seed is None else w.first_seed,
        w.videos,
        w.frames,
        w.long_videos,
        w.long_frames,
        w.height,
        w.width,
        w.max_depth_m,
    )


def load_students(
    checkpoints: dict[str, str], input_size: int | None
) -> tuple[DepthAnythingEncoder, dict[str, VideoMambaDepth]]:
    """Load students by row name, and the one teacher that all of them are held against.

    Raises:
        UserError: no student, or students of different teachers or input sizes.
    """
    students = {name: load_student(path, input_size) for name, path in checkpoints.items()}
    teachers = [
        own if isinstance(own := student.encoder, DepthAnythingEncoder) else load_teacher(checkpoints[name], input_size)
        for name, student in students.items()
    ]
    if len({(teacher.weights_sha256(), teacher.input_size) for teacher in teachers}) > 1:
        raise UserError("the students have different teachers or input sizes; evaluate them one by one")
    return teachers[0], students


@cache
def load_all(
    teacher_name: str,
    checkpoints: tuple[tuple[str, str], ...],
    memories: tuple[float, ...],
    input_size: int | None,
    size: tuple[int, int],
) -> tuple[Teacher, list[Student]]:
    """Load students, each with all memories, and teacher for frames of `size` = (H, W), once per process.

    teacher_name: read only where there are no students.
    """
    loaded: dict[str, VideoMambaDepth] = {}
    if checkpoints:
        encoder, loaded = load_students(dict(checkpoints), input_size)
    else:
        encoder = DepthAnythingEncoder.from_pretrained(teacher_name, input_size=input_size)
    if encoder.depth_kind != DepthKind.RELATIVE:
        raise UserError("fresh worlds judge relative inverse depth; use scripts/evaluate.py for a metric teacher")
    height, width = encoder.input_resolution(*size)
    digest = f"{encoder.weights_sha256()[:12]}-{height}x{width}"
    students = [build_student(name, path, loaded[name], memory) for name, path in checkpoints for memory in memories]
    return Teacher(encoder, digest), students


def build_student(name: str, path: str, model: VideoMambaDepth, memory: float) -> Student:
    """Return a student with the digest under which its scores are kept: weights, description and code.

    Its row is called NAME, or NAME@MEMORY for another memory than it was trained with.
    """
    try:
        check_memory(model, memory)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    weights = hash_tensors(student_weights(model).items())
    code = code_digest(run_student.__module__, load_student.__module__)
    about = json.dumps([weights, code, read_description(path), model.encoder.input_size, memory], sort_keys=True)
    row = name if memory == 1.0 else f"{name}@{memory:g}"
    return Student(row, model, weights, hashlib.sha256(about.encode()).hexdigest(), memory)


def score_fresh_world(job: tuple[WorldSpec, bool], config: EvaluateFreshConfig) -> Scores:
    """Score one world, see `score_world`; a worker of `scripts/evaluate_fresh.py` runs it on one thread.

    job: the world, and whether the students' depth is kept.
    """
    torch.set_num_threads(1)
    spec, keep_depth = job
    desk, students = _desk(config)
    return score_world(spec, desk, students, keep_depth)


def show_fresh_world(spec: WorldSpec, config: EvaluateFreshConfig) -> ClipPictures:
    """Draw the rows of a world whose depth was kept by `score_fresh_world`."""
    desk, students = _desk(config)
    rows = depth_rows(spec, desk, students, config.html.rows)
    world = load_world(desk.cache, spec, desk.flow, desk.flow_name)
    view = ClipView(spec.name, world.rgb, spec.config().fps, rows["teacher"](), config.html.video_frames)
    for name in (*config.html.rows, *(student.name for student in students)):
        if name in rows:
            view.add(name, rows[name]())
    return view.finish(4_000_000)


def _desk(config: EvaluateFreshConfig) -> tuple[Desk, list[Student]]:
    checkpoints = tuple(name_checkpoints(config.checkpoint).items())
    size = (config.worlds.height, config.worlds.width)
    teacher, students = load_all(config.teacher.name, checkpoints, tuple(config.memory), config.input_size, size)
    flow = build_flow_estimator(config.flow, torch.device("cpu"))
    return Desk(Path(config.cache), teacher, flow, flow_key(config.flow), config.worlds.max_depth_m), students
