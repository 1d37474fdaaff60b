"""Dense optical flow of plain tensor operations: patches by inverse search, then variational refinement.

The two ideas are those of DIS (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016): patches
that overlap move by inverse compositional steps (Baker and Matthews, IJCV 2004) from coarse to fine, and their flow is
averaged per pixel, weighted by how well each patch explains that pixel; then the energy of a variational method is
lowered: constancy of the gradient, robust (Brox et al., ECCV 2004), with smoothness that stops at edges. What differs:
patches also try what their neighbors found; the data term is gathered over a window; the smoothing is a semi-iterative
Jacobi method, which has no order of pixels.

No weights, no random numbers, no data-dependent control flow, nothing that waits for a device: pairs and directions are
one batch on a CPU, on CUDA or on MPS (PyTorch 2.13 or newer), and it exports. Changes of exposure drop out: patches are
compared free of their mean, and the refinement reads gradients alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from videomamba_depth.utils.flow_utils import resize_flow
from videomamba_depth.utils.images import gradients

_PATCH = 8
_STRIDE = 4  # of patches: each pixel lies in exactly four
_MIN_SIDE_PX = 12  # of the coarsest level
DAMPING = 2.5e-4  # added to the diagonal of a patch's structure tensor
MAX_STEP_PX = 4.0  # how far a patch may move on one level
MAX_RESIDUAL = 0.05  # a pixel's share in the comparison of candidates, of full scale
DENSIFY_SIGMA = 0.01  # residual at which a patch's weight for a pixel has fallen to half, of full scale
GRADIENT_FLOOR = 0.04  # second derivative below which gradient constancy counts less, of full scale per px²
ROBUST = 0.1  # both penalties are √(x² + ROBUST²)
SMOOTHNESS = 1.0  # weight beside the data term, divided by e at a step in luma of 1 / EDGE_FALLOFF
EDGE_FALLOFF = 12.0
OVERSHOOT = 1.85  # of the semi-iterative method; converges below 2
BORDER = 1e-6  # rounding of positions, which run from −1 to 1: the outermost pixels are inside


Level: TypeAlias = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]
"""Takes source and target [K,1,h,w], the flow so far [K,2,h,w] px and two numbers; returns the flow."""


@dataclass(frozen=True)
class InverseSearchSettings:
    """How much work is done; the tuples begin at the coarsest level, and their last entry repeats.

    finest: pyramid level where estimation ends; 0 is the frame itself, 1 half its size; the flow is resized from there.
    steps: inverse compositional steps. warps: linearizations of the data term. sweeps: Jacobi sweeps per warp.
    candidate_stride: candidates are compared on every n-th column of a patch: 1, 2 or 4.
    """

    finest: int = 1
    steps: tuple[int, ...] = (3,)
    warps: tuple[int, ...] = (1, 1, 2)
    sweeps: int = 12
    candidate_stride: int = 2


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the sizes of the pyramid, from the frame's own to one of about 12 px; at least two levels."""
    sizes = [(height, width)]
    while len(sizes) < 2 or min(-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)) >= _MIN_SIDE_PX:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def estimate(
    frames: Tensor,
    others: Tensor,
    settings: InverseSearchSettings,
    search: Level | None = None,
    refine: Level | None = None,
) -> Tensor:
    """Return the flow frames → others [K,2,H,W] px; luma [K,1,H,W] float32 in [0,1].

    search, refine: what runs a level, if not the functions below.
    """
    search, refine = search or search_level, refine or refine_level
    if frames.shape[0] == 0:
        return frames.new_zeros(0, 2, *frames.shape[-2:])
    sizes = level_sizes(frames.shape[-2], frames.shape[-1])
    levels = [torch.cat([frames, others], 1)]  # [K, 2, h, w] each
    for size in sizes[1:]:
        levels.append(_shrink(levels[-1], size))
    flow = frames.new_zeros(frames.shape[0], 2, *sizes[-1])
    for order, level in enumerate(range(len(sizes) - 1, settings.finest - 1, -1)):
        source, target = (x.contiguous() for x in levels[level].split(1, 1))
        flow = resize_flow(flow, sizes[level])
        flow = search(source, target, flow, _at(settings.steps, order), settings.candidate_stride)
        flow = refine(source, target, flow, _at(settings.warps, order), settings.sweeps)
    return resize_flow(flow, sizes[0])


