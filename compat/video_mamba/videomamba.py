"""The backbone, its layers and its files."""

from videomamba_depth.video_mamba import PretrainVideoMamba, build_videomamba
from videomamba_depth.video_mamba.blocks import Block, create_block
from videomamba_depth.video_mamba.checkpoints import load_state_dict

__all__ = ["Block", "PretrainVideoMamba", "build_videomamba", "create_block", "load_state_dict"]
