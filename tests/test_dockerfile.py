"""The image is built from what the wheel is, and starts the page as the command understands it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml
from test_wheel import BUILT_FROM

from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.serve_schema import ServeConfig

ROOT = Path(__file__).resolve().parents[1]


def instructions(kind: str) -> list[str]:
    """Return the arguments of the instructions of one kind in the Dockerfile."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    return re.findall(rf"^{kind} (.*)$", text, re.MULTILINE)


def test_it_copies_what_the_wheel_is_built_from() -> None:
    sources = {source for copy in instructions("COPY") for source in copy.split()[1:-1]}
    assert sources == {*BUILT_FROM, "constraints.txt"}


def test_it_starts_the_page_on_the_port_that_it_exposes() -> None:
    (command,) = map(json.loads, instructions("CMD"))
    line = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", command[2]).replace("$CHECKPOINT", "embedded")
    words = shlex.split(line)
    assert words[:3] == ["exec", "videomamba-depth", "serve"]
    config = load_config("serve", ServeConfig, words[3:])
    assert [str(config.port)] == instructions("EXPOSE")
    assert (config.host, config.framed_by) == ("0.0.0.0", ["https://huggingface.co"])


def test_the_version_that_is_cited_is_that_of_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
