"""The Mamba mixer, its state, and the VideoMamba backbones built from it.

The names below are the public API of the streaming backbone; they are imported when first used. The bidirectional
families are `backbone.VideoMamba`, `backbone.MaskedVideoMamba` and `vim.Vim`, their files are read by
`checkpoints.load_backbone`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomamba_depth.layers.mamba_mixer import LayerState
    from videomamba_depth.video_mamba.build import build_videomamba
    from videomamba_depth.video_mamba.determinism import (
        DeterminismConfig,
        add_determinism_args,
        configure_determinism,
        configure_determinism_from_args,
    )
    from videomamba_depth.video_mamba.pretrain import PretrainVideoMamba
    from videomamba_depth.video_mamba.refiner import BiMambaRefinerBlock
    from videomamba_depth.video_mamba.streaming import (
        STREAMING_CONTRACT_VERSION,
        ForwardReturnSemantics,
        StateShape,
        StreamingState,
        allocate_state,
        expected_state_shapes,
        forward_return_semantics,
        model_forward_return_semantics,
        validate_state,
    )

__all__ = [
    "STREAMING_CONTRACT_VERSION",
    "BiMambaRefinerBlock",
    "DeterminismConfig",
    "ForwardReturnSemantics",
    "LayerState",
    "PretrainVideoMamba",
    "StateShape",
    "StreamingState",
    "add_determinism_args",
    "allocate_state",
    "build_videomamba",
    "configure_determinism",
    "configure_determinism_from_args",
    "expected_state_shapes",
    "forward_return_semantics",
    "model_forward_return_semantics",
    "validate_state",
]

_MODULES = {
    "videomamba_depth.layers.mamba_mixer": ("LayerState",),
    "videomamba_depth.video_mamba.build": ("build_videomamba",),
    "videomamba_depth.video_mamba.determinism": (
        "DeterminismConfig",
        "add_determinism_args",
        "configure_determinism",
        "configure_determinism_from_args",
    ),
    "videomamba_depth.video_mamba.pretrain": ("PretrainVideoMamba",),
    "videomamba_depth.video_mamba.refiner": ("BiMambaRefinerBlock",),
    "videomamba_depth.video_mamba.streaming": (
        "STREAMING_CONTRACT_VERSION",
        "ForwardReturnSemantics",
        "StateShape",
        "StreamingState",
        "allocate_state",
        "expected_state_shapes",
        "forward_return_semantics",
        "model_forward_return_semantics",
        "validate_state",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
