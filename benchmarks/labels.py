"""What labels cost: frames per second of one worker, and bytes per hour of video, beside what 1,000 hours come to.

    python benchmarks/labels.py                                        # the embedded teacher, the clip that is shipped
    python benchmarks/labels.py --teacher depth-anything/Depth-Anything-V2-Small-hf --video clip.mp4 --device cuda
    python benchmarks/labels.py --flow --cache s3://bucket/try         # with flow and static masks, onto a server

Labels the video as `scripts/precompute_teacher_depth.py` does and adds up what was written. Wall time is that of
decoding, teacher and writing together; CPU time is of this process with all its threads, and says more on a machine
that is shared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import fsspec
import torch

from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.teacher_cache import TeacherKey
from videomamba_depth.data.video.find import find_sources
from videomamba_depth.flow.estimators import build_flow
from videomamba_depth.models.teachers import open_teacher
from videomamba_depth.utils.device import resolve_device

CLIP = Path(__file__).parents[1] / "videomamba_depth" / "assets" / "clip.mp4"
HOURS, FPS = 1000, 30


def main() -> None:
    """Measure and print."""
    options = _parse()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    teacher = open_teacher(options.teacher).to(device)
    key = TeacherKey.from_dict({**teacher.cache_key(), "input_size": options.short_side})
    sources = find_sources(options.video)
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or folder
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        summary = precompute_videos(
            sources,
            lambda rgb: teacher.predict_depth(rgb.to(device)).float(),
            key,
            cache,
            batch_frames=options.batch_frames,
            image_size=(options.short_side, options.short_side),
            flow=build_flow("dis", None, device=str(device)) if options.flow else None,
            progress=False,
        )
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        stored = _bytes_by_array(cache)
    frames = summary.frames
    if not frames:
        raise SystemExit("nothing was labelled: give a video that can be read, and a cache that does not hold it yet")
    per_hour = FPS * 3600
    print(f"{frames} frames, short side {options.short_side} px, {options.threads} threads, {device}")
    print(f"speed    {frames / wall_s:9.2f} frames/s    CPU time {cpu_s / frames:.4f} s per frame")
    for name, size in stored.most_common():
        share = size / frames
        print(f"stored   {name:20} {share:12.1f} bytes per frame {share * per_hour / 1e9:9.3f} GB per hour")
    total = sum(stored.values()) / frames
    print(f"{HOURS} hours at {FPS} frames/s: {HOURS * per_hour / 1e6:.0f} million frames")
    print(f"  {HOURS * per_hour / (frames / wall_s) / 3600:9.0f} worker hours at this speed")
    print(f"  {HOURS * per_hour * cpu_s / frames / 3600:9.0f} hours of CPU time")
    print(f"  {HOURS * per_hour * total / 1e12:9.2f} TB")


def _bytes_by_array(cache: str) -> Counter[str]:
    """Return the bytes of every array of a cache, by its name."""
    system, root = fsspec.core.url_to_fs(cache)
    sizes: Counter[str] = Counter()
    for path, about in system.find(root, detail=True).items():
        parts = path.removeprefix(root).strip("/").split("/")
        sizes[parts[1] if len(parts) > 2 else "attributes"] += about["size"]
    return sizes


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="embedded")
    parser.add_argument("--video", default=str(CLIP), help="a video, a folder or a list")
    parser.add_argument("--cache", help="folder or URL; default: a temporary folder")
    parser.add_argument("--short-side", type=int, default=252)
    parser.add_argument("--batch-frames", type=int, default=4)
    parser.add_argument("--flow", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
