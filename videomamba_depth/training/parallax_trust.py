"""Teach a student how far it may believe parallax, from rendered worlds, whose depth is known exactly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from videomamba_depth.models.parallax_trust import Parallax, ParallaxTrust
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

CHUNK_FRAMES = 12
MAX_DEPTH_M = 30.0  # farther is not asked for, nor believed
MAX_RELATIVE_ERROR = 3.0  # of a point, above which it counts no more
MAX_RELATIVE_CHANGE = 1.0  # likewise, of the error of its change from frame to frame
FRAME_WEIGHT, CHANGE_WEIGHT, GRADIENT_WEIGHT = 0.5, 0.5, 0.5  # beside the error with one alignment per video
WINDOW = 24  # frames in a row that a step sees
WARMUP = 0.1  # of the steps
REPORTS = 10  # lines in the log
WEIGHT_DECAY = 0.01
STATISTICS_FRAMES = 6  # of each video, which mean and scale of clues are those of; of the first frame, most are zero
MIN_SCALE = 1e-3
MIN_ERROR = 1e-4  # of the decoder, that others are measured by


class Example(NamedTuple):
    """What the parallax of a video of N frames says on the grid, and the truth there.

    parallax: with N in place of B. inv_depth: [N,1,gh,gw] in 1/m. known: [N,1,gh,gw] bool, where there is a truth.
    """

    parallax: Parallax
    inv_depth: Tensor
    known: Tensor

    def flipped(self) -> Example:
        """Return it seen in a mirror."""
        return self._on_maps(lambda maps: maps.flip(-1))

    def frames(self, first: int, count: int) -> Example:
        """Return `count` frames from the first one on."""
        some = slice(first, first + count)
        return Example(Parallax(*(values[some] for values in self.parallax)), self.inv_depth[some], self.known[some])

    def _on_maps(self, change: Callable[[Tensor], Tensor]) -> Example:
        parallax = Parallax(*(change(values) if values.ndim > 1 else values for values in self.parallax))
        return Example(parallax, change(self.inv_depth), change(self.known))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return it as arrays by name."""
        values = {**self.parallax._asdict(), "truth": self.inv_depth, "known": self.known}
        return {name: tensor.numpy() for name, tensor in values.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Example:
        """Return what `arrays` returned."""
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
        truth, known = tensors.pop("truth"), tensors.pop("known")
        return cls(Parallax(**tensors), truth, known)


class _Recorder(nn.Module):
    """In place of a trust: keeps what it is asked, and leaves the correction as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Parallax] = []

    def forward(self, parallax: Parallax) -> Tensor:
        self.asked.append(parallax)
        return parallax.correction


@torch.no_grad()
def record(student: VideoMambaDepth, rgb: np.ndarray, depth_m: np.ndarray) -> Example:
    """Return what the parallax of a video says to a student with geometry, beside the truth.

    Args:
        rgb: [N,H,W,3] uint8. depth_m: [N,H,W]; 0, or not finite: unknown.
    """
    geometry, motion = student.geometry, student.motion
    assert geometry is not None
    assert motion is not None
    before, geometry.trust = geometry.trust, (recorder := _Recorder())
    try:
        states = None
        for frames in torch.from_numpy(np.ascontiguousarray(rgb)).split(CHUNK_FRAMES):
            clip = frames.to(student.device).permute(0, 3, 1, 2)[None] / 255
            _, states, _ = student(clip, states)
    finally:
        geometry.trust = before
    depth = torch.from_numpy(np.ascontiguousarray(depth_m))[:, None].float()
    known = depth.isfinite() & (depth > 0) & (depth < MAX_DEPTH_M)
    inverse = torch.where(known, 1 / depth.clamp(min=1e-3), 0.0)
    size = motion.frame_size(*student.encoder.fitted_size(*rgb.shape[1:3]))
    inverse, share = (geometry.at_points(maps, size) for maps in (inverse, known.float()))
    parallax = Parallax(*(torch.cat(values).cpu() for values in zip(*recorder.asked, strict=True)))
    return Example(parallax, inverse / share.clamp(min=1e-3), share > 0.999)


class Errors(NamedTuple):
    """Mean errors of a video on the grid after a least-squares alignment of inverse depth, relative to the truth.

    video: of depth, one alignment for all frames. frame: of depth, one for each. change: of the change of inverse depth
    from frame to frame at the same point, one alignment for all. gradient: of that from a point to the next one,
    likewise, and not relative: 1/m.
    """

    video: Tensor
    frame: Tensor
    change: Tensor
    gradient: Tensor


def errors(example: Example, correction: Tensor, with_shift: bool = True) -> Errors:
    """Return the errors where a correction `[N,1,gh,gw]` is shown; alignment is a scale and, `with_shift`, a shift."""
    depth = example.parallax.depth(correction).double()
    truth, known = example.inv_depth.double(), example.known.double()
    wanted = truth.clamp(min=1 / MAX_DEPTH_M)

    def aligned(*dims: int) -> Tensor:
        return _aligned(depth, truth, known, dims, with_shift).clamp(min=1 / MAX_DEPTH_M)

    def error(inv_depth: Tensor) -> Tensor:
        relative = ((1 / inv_depth - 1 / wanted).abs() * wanted).clamp(max=MAX_RELATIVE_ERROR)
        return (relative * known).sum() / known.sum().clamp(min=1)

    video, frame = aligned(0, 1, 2, 3), aligned(1, 2, 3)
    change = ((video.diff(dim=0) - wanted.diff(dim=0)).abs() / wanted[1:]).clamp(max=MAX_RELATIVE_CHANGE)
    seen = known[1:] * known[:-1]
    along = [[values.movedim(dim, 0) for values in (video, wanted, known)] for dim in (2, 3)]
    gradient = torch.stack([_gradient_error(*maps) for maps in along]).sum()
    return Errors(error(video), error(frame), (change * seen).sum() / seen.sum().clamp(min=1), gradient)


@torch.no_grad()
def errors_of_decoder(example: Example, with_shift: bool = True) -> Errors:
    """Return the errors without any parallax."""
    without = example.parallax._replace(evidence=torch.zeros_like(example.parallax.evidence))
    return errors(example._replace(parallax=without), without.correction, with_shift)


def _gradient_error(depth: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return the mean error of differences along the first dimension."""
    both = known[1:] * known[:-1]
    return ((depth.diff(dim=0) - truth.diff(dim=0)).abs() * both).sum() / both.sum().clamp(min=1)


def _aligned(depth: Tensor, truth: Tensor, known: Tensor, dims: tuple[int, ...], with_shift: bool) -> Tensor:
    count = known.sum(dims, keepdim=True).clamp(min=1)
    means = [(values * known).sum(dims, keepdim=True) / count * with_shift for values in (depth, truth)]
    x, y = depth - means[0], truth - means[1]
    scale = (x * y * known).sum(dims, keepdim=True) / (x.square() * known).sum(dims, keepdim=True).clamp(min=1e-12)
    return scale * x + means[1]


def learn(
    trust: ParallaxTrust, examples: Sequence[Example], steps: int, rate: float, seed: int, with_shift: bool
) -> None:
    """Train a new trust, a part of a video per step: its errors over those of the decoder alone.

    Args:
        rate: the highest learning rate, of AdamW, after a linear warm-up and before a cosine. with_shift: of alignment.

    Raises:
        UserError: a gradient is not finite.
    """
    some = [example.parallax.clues[:: max(1, len(example.known) // STATISTICS_FRAMES)] for example in examples]
    clues = torch.cat(some)
    trust.mean.copy_(clues.mean((0, 2, 3))[:, None, None])
    trust.scale.copy_(clues.std((0, 2, 3)).clamp(min=MIN_SCALE)[:, None, None])
    decoder = [errors_of_decoder(example, with_shift) for example in examples]
    trust.requires_grad_(True)
    optimizer = torch.optim.AdamW(trust.parameters(), rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=WARMUP)
    rng = np.random.default_rng(seed)
    every, seen = max(1, steps // REPORTS), 0.0
    for step in range(1, steps + 1):
        chosen = int(rng.integers(len(examples)))
        whole = examples[chosen]
        example = whole.frames(int(rng.integers(max(1, len(whole.known) - WINDOW + 1))), WINDOW)
        if rng.random() < 0.5:
            example = example.flipped()
        now = errors(example, example.parallax.shown(trust(example.parallax)), with_shift)
        video, frame, change, gradient = (
            e / without.clamp(min=MIN_ERROR) for e, without in zip(now, decoder[chosen], strict=True)
        )
        loss = video + FRAME_WEIGHT * frame + CHANGE_WEIGHT * change + GRADIENT_WEIGHT * gradient
        optimizer.zero_grad()
        loss.backward()
        if not nn.utils.clip_grad_norm_(trust.parameters(), 1.0).isfinite():
            raise UserError(f"learning diverged at step {step} of {steps}; choose a lower rate than {rate:g} (--lr)")
        optimizer.step()
        schedule.step()
        seen += float(loss.detach())
        if step % every == 0:
            log.info("step %d of %d: loss %.4f", step, steps, seen / every)
            seen = 0.0
    trust.requires_grad_(False)
