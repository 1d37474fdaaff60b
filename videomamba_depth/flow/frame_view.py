"""The frames of a clip, one at a time: computed when they are read, or read from disk.

Whoever goes over a clip takes `Frames` and reads them by index or in order, so that an array in memory, a view that
computes (`mapped`) and frames on disk (`on_disk`) serve alike, and memory does not grow with the clip.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from videomamba_depth.utils.errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


class FrameView:
    """F frames of one shape, of which none is held: each is made anew whenever it is read.

    read: returns frame t, 0 ≤ t < F. num_frames: F.
    """

    def __init__(self, read: Callable[[int], np.ndarray], num_frames: int) -> None:
        self._read, self._num_frames = read, num_frames
        self.remembered: dict[Any, Any] = {}

    def __len__(self) -> int:
        return self._num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._read(t) for t in range(self._num_frames))

    def __getitem__(self, key: int | slice) -> np.ndarray:
        """Return one frame, or the array of several: `view[:]` is the whole clip in memory."""
        if isinstance(key, slice):
            return np.stack([self._read(t) for t in range(*key.indices(self._num_frames))])
        t = int(key)
        if not -self._num_frames <= t < self._num_frames:
            raise IndexError(f"frame {t} of {self._num_frames}")
        return self._read(t % self._num_frames)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole clip [F,…]."""
        return (self._num_frames, *self._read(0).shape)

    @cached_property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        return self._read(0).dtype


Frames: TypeAlias = np.ndarray | FrameView
"""A clip [F,…] that is read frame by frame; no arithmetic on the whole."""

Columns: TypeAlias = Iterable[Sequence[np.ndarray]]
"""For every frame in order, its arrays: one each for every clip that is made of them."""

Keep: TypeAlias = Callable[[Columns], Sequence[Frames]]
"""Keeps what comes frame by frame as clips: `in_memory` or `on_disk`."""


def mapped(function: Callable[..., Any], *sources: Any) -> FrameView:
    """Return the frames function(a_t, b_t, …), computed when read.

    sources: anything with a length that can be indexed; the first one's length counts.
    """
    return FrameView(lambda t: function(*(source[t] for source in sources)), len(sources[0]))


def first_frames(frames: Any, num_frames: int) -> FrameView:
    """Return at most the first `num_frames` of anything with a length that can be indexed."""
    return FrameView(lambda t: np.asarray(frames[t]), min(len(frames), num_frames))


def recent(frames: Frames, num_frames: int = 3) -> FrameView:
    """Return the same frames, of which the last ones that were read are held: for what goes over pairs of neighbors."""
    return FrameView(lru_cache(num_frames)(lambda t: frames[t]), len(frames))


def computed(frames: Frames) -> Frames:
    """Return the same frames, computed now and read from disk from then on; of one shape and type."""
    return on_disk([frame] for frame in frames)[0] if isinstance(frames, FrameView) and len(frames) else frames


def remembered(function: Callable[_Given, _Returned]) -> Callable[_Given, _Returned]:
    """Let a function work a thing out once per `FrameView`, its first argument, and keep it for as long as that lives.

    Plain arguments count by value, others as the objects that they are. Nobody may change what comes back, nor the
    frames; what comes back must not lead to them again, so that their files are gone when nobody needs them.
    """

    @wraps(function)
    def once(*args: _Given.args, **kwargs: _Given.kwargs) -> _Returned:
        if not (args and isinstance(args[0], FrameView)):
            return function(*args, **kwargs)
        known = args[0].remembered
        key = (function.__qualname__, *map(_key, args[1:]), *((name, _key(kwargs[name])) for name in sorted(kwargs)))
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]

    return once


class _Same:
    """Stands for an object in a key, which no other object equals, and does not keep it alive."""

    def __init__(self, value: Any) -> None:
        self._id, self._value = id(value), weakref.ref(value)

    def __hash__(self) -> int:
        return self._id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value() is not None and self._value() is other._value()


def _key(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, (str, int, float, tuple, type(None))) else _Same(value)


def in_memory(columns: Columns) -> list[np.ndarray]:
    """Return the clips as arrays [F,…]."""
    return [np.stack(column) for column in zip(*columns, strict=True)]


def on_disk(columns: Columns) -> list[FrameView]:
    """Write the clips to temporary files, exactly, and return views of them; an empty list without any frame.

    The files lie in the system's folder for such (`TMPDIR` moves it), have no name there, and are gone with the last
    view of them, however the process ends. They are read, not mapped: the pages do not count as this process's memory.

    Raises UserError when the disk is full, ValueError when a frame differs from the first in shape or type.
    """
    clips: list[_FrameFile] = []
    with disk_space():
        for arrays in columns:
            clips = clips or [_FrameFile(np.asarray(array)) for array in arrays]
            for clip, array in zip(clips, arrays, strict=True):
                clip.append(np.asarray(array))
    return [FrameView(clip.read, clip.num_frames) for clip in clips]


@contextmanager
def disk_space() -> Iterator[None]:
    """Make a UserError of a full disk under the system's folder for temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(
            f"no space is left in {tempfile.gettempdir()} for the frames of a clip: "
            "let TMPDIR name a folder on a larger disk, or read fewer frames"
        ) from error


class _FrameFile:
    """Frames of one shape and type, one after the other in a nameless temporary file."""

    def __init__(self, like: np.ndarray) -> None:
        self.num_frames, self._shape, self._dtype = 0, like.shape, like.dtype
        self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (open for as long as this object lives)
        weakref.finalize(self, self._file.close)

    def append(self, frame: np.ndarray) -> None:
        if (frame.shape, frame.dtype) != (self._shape, self._dtype):
            raise ValueError(
                f"all frames of a clip must be {self._dtype} {list(self._shape)} like the first; "
                f"frame {self.num_frames} is {frame.dtype} {list(frame.shape)}"
            )
        rest = np.ascontiguousarray(frame).data.cast("B")
        while rest:  # a write may stop early, before the error that tells why
            rest = rest[self._file.write(rest) :]
        self.num_frames += 1

    def read(self, t: int) -> np.ndarray:
        frame = np.empty(self._shape, self._dtype)
        if os.preadv(self._file.fileno(), [frame.data.cast("B")], t * frame.nbytes) != frame.nbytes:
            raise OSError(f"a temporary file lost frame {t} of {self.num_frames}")
        return frame
