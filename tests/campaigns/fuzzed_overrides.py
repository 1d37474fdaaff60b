"""Wrong, absurd and merely odd overrides for every command, drawn from the schemas, each run through the real main.

    python tests/campaigns/fuzzed_overrides.py --count 500 --seed 0

Every command starts from tiny inputs and does one step of work where it accepts what it is given. Each case must end in
exit status 0 with the values in the declared range, or in exit status 2 with one line: no traceback, no hang, no silent
use. A table of command and outcome is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from videomamba_depth.configuration.ablate_schema import AblateConfig  # noqa: E402
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig  # noqa: E402
from videomamba_depth.configuration.schema import PrecomputeConfig, TrainConfig  # noqa: E402
from videomamba_depth.configuration.serve_schema import ServeConfig  # noqa: E402
from videomamba_depth.configuration.stream_schema import StreamConfig  # noqa: E402
from videomamba_depth.utils.settings import Choice, Key, Range, Text, declared  # noqa: E402

TIMEOUT_S = 600.0  # an ONNX export takes 40 s of CPU time, on a busy machine 200 s
OUTCOMES = ("done", "refused", "traceback", "several lines", "silent", "hang")
GOOD = ("done", "refused")


@dataclass(frozen=True)
class Command:
    """A Hydra command: its entry file, config name, schema, and overrides that make it tiny."""

    script: str
    config: str
    schema: type
    tiny: tuple[str, ...]


COMMANDS = {
    "train": Command(
        "train.py",
        "train",
        TrainConfig,
        (
            "debug=smoke", "teacher.name={teacher}", "data.short_side=28", "data.crop=[28,28]", "data.clip_frames=2",
            "trainer.chunk_frames=2", "trainer.steps=1", "trainer.logger=none", "trainer.picture_every=0",
            "trainer.device=cpu", "trainer.threads=1", "run_dir=run", "loss.target_radius=1",
        ),
    ),
    "stream": Command(
        "inference_streaming.py",
        "stream",
        StreamConfig,
        ("checkpoint={student}", "input={video}", "output=out", "device=cpu", "threads=1", "max_frames=1"),
    ),
    "precompute": Command(
        "scripts/precompute_teacher_depth.py",
        "precompute",
        PrecomputeConfig,
        ("teacher.name={teacher}", "root={videos}", "cache=cache", "short_side=28", "device=cpu", "threads=1"),
    ),
    "evaluate": Command(
        "scripts/evaluate.py",
        "evaluate",
        EvaluateConfig,
        (
            "checkpoint={student}", "output=out", "cache=cache", "synthetic.videos=1", "synthetic.frames=3",
            "synthetic.height=28",
            "synthetic.width=28", "html.enabled=false", "palindrome=false", "cut_frames=0", "device=cpu", "threads=1",
            "short_side=28",
        ),
    ),
    "ablate": Command("scripts/ablate.py", "ablate", AblateConfig, ("only=[targets]", "seeds=[0]", "output=out")),
    "serve": Command(
        "scripts/serve.py", "serve", ServeConfig, ("checkpoint={student}", "port=0", "device=cpu", "threads=1")
    ),
}  # fmt: skip

# Scripts with options of argparse: what makes them tiny, and options with the kinds of their values.
SCRIPTS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "scripts/export_onnx.py": (
        ("{student}", "out.onnx", "--frames", "1", "--threads", "1"),
        {"--frames": "int", "--threads": "int", "--size": "pair", "--video": "path"},
    ),
    "scripts/evaluate_keyframes.py": (
        ("{student}", "--worlds", "2", "--before", "2", "--inserted", "1", "--after", "1"),
        {
            "--worlds": "int", "--before": "int", "--inserted": "int", "--skipped": "int", "--after": "int",
            "--short-side": "int", "--input-size": "int", "--threads": "int", "--clips": "path", "--output": "path",
        },
    ),
    "scripts/check_streaming_state.py": (
        ("--frames", "4"),
        {"--device": "text", "--variant": "text", "--frames": "int", "--backend": "text", "--tolerance": "float"},
    ),
    "scripts/render_synthetic_clip.py": (
        ("out.mp4", "--num-frames", "1", "--height", "16", "--width", "16"),
        {
            "--seed": "int", "--family": "text", "--camera-motion": "text", "--height": "int", "--width": "int",
            "--num-frames": "int", "--crf": "int",
        },
    ),
}  # fmt: skip

JUNK = (
    "", "x", "null", "nan", "inf", "-1", "1.5", "1e400", "[]", "[1,[2]]", "{}", "{a: 1}", "'", "${x}", "???",
    "日本", "\udcff", "a" * 300, "0x10", "1_0", " ", "$(ls)", "99999999999999999999", "\\", "a\nb", "~", "-",
)  # fmt: skip
PATHS = ("/etc/passwd", "/no/such", ".", "..", "/dev/null", "/proc/self/mem", "a/b/c", "*", "http://127.0.0.1:9/x")


def values_of(key: Key, draw: random.Random) -> str:
    """Return one value for a key: junk, beyond a bound, at a bound that costs nothing, or a fair one."""
    allowed, choices = key.allowed, list(JUNK)
    if isinstance(allowed, Range):
        low, high = allowed.low, allowed.high
        number = [str(low), str(low - 1), str(high + 1), str(high * 10 + 1), str(-high), "-0.0", "1e300", "-1e-9"]
        choices += number * 3
        choices += [f"[{value},{value}]" for value in number] + [f"[{','.join([str(low)] * 65)}]"]
    elif isinstance(allowed, Choice):
        choices += [
            *allowed.options,
            allowed.options[0].upper(),
            f"[{allowed.options[-1]}]",
            f" {allowed.options[0]}",
        ] * 3
    elif isinstance(allowed, Text):
        choices += [*PATHS, *PATHS, f"[{PATHS[0]},x:{PATHS[1]}]", "x:y:z"]
    else:
        choices += ["false", "yes", "2", "[true]"] * 2 + ([] if key.name.endswith("compile") else ["true"] * 4)
    return draw.choice(choices)


def hydra_case(name: str, draw: random.Random) -> list[str]:
    """Return one or two fuzzed overrides of a command."""
    keys = list(declared(COMMANDS[name].schema))
    kind = draw.random()
    if kind < 0.08:  # a misspelled key
        key = draw.choice(keys).name
        at = draw.randrange(len(key))
        return [f"{key[:at]}{draw.choice(['', 'x', '.', '-'])}{key[at + 1 :]}=1"]
    if kind < 0.16 and name in ("train", "precompute", "evaluate"):
        groups = [path.name for path in (ROOT / "configs").iterdir() if path.is_dir()]
        return [f"{draw.choice(groups)}={draw.choice([*JUNK, '../train', 'common', 'dis', 'embedded', '[embedded]'])}"]
    chosen = draw.sample(keys, 2 if draw.random() < 0.15 else 1)
    return [f"{key.name.replace('*', 'mine')}={values_of(key, draw)}" for key in chosen]


def script_case(name: str, draw: random.Random) -> list[str]:
    """Return one fuzzed option of a script."""
    option, kind = draw.choice(list(SCRIPTS[name][1].items()))
    choices = {"int": ["-1", "0", "1", "2", "5"], "float": ["-1", "0", "nan", "1e-3"], "path": list(PATHS)}.get(
        kind, []
    )
    values = [draw.choice([*JUNK, *choices * 4]).replace("\0", "") for _ in range(2 if kind == "pair" else 1)]
    return [option, *values]


def cases(count: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yield `count` cases (command, fuzzed arguments); the same for the same seed."""
    draw = random.Random(seed)
    weights = {
        "train": 30,
        "stream": 20,
        "precompute": 10,
        "evaluate": 18,
        "ablate": 6,
        "serve": 8,
    }
    weights |= dict.fromkeys(SCRIPTS, 2)
    for _ in range(count):
        name = draw.choices(list(weights), list(weights.values()))[0]
        yield name, hydra_case(name, draw) if name in COMMANDS else script_case(name, draw)


