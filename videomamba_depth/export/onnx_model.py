"""A student as an ONNX model: export, comparison with PyTorch, 8-bit weights."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from videomamba_depth.export.explicit_step import ExplicitStep, evaluate_shape, exportable, state_shapes
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.extras import require

OPSET = 20
_MAX_PATCHES = 1024  # per side; an upper bound that the exporter asks for
NEAR = 1e-3
_TRACED_PATCHES = (5, 7)  # any two numbers that no other size of the model equals by chance


@dataclass(frozen=True)
class Difference:
    """How far an ONNX model is from PyTorch over a video.

    Attributes:
        largest, mean: absolute difference of depth over the depth's range in that video.
        off: share of the pixels that differ by more than `NEAR` of the range.
        state: the largest absolute difference in the final state over the largest value of that tensor.
        ms: median time of a step in onnxruntime.
    """

    largest: float
    mean: float
    off: float
    state: float
    ms: float
    num_frames: int


def export_onnx(model: VideoMambaDepth, path: Path, image_size: tuple[int, int] | None = None) -> None:
    """Write one step of `model` (float32, CPU) to `path`.

    Inputs are `rgb [1, 3, H, W]` in [0, 1] and one tensor per state, outputs `depth [1, 1, H, W]` and `next.NAME` per
    state NAME; zeros start a stream. The file's metadata hold `state_shapes` (see `explicit_step.state_shapes`),
    `patch_size`, `depth_kind` and `image_size`.

    Args:
        image_size: (H, W) px, multiples of the patch, to fix the size; None: any multiples of the patch, which a
            model that estimates motion does not have: the levels of its flow depend on the size.

    Raises:
        UserError: the exporter is not installed, is too old, or the size does not fit.
    """
    if model.geometry is not None:
        raise UserError(
            "geometry has no ONNX; leave it out: --no-geometry, in Python load_student(..., geometry=False)"
        )
    if model.motion is not None and image_size is None:
        raise UserError("a student that estimates motion is exported at one size: give --size HEIGHT WIDTH")
    onnx = require("onnx", "the export")
    require("onnxscript", "the export")
    patch = model.encoder.patch_size
    size = image_size or (_TRACED_PATCHES[0] * patch, _TRACED_PATCHES[1] * patch)
    if size[0] % patch or size[1] % patch:
        raise UserError(f"--size must be multiples of the patch, {patch} px; got {size[0]} {size[1]}")
    shapes = state_shapes(model) if image_size is None else _fixed_shapes(model, size)
    with exportable(model), torch.no_grad():
        step = ExplicitStep(model, size).eval()
        example = (torch.rand(1, 3, *size), *model.init_states(1, size).tensors().values())
        try:
            program: Any = torch.onnx.export(
                step,
                example,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=["rgb", *step.names],
                output_names=["depth", *(f"next.{name}" for name in step.names)],
                dynamic_shapes=None if image_size else _dynamic_shapes(shapes, patch),
            )
        except Exception as error:  # of many kinds: what an exporter does not know differs between releases
            raise UserError(
                f"the exporter of PyTorch {torch.__version__} failed ({type(error).__name__}); it is tested with "
                "PyTorch 2.14 and onnxscript 0.7: pip install --upgrade torch torchvision onnxscript"
            ) from error
    program.save(str(path))
    written = onnx.load(str(path))
    about = {
        "state_shapes": json.dumps(shapes),
        "patch_size": str(patch),
        "depth_kind": model.depth_kind.value,
        "image_size": json.dumps(image_size),
    }
    onnx.helper.set_model_props(written, about)
    onnx.save(written, str(path))


def compare(model: VideoMambaDepth, path: Path, frames: Iterable[np.ndarray], threads: int = 1) -> Difference:
    """Stream `frames` (uint8 RGB `[H, W, 3]`, the model's own size) through both, each with its own state.

    Raises:
        UserError: onnxruntime is not installed.
    """
    session = open_session(path, threads)
    about = session.get_modelmeta().custom_metadata_map
    shapes = json.loads(about["state_shapes"])
    states, feeds, seconds = None, dict[str, np.ndarray](), []
    errors, expected = [], []
    with exportable(model), torch.no_grad():
        for frame in frames:
            if not feeds:
                feeds = _zeros(session, shapes, frame.shape[0], frame.shape[1])
            feeds["rgb"] = np.ascontiguousarray(frame.transpose(2, 0, 1)[None], np.float32) / 255
            start = time.perf_counter()
            depth, *next_state = session.run(None, feeds)
            seconds.append(time.perf_counter() - start)
            feeds |= zip(shapes, next_state, strict=True)
            reference, states = model.step(torch.from_numpy(feeds["rgb"]), states)
            errors.append(np.abs(depth - reference.numpy()))
            expected.append((float(reference.min()), float(reference.max())))
    if states is None:
        raise UserError("there is no frame to compare on")
    span = max(high for _, high in expected) - min(low for low, _ in expected)
    state = max(
        float(np.abs(feeds[name] - t.numpy()).max()) / max(float(t.abs().max()), 1e-6)
        for name, t in states.tensors().items()
    )
    largest, mean = (float(np.max(errors)) / span, float(np.mean(errors)) / span)
    off = float(np.mean(np.stack(errors) > NEAR * span))
    return Difference(largest, mean, off, state, 1000 * float(np.median(seconds)), len(errors))


def quantize_int8(path: Path, target: Path) -> None:
    """Write a copy whose matrix products have 8-bit weights, per output channel, and quantize their input as it comes.

    Convolutions stay in float32: onnxruntime's dynamic 8-bit convolutions are slower than its float32 ones.

    Raises:
        UserError: onnxruntime is not installed.
    """
    quantization = require("onnxruntime.quantization", "--int8")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime warns of a preparation that changes nothing here
    try:
        quantization.quantize_dynamic(
            str(path),
            str(target),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    finally:
        logging.getLogger().setLevel(level)


def open_session(path: Path, threads: int = 1) -> Any:
    """Return an onnxruntime session on the CPU.

    Raises:
        UserError: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "the comparison")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _zeros(session: Any, shapes: dict[str, Any], height: int, width: int) -> dict[str, np.ndarray]:
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
    dtypes = {given.name: kinds[given.type] for given in session.get_inputs()}
    return {name: np.zeros(evaluate_shape(shape, height, width), dtypes[name]) for name, shape in shapes.items()}


def _fixed_shapes(model: VideoMambaDepth, size: tuple[int, int]) -> dict[str, list[Any]]:
    with exportable(model):
        return {name: list(t.shape) for name, t in model.init_states(1, size).tensors().items()}


def _dynamic_shapes(shapes: dict[str, list[Any]], patch: int) -> dict[str, Any]:
    height, width = (Dim(name, min=2, max=_MAX_PATCHES) for name in ("rows", "columns"))
    state = []
    for shape in shapes.values():
        free = {axis: Dim.AUTO for axis, dimension in enumerate(shape) if not isinstance(dimension, int)}
        state.append(free or None)
    return {"rgb": {2: patch * height, 3: patch * width}, "state": tuple(state)}
