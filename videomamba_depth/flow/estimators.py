"""Optical flow estimators: DIS (OpenCV, CPU), inverse search on tensors (any device), RAFT (weights from a local file).

`both_ways` is where callers get the flow of a pair in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from videomamba_depth.flow import inverse_search_cpp
from videomamba_depth.flow.inverse_search import InverseSearchSettings, estimate
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.flow_utils import resize_flow, resize_maps
from videomamba_depth.utils.images import luma
from videomamba_depth.utils.settings import choice, path, ranged

DIS_PRESETS = ("ultrafast", "fast", "medium")
DIS_MIN_SIZE_PX = 16
WEIGHTLESS = ("dis", "dis_fast", "dis_ultrafast", "inverse_search", "inverse_search_fine")
"""Estimators that need no weights, see `build_flow`."""
RAFT_MIN_SIZE_PX = 128


class FlowEstimator(Protocol):
    """Anything that maps two batches of frames [K,3,H,W] in [0,1] to the flow source → target [K,2,H,W]
    px.
    """

    def __call__(self, source: Tensor, target: Tensor) -> Tensor: ...


def both_ways(flow: FlowEstimator, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flows source → target and target → source of pairs [K,3,H,W] in [0,1], each [K,2,H,W] px.

    An estimator that shares work between the directions has a method `both_ways(source, target)`. What is no tensor
    operation is one operator, `videomamba_depth::both_ways`, in graphs that are compiled for a CPU.
    """
    name = getattr(flow, "name", None)
    if name is not None and torch.compiler.is_compiling() and source.device.type == "cpu":
        forth, back = _both_ways_operator(source, target, name)
        return forth, back
    together = getattr(flow, "both_ways", None)
    return together(source, target) if together else (flow(source, target), flow(target, source))


