"""The refinement block."""

from video_mamba import BiMambaRefinerBlock

__all__ = ["BiMambaRefinerBlock"]
