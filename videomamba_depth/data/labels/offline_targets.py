"""The targets that are worked out offline from a teacher's depth, by the name that `loss.target` has for them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from videomamba_depth.data.labels.geometry import geometric_clip
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.flow.estimators import FlowEstimator
from videomamba_depth.utils.depth_kind import DepthKind


class OfflineTarget(Protocol):
    """Anything that makes a clip's targets [N,1,H,W] of the teacher's depth [N,1,H,W] and the clip [N,3,H,W]."""

    def __call__(
        self,
        depth: Tensor,
        clip: Tensor,
        flow: FlowEstimator,
        *,
        radius: int,
        sigma: float,
        depth_kind: DepthKind,
    ) -> Tensor: ...


OFFLINE_TARGETS: dict[str, OfflineTarget] = {"stabilized": stabilize_clip, "geometry": geometric_clip}
