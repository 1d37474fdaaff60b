"""The backbones of videomamba-depth by the name `video_mamba`."""

from videomamba_depth.video_mamba import *  # noqa: F403
from videomamba_depth.video_mamba import __all__  # noqa: F401
