"""Offline targets beside the raw ones in the teacher cache; `precompute_stabilized` makes them.

    <cache root>/<group of a video>/
        stabilised        float16 [F,h,w]   like `depth`, stabilized or geometric, / stabilised_scale
        target_static     bool    [F,h,w]   like `static`, of the same flow; caches from before there was it lack it
        stabilised_digest uint8 [chunks,32] like `chunk_digest`
        stabilised_scale  float32 [chunks]  0 until the chunk is whole on disk, then its factor
        attributes        stabilised: the `StabilizeKey`, and in it `static_masks`, the `StaticKey`, where there are

Stabilizing looks to both sides over a whole clip: a long video is treated in blocks of `BLOCK_CHUNKS` chunks, each with
`MARGIN_FRAMES` more frames at either end, which bounds memory. Flow and frames are those of the stored size, depth is
the cached one. A block is a function of the video and the raw cache alone, so that running again gives the same bytes.
What differs from treating the video as one clip: the scale and shift of its frames, and the geometry,
are solved per block, and each block's mean scale and shift are those of its own frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from videomamba_depth.data.labels.cache_format import (
    RAW,
    STABILIZED,
    STATIC_MASKS,
    TARGET_STATIC,
    ChunkError,
    ChunkWriter,
    StaticKey,
    StoredLabels,
    TeacherKey,
    create_arrays,
    group_difference,
    open_group,
)
from videomamba_depth.data.labels.cache_server import server_errors
from videomamba_depth.data.labels.geometry import geometric_clip
from videomamba_depth.data.labels.stabilize import stabilize_clip
from videomamba_depth.data.transforms import resize_images
from videomamba_depth.data.video.find import VideoSource
from videomamba_depth.data.video.reader import iter_frames
from videomamba_depth.flow.clip_motion import static_mask
from videomamba_depth.flow.estimators import FlowEstimator, PairsOnce
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import choice, ranged

BLOCK_CHUNKS = 4
MARGIN_FRAMES = 24


class OfflineTarget(Protocol):
    """Anything that makes a clip's targets [N,1,H,W] of the teacher's depth [N,1,H,W] and the clip [N,3,H,W]."""

    def __call__(
        self, depth: Tensor, clip: Tensor, flow: FlowEstimator, *, radius: int, sigma: float, depth_kind: DepthKind
    ) -> Tensor: ...


OFFLINE_TARGETS: dict[str, OfflineTarget] = {"stabilized": stabilize_clip, "geometry": geometric_clip}
"""By the names that `target` has for them."""


@dataclass(frozen=True)
class TargetSettings:
    """What the student's depth is compared with; settings that training and the precomputing have in common.

    Attributes:
        target: "raw", the teacher's depth frame by frame; "consistent", the same of a teacher that does not flicker; or
            what `OFFLINE_TARGETS` makes of it over a clip.
        target_radius, target_sigma: frames to either side that an offline target looks at, and their Gaussian's std.
    """

    target: str = choice("raw", "consistent", *OFFLINE_TARGETS, default="raw")
    target_radius: int = ranged(1, 1000, 8)
    target_sigma: float = ranged(0, 1000, 5.0, open="low")

    @property
    def is_offline(self) -> bool:
        """Whether something is made of the teacher's depth over a clip."""
        return self.target in OFFLINE_TARGETS


@dataclass(frozen=True)
class StabilizeKey:
    """What decides offline targets, given the raw ones.

    radius, sigma: frames to either side, and their Gaussian's std. target: of `OFFLINE_TARGETS`.
    """

    radius: int
    sigma: float
    flow: str
    target: str = "stabilized"

    def difference(self, stored: Mapping[str, Any]) -> str:
        """Name the first field in which what is stored does not fit; "" if it fits."""
        for name, wanted in asdict(self).items():
            found = stored.get(name, "stabilised" if name == "target" else None)  # caches before there was another
            found = "stabilized" if found == "stabilised" else found  # as version 0.1.0 spelled it
            if found != wanted:
                return f"{name} is {found}, wanted {wanted}"
        return ""


def block_range(block: int, chunk_frames: int, num_frames: int) -> tuple[range, range]:
    """Return (frames of a block, the frames around it that it is worked out from)."""
    size = BLOCK_CHUNKS * chunk_frames
    start, stop = block * size, min((block + 1) * size, num_frames)
    return range(start, stop), range(max(0, start - MARGIN_FRAMES), min(num_frames, stop + MARGIN_FRAMES))


