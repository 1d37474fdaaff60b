"""Find and open the recorded depth of a video."""

from __future__ import annotations

import bisect
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from videomamba_depth.data.recorded_depth.arrays import is_zarr, open_arrays, open_zarr
from videomamba_depth.data.recorded_depth.pictures import open_pictures, open_video_depth
from videomamba_depth.data.recorded_depth.storage import Sidecar, Storage, read_sidecar
from videomamba_depth.data.video.find import VIDEO_SUFFIXES
from videomamba_depth.data.video.image_sequence import natural_key
from videomamba_depth.utils.depth_kind import DepthKind, all_kinds, parse_kind, valid_depth
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

ARRAY_SUFFIXES = (".npz", ".npy")
FRAME_SUFFIXES = (*ARRAY_SUFFIXES, ".exr", ".png")
"""Files of a folder that are read; where it has several kinds, the first of these."""
_ENDINGS = (
    "",
    "_depth",
    "_depths",
    "_depths_exr",
)  # after a name: those of our streams, of Video Depth Anything
_HASH_BLOCK = 1 << 20


@dataclass(frozen=True)
class RecordedDepth:
    """The recorded depth of one video, read frame by frame; can be handed to other processes.

    storage: where the numbers lie. kind: what depth means. scales: (first frame number, factor): depth = stored
    number · factor.
    """

    storage: Storage
    kind: DepthKind
    scales: tuple[tuple[int, float], ...] = ((0, 1.0),)

    @property
    def path(self) -> Path:
        """What was opened."""
        return self.storage.path

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.storage.num_frames

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.storage.size

    @property
    def scale(self) -> float | list[float]:
        """Factor from stored numbers to depth; all of them where it changes on the way."""
        factors = [factor for _, factor in self.scales]
        return factors[0] if len(set(factors)) == 1 else factors

    @property
    def timestamps(self) -> np.ndarray | None:
        """Time of every frame in s, float64 [F]; None where it is not recorded."""
        return self.storage.about.timestamps

    @property
    def frame_names(self) -> tuple[str, ...] | None:
        """Name of every frame, without a suffix; None where frames have none."""
        return self.storage.about.names

    @property
    def frame_numbers(self) -> np.ndarray | None:
        """Which frame of its source each is, from 0 on, int [F]; None where it is not recorded."""
        return self.storage.about.frame_numbers

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.iter_frames(range(self.num_frames))

    def read(self, index: int) -> np.ndarray:
        """Return frame `index` as float32 [h,w]; NaN where there is no valid depth, see `valid_depth`.

        Raises:
            IndexError: there is no such frame.
            UserError: its file is damaged or of another size; the message names it.
        """
        return next(self.iter_frames([index]))

    def read_many(self, indices: Sequence[int]) -> np.ndarray:
        """Return frames as `read` does, float32 [K,h,w]; in any order, repeats allowed."""
        ascending = sorted(set(indices))
        frames = dict(zip(ascending, self.iter_frames(ascending), strict=True))
        return np.stack([frames[i] for i in indices])

    def iter_frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield frames as `read` does, of ascending indices: what is compressed is decompressed once on the way."""
        for i in indices:
            if not 0 <= i < self.num_frames:
                raise IndexError(f"frame {i} of {self.num_frames} in {self.path}")
        for i, stored in zip(indices, self.storage.read_many(indices), strict=True):
            factor = self._factor(i)
            values = stored if factor == 1.0 else stored.astype(np.float64) * factor
            yield valid_depth(values, self.kind)

    def file_of(self, index: int) -> Path:
        """Return the file of a frame, or what was opened where files hold several."""
        files = self.storage.files()
        return files[index] if len(files) == self.num_frames else self.path

    def digest(self) -> str:
        """Return the SHA-256 of what was recorded: kind, scales, names and bytes of all files."""
        found = hashlib.sha256(f"{self.kind.value}\0{self.scales}".encode())
        for file in self.storage.files():
            found.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as data:
                while block := data.read(_HASH_BLOCK):
                    found.update(block)
        return found.hexdigest()

    def _factor(self, index: int) -> float:
        numbers = self.frame_numbers
        number = index if numbers is None else int(numbers[index])
        place = bisect.bisect_right(self.scales, number, key=lambda entry: entry[0]) - 1
        return self.scales[max(place, 0)][1]


def open_recorded_depth(
    path: str | Path,
    kind: DepthKind | str | None = None,
    scale: float | None = None,
    array: str | None = None,
) -> RecordedDepth:
    """Open the recorded depth of one video.

    It may be an npz or npy file ([F,h,w]), a folder of them (one frame or several each), a folder of 16-bit PNG or EXR,
    a folder of such folders that hold one `depth.*` each, a Zarr group, what `inference_streaming.py` writes, or a gray
    video of 8 bits, with a warning. Nothing is unpickled; a 10,000-frame video is never held as a whole.

    Kind and scale may be said by the files: arrays `depth_kind` and `scale` in an npz, attributes of a Zarr group, or a
    file `about.json` in the folder or beside it, such as {"depth_kind": "metric_depth_m", "scale": 0.001}.

    Args:
        kind: what depth means, a `DepthKind` or its value; None: as the files say.
        scale: depth = stored number · scale; None: as the files say, else 1. Whole numbers of metric depth need one.
        array: name of the array in npz files or Zarr groups; None: the only one, or a usual name.

    Raises:
        UserError: there is none, it is damaged, or kind or scale are missing or contradict what the files say.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"there is no recorded depth at {path}")
    inside = [path / "scale.json", path / "about.json"] if path.is_dir() else []
    sidecar = read_sidecar(*inside, path.parent / "about.json")
    storage = _open_storage(path, sidecar, array)
    found = _agreed_kind(path, kind, storage.about.kind or sidecar.kind)
    _refuse_columns(storage)
    return RecordedDepth(storage, found, _agreed_scales(storage, found, scale, sidecar))


