"""The backbones of videomamba-depth by the older name `models`."""

from video_mamba import BiMambaRefinerBlock, PretrainVideoMamba, build_videomamba

__all__ = ["BiMambaRefinerBlock", "PretrainVideoMamba", "build_videomamba"]
