"""Measure what key frames bring: a clip inserted into another, and a clip that runs forth and back.

    python scripts/evaluate_keyframes.py runs/x/last                                  # synthetic worlds
    python scripts/evaluate_keyframes.py runs/x/last --clips a.mp4 b.mp4 c.mp4        # real clips, each with the next

Inserted: BEFORE frames of a host, INSERTED frames of the next clip, AFTER frames of the host, hard cuts between; the
host has gone on by SKIPPED frames meanwhile.

    cuts, returns, false   cuts found (2 are there), returns to a key frame, and those within the inserted clip
    restart                largest difference, after a cut, to a stream that starts there; without key frames
    off_1, off_8, off_all  the host after its return beside a stream that was never interrupted; 1, 8, all frames
    jump                   the host's first frame after the insertion less the last one before it
    mirror                 frames 0 … n−1 … 0 of the host, n = BEFORE: |D(t) − D(mirror of t)|

Differences are in percent of the depth's range (percentiles 2 to 98 of the uninterrupted stream), mean over pixels and
frames; "restart" is the largest of all pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch

from videomamba_depth.data.synthetic import iter_video
from videomamba_depth.data.video.reader import iter_frames
from videomamba_depth.evaluation.datasets.worlds import WorldSet
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.key_frames.key_frames import KeyFrames, KeyFrameSettings
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.arguments import named_path, path_argument, whole
from videomamba_depth.utils.errors import UserError, exit_on_user_error

_RESTART_FRAMES = 8  # after each cut, that are compared with a stream that starts there
_ON = KeyFrameSettings()
_VARIANTS: dict[str, KeyFrameSettings | None] = {
    "off": None,
    "state": _ON,
    "state + scale": replace(_ON, align=True),
}

Measures = dict[str, float]


class Clips:
    """The frames of the clips in turn, uint8 [H, W, 3]: read when they are asked for, one pair at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._worlds = [] if args.clips else WorldSet(videos=args.worlds, long_videos=0).specs()[: args.worlds]
        self.names = [path.stem for path in args.clips or ()] or [spec.name for spec in self._worlds]

    def read(self, index: int) -> list[np.ndarray]:
        """Return the first BEFORE + SKIPPED + AFTER frames of a clip."""
        args = self._args
        return list(self._frames(index % len(self.names), args.before + args.skipped + args.after))

    def _frames(self, index: int, count: int) -> Iterator[np.ndarray]:
        if self._args.clips:
            for number, frame in enumerate(iter_frames(self._args.clips[index])):
                if number == count:
                    return
                yield _shrink(frame.rgb, self._args.short_side)
        else:
            spec = replace(self._worlds[index], frames=count)
            yield from (frame.rgb for frame in iter_video(spec.seed, spec.config()))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    clips, model = Clips(args), load_student(args.checkpoint, args.input_size)
    if len(clips.names) < 2:
        raise UserError("give at least two clips: each is inserted into the one before it")
    found: dict[str, list[Measures]] = {name: [] for name in _VARIANTS}
    for index, name in enumerate(clips.names):
        for variant, measures in measure_clip(model, clips.read(index), clips.read(index + 1), args).items():
            found[variant].append(measures)
            print(
                f"{name:28} {variant:14} " + "  ".join(f"{key} {value:.3f}" for key, value in measures.items()),
                flush=True,
            )
    print(f"\nmean over {len(clips.names)} clips, percent of the range")
    for variant, clips_measures in found.items():
        _show(f"{variant:14}", {key: float(np.mean([m[key] for m in clips_measures])) for key in clips_measures[0]})
    if args.output:
        args.output.write_text(json.dumps({"clips": clips.names, "measures": found}, indent=1) + "\n", encoding="utf-8")


def measure_clip(
    model: VideoMambaDepth, host: list[np.ndarray], other: list[np.ndarray], args: argparse.Namespace
) -> dict[str, Measures]:
    """Return the measures of one host by variant; the inserted clip is brought to the host's size."""
    wanted = args.before + args.skipped + args.after
    if len(host) < wanted:
        raise UserError(f"a clip has {len(host)} frames; --before, --skipped and --after ask for {wanted}")
    height, width = host[0].shape[:2]
    inserted = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in other[: args.inserted]]
    whole = np.stack(list(_stream(model, None)(host)))
    low, high = np.percentile(whole, [2, 98])
    unit = 100 / max(float(high - low), 1e-9)
    found = {}
    for variant, settings in _VARIANTS.items():
        found[variant] = _measure_insertion(model, settings, host, inserted, whole, args, unit)
        found[variant] |= _measure_palindrome(model, settings, host[: args.before], unit)
    return found


