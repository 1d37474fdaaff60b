"""Every command that README, docs and docstrings print is understood by the program that it calls.

A command line is composed or parsed as its program would, up to where the work begins. What cannot be is named in
`NOT_RUN`, with the reason; a new command that is neither fails.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from videomamba_depth.commands.console import COMMANDS
from videomamba_depth.configuration import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("kernels/**/*.md")),
    *sorted(ROOT.glob("videomamba_depth/assets/*/README.md")),
]
PROGRAMS = [
    ROOT / "train.py",
    ROOT / "inference_streaming.py",
    *sorted(path for folder in ("scripts", "benchmarks", "examples") for path in (ROOT / folder).glob("*.py")),
    *sorted(ROOT.glob("tests/campaigns/*.py")),
    *sorted(ROOT.glob("videomamba_depth/commands/[!_]*.py")),
]
NOT_RUN = {
    "python scripts/precompute_teacher_depth.py -m hydra/launcher=submitit_slurm hydra.launcher.partition=gpu"
    " hydra.launcher.nodes=1 hydra.launcher.tasks_per_node=2 hydra.launcher.gpus_per_node=2"
    " hydra.launcher.cpus_per_task=4 hydra.launcher.timeout_min=90 root=list.txt"
    " cache=cache": "needs an extra; test_slurm submits it",
    "pip install torch torchvision": "installs several GB",
    "python tests/campaigns/mutated_videos.py 400 0": "reads its arguments itself; tests/campaigns runs it in small",
    "python tests/campaigns/mutated_videos.py [COUNT] [SEED]": "names its arguments, gives none",
    "python scripts/plot_discretizations.py [--out docs/figures]": "names its arguments, gives none",
    "python scripts/ablate.py [only=[form,motion]] [seeds=[0,1,2]] [workers=2]": "names its arguments, gives none",
    "python train.py [group=choice] [key=value]": "names its arguments, gives none",
    "python examples/run_onnx.py depth.onnx clip.mp4 depth.mp4": "reads its arguments itself; tests/export runs it",
}
CONSOLE = "videomamba_depth.commands.console"
COMMAND = r"(?:[A-Z_]+=\S+ |nice -n \d+ )*(?:python|torchrun|pytest|make|pip|videomamba-depth)\s"


class WorkBegins(BaseException):
    """Raised where a program has understood its command line."""


def joined(text: str) -> str:
    """Join lines that end in a backslash."""
    return re.sub(r"\s*\\\n\s*", " ", text)


def commands_of_a_page(text: str) -> Iterator[str]:
    """Yield the command lines of fenced blocks without a language or of a shell, and of code within sentences."""
    fences = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for language, block in fences.findall(text):
        if language in ("", "bash", "sh", "console", "shell"):
            yield from (line for line in joined(block).splitlines() if re.match(COMMAND, line))
    for code in re.findall(r"`([^`]+)`", fences.sub("", text)):
        if re.match(COMMAND, code):
            yield joined(code).replace("\n", " ")


def commands_of_a_program(text: str) -> Iterator[str]:
    """Yield the command lines of a module's docstring."""
    docstring = text.split('"""')[1]
    yield from (line.strip() for line in joined(docstring).splitlines() if re.match(rf"\s*{COMMAND}", line))
    yield from (code for code in re.findall(r"`([^`]+)`", docstring) if re.match(COMMAND, code) and "…" not in code)


def cleaned(command: str) -> str:
    """Return a command without its comment and without runs of spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\s+#.*", "", command)).strip()


def printed() -> list[str]:
    """Return all printed commands; a trailing `...` stands for what its reader adds."""
    found = [command for page in PAGES for command in commands_of_a_page(page.read_text(encoding="utf-8"))]
    found += [c for program in PROGRAMS for c in commands_of_a_program(program.read_text(encoding="utf-8"))]
    return sorted({cleaned(command) for command in found})


def alternatives(argument: str) -> list[str]:
    """Return what a sweep makes of one override: `a=1,2` is two, `a=[1,2]` one."""
    key, equals, value = argument.partition("=")
    if "[" in value or "," not in value:
        return [argument]
    return [f"{key}{equals}{one}" for one in value.split(",")]


def compose(name: str, schema: type[Any], arguments: list[str]) -> None:
    """Compose the config of a Hydra command; every value of a sweep once."""
    sweep = "-m" in arguments or "--multirun" in arguments
    overrides = [a for a in arguments if not a.startswith("-") and a != "job"]
    choices = [alternatives(a) if sweep else [a] for a in overrides]
    for number in range(max(map(len, choices), default=1)):
        cli.load_config(name, schema, [choice[min(number, len(choice) - 1)] for choice in choices])


def check_program(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program up to where its config is composed or its arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def entry(name: str, schema: type[Any], main: Any) -> NoReturn:
        compose(name, schema, sys.argv[1:])
        raise WorkBegins

    def parse_args(self: argparse.ArgumentParser, *given: Any, **options: Any) -> NoReturn:
        parse(self, *given, **options)
        raise WorkBegins

    for module in (cli, *(importlib.import_module(f"videomamba_depth.commands.{name}") for name in COMMANDS)):
        monkeypatch.setattr(module, "hydra_entry", entry, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
    with pytest.raises(WorkBegins):
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("command", [command for command in printed() if command not in NOT_RUN])
def test_a_printed_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    while "=" in words[0] or words[0] == "nice":
        words = words[3:] if words[0] == "nice" else words[1:]
    if words[0] == "make":
        assert words[1] in re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        for extra in re.findall(r"\[(\w+)\]", command):
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
        target = words[-1].partition("[")[0]
        assert target == "videomamba-depth" or (ROOT / target / "pyproject.toml").is_file()
    elif words[0] == "pytest":
        assert words[1:3] in (["-m", "slow"], ["-m", "gpu"])
        assert all((ROOT / path).exists() for path in words[3:] if path != "-s")
    elif CONSOLE in words:
        name, *arguments = words[words.index(CONSOLE) + 1 :]
        assert words[words.index(CONSOLE) - 1] == "-m"
        check_program(f"videomamba_depth/commands/{name}.py", arguments, monkeypatch)
    elif words[0] == "videomamba-depth":
        check_program(f"videomamba_depth/commands/{words[1]}.py", words[2:], monkeypatch)
    else:
        script = next(i for i, word in enumerate(words) if word.endswith(".py"))
        check_program(words[script], words[script + 1 :], monkeypatch)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_printed_code_imports_what_is_there(page: Path) -> None:
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == [], node.module


def test_the_first_code_of_the_readme_runs_as_printed() -> None:
    """With the student that is shipped in place of one that the demo trains."""
    names: dict[str, Any] = {}
    exec(python_blocks(ROOT / "README.md")[0].replace("runs/demo/last", "embedded"), names)
    assert tuple(names["depth"].shape[-2:]) == (112, 140)


def test_what_is_not_run_is_printed_somewhere() -> None:
    assert set(NOT_RUN) <= set(printed())


@pytest.mark.parametrize("wrong", ["python train.py optim.lrr=1", "python scripts/export_onnx.py a b --sise 1 2"])
def test_a_command_that_is_not_understood_fails(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((cli.UserError, SystemExit)):
        check_program(wrong.split()[1], wrong.split()[2:], monkeypatch)


def test_every_kind_of_printed_command_is_found() -> None:
    page = "`make demo` and\n```\npython a.py \\\n    b=1   # why\n```\n```python\nmake = 1\n```\n`python c.py`"
    assert [cleaned(c) for c in commands_of_a_page(page)] == ["python a.py b=1", "make demo", "python c.py"]
    assert len(printed()) > 50
