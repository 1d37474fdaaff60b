"""Optical flow estimators side by side: end-point error, trust mask, warp error, frame size and time.

    python benchmarks/flow.py                              # worlds with exact flow, and times
    python benchmarks/flow.py --pairs DIR --clips DIR      # also pairs (img0.png, img1.png, flow_0to1.flo) and videos
    python benchmarks/flow.py --flows dis inverse_search --sizes 224 --worlds 2 --rounds 5

Flow names are those of `build_flow`; "+tensors" after one keeps the compiled kernel out, for the times. The first one
is what the others are compared with. Both directions of every pair are estimated and scored. Worlds are of `rooms` and
`courtyard`, from seeds that no training draws:

    EPE        end-point error in px on pixels that are seen in both frames; its paired change against the first flow in
               % with the standard error over worlds; > 1, > 3: share of pixels with a larger error, %
    precision  share of the pixels that pass the forward-backward check which are seen in the other frame, %
    recall     share of the pixels that are seen in the other frame which pass, %
    right      precision and recall again, for pixels that are seen and whose error is under 1 px
    warp       mean |luma − luma warped along the flow|, of 255, on pixels that stay inside, and on those that pass

Times are CPU times of one thread, both directions of a pair, in turn in one process; the ratio is that of each call to
the first flow's just before it: median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videomamba_depth.data.synthetic import WorldConfig, iter_video
from videomamba_depth.data.video.find import find_sources
from videomamba_depth.data.video.reader import iter_frames
from videomamba_depth.flow.estimators import FlowEstimator, InverseSearchFlow, both_ways, build_flow
from videomamba_depth.utils.arguments import path_argument, whole
from videomamba_depth.utils.errors import UserError, exit_on_user_error
from videomamba_depth.utils.flow_utils import backward_warp, consistency_mask

FIRST_SEED = 7_820_000_001  # training draws below 2³¹
MOTIONS = ("moving", "fast", "static")
FAMILIES = ("rooms", "courtyard")
_PAIR_DISTANCE = 4  # frames between the pairs that are scored of a world
_FLO_TAG = 202021.25
Scores = dict[str, dict[str, list[list[float]]]]  # by setting, then flow: one list of numbers per pair


@dataclass(frozen=True)
class Pair:
    """Two frames [1,3,H,W] in [0,1] with exact flow [1,2,H,W] px and visibility [1,1,H,W] bool, there and back."""

    setting: str
    world: int
    frames: tuple[Tensor, Tensor]
    flows: tuple[Tensor, Tensor]
    seen: tuple[Tensor, Tensor]


def main() -> None:
    """Measure and print."""
    args = _parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    timed = {name: _build(name) for name in args.flows}
    flows = {name: flow for name, flow in timed.items() if "+" not in name}  # the kernel computes the same
    print(f"{_machine()}, torch {torch.__version__}, OpenCV {cv2.__version__}, one thread")
    results: dict[str, object] = {"machine": _machine(), "torch": torch.__version__, "opencv": cv2.__version__}
    for size in args.sizes:
        pairs = list(_world_pairs(size, args.worlds, args.world_pairs))
        results[f"worlds_{size}"] = _print_worlds(flows, pairs, size)
        results[f"halved_{size}"] = _print_halved(flows, pairs, size)
        if args.pairs:
            results[f"pairs_{size}"] = _print_flow_pairs(flows, args.pairs, size)
        if args.clips:
            results[f"clips_{size}"] = _print_clips(flows, args.clips, size, args.clip_pairs)
        results[f"times_{size}"] = _print_times(timed, pairs, size, args.rounds)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _build(name: str) -> FlowEstimator:
    base, plus, _ = name.partition("+tensors")
    flow = build_flow(base)
    if isinstance(flow, InverseSearchFlow):
        flow.compiled = not plus
    return flow


def _world_pairs(size: int, worlds: int, pairs: int) -> Iterator[Pair]:
    """Yield pairs of `worlds` worlds per motion and family, 4:5 frames of `size` px."""
    for motion in MOTIONS:
        for family in FAMILIES:
            for index in range(worlds):
                length = _PAIR_DISTANCE * (pairs - 1) + 2
                config = WorldConfig(size, size * 5 // 4, length, camera_motion=motion, family=family)  # type: ignore[arg-type]
                seed = FIRST_SEED + 10_000 * MOTIONS.index(motion) + index
                frames = list(iter_video(seed, config))
                for t in range(1, length, _PAIR_DISTANCE):
                    now, before = frames[t], frames[t - 1]
                    yield Pair(
                        motion,
                        2 * seed + FAMILIES.index(family),
                        (_tensor(now.rgb) / 255, _tensor(before.rgb) / 255),
                        (_tensor(now.flow_bwd), _tensor(before.flow_fwd)),
                        (_tensor(now.visible_bwd[..., None]) > 0, _tensor(before.visible_fwd[..., None]) > 0),
                    )


def _print_worlds(flows: dict[str, FlowEstimator], pairs: list[Pair], size: int) -> dict[str, object]:
    scores: Scores = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        for name, flow in flows.items():
            forth, back = both_ways(flow, *pair.frames)
            each = [
                _score(estimated, other, exact, seen)
                for estimated, other, exact, seen in zip(
                    (forth, back), (back, forth), pair.flows, pair.seen, strict=True
                )
            ]
            for setting in (pair.setting, "all"):
                scores[setting][name].append([pair.world, *np.mean(each, axis=0)])
    print(f"\nworlds, {size} px: {len(pairs)} pairs of {len({p.world for p in pairs})} worlds")
    print(f"{'':8}{'':24}   EPE  change %       > 1   > 3   precision recall   right: precision recall")
    for setting in ("all", *MOTIONS):
        for name, rows in scores[setting].items():
            epe, over_1, over_3, *mask = np.mean(rows, axis=0)[1:]
            change, error = _paired_change(rows, scores[setting][next(iter(flows))])
            print(
                f"{setting:8}{name:24} {epe:5.3f} {change:+6.1f} ±{error:4.1f}   {over_1:5.2f} {over_3:5.2f}"
                f"   {mask[0]:8.1f} {mask[1]:6.1f}   {mask[2]:16.1f} {mask[3]:6.1f}"
            )
    return {k: {name: np.mean(rows, axis=0)[1:].tolist() for name, rows in v.items()} for k, v in scores.items()}


def _score(flow: Tensor, back: Tensor, exact: Tensor, seen: Tensor) -> list[float]:
    error = (flow - exact).norm(dim=1, keepdim=True)
    trusted, right = consistency_mask(flow, back), seen & (error < 1)
    shares = [error[seen] > 1, error[seen] > 3, seen[trusted], trusted[seen], right[trusted], trusted[right]]
    return [float(error[seen].mean()), *(100 * float(share.float().mean()) for share in shares)]


def _paired_change(rows: list[list[float]], base: list[list[float]]) -> tuple[float, float]:
    """Return the change of the mean EPE in % of the base's, and its standard error over worlds."""
    mean = float(np.mean([row[1] for row in base]))
    by_world: dict[float, list[float]] = defaultdict(list)
    for row, other in zip(rows, base, strict=True):
        by_world[row[0]].append(100 * (row[1] - other[1]) / mean)
    changes = [float(np.mean(values)) for values in by_world.values()]
    spread = statistics.stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    return float(np.mean(changes)), spread


