"""A stream is the model on the whole clip; it can be saved, batched and reset without changing a bit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.checkpoint import load_tensors
from videomamba_depth.utils.errors import UserError


def test_equals_the_model_on_the_clip(student: VideoMambaDepth, frames: np.ndarray) -> None:
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2).float()[None] / 255
    with torch.no_grad():
        expected = student(clip).depth
    depth = np.stack(list(DepthStream(student, device="cpu")(frames)))
    assert depth.shape == (8, 47, 65)
    assert depth.dtype == np.float32
    # chunk invariance of the whole model: 1e-4 of the depth range; measured 3e-6
    assert np.abs(depth - expected[0, :, 0].numpy()).max() < 1e-5 * np.ptp(expected.numpy())


def test_the_past_matters(student: VideoMambaDepth, frames: np.ndarray) -> None:
    with_past = list(DepthStream(student, device="cpu")(frames))
    without = list(DepthStream(student, device="cpu")(frames[4:]))
    assert np.abs(with_past[4] - without[0]).max() > 1e-2 * np.ptp(without[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_equals_never_stopped(
    tmp_path: Path, checkpoint: Path, frames: np.ndarray, dtype: str
) -> None:
    def new_stream() -> DepthStream:
        resets = ResetPolicy(histogram_change=0.01, feature_change=1e-6, feature_ratio=1.0)  # resets at some frames
        return DepthStream(checkpoint, device="cpu", precision=dtype, resets=resets)

    through = new_stream()
    expected, reasons = [], []
    for frame in frames:
        expected.append(through.step(frame))
        reasons.append(through.reset_reasons)
    first = new_stream()
    list(first(frames[:4]))
    first.save(tmp_path / "stream.safetensors")
    second = new_stream()
    second.load(tmp_path / "stream.safetensors")
    for frame, depth, reason in zip(frames[4:], expected[4:], reasons[4:], strict=True):
        assert np.array_equal(second.step(frame), depth)
        assert second.reset_reasons == reason
    assert second.states is not None
    assert through.states is not None
    for name, tensor in through.states.tensors().items():
        assert torch.equal(second.states.tensors()[name], tensor)


def test_saved_stream_of_another_model_is_refused(tmp_path: Path, checkpoint: Path, frames: np.ndarray) -> None:
    stream = DepthStream(checkpoint, device="cpu")
    stream.step(frames[0])
    path = tmp_path / "stream.safetensors"
    stream.save(path)
    other = DepthStream(checkpoint, device="cpu")
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    with pytest.raises(UserError, match="with weights"):
        other.load(path)
    with pytest.raises(UserError, match="with precision 'float32'; this stream has 'bfloat16'"):
        DepthStream(checkpoint, device="cpu", precision="bfloat16").load(path)
    with pytest.raises(UserError, match="with batch_size 1; this stream has 2"):
        DepthStream(checkpoint, device="cpu", batch_size=2).load(path)
    with pytest.raises(UserError, match="cannot read"):
        stream.load(tmp_path / "missing")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_pixel_that_is_no_number_costs_its_frame_alone(
    student: VideoMambaDepth, frames: np.ndarray, number: float
) -> None:
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    stream, clean = (DepthStream(student, device="cpu", resets=ResetPolicy(max_gap_s=1.0)) for _ in range(2))
    for t in range(3):
        stream.step_tensor(rgb[t : t + 1], [0.1 * t])
        clean.step_tensor(rgb[t : t + 1], [0.1 * t])
    damaged = rgb[3:4].clone()
    damaged[0, 1, 5, 7] = number
    with pytest.raises(ValueError, match="rgb must be finite; got 1 values that are NaN or infinite"):
        stream.step_tensor(damaged, [9.0])
    for t in range(3, 6):
        expected = clean.step_tensor(rgb[t : t + 1], [0.1 * t])
        assert torch.equal(stream.step_tensor(rgb[t : t + 1], [0.1 * t]), expected)


def test_weights_that_overflow_stop_the_stream(tmp_path: Path, student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream = DepthStream(student, device="cpu", resets=ResetPolicy(max_gap_s=1.0))
    stream.step(frames[0], 0.0)
    stream.save(tmp_path / "stream.safetensors")  # a stream whose time has begun
    states = stream.states
    with torch.no_grad():
        student.head.head.conv3.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the depth of frame 1 of the stream is not finite .* another checkpoint"):
        stream.step(frames[1], 0.1)
    assert stream.states is states


def test_a_damaged_stream_is_refused(tmp_path: Path, checkpoint: Path, frames: np.ndarray) -> None:
    stream = DepthStream(checkpoint, device="cpu")
    stream.step(frames[0])
    path = tmp_path / "stream.safetensors"
    stream.save(path)
    tensors, metadata = load_tensors(path)
    name = next(n for n, t in tensors.items() if t.is_floating_point() and t.numel())
    for changed in ({name: tensors[name] + 1e-3}, {"state.frame_index": tensors["state.frame_index"] + 5}):
        save_file(tensors | changed, path, metadata={**metadata, "sha256": "0" * 64})
        with pytest.raises(UserError, match="is damaged: it is not what was written"):
            stream.load(path)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError, match="has no digest"):
        stream.load(path)


def test_streams_of_a_batch_are_independent(student: VideoMambaDepth, frames: np.ndarray) -> None:
    pairs = np.stack([frames[:4], frames[4:]], 1)
    stream = DepthStream(student, device="cpu", batch_size=2)
    depth = [stream.step(pair) for pair in pairs[:2]]
    stream.reset([True, False])
    depth += [stream.step(pair) for pair in pairs[2:]]
    assert stream.reset_reasons == ("", "")
    assert stream.states is not None
    assert stream.states.frame_index.tolist() == [2, 4]
    kept = list(DepthStream(student, device="cpu")(frames[4:]))
    after_reset = list(DepthStream(student, device="cpu")(frames[2:4]))
    scale = np.ptp(kept[0])
    # convolutions round by batch size; measured 3e-6
    assert max(np.abs(d[1] - k).max() for d, k in zip(depth, kept, strict=True)) < 1e-5 * scale
    assert max(np.abs(d[0] - a).max() for d, a in zip(depth[2:], after_reset, strict=True)) < 1e-5 * scale


def test_a_full_reset_starts_a_new_stream(student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream = DepthStream(student, device="cpu")
    first = stream.step(frames[0])
    stream.step(frames[1])
    stream.reset()
    assert np.array_equal(stream.step(frames[0]), first)
    assert stream.reset_reasons == ("start",)


def test_model_resolution(student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream = DepthStream(student, device="cpu", resolution="model")
    assert stream.step(frames[0]).shape == stream.model_resolution(47, 65) == (42, 56)


def test_bfloat16_is_near_float32(student: VideoMambaDepth, checkpoint: Path, frames: np.ndarray) -> None:
    exact = np.stack(list(DepthStream(student, device="cpu")(frames)))
    rough = np.stack(list(DepthStream(checkpoint, device="cpu", precision="bfloat16")(frames)))
    assert 0 < np.abs(rough - exact).mean() < 0.02 * np.ptp(exact)


def test_converted_weights_give_what_autocast_gives(checkpoint: Path, student: VideoMambaDepth) -> None:
    rgb = torch.rand(1, 3, 47, 65)
    student.to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected, _ = student.step(rgb)
    got = DepthStream(checkpoint, device="cpu", precision="bfloat16").step_tensor(rgb)
    assert torch.equal(got, expected.float())


def test_teacher_frame_by_frame(tiny_teacher_folder: str, tiny_encoder: torch.nn.Module, frames: np.ndarray) -> None:
    stream = DepthStream(f"teacher:{tiny_teacher_folder}", device="cpu")
    depth = np.stack(list(stream(frames)))
    rgb = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    expected = torch.cat([tiny_encoder.predict_depth(frame[None]) for frame in rgb])[:, 0].numpy()
    assert np.abs(depth - expected).max() < 1e-5 * np.ptp(expected)
    assert stream.states is not None
    assert stream.states.frame_index.item() == 8


@pytest.mark.parametrize("shape", [(47, 65), (47, 65, 4), (2, 47, 65, 3)])
def test_wrong_shape(student: VideoMambaDepth, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frame must be uint8 \[H, W, 3\], a numpy array, not empty; got"):
        DepthStream(student, device="cpu").step(np.zeros(shape, np.uint8))


def test_wrong_size_midway(student: VideoMambaDepth, frames: np.ndarray) -> None:
    stream = DepthStream(student, device="cpu")
    stream.step(frames[0])
    with pytest.raises(ValueError, match=r"\(47, 65\) .* px; got \(40, 65\): .* or call reset\(\) first"):
        stream.step(frames[0, :40])
    stream.reset()
    assert stream.step(frames[0, :40]).shape == (40, 65)


def test_unknown_device_and_checkpoint(student: VideoMambaDepth, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        DepthStream(student, device="gpu")
    with pytest.raises(UserError, match="not a student checkpoint"):
        DepthStream(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        DepthStream(f"teacher:{tmp_path}/missing")


def test_a_carried_output_streams_in_bfloat16(tiny_encoder: DepthAnythingEncoder, frames: np.ndarray) -> None:
    student = VideoMambaDepth(
        tiny_encoder, tiny_encoder.head, TemporalSpec(), motion=MotionSpec(), output=OutputSpec()
    ).eval()
    precise = np.stack(list(DepthStream(copy.deepcopy(student), device="cpu")(frames)))
    rough = np.stack(list(DepthStream(copy.deepcopy(student), device="cpu", precision="bfloat16")(frames)))
    assert np.abs(rough - precise).max() < 0.05 * np.ptp(precise)


def test_a_float64_student_streams_as_it_does_on_clips(tiny_encoder: DepthAnythingEncoder, frames: np.ndarray) -> None:
    encoder = copy.deepcopy(tiny_encoder)
    student = VideoMambaDepth(
        encoder, tiny_encoder.head, TemporalSpec(), motion=MotionSpec(), output=OutputSpec()
    ).eval()
    student.double()
    clip = torch.from_numpy(frames[:3]).permute(0, 3, 1, 2)[None].double() / 255
    with torch.no_grad():
        expected = student(clip).depth[0, :, 0]
    stream = DepthStream(student, device="cpu")
    shown = np.stack([stream.step(frame) for frame in frames[:3]])
    assert np.abs(shown - expected.numpy()).max() < 1e-5 * np.ptp(shown)