def find_recorded_depth(root: str | Path, name: str, alone: bool = False, source: str | Path | None = None) -> Path:
    """Return where the depth of a video lies below a folder, never outside it.

    Args:
        root: a folder of files or folders that are called like the videos, whose depth ends in nothing, `_depth` or
            `_depths`, in the subfolders that the videos are in, or directly in it.
        name: of the video: its path below the data's root, with or without a suffix; of one that lies elsewhere, the
            last part counts.
        alone: it is the only video, so that `root` itself may be its depth, where nothing in it is called like it.
        source: where the video itself lies, which is never its own depth.

    Raises:
        UserError: there is none, or only that of a video of another name.
    """
    root, video = Path(root).expanduser(), PurePosixPath(name)
    source = None if source is None else Path(source).expanduser().resolve()

    def is_found(path: Path) -> bool:
        return _is_depth(path) and path.resolve() != source

    if not root.exists():
        raise UserError(f"there is no folder of recorded depth at {root}")
    stem = video.stem if video.suffix.lower() in VIDEO_SUFFIXES else video.name
    is_inside = not video.is_absolute() and ".." not in video.parts
    for folder in dict.fromkeys((root / video.parent, root) if is_inside else (root,)) if stem.strip(".") else ():
        for base in (f"{stem}{ending}" for ending in _ENDINGS):
            for suffix in (*ARRAY_SUFFIXES, ".zarr", ""):
                if is_found(path := folder / f"{base}{suffix}"):
                    return path
        if is_found(path := folder / f"{stem}.mp4"):
            return path
    if alone and is_found(root):
        if not root.is_file() and root.name not in {f"{stem}{ending}" for ending in _ENDINGS}:
            _refuse_other_videos(root, name)
        return root
    expected = video.parent / stem if is_inside else stem
    raise UserError(
        f"{root} has no depth of '{name}'; expected {expected}.npz, .npy or .zarr, or a folder"
        f" {stem} or {stem}_depth of npz, npy, EXR or 16-bit PNG"
    )


def find_mixed_up(found: Mapping[str, Path], sources: Mapping[str, str | Path]) -> dict[str, str]:
    """Return {video: what is wrong} of those whose depth is that of another too, holds it, or is a video.

    Args:
        found: what `find_recorded_depth` returned, by the videos' names.
        sources: where videos themselves lie, by name; as far as it is known.
    """
    owners: dict[Path, list[str]] = {}
    for name, path in found.items():
        owners.setdefault(path.resolve(), []).append(name)
    videos = {Path(path).expanduser().resolve(): name for name, path in sources.items()}
    wrong: dict[str, str] = {}
    for path, names in owners.items():
        problems = []
        if len(names) > 1:
            problems.append(
                f"{path} would be the depth of '{names[0]}' and of '{names[1]}'; give each a recording of its own, in a"
                " folder like the video's"
            )
        if path.is_file() and path.parent in owners:
            problems.append(f"{path} lies among the frames of '{owners[path.parent][0]}'")
        if path in videos:
            problems.append(f"{path} is the video '{videos[path]}' and not depth of '{names[0]}'")
        wrong |= dict.fromkeys(names, problems[0]) if problems else {}
    return wrong


