"""Check a teacher cache against its own claims and, where given, against teacher and videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from videomamba_depth.data.labels.cache_format import (
    ARRAYS,
    RAW,
    STABILIZED,
    ChunkError,
    StorageLayout,
    TeacherKey,
    address_of,
    group_difference,
    group_name,
    read_chunk,
    zarr_library,
)
from videomamba_depth.data.labels.cache_server import list_names, local_root
from videomamba_depth.data.video.find import VideoSource, hash_source
from videomamba_depth.data.video.info import VideoReadError
from videomamba_depth.utils.errors import UserError


@dataclass
class VerifyReport:
    """videos, frames: what was read back whole; unfinished: ids with missing chunks; problems: one line per fault."""

    videos: int = 0
    frames: int = 0
    unfinished: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def merged(cls, parts: Iterable[VerifyReport]) -> VerifyReport:
        """Return one report of what several ranks have read."""
        whole = cls()
        for part in parts:
            whole.videos, whole.frames = whole.videos + part.videos, whole.frames + part.frames
            whole.unfinished, whole.problems = whole.unfinished + part.unfinished, whole.problems + part.problems
        return whole

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; an unfinished video is not wrong, running the precompute again finishes it."""
        return not self.problems


def verify_cache(
    cache_root: str | Path,
    *,
    key: TeacherKey | None = None,
    sources: Iterable[VideoSource] = (),
    rank: int = 0,
    world_size: int = 1,
) -> VerifyReport:
    """Read every chunk back and check format, shapes and digests, which cover every number that is stored.

    Args:
        cache_root: folder or URL.
        key: the teacher that it should be of; None skips that check.
        sources: videos to compare with the hashes in the cache, reading each file whole; missing ones are reported.
        rank, world_size: this process among all, which share the videos of the cache.

    Raises:
        UserError: there is no cache at `cache_root`.
    """
    report = VerifyReport()
    names = group_names(cache_root)
    by_name = {group_name(source.video_id): source for source in sources}
    if rank == 0:
        report.problems += [f"{s.video_id}: not in the cache" for name, s in by_name.items() if name not in names]
    for name in tqdm(names[rank::world_size], desc="verify cache", unit="video", disable=rank > 0):
        try:
            problem = _verify_group(name, _open_or_none(cache_root, name), key, by_name.get(name), report)
        except Exception as error:  # damage shows as whatever the codec in question raises
            problem = f"cannot be read ({' '.join(str(error).split())})"
        if problem:
            report.problems.append(f"{name}: {problem}")
    return report


def group_names(cache_root: str | Path) -> list[str]:
    """Return the names of a cache's groups, sorted, whether they can be read or not.

    Raises:
        UserError: there is no cache, or nothing in it; or its server cannot be reached.
    """
    root = local_root(cache_root)
    if root is not None and not root.is_dir():
        raise UserError(f"no teacher cache at {root}; make one with videomamba-depth precompute")
    found = (
        list_names(str(cache_root)) if root is None else sorted(path.name for path in root.iterdir() if path.is_dir())
    )
    names = [name for name in found if not name.startswith(".")]
    if not names:
        raise UserError(f"the teacher cache {cache_root} is empty; fill it with videomamba-depth precompute")
    return names


def _open_or_none(cache_root: str | Path, name: str) -> Any:
    """Return a group, opened for reading; None where its metadata cannot be read."""
    try:
        return zarr_library().open_group(address_of(cache_root, name), mode="r", zarr_format=3)
    except (OSError, KeyError, ValueError):
        return None


def _verify_group(
    name: str, group: Any, key: TeacherKey | None, source: VideoSource | None, report: VerifyReport
) -> str:
    """Check one video; count it in `report` where it is whole; return what is wrong with it, or ""."""
    if group is None:
        return "its metadata cannot be read"
    attributes = dict(group.attrs)
    problem = group_difference(attributes, TeacherKey.from_dict(attributes["teacher"]) if key is None else key)
    if problem:
        return problem
    if group_name(attributes["source"]["video_id"]) != name:
        return f"holds labels of another video, {attributes['source']['video_id']}"
    if source is not None:
        try:
            if hash_source(source.path) != attributes["source"]["sha256"]:
                return "source.sha256 differs, the video has changed since it was cached"
        except VideoReadError as error:
            return str(error)
    if "chunk_scale" not in group:
        report.unfinished.append(attributes["source"]["video_id"])
        return ""
    problem = _shape_problem(group, attributes)
    if problem:
        return problem
    finished = True
    for kind in (RAW, *([STABILIZED] if STABILIZED in attributes else [])):
        scales = group[f"{kind}_scale"][:] if f"{kind}_scale" in group else np.zeros(1)
        finished &= bool((scales != 0).all())
        for chunk in np.flatnonzero(scales):
            try:
                read_chunk(group, attributes, kind, int(chunk))
            except ChunkError as error:
                return str(error)
            except Exception as error:  # see verify_cache
                arrays, reason = " or ".join(ARRAYS[kind]), " ".join(str(error).split())
                return f"chunk {chunk} of {arrays} cannot be read ({reason})"
    if not finished:
        report.unfinished.append(attributes["source"]["video_id"])
    else:
        report.videos += 1
        report.frames += attributes["source"]["num_frames"]
    return ""


def _shape_problem(group: Any, attributes: dict[str, Any]) -> str:
    layout, frames = StorageLayout(**attributes["storage"]), attributes["source"]["num_frames"]
    chunks = -(-frames // layout.chunk_frames)
    bookkeeping = {"timestamps_s": (frames,), "chunk_scale": (chunks,), "chunk_digest": (chunks, 32)}
    for name, shape in {**layout.map_shapes(frames), **bookkeeping}.items():
        if name not in group:
            return f"array {name} is missing"
        if group[name].shape != shape:
            return f"array {name} has shape {group[name].shape}, expected {shape}"
    return ""
