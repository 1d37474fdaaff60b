"""The streaming backbone, by the public names of `video_mamba`."""

from video_mamba import *  # noqa: F403
from video_mamba import __all__  # noqa: F401
