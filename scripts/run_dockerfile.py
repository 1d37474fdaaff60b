"""Do what the Dockerfile says in a folder, without Docker, then fetch the page that it serves.

    python scripts/run_dockerfile.py FOLDER --without UV_TORCH_BACKEND

The folder stands for /home/user and must not exist. The steps before USER need root and are only printed: what they
install must be there, and `python` be of the image's version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from string import Template

from videomamba_depth.utils.arguments import path_argument
from videomamba_depth.utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
HOME = "/home/user"


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile and their arguments, lines joined and comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n\s*", " ", lines), re.MULTILINE)


def prepare(dockerfile: Path, folder: Path, without: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """Copy and run what a Dockerfile says below `folder`; return its command and the environment.

    Args:
        without: variables that its ENV sets and that are left as they are.

    Raises:
        UserError: the folder exists, or a step fails.
    """
    if folder.exists():
        raise UserError(f"'{folder}' exists; name a folder that does not")
    folder.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    place, is_user, command = folder, False, []
    for kind, text in instructions(dockerfile.read_text(encoding="utf-8")):
        argument = text.replace(HOME, str(folder.resolve()))
        if kind == "USER":
            is_user = True
        elif kind == "ENV":
            for name, value in re.findall(r"(\w+)=(\S*)", argument):
                if name not in without:
                    environment[name] = Template(value).safe_substitute(environment)
        elif kind == "WORKDIR":
            place = Path(argument)
            place.mkdir(parents=True, exist_ok=True)
        elif kind == "COPY":
            *sources, target = [word for word in argument.split() if not word.startswith("--")]
            for source in sources:
                path = dockerfile.parent / source
                if path.is_dir():
                    shutil.copytree(path, place / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(path, place / target)
        elif kind == "RUN":
            print(f"{'+' if is_user else 'root, left out:'} {argument}", flush=True)
            if is_user and subprocess.run(["sh", "-ec", argument], cwd=place, env=environment).returncode:
                raise UserError(f"this step failed: {argument}")
        elif kind == "CMD":
            command = json.loads(argument)
    return command, environment


def fetch_page(command: list[str], environment: dict[str, str], folder: Path, url: str, wait_s: float = 600) -> bytes:
    """Start a server, return what `url` gives, and stop the server.

    Raises:
        UserError: it ends, or does not answer in time.
    """
    with subprocess.Popen(command, cwd=folder, env=environment) as server:
        try:
            end = time.monotonic() + wait_s
            while time.monotonic() < end and server.poll() is None:
                try:
                    with urllib.request.urlopen(url, timeout=10) as answer:
                        return answer.read()
                except OSError:
                    time.sleep(0.2)
            raise UserError(f"nothing answers at {url}")
        finally:
            server.terminate()


def main(arguments: list[str] | None = None) -> None:
    """Run the steps, and say what the page gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=path_argument, help="stands for /home/user; must not exist")
    parser.add_argument("--without", action="append", default=[], help="a variable of ENV that is not set")
    args = parser.parse_args(arguments)
    command, environment = prepare(ROOT / "Dockerfile", args.folder, tuple(args.without))
    (port,) = [text for kind, text in instructions((ROOT / "Dockerfile").read_text()) if kind == "EXPOSE"]
    page = fetch_page(command, environment, args.folder, f"http://127.0.0.1:{port}/api/about")
    print(f"the page answers: {page.decode()[:120]}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
