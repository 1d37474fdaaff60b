"""Find the videos of a data set: video files and image folders, under a root or in a list, without decoding any."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from videomamba_depth.data.video.image_sequence import is_image, list_images, natural_key
from videomamba_depth.data.video.reader import VideoReadError, count_frames
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp"}
    | {".ogv", ".gif"}
)
# Depth images lie beside the color images that they belong to; they are ground truth, not a video.
_NO_VIDEO_IN = frozenset({"depth"})
_NAMED_AT_MOST = 10
_HASH_BLOCK = 1 << 20
_SCAN_THREADS = 8
_SHOW_PROGRESS_FROM = 200


@dataclass(frozen=True)
class VideoSource:
    """One video: `video_id` is its path relative to the data root (posix), `path` where it is on this machine."""

    video_id: str
    path: str


def find_sources(root: str | Path) -> list[VideoSource]:
    """List the videos under `root`, recursively, in natural order of their ids.

    A video is a file with a video's suffix, or a folder that directly holds images and is not called "depth"; hidden
    names are ignored and links to folders are followed once. `root` may also be one video file, or a list of videos
    (`read_list`), whose order stays.

    Raises:
        UserError: `root` is missing, or holds no video.
    """
    address = str(root)
    root = Path(os.path.expanduser(root))
    if not root.exists():
        _refuse_url(address, "the folder of videos")
        raise UserError(f"data folder {root} does not exist; set data.root to a folder of videos or image folders")
    if is_list(root):
        return read_list(root)
    if root.is_file():
        return [VideoSource(root.name, str(root))]
    found = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else [name for name in subfolders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        here = Path(folder)
        videos = [n for n in names if Path(n).suffix.lower() in VIDEO_SUFFIXES and not n.startswith(".")]
        found += [VideoSource((here / name).relative_to(root).as_posix(), str(here / name)) for name in videos]
        if here.name not in _NO_VIDEO_IN and any(is_image(name) for name in names):
            video_id = root.name if here == root else here.relative_to(root).as_posix()
            found.append(VideoSource(video_id, str(here)))
    if not found:
        raise UserError(
            f"no videos or image folders in {root}; expected files such as .mp4, .mov, .mkv, or folders of images"
        )
    return sorted(found, key=lambda source: natural_key(source.video_id))


def is_list(root: str | Path) -> bool:
    """Tell whether a data root is a text file that names videos."""
    return Path(root).suffix.lower() == ".txt" and os.path.isfile(os.path.expanduser(root))


def read_list(path: Path) -> list[VideoSource]:
    """Return the videos that a text file names, one per line: paths of video files and image folders.

    A relative path is relative to the list's folder, and is the video's id as it stands: a list in the root of a folder
    has the ids that the folder has, so that their caches are the same. Empty lines and lines that begin with # are left
    out; white space around a path is. No video is looked for: one that is missing is named when it is wanted.

    Raises:
        UserError: it cannot be read, names nothing, names a video twice, or a pipe, a device or a URL.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"the list of videos {path} cannot be read: {error.strerror}") from error
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if "\0" in name:
            raise UserError(f"{path} is no list of videos: line {number} is no path; expected one path per line")
        _refuse_url(name, f"line {number} of the list of videos {path}")
        video_id = os.path.normpath(os.path.expanduser(name))
        place = path.parent / video_id
        if place.is_fifo() or place.is_char_device():  # reading would wait
            raise UserError(f"the list of videos {path} names {video_id} in line {number}: no file and no folder")
        first = numbers.setdefault(video_id, number)
        if first != number:
            raise UserError(f"the list of videos {path} names {video_id} twice, in lines {first} and {number}")
    if not numbers:
        raise UserError(f"the list {path} names no video; expected one path per line")
    return [VideoSource(video_id, os.path.join(path.parent, video_id)) for video_id in numbers]


def scan_sources(
    sources: Sequence[VideoSource], progress: bool = True
) -> tuple[list[tuple[VideoSource, int | None]], dict[str, str]]:
    """Open every video once, quickly, and set the unreadable ones apart.

    Args:
        sources: from `find_sources`.
        progress: show a bar when there are many.

    Returns:
        usable sources with the number of frames that they state (None where only decoding would tell), and
        {video_id: reason} of the others.
    """

    def scan(source: VideoSource) -> tuple[int | None, str]:
        try:
            return count_frames(source.path), ""
        except VideoReadError as error:
            return None, str(error)

    usable, broken = [], {}
    hide_bar = not progress or len(sources) < _SHOW_PROGRESS_FROM
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        results = tqdm(pool.map(scan, sources), total=len(sources), desc="scan videos", unit="video", disable=hide_bar)
        for source, (num_frames, problem) in zip(sources, results, strict=True):
            if problem:
                broken[source.video_id] = problem
            else:
                usable.append((source, num_frames))
    return usable, broken


def summarize(problems: dict[str, str]) -> str:
    """Put {name: reason} on one line, the first ten of them."""
    named = [f"{name} ({reason})" for name, reason in list(problems.items())[:_NAMED_AT_MOST]]
    rest = len(problems) - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest else "")


def hash_source(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, or of an image folder's names, sizes and bytes in natural order."""
    digest = hashlib.sha256()
    files = _files(path)
    for file in files:
        if len(files) > 1 or Path(path).is_dir():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as data:
            while block := data.read(_HASH_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def source_stamp(path: str | Path) -> tuple[int, int]:
    """Return (bytes, latest change in ns): when both are as before, the content is taken to be as before."""
    stats = [file.stat() for file in _files(path)]
    return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


def _files(path: str | Path) -> Sequence[Path]:
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        return list_images(path)
    if not path.is_file():
        raise VideoReadError(f"no such file or folder: {path}")
    return [path]


def unique_ids(sources: Iterable[VideoSource]) -> list[VideoSource]:
    """Return the sources as a list.

    Raises:
        UserError: two of them share a `video_id`, under which caches and reports would mix them.
    """
    out: dict[str, VideoSource] = {}
    for source in sources:
        if source.video_id in out:
            raise UserError(f"two videos are called {source.video_id}: {out[source.video_id].path} and {source.path}")
        out[source.video_id] = source
    return list(out.values())


def _refuse_url(name: str, place: str) -> None:
    if "://" in name:
        raise UserError(f"{place} is a URL, {name}; videos are read from files: download or mount them first")
