"""The streaming contract."""

from video_mamba.streaming import *  # noqa: F403
from video_mamba.streaming import __all__  # noqa: F401
