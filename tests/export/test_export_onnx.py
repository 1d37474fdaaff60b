"""An exported step is PyTorch's, frame after frame, at every size; the example runs on it with onnxruntime alone."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, run_command
from media import numbered_frame, write_video
from tiny import OLD_EXPORTER, tiny_student

from videomamba_depth.data.video.reader import probe_video
from videomamba_depth.export.explicit_step import ExplicitStep, evaluate_shape, exportable, state_shapes
from videomamba_depth.export.onnx_model import compare, export_onnx, open_session, quantize_int8
from videomamba_depth.models.checkpoint import describe_encoder, save_student, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError

pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra [export])")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra [export])")
pytestmark = pytest.mark.skipif(OLD_EXPORTER, reason="the exporters of PyTorch 2.6 and 2.8 fail")


@pytest.fixture(scope="module")
def student(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    return tiny_student(tiny_encoder)


@pytest.fixture(scope="module")
def smaller(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    """The same with blocks at two scales only: an export takes time by the operator."""
    return tiny_student(tiny_encoder, num_blocks=(0, 1, 0, 2))


def export(student: VideoMambaDepth, folder: Path) -> Path:
    export_onnx(student, folder / "any_size.onnx")
    return folder / "any_size.onnx"


@pytest.fixture(scope="module")
def exported(smaller: VideoMambaDepth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(smaller, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def exported_at_every_scale(student: VideoMambaDepth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(student, tmp_path_factory.mktemp("onnx"))


def frames(height: int, width: int, num: int = 50) -> list[np.ndarray]:
    return [numbered_frame(i, width, height) for i in range(num)]


@pytest.fixture(scope="module")
def moving(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    """A student that carries tokens and depth along the motion, as the default recipe does; and the affine."""
    spec = TemporalSpec(
        *(ScaleSpec(num_blocks=n, backend="reference", initial_gain=0.5, advect=n == 1) for n in (0, 1, 0, 2))
    )
    output = OutputSpec(affine=0.8)
    return VideoMambaDepth(tiny_encoder, tiny_encoder.head, spec, motion=MotionSpec(), output=output).eval()


@pytest.mark.slow
def test_motion_and_carried_depth_are_part_of_the_graph(moving: VideoMambaDepth, tmp_path: Path) -> None:
    estimator = moving.motion.flow if moving.motion else None
    export_onnx(moving, tmp_path / "moving.onnx", (42, 56))
    difference = compare(moving, tmp_path / "moving.onnx", frames(42, 56))
    assert difference.off < 1e-3
    assert difference.mean < 1e-5
    assert moving.motion is not None
    assert moving.motion.flow is estimator


def test_a_student_with_motion_needs_a_size(moving: VideoMambaDepth, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--size HEIGHT WIDTH"):
        export_onnx(moving, tmp_path / "model.onnx")


def test_torch_export_holds_the_step_with_motion(moving: VideoMambaDepth) -> None:
    with exportable(moving), torch.no_grad():
        step = ExplicitStep(moving, (42, 56)).eval()
        first, second = (torch.from_numpy(f.transpose(2, 0, 1)[None]).float() / 255 for f in frames(42, 56, 2))
        zeros = tuple(moving.init_states(1, (42, 56)).tensors().values())
        program = torch.export.export(step, (first, *zeros)).module()
        _, *state = step(first, *zeros)
        for expected, got in zip(step(second, *state), program(second, *state), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def assert_fifty_frames_are_equal(student: VideoMambaDepth, path: Path, size: tuple[int, int]) -> None:
    difference = compare(student, path, frames(*size))
    assert difference.num_frames == 50
    assert difference.largest < 1e-4  # measured 8e-4 and 3e-6
    assert difference.state < 1e-4


SIZES = [(42, 56), (70, 98), (98, 42)]


@pytest.mark.parametrize("size", SIZES)
def test_fifty_frames_equal_pytorch(smaller: VideoMambaDepth, exported: Path, size: tuple[int, int]) -> None:
    assert_fifty_frames_are_equal(smaller, exported, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_fifty_frames_equal_pytorch_with_blocks_at_every_scale(
    student: VideoMambaDepth, exported_at_every_scale: Path, size: tuple[int, int]
) -> None:
    assert_fifty_frames_are_equal(student, exported_at_every_scale, size)


def test_the_state_matters(smaller: VideoMambaDepth, exported: Path) -> None:
    """A control for the test above: without the carried state it would fail."""
    session = open_session(exported)
    shapes = {name: evaluate_shape(shape, 42, 56) for name, shape in state_shapes(smaller).items()}
    zeros = {n: np.zeros(s, np.int64 if n == "frame_index" else np.float32) for n, s in shapes.items()}
    first, second = ({"rgb": f.transpose(2, 0, 1)[None].astype(np.float32) / 255} for f in frames(42, 56, 2))
    _, *state = session.run(None, first | zeros)
    with_past = session.run(None, second | dict(zip(shapes, state, strict=True)))[0]
    assert np.abs(with_past - session.run(None, second | zeros)[0]).max() > 1e-3  # measured 9e-2


def test_shapes_of_the_state_at_every_size(student: VideoMambaDepth) -> None:
    shapes = state_shapes(student)
    for height, width in ((14, 14), (42, 70), (518, 686)):
        new = student.init_states(1, (height, width)).tensors()
        assert {n: evaluate_shape(s, height, width) for n, s in shapes.items()} == {
            n: tuple(t.shape) for n, t in new.items()
        }


def test_names_and_metadata(smaller: VideoMambaDepth, exported: Path) -> None:
    session = open_session(exported)
    names = list(smaller.init_states(1, (42, 56)).tensors())
    assert [i.name for i in session.get_inputs()] == ["rgb", *names]
    assert [o.name for o in session.get_outputs()] == ["depth", *(f"next.{n}" for n in names)]
    about = session.get_modelmeta().custom_metadata_map
    assert about["depth_kind"] == smaller.depth_kind.value
    assert list(json.loads(about["state_shapes"])) == names


def test_the_step_leaves_the_model_as_it_was(student: VideoMambaDepth) -> None:
    with exportable(student), torch.no_grad():
        step = ExplicitStep(student, (42, 56))
        depth, *_ = step(torch.rand(1, 3, 42, 56), *student.init_states(1, (42, 56)).tensors().values())
    assert depth.shape == (1, 1, 42, 56)
    assert student.encoder.input_resolution(43, 57) == (42, 56)


def test_int8_is_near_and_reported(smaller: VideoMambaDepth, exported: Path, tmp_path: Path) -> None:
    quantize_int8(exported, tmp_path / "int8.onnx")
    difference = compare(smaller, tmp_path / "int8.onnx", frames(42, 56, 20))
    assert 1e-5 < difference.largest < 0.5
    assert (tmp_path / "int8.onnx").stat().st_size < exported.stat().st_size


def test_a_size_that_does_not_fit(student: VideoMambaDepth, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiples of the patch, 14 px"):
        export_onnx(student, tmp_path / "x.onnx", (50, 56))


@pytest.mark.parametrize("size", [(180, 240), (50, 60)])
def test_the_example_brings_frames_to_size_as_a_stream_does(
    smaller: VideoMambaDepth, exported: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """What is shrunk, or enlarged, outside of the graph gives the stream's depth."""
    fit = runpy.run_path(str(ROOT / "examples/run_onnx.py"))["fit"]
    session = open_session(exported)
    monkeypatch.setattr(smaller.encoder, "short_side", 56)
    height, width = smaller.encoder.input_resolution(*size)
    feeds = {n: np.zeros(evaluate_shape(s, height, width), np.float32) for n, s in state_shapes(smaller).items()}
    feeds["frame_index"] = feeds["frame_index"].astype(np.int64)
    names = list(feeds)
    stream = DepthStream(smaller, device="cpu", resolution="model")
    rng = np.random.default_rng(0)
    for _ in range(3):
        frame = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        depth, *state = session.run(None, feeds | {"rgb": fit(frame, height, width)})
        feeds = dict(zip(names, state, strict=True))
        expected = stream.step(frame)
        assert np.abs(depth[0, 0] - expected).max() < 1e-3 * np.ptp(expected)  # measured 8e-4 and 3e-6


