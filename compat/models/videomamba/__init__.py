"""The streaming backbone."""

from video_mamba import build_videomamba

__all__ = ["build_videomamba"]
