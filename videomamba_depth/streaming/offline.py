"""Offline depth of a stream of frames: targets that look to both sides in time, with the outputs of a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.data.labels.windowed_target import TargetCamera, TargetFrame, WindowedTarget
from videomamba_depth.data.video.reader import Frame
from videomamba_depth.models.camera import Camera
from videomamba_depth.models.checkpoint import load_student, load_teacher
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.placement import place
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.device import DTYPES, autocast, resolve_device
from videomamba_depth.utils.errors import UserError


class OfflineDepth:
    """Depth of a video by what `targets` makes of a teacher's, for each of its frames, later than the frame comes.

    The frames of a window are held in memory as they were decoded, besides those of the model's size.

    Args:
        teacher: frozen; it is moved and converted as `DepthStream` does. targets: new; of the same depth kind.
        device, precision, resolution: see `DepthStream`.
        max_gap_s: begin a new shot where a frame comes later than this after the one before; None: never.
    """

    def __init__(
        self,
        teacher: Teacher,
        targets: WindowedTarget,
        *,
        device: str = "auto",
        precision: str = "float32",
        resolution: str = "source",
        max_gap_s: float | None = None,
    ) -> None:
        self.teacher, self._targets = teacher, targets
        self.device, self._dtype = resolve_device(device), DTYPES[precision]
        self._resolution, self._max_gap_s = resolution, max_gap_s
        place(teacher, self.device, self._dtype)

    @property
    def depth_kind(self) -> DepthKind:
        """What the depth means."""
        return self.teacher.depth_kind

    @property
    def max_depth_m(self) -> float | None:
        """Upper bound of metric teachers in meters; None for relative ones."""
        return self.teacher.max_depth_m

    def depth_frames(self, frames: Iterator[Frame]) -> Iterator[DepthFrame]:
        """Yield every frame with its depth, in order; where `frames` fails, those before it, then its error.

        Raises:
            UserError: the teacher's depth is not finite; and what `frames` raises.
        """
        held, gaps = deque[Frame](), deque[bool]()
        failure: UserError | None = None
        time_s: float | None = None
        while True:
            try:
                frame = next(frames, None)
                seen = None if frame is None else self._see(frame)
            except UserError as error:
                seen, failure = None, error
            if frame is None or seen is None:
                done = self._targets.finish()
            else:
                elapsed_s = 0.0 if time_s is None else frame.timestamp_s - time_s
                gaps.append(self._max_gap_s is not None and not 0 <= elapsed_s <= self._max_gap_s)
                held.append(frame)
                time_s = frame.timestamp_s
                done = self._targets.add(*seen, begins_shot=gaps[-1])
            for target in done:
                shown, is_gap = held.popleft(), gaps.popleft()
                reset = "gap" if is_gap else "cut" if target.begins_shot else ""
                yield self._with_depth(shown, target, reset if shown.index else "start")
            if failure is not None:
                raise failure
            if seen is None:
                return

    @torch.inference_mode()
    def _see(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Return a frame [3,h,w] at the model's size, and the teacher's depth [h,w] of it."""
        rgb = torch.from_numpy(np.ascontiguousarray(frame.rgb)).to(self.device).permute(2, 0, 1)[None].float() / 255
        size = self.teacher.input_resolution(rgb.shape[-2], rgb.shape[-1])
        with autocast(self.device, self._dtype):
            seen = self.teacher.fit(rgb, size)
            depth = self.teacher.decode(self.teacher.encode_frame(seen, checked=True, size=size), size).float()
        if not depth.isfinite().all():
            raise UserError(
                f"the teacher's depth of frame {frame.index} is not finite although its pixels are: the weights are"
                " damaged, or the precision is too low; use precision=float32, or another checkpoint"
            )
        if seen.shape[-2:] != size:  # a side grows
            seen = F.interpolate(seen, size, mode="bilinear", align_corners=False)
        return seen[0].float(), depth[0, 0]

    def _with_depth(self, frame: Frame, target: TargetFrame, reset: str) -> DepthFrame:
        size, depth = frame.rgb.shape[:2], target.depth
        model_size = (depth.shape[-2], depth.shape[-1])
        if self._resolution == "source" and model_size != size:
            depth = F.interpolate(depth[None, None], size, mode="bilinear", align_corners=True)[0, 0]
        camera = None if target.camera is None else _camera(target.camera, size[1] / model_size[1])
        values = depth.contiguous().cpu().numpy()
        return DepthFrame(frame.index, frame.pts, frame.time_base, frame.rgb, values, reset, camera=camera)


def teacher_of(checkpoint: str | Path, short_side: int | None = None) -> Teacher:
    """Return the teacher that a checkpoint was trained by, or is (`teacher:NAME`), see `load_student`.

    Raises:
        UserError: as `load_student`.
    """
    encoder = load_student(checkpoint, short_side).encoder
    return encoder if isinstance(encoder, Teacher) else load_teacher(checkpoint, short_side)


def _camera(found: TargetCamera, scale: float) -> Camera:
    return Camera(found.rotation, found.position, found.focal * scale, found.evidence, None, found.lost)