@pytest.mark.slow
def test_the_command_and_the_example(
    student: VideoMambaDepth, tiny_encoder: DepthAnythingEncoder, tmp_path: Path
) -> None:
    tiny_encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "last").mkdir()
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    about = describe_encoder(tiny_encoder, "../encoder")
    save_student(tmp_path / "last", student_weights(student), spec, about, short_side=42)
    done = run_command(
        tmp_path,
        "scripts/export_onnx.py",
        "last",
        "depth.onnx",
        "--size",
        "42",
        "56",
        "--frames",
        "5",
        "--threads",
        "1",
    )
    assert done.status == 0, done.err
    assert "5 frames of 42x56: depth differs from PyTorch by at most" in done.out
    video = write_video(tmp_path / "clip.mp4", 7)
    assert "videomamba" not in (ROOT / "examples/run_onnx.py").read_text()
    program = [sys.executable, str(ROOT / "examples/run_onnx.py"), "depth.onnx", str(video), "out.mp4"]
    subprocess.run(program, cwd=tmp_path, check=True, timeout=120)
    assert probe_video(tmp_path / "out.mp4").num_frames == 7


@pytest.mark.parametrize(
    ("checkpoint", "message"), [("missing", "not a student checkpoint"), ("teacher:embedded", "is a bare teacher")]
)
def test_mistakes_are_one_line(tmp_path: Path, checkpoint: str, message: str) -> None:
    done = run_command(tmp_path, "scripts/export_onnx.py", checkpoint, "x.onnx")
    assert done.status == 2
    assert done.errors == [done.err.strip().splitlines()[-1]]
    assert message in done.errors[0]


def test_a_failing_exporter_is_one_line(
    student: VideoMambaDepth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("many\nlines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match=r"^the exporter of PyTorch \S+ failed \(RuntimeError\); it is tested with"):
        export_onnx(student, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
