"""Streaming depth from Python: frames in, depth out, state inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.models.camera import Camera, cameras_of
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.depth_state import DepthState, check_state, check_values
from videomamba_depth.models.feature_propagation import check_encode_every
from videomamba_depth.models.videomamba_depth import Observation, VideoMambaDepth, check_memory
from videomamba_depth.streaming.frame_graph import FrameGraph, FrameStep
from videomamba_depth.streaming.hooks import NextFrame, StreamHook
from videomamba_depth.streaming.placement import place
from videomamba_depth.streaming.resets import KEPT_FOR_CUTS, ResetPolicy, with_cuts
from videomamba_depth.utils.checkpoint import hash_tensors, load_tensors, save_tensors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.device import DTYPES, autocast, resolve_device
from videomamba_depth.utils.errors import UserError, describe
from videomamba_depth.utils.images import check_axes, check_rgb

_FORMAT = "videomamba-depth stream 4"
_FORMER_FORMAT = "videomamba-depth stream 3"
_FORMER_NAMES = {"keys.": "key_frames.", "look.": "appearance.", '"afresh"': '"after_reset"'}
_FORMER_NAMES |= {'"dtype"': '"precision"', '"input_size"': '"short_side"'}  # of the former format: today's names


class DepthStream:
    """Depth of one or several videos, frame by frame, with constant memory.

        stream = DepthStream("runs/x/last")
        for depth in stream(frames):        # frames: uint8 RGB [H, W, 3]
            ...                             # depth: float32 [H, W], unit as stream.depth_kind says

    Everything that is carried lies in this object, not in the model: streams may share a model.

    Args:
        checkpoint: a student's folder, "owner/name" of the hub, "teacher:NAME_OR_PATH", or a model that is loaded
            already (it is moved, frozen and, below float32, its encoder's and decoder's weights are converted in
            place).
        device: "auto", "cpu", "cuda", "cuda:1", …
        precision: "float32" (float64 for a model whose weights are), or "bfloat16" / "float16" under autocast.
        short_side: short side in px that frames are resized to; None: the checkpoint's.
        batch_size: number of videos B that are streamed side by side; their frames must have one size.
        resolution: "source" returns depth at the size of the frames, "model" at the size that the model works in.
        resets: when a stream is reset by itself; None: never.
        hooks: called around every frame, in this order, `resets` before them; they belong to this stream alone.
        memory: how long the stream remembers, relative to the student's training: 2 is steadier, 0.5 reacts faster.
        geometry, affine: whether depth is corrected by parallax, and global changes of its scale and shift are undone,
            see `load_student`; with a model at hand, as that was built.
        encode_every: the encoder, the most of a frame's time, sees every so many-th frame, and at once where a picture
            has moved far or is cut; the others get its features along the flow, see `FeaturePropagation`. 1: all of
            them. Not with other hooks than `resets`, nor with `compile`.
        revision: of the hub's repository: branch, tag or commit.
        compile: compile all that is done with a frame as one graph, from each stream's second frame on, which then
            takes a minute; see `FrameGraph`. Not with other hooks than `resets`, nor with geometry.

    Raises:
        UserError: a checkpoint or device that does not exist, a memory or `encode_every` that the student cannot have,
            or what looks at a frame while it is on its way, with `compile` or `encode_every`.
    """

    def __init__(
        self,
        checkpoint: str | Path | VideoMambaDepth,
        *,
        device: str = "auto",
        precision: str = "float32",
        short_side: int | None = None,
        batch_size: int = 1,
        resolution: str = "source",
        resets: ResetPolicy | None = None,
        hooks: Sequence[StreamHook] = (),
        memory: float = 1.0,
        geometry: bool | None = None,
        affine: bool | None = None,
        encode_every: int = 1,
        compile: bool = False,
        revision: str | None = None,
    ) -> None:
        if precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}; got '{precision}'")
        if resolution not in ("source", "model"):
            raise ValueError(f"resolution must be 'source' or 'model'; got '{resolution}'")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number from 1; got {describe(batch_size)}")
        self.device, self.dtype = resolve_device(device), DTYPES[precision]
        self.batch_size, self.resolution, self.resets = batch_size, resolution, resets
        self.model: VideoMambaDepth
        if isinstance(checkpoint, str | Path):
            self.model = load_student(checkpoint, short_side, geometry=geometry, affine=affine, revision=revision)
        elif isinstance(checkpoint, VideoMambaDepth):
            self.model = checkpoint
        else:
            raise ValueError(f"checkpoint must be a path, a name or a student; got {describe(checkpoint)}")
        try:
            check_memory(self.model, memory)
            self.encode_every = check_encode_every(encode_every, self.model.motion is not None)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.memory = float(memory)
        if precision == "float32" and any(p.dtype == torch.float64 for p in self.model.head.parameters()):
            self.dtype = torch.float64
        place(self.model, self.device, self.dtype)
        if compile and hooks:
            raise UserError(
                "compile=true makes one graph of a frame, which key frames would cut: leave one of the two out"
            )
        if compile and self.model.geometry is not None:
            raise UserError(
                "compile=true makes one graph of a frame, which geometry is too long for: leave one of the two out"
            )
        if encode_every > 1 and (compile or hooks):
            other = "compile=true makes one graph of a frame, which" if compile else "key frames need features that"
            raise UserError(
                f"{other} encode_every={encode_every} decides about frame by frame: leave one of the two out"
            )
        self._is_compiled = compile
        self._graph: FrameGraph | None = None
        self.hooks = (*([] if resets is None else [resets]), *hooks)
        for hook in self.hooks:
            hook.attach(batch_size, self.depth_kind)
        self._states: DepthState | None = None
        self._has_past = (False,) * batch_size
        self._reasons: tuple[str, ...] = ("",) * batch_size
        self._cuts: Tensor | None = None
        self._staging: dict[str, Tensor] = {}

    @property
    def depth_kind(self) -> DepthKind:
        """What the depth means."""
        return self.model.depth_kind

    @property
    def max_depth_m(self) -> float | None:
        """Upper bound of metric checkpoints in meters; None for relative ones."""
        return self.model.encoder.max_depth_m

    @property
    def states(self) -> DepthState | None:
        """What is carried to the next frame; None before the first one."""
        return self._states

    @property
    def reset_reasons(self) -> tuple[str, ...]:
        """Why each stream started anew at the latest frame: "start", "gap", "cut"; "" where it went on."""
        if self._cuts is not None:
            self._reasons, self._cuts = tuple(with_cuts(self._reasons, self._cuts)), None
        return self._reasons

    @property
    def cameras(self) -> list[Camera]:
        """Where the camera of each stream was at the latest frame; empty for students without geometry."""
        return [] if self._states is None else cameras_of(self._states, self.depth_kind)

    @property
    def notes(self) -> dict[str, Any]:
        """What the hooks say of the latest frame."""
        return {name: note for hook in self.hooks for name, note in hook.notes().items()}

    def model_resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in px that the model works in for frames of that size."""
        return self.model.encoder.input_resolution(height, width)

    def __call__(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the depth of each frame, see `step`."""
        for frame in frames:
            yield self.step(frame)

    def step(self, frame: np.ndarray, timestamp_s: float | None = None) -> np.ndarray:
        """Return the depth of the next frame. Whatever ends it early leaves the stream as it was.

        Args:
            frame: uint8 RGB `[H, W, 3]`, or `[B, H, W, 3]` for `batch_size` B.
            timestamp_s: when it is shown, for policies that watch the time.

        Returns:
            float32 `[h, w]`, or `[B, h, w]`.

        Raises:
            ValueError: another shape, dtype or size than the stream's.
            UserError: the depth is not finite.
        """
        batch = self.batch_size
        if (
            not isinstance(frame, np.ndarray)
            or frame.dtype != np.uint8
            or not (frame.ndim == 4 or (frame.ndim == 3 and batch == 1))
            or (*frame.shape[:-3], frame.shape[-1]) not in ((3,), (batch, 3))
            or 0 in frame.shape
        ):
            expected = "[H, W, 3]" if batch == 1 else f"[{batch}, H, W, 3]"
            raise ValueError(f"frame must be uint8 {expected}, a numpy array, not empty; got {describe(frame)}")
        times = None if timestamp_s is None else _checked_times([timestamp_s] * batch, batch)
        with self._undone_by_errors():
            pixels = self._upload(torch.from_numpy(np.ascontiguousarray(frame)))
            before = self._states
            depth, is_finite = self._advance(pixels.reshape(batch, *frame.shape[-3:]).permute(0, 3, 1, 2), times)
            shown = self._download(depth[:, 0].reshape(*frame.shape[:-3], *depth.shape[-2:]))
            self._check_depth(is_finite, before)
        return shown.numpy()

    def step_tensor(self, rgb: Tensor, timestamps_s: Sequence[float] | None = None) -> Tensor:
        """Return depth `[B, 1, h, w]` float32 of the next frames `[B, 3, H, W]` in [0, 1] on the stream's device.

        Whatever ends it early leaves the stream as it was: a later frame gives what it would have given without it.

        Args:
            timestamps_s: of each of the B frames, for policies that watch the time; NaN: unknown.

        Raises:
            ValueError: another shape or size than the stream's, no picture, see `check_rgb`, or not one timestamp per
                stream.
            UserError: the depth is not finite.
        """
        check_axes("rgb", rgb, f"{self.batch_size} 3 H W")
        check_rgb(rgb)
        times = None if timestamps_s is None else _checked_times(timestamps_s, self.batch_size)
        with self._undone_by_errors():
            before = self._states
            depth, is_finite = self._advance(rgb, times)
            self._check_depth(is_finite, before)
            return depth

    @contextmanager
    def _undone_by_errors(self) -> Iterator[None]:
        """Put everything that is carried back where a frame ends early."""
        carried = (self._states, self._has_past, self._reasons, self._cuts)
        kept = [hook.kept for hook in self.hooks]
        try:
            yield
        except BaseException:
            self._states, self._has_past, self._reasons, self._cuts = carried
            for hook, value in zip(self.hooks, kept, strict=True):
                hook.kept = value
            raise

    @torch.inference_mode()
    def _advance(self, rgb: Tensor, timestamps_s: Sequence[float] | None) -> tuple[Tensor, Tensor]:
        """Take in the next frames, see `step_tensor`: depth, and whether all of it is finite, both on the device.

        They may be uint8 too: then only what the model sees of them becomes floats.

        Between these frames and that depth nothing waits for the device, but for key frames, flow on the CPU
        and decisions about whom to encode.
        """
        image_size = (rgb.shape[-2], rgb.shape[-1])
        model_size = self.model_resolution(*image_size)
        out_size = image_size if self.resolution == "source" else model_size
        if self._states is not None and self._states.image_size != image_size:
            raise ValueError(
                f"the stream has frames of {self._states.image_size} (height, width) px; got {image_size}: resize them,"
                " or call reset() first"
            )
        has_past = self.resets is None or not self.resets.cuts or KEPT_FOR_CUTS[0] in self.resets.kept
        if self._is_compiled and self._states is not None and has_past:
            return self._replay(rgb, timestamps_s, self._states, out_size)
        with autocast(self.device, self.dtype):
            clip = self.model.fit(rgb.unsqueeze(1), model_size)
            before = self._start(image_size) if self._states is None else self._states
            observed = self._observe(clip, before, timestamps_s, model_size) if self.encode_every > 1 else None
            features = self.model.encode(clip, checked=True, size=model_size) if observed is None else observed.features
            reasons = ["" if has_past else "start" for has_past in self._has_past]
            seen, coarse = clip.squeeze(1), features["s3"].squeeze(1)
            frame, states = NextFrame(seen, coarse, timestamps_s, before, reasons, given=rgb), before
            for hook in self.hooks:
                states = hook.before_frame(frame, states)
            depth, states, _ = self.model(clip, states, features=features, observed=observed, out_size=out_size)
        depth = depth.squeeze(1).float()
        is_finite = torch.isfinite(depth).all()
        self._states, self._has_past = states, (True,) * self.batch_size
        self._reasons, self._cuts = tuple(frame.reset_reasons), frame.cuts
        for hook in self.hooks:
            depth = hook.after_frame(depth, states)
        return depth, is_finite

    def _observe(
        self,
        clip: Tensor,
        states: DepthState,
        timestamps_s: Sequence[float] | None,
        model_size: tuple[int, int],
    ) -> Observation:
        """Encode the frames, `clip` as the model sees them, of those streams whose turn it is."""
        must_encode = None if self.resets is None else self.resets.may_reset(clip.squeeze(1), timestamps_s)
        return self.model.observe(clip, states, size=model_size, must_encode=must_encode)

    def _replay(
        self, rgb: Tensor, timestamps_s: Sequence[float] | None, states: DepthState, out_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Do what `_advance` does, in one graph."""
        rgb = rgb.float().div_(255) if rgb.dtype == torch.uint8 else rgb
        if self._graph is None or self._graph.image_size != states.image_size:
            step = FrameStep(self.model, states, self.resets, out_size, self.dtype)
            self._graph = FrameGraph(step, rgb, states)
        gaps = [""] * self.batch_size
        if self.resets is not None:
            kept = dict(self.resets.kept)
            gaps = self.resets.find_gaps(kept, timestamps_s, self.batch_size)
            self.resets.kept = kept
        depth, is_finite, cuts, self._states = self._graph(rgb, states, [gap != "" for gap in gaps])
        starts = ["" if has_past else "start" for has_past in self._has_past]
        self._reasons = tuple(start or gap for start, gap in zip(starts, gaps, strict=True))
        self._cuts, self._has_past = cuts, (True,) * self.batch_size
        return depth, is_finite

    def _check_depth(self, is_finite: Tensor, before: DepthState | None) -> None:
        """Refuse depth that is no depth; waits for the device."""
        if bool(is_finite):
            return
        numbers = ", ".join(map(str, [0] * self.batch_size if before is None else before.frame_index.tolist()))
        raise UserError(
            f"the depth of frame {numbers} of the stream is not finite although its pixels are: the weights are"
            f" damaged, or {str(self.dtype).removeprefix('torch.')} overflows; use precision=float32, or another"
            " checkpoint"
        )

    def reset(self, streams: Sequence[bool] | None = None) -> None:
        """Forget the past of all streams, or of those of the batch that are True.

        After all of them, frames may have another size.

        Raises:
            ValueError: not one boolean per stream; nothing is changed then.
        """
        given = _per_stream([True] * self.batch_size if streams is None else streams)
        if given.shape != (self.batch_size,) or given.dtype.kind != "b":
            raise ValueError(f"streams must be one boolean per stream, {self.batch_size} here; got {describe(streams)}")
        chosen = torch.tensor(given)
        if streams is None:
            self._states = None
        elif self._states is not None:
            self._states = self._states.reset(chosen)
        pasts = zip(self._has_past, chosen.tolist(), strict=True)
        self._has_past = tuple(has_past and not forgets for has_past, forgets in pasts)
        for hook in self.hooks:
            hook.reset(chosen)

    def save(self, path: str | Path) -> None:
        """Write what is carried to a safetensors file: `load` then continues to the bit as if never stopped.

        Raises:
            ValueError: before the first frame there is nothing to save.
            UserError: the disk is full.
        """
        if self._states is None:
            raise ValueError("nothing to save: the stream has not seen a frame")
        tensors = {f"state.{name}": t for name, t in self._states.tensors().items()}
        about = {
            "format": _FORMAT,
            "settings": json.dumps(self._settings(), default=float),
            "state": json.dumps(self._states.metadata()),
        }
        for hook in self.hooks:
            tensors |= {f"{hook.name}.{name}": t for name, t in hook.tensors().items()}
            about[hook.name] = hook.metadata()
        save_tensors(Path(path), tensors, about)

    def load(self, path: str | Path) -> None:
        """Continue a stream that `save` wrote, under the same checkpoint, settings and batch size.

        The file is read and checked as a whole before anything is taken over.

        Raises:
            UserError: no such file, damaged, not a stream, or one of another model, precision, batch, memory, reset
                policy or hook. The stream is then as it was before.
        """
        tensors, about = load_tensors(Path(path), self.device, sealed=True)
        if about.get("format") == _FORMER_FORMAT:
            tensors = {_renamed(name): t for name, t in tensors.items()}
            about |= {name: _renamed(about.get(name, "")) for name in ("settings", "key_frames")} | {"format": _FORMAT}
        if about.get("format") != _FORMAT:
            raise UserError(f"'{path}' is not a stream of this version ({_FORMAT}); save it again")
        try:
            states, kept = self._read(tensors, about)
        except (ValueError, UserError) as error:
            raise UserError(f"stream '{path}' does not fit: {' '.join(str(error).split())}") from error
        self._states, self._has_past = states, tuple(index > 0 for index in states.frame_index.tolist())
        for hook, value in zip(self.hooks, kept, strict=True):
            hook.kept = value

    def _read(self, tensors: dict[str, Tensor], about: dict[str, str]) -> tuple[DepthState, list[Any]]:
        """Return the states, and what every hook keeps, of a file of this format."""
        try:
            settings, state = json.loads(about["settings"]), json.loads(about["state"])
        except (KeyError, RecursionError) as error:
            raise ValueError(f"it is not what describes a stream ({error!r})") from error
        if not isinstance(settings, dict):
            raise ValueError(f"settings must be named; got {describe(settings)}")
        own = json.loads(json.dumps(self._settings(), default=float))
        for name in [*own, *settings]:
            missing = 1 if name == "encode_every" else False  # False: no such hook
            saved, wanted = settings.get(name, missing), own.get(name, missing)
            if saved != wanted:
                raise ValueError(f"it was saved with {name[:60]} {describe(saved)}; this stream has {describe(wanted)}")
        parts: dict[str, dict[str, Tensor]] = {"state": {}, **{hook.name: {} for hook in self.hooks}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"unknown tensor {name}")
            parts[part][rest] = tensor
        states = DepthState.from_tensors(parts["state"], state)
        start = self._start(states.image_size, "meta")
        check_state(states, start)
        check_values(states)
        channels = self.model.encoder.channels[3]
        return states, [hook.read(parts[hook.name], about.get(hook.name, ""), start, channels) for hook in self.hooks]

    def _settings(self) -> dict[str, Any]:
        """Return what a file must agree in for its stream to go on here to the bit."""
        settings = {
            "batch_size": self.batch_size,
            "precision": str(self.dtype).removeprefix("torch."),
            "short_side": self.model.encoder.short_side,
            "memory": self.memory,
            **({"encode_every": self.encode_every} if self.encode_every > 1 else {}),
        }
        for hook in self.hooks:
            settings |= {hook.name: True, **{f"{hook.name}.{name}": value for name, value in hook.settings().items()}}
        # Computed anew every time, seconds for large models: weights can be changed in place.
        return settings | {"weights": hash_tensors(self.model.state_dict().items())}

    def _upload(self, pixels: Tensor) -> Tensor:
        """Return pixels on the device; to a GPU they go through a page-locked buffer, without a wait."""
        if self.device.type != "cuda":
            return pixels.to(self.device)
        return self._page_locked("frame", pixels).copy_(pixels).to(self.device, non_blocking=True)

    def _download(self, depth: Tensor) -> Tensor:
        """Return depth in memory of its own on the CPU, once it is there."""
        if self.device.type != "cuda":
            return depth.cpu()
        shown = self._page_locked("depth", depth).copy_(depth, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return shown.clone()

    def _page_locked(self, name: str, like: Tensor) -> Tensor:
        """Return a buffer that is kept from frame to frame: to lock pages anew takes longer than the copy."""
        buffer = self._staging.get(name)
        if buffer is None or buffer.shape != like.shape:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            self._staging[name] = buffer
        return buffer

    def _start(self, image_size: tuple[int, int], device: str | None = None) -> DepthState:
        return self.model.init_states(
            self.batch_size, image_size, self.dtype, self.memory, device, encode_every=self.encode_every
        )


def _renamed(text: str) -> str:
    for former, name in _FORMER_NAMES.items():
        text = text.replace(former, name)
    return text


def _checked_times(timestamps_s: object, batch_size: int) -> list[float]:
    """Return the seconds of the frames of `batch_size` streams; raises ValueError where they are none."""
    given = _per_stream(timestamps_s)
    if given.shape != (batch_size,) or given.dtype.kind not in "iuf":
        raise ValueError(
            f"timestamps must be one number of seconds per stream, {batch_size} here; got {describe(timestamps_s)}"
        )
    times: list[float] = given.tolist()
    return times


def _per_stream(values: object) -> np.ndarray:
    """Return what a caller gave for each stream as an array; an empty one where it is none."""
    try:
        return np.asarray(values.cpu().numpy() if isinstance(values, Tensor) else values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return np.empty(0)
