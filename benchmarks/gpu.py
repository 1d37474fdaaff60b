"""Everything that a CUDA GPU has to show, in under eight minutes: is it right, then how fast, in one table.

    python benchmarks/gpu.py --output gpu.json
    PYTHONPATH=.:kernels python benchmarks/gpu.py --output gpu.json     # of a checkout that is not installed
    python benchmarks/gpu.py --dry-run                # every line of it on a CPU, at tiny sizes: no numbers to quote

Needs PyTorch, Triton, transformers and OpenCV; no video, no network, no compiler. What is checked first, against the
CPU: the scan's kernels (every discretization, outputs, states, all gradients, in float64), optical flow, streams of the
recommended recipe with and without geometry and as one CUDA graph, and a training step. Then times: of the scan over
the bytes that it must move at the copy bandwidth of this GPU, of flow, of a training step, and of streamed frames
(teacher, recipe, recipe with geometry, in turn, random weights), with kernels launched, waits, the share of the time
that the GPU works, and memory. A part that fails or does not fit in `--minutes` is named and the others go on; the JSON
is written after each. Exit status 1 when something is not right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench
from gpu_checks import CHECKS
from gpu_times import measure_ceilings, time_flow, time_graph, time_scan, time_streams, time_training

PEER = ("model", "size", "fps", "gpu", "what", "source")
PEERS = [
    ("FlashDepth", "2044x1148", 24.0, "A100", "model", "Chou et al., arXiv 2504.07093, abstract"),
    (
        "Video Depth Anything, Small",
        "518x518",
        1000 / 7.5,
        "A100",
        "32 frames at once, fp16",
        "its repository's README",
    ),
    ("Video Depth Anything, Large", "518x518", 1000 / 14, "A100", "32 frames at once, fp16", "its repository's README"),
    ("Video Depth Anything", "924x518", 24.0, "not named", "32 frames at once", "arXiv 2504.07093, figure 1"),
    ("CUT3R", "512x288", 14.0, "not named", "streaming", "arXiv 2504.07093, figure 1"),
    ("DepthCrafter", "1024x576", 2.1, "not named", "110 frames at once", "arXiv 2504.07093, figure 1"),
    ("oVDA, Small encoder", "", 42.0, "A100", "streaming", "Feiden et al., arXiv 2510.09182, abstract"),
]
"""Frames/s as others have published them, of frames of width x height, each by its own protocol."""


def main() -> int:
    """Check, measure, print; return 1 where something is not right."""
    options = _parse()
    if not options.dry_run and not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA GPU here; --dry-run runs everything on the CPU at tiny sizes\n")
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bench = Bench(options.dry_run, options.minutes, options.output)
    print(", ".join(f"{key} {value}" for key, value in bench.found["about"].items()))
    bench.found["peers"] = [dict(zip(PEER, row, strict=True)) for row in PEERS]
    for name, (needs_s, run) in parts(bench).items():
        bench.run(name, needs_s, run)
    print(table(bench.found))
    wrong = [row["what"] for row in bench.found["checks"] if not row["ok"]] + list(bench.found["failed"])
    print(f"not right: {'; '.join(wrong)}" if wrong else f"all {len(bench.found['checks'])} checks passed")
    return int(bool(wrong))


def parts(bench: Bench) -> dict[str, tuple[float, Callable[[], None]]]:
    """Return what is done, in order: the seconds that have to be left for it, and the call."""
    sizes = bench.sizes
    small, middle, precision = sizes.encoders[0], sizes.frames_px[-2:][0], sizes.precision
    found: dict[str, tuple[float, Callable[[], None]]] = {"ceilings": (5, partial(measure_ceilings, bench))}
    found |= {f"check of {name}": (5, partial(check, bench)) for name, check in CHECKS.items()}
    found |= {"times of the scan": (20, partial(time_scan, bench)), "times of flow": (10, partial(time_flow, bench))}
    streams = {
        f"times of streams, {encoder}, {size[1]}x{size[0]}": (
            20.0,
            partial(time_streams, bench, encoder, size, precision),
        )
        for encoder in sizes.encoders
        for size in sizes.frames_px
    }
    found |= {name: part for name, part in streams.items() if f" {small}," in name}
    if precision != "float32":
        found["times of streams, float32"] = (20, partial(time_streams, bench, small, middle, "float32"))
    several = partial(time_streams, bench, small, middle, precision, sizes.videos)
    found["times of several videos at once"] = (20, several)
    found["times of training"] = (20, partial(time_training, bench))
    found["one graph per frame"] = (120, partial(time_graph, bench))
    return found | streams


def table(found: dict[str, Any]) -> str:
    """Return what was measured as one table of plain text."""
    lines = [
        "",
        f"{'streams':44}{'ms':>9}{'frames/s':>10}{'over teacher':>20}{'busy':>6}{'launch':>8}{'waits':>7}{'MB':>8}",
    ]
    for row in found.get("streams", []):
        low, middle, high = row["over_teacher"]
        videos = f" x{row['videos']}" if row["videos"] > 1 else ""
        name = f"{row['encoder']} {row['size']} {row['precision']}{videos} {row['model']}"
        lines.append(
            f"{name:44}{row['ms']:9.2f}{row['frames_per_s']:10.1f}{f'{middle:.2f} ({low:.2f} to {high:.2f})':>20}"
            f"{row['busy']:6.0%}{row['launches']:8}{row['waits']:7}{row['peak_mb']:8.0f}"
        )
    for row in found.get("graph", []):
        low, middle, high = row["over_called"]
        name = f"{row['encoder']} {row['size']} one frame, {row['model']}"
        lines.append(
            f"{name:44}{row['ms']:9.2f}{1000 / row['ms']:10.1f}{f'{middle:.2f} ({low:.2f} to {high:.2f})':>20}"
            f"{'':6}{row['launches']:8}{row['waits']:7}"
        )
    lines += ["", "as published, each by its own protocol:"]
    for peer in found["peers"]:
        lines.append(
            f"{peer['model'] + ' ' + peer['size']:44}{'':9}{peer['fps']:10.1f}"
            f"  {peer['gpu']}, {peer['what']}; {peer['source']}"
        )
    lines += ["", f"{'scan, bfloat16':44}{'us':>9}{'floor us':>10}{'over':>8}"]
    for row in found.get("scan", []):
        name = f"{row['call']} {row['T']}x{row['D']}, L = {row['L']}"
        lines.append(f"{name:44}{row['us']:9.1f}{row['floor_us']:10.1f}{row['over']:8.2f}")
    lines += ["", f"{'flow of a pair, both ways':44}{'called us':>9}{'graph us':>10}{'launch':>8}"]
    for row in found.get("flow", []):
        lines.append(f"{row['size']:44}{row['called_us']:9.0f}{row['graph_us']:10.0f}{row['launches']:8}")
    for row in found.get("training", []):
        split = ", ".join(f"{name} {row[name + '_ms']:.1f}" for name in ("labels", "forward", "backward", "optimizer"))
        lines += [
            "",
            f"training step, {row['encoder']}, {row['frames']} frames of {row['size']}: {row['step_ms']:.1f} ms",
        ]
        lines.append(f"  ({split}), {row['peak_mb']:.0f} MB")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="what does not fit any more is left out")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at tiny sizes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
