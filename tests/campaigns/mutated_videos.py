"""Mutated videos through the real way from a file to its outputs: no traceback, no hang, no frame lost in silence.

    python tests/campaigns/mutated_videos.py [COUNT] [SEED]

prints a table, mutation by outcome, and every case that is not right. The model is a stand-in; source, pipeline, record
and sinks are the command's own. Each case runs in a worker process that is ended when it takes too long.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from media import numbered_frame, write_video

from videomamba_depth.streaming.job import StreamJob
from videomamba_depth.streaming.sinks.video import FrameLog, FramePainter, VideoSink
from videomamba_depth.streaming.sources.open import SourceSettings, open_source
from videomamba_depth.utils.color import ColorSettings, DepthColors
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError

NUM_FRAMES = 24
CASE_S = 60.0  # a case takes a fraction of a second
_P, _B = {"g": "8", "bf": "0"}, {"g": "8", "bf": "2"}
BASES: dict[str, dict[str, Any]] = {
    "h264.mp4": {"options": _B, "container_options": {"movflags": "faststart"}},
    "index_behind.mp4": {"options": _B},
    "fragments.mp4": {"options": _P, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mpeg4.mov": {"codec": "mpeg4", "options": {"g": "8"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=error:keyint=8"}},
    "h264.mkv": {"options": _B},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"g": "8"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "8"}},
    "h264.ts": {"options": _B},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25, "options": {"g": "8"}},
    "h264.flv": {"options": _B},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "8"}},
    "h264.avi": {"options": _P},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25, "options": {"g": "8", "bf": "2"}},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "anim.webp": {},
    "anim.png": {},
}
OUTCOMES = ("all frames", "named", "refused", "shorter file")
_STATES_NO_TOTAL = (".ts", ".gif", ".mpg")
# Packets can be taken apart and put together again in these.
_PACKETS = tuple(name for name in BASES if not name.startswith(("anim", "gif", "index_behind")))


@dataclass(frozen=True)
class Case:
    """One mutated file and how many frames it holds."""

    name: str
    mutation: str
    path: str
    num_frames: int


@dataclass(frozen=True)
class Result:
    """What became of it.

    outcome: "all frames"; "named" (some frames or all, a line names what is missing); "refused" (a line alone);
    "shorter file" (a stretch of whole packets is missing of a container that states no total); and what must not be:
    "SILENT", "TRACEBACK", "HANG", "CRASH", "WRONG TIMES", "WRONG VIDEO".
    """

    outcome: str
    frames: int = 0
    message: str = ""

    @property
    def right(self) -> bool:
        """Tell whether nothing must be mended."""
        return self.outcome in OUTCOMES


def write_bases(folder: Path) -> dict[str, Path]:
    """Write one whole video per container and codec that this PyAV can write."""
    bases = {}
    for name, recipe in BASES.items():
        path = folder / name
        if name.startswith("anim"):
            first, *others = (Image.fromarray(numbered_frame(k, 112, 84)) for k in range(NUM_FRAMES))
            first.save(path, save_all=True, append_images=others, duration=100)
        elif recipe.get("codec", "libx264") in av.codecs_available:
            # The same bytes each time: no random identifiers, no threads.
            options = {"threads": "1", **recipe.get("options", {})}
            container_options = {"fflags": "bitexact", **recipe.get("container_options", {})}
            recipe = {**recipe, "options": options, "container_options": container_options}
            write_video(path, NUM_FRAMES, width=112, height=84, **recipe)
        else:
            continue
        bases[name] = path
    return bases


def truncate(data: bytearray, rng: random.Random) -> bytearray:
    """Cut the end off."""
    return data[: rng.randrange(len(data) // 8, len(data))]


def flip_bytes(data: bytearray, rng: random.Random) -> bytearray:
    """Change a few bytes anywhere."""
    for _ in range(rng.choice((1, 3, 10, 40))):
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return data


def zero_range(data: bytearray, rng: random.Random) -> bytearray:
    """Zero a stretch of up to an eighth of the file."""
    length = rng.randrange(1, max(2, len(data) // 8))
    start = rng.randrange(len(data) - length)
    data[start : start + length] = bytes(length)
    return data


def edit_header(data: bytearray, rng: random.Random) -> bytearray:
    """Change bytes among the first."""
    for _ in range(rng.choice((1, 2, 5))):
        data[rng.randrange(min(len(data), 800))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data


def cut_out(data: bytearray, rng: random.Random) -> bytearray:
    """Leave a stretch out, as a download with a hole."""
    length = rng.randrange(1, max(2, len(data) // 8))
    start = rng.randrange(len(data) - length)
    del data[start : start + length]
    return data


def append_rubbish(data: bytearray, rng: random.Random) -> bytearray:
    """Put bytes after the end."""
    return data + rng.randbytes(rng.randrange(1, 2000))


BYTES: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "truncated": truncate,
    "bytes flipped": flip_bytes,
    "range zeroed": zero_range,
    "header edited": edit_header,
    "stretch left out": cut_out,
    "rubbish after the end": append_rubbish,
}


def drop_packets(packets: list[Any], rng: random.Random) -> list[Any]:
    """Leave one to three packets out."""
    left = set(rng.sample(range(len(packets)), rng.randrange(1, 4)))
    return [packet for number, packet in enumerate(packets) if number not in left]


def repeat_packets(packets: list[Any], rng: random.Random) -> list[Any]:
    """Send one to three packets twice."""
    twice = set(rng.sample(range(len(packets)), rng.randrange(1, 4)))
    return [p for number, packet in enumerate(packets) for p in [packet] * (1 + (number in twice))]


def swap_packets(packets: list[Any], rng: random.Random) -> list[Any]:
    """Swap two neighbors."""
    at = rng.randrange(len(packets) - 1)
    packets[at], packets[at + 1] = packets[at + 1], packets[at]
    return packets


def jump_stamps(packets: list[Any], rng: random.Random) -> list[Any]:
    """Let the clock jump at one packet, or begin anew there; decoding times go on."""
    at, jump_s = rng.randrange(1, len(packets)), rng.choice((0.5, 30, 3600, 86400, -0.5, -2, -3600))
    for packet in packets[at:]:
        packet.pts += int(jump_s / packet.time_base)
    return packets


def equal_stamps(packets: list[Any], rng: random.Random) -> list[Any]:
    """Give packets the stamps of the ones before."""
    for at in rng.sample(range(1, len(packets)), rng.randrange(1, 6)):
        packets[at].pts = packets[at - 1].pts
    return packets


PACKETS: dict[str, Callable[[list[Any], random.Random], list[Any]]] = {
    "packets dropped": drop_packets,
    "packets repeated": repeat_packets,
    "packets swapped": swap_packets,
    "clock jumps": jump_stamps,
    "equal stamps": equal_stamps,
}


def remux(path: Path, out: Path, change: Callable[[list[Any], random.Random], list[Any]], rng: random.Random) -> int:
    """Write the packets of a video anew, changed; returns how many there are now, 0 where the muxer refuses."""
    with av.open(str(path)) as source:
        video = source.streams.video[0]
        packets = change([packet for packet in source.demux(video) if packet.size], rng)
        # Strictly increasing decoding times, which muxers insist on; jumps go into the presentation times.
        step = round(Fraction(1, 10 if video.average_rate is None else video.average_rate) / video.time_base)
        shift = max(0, *(number * step - packet.pts for number, packet in enumerate(packets)))
        try:
            options = {"fflags": "bitexact"}
            if out.suffix in (".mp4", ".mov"):
                options["use_editlist"] = "0"  # it would hide what comes before the first stamp
            with av.open(str(out), "w", options=options) as target:
                copy: Any = target.add_stream_from_template(video)
                copy.time_base = video.time_base
                for number, packet in enumerate(packets):
                    twin = av.Packet(bytes(packet))
                    twin.time_base, twin.is_keyframe = packet.time_base, packet.is_keyframe
                    twin.dts, twin.pts, twin.stream = number * step, packet.pts + shift, copy
                    target.mux(twin)
        except (av.error.FFmpegError, ValueError):
            return 0
    return len(packets)


def make_cases(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Write `count` mutated files, in turn over mutations and containers."""
    bases = write_bases(folder)
    rng = random.Random(seed)
    turns: list[tuple[str, str]] = [(mutation, name) for mutation in BYTES for name in bases]
    turns += [(mutation, name) for mutation in PACKETS for name in bases if name in _PACKETS]
    made = 0
    for number, (mutation, name) in enumerate(itertools.cycle(turns)):
        if made == count:
            return
        out = folder / f"{number:05d}_{mutation.replace(' ', '_')}_{name}"
        frames = NUM_FRAMES
        if mutation in BYTES:
            out.write_bytes(BYTES[mutation](bytearray(bases[name].read_bytes()), rng))
        else:
            frames = remux(bases[name], out, PACKETS[mutation], rng)
        if frames:
            made += 1
            yield Case(name, mutation, str(out), frames)


