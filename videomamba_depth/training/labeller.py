"""From a batch of clips to everything that the chunks of those clips are trained on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videomamba_depth.data.clip import ClipMeta, WholeFrames
from videomamba_depth.data.labels.stabilized_cache import OFFLINE_TARGETS, TargetSettings
from videomamba_depth.flow.clip_motion import static_mask
from videomamba_depth.flow.estimators import FlowEstimator, PairsOnce
from videomamba_depth.models.input_size import frames_per_pass
from videomamba_depth.models.motion import Motion, MotionEstimator
from videomamba_depth.models.videomamba_depth import ClipFeatures
from videomamba_depth.training.label_memory import LabelMemory
from videomamba_depth.training.objective import ChunkTarget
from videomamba_depth.utils.depth_kind import NEAREST_M, DepthKind
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)


class Chunk(NamedTuple):
    """What the student is given for a piece of a clip, and what it should make of it."""

    rgb: Tensor  # [B, N, 3, H, W]
    features: ClipFeatures | None  # of rgb; None for an encoder that learns
    motion: Motion | None
    target: ChunkTarget


@dataclass(frozen=True)
class LabelledClip:
    """A clip, encoded and labelled once, to be trained on chunk by chunk.

    Attributes:
        features: of the student's input; None where the encoder learns and each chunk is encoded when it is trained on.
        target: of all frames.
        rgb: `[B, N, 3, H, W]` in [0, 1], the student's input; for pictures.
        motion: between the frames of `rgb`; None for a student that does not want it.
        video_ids: per sample; for messages.
    """

    features: ClipFeatures | None
    target: ChunkTarget
    rgb: Tensor
    motion: Motion | None
    video_ids: tuple[str, ...]

    @property
    def num_frames(self) -> int:
        """Length N of the clip."""
        return self.rgb.shape[1]

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return the frames [start, stop)."""
        features = None if self.features is None else {name: x[:, start:stop] for name, x in self.features.items()}
        motion = None if self.motion is None else self.motion.chunk(start, stop)
        target = ChunkTarget(*(x[:, start:stop] for x in self.target))
        return Chunk(self.rgb[:, start:stop], features, motion, target)


