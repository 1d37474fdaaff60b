"""Time of streams whose encoder sees every k-th frame, beside the bare teacher, frame by frame in turn in one process.

    python benchmarks/encode_every.py --sizes 518 --every 1 2 4

Per size a table: the mean time of a frame over whole rounds of k frames, its ratio to the teacher's, the dearest and
the cheapest frame, and how many frames were encoded. The student is the recipe on a Small-sized encoder with random
weights, untrained or, with `--learned`, with a correction of moved features; the video is a texture that moves by 2 px
per frame. On one thread times are CPU times, which other work on the machine changes least; else wall times.
"""

from __future__ import annotations

import argparse
import math
import time

import cv2
import numpy as np
import torch
from random_models import RECIPE, SIZES, build_encoder

from videomamba_depth.models.checkpoint import bare_teacher
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.device import use_threads

_STEP_PX = 2


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    args = _parse(arguments)
    use_threads(args.threads)
    encoder = build_encoder(args.model)
    learned = max(args.every) if args.learned else 1
    student = VideoMambaDepth(
        encoder, encoder.head, RECIPE, False, MotionSpec(), OutputSpec(), encode_every=learned
    ).eval()
    teacher = bare_teacher(encoder)
    counted = 0
    real = encoder.encode_pixels

    def encode_pixels(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal counted
        counted += len(pixels)
        return real(pixels)

    encoder.encode_pixels = encode_pixels  # type: ignore[method-assign]
    now = time.process_time if args.threads == 1 else time.perf_counter
    num_frames = args.rounds * math.lcm(*args.every)
    for size in args.sizes:
        encoder.short_side = size
        options = {"device": "cpu", "resolution": "model"}
        streams = {"teacher": DepthStream(teacher, **options)}
        for every in args.every:
            policy = ResetPolicy()
            streams[f"every {every}"] = DepthStream(student, resets=policy, encode_every=every, **options)
        times: dict[str, list[float]] = {name: [] for name in streams}
        encoded = dict.fromkeys(streams, 0)
        for index, frame in enumerate(_moving_texture(size, num_frames + 1)):
            for name, stream in streams.items():
                before, start = counted, now()
                stream.step(frame)
                if index:  # the first frame of a stream is no part of a round
                    times[name].append(1000 * (now() - start))
                    encoded[name] += counted - before
        _print(f"{size} px, {args.model}, {num_frames} frames, {args.threads} thread(s)", times, encoded)


def _print(title: str, times: dict[str, list[float]], encoded: dict[str, int]) -> None:
    print(f"\n{title}\n{'':12} {'mean ms':>8} {'over teacher':>13} {'dearest':>8} {'cheapest':>9} {'encoded':>8}")
    base = float(np.mean(times["teacher"]))
    for name, values in times.items():
        mean = float(np.mean(values))
        print(
            f"{name:12} {mean:8.1f} {mean / base:13.3f} {max(values):8.1f} {min(values):9.1f} {encoded[name]:8d}",
            flush=True,
        )


def _moving_texture(size: int, num_frames: int) -> list[np.ndarray]:
    """Return uint8 RGB frames `[size, size, 3]` of smooth noise that moves to the left."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size + _STEP_PX * num_frames, 3), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    return [np.ascontiguousarray(texture[:, _STEP_PX * t : _STEP_PX * t + size]) for t in range(num_frames)]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[266, 518], help="sides of the frames in px")
    parser.add_argument(
        "--every", type=int, nargs="+", default=[1, 2, 4], help="the encoder sees every so many-th frame"
    )
    parser.add_argument("--learned", action="store_true", help="with a correction of moved features")
    parser.add_argument("--model", choices=tuple(SIZES), default="small", help="size of the encoder")
    parser.add_argument("--rounds", type=int, default=2, help="of the least common multiple of --every frames")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
