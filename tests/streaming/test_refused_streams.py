"""A file of a stream is loaded atomically, and only by a stream that goes on to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_refused_frames import carried, opened
from tiny import tiny_student, tiny_teacher

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.checkpoint import load_tensors, save_tensors
from videomamba_depth.utils.errors import UserError

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tiny_encoder: DepthAnythingEncoder) -> VideoMambaDepth:
    return tiny_student(tiny_encoder)


@pytest.fixture(scope="module")
def saved(model: VideoMambaDepth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream with resets and key frames, after three frames."""
    path = tmp_path_factory.mktemp("stream") / "stream.safetensors"
    stream = opened(model, True)
    clip = np.random.default_rng(0).integers(0, 256, (3, 47, 65, 3), np.uint8)
    for t, frame in enumerate(clip):
        stream.step(frame, 0.1 * t)
    stream.save(path)
    return path


def test_weights_that_were_changed_in_place_are_seen(
    student: VideoMambaDepth, frames: np.ndarray, tmp_path: Path
) -> None:
    stream = DepthStream(student, device="cpu")
    stream.step(frames[0])
    stream.save(tmp_path / "stream")
    stream.load(tmp_path / "stream")
    with torch.no_grad():
        next(student.temporal.parameters()).add_(0.1)
    for own in (stream, DepthStream(student, device="cpu")):
        with pytest.raises(UserError, match=r"was saved with weights '[\w.]+'; this stream has '[\w.]+'"):
            own.load(tmp_path / "stream")


def test_other_settings_are_named(model: VideoMambaDepth, frames: np.ndarray, tmp_path: Path) -> None:
    policy = ResetPolicy(max_gap_s=2.0)
    stream = DepthStream(model, device="cpu", resets=policy, hooks=[KeyFrames(KeyFrameSettings())])
    stream.step(frames[0], 0.0)
    path = tmp_path / "stream"
    stream.save(path)
    others: list[tuple[str, dict[str, Any]]] = [
        ("resets True; this stream has False", {"hooks": [KeyFrames(KeyFrameSettings())]}),
        (r"resets.max_gap_s 2.0; this stream has 1.0", {"resets": ResetPolicy(max_gap_s=1.0)}),
        ("resets.cuts True; this stream has False", {"resets": ResetPolicy(cuts=False, max_gap_s=2.0)}),
        ("key_frames True; this stream has False", {"resets": policy}),
        ("key_frames.every 15; this stream has 3", {"resets": policy, "hooks": [KeyFrames(KeyFrameSettings(every=3))]}),
        ("memory 1.0; this stream has 2.0", {"memory": 2.0}),
        ("batch_size 1; this stream has 2", {"batch_size": 2}),
    ]
    for message, options in others:
        with pytest.raises(UserError, match=f"was saved with {message}"):
            DepthStream(model, device="cpu", **options).load(path)
    plain = DepthStream(model, device="cpu")
    plain.step(frames[0])
    plain.save(path)
    with pytest.raises(UserError, match="resets False; this stream has True"):
        stream.load(path)


def test_another_short_side_is_named(frames: np.ndarray, tmp_path: Path) -> None:
    small, large = (tiny_student(DepthAnythingEncoder(tiny_teacher(), "tiny", short_side=size)) for size in (42, 70))
    stream = DepthStream(small, device="cpu")
    stream.step(frames[0])
    stream.save(tmp_path / "stream")
    with pytest.raises(UserError, match="was saved with short_side 42; this stream has 70"):
        DepthStream(large, device="cpu").load(tmp_path / "stream")


def without(name: str) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda tensors, about: tensors.pop(name, None) if name in tensors else about.pop(name)  # type: ignore


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda tensors, about: tensors.update({name: tensor})


def with_text(key: str, name: str | None, value: Any) -> Callable[[Tensors, dict[str, str]], None]:
    def change(_: Tensors, about: dict[str, str]) -> None:
        about[key] = json.dumps({**json.loads(about[key]), name: value}) if name is not None else value

    return change


