"""The image is built from what the wheel is, and starts the page as the command understands it."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import socket
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from test_wheel import BUILT_FROM

from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = runpy.run_path(str(ROOT / "scripts/run_dockerfile.py"))


def instructions(wanted: str) -> list[str]:
    """Return the arguments of the instructions of one kind in the Dockerfile."""
    return [text for kind, text in SCRIPT["instructions"]((ROOT / "Dockerfile").read_text()) if kind == wanted]


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


def test_the_steps_are_done_in_a_folder(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "home"
    (source / "pages").mkdir(parents=True)
    (source / "pages/about").write_text("it answers")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    (source / "Dockerfile").write_text(
        "FROM x\n# RUN no\nRUN exit 1\nUSER 1000\nENV HOME=/home/user A=1 B=$HOME/b C=2\nWORKDIR /home/user/src\n"
        'COPY --chown=1000 pages pages\nRUN echo "$A" > a \\\n    && test "$C" != 2 && echo "$B" > b\n'
        f'CMD ["python3", "-m", "http.server", "-b", "127.0.0.1", "-d", "src/pages", "{port}"]\n'
    )
    command, environment = SCRIPT["prepare"](source / "Dockerfile", folder, ("C",))
    assert [(folder / "src" / name).read_text() for name in "ab"] == ["1\n", f"{folder}/b\n"]
    assert SCRIPT["fetch_page"](command, environment, folder, f"http://127.0.0.1:{port}/about") == b"it answers"
    with pytest.raises(UserError, match="exists"):
        SCRIPT["prepare"](source / "Dockerfile", folder)
    (source / "Dockerfile").write_text("USER 1\nRUN false\n")
    with pytest.raises(UserError, match="this step failed: false"):
        SCRIPT["prepare"](source / "Dockerfile", tmp_path / "other")


def test_the_version_that_is_cited_is_that_of_the_package() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