def make_inputs(folder: Path) -> dict[str, str]:
    """Write a tiny teacher, a student of it, and a video; return where they are."""
    from media import write_video
    from tiny import save_tiny_teacher, tiny_student

    from videomamba_depth.models.checkpoint import describe_encoder, save_student, student_weights
    from videomamba_depth.models.encoder_da import DepthAnythingEncoder
    from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec

    teacher = save_tiny_teacher(folder / "teacher")
    encoder = DepthAnythingEncoder.from_pretrained(teacher)
    encoder.save_pretrained(folder / "encoder")
    (folder / "last").mkdir()
    spec = TemporalSpec(*(ScaleSpec(num_blocks=n, backend="reference") for n in (1, 1, 2, 2)))
    weights, about = student_weights(tiny_student(encoder)), describe_encoder(encoder, "../encoder")
    save_student(folder / "last", weights, spec, about, short_side=28)
    (folder / "videos").mkdir()
    video = write_video(folder / "videos" / "clip.mp4", 3, width=48, height=36)
    return {
        "teacher": teacher,
        "student": str(folder / "last"),
        "video": str(video),
        "videos": str(video.parent),
    }


def work(pipe: Connection, folder: Path) -> None:
    """Run cases that come through the pipe, one after the other, and send back (status, output, values)."""
    from videomamba_depth.configuration import cli

    os.setpgid(0, 0)
    home = tempfile.mkdtemp(dir=folder)  # what `~` stands for: small, and nobody's
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HOME=home)
    seen: dict[str, dict[str, Any]] = {}
    to_schema: Callable[..., Any] = cli.to_schema

    def remember(config: Any, schema: type) -> Any:
        instance = to_schema(config, schema)
        seen[schema.__name__] = asdict(instance)
        return instance

    cli.to_schema = remember
    import huggingface_hub

    from videomamba_depth.serving import server

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    server.run_server = lambda *_: None
    while True:
        script, arguments = pipe.recv()
        place = Path(tempfile.mkdtemp(dir=folder))
        os.chdir(place)
        handle = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")  # as Python's own
        seen.clear()
        status = run_script(script, arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(folder)
        output = (place / "output.txt").read_text(errors="replace")
        shutil.rmtree(place, ignore_errors=True)
        pipe.send((status, output, dict(seen)))


def run_script(script: str, arguments: list[str]) -> int:
    """Run an entry file in this process as `python SCRIPT ARGUMENTS` does; return its exit status."""
    sys.argv = [script, *arguments]
    spec = importlib.util.spec_from_file_location("__main__", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    source = (ROOT / script).read_text(encoding="utf-8")
    if script.endswith("ablate.py"):  # list and check the runs; training and evaluation are other commands
        quick = "train_all, evaluate = lambda *_: {}, lambda *_: None"
        source = source.replace('if __name__ == "__main__":', f'{quick}\n\n\nif __name__ == "__main__":')
    try:
        exec(compile(source, script, "exec"), module.__dict__)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 99
    return 0


def in_range(name: str, values: dict[str, Any], overrides: list[str]) -> bool:
    """Tell whether the values of the keys that were set lie in what the schema declares."""
    named = {override.partition("=")[0] for override in overrides}
    for key in declared(COMMANDS[name].schema):
        if key.name not in named or key.allowed is None:
            continue
        value: Any = values
        for part in key.name.split("."):
            value = value[part]
        for element in value if isinstance(value, list) else [value]:
            if element is None:
                continue
            if isinstance(element, float) and not math.isfinite(element):
                return False
            if isinstance(key.allowed, Range) and not key.allowed.low <= element <= key.allowed.high:
                return False
            if isinstance(key.allowed, Choice) and element not in key.allowed.options:
                return False
    return True


def score(name: str, status: int, output: str, values: dict[str, Any] | None, overrides: list[str]) -> str:
    """Return the outcome of a case."""
    if "Traceback (most recent call last)" in output or status == 99:
        return "traceback"
    if status in (0, 1):
        is_explained = name != "precompute" or status == 0 or "is skipped" in output
        fits = values is None or in_range(name, values, overrides)
        return "done" if is_explained and fits else "silent"
    errors = [line for line in output.splitlines() if line.startswith("error:") or ": error:" in line]
    return "refused" if status == 2 and len(errors) == 1 else "several lines"


class Runner:
    """A long-lived process that runs cases; replaced when one hangs or kills it."""

    def __init__(self, folder: Path, places: dict[str, str]) -> None:
        self._folder, self._places = folder, places
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._folder), daemon=False)
        self._process.start()

    def run(self, name: str, overrides: list[str]) -> tuple[str, str]:
        """Return (outcome, output) of one case."""
        script, tiny = (COMMANDS[name].script, COMMANDS[name].tiny) if name in COMMANDS else (name, SCRIPTS[name][0])
        base = [argument.format(**self._places) for argument in tiny]
        self._pipe.send((script, [*base, *overrides]))
        try:
            if not self._pipe.poll(TIMEOUT_S):
                self.stop()
                self._start()
                return "hang", ""
            status, output, values = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.stop()
            self._start()
            return "traceback", "the process died"
        schema = COMMANDS[name].schema.__name__ if name in COMMANDS else ""
        return score(name, status, output, values.get(schema), overrides), output

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def campaign(count: int, seed: int, show: bool = False) -> tuple[Counter[tuple[str, str]], list[dict[str, Any]]]:
    """Run `count` cases; return how many ended how, and those that ended badly."""
    tally: Counter[tuple[str, str]] = Counter()
    bad: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runner = Runner(folder, make_inputs(folder))
        try:
            for number, (command, overrides) in enumerate(cases(count, seed)):
                outcome, output = runner.run(command, overrides)
                tally[command, outcome] += 1
                if show:
                    print(number, command, json.dumps(overrides), outcome, json.dumps(output[-300:]), flush=True)
                if outcome not in GOOD:
                    last = [line for line in output.splitlines() if line.strip()][-12:]
                    bad.append(
                        {"case": number, "command": command, "overrides": overrides, "outcome": outcome, "output": last}
                    )
                    print(json.dumps(bad[-1]), file=sys.stderr, flush=True)
        finally:
            runner.stop()
    return tally, bad


def table(tally: Counter[tuple[str, str]]) -> str:
    """Return the Markdown table of command and outcome."""
    names = [name for name in (*COMMANDS, *SCRIPTS) if any(tally[name, outcome] for outcome in OUTCOMES)]
    lines = [f"| command | {' | '.join(OUTCOMES)} |", f"|---|{'---:|' * len(OUTCOMES)}"]
    lines += [f"| {name} | {' | '.join(str(tally[name, outcome]) for outcome in OUTCOMES)} |" for name in names]
    totals = [sum(tally[name, outcome] for name in names) for outcome in OUTCOMES]
    return "\n".join([*lines, f"| all | {' | '.join(map(str, totals))} |"])


def main() -> None:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print every case")
    args = parser.parse_args()
    tally, bad = campaign(args.count, args.seed, args.show)
    print(table(tally))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
