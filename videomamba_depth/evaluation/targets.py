"""Training targets as methods: what stabilizing and parallax make of the teacher's depth, from both sides in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.data.labels.geometry import geometric_clip
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.labels.windowed_target import WINDOW, WindowedTarget
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.context import Context
from videomamba_depth.evaluation.methods import Method
from videomamba_depth.flow.estimators import FlowEstimator

TARGETS: dict[str, Callable[..., Tensor]] = {"stabilized": stabilize_clip, "geometry": geometric_clip}


def target_methods(flow: FlowEstimator, radius: int = 8, sigma: float = 5.0) -> list[Method]:
    """Return the targets of `TARGETS`: of clips that fit a window as training has them, of longer ones in windows.

    Args:
        radius: frames to either side. sigma: of the weights, in frames.
    """

    def derive(name: str, context: Context) -> Iterator[np.ndarray]:
        options: dict[str, Any] = {"radius": radius, "sigma": sigma}
        if len(context.rgb) > WINDOW:
            yield from _in_windows(
                WindowedTarget(flow, context.depth_kind, geometry=name == "geometry", **options), context
            )
            return
        teacher = torch.from_numpy(context.teacher[:])[:, None]
        clip = torch.from_numpy(context.rgb[:]).permute(0, 3, 1, 2).float() / 255
        yield from TARGETS[name](teacher, clip, flow, **options, depth_kind=context.depth_kind)[:, 0].numpy()

    about = f"{radius}-{sigma}-{code_digest(__name__)}"
    return [Method(name, derive=partial(derive, name), digest=about) for name in TARGETS]


def _in_windows(target: WindowedTarget, context: Context) -> Iterator[np.ndarray]:
    for rgb, teacher in zip(context.rgb, context.teacher, strict=True):
        frame = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 255
        yield from (done.depth.numpy() for done in target.add(frame, torch.from_numpy(np.array(teacher))))
    yield from (done.depth.numpy() for done in target.finish())