def _print_halved(flows: dict[str, FlowEstimator], pairs: list[Pair], size: int) -> dict[str, list[float]]:
    """Print the error of flow that is estimated at the frames' size and at half of it, both in px of half the size."""
    print(f"\nworlds, estimated at {size} px and at {size // 2} px: EPE in px of {size // 2} px frames")
    result = {}
    for name, flow in flows.items():
        errors = []
        for pair in pairs:
            halves = [F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True) for x in pair.frames]
            whole = both_ways(flow, *pair.frames)
            for small, large, exact, seen in zip(both_ways(flow, *halves), whole, pair.flows, pair.seen, strict=True):
                large, exact = F.avg_pool2d(large, 2) / 2, F.avg_pool2d(exact, 2) / 2
                inside = F.avg_pool2d(seen.float(), 2)[:, 0] == 1
                errors.append([float((x - exact).norm(dim=1)[inside].mean()) for x in (large, small)])
        result[name] = np.mean(errors, axis=0).tolist()
        print(f"{name:32} {result[name][0]:.3f}  {result[name][1]:.3f}")
    return result


def _print_flow_pairs(flows: dict[str, FlowEstimator], folder: Path, size: int) -> dict[str, list[float]]:
    paths = sorted(folder.glob("*/flow_0to1.flo"))
    if not paths:
        raise UserError(f"no */flow_0to1.flo in {folder}")
    print(f"\nflow pairs, short side {size} px: EPE of all pixels, hidden ones too; of trusted ones; share trusted, %")
    result = {}
    for path in paths:
        exact = _shrunk_flow(_tensor(_read_flo(path)), size)
        a, b = (_shrunk(_tensor(_read_image(path.parent / f"img{i}.png")) / 255, size) for i in (0, 1))
        for name, flow in flows.items():
            forth, back = both_ways(flow, a, b)
            error, trusted = (forth - exact).norm(dim=1, keepdim=True), consistency_mask(forth, back)
            row = [float(error.mean()), float(error[trusted].mean()), 100 * float(trusted.float().mean())]
            result[f"{path.parent.name} {name}"] = row
            print(f"{path.parent.name:24} {name:24} {row[0]:6.3f} {row[1]:6.3f} {row[2]:5.1f}")
    return result