class StandIn:
    """A stream without a model: depth is the red channel."""

    reset_reasons = ("",)
    depth_kind = DepthKind.RELATIVE
    notes: ClassVar[dict[str, Any]] = {}

    def step(self, rgb: np.ndarray, timestamp_s: float | None = None) -> np.ndarray:
        """Return float32 [H,W]."""
        return rgb[..., 0].astype(np.float32) + 1


def run_case(case: Case) -> Result:
    """Stream one file as the command does."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    logging.getLogger("videomamba_depth.data").setLevel(logging.INFO)
    out = Path(case.path + ".out")
    out.mkdir(exist_ok=True)
    message, outcome = "", ""
    try:
        colors = DepthColors(DepthKind.RELATIVE, ColorSettings(map="gray", range=(0.0, 256.0)))
        painter = FramePainter(colors, side_by_side=False)
        source = open_source(SourceSettings(input=case.path))
        sinks = [FrameLog(out / "frames.jsonl"), VideoSink(out / "depth.mp4", painter, source.fps)]
        StreamJob(source, StandIn(), sinks, overlap=False).run()  # type: ignore[arg-type]
    except UserError as error:
        message = str(error)
    except BaseException as error:
        return Result("TRACEBACK", message=f"{type(error).__name__}: {error}")
    finally:
        logging.getLogger().removeHandler(handler)
    log = out / "frames.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    times = [record["time_s"] for record in records]
    explanation = message or " | ".join(lines)
    if any(a >= b for a, b in itertools.pairwise(record["pts"] for record in records)) or not np.isfinite(times).all():
        outcome = "WRONG TIMES"
    elif records and _frames_of(out / "depth.mp4") != len(records):
        outcome = "WRONG VIDEO"
    elif explanation:
        outcome = "named" if records else "refused"
    elif len(records) >= case.num_frames:
        outcome = "all frames"
    elif case.mutation in ("truncated", "stretch left out") and case.name.endswith(_STATES_NO_TOTAL):
        outcome = "shorter file"
    else:
        outcome = "SILENT"
    return Result(outcome, len(records), explanation)


def _frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def _work(connection: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars, and what decoders say
    connection.send(None)  # a start, with all its imports, counts to no case
    while (case := connection.recv()) is not None:
        connection.send(run_case(case))


def run_cases(cases: Iterator[Case]) -> Iterator[tuple[Case, Result]]:
    """Run cases one after the other in a worker, anew after a hang or a crash."""
    context = multiprocessing.get_context("spawn")
    worker, ours = None, None
    for case in cases:
        if worker is None or not worker.is_alive():
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs,), daemon=True)
            worker.start()
            theirs.close()
            ours.recv()
        assert ours is not None
        ours.send(case)
        try:
            result = ours.recv() if ours.poll(CASE_S) else Result("HANG")
        except EOFError:
            result = Result("CRASH")
        if result.outcome in ("HANG", "CRASH"):
            worker.kill()
            worker.join()
        yield case, result
    if worker is not None and worker.is_alive() and ours is not None:
        ours.send(None)
        worker.join()


def table(results: list[tuple[Case, Result]]) -> str:
    """Return mutation by outcome as a Markdown table."""
    counts = Counter((case.mutation, result.outcome) for case, result in results)
    outcomes = list(OUTCOMES)
    outcomes += sorted({outcome for _, outcome in counts} - set(outcomes))
    rows = [f"| mutation | {' | '.join(outcomes)} |", "|---" * (1 + len(outcomes)) + "|"]
    for mutation in [*BYTES, *PACKETS]:
        rows.append(f"| {mutation} | " + " | ".join(str(counts[mutation, outcome]) for outcome in outcomes) + " |")
    totals = [str(sum(counts[m, outcome] for m in [*BYTES, *PACKETS])) for outcome in outcomes]
    return "\n".join([*rows, "| all | " + " | ".join(totals) + " |"])


def campaign(folder: Path, count: int, seed: int) -> list[tuple[Case, Result]]:
    """Make and run `count` cases in `folder`."""
    return list(run_cases(make_cases(folder, count, seed)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = campaign(Path(place), *(int(text) for text in (sys.argv[1:] + ["400", "0"][len(sys.argv) - 1 :])))
    print(table(found))
    for one, result in found:
        if not result.right:
            print(
                f"{Path(one.path).name}: {result.outcome}, {result.frames} of {one.num_frames} frames; {result.message}"
            )