def _refuse_other_videos(root: Path, name: str) -> None:
    """Refuse files of several frames each in a folder, unless they say which frames of one video they hold."""
    files, _ = ([], []) if is_zarr(root) else _frame_files(root)
    if not files or files[0].suffix.lower() not in ARRAY_SUFFIXES:
        return
    storage = open_arrays(root, files)
    if storage.about.frame_numbers is None and any(part.frames > 1 for part in storage.parts):
        raise UserError(
            f"{root} has no depth that is called like '{name}': it holds {files[0].name}"
            f"{f' and {len(files) - 1} more' if len(files) > 1 else ''}; rename it, or give the file itself"
        )


def _refuse_columns(storage: Storage) -> None:
    """Refuse frame numbers or times that are not one finite number for each frame."""
    about = storage.about
    for what, values in (("frame numbers", about.frame_numbers), ("time stamps", about.timestamps)):
        if values is None:
            continue
        if values.shape != (storage.num_frames,):
            raise UserError(
                f"{storage.path} holds {storage.num_frames} frames and {values.size} {what}; write one for each frame"
            )
        if (
            values.dtype.kind not in "fiu"
            or not np.isfinite(values).all()
            or (what == "frame numbers" and (values != np.floor(values)).any())
        ):
            raise UserError(f"{storage.path} holds {what} that are no numbers, such as NaN or text")


def _is_depth(path: Path) -> bool:
    """Tell whether a path is a file of depth, or a folder that `open_recorded_depth` can read."""
    if path.is_file():
        return path.suffix.lower() in ARRAY_SUFFIXES or path.suffix.lower() in VIDEO_SUFFIXES
    return path.is_dir() and (is_zarr(path) or bool(_frame_files(path)[0]))


def _open_storage(path: Path, sidecar: Sidecar, array: str | None) -> Storage:
    suffix = path.suffix.lower()
    if path.is_file() and suffix in ARRAY_SUFFIXES:
        return open_arrays(path, [path], array)
    if path.is_file() and suffix in VIDEO_SUFFIXES:
        return open_video_depth(path)
    if path.is_file():
        raise UserError(f"{path} is no form of recorded depth; give npz, npy, Zarr, or a folder of npz, npy, EXR, PNG")
    if is_zarr(path):
        return open_zarr(path, array)
    files, names = _frame_files(path)
    if not files:
        raise UserError(f"{path} holds no npz, npy, EXR or PNG, and is no Zarr group")
    if files[0].suffix.lower() in ARRAY_SUFFIXES:
        return open_arrays(path, files, array, names)
    return open_pictures(path, files, names, sidecar.numbered)


def _frame_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of one kind in a folder, or `depth.*` in its subfolders, in natural order, and their names."""
    inside = sorted(
        (f for f in folder.iterdir() if not f.name.startswith(".")), key=lambda f: (natural_key(f.name), f.name)
    )
    for suffix in FRAME_SUFFIXES:
        if files := [file for file in inside if file.suffix.lower() == suffix and file.is_file()]:
            return files, [file.stem for file in files]
    for suffix in FRAME_SUFFIXES:
        if files := [file for sub in inside if (file := sub / f"depth{suffix}").is_file()]:
            return files, [file.parent.name for file in files]
    return [], []


def _agreed_kind(path: Path, given: DepthKind | str | None, stated_kind: str | None) -> DepthKind:
    wanted = None if given is None else parse_kind(given, "kind")
    stated = None if stated_kind is None else parse_kind(stated_kind, str(path))
    if wanted is not None and stated is not None and wanted is not stated:
        raise UserError(f"{path} says that it is {stated.value}; kind {wanted.value} contradicts it")
    found = wanted or stated
    if found is None:
        raise UserError(f"{path} does not say what its depth means; name its kind: {all_kinds()}")
    return found


def _agreed_scales(
    storage: Storage, kind: DepthKind, given: float | None, sidecar: Sidecar
) -> tuple[tuple[int, float], ...]:
    stated = storage.about.scales or sidecar.scales
    if given is not None and not (math.isfinite(given) and given > 0):
        raise UserError(f"scale must be positive and finite; got {given}")
    if given is not None and stated and list(stated) != [(0, given)]:
        raise UserError(f"{storage.path} says that its scale is {stated[0][1]:g}; scale {given:g} contradicts it")
    if given is None and not stated and storage.whole_numbers and kind is DepthKind.METRIC:
        raise UserError(f"{storage.path} holds whole numbers; say the scale in meters, such as 0.001 for millimeters")
    found = tuple(stated or [(0, 1.0 if given is None else given)])
    if not all(math.isfinite(factor) and factor > 0 for _, factor in found):
        raise UserError(f"the scale of {storage.path} must be positive and finite; it is {[f for _, f in found]}")
    return found
