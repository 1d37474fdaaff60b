"""Write a student to a folder and load it again, with everything that is needed to run it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videomamba_depth import __version__
from videomamba_depth.models.causal_affine import ON
from videomamba_depth.models.encoder_da import DepthAnythingEncoder, Teacher
from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder
from videomamba_depth.models.geometry import GeometrySpec
from videomamba_depth.models.head_depth import DepthHead, DPTHead
from videomamba_depth.models.hub import download_student, is_hub_name
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.teacher_files import EMBEDDED_TEACHER
from videomamba_depth.models.teachers import open_encoder, open_teacher
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.checkpoint import (
    MANIFEST,
    STEP,
    check_step,
    load_tensors,
    save_tensors,
    verify_files,
    write_manifest,
)
from videomamba_depth.utils.errors import UserError

STUDENT_JSON = "student.json"
STUDENT_WEIGHTS = "student.safetensors"
EMBEDDED_STUDENT = EMBEDDED_TEACHER.with_name("embedded_student")
"""The student of the embedded teacher that is shipped; checkpoints may be called "embedded" for short."""
TRUST = "trust."
"""Where the names of the weights begin of the network that has learned how far parallax is believed."""
TRUST_CHANNELS = "trust_channels"
"""Key of a description: of that network; there is none, where there is no key."""
TEACHER_PREFIX = "teacher:"
"""`teacher:NAME_OR_PATH` in place of a checkpoint is that teacher, frame by frame: a student without any blocks."""
_FORMAT = "videomamba-depth student 1"


def save_student(
    folder: Path,
    weights: dict[str, Tensor],
    temporal: TemporalSpec,
    encoder: dict[str, Any],
    short_side: int | None,
    extra: dict[str, Any] | None = None,
    motion: MotionSpec | None = None,
    output: OutputSpec | None = None,
    geometry: GeometrySpec | None = None,
    encode_every: int = 1,
    trust_channels: int = 0,
) -> None:
    """Write `student.safetensors`, `student.json` and a manifest of what is there into an existing folder.

    Args:
        weights: `student_weights(student)`, or an average of several.
        encoder: `describe_encoder(...)` for a frozen encoder, which is not in the weights, or
            `describe_video_mamba(...)` for one that is.
        short_side: short side in px that frames are resized to for inference; None keeps a frame's own.
        extra: JSON values that travel along; "step" is kept beside the weights too.
        motion, output, geometry, encode_every, trust_channels: what else the student was built with.

    Raises:
        UserError: a weight is not finite, or the disk is full.
    """
    built_with = {
        "temporal": asdict(temporal),
        "motion": asdict(motion) if motion is not None else None,
        "output": _described(output) if output is not None else None,
        **({"geometry": asdict(geometry)} if geometry is not None else {}),
        **({"encode_every": encode_every} if encode_every > 1 else {}),
        **({TRUST_CHANNELS: trust_channels} if trust_channels else {}),
    }
    save_student_like(folder, weights, built_with, encoder, short_side, extra)


def save_student_like(
    folder: Path,
    weights: dict[str, Tensor],
    description: dict[str, Any],
    encoder: dict[str, Any],
    short_side: int | None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a student that is built like another, of which `read_description` returned this; else as `save_student`."""
    metadata = {STEP: str(extra[STEP])} if extra and STEP in extra else None
    save_tensors(folder / STUDENT_WEIGHTS, weights, metadata)
    about = {"encoder": encoder, "input_size": short_side, "manifest": MANIFEST, **(extra or {})}
    write_json(folder / STUDENT_JSON, {**description, "format": _FORMAT, "version": __version__, **about})
    write_manifest(folder)


def _described(output: OutputSpec) -> dict[str, Any]:
    return {name: value for name, value in asdict(output).items() if name != "affine" or value}


def describe_encoder(encoder: Teacher, folder: str) -> dict[str, Any]:
    """Return how to find the encoder again: its id, its digest, and where a copy lies relative to a checkpoint."""
    options = {"options": encoder.options()} if encoder.options() else {}
    return {**encoder.cache_key(), **options, "folder": folder}


def describe_video_mamba(encoder: VideoMambaEncoder, teacher: DepthAnythingEncoder, folder: str) -> dict[str, Any]:
    """Return how to build a trained encoder and its decoder again, and how to find the teacher, to compare with.

    Args:
        teacher: whose decoder the student's is. folder: where a copy of the teacher lies relative to a checkpoint.
    """
    decoder = teacher.hf_config.to_diff_dict()
    return {"video_mamba": encoder.description(), "decoder": decoder, "teacher": describe_encoder(teacher, folder)}


