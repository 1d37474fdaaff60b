#!/usr/bin/env python
"""Render a video of the synthetic world to a file; with the defaults, the clip that is shipped with the package.

python scripts/render_synthetic_clip.py videomamba_depth/assets/clip.mp4
"""

import argparse
import logging
from typing import get_args

from videomamba_depth.data.synthetic import SceneFamily, WorldConfig, iter_video
from videomamba_depth.data.video.writer import VideoWriter
from videomamba_depth.utils.arguments import path_argument, whole
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.logger import configure_logging

log = logging.getLogger("render_synthetic_clip")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=path_argument, help="an .mp4 file; H.264")
    parser.add_argument("--seed", type=whole(0, 2**40), default=14)
    parser.add_argument("--family", default="rooms", choices=get_args(SceneFamily))
    parser.add_argument("--camera-motion", default="moving", choices=("moving", "static", "fast"))
    parser.add_argument("--height", type=whole(16, 4096), default=192)
    parser.add_argument("--width", type=whole(16, 4096), default=256)
    parser.add_argument("--num-frames", type=whole(1, 1_000_000), default=96)
    parser.add_argument("--crf", type=whole(0, 51), default=23, help="x264 quality, 0 (lossless) to 51")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = WorldConfig(
            height=args.height,
            width=args.width,
            num_frames=args.num_frames,
            family=args.family,
            camera_motion=args.camera_motion,
            noise=0.006,
            jpeg_quality=None,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    size = (config.width, config.height)
    with VideoWriter(args.path, size=size, fps=config.fps, crf=args.crf, preset="slow", atomic=True) as writer:
        for frame in iter_video(args.seed, config):
            writer.write(frame.rgb)
    log.info("wrote %s, %.0f kB", args.path, args.path.stat().st_size / 1e3)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