FORGED = [
    *(without(name) for name in ("settings", "state", "key_frames", "state.frame_index", "state.s1.0.ssm")),
    *(
        without(name)
        for name in (
            "resets.histogram",
            "resets.seen",
            "resets.timed",
            "key_frames.appearance.picture",
            "key_frames.appearance.depth",
        )
    ),
    *(
        with_tensor(name, torch.zeros(3))
        for name in ("other", "state.s1.7.conv", "resets.more", "key_frames.9.appearance.depth")
    ),
    with_tensor("state.map.foo", torch.zeros(1, 1, 2, 2)),
    with_tensor("state.frame_index", torch.tensor([-5])),
    with_tensor("state.frame_index", torch.tensor([5.0])),
    with_tensor("state.frame_index", torch.tensor([5, 5])),
    with_tensor("resets.histogram", torch.zeros(3, 64)),
    with_tensor("resets.seen", torch.zeros(1, dtype=torch.float64)),
    with_tensor("resets.timestamps_s", torch.zeros(2, dtype=torch.float64)),
    with_tensor("key_frames.appearance.picture", torch.zeros(1, 3, 2, 2)),
    with_tensor("key_frames.0.appearance.descriptor", torch.zeros(1, 5)),
    with_tensor("key_frames.0.state.frame_index", torch.tensor([-1])),
    *(
        with_text(key, None, value)
        for key in ("settings", "state", "key_frames")
        for value in ("[]", "null", '"x"', "")
    ),
    *(with_text(key, None, "[" * 100_000) for key in ("settings", "state", "key_frames")),
    *(
        with_text("state", "image_size", value)
        for value in ("[0, 0]", '["a", "b"]', "[100000000, 100000000]", "[4, 9000]")
    ),
    with_text("state", "memory", '"2"'),
    with_text("state", "signature", "a\nb"),
    *(with_text("settings", "precision", value) for value in (None, [], "float16")),
    *(with_text("key_frames", "number", value) for value in (None, -3, "x", 1.5, True, 0)),
    *(with_text("key_frames", "anchor", value) for value in ("x", 0.5, True)),
    *(with_text("key_frames", "blended", value) for value in (-1, 4, None)),
    *(with_text("key_frames", "norm", value) for value in (float("nan"), None, "x")),
    *(with_text("key_frames", "scale", value) for value in ([1.0], [0.0, 0.0], [float("inf"), 0.0], None)),
    *(
        with_text("key_frames", "ring", value)
        for value in (None, [{}], [1], {}, [{"number": 0, "left": 1, "state": {}}])
    ),
    with_text("key_frames", "after_reset", 1),
]


def test_a_sealed_file_that_is_wrong_is_refused_as_a_whole(
    model: VideoMambaDepth, saved: Path, tmp_path: Path, frames: np.ndarray
) -> None:
    stream, untouched = opened(model, True), opened(model, True)
    for own in (stream, untouched):
        own.step(frames[0], 0.0)
    before = carried(stream)
    for number, change in enumerate(FORGED):
        tensors, about = load_tensors(saved, sealed=True)
        change(tensors, about)
        save_tensors(tmp_path / "forged", tensors, about)
        with pytest.raises(UserError, match="does not fit: ") as caught:
            stream.load(tmp_path / "forged")
        assert "\n" not in str(caught.value), number
        assert len(str(caught.value)) < 800, number
        assert carried(stream) == before, number
    assert np.array_equal(stream.step(frames[1], 0.1), untouched.step(frames[1], 0.1))
    stream.load(saved)  # what the forged ones were made from is good


def test_a_stream_that_was_just_reset_is_saved_and_loaded(
    model: VideoMambaDepth, frames: np.ndarray, tmp_path: Path
) -> None:
    stream, other = opened(model, True), opened(model, True)
    stream.step(frames[0], 0.0)
    stream.reset([True])
    stream.save(tmp_path / "stream")
    other.load(tmp_path / "stream")
    assert np.array_equal(other.step(frames[1], 9.0), stream.step(frames[1], 9.0))
    assert carried(other) == carried(stream)


@pytest.mark.parametrize("batch_size", [0, 1.5, "2", None, True])
def test_what_is_no_batch(model: VideoMambaDepth, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number from 1; got "):
        DepthStream(model, device="cpu", batch_size=batch_size)


@pytest.mark.parametrize("memory", ["2", None, 10**400, float("nan")])
def test_what_is_no_memory(model: VideoMambaDepth, memory: Any) -> None:
    with pytest.raises(UserError, match="memory must be a positive number; got "):
        DepthStream(model, device="cpu", memory=memory)


def test_what_is_no_checkpoint(tiny_encoder: DepthAnythingEncoder) -> None:
    for given in (None, tiny_encoder):
        with pytest.raises(ValueError, match="checkpoint must be a path, a name or a student; got "):
            DepthStream(given, device="cpu")  # type: ignore[arg-type]


def test_a_file_of_the_former_format_goes_on(
    model: VideoMambaDepth, saved: Path, tmp_path: Path, frames: np.ndarray
) -> None:
    def former(text: str) -> str:
        names = {"key_frames.": "keys.", "appearance.": "look.", "after_reset": "afresh", "precision": "dtype"}
        for name, old in {**names, "short_side": "input_size"}.items():
            text = text.replace(name, old)
        return text

    tensors, about = load_tensors(saved, sealed=True)
    tensors = {former(name): tensor for name, tensor in tensors.items()}
    settings = former(about["settings"].replace('"key_frames.', '"KEY.')).replace('"KEY.', '"key_frames.')
    about |= {"format": "videomamba-depth stream 3", "settings": settings, "key_frames": former(about["key_frames"])}
    assert {"keys.look.depth", "resets.seen"} < tensors.keys()
    save_tensors(tmp_path / "former", tensors, {name: text for name, text in about.items() if name != "resets"})
    stream, other = opened(model, True), opened(model, True)
    stream.load(tmp_path / "former")
    other.load(saved)
    assert np.array_equal(stream.step(frames[1], 0.4), other.step(frames[1], 0.4))
