"""What `--help` of a Hydra command prints: purpose, examples, groups, and the keys with their comments."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import yaml

_NOT_KEYS = ("defaults:", "hydra:")  # blocks of a file that are no keys of the command
_FLAGS = """
flags:
  --help           this page
  --cfg job        print all keys with the values that they would have, and end
  -m, --multirun   run once per combination of values: KEY=a,b,c"""


def help_page(config_dir: Path, config_name: str, about: str, program: str) -> str:
    """Return the page of a command.

    Args:
        config_dir: folder of the YAML files. config_name: the command's, without suffix.
        about: the docstring of the command's module: purpose and examples.
        program: how it was called, `videomamba-depth NAME` or `python FILE`.
    """
    text = (config_dir / f"{config_name}.yaml").read_text(encoding="utf-8")
    chosen = config_groups(text)
    usage = f"usage: {program} [GROUP=CHOICE ...] [KEY=VALUE ...]" if chosen else f"usage: {program} [KEY=VALUE ...]"
    parts = [about.strip().replace(f"videomamba-depth {config_name}", program), "", usage]
    if chosen:
        example = next(name for name, choice in reversed(chosen.items()) if choice)
        parts += [
            "",
            f"groups: a choice is a file of settings, whose keys are {example}.KEY=VALUE and so on; read them in",
        ]
        parts += [f"  {config_dir}"]
        parts += [line for name, choice in chosen.items() for line in _group(config_dir / name, choice)]
    parts += ["", "keys, with their defaults; ??? has none and must be given:", textwrap.indent(_keys(text), "  ")]
    return "\n".join([*parts, _FLAGS])


def config_groups(text: str) -> dict[str, str | None]:
    """Return {group: default choice} of the text of a command's config file."""
    groups = [group for entry in yaml.safe_load(text)["defaults"] if entry != "_self_" for group in entry.items()]
    return {name: choice for name, choice in groups if not name.startswith("override ")}


def _group(folder: Path, default: str | None) -> list[str]:
    """Return a group's line: its name and what may be chosen."""
    choices = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "common")
    names = ", ".join(f"{name} (default)" if name == default else name for name in choices)
    return [f"  {folder.name:15} {names}" + ("" if default else "; default: none")]


def _keys(text: str) -> str:
    """Return the text of a file without the comment at its top and without what only Hydra reads."""
    blocks = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    return "".join(block for block in blocks if not block.startswith(_NOT_KEYS)).strip()
