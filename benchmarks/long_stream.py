"""A long stream: does memory grow, does depth drift, is every output valid?

    python benchmarks/long_stream.py runs/x/last                       # 10,000 frames of 70x56
    python benchmarks/long_stream.py runs/x/last --key-frames          # with key frames, and their scale
    python benchmarks/long_stream.py embedded --geometry               # with geometry in the stream

A synthetic clip runs forth and back again and again, so that every round shows the same frames in the same order.
Printed: resident memory after frame 500 and its largest value from there on, the largest change of the mean depth of
any frame against the same frame of the second round, in percent, and how many frames hold a value that is not finite.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch

from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.streaming.timing import resident_mb

WARM_FRAMES = 500
_SEED = 3_000_000_000  # beyond every seed that is trained on


@dataclass
class LongStream:
    """What was found.

    Attributes:
        warm_mb, largest_mb: resident memory after frame 500, and the largest from there on.
        drift: largest |mean depth / that of the same frame in the second round − 1|.
        invalid: frames with a value that is not finite, or relative depth below 0.
        resets: automatic resets.
    """

    frames: int
    warm_mb: float = 0.0
    largest_mb: float = 0.0
    drift: float = 0.0
    invalid: int = 0
    resets: int = 0

    @property
    def growth_mb(self) -> float:
        """What memory grew by from frame 500 on."""
        return self.largest_mb - self.warm_mb


def stream_long(
    model: VideoMambaDepth,
    frames: int,
    height: int,
    width: int,
    clip_frames: int,
    key_frames: bool = False,
    progress: bool = False,
) -> LongStream:
    """Stream a looped synthetic clip; `progress` prints a line every 500 frames."""
    world = WorldConfig(height=height, width=width, num_frames=clip_frames)
    clip = [frame.rgb for frame in iter_video(_SEED, world)]
    loop = [*clip, *clip[-2:0:-1]]
    hooks = [KeyFrames(KeyFrameSettings())] if key_frames else []
    stream = DepthStream(model, device="cpu", resets=ResetPolicy(), hooks=hooks)
    found, means = LongStream(frames), np.zeros(len(loop))
    for index, rgb in enumerate(islice(cycle(loop), frames)):
        depth = stream.step(rgb)
        found.invalid += not bool(np.isfinite(depth).all() and depth.min() >= 0)
        found.resets += stream.reset_reasons[0] not in ("", "start")
        mean = float(depth.mean(dtype=np.float64))
        if index // len(loop) == 1:
            means[index % len(loop)] = mean
        elif index // len(loop) > 1:
            found.drift = max(found.drift, abs(mean / means[index % len(loop)] - 1))
        if index + 1 == WARM_FRAMES:
            found.warm_mb = resident_mb()
        if index + 1 >= WARM_FRAMES and (index + 1) % 100 == 0:
            found.largest_mb = max(found.largest_mb, resident_mb())
        if progress and (index + 1) % 500 == 0:
            print(f"frame {index + 1}: {resident_mb():.1f} MB, drift {100 * found.drift:.4f} %", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    args = _parse()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    found = stream_long(
        load_student(args.checkpoint, args.input_size, geometry=args.geometry or None),
        args.frames,
        args.height,
        args.width,
        args.clip_frames,
        args.key_frames,
    )
    print(f"{found.frames} frames of {args.width}x{args.height} in {time.perf_counter() - start:.0f} s")
    print(f"resident MB: {found.warm_mb:.1f} after frame {WARM_FRAMES}, at most {found.largest_mb:.1f} from there on")
    print(f"largest change of a frame's mean depth against the second round: {100 * found.drift:.4f} %")
    print(f"frames with an invalid value: {found.invalid}; resets: {found.resets}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a student's folder, or teacher:NAME_OR_PATH")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--height", type=int, default=56, help="px")
    parser.add_argument("--width", type=int, default=70, help="px")
    parser.add_argument("--clip-frames", type=int, default=48, help="of the clip that is looped")
    parser.add_argument("--key-frames", action="store_true", help="with key frames, as they are by default")
    parser.add_argument("--geometry", action="store_true", help="correct depth by parallax")
    parser.add_argument("--input-size", type=int, default=56, help="short side in px that the model works at")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
