"""Export one step of a student to ONNX, and compare it with PyTorch in onnxruntime.

    videomamba-depth export runs/x/last depth.onnx                  # frames of the checkpoint's size, 3:4
    videomamba-depth export runs/x/last depth.onnx --size 266 350   # that size alone: what runtimes like best
    videomamba-depth export runs/x/last depth.onnx --int8           # also depth.int8.onnx

A student without motion (model.flow=null) is exported for frames of any size if none is given. One with motion holds
its optical flow as tensor operations ("inverse_search"), whatever estimator it was trained with.

State tensors are inputs and outputs; zeros start a stream. The size of the export is that of the frames that the model
sees: they are resized before, as examples/run_onnx.py does, which streams a video and needs nothing of this project.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from videomamba_depth.data.transforms import resize_images
from videomamba_depth.data.video.reader import iter_frames, probe_video
from videomamba_depth.export.onnx_model import NEAR, Difference, compare, export_onnx, quantize_int8
from videomamba_depth.models.checkpoint import TEACHER_PREFIX, load_student
from videomamba_depth.models.teacher_files import EMBEDDED_TEACHER
from videomamba_depth.models.videomamba_depth import VideoMambaDepth
from videomamba_depth.utils.arguments import named_path, path_argument, whole
from videomamba_depth.utils.device import use_threads
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.extras import require

_TOLERANCE = 1e-4  # of the depth range, float32: mean
_MAX_OFF = 1e-3  # share of pixels that may be off: where two matches fit equally well, rounding decides on the motion
_CLIP = EMBEDDED_TEACHER.with_name("clip.mp4")


def main(arguments: list[str] | None = None) -> None:
    """Export, compare, report."""
    args = _parse(arguments)
    _check(args)
    use_threads(args.threads)
    model = load_student(args.checkpoint, geometry=False if args.no_geometry else None)
    size = None if args.size is None else (args.size[0], args.size[1])
    if model.motion is not None and size is None:  # the levels of its flow depend on the size
        size = _default_size(model)
    export_onnx(model, args.output, size)
    what = f"{size[0]}x{size[1]} px" if size else f"any multiples of {model.encoder.patch_size} px"
    print(f"wrote {args.output} ({_megabytes(args.output)}), frames of {what}")
    shown = size or _default_size(model)
    difference = compare(model, args.output, _frames(args.video, shown, args.frames), torch.get_num_threads())
    print(_report("float32", difference, shown))
    if difference.off > _MAX_OFF or difference.mean > _TOLERANCE:
        raise UserError(f"the export differs from PyTorch by more than {NEAR:.0e} of the range; do not use it")
    if args.int8:
        target = args.output.with_suffix(".int8.onnx")
        quantize_int8(args.output, target)
        rough = compare(model, target, _frames(args.video, shown, args.frames), torch.get_num_threads())
        print(f"wrote {target} ({_megabytes(target)})\n{_report('int8', rough, shown)}")


def _check(args: argparse.Namespace) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "the export")
    _ = probe_video(args.video)
    if args.checkpoint.startswith(TEACHER_PREFIX):
        raise UserError(f"'{args.checkpoint}' is a bare teacher, which carries no state; give a student's folder")
    if args.output.is_dir():
        raise UserError(f"'{args.output}' is a folder; give the .onnx file to write")
    if not args.output.parent.is_dir():
        raise UserError(f"there is no folder '{args.output.parent}'; make it, or give another output")


def _default_size(model: VideoMambaDepth) -> tuple[int, int]:
    """Return a size to compare at, 3:4, near the checkpoint's."""
    side = model.encoder.short_side or 266
    return model.encoder.input_resolution(side, side * 4 // 3)


def _frames(video: Path, size: tuple[int, int], num_frames: int) -> Iterator[np.ndarray]:
    """Yield frames of a video, resized; it is repeated where it is short."""
    pictures = [resize_images(f.rgb[None], size)[0] for f in islice(iter_frames(video), num_frames)]
    return islice(cycle(pictures), num_frames)


def _report(name: str, d: Difference, size: tuple[int, int]) -> str:
    return (
        f"{name}, {d.num_frames} frames of {size[0]}x{size[1]}: depth differs from PyTorch by at most {d.largest:.1e}"
        f" of its range (mean {d.mean:.1e}, {d.off:.2%} of the pixels by more than {NEAR:.0e}), the state by"
        f" {d.state:.1e}; {d.ms:.1f} ms per frame in onnxruntime"
    )


def _megabytes(path: Path) -> str:
    parts = [path, path.with_name(path.name + ".data")]
    return f"{sum(p.stat().st_size for p in parts if p.exists()) / 1e6:.1f} MB"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=named_path, help="a student's folder, runs/NAME/last")
    parser.add_argument("output", type=path_argument, help="the .onnx file to write")
    size = "px; default: the checkpoint's, 3:4; any size without motion"
    parser.add_argument("--size", type=whole(14, 8192), nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    parser.add_argument(
        "--no-geometry", action="store_true", help="leave out the correction by parallax, which has no ONNX"
    )
    parser.add_argument("--int8", action="store_true", help="also write 8-bit matrix weights, and report the error")
    parser.add_argument("--frames", type=whole(1, 100_000), default=50, help="frames to compare on (default: 50)")
    parser.add_argument(
        "--video", type=path_argument, default=_CLIP, help="video to compare on (default: the shipped clip)"
    )
    parser.add_argument("--threads", type=whole(1, 1024), help="CPU threads; default: all cores")
    return parser.parse_args(arguments)


def run() -> None:
    """Run the command line."""
    with exit_on_user_error():
        main()


if __name__ == "__main__":
    run()
