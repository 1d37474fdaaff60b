"""The mixer."""

from video_mamba.mamba_simple import Mamba

__all__ = ["Mamba"]
