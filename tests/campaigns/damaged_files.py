"""Specimens of everything that is kept on disk, ways to damage them, and what each must still give.

A damaged specimen is taken up as its command would. It ends as one of
    refused   one line (`UserError`), or the cache's misfit with its warning
    harmless  exactly what the undamaged one gives (a byte that means nothing, a file that only people read)
    named     less than the undamaged one, with a warning: lines of a log that cannot be read
and, which none may, as
    traceback, hang, silent (another result and no word).
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from media import flat_depth, numbered_frame, write_video
from safetensors.torch import load_file, save_file
from test_resume import train
from tiny import save_tiny_teacher

from videomamba_depth.data.labels.cache_verify import verify_cache
from videomamba_depth.data.labels.precompute import precompute_videos
from videomamba_depth.data.labels.stabilized_cache import StabilizeKey, precompute_stabilized
from videomamba_depth.data.labels.teacher_cache import TeacherCacheReader, TeacherKey
from videomamba_depth.data.video.find import find_sources
from videomamba_depth.evaluation.datasets.worlds import WorldSpec, load_world
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.checkpoint import load_student
from videomamba_depth.models.depth_state import DepthState
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.teacher_files import EMBEDDED_TEACHER
from videomamba_depth.streaming.resets import ResetPolicy
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import JsonLines, read_json_lines

OUTCOMES = ("refused", "harmless", "named", "traceback", "hang", "silent")
NEVER = ("traceback", "hang", "silent")
_PATIENCE_S = 60
_KEY = TeacherKey("hub/model", "a" * 64, 70, "float32", "affine_invariant_inverse_depth")
_TARGET_KEY = StabilizeKey(2, 1.5, "dis")
_STEPS = 3

Result = dict[str, bytes]


class Named(Exception):
    """Less than the undamaged specimen gives, with a warning."""


@dataclass(frozen=True)
class Specimen:
    """What is on disk, which of it is damaged (a glob), and how it is taken up.

    use: returns everything that the files give, as bytes; raises `UserError`, or `Named` where a warning went out.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    use: Callable[[Path], Result]

    def targets(self) -> list[Path]:
        """Return the files that may be damaged, relative to the folder."""
        found = {p for glob in self.files for p in self.folder.glob(glob) if p.is_file() and not p.is_symlink()}
        return sorted(p.relative_to(self.folder) for p in found)


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    """Cut the end off."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))] if data else b"")


def zero(path: Path, rng: random.Random) -> None:
    """Overwrite a part with zeros."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(data)))
    length = min(len(data) - start, 1 + rng.randrange(512))
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def garbage(path: Path, rng: random.Random) -> None:
    """Put other bytes in place of all."""
    path.write_bytes(rng.randbytes(rng.randrange(1, 400)))


def empty(path: Path, rng: random.Random) -> None:
    """Leave nothing in the file."""
    path.write_bytes(b"")


def remove(path: Path, rng: random.Random) -> None:
    """Delete the file."""
    path.unlink()


def lengthen(path: Path, rng: random.Random) -> None:
    """Append bytes."""
    path.write_bytes(path.read_bytes() + rng.randbytes(1 + rng.randrange(64)))


def point(path: Path, rng: random.Random) -> None:
    """Leave a Git LFS pointer."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1000\n")


def swap(path: Path, rng: random.Random) -> None:
    """Put another file of the same kind, near by, in its place."""
    near = [p for p in path.parent.parent.rglob(f"*{path.suffix}") if p.is_file() and p != path and not p.is_symlink()]
    different = [p for p in sorted(near) if p.read_bytes() != path.read_bytes()]
    if different:
        shutil.copyfile(rng.choice(different), path)


def fold(path: Path, rng: random.Random) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def edit(path: Path, rng: random.Random) -> None:
    """Change one value of a JSON file, or of a line of one, to one of another kind or size."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(child)

    walk(value)
    node, key = rng.choice(places)
    node[key] = rng.choice([None, -1, 7, 1e30, "x", [], {}, True, float("nan"), "a" * 64, [[[1]]], 2**70])
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def drop(path: Path, rng: random.Random) -> None:
    """Take one key out of a JSON file."""
    value = json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())
    del value[rng.choice(sorted(value))]
    path.write_text(json.dumps(value))


def cast(path: Path, rng: random.Random) -> None:
    """Store tensors in another dtype."""
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int32])
    save_file({name: t.to(dtype) for name, t in load_file(path).items()}, path)