def _print_clips(flows: dict[str, FlowEstimator], folder: Path, size: int, pairs: int) -> dict[str, list[float]]:
    sources = find_sources(folder)
    print(
        f"\nclips, short side {size} px, {len(sources)} clips x {pairs} pairs: warp error inside, trusted; trusted, %"
    )
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for source in sources:
        frames = [_shrunk(_tensor(f.rgb) / 255, size) for f in islice(iter_frames(source.path), pairs + 1)]
        for before, now in pairwise(frames):
            for name, flow in flows.items():
                rows[name].append(_warp_error(now, before, *both_ways(flow, now, before)))
            rows["no flow"].append(_warp_error(now, before, *(torch.zeros_like(now[:, :2]),) * 2))
    result = {name: np.mean(values, axis=0).tolist() for name, values in rows.items()}
    for name, (inside, trusted, share) in result.items():
        print(f"{name:32} {inside:6.3f} {trusted:6.3f} {share:5.1f}")
    return result


def _warp_error(now: Tensor, before: Tensor, forth: Tensor, back: Tensor) -> list[float]:
    luma = [255 * (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]) for x in (now, before)]
    warped, inside = backward_warp(luma[1], forth)
    trusted, change = consistency_mask(forth, back), (luma[0] - warped).abs()
    return [float(change[inside].mean()), float(change[trusted].mean()), 100 * float(trusted.float().mean())]


def _print_times(flows: dict[str, FlowEstimator], pairs: list[Pair], size: int, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in flows}
    for i in range(-1, rounds):
        pair = pairs[i * 7 % len(pairs)]
        for name, flow in flows.items():
            start = time.process_time()
            both_ways(flow, *pair.frames)
            if i >= 0:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    print(f"\ntime of a pair both ways, {size} px, {rounds} rounds: ms and ratio to {next(iter(flows))}, quartiles")
    first = np.array(next(iter(seconds.values())))
    result = {}
    for name, values in seconds.items():
        low, ratio, high = np.percentile(np.array(values) / first, [25, 50, 75])
        result[name] = [1000 * statistics.median(values), float(ratio), float(low), float(high)]
        print(f"{name:32} {result[name][0]:7.1f}   {ratio:5.2f} ({low:.2f} to {high:.2f})")
    return result


def _tensor(array: np.ndarray) -> Tensor:
    """[H,W,C] → [1,C,H,W] float32."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None].float()


def _shrunk(frame: Tensor, size: int) -> Tensor:
    ratio = min(1.0, size / min(frame.shape[-2:]))
    shape = [round(side * ratio) for side in frame.shape[-2:]]
    return F.interpolate(frame, shape, mode="bilinear", antialias=True)


def _shrunk_flow(flow: Tensor, size: int) -> Tensor:
    smaller = _shrunk(flow, size)
    unit = torch.tensor([smaller.shape[-1] / flow.shape[-1], smaller.shape[-2] / flow.shape[-2]])
    return smaller * unit.view(1, 2, 1, 1)


def _read_image(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise UserError(f"{path} cannot be read as an image")
    return image[..., ::-1]


def _read_flo(path: Path) -> np.ndarray:
    """Read Middlebury's format: a tag, width, height, then u and v interleaved, float32."""
    raw = path.read_bytes()
    width, height = np.frombuffer(raw, "<i4", 2, offset=4)
    if np.frombuffer(raw, "<f4", 1)[0] != np.float32(_FLO_TAG) or len(raw) != 12 + 8 * width * height:
        raise UserError(f"{path} is not a .flo file")
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2).copy()


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["dis", "dis_fast", "inverse_search", "inverse_search_fine"]
    names += [f"{name}+tensors" for name in names if name.startswith("inverse")]
    parser.add_argument("--flows", nargs="+", default=names, help="the first one is what the others are compared with")
    parser.add_argument("--sizes", type=whole(32, 4096), nargs="+", default=[112, 224], help="short sides in px")
    parser.add_argument("--worlds", type=whole(1), default=4, help="per motion and family")
    parser.add_argument("--world-pairs", type=whole(1), default=3, help="of each")
    parser.add_argument("--pairs", type=path_argument, help="folder of folders with exact flow")
    parser.add_argument("--clips", type=path_argument, help="folder of videos")
    parser.add_argument("--clip-pairs", type=whole(1), default=11, help="from the beginning of each clip")
    parser.add_argument("--rounds", type=whole(1), default=20, help="of timing")
    parser.add_argument("--output", type=path_argument, help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
