"""Speed of a stream: the recommended recipe beside its bare teacher, and where a frame's time goes.

    python benchmarks/streaming.py --sizes 266 518                     # Small-sized encoder with random weights
    python benchmarks/streaming.py --encoder t --sizes 224             # a VideoMamba in the student, beside it
    python benchmarks/streaming.py --checkpoint embedded --sizes 112 --video clip.mp4     # also from file to file

Per size a table of whole frames, pixels to depth, of all models in turn in one process: milliseconds, and the ratio of
each frame to the teacher's just before it, median and quartiles; then each part's share of a frame. With `--video`,
also from a file to a side by side video and a frame log, one stage after the other. On a CPU with one thread (the
default) times are CPU times, which other work on the machine changes least; else wall times. Random weights serve for
timing: nothing here depends on the values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import transformers
from random_models import SIZES, build_encoder, build_student

from videomamba_depth import __version__
from videomamba_depth.data.video.reader import Frame, VideoWriter
from videomamba_depth.models.checkpoint import bare_teacher, load_student, load_teacher
from videomamba_depth.models.encoder_da import Teacher
from videomamba_depth.models.encoder_video_mamba import VARIANTS
from videomamba_depth.models.geometry import Geometry, GeometrySpec
from videomamba_depth.models.motion import MotionEstimator
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.pipeline import run_pipeline
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.sinks.video import FrameLog, FramePainter, VideoSink
from videomamba_depth.streaming.sources.files import FileSource
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.device import use_threads

NETWORK = ("encoder", "temporal stacks", "decoder", "carried output")
"""The parts of a frame that have weights."""


def main() -> None:
    """Measure and print."""
    options = _parse()
    found = measure(options)
    print_results(found)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `main` prints, as plain values."""
    use_threads(options.threads)
    clock = _Clock(options.device, options.threads)
    models = _models(options)
    found: dict[str, Any] = {"about": _about(options, clock), "frames": [], "parts": []}
    for size in options.sizes:
        streams = {}
        for name, model in models.items():
            model.encoder.short_side = size
            settings = {"device": options.device, "precision": options.dtype, "resolution": "model"}
            streams[name] = DepthStream(model, resets=ResetPolicy(), **settings)
        frames = _random_frames(size, options.aspect, streams["teacher"].model.encoder.patch_size)
        found["frames"] += _in_turn(streams, frames, size, options, clock)
        found["parts"] += [_shares(name, stream, frames, size, options, clock) for name, stream in streams.items()]
    if options.video:
        found["end_to_end"] = _end_to_end(models, options, clock)
    found["peak_mb"] = _peak_mb(options.device)
    return found


def _models(options: argparse.Namespace) -> dict[str, VideoMambaDepth]:
    """Return the bare teacher and its students, by name."""
    if options.checkpoint:
        student = load_student(options.checkpoint)
        own = student.encoder
        encoder = own if isinstance(own, Teacher) else load_teacher(options.checkpoint)
        models = {"teacher": bare_teacher(encoder), "student": student}
        if student.motion is not None:
            models["student + geometry"] = load_student(options.checkpoint, geometry=True)
        return models
    random = build_encoder(options.size)
    return {
        "teacher": bare_teacher(random),
        "recipe": build_student(random, variant=options.encoder),
        "recipe + geometry": build_student(random, geometry=GeometrySpec(), variant=options.encoder),
    }


class _Clock:
    """Reads milliseconds; `kind` says which."""

    def __init__(self, device: str, threads: int | None) -> None:
        self._waits = device.startswith("cuda")
        self.kind = "CPU time" if device == "cpu" and threads == 1 else "wall time"
        self._seconds = time.process_time if self.kind == "CPU time" else time.perf_counter

    def __call__(self) -> float:
        if self._waits:
            torch.cuda.synchronize()
        return 1e3 * self._seconds()