def precompute_stabilized(
    videos: list[VideoSource],
    cache_root: str | Path,
    key: TeacherKey,
    wanted: StabilizeKey,
    flow: FlowEstimator,
    *,
    static: StaticKey | None = None,
    progress: bool = True,
) -> int:
    """Add stabilized targets to every finished video of a cache; return how many frames were worked out.

    Args:
        static: also store static masks, found with the same flow; a video that was begun without goes on without.

    Raises:
        UserError: the cache holds other stabilized targets or masks, or raw labels of another teacher, or damaged ones.
    """
    frames = 0
    for source in tqdm(videos, desc="stabilized depth", unit="video", disable=not progress):
        with server_errors(cache_root):
            group = _open(cache_root, source.video_id, key, wanted, static)
        if group is None:
            continue
        chunk_frames, num_frames = group["depth"].chunks[0], group["depth"].shape[0]
        writer = ChunkWriter(group, STABILIZED)
        for block in sorted({chunk // BLOCK_CHUNKS for chunk in writer.missing}):
            inner, outer = block_range(block, chunk_frames, num_frames)
            try:
                maps = _stabilize(source, group, outer, key, wanted, flow)
            except ChunkError as error:
                raise UserError(
                    f"the labels of {source.video_id} in the teacher cache {cache_root} are damaged ({error}); delete"
                    " its folder there and run again"
                ) from error
            frames += len(inner)
            for start in range(inner.start, inner.stop, chunk_frames):
                stop = min(start + chunk_frames, inner.stop)
                part = {name: values[start - outer.start : stop - outer.start] for name, values in maps.items()}
                with server_errors(cache_root):
                    writer.write(start // chunk_frames, part.pop(STABILIZED), part)
    return frames


def _open(
    cache_root: str | Path, video_id: str, key: TeacherKey, wanted: StabilizeKey, static: StaticKey | None
) -> Any:
    """Return a video's group with the arrays for stabilized targets, or None if its raw labels are not finished."""
    try:
        group = open_group(cache_root, video_id, "r+")
    except (FileNotFoundError, KeyError):
        return None
    problem = group_difference(dict(group.attrs), key)
    stored = group.attrs.get(STABILIZED)
    if not problem and stored is not None:
        problem = wanted.difference(stored)
        if not problem and static is not None and STATIC_MASKS in stored:
            problem = static.difference(stored[STATIC_MASKS])
    if problem:
        raise UserError(
            f"teacher cache {cache_root}, stabilized targets of {video_id}: {problem};"
            " use the same values, or another cache folder"
        )
    if "chunk_scale" not in group or (group["chunk_scale"][:] == 0).any():
        return None
    depth = group["depth"]
    if stored is None:
        stored = asdict(wanted) | ({} if static is None else {STATIC_MASKS: asdict(static)})
        group.attrs[STABILIZED] = stored
    names = (STABILIZED, *([TARGET_STATIC] if STATIC_MASKS in stored else []))
    create_arrays(group, STABILIZED, dict.fromkeys(names, depth.shape), depth.chunks[0])
    return group


def _stabilize(
    source: VideoSource, group: Any, frames: range, key: TeacherKey, wanted: StabilizeKey, flow: FlowEstimator
) -> dict[str, np.ndarray]:
    """Return stabilized depth, float32 [N,h,w], of a block with its margins, and its static masks where wanted."""
    labels = StoredLabels(group).read(RAW, np.asarray(frames))
    assert labels is not None  # `_open` has seen to it
    raw = labels["depth"]
    small = []
    for frame in iter_frames(source.path, start=frames.start):
        small.append(resize_images(frame.rgb[None], raw.shape[1:]))
        if len(small) == len(frames):
            break
    clip: Tensor = torch.from_numpy(np.concatenate(small)).permute(0, 3, 1, 2).float() / 255
    pairs = PairsOnce(flow)  # the target and the masks ask for the same pairs
    depth = OFFLINE_TARGETS[wanted.target](
        torch.from_numpy(raw)[:, None],
        clip,
        pairs,
        radius=wanted.radius,
        sigma=wanted.sigma,
        depth_kind=DepthKind(key.depth_kind),
    )
    lost = np.isfinite(raw) & ~np.isfinite(depth[:, 0].numpy())
    if lost.any():
        first = frames.start + int(lost.any((1, 2)).argmax())
        raise UserError(f"stabilized depth of {source.video_id} is not finite from frame {first} on")
    maps = {STABILIZED: depth[:, 0].numpy()}
    masks = group.attrs[STABILIZED].get(STATIC_MASKS)
    if masks is not None:
        static = static_mask(clip, pairs, masks["max_motion_px"], masks["max_rgb_change"])
        maps[TARGET_STATIC] = static[:, 0].numpy()
    return maps
