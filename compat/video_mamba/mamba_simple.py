"""The mixer."""

from videomamba_depth.video_mamba.blocks import Mamba

__all__ = ["Mamba"]