def search_level(source: Tensor, target: Tensor, flow: Tensor, steps: int, candidate_stride: int = 1) -> Tensor:
    """Move overlapping patches of the source to where they fit the target and return the flow [K,2,h,w] of pixels.

    source, target: [K,1,h,w]; flow: where the search begins.
    """
    K, _, h, w = source.shape
    grid = _PatchGrid(h, w, source)
    inside, count = grid.inside, grid.inside.sum(1, keepdim=True)  # [1, 64, N], [1, 1, N]
    template, gx, gy = grid.patches(torch.cat([source, *gradients(source)], 1)).unbind(1)  # each [K, 64, N]

    def centered(x: Tensor) -> Tensor:  # free of the patch's mean, so that a change of exposure drops out
        x = x * inside
        return x - inside * (x.sum(1, keepdim=True) / count)

    # Step of a patch: u ← u − H⁻¹ Σ ∇T (I(x + u) − T); H⁻¹ ∇T and Σ H⁻¹ ∇T T never change.
    gx, gy = centered(gx), centered(gy)
    xx, xy, yy = gx.square().sum(1) + DAMPING, (gx * gy).sum(1), gy.square().sum(1) + DAMPING  # [K, N]
    inverse = (xx * yy - xy * xy).reciprocal()
    a, b, c = ((x * inverse).unsqueeze(1) for x in (yy, -xy, xx))
    descent = torch.stack([a * gx + b * gy, b * gx + c * gy], 1)  # [K, 2, 64, N]
    at_rest = (descent * template.unsqueeze(1)).sum(2)  # [K, 2, N]

    start = u = grid.means(flow)  # [K, 2, N] px
    every = slice(None, None, candidate_stride)
    few_inside, few_template = inside[:, every].unsqueeze(1), template[:, every].unsqueeze(1)
    few_share = few_inside / few_inside.sum(2, keepdim=True)

    for _ in range(steps):
        u = u - ((descent * grid.sample(target, u).unsqueeze(1)).sum(2) - at_rest)
    u = torch.clamp(u, start - MAX_STEP_PX, start + MAX_STEP_PX)
    # What moved may have got lost: the start and what the neighbors found are tried as well.
    candidates = torch.stack([u, start, *grid.neighbors(u)], 1)  # [K, C, 2, N]
    residual = grid.sample(target, candidates, every).sub_(few_template)  # [K, C, S, N]
    residual.sub_((residual * few_share).sum(2, keepdim=True)).mul_(few_inside)
    best = residual.abs_().clamp_(max=MAX_RESIDUAL).sum(2).argmin(1)  # [K, N]
    u = candidates.gather(1, best.view(K, 1, 1, -1).expand(-1, -1, 2, -1))[:, 0]

    residual = centered(grid.sample(target, u) - template)
    weight = (inside / (DENSIFY_SIGMA**2 + residual.square())).unsqueeze(1)  # [K, 1, 64, N]
    sums = grid.add_up(torch.cat([weight * u.unsqueeze(2), weight], 1))  # [K, 3, h, w]
    return sums[:, :2] / sums[:, 2:]