def student_folder(checkpoint: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: "embedded" names the student that is shipped, "owner/name" one of the hub.

    Raises:
        UserError: a student of the hub cannot be had, or `revision` is given for a folder.
    """
    if isinstance(checkpoint, str) and is_hub_name(checkpoint):
        return download_student(checkpoint, revision)
    if revision is not None:
        raise UserError(f"revision={revision} is for a student of the hub, owner/name; got '{checkpoint}'")
    return EMBEDDED_STUDENT if str(checkpoint) == "embedded" else Path(checkpoint)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint's `student.json`.

    Raises:
        UserError: no such folder, not a student, or damaged.
    """
    path = student_folder(folder) / STUDENT_JSON
    if not path.is_file():
        raise UserError(
            f"'{folder}' is not a student checkpoint (no {STUDENT_JSON}); give a folder such as runs/NAME/last"
        )
    verify_files(path.parent, [path.name])
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged ({error}); use another checkpoint of the run") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise UserError(f"'{path}' is not in this version's format ({_FORMAT})")
    if description.get("manifest") and not (path.parent / MANIFEST).is_file():
        raise UserError(f"'{path.with_name(MANIFEST)}' is missing; restore it, or use another checkpoint of the run")
    return description


def load_student(
    folder: str | Path,
    short_side: int | None = None,
    *,
    geometry: bool | None = None,
    affine: bool | None = None,
    revision: str | None = None,
    trust: bool = True,
    untrained: bool = False,
) -> VideoMambaDepth:
    """Load a student in eval mode with float32 weights.

    A frozen encoder comes from the copy beside the checkpoint, else by its id; its digest must match.

    Args:
        folder: what `save_student` wrote, e.g. `runs/NAME/last`; "embedded" for the student that is shipped;
            "teacher:NAME_OR_PATH", see `TEACHER_PREFIX`; or "owner/name" or "owner/name@REVISION" of the hub.
        short_side: short side in px that frames are resized to; None: the checkpoint's (a teacher: the frame's own).
        geometry: whether the depth is corrected by parallax, see `Geometry`: None: as the student was trained; True:
            also where it was trained without, by the defaults of `GeometrySpec`: it needs no weights, and uses those of
            a trust that was learned, see `ParallaxTrust`.
        affine: whether global changes of scale and shift are undone before the carried output, see
            `undo_global_change`; likewise, with the strength `ON`.
        revision: of the hub's repository: branch, tag or commit.
        trust: False leaves out what was learned of how far parallax is believed: geometry is as it is without.
        untrained: as it was before training, always the same: to compare with. An encoder that learned is then random.

    Raises:
        UserError: missing or damaged files, an encoder with other weights, geometry for a student without flow, or
            affine for one without a carried output.
    """
    if str(folder).startswith(TEACHER_PREFIX):
        if geometry:
            raise UserError(f"geometry=true follows the optical flow of a student; '{folder}' has none")
        if affine:
            raise UserError(f"affine=true compares with the carried output of a student; '{folder}' has none")
        return bare_teacher(open_teacher(str(folder).removeprefix(TEACHER_PREFIX), short_side=short_side))
    folder = student_folder(folder, revision)
    description = read_description(folder)
    if geometry is False:
        description["geometry"] = None
    elif geometry and not description.get("geometry"):
        if not description.get("motion"):
            raise UserError(
                f"geometry=true follows the optical flow between frames; '{folder}' was trained without any"
            )
        description["geometry"] = asdict(GeometrySpec())
    if affine and not description.get("output"):
        raise UserError(f"affine=true compares with the carried output; '{folder}' was trained without one")
    if affine is not None and description.get("output"):
        strength = (description["output"].get("affine") or ON) if affine else 0.0
        description["output"] = {**description["output"], "affine": strength}
    if not trust:
        description.pop(TRUST_CHANNELS, None)
    with _damaged(folder), torch.random.fork_rng(devices=[], enabled=untrained):
        if untrained:
            torch.manual_seed(0)
        student = _build_student(folder, description, short_side or description.get("input_size"))
    if untrained:
        return student.eval()
    weights = read_weights(folder / STUDENT_WEIGHTS, description.get(STEP))
    if not trust:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(TRUST)}
    load_student_weights(student, weights, str(folder))
    return student.eval()