def _measure_insertion(
    model: VideoMambaDepth,
    settings: KeyFrameSettings | None,
    host: list[np.ndarray],
    inserted: list[np.ndarray],
    whole: np.ndarray,
    args: argparse.Namespace,
    unit: float,
) -> Measures:
    stream = _stream(model, settings)
    before, resumed = args.before, args.before + args.skipped
    clip = [*host[:before], *inserted, *host[resumed:]]
    depth, cuts, returns = [], [], []
    for t, frame in enumerate(clip):
        depth.append(stream.step(frame))
        if stream.reset_reasons[0] == "cut":
            cuts.append(t)
        if settings is not None and stream.notes["key"]["event"] == "returned":
            returns.append(t)
    back = before + len(inserted)
    off = [unit * float(np.abs(a - b).mean()) for a, b in zip(depth[back:], whole[resumed:], strict=True)]
    measures = {"cuts": float(len(cuts)), "returns": float(len(returns))}
    measures["false"] = float(sum(before <= t < back for t in returns))
    if settings is None:
        measures["restart"] = max([_off_restart(model, clip[t:], depth[t:]) * unit for t in cuts], default=0.0)
    measures |= {"off_1": off[0], "off_8": float(np.mean(off[:8])), "off_all": float(np.mean(off))}
    measures["jump"] = unit * float(np.abs(depth[back] - depth[before - 1]).mean())
    return measures


def _off_restart(model: VideoMambaDepth, clip: list[np.ndarray], depth: list[np.ndarray]) -> float:
    """Return the largest difference to a stream that starts with the first frame of `clip`."""
    restarted = list(_stream(model, None)(clip[:_RESTART_FRAMES]))
    return max(float(np.abs(a - b).max()) for a, b in zip(restarted, depth, strict=False))


def _measure_palindrome(
    model: VideoMambaDepth, settings: KeyFrameSettings | None, host: list[np.ndarray], unit: float
) -> Measures:
    stream = _stream(model, settings)
    depth = list(stream([*host, *host[-2::-1]]))
    last = len(depth) - 1
    apart = [unit * float(np.abs(depth[t] - depth[last - t]).mean()) for t in range(len(host) - 1)]
    return {"mirror": float(np.mean(apart))}


def _stream(model: VideoMambaDepth, settings: KeyFrameSettings | None) -> DepthStream:
    hooks = [] if settings is None else [KeyFrames(settings)]
    return DepthStream(model, device="cpu", resolution="model", resets=ResetPolicy(), hooks=hooks)


def _show(name: str, measures: Measures) -> None:
    print(f"{name} " + "  ".join(f"{key} {value:.3f}" for key, value in measures.items()), flush=True)


def _shrink(frame: np.ndarray, short_side: int) -> np.ndarray:
    height, width = frame.shape[:2]
    ratio = min(1.0, short_side / min(height, width))
    return cv2.resize(frame, (round(width * ratio), round(height * ratio)), interpolation=cv2.INTER_AREA)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=named_path, help="a student's folder, or teacher:NAME_OR_PATH")
    parser.add_argument("--clips", type=path_argument, nargs="+", help="video files; default: synthetic worlds")
    parser.add_argument("--worlds", type=whole(2, 10_000), default=6, help="number of synthetic worlds")
    parser.add_argument("--before", type=whole(1, 100_000), default=30, help="frames of the host before the insertion")
    parser.add_argument("--inserted", type=whole(1, 100_000), default=12, help="frames of the next clip")
    parser.add_argument("--skipped", type=whole(0, 100_000), default=0, help="frames of the host that are not seen")
    parser.add_argument("--after", type=whole(1, 100_000), default=20, help="frames of the host after it")
    parser.add_argument(
        "--short-side", type=whole(14, 8192), default=224, help="px that larger frames of clips are shrunk to"
    )
    parser.add_argument("--input-size", type=whole(14, 8192), help="short side in px; default: the checkpoint's")
    parser.add_argument("--threads", type=whole(1, 1024), default=1, help="CPU threads")
    parser.add_argument("--output", type=path_argument, help="JSON file for the measures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
