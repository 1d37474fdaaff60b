"""Streaming, temporally stable video depth, distilled from a frozen Depth Anything teacher.

from videomamba_depth import DepthStream, VideoMambaDepth, load_student
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomamba_depth.commands.push import push_to_hub
    from videomamba_depth.models.checkpoint import load_student
    from videomamba_depth.models.videomamba_depth import VideoMambaDepth
    from videomamba_depth.streaming.stream import DepthStream

__version__ = "0.1.0"
__all__ = ["DepthStream", "VideoMambaDepth", "load_student", "push_to_hub"]

_MODULES = {
    "DepthStream": "videomamba_depth.streaming.stream",
    "VideoMambaDepth": "videomamba_depth.models.videomamba_depth",
    "load_student": "videomamba_depth.models.checkpoint",
    "push_to_hub": "videomamba_depth.commands.push",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: whoever wants a part of the package does not wait for torch and transformers."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
