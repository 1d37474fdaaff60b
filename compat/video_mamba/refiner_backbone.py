"""The refinement block."""

from videomamba_depth.video_mamba import BiMambaRefinerBlock

__all__ = ["BiMambaRefinerBlock"]