def poison(path: Path, rng: random.Random) -> None:
    """Store one number that is NaN, infinite, or slightly another."""
    tensors = load_file(path)
    names = [name for name, t in tensors.items() if t.is_floating_point() and t.numel()]
    flat = tensors[rng.choice(names)].view(-1) if names else torch.zeros(1)
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), 1.5])
    save_file(tensors, path)


_ANY = (flip, flip, truncate, zero, garbage, empty, remove, lengthen, point, swap, fold)
_OF = {".json": (edit, edit, edit, drop), ".jsonl": (edit, edit), ".safetensors": (flip, cast, poison)}


def choose_damage(path: Path, rng: random.Random) -> Callable[[Path, random.Random], None]:
    """Return a way to damage a file that fits its kind."""
    return rng.choice((*_ANY, *_OF.get(path.suffix, ())))


@contextmanager
def _patience() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def classify(specimen: Specimen, folder: Path, expected: Result) -> tuple[str, str]:
    """Take a damaged copy up; return its outcome and what was said."""
    try:
        with _patience():
            result = specimen.use(folder)
    except UserError as error:
        return ("refused" if "\n" not in str(error) else "traceback"), str(error)
    except Named as error:
        return "named", str(error)
    except TimeoutError:
        return "hang", ""
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    wrong = [name for name in expected.keys() | result.keys() if expected.get(name) != result.get(name)]
    return ("silent", f"other {wrong[0]}") if wrong else ("harmless", "")


def _frames() -> list[np.ndarray]:
    return [numbered_frame(i, width=42, height=28) for i in range(4)]


def _use_checkpoint(folder: Path) -> Result:
    stream = DepthStream(load_student(folder / "last"), device="cpu")
    return {str(i): stream.step(frame).tobytes() for i, frame in enumerate(_frames())}


def _use_run(folder: Path, teacher: str) -> Result:
    log = folder / "metrics.jsonl"
    before = [] if not log.is_file() else read_json_lines(log)
    train(folder, teacher, f"trainer.steps={_STEPS}")
    result: Result = {}
    for path in sorted((folder / "checkpoints" / f"step_{_STEPS:08d}").glob("*.safetensors")):
        tensors = load_file(path)
        result |= {f"{path.name}/{name}": t.numpy().tobytes() for name, t in tensors.items()}
    *kept, last = read_json_lines(log)
    if kept != [r for r in before if r.get("step") in (1, 2)]:
        result["records that could be read"] = b"lost"
    return result | {"loss": repr(last["loss/total"]).encode()}


def _use_old_run(folder: Path, teacher: str) -> Result:
    """Version 0.1.0 kept no digests: what has changed cannot be known. No traceback, no hang."""
    train(folder, teacher, f"trainer.steps={_STEPS}")
    load_student(folder / "last")
    return {}


def _use_cache(folder: Path) -> Result:
    handler = _Warnings()
    logging.getLogger("videomamba_depth").addHandler(handler)
    try:
        report = verify_cache(folder, key=_KEY)
        result: Result = {}
        for video, frames in (("a.mp4", 13), ("b.mp4", 6)):
            reader = TeacherCacheReader(folder, _KEY, _TARGET_KEY)
            maps = reader.lookup(video, range(frames))
            for name, values in (maps or {}).items():
                result[f"{video} {name}"] = values.tobytes()
    finally:
        logging.getLogger("videomamba_depth").removeHandler(handler)
    if report.problems or report.unfinished:
        if any(result.get(name) != value for name, value in _EXPECTED_CACHE.items()) and not handler.lines:
            return {"labels that verify refuses": b""}
        if any(name in _EXPECTED_CACHE and value != _EXPECTED_CACHE[name] for name, value in result.items()):
            return {"labels that verify refuses, with a warning": b""}
        raise UserError((report.problems or [f"{report.unfinished} unfinished"])[0])
    return result


_EXPECTED_CACHE: Result = {}


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _use_stream(folder: Path) -> Result:
    stream = DepthStream("embedded", device="cpu", short_side=28, resets=ResetPolicy(max_gap_s=1.0))
    stream.load(folder / "stream.safetensors")
    return {str(i): stream.step(frame, 0.5 + 0.1 * i).tobytes() for i, frame in enumerate(_frames())}


def _use_state(folder: Path) -> Result:
    state = DepthState.load(folder / "state.safetensors")
    return {n: str(t.dtype).encode() + t.numpy().tobytes() for n, t in state.tensors().items()} | {
        "metadata": json.dumps(state.metadata()).encode()
    }