@torch.library.custom_op("videomamba_depth::both_ways", mutates_args=(), device_types="cpu")
def _both_ways_operator(source: Tensor, target: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    forth, back = both_ways(build_flow(estimator), source, target)
    return forth.clone(), back.clone()  # an operator's results share no memory


@_both_ways_operator.register_fake
def _(source: Tensor, target: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    shape = (source.shape[0], 2, *source.shape[-2:])
    return source.new_empty(shape, dtype=torch.float32), source.new_empty(shape, dtype=torch.float32)


class PairsOnce:
    """A flow estimator that estimates no pair twice that it is asked for by `both_ways`, in whatever order.

    It lives while one batch is labeled and keeps the frames and the flows of its pairs until then. Pairs are known by
    where they lie in memory: frames must not change meanwhile.
    """

    def __init__(self, flow: FlowEstimator) -> None:
        self._flow = flow
        self._pairs: dict[tuple[Any, Any], tuple[Tensor, Tensor, tuple[Tensor, Tensor]]] = {}

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """Estimate source → target anew."""
        return self._flow(source, target)

    def both_ways(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return source → target and target → source."""
        a, b = ((x.data_ptr(), x.shape, x.stride(), x.dtype) for x in (source, target))
        if (b, a) in self._pairs:
            back, forth = self._pairs[b, a][2]
            return forth, back
        if (a, b) not in self._pairs:  # the frames are kept too, so that no others can lie there
            self._pairs[a, b] = (source, target, both_ways(self._flow, source, target))
        return self._pairs[a, b][2]


class DISFlow:
    """Dense Inverse Search (Kroeger et al., ECCV 2016) as in OpenCV, on 8-bit luma.

    Args:
        preset: "ultrafast", "fast" or "medium": from coarser and faster to finer and slower.

    Runs on the CPU, frame by frame; the result returns to the source's device and depends on the pair alone.
    """

    def __init__(self, preset: str = "medium") -> None:
        if preset not in DIS_PRESETS:
            raise ValueError(f"preset must be one of {DIS_PRESETS}; got {preset!r}")
        self.preset, self.name = preset, f"dis_{preset}"

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """Estimate source → target: [K,3,H,W] in [0,1] (H, W ≥ 16) → [K,2,H,W] float32 px."""
        _check_pair(source, target, DIS_MIN_SIZE_PX)
        return self._estimate(_luma8(source), _luma8(target), source)

    def both_ways(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate source → target and target → source, each as `__call__` does."""
        _check_pair(source, target, DIS_MIN_SIZE_PX)
        a, b = _luma8(source), _luma8(target)
        return self._estimate(a, b, source), self._estimate(b, a, source)

    def _estimate(self, source: list[np.ndarray], target: list[np.ndarray], like: Tensor) -> Tensor:
        pairs = zip(source, target, strict=True)
        flows = [torch.from_numpy(self._dis().calc(a, b, None)).permute(2, 0, 1) for a, b in pairs]
        stacked = torch.stack(flows) if flows else torch.zeros(0, 2, *like.shape[-2:])
        return stacked.float().to(like.device)

    def _dis(self) -> Any:
        """Return a new estimator: used again, it gives other flow on some sizes (OpenCV 5.0, 28×42 px)."""
        import cv2

        return cv2.DISOpticalFlow_create(DIS_PRESETS.index(self.preset))


class InverseSearchFlow:
    """Patches by inverse search and variational refinement in tensor operations, see `flow/inverse_search.py`.

    Args:
        preset: "medium", estimated at half the size as DIS medium is, or "fine", at the full size.
        compiled: on a CPU, run the same maths in a C++ kernel, where one can be built.

    Runs where the frames are, all pairs and both directions in one batch; a pair's flow does not depend on the others.
    Always float32; it holds no tensors. Exported and compiled graphs hold the tensor operations.
    """

    PRESETS: ClassVar[dict[str, InverseSearchSettings]] = {
        "medium": InverseSearchSettings(),
        "fine": InverseSearchSettings(finest=0, steps=(3, 3, 3, 2), warps=(1, 1, 2, 1), sweeps=16),
    }

    def __init__(self, preset: str = "medium", compiled: bool = True) -> None:
        if preset not in self.PRESETS:
            raise ValueError(f"preset must be one of {tuple(self.PRESETS)}; got {preset!r}")
        self.preset, self.settings, self.compiled = preset, self.PRESETS[preset], compiled
        self.name = {"medium": "inverse_search", "fine": "inverse_search_fine"}[preset] if compiled else None

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """Estimate source → target: [K,3,H,W] in [0,1] (H, W ≥ 16) → [K,2,H,W] float32 px."""
        _check_pair(source, target, DIS_MIN_SIZE_PX)
        return self._estimate(luma(source), luma(target))

    def both_ways(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate source → target and target → source, each as `__call__` does."""
        _check_pair(source, target, DIS_MIN_SIZE_PX)
        a, b = luma(source), luma(target)
        forth, back = self._estimate(torch.cat([a, b]), torch.cat([b, a])).chunk(2)
        return forth, back

    @torch.no_grad()
    def _estimate(self, source: Tensor, target: Tensor) -> Tensor:
        kernel = self.compiled and source.device.type == "cpu" and not torch.compiler.is_compiling()
        if kernel and inverse_search_cpp.library() is not None:
            levels = (inverse_search_cpp.search_level, inverse_search_cpp.refine_level)
            return estimate(source, target, self.settings, *levels)
        return estimate(source, target, self.settings)


class DISWhereItRuns:
    """DIS for frames on the CPU; `InverseSearchFlow` for those on another device, which they need not leave."""

    def __init__(self, dis: DISFlow) -> None:
        self._dis, self._elsewhere, self.name = dis, InverseSearchFlow(), dis.name

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """Estimate source → target: [K,3,H,W] in [0,1] (H, W ≥ 16) → [K,2,H,W] float32 px."""
        return self._dis(source, target) if source.device.type == "cpu" else self._elsewhere(source, target)

    def both_ways(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate source → target and target → source."""
        return both_ways(self._dis if source.device.type == "cpu" else self._elsewhere, source, target)


class RAFTFlow:
    """RAFT (Teed and Deng, ECCV 2020), torchvision's architecture, small or large as the weights say.

    Args:
        weights_path: a state dict of torchvision's `raft_small` or `raft_large`, as .safetensors or a torch
            file (loaded with `weights_only=True`). Nothing is ever downloaded.
        num_updates: refinement iterations.
        device: where it runs; frames are moved there and the flow back.

    Raises UserError when the file is missing, unreadable or not a RAFT state dict.
    """

    def __init__(self, weights_path: str | Path, num_updates: int = 12, device: str = "cpu") -> None:
        weights = _load_weights(Path(weights_path))
        self.num_updates = num_updates
        self.device = torch.device(device)
        self.model = _build_raft(weights, Path(weights_path)).to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        """Estimate source → target: [K,3,H,W] in [0,1] → [K,2,H,W] float32 px.

        RAFT needs multiples of 8 and at least 128 px: other frames are resized there and the flow scaled
            back.
        """
        _check_pair(source, target, 2)
        height, width = source.shape[-2:]
        size = (max(RAFT_MIN_SIZE_PX, -(-height // 8) * 8), max(RAFT_MIN_SIZE_PX, -(-width // 8) * 8))
        a, b = (2.0 * resize_maps(x.float().to(self.device), size) - 1.0 for x in (source, target))
        flow = self.model(a, b, num_flow_updates=self.num_updates)[-1]
        return resize_flow(flow, (height, width)).to(source.device)


def build_flow(name: str, weights_path: str | Path | None = None, device: str = "cpu") -> FlowEstimator:
    """Build an estimator by name.

    "dis" (medium), "dis_fast", "dis_ultrafast", "inverse_search", "inverse_search_fine", "raft" (needs weights).

    Args:
        name: as above; "raft:PATH" is short for "raft" with `weights_path=PATH`.
        weights_path: RAFT's weights. device: where RAFT runs.

    Raises UserError on an unknown name or when RAFT has no weights.
    """
    base, _, inline_path = name.partition(":")
    dis = {"dis": "medium", "dis_medium": "medium", "dis_fast": "fast", "dis_ultrafast": "ultrafast"}
    if base in dis:
        return DISFlow(dis[base])
    inverse_search = {"inverse_search": "medium", "inverse_search_fine": "fine"}
    if base in inverse_search:
        return InverseSearchFlow(inverse_search[base])
    if base == "raft":
        path = inline_path or weights_path
        if not path:
            raise UserError(
                "flow 'raft' needs a local weights file of torchvision's raft_small or raft_large; "
                "give its path, or use 'dis', which needs none"
            )
        return RAFTFlow(path, device=device)
    raise UserError(f"unknown flow {name!r}; choose one of {sorted(dis | inverse_search)} or raft:PATH")


def build_stream_flow(name: str) -> FlowEstimator:
    """Build an estimator that needs no weights, see `build_flow`, for frames that come one by one on a model's device.

    Where that is no CPU, `inverse_search` stands in for DIS: a frame would wait for the CPU, there and back.
    """
    flow = build_flow(name)
    return DISWhereItRuns(flow) if isinstance(flow, DISFlow) else flow


@dataclass(frozen=True)
class FlowSettings:
    """The optical flow that targets, losses and metrics rely on, and what counts as static along it.

    Attributes:
        estimator, weights: see `build_flow`.
        max_motion_px: a pixel that moves less than this per frame is static,
        max_rgb_change: ... if it changes less than this too, of full scale.
    """

    estimator: str = choice(*WEIGHTLESS, "raft")
    weights: str | None = path()
    max_motion_px: float = ranged(0, 1000)
    max_rgb_change: float = ranged(0, 1)


def _check_pair(source: Tensor, target: Tensor, min_size: int) -> None:
    if source.ndim != 4 or source.shape[1] != 3 or source.shape != target.shape:
        raise ValueError(f"source and target must both be [K,3,H,W]; got {list(source.shape)} and {list(target.shape)}")
    if min(source.shape[-2:]) < min_size:
        raise ValueError(f"flow needs frames of at least {min_size} px; got {list(source.shape[-2:])}: upscale them")


def _luma8(frames: Tensor) -> list[np.ndarray]:
    levels = (luma(frames.detach())[:, 0] * 255).round().clamp(0, 255)
    return list(levels.to(torch.uint8).cpu().numpy())


def _load_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"RAFT weights not found: {path}; give a local file, or use flow 'dis', which needs none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"RAFT weights {path} cannot be read ({type(error).__name__}); give another file") from error
    return loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}


def _build_raft(weights: dict[str, Tensor], path: Path) -> nn.Module:
    from torchvision.models.optical_flow import raft_large, raft_small

    # The stem tells the two apart: 32 channels in raft_small, 64 in raft_large.
    stem = weights.get("feature_encoder.convnormrelu.0.weight")
    builders = {32: raft_small, 64: raft_large}
    if not isinstance(stem, Tensor) or stem.shape[0] not in builders:
        raise UserError(f"{path} is not a state dict of torchvision's raft_small or raft_large")
    model = builders[stem.shape[0]](weights=None, progress=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit torchvision's RAFT: {str(error).splitlines()[0]}") from error
    return model
