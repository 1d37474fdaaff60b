"""Speed of a stream: the student beside the bare teacher, frame by frame in turn in one process.

    python benchmarks/streaming.py --dtype bfloat16                    # a Small-sized encoder with random weights
    python benchmarks/streaming.py --encoder t                         # a VideoMamba in the student, beside it
    python benchmarks/streaming.py --parts                             # what each part of the student costs
    python benchmarks/streaming.py --checkpoint runs/x/last --sizes 266 --video clip.mp4

Per size a table: latency of a frame (p50, p95, p99) of the teacher, of the student and of its stages (encode, temporal
part, decode), the ratio of the medians, and frames per second. With `--parts` instead: a whole streamed frame of the
teacher, of a student with the temporal part alone, with motion as well, with the output refiner as well, and of the
optical flow by itself. With `--video`, also from file to file, over what the
model alone does on the same frames. Random weights serve for timing: nothing here depends on the values.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from videomamba_depth.data.video.reader import Frame
from videomamba_depth.models.checkpoint import bare_teacher, load_student, load_teacher
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.encoder_video_mamba import VARIANTS, VideoMambaEncoder, VideoMambaSpec
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.streaming.depth_frame import DepthFrame
from videomamba_depth.streaming.pipeline import run_pipeline
from videomamba_depth.streaming.sinks.video import FramePainter, VideoSink
from videomamba_depth.streaming.sources.files import FileSource
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.streaming.timing import StageTimes
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.device import autocast

_PATCH = 14

T = TypeVar("T")


@dataclass
class Row:
    """Latencies of one thing that is measured."""

    name: str
    times: StageTimes = field(default_factory=StageTimes)

    def record(self) -> dict[str, float | str]:
        """Return what is reported, in ms."""
        p50, p95, p99 = self.times.percentiles_ms()
        return {"what": self.name, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "frames_per_s": 1000 / max(p50, 1e-9)}


def small_models(variant: str | None) -> tuple[VideoMambaDepth, DepthAnythingEncoder]:
    """Return a student and a teacher of the size of Depth Anything V2 Small, random weights.

    The student's encoder is the teacher's, or a VideoMamba of `variant`.
    """
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=_PATCH,
        out_indices=[3, 6, 9, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=384,
        patch_size=_PATCH,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )
    encoder = DepthAnythingEncoder(DepthAnythingForDepthEstimation(config).eval(), "random Small-sized encoder")
    own: DepthAnythingEncoder | VideoMambaEncoder = encoder
    if variant is not None:
        own = VideoMambaEncoder.from_spec(VideoMambaSpec(variant), encoder.channels, encoder.depth_kind)
    return VideoMambaDepth(own, encoder.head, TemporalSpec()).eval(), encoder


def main() -> None:
    """Measure and print."""
    arguments = _parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.checkpoint:
        student = load_student(arguments.checkpoint)
        own = student.encoder
        encoder = own if isinstance(own, DepthAnythingEncoder) else load_teacher(arguments.checkpoint)
    else:
        student, encoder = small_models(arguments.encoder)
    teacher = bare_teacher(encoder)
    results: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(arguments)}
    for size in arguments.sizes:
        student.encoder.short_side = encoder.short_side = size
        measure = _measure_parts if arguments.parts else _measure_models
        rows = measure(student, teacher, size, arguments)
        results[f"size_{size}"] = [row.record() for row in rows]
        _print_table(f"{size} px, {arguments.dtype}, {arguments.device}", rows)
    if arguments.video:
        student.encoder.short_side = arguments.sizes[0]
        results["end_to_end"] = _measure_end_to_end(student, arguments)
    results["peak_mb"] = _peak_mb(arguments.device)
    print(f"peak memory of the process: {results['peak_mb']:.0f} MB")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _measure_models(
    student: VideoMambaDepth, teacher: VideoMambaDepth, size: int, arguments: argparse.Namespace
) -> list[Row]:
    """Time teacher and student in turn, frame by frame, so that whatever else the machine does hits both alike."""
    options = {"device": arguments.device, "precision": arguments.dtype, "resolution": "model"}
    streams = [DepthStream(teacher, **options), DepthStream(student, **options)]
    names = ("teacher", "student", "  encode", "  temporal part", "  decode")
    rows = [Row(name) for name in names]
    frames = _random_frames(size, arguments.aspect)
    for index in range(-arguments.warm_up, arguments.frames):
        frame = next(frames)
        for row, stream in zip(rows, streams, strict=False):
            _timed(row, index, streams[0].device, partial(stream.step, frame))
        _time_stages(rows[2:], index, streams[1], frame)
    return rows


def _measure_parts(
    student: VideoMambaDepth, teacher: VideoMambaDepth, size: int, arguments: argparse.Namespace
) -> list[Row]:
    """Time whole frames of the teacher and of students with one part more each, and the flow, in turn."""
    encoder, head = student.encoder, student.head
    moving = VideoMambaDepth(encoder, head, TemporalSpec(), motion=MotionSpec()).eval()
    refining = VideoMambaDepth(encoder, head, TemporalSpec(), motion=MotionSpec(), output=OutputSpec()).eval()
    still = VideoMambaDepth(encoder, head, TemporalSpec(), output=OutputSpec()).eval()
    models = {
        "teacher": teacher,
        "+ temporal": student,
        "+ motion": moving,
        "+ output": refining,
        "output, still": still,
    }
    options = {"device": arguments.device, "precision": arguments.dtype, "resolution": "model"}
    streams = {name: DepthStream(model, **options) for name, model in models.items()}
    rows = {name: Row(name) for name in (*models, "flow alone")}
    frames = _random_frames(size, arguments.aspect)
    for index in range(-arguments.warm_up, arguments.frames):
        frame = next(frames)
        for name, stream in streams.items():
            _timed(rows[name], index, stream.device, partial(stream.step, frame))
        rgb = torch.from_numpy(frame).to(arguments.device).permute(2, 0, 1)[None, None].float() / 255
        states = streams["+ motion"].states
        assert states is not None
        assert moving.motion is not None
        estimate = partial(moving.motion, rgb, states.maps["frame"])
        _timed(rows["flow alone"], index, streams["teacher"].device, estimate)
    return list(rows.values())


@torch.inference_mode()
def _time_stages(rows: list[Row], index: int, stream: DepthStream, frame: np.ndarray) -> None:
    rgb = torch.from_numpy(frame).to(stream.device).permute(2, 0, 1)[None].float() / 255
    clip, size, model, states = rgb.unsqueeze(1), (rgb.shape[-2], rgb.shape[-1]), stream.model, stream.states
    assert states is not None
    with autocast(stream.device, stream.dtype):
        motion = None if model.motion is None else model.motion(clip, states.maps["frame"])[0]
        features = _timed(rows[0], index, stream.device, lambda: model.encode(clip))

        def refine() -> dict[str, torch.Tensor]:
            stepped = {
                name: scale(features[name], states.frame_index, states.layers[name], motion, states.memory)[0]
                for name, scale in model.temporal.items()
            }
            return {name: x.squeeze(1) for name, x in {**features, **stepped}.items()}

        refined = _timed(rows[1], index, stream.device, refine)
        _timed(rows[2], index, stream.device, lambda: model.head(refined, size))


def _timed(row: Row, index: int, device: torch.device, call: Callable[[], T]) -> T:
    """Run `call` and note its time, unless `index` is negative (warm-up)."""
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if index >= 0:
        row.times.add(time.perf_counter() - start)
    return result


def _measure_end_to_end(student: VideoMambaDepth, arguments: argparse.Namespace) -> dict[str, float]:
    """Stream a file to a file, and the same frames from memory to nowhere, in turn; compare frames per second."""
    stream = DepthStream(student, device=arguments.device, precision=arguments.dtype)
    source = FileSource(arguments.video, max_frames=arguments.frames)
    decoded = [frame.rgb for frame in source]
    stream.step(decoded[0])
    alone_s, whole_s, serial_s = [], [], []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        for rgb in decoded:
            stream.step(rgb)
        alone_s.append(time.perf_counter() - start)
        whole_s.append(_file_to_file(stream, source, overlap=True))
        serial_s.append(_file_to_file(stream, source, overlap=False))
    fps = {
        name: len(decoded) / float(np.median(seconds))
        for name, seconds in (("model_only", alone_s), ("end_to_end", whole_s), ("one_after_the_other", serial_s))
    }
    ratio = fps["end_to_end"] / fps["model_only"]
    height, width = decoded[0].shape[:2]
    print(f"\n{Path(arguments.video).name}, {width}x{height}, {len(decoded)} frames, H.264 side by side")
    print(
        f"frames/s: model alone {fps['model_only']:.2f}, file to file {fps['end_to_end']:.2f} ({ratio:.0%}),"
        f" without overlap {fps['one_after_the_other']:.2f}"
    )
    return {**fps, "end_to_end_over_model_only": ratio}


def _file_to_file(stream: DepthStream, source: FileSource, overlap: bool) -> float:
    def infer(frame: Frame) -> DepthFrame:
        depth = stream.step(frame.rgb)
        return DepthFrame(frame.index, frame.pts, frame.time_base, frame.rgb, depth)

    with tempfile.TemporaryDirectory() as folder:
        painter = FramePainter(DepthColors(stream.depth_kind, ColorSettings()))
        sink = VideoSink(Path(folder) / "out.mp4", painter, source.fps)
        return run_pipeline(source, partial(map, infer), [sink], overlap=overlap).wall_s


def _random_frames(size: int, aspect: float) -> Iterator[np.ndarray]:
    """Yield frames of the size that the model works in, a few in turn."""
    width = max(_PATCH, round(size * aspect / _PATCH) * _PATCH)
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 256, (size, width, 3), np.uint8) for _ in range(4)]
    while True:
        yield from pool


def _peak_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _print_table(title: str, rows: list[Row]) -> None:
    print(f"\n{title}\n{'':16} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'frames/s':>9} {'over teacher':>13}")
    teacher_ms = float(rows[0].record()["p50_ms"])
    for row in rows:
        record = row.record()
        ratio = float(record["p50_ms"]) / teacher_ms
        numbers = " ".join(f"{record[key]:8.1f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        print(f"{row.name:16} {numbers} {record['frames_per_s']:9.2f} {ratio:13.3f}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a student's folder; default: random weights of Small size")
    parser.add_argument("--encoder", choices=tuple(VARIANTS), help="without a checkpoint: VideoMamba in the student")
    parser.add_argument("--parts", action="store_true", help="time the student part by part instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[266, 392, 518], help="short sides in px")
    parser.add_argument("--aspect", type=float, default=1.0, help="width over height of the frames")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--frames", type=int, default=40, help="frames that are timed")
    parser.add_argument("--warm-up", type=int, default=3, help="frames before them")
    parser.add_argument("--video", help="also time this file to a file, at the first of the sizes")
    parser.add_argument("--repeats", type=int, default=3, help="of the file to file run")
    parser.add_argument("--output", help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
