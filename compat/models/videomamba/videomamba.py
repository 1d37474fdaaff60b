"""The backbone, its layers and its files."""

from video_mamba.videomamba import Block, PretrainVideoMamba, build_videomamba, create_block, load_state_dict

__all__ = ["Block", "PretrainVideoMamba", "build_videomamba", "create_block", "load_state_dict"]