def refine_level(source: Tensor, target: Tensor, flow: Tensor, warps: int, sweeps: int) -> Tensor:
    """Lower Σ ψ(gradient constancy) + smoothness from `flow` and return the flow [K,2,h,w].

    source, target: [K,1,h,w]; warps: linearizations; sweeps: of the linear system, each.
    """
    h, w = source.shape[-2:]
    gradient, other = torch.cat(gradients(source), 1), torch.cat(gradients(target), 1)  # [K, 2, h, w]
    dx, dy = gradients(gradient)  # of both components of the gradient, each [K, 2, h, w]
    norm = (dx * dx + dy * dy + GRADIENT_FLOOR**2).reciprocal()
    tensor = torch.stack([norm * dx * dx, norm * dx * dy, norm * dy * dy], 1).sum(2)  # [K, 3, h, w]
    toward = torch.stack([norm * dx, norm * dy], 1)  # [K, 2, 2, h, w]
    edge_x = SMOOTHNESS * torch.exp(-EDGE_FALLOFF * (source[..., 1:] - source[..., :-1]).abs())
    edge_y = SMOOTHNESS * torch.exp(-EDGE_FALLOFF * (source[..., 1:, :] - source[..., :-1, :]).abs())
    pixels = _pixels(h, w, source)  # [1, h, w, 2]
    unit = _unit((h, w), source).view(2, 1, 1)
    for _ in range(warps):
        # Data: one linear equation per component of the gradient and pixel, weighted, gathered over a window.
        position = pixels + (flow * unit).permute(0, 2, 3, 1)
        difference = _sample(other, position) - gradient  # [K, 2, h, w]
        seen = (position.abs().amax(-1) <= 1 + BORDER).to(flow.dtype).unsqueeze(1)
        psi = seen * torch.rsqrt((difference.square() * norm).sum(1, keepdim=True) + ROBUST**2)
        data = torch.cat([tensor, (toward * difference.unsqueeze(1)).sum(2)], 1) * psi
        xx, xy, yy, bx, by = _box5(data).split(1, 1)
        # Smoothness: a weight per pair of neighbors, none across the frame's border.
        right = F.pad(edge_x * _robust_weight(flow[..., 1:] - flow[..., :-1]), (0, 1))
        down = F.pad(edge_y * _robust_weight(flow[..., 1:, :] - flow[..., :-1, :]), (0, 0, 0, 1))
        left, up = F.pad(right[..., :-1], (1, 0)), F.pad(down[..., :-1, :], (0, 0, 1, 0))
        # (data + Σ w) u = data · flow − b + Σ w u_neighbor, 2×2 per pixel, inverted once.
        fixed = torch.cat([xx * flow[:, :1] + xy * flow[:, 1:] - bx, xy * flow[:, :1] + yy * flow[:, 1:] - by], 1)
        total = right + left + down + up
        xx, yy = xx + total, yy + total
        inverse = (xx * yy - xy * xy + 1e-12).reciprocal()
        own, cross = torch.cat([yy, xx], 1) * inverse, -xy * inverse
        flow = _jacobi(flow, fixed, (right, left, down, up), own, cross, sweeps)
    return flow


def _jacobi(
    flow: Tensor, fixed: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], own: Tensor, cross: Tensor, sweeps: int
) -> Tensor:
    """Return the flow after some sweeps of u ← own · s + cross · flip(s), s = fixed + Σ w u_neighbor, overshooting.

    Rows lie one after the other, so that a neighbor is a shift; what wraps around has weight 0.
    """
    h, w = flow.shape[-2:]
    fixed, own, cross = fixed.flatten(2), own.flatten(2), cross.flatten(2)
    right, left, down, up = (weight.flatten(2) for weight in weights)
    u = before = flow.flatten(2)
    n = h * w
    for _ in range(sweeps):
        padded = F.pad(u, (w, w))
        s = torch.addcmul(fixed, right, padded.narrow(2, w + 1, n))
        s.addcmul_(left, padded.narrow(2, w - 1, n))
        s.addcmul_(down, padded.narrow(2, 2 * w, n))
        s.addcmul_(up, padded.narrow(2, 0, n))
        swept = (own * s).addcmul_(cross, s.flip(1))
        u, before = torch.lerp(before, swept, OVERSHOOT), u
    return u.unflatten(2, (h, w))


