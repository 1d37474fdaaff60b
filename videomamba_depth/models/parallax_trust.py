"""What a small network has learned of how far parallax is to be believed, point by point."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from videomamba_depth.models.camera_tracking import Adjusted, Known, Seen, Tracks, View, see
from videomamba_depth.models.photometric import Patches, root_mean_square
from videomamba_depth.models.point_grid import along_surfaces

DILATIONS = (1, 2, 4)  # of the 3×3 convolutions
NUM_CLUES = 21
MAX_ADDED = 0.4  # to the correction of log inverse depth
MAX_LOG, MAX_ERROR_PX = 1.5, 20.0
CONTRAST, MAX_CONTRAST = 0.05, 4.0  # unit, of full scale, and how many at most


class Parallax(NamedTuple):
    """What a frame's parallax says on the grid of points, and what there is to weigh it by.

    clues: [B,C,gh,gw], see `clues_of`; C = 0 where nobody asks.
    correction: [B,1,gh,gw] of the logarithm of inverse depth, as it would be without anything learned.
    inv_depth: [B,1,gh,gw] of the decoder, with the shift that was assumed at first, in units of its mean.
    by_scene: [B,1,gh,gw], how far the shift that was found since and the frame's level move its logarithm.
    evidence: [B] of parallax, 0 to 1. unit, shift: [B], see `Scene`.
    """

    clues: Tensor
    correction: Tensor
    inv_depth: Tensor
    by_scene: Tensor
    evidence: Tensor
    unit: Tensor
    shift: Tensor

    def shown(self, correction: Tensor) -> Tensor:
        """Return what is shown of a correction [B,1,gh,gw]: its mean along surfaces."""
        return along_surfaces(correction, self.inv_depth)

    def depth(self, correction: Tensor) -> Tensor:
        """Return the stream's inverse depth [B,1,gh,gw] where a correction is shown, in the decoder's unit.

        That is before the fit to the decoder's depth (`DecoderFit`), another scale and shift.
        """
        return self.in_decoders_unit(self.in_scene(correction))

    def in_scene(self, correction: Tensor) -> Tensor:
        """Return that inverse depth [B,1,gh,gw] in the scene's unit, with the shift."""
        evidence = self.evidence.view(-1, 1, 1, 1)
        return self.inv_depth * (evidence * (correction + self.by_scene)).exp()

    def in_decoders_unit(self, inv_depth: Tensor) -> Tensor:
        """Return inverse depth [B,...] of the scene's unit in the decoder's, less the shift."""
        unit, shift = (v.view(-1, *[1] * (inv_depth.ndim - 1)) for v in (self.unit, self.shift))
        return unit * (inv_depth - shift)


class ParallaxTrust(nn.Module):
    """Adds to the correction c what a c + b makes of it, with a and b by convolutions over the clues of one frame.

    What is added is bounded by `MAX_ADDED`, smoothly, and counts as far as there is evidence: where there is little,
    nothing is learned of it either.
    Every frame is weighed by itself, and what the stream remembers stays as it is without: past frames come in as
    clues. At initialization the correction stays. It is learned apart from the rest of a student, see
    `training/parallax_trust.py`: its weights ask for no gradient.

    Args:
        channels: of each of the hidden layers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"the learned trust needs at least one channel; got {channels}")
        self.channels = channels
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(NUM_CLUES, 1, 1))
        self.register_buffer("scale", torch.ones(NUM_CLUES, 1, 1))
        sizes = [NUM_CLUES, *[channels] * len(DILATIONS)]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation, padding_mode="replicate")
            for before, after, dilation in zip(sizes, sizes[1:], DILATIONS, strict=False)
        )
        self.last = nn.Conv2d(channels, 2, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        self.requires_grad_(False)

    def forward(self, parallax: Parallax) -> Tensor:
        """Return the correction `[B,1,gh,gw]` that is believed."""
        x = (parallax.clues.to(self.mean.dtype) - self.mean) / self.scale
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        share, offset = self.last(x).to(parallax.correction.dtype).split(1, 1)
        added = MAX_ADDED * ((share * parallax.correction + offset) / MAX_ADDED).tanh()
        return parallax.correction + parallax.evidence.view(-1, 1, 1, 1) * added


def clues_of(
    tracks: Tracks,
    poses: Tensor,
    view: View,
    patches: Patches,
    by_flow: Adjusted,
    found: Adjusted,
    decoder: Known,
    carried: Known,
    on_grid: tuple[Tensor, ...],
    of_frame: tuple[Tensor, ...],
) -> Tensor:
    """Return what there is to weigh parallax by, `[B,NUM_CLUES,P]`, each of the order of one.

    Of two depths, the decoder's and the one that was found: how far apart they are, what is known of either, and how
    well flow and pictures of the key frames fit each of them.

    Args:
        tracks: to the key frames, of `poses`, see `adjust`. patches: likewise.
        by_flow, found: before and after pictures were compared. decoder, carried: what is believed from elsewhere.
        on_grid: further maps [B,P] that are of the order of one. of_frame: numbers [B], likewise.
    """
    mean, trust = decoder.mean, tracks.trust
    share = trust / trust.sum(1, keepdim=True).clamp(min=1e-6)

    def apart(inv_depth: Tensor) -> Tensor:
        return (inv_depth / mean).log().clamp(-MAX_LOG, MAX_LOG)

    def known(information: Tensor, inv_depth: Tensor) -> Tensor:
        return (information * inv_depth.square()).log1p() / 5

    def misses(seen: Seen) -> Tensor:
        error = seen.error.square().sum(2).sqrt()
        return (error.clamp(max=MAX_ERROR_PX) * share).sum(1).log1p()

    def differs(inv_depth: Tensor) -> Tensor:
        return _contrast((patches.error(inv_depth) * share).sum(1))

    as_decoded, as_found = (see(tracks, poses, found.pose, view, depth) for depth in (mean, found.inv_depth))
    parallax_px = (as_found.by_depth.square().sum(2).sqrt() * share).sum(1) * found.inv_depth
    log_mean = mean.log()
    maps = [
        apart(found.inv_depth),
        apart(by_flow.inv_depth),
        apart(carried.mean),
        log_mean - log_mean.mean(-1, keepdim=True),
        known(by_flow.information, by_flow.inv_depth),
        known(found.information, found.inv_depth),
        known(carried.precision, carried.mean),
        misses(as_decoded),
        misses(as_found),
        differs(mean),
        differs(found.inv_depth),
        _contrast(root_mean_square(patches.now)[:, 0]),
        trust.mean(1),
        (tracks.motion_px() * share).sum(1).log1p() / 2,
        parallax_px.log1p() / 2,
        *on_grid,
        *(number[:, None].expand_as(mean) for number in of_frame),
    ]
    return torch.stack(maps, 1)


def _contrast(of_full_scale: Tensor) -> Tensor:
    return (of_full_scale / CONTRAST).clamp(max=MAX_CONTRAST).sqrt()