class Labeller:
    """Encodes clips for the student and labels them by the teacher; both share one pass where they can.

    They share it where the student's encoder is the teacher and the student's input is not perturbed. A clip that was
    cut out of larger frames is labelled by what the teacher says of those, the same as a teacher cache holds. On a CPU
    that is done frame by frame, so that a frame's label does not depend on the others of a pass, and can be kept.

    Args:
        encoder: of the student, where it is frozen; None where it learns.
        teacher: labels frames; may be `encoder` itself.
        flow: for static masks; None where no loss needs them.
        max_motion_px, max_rgb_change: see `static_mask`.
        frames_per_pass: frames encoded at once, at most.
        autocast_dtype: None for none.
        target: what is made of the teacher's depth.
        motion: the student's own estimator, which sees what the student sees; None where it has none.
        depth_kind: of the student; None: the teacher's. From metric depth relative depth is learned as 1/m.
        memory_bytes: for labels of whole frames that were made on a CPU.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        teacher: nn.Module,
        flow: FlowEstimator | None,
        max_motion_px: float,
        max_rgb_change: float,
        frames_per_pass: int,
        autocast_dtype: torch.dtype | None,
        target: TargetSettings = TargetSettings(),
        motion: MotionEstimator | None = None,
        depth_kind: DepthKind | None = None,
        memory_bytes: int = 0,
    ) -> None:
        if target.is_offline and flow is None:
            raise ValueError(f"target {target.target!r} needs an optical flow estimator; got flow=None")
        self.encoder, self.teacher, self.flow = encoder, teacher, flow
        self.max_motion_px, self.max_rgb_change = max_motion_px, max_rgb_change
        self.frames_per_pass, self.autocast_dtype = frames_per_pass, autocast_dtype
        self.target, self.motion = target, motion
        self._memory = LabelMemory(memory_bytes)
        self._warned_of_none = False
        self.inverts = depth_kind is DepthKind.RELATIVE and teacher.depth_kind is DepthKind.METRIC

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any], device: torch.device) -> LabelledClip:
        """Label a collated batch, see `data.dataset_video`.

        Raises:
            UserError: the teacher, which masks nothing, gives depth that is not finite.
        """
        rgb, clean = batch["rgb"].to(device, non_blocking=True), batch["rgb_clean"].to(device, non_blocking=True)
        features = None if self.encoder is None else self._encode(self.encoder, rgb)
        if "teacher_depth" in batch:
            depth = batch["teacher_depth"].to(device)
        elif "whole" in batch:
            clips = zip(batch["whole"], batch["meta"], strict=True)
            depth = torch.stack([self._label_whole(whole, meta, device) for whole, meta in clips])
        elif features is not None and self.teacher is self.encoder and torch.equal(rgb, clean):
            depth = self._decode(features, clean)
        else:
            depth = self._decode(self._encode(self.teacher, clean), clean)
        video_ids = tuple(meta.video_id for meta in batch["meta"])
        if "teacher_depth" not in batch and not getattr(self.teacher, "masks", False) and not depth.isfinite().all():
            raise UserError(
                f"teacher '{getattr(self.teacher, 'model_id', '?')}' gives depth that is not finite (videos:"
                f" {', '.join(video_ids)}): its weights or its preprocessor_config.json are damaged, or the precision"
                " is too low; try trainer.precision=float32"
            )
        flow = None if self.flow is None else PairsOnce(self.flow)  # targets and static masks ask for the same pairs
        if self.target.is_offline and depth.shape[1] > 1:
            cached = batch.get("stabilized_depth")
            depth = self._offline_target(depth, clean, flow) if cached is None else cached.to(device)
        if self.inverts:
            depth = torch.where(depth >= NEAREST_M, depth.reciprocal(), torch.nan)
        valid = torch.isfinite(depth)
        if not (self._warned_of_none or valid.any()):
            self._warned_of_none = True
            log.warning(
                "no pixel of a whole batch has a label (videos: %s): nothing is learned from it", ", ".join(video_ids)
            )
        static = batch["static"].to(device) if "static" in batch else self._static(clean, flow)
        motion = None if self.motion is None else self.motion(rgb)[0]
        return LabelledClip(features, ChunkTarget(depth, valid, static), rgb, motion, video_ids)

    def _label_whole(self, whole: WholeFrames, meta: ClipMeta, device: torch.device) -> Tensor:
        """Label a clip's frames as they were before the crop, as a teacher cache does, and cut the label out."""
        geometry = whole.geometry
        if device.type != "cpu":
            return geometry.crop_tensor(self._label_frames(whole.rgb, device))
        depth = [
            self._memory.get((meta.video_id, index, geometry.resized), partial(self._label_frames, rgb, device))
            for index, rgb in zip(meta.frame_indices, whole.rgb.split(1), strict=True)
        ]
        return geometry.crop_tensor(torch.cat(depth))

    def _label_frames(self, rgb: Tensor, device: torch.device) -> Tensor:
        """Return the labels [N,1,h,w] of frames uint8 [N,h,w,3]."""
        clip = rgb.to(device).permute(0, 3, 1, 2).float().div_(255).unsqueeze(0)
        return self._decode(self._encode(self.teacher, clip), clip)[0]

    def _encode(self, encoder: nn.Module, clip: Tensor) -> ClipFeatures:
        passes = []
        for part in clip.flatten(0, 1).split(self._at_once(clip)):
            with self.autocast(clip.device):
                passes.append(encoder.encode_frame(part))  # type: ignore[operator]
        return {name: torch.cat([p[name] for p in passes]).unflatten(0, clip.shape[:2]) for name in passes[0]}

    def _decode(self, features: ClipFeatures, clip: Tensor) -> Tensor:
        at_once = self._at_once(clip)
        flat = {name: x.flatten(0, 1).split(at_once) for name, x in features.items()}
        size = (clip.shape[-2], clip.shape[-1])
        depth = []
        for i in range(len(next(iter(flat.values())))):
            with self.autocast(clip.device):
                labels = self.teacher.decode_labels({name: x[i] for name, x in flat.items()}, size)  # type: ignore[operator]
                depth.append(labels.float())
        return torch.cat(depth).unflatten(0, clip.shape[:2])

    def _at_once(self, clip: Tensor) -> int:
        faster = frames_per_pass((clip.shape[-2], clip.shape[-1]), clip.device)
        return self.frames_per_pass if faster is None else min(faster, self.frames_per_pass)

    def _offline_target(self, depth: Tensor, clip: Tensor, flow: FlowEstimator | None) -> Tensor:
        assert flow is not None
        make, wanted = OFFLINE_TARGETS[self.target.target], self.target
        options: dict[str, Any] = {"radius": wanted.target_radius, "sigma": wanted.target_sigma}
        options["depth_kind"] = self.teacher.depth_kind
        return torch.stack([make(d, c, flow, **options) for d, c in zip(depth, clip, strict=True)])

    def _static(self, clip: Tensor, flow: FlowEstimator | None) -> Tensor:
        if flow is None or clip.shape[1] == 1:
            batch, frames, _, height, width = clip.shape
            return torch.zeros(batch, frames, 1, height, width, dtype=torch.bool, device=clip.device)
        masks = [
            static_mask(one, flow, max_motion_px=self.max_motion_px, max_rgb_change=self.max_rgb_change) for one in clip
        ]
        return torch.stack(masks)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the precision that features and depth are computed in."""
        return torch.autocast(device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)