class _PatchGrid:
    """Patches of 8×8 px at every fourth pixel, the first at −4, N in all; pixels of a patch row by row."""

    def __init__(self, height: int, width: int, like: Tensor) -> None:
        self.size = (height, width)
        self.counts = rows, columns = -(-height // _STRIDE) + 1, -(-width // _STRIDE) + 1
        self.padding = (_STRIDE, _STRIDE * columns - width, _STRIDE, _STRIDE * rows - height)
        self.unit = _unit(self.size, like).view(2, 1)
        y, x = (
            _positions(_PATCH, rows, height, like),
            _positions(_PATCH, columns, width, like),
        )  # [8, rows], [8, columns]
        shape = (_PATCH, _PATCH, rows, columns)
        y, x = (z.expand(shape).reshape(1, _PATCH**2, -1) for z in (y[:, None, :, None], x[None, :, None, :]))
        self.positions = torch.stack([x, y], -1)  # [1, 64, N, 2]
        self.inside = ((x.abs() <= 1 + BORDER) & (y.abs() <= 1 + BORDER)).to(like.dtype)  # [1, 64, N]

    def patches(self, x: Tensor) -> Tensor:
        """[K,C,h,w] → [K,C,64,N], the border continued."""
        patches = F.unfold(F.pad(x, self.padding, mode="replicate"), _PATCH, stride=_STRIDE)
        return patches.unflatten(1, (-1, _PATCH**2))

    def add_up(self, patches: Tensor) -> Tensor:
        """[K,C,64,N] → [K,C,h,w], the sum over the four patches that a pixel lies in."""
        left, right, top, bottom = self.padding
        height, width = self.size
        sums = F.fold(patches.flatten(1, 2), (top + height + bottom, left + width + right), _PATCH, stride=_STRIDE)
        return sums[..., top : top + height, left : left + width]

    def means(self, flow: Tensor) -> Tensor:
        """[K,2,h,w] → [K,2,N], the mean over each patch."""
        quarters = F.avg_pool2d(F.pad(flow, self.padding, mode="replicate"), _STRIDE)
        return F.avg_pool2d(quarters, 2, 1).flatten(2)

    def neighbors(self, u: Tensor) -> tuple[Tensor, ...]:
        """Return what the patches to the right, left, below and above have, [K,2,N] each."""
        padded = F.pad(u.unflatten(2, self.counts), (1, 1, 1, 1), mode="replicate")
        middle, across = padded[..., 1:-1, :], padded[..., 1:-1]
        shifted = (middle[..., 2:], middle[..., :-2], across[..., 2:, :], across[..., :-2, :])
        return tuple(x.flatten(2) for x in shifted)

    def sample(self, image: Tensor, u: Tensor, every: slice = slice(None)) -> Tensor:
        """Return the image [K,1,h,w] where patches moved by u [K,2,N] lie, [K,64,N]; [K,C,2,N] → [K,C,S,N]."""
        shift = (u * self.unit).transpose(-2, -1).contiguous().unsqueeze(-3)  # [K, (C,) 1, N, 2]
        moved = self.positions[:, every] + shift if u.ndim == 3 else self.positions[:, None, every] + shift
        return _sample(image, moved.flatten(1, -3)).view(moved.shape[:-1])


def _at(values: tuple[int, ...], order: int) -> int:
    return values[min(order, len(values) - 1)]


def _positions(count: int, patches: int, length: int, like: Tensor) -> Tensor:
    """Return where `count` pixels of patches lie on one axis, [count,patches]; −1 and 1 are the outermost pixels."""
    offset = torch.arange(count, device=like.device, dtype=like.dtype).unsqueeze(1)
    first = torch.arange(patches, device=like.device, dtype=like.dtype) * _STRIDE - _STRIDE
    return (offset + first) * (2 / (length - 1)) - 1


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Return where pixels lie, [1,h,w,2], x and y in the units of `_positions`."""
    y, x = (torch.arange(n, device=like.device, dtype=like.dtype) * (2 / (n - 1)) - 1 for n in (height, width))
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)], -1).unsqueeze(0)


def _unit(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return [2]: one px along x and y in the units of `_positions`; filled on the device, never copied there."""
    return torch.cat([like.new_full((1,), 2 / (size[1] - 1)), like.new_full((1,), 2 / (size[0] - 1))])


def _sample(image: Tensor, positions: Tensor) -> Tensor:
    """Return image [K,C,h,w] at positions [K,a,b,2], bilinear, the border continued: [K,C,a,b]."""
    return F.grid_sample(image, positions, mode="bilinear", padding_mode="border", align_corners=True)


def _box5(x: Tensor) -> Tensor:
    """Return the means over 5×5 px windows, the border continued."""
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    pairs = x[..., :-1] + x[..., 1:]
    x = pairs[..., :-3] + pairs[..., 2:-1] + x[..., 4:]
    pairs = x[..., :-1, :] + x[..., 1:, :]
    return (pairs[..., :-3, :] + pairs[..., 2:-1, :] + x[..., 4:, :]) / 25


def _robust_weight(difference: Tensor) -> Tensor:
    return torch.rsqrt(difference.square().sum(1, keepdim=True) + ROBUST**2)


def _shrink(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return [K,C,*size], half as large: binomial (1 2 1), then bilinear."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    x = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 16
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