def _use_metrics(folder: Path) -> Result:
    """Every line that can be read is kept, and a warning counts the others."""
    path = folder / "metrics.jsonl"
    if path.is_dir():
        JsonLines(path)
    whole = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            whole.append(record)
    JsonLines(path, keep_up_to_step=10**9).close()
    kept = [json.loads(line, parse_constant=_no_number) for line in path.read_bytes().splitlines()]
    if len(kept) < 20:
        if len(kept) != len([r for r in whole if not isinstance(r.get("step"), float) or r["step"] <= 10**9]):
            return {"lines that could be read": b"lost"}
        raise Named(f"{20 - len(kept)} lines left out")
    return {"lines": b"20"}


def _no_number(name: str) -> float:
    raise AssertionError(f"{name} in JSON")


def _use_teacher(folder: Path) -> Result:
    teacher = DepthAnythingEncoder.from_pretrained(str(folder), short_side=28)
    rgb = torch.from_numpy(np.stack(_frames())).permute(0, 3, 1, 2).float() / 255
    return {"depth": teacher.predict_depth(rgb).numpy().tobytes()}


_SPEC = WorldSpec("moving", 3_000_000_000, 3, "courtyard", 28, 42)


def _use_world(folder: Path) -> Result:
    world = load_world(folder, _SPEC, DISFlow("fast"))
    arrays = {"rgb": world.frames, "depth_m": world.gt_depth_m, "flow_bwd": world.motion.flow_bwd}  # type: ignore[union-attr]
    return {name: np.array(values).tobytes() for name, values in arrays.items()}


def make_specimens(root: Path) -> list[Specimen]:
    """Make one of each kind, small."""
    teacher = save_tiny_teacher(root / "teacher")
    run = root / "run"
    train(run, teacher, f"trainer.steps={_STEPS}")
    shutil.rmtree(run / "checkpoints" / f"step_{_STEPS:08d}")
    (run / "last").unlink()
    (run / "last").symlink_to("checkpoints/step_00000002")
    old = root / "old"
    shutil.copytree(run, old, symlinks=True)
    (old / "encoder" / "manifest.json").unlink()
    for step in old.glob("checkpoints/*"):
        _without_digests(step)
    videos = root / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", 13)
    write_video(videos / "b.mp4", 6, seed=1)
    sources, flow = find_sources(videos), DISFlow("fast")
    cache = root / "cache"
    precompute_videos(sources, flat_depth, _KEY, cache, chunk_frames=4, flow=flow, progress=False)
    precompute_stabilized(sources, cache, _KEY, _TARGET_KEY, flow, progress=False)
    saved = root / "saved"
    saved.mkdir()
    stream = DepthStream("embedded", device="cpu", short_side=28, resets=ResetPolicy(max_gap_s=1.0))
    for i, frame in enumerate(_frames()):
        stream.step(frame, 0.1 * i)
    stream.save(saved / "stream.safetensors")
    assert stream.states is not None
    stream.states.save(saved / "state.safetensors")
    (saved / "metrics.jsonl").write_text("".join(json.dumps({"step": i + 1, "loss": i / 7}) + "\n" for i in range(20)))
    shipped = root / "shipped"
    shutil.copytree(EMBEDDED_TEACHER, shipped)
    worlds = root / "worlds"
    load_world(worlds, _SPEC, DISFlow("fast"))
    newest = "checkpoints/step_00000002/"
    loaded = (newest + "student.*", newest + "manifest.json", "encoder/*")
    specimens = [
        Specimen("student", run, loaded, _use_checkpoint),
        Specimen("run", run, (newest + "*", "encoder/*", "*.yaml", "*.jsonl"), lambda f: _use_run(f, teacher)),
        Specimen("run of 0.1.0", old, (newest + "*", "encoder/*", "*.jsonl"), lambda f: _use_old_run(f, teacher)),
        Specimen("teacher cache", cache, ("**/*",), _use_cache),
        Specimen("saved stream", saved, ("stream.safetensors",), _use_stream),
        Specimen("saved state", saved, ("state.safetensors",), _use_state),
        Specimen("metrics.jsonl", saved, ("metrics.jsonl",), _use_metrics),
        Specimen("shipped teacher", shipped, ("*.json", "*.safetensors"), _use_teacher),
        Specimen("kept world", worlds, ("**/*",), _use_world),
    ]
    _EXPECTED_CACHE.clear()
    _EXPECTED_CACHE.update(_use_cache(cache))
    return specimens


def _without_digests(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    description = json.loads((checkpoint / "student.json").read_text())
    del description["manifest"]
    (checkpoint / "student.json").write_text(json.dumps(description))
