"""Training targets as methods: what stabilizing and parallax make of the teacher's depth, from both sides in time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry import geometric_clip
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.methods import Method
from videomamba_depth.flow.estimators import FlowEstimator

TARGETS: dict[str, Callable[..., Tensor]] = {"stabilized": stabilize_clip, "geometry": geometric_clip}


def target_methods(flow: FlowEstimator, radius: int = 8, sigma: float = 5.0) -> list[Method]:
    """Return the targets of `TARGETS`. radius: frames to either side. sigma: of the weights, in frames."""

    def derive(make: Callable[..., Tensor], context: Context) -> np.ndarray:
        teacher = torch.from_numpy(context.teacher[:])[:, None]
        clip = torch.from_numpy(context.rgb[:]).permute(0, 3, 1, 2).float() / 255
        return make(teacher, clip, flow, radius=radius, sigma=sigma, depth_kind=context.depth_kind)[:, 0].numpy()

    about = f"{radius}-{sigma}-{code_digest(__name__)}"
    return [Method(name, derive=partial(derive, make), digest=about) for name, make in TARGETS.items()]
