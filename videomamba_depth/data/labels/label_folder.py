"""Labels that another program wrote: the recorded depth of every video, in the student's kind of depth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videomamba_depth.data.recorded_depth import (
    RecordedDepth,
    find_mixed_up,
    find_recorded_depth,
    match_frames,
    open_recorded_depth,
)
from videomamba_depth.data.video.find import VideoSource, summarize
from videomamba_depth.data.video.image_sequence import is_image_sequence
from videomamba_depth.data.video.probe import frame_size
from videomamba_depth.data.video.reader import VideoInfo, VideoReadError, probe_video
from videomamba_depth.utils.depth_kind import DepthKind, can_convert, convert_depth, least_inverted
from videomamba_depth.utils.errors import UserError

_OPEN_VIDEOS = 256
_THREADS = 8
_WHOLE_BYTES, _BLOCK_BYTES, _BLOCK_EVERY_BYTES = 2**16, 2**12, 2**20
ASPECT_TOLERANCE = 0.04
"""Share by which the aspect ratio of labels may differ from the video's: sides that a model rounds to its patch."""


class LabelFolder:
    """The labels of a data set's videos, read frame by frame; safe to hand to loader workers.

    Args:
        root: folder of recordings that are called like the videos, see `find_recorded_depth`.
        to: the student's kind, into which all depth is turned.
        kind, scale: of the recordings, see `open_recorded_depth`; None: as they say.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(
        self, root: str | Path, to: DepthKind, kind: DepthKind | str | None = None, scale: float | None = None
    ) -> None:
        self.root, self.to = Path(root).expanduser(), to
        self._kind, self._scale = kind, scale
        self._open: dict[str, tuple[RecordedDepth, list[int]]] = {}
        if not self.root.is_dir():
            raise UserError(f"labels: '{root}' is not a folder; it must hold one recording of depth per video")

    def check(self, videos: Sequence[tuple[VideoSource, int | None]]) -> None:
        """Open the labels of every video and compare their frames and aspect ratio, without reading depth.

        Args:
            videos: with the number of frames, or None where only decoding would tell.

        Raises:
            UserError: videos have no labels, or such that do not fit, see `open_video`; the line names them.
        """

        recordings: dict[str, Path] = {}

        def problem_of(video: tuple[VideoSource, int | None]) -> str:
            source, num_frames = video
            try:
                recorded = self._recorded(source)
                recordings[source.video_id] = recorded.path
                by_time = num_frames is not None and recorded.frame_numbers is None and recorded.timestamps is not None
                if is_image_sequence(source.path) or by_time or num_frames not in (None, recorded.num_frames):
                    self.open_video(source, probe_video(source.path))
                    return ""
                if num_frames is not None:
                    match_frames(recorded, num_frames)
                _check_aspect(recorded, frame_size(source.path))
            except VideoReadError:
                return ""  # of the video itself: named where it is drawn
            except UserError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(_THREADS) as pool:
            found = zip(videos, pool.map(problem_of, videos), strict=True)
            problems = {source.video_id: problem for (source, _), problem in found if problem}
        paths = {source.video_id: source.path for source, _ in videos}
        problems |= find_mixed_up({name: recordings[name] for name in paths if name in recordings}, paths)
        if problems:
            raise UserError(
                f"data.labels: {len(problems)} of {len(videos)} videos have no labels that fit: {summarize(problems)}"
            )

    def read(self, source: VideoSource, info: VideoInfo, indices: Sequence[int]) -> np.ndarray:
        """Return the labels of frames of a video, float32 [N,h,w] at their own size; NaN where there is no depth.

        Nor is there where a depth is too near 0 to be inverted, see `least_inverted`.

        Raises:
            VideoReadError: they do not fit the video, or cannot be read.
        """
        try:
            recorded, places = self.open_video(source, info)
            depth = recorded.read_many([places[i] for i in indices])
            if self.to.is_inverse and not recorded.kind.is_inverse:
                depth[depth < least_inverted(torch.from_numpy(depth), recorded.kind).numpy()] = np.nan
            return convert_depth(depth, recorded.kind, self.to)
        except VideoReadError:
            raise
        except UserError as error:  # named once, and another video is drawn
            raise VideoReadError(f"its labels cannot be used: {error}") from error

    def open_video(self, source: VideoSource, info: VideoInfo) -> tuple[RecordedDepth, list[int]]:
        """Return a video's recording, and which of its frames belongs to each of the video.

        Raises:
            UserError: frames have no labels, they are of another aspect ratio, or of a kind that does not fit.
        """
        if source.video_id not in self._open:
            recorded = self._recorded(source)
            names = [path.stem for path in info.image_paths] or None
            places = match_frames(recorded, info.num_frames, names=names, timestamps=info.own_times_s)
            _check_aspect(recorded, (info.height, info.width))
            if len(self._open) >= _OPEN_VIDEOS:
                self._open.clear()
            self._open[source.video_id] = recorded, places
        return self._open[source.video_id]

    def digest(self) -> str:
        """Return a digest of all files but hidden ones, and of how they are read; a copy elsewhere has the same.

        It takes in names, sizes and content: of files above 64 KiB blocks from the first to the last, where the check
        sums of npz, PNG and their like are, so that terabytes need not be read.
        """
        kind = None if self._kind is None else DepthKind(self._kind).value
        found = hashlib.sha256(f"{self.to.value}\0{kind}\0{self._scale}".encode())
        paths = _files_below(self.root)
        with ThreadPoolExecutor(_THREADS) as pool:
            for path, content in zip(paths, pool.map(_digest_of_blocks, paths), strict=True):
                found.update(f"\0{path.relative_to(self.root).as_posix()}\0".encode(errors="surrogateescape") + content)
        return found.hexdigest()

    def _recorded(self, source: VideoSource) -> RecordedDepth:
        path = find_recorded_depth(self.root, source.video_id, source=source.path)
        recorded = open_recorded_depth(path, self._kind, self._scale)
        if not can_convert(recorded.kind, self.to):
            unknown = "shift" if recorded.kind.has_shift else "scale"
            raise UserError(
                f"{path} holds {recorded.kind.value}, whose {unknown} is unknown: it cannot teach a student of"
                f" {self.to.value}"
            )
        return recorded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def _check_aspect(recorded: RecordedDepth, size: tuple[int, int]) -> None:
    (height, width), (frame_height, frame_width) = recorded.size, size
    if abs(width / height * frame_height / frame_width - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{recorded.path} is {height}×{width} px, frames are {frame_height}×{frame_width}: labels must show the"
            " whole frame in its own aspect ratio"
        )


def _files_below(root: Path) -> list[Path]:
    """Return all files but hidden ones, sorted; links to folders are followed once."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(name for name in subfolders if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            found += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
    return found


def _digest_of_blocks(path: Path) -> bytes:
    """Return the SHA-256 of a file's size and bytes, or of a block of each MiB and its last where it is large."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.sha256(f"{size}\0".encode())
            if size <= _WHOLE_BYTES:
                found.update(file.read())
            else:
                for place in (*range(0, size - _BLOCK_BYTES, _BLOCK_EVERY_BYTES), size - _BLOCK_BYTES):
                    file.seek(place)
                    found.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise UserError(f"labels: cannot read {path}: {error.strerror}") from error
    return found.digest()