def _build_student(folder: Path, description: dict[str, Any], size: int | None) -> VideoMambaDepth:
    """Return the student that is described, with weights at their start but for a frozen encoder's."""
    about = description["encoder"]
    encoder: VideoMambaEncoder | Teacher
    head: DepthHead
    if "video_mamba" in about:
        encoder, head = (
            VideoMambaEncoder.from_description(about["video_mamba"], size),
            DPTHead.from_config(about["decoder"]),
        )
    else:
        encoder = _load_encoder(folder, about, size)
        head = encoder.head
    temporal = TemporalSpec(**{name: ScaleSpec(**spec) for name, spec in description["temporal"].items()})
    motion = MotionSpec(**_renamed_motion(description["motion"])) if description.get("motion") else None
    output = OutputSpec(**description["output"]) if description.get("output") else None
    geometry = GeometrySpec(**description["geometry"]) if description.get("geometry") else None
    options = {key: description[key] for key in ("encode_every", TRUST_CHANNELS) if key in description}
    return VideoMambaDepth(encoder, head, temporal, motion=motion, output=output, geometry=geometry, **options)


def _renamed_motion(about: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the motion with their names of today; version 0.1.0 had others."""
    return {{"flow": "estimator", "max_short_side": "short_side"}.get(key, key): value for key, value in about.items()}


def load_teacher(folder: str | Path, short_side: int | None = None) -> Teacher:
    """Load the model that a student of `folder` started from: its encoder, or its decoder's owner.

    Raises:
        UserError: as `load_student`.
    """
    folder = student_folder(folder)
    description = read_description(folder)
    with _damaged(folder):
        about = description["encoder"]
        return _load_encoder(folder, about.get("teacher", about), short_side or description.get("input_size"))


def bare_teacher(encoder: Teacher) -> VideoMambaDepth:
    """Return a teacher as a student without temporal blocks, in eval mode: its depth is the teacher's."""
    none = ScaleSpec(num_blocks=0)
    return VideoMambaDepth(encoder, encoder.head, TemporalSpec(none, none, none, none), train_head=False).eval()


def student_weights(student: VideoMambaDepth) -> dict[str, Tensor]:
    """Return the weights that are the student's own: all but a frozen encoder's."""
    others = ("encoder.",) if student.encoder.frozen else ()
    return {name: t for name, t in student.state_dict().items() if not name.startswith(others)}


def load_student_weights(student: VideoMambaDepth, weights: dict[str, Tensor], source: str) -> None:
    """Load weights strictly, from whatever dtype they are stored in, see `check_student_weights`.

    Raises:
        UserError: the weights are not those of this model.
    """
    check_student_weights(student_weights(student), weights, source)
    student.load_state_dict(weights, strict=False)


def check_student_weights(
    own: dict[str, Tensor], weights: dict[str, Tensor], source: str, same_dtype: bool = False
) -> None:
    """Name every tensor that is missing, unknown, of another shape or, with `same_dtype`, of another dtype.

    Raises:
        UserError: the weights are not those of this model.
    """
    problems = [f"missing {name}" for name in own.keys() - weights.keys()]
    problems += [f"unknown {name}" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(t.shape)}"
        for name, t in own.items()
        if name in weights and weights[name].shape != t.shape
    ]
    if same_dtype:
        problems += [
            f"{name} is {weights[name].dtype}, not {t.dtype}"
            for name, t in own.items()
            if name in weights and weights[name].dtype != t.dtype
        ]
    if problems:
        shown = "; ".join(sorted(problems)[:4])
        raise UserError(f"the weights in '{source}' are not this model's ({len(problems)} differ): {shown}")


def read_weights(path: Path, step: int | None = None) -> dict[str, Tensor]:
    """Read a safetensors file of a checkpoint, which is to be that of `step`.

    Raises:
        UserError: missing or damaged, not finite, or of another step.
    """
    verify_files(path.parent, [path.name])
    tensors, metadata = load_tensors(path)
    if step is not None:
        check_step(metadata, step, path)
    return tensors


@contextmanager
def _damaged(folder: Path) -> Iterator[None]:
    """Turn what a description that makes no sense leads to into a `UserError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise UserError(
            f"'{folder / STUDENT_JSON}' is damaged or of another version ({type(error).__name__}: {error});"
            " use another checkpoint of the run"
        ) from error


def _load_encoder(folder: Path, about: dict[str, Any], short_side: int | None) -> Teacher:
    copy = (folder.resolve() / about["folder"]).resolve()
    options = about.get("options", {})
    encoder = open_encoder(str(copy) if copy.is_dir() else about["model_id"], short_side=short_side, **options)
    encoder.model_id = about["model_id"]
    if not encoder.has_weights(about["weights_sha256"]):
        raise UserError(
            f"the encoder '{about['model_id']}' has other weights than the one that '{folder}' was trained with;"
            " restore that encoder or train again"
        )
    return encoder