def _in_turn(
    streams: dict[str, DepthStream], frames: list[np.ndarray], size: int, options: argparse.Namespace, clock: _Clock
) -> list[dict[str, Any]]:
    """Time whole frames of all streams in turn, so that whatever else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in streams}
    for index in range(-options.warm_up, options.frames):
        for name, stream in streams.items():
            start = clock()
            stream.step(frames[index % len(frames)])
            if index >= 0:
                times[name].append(clock() - start)
    return [
        {"size": size, "model": name, "ms": median(values), "over_teacher": _over(values, times["teacher"])}
        for name, values in times.items()
    ]


def _over(times: list[float], base: list[float]) -> list[float]:
    """Return the quartiles of the ratios, frame by frame."""
    return quantiles([x / y for x, y in zip(times, base, strict=True)], n=4, method="inclusive")


def _shares(
    name: str,
    stream: DepthStream,
    frames: list[np.ndarray],
    size: int,
    options: argparse.Namespace,
    clock: _Clock,
) -> dict[str, Any]:
    """Return each part's mean share of a frame."""
    with parts_timed(stream, clock) as parts:
        for index in range(max(2, options.frames // 4)):
            stream.step(frames[index % len(frames)])
    return {"size": size, "model": name, "shares": _as_shares(parts)}


def _as_shares(parts: dict[str, float]) -> dict[str, float]:
    whole = sum(parts.values())
    return {part: ms / whole for part, ms in sorted(parts.items(), key=lambda item: -item[1])}


@contextmanager
def parts_timed(stream: DepthStream, clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Yield a dictionary that holds, by part, the time that a stream spends in it and in no part within it."""
    spent: dict[str, float] = defaultdict(float)
    within: list[float] = []

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            within.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                took = clock() - start
                spent[part] += took - within.pop()
                if within:
                    within[-1] += took

        return wrapped

    model = stream.model
    owners: list[tuple[Any, str, str]] = [
        (model.encoder, "fit", "resize"),
        (model.encoder, "normalize", "resize"),
        (model.encoder, "encode_pixels", "encoder"),
        (MotionEstimator, "__call__", "flow"),
        (Geometry, "__call__", "geometry"),
        *((scale, "forward", "temporal stacks") for scale in model.temporal.values()),
        (model.head, "forward", "decoder"),
        *([(model.output, "forward", "carried output")] if model.output is not None else []),
        *((hook, "before_frame", "cut test") for hook in stream.hooks),
        (stream, "step", "upload, download, checks"),
        (FramePainter, "__call__", "color"),
        (VideoWriter, "write", "encode video"),
        (FrameLog, "write", "frame log"),
    ]
    with ExitStack() as patches:
        for owner, name, part in owners:
            patches.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        yield spent


def _end_to_end(models: dict[str, VideoMambaDepth], options: argparse.Namespace, clock: _Clock) -> list[dict[str, Any]]:
    """Stream a file to a file, all models in turn: ms per frame, over the teacher, and each part's share."""
    times: dict[str, list[float]] = {name: [] for name in models}
    parts: dict[str, dict[str, float]] = {}
    source = FileSource(options.video, max_frames=options.frames_of_video)
    for model in models.values():
        model.encoder.short_side = options.sizes[0]
    for _ in range(options.repeats):
        for name, model in models.items():
            stream = DepthStream(model, device=options.device, precision=options.dtype, resets=ResetPolicy())
            with parts_timed(stream, clock) as spent:
                whole, num_frames = _file_to_file(stream, source, clock)
            spent["decode, close files"] = whole - sum(spent.values())
            times[name].append(whole / num_frames)
            parts[name] = dict(spent)
    first = next(iter(source)).rgb.shape
    return [
        {
            "video": f"{first[1]}x{first[0]}",
            "model": name,
            "ms": median(values),
            "over_teacher": _over(values * 2, times["teacher"] * 2),
            "shares": _as_shares(parts[name]),
            "network": sum(_as_shares(parts[name]).get(part, 0.0) for part in NETWORK),
        }
        for name, values in times.items()
    ]


def _file_to_file(stream: DepthStream, source: FileSource, clock: _Clock) -> tuple[float, int]:
    """Return the milliseconds of a whole run, and its number of frames."""

    def infer(frames: Iterable[Frame]) -> Iterator[DepthFrame]:
        for frame in frames:
            depth = stream.step(frame.rgb, frame.timestamp_s)
            yield DepthFrame(frame.index, frame.pts, frame.time_base, frame.rgb, depth, stream.reset_reasons[0])

    with tempfile.TemporaryDirectory() as folder:
        painter = FramePainter(DepthColors(stream.depth_kind, ColorSettings()))
        sinks = [VideoSink(Path(folder) / "out.mp4", painter, source.fps), FrameLog(Path(folder) / "out.jsonl")]
        start = clock()
        report = run_pipeline(source, infer, sinks, overlap=False)
        return clock() - start, report.num_frames


def _random_frames(size: int, aspect: float, patch_px: int) -> list[np.ndarray]:
    """Return a few frames of the size that the model works in."""
    width = max(patch_px, round(size * aspect / patch_px) * patch_px)
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, width, 3), np.uint8) for _ in range(4)]


def _about(options: argparse.Namespace, clock: _Clock) -> dict[str, Any]:
    """Return machine, date, versions and settings."""
    return {
        "machine": torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "videomamba_depth": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "opencv": cv2.__version__,
        "threads": torch.get_num_threads(),
        "precision": options.dtype,
        "clock": clock.kind,
        "frames": options.frames,
        "models": options.checkpoint or f"{options.size}-sized encoder, random weights",
    }


def cpu_name() -> str:
    """Return the name of the CPU, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _peak_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def print_results(found: dict[str, Any]) -> None:
    """Print as tables of plain text."""
    print(", ".join(f"{key} {value}" for key, value in found["about"].items()))
    for rows, what in ((found["frames"], "size"), (found.get("end_to_end", []), "video")):
        if rows:
            print(
                f"\n{'px' if what == 'size' else 'file to file':16}{'':22}{'ms':>9}{'frames/s':>10}  over the teacher"
            )
        for row in rows:
            low, middle, high = row["over_teacher"]
            print(
                f"{row[what]!s:16}{row['model']:22}{row['ms']:9.1f}{1000 / row['ms']:10.2f}"
                f"  {middle:.3f} ({low:.3f} to {high:.3f})"
                + (f"  network {row['network']:.0%}" if "network" in row else "")
            )
    for row in (*found["parts"], *found.get("end_to_end", [])):
        shares = ", ".join(f"{part} {share:.1%}" for part, share in row["shares"].items())
        print(f"\n{row.get('size', row.get('video'))} {row['model']}: {shares}")
    print(f"\npeak memory of the process: {found['peak_mb']:.0f} MB")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--checkpoint", help="a student's folder; default: random weights")
    found.add_argument("--size", choices=tuple(SIZES), default="small", help="of the encoder with random weights")
    found.add_argument("--encoder", choices=tuple(VARIANTS), help="without a checkpoint: VideoMamba in the student")
    found.add_argument("--sizes", type=int, nargs="+", default=[266, 518], help="short sides in px")
    found.add_argument("--aspect", type=float, default=1.0, help="width over height of the frames")
    found.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--threads", type=int, default=1, help="CPU threads")
    found.add_argument("--frames", type=int, default=24, help="frames that are timed")
    found.add_argument("--warm-up", type=int, default=2, help="frames before them")
    found.add_argument("--video", type=Path, help="also time this file to a file, at the first of the sizes")
    found.add_argument("--frames-of-video", type=int, default=60, help="from its beginning")
    found.add_argument("--repeats", type=int, default=3, help="of the file to file run")
    found.add_argument("--output", type=Path, help="JSON file for the results")
    return found


def _parse() -> argparse.Namespace:
    return parser().parse_args()


if __name__ == "__main__":
    main()
