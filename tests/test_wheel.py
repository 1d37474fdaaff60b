"""The wheel holds all that its commands need, and they run from it, away from the repository."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from videomamba_depth.commands import console
from videomamba_depth.configuration.cli import CONFIG_DIR
from videomamba_depth.utils import extras
from videomamba_depth.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("videomamba_depth", "kernels", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
FOUND_BY_SUFFIX = {
    ".py",
    ".cpp",
    ".h",
    ".yaml",
    ".json",
    ".safetensors",
    ".mp4",
    ".j2",
    ".css",
    ".js",
    ".html",
    ".typed",
}


def in_the_wheel(path: Path) -> str:
    """Return the name in the wheel of a file of the repository."""
    name = path.relative_to(ROOT).as_posix()
    return f"videomamba_depth/{name}" if name.startswith("configs/") else name.removeprefix("kernels/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, which leaves nothing in the repository."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    environment = {**os.environ, "GITHUB_SERVER_URL": "https://host.test", "GITHUB_REPOSITORY": "me/mine"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for folder in ("videomamba_depth", "kernels", "configs") for path in (ROOT / folder).rglob("*")]
    needed = {in_the_wheel(path) for path in files if path.suffix in FOUND_BY_SUFFIX}
    assert {f"videomamba_depth/commands/{name}.py" for name in console.COMMANDS} < needed
    assert sorted(needed - held) == []
    packages = {name.partition("/")[0] for name in held}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"videomamba_depth", "selective_scan"}
    entry_points = zipfile.ZipFile(wheel).read(next(name for name in held if name.endswith("entry_points.txt")))
    assert b"videomamba-depth = videomamba_depth.commands.console:main" in entry_points
    about = zipfile.ZipFile(wheel).read(next(name for name in held if name.endswith("METADATA"))).decode()
    assert "Project-URL: Source, https://host.test/me/mine\n" in about


@pytest.mark.parametrize("name", [name for name in console.COMMANDS if name not in ("export", "push")])
def test_help_is_a_page_for_newcomers(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/videomamba-depth", name, "--help"])
    console.main()
    page = capsys.readouterr().out
    assert f"usage: videomamba-depth {name}" in page
    assert page.count(f"videomamba-depth {name}") > 1  # with examples
    assert "defaults:" not in page
    assert "hydra" not in page.lower()
    assert not re.findall(r"scripts/|(?<!\w)\w+_streaming\.py|train\.py", page)  # which only the repository has
    for line in (CONFIG_DIR / f"{name}.yaml").read_text().splitlines():
        if line[:1].isalpha() and not line.startswith(("defaults", "hydra")):
            assert line in page  # every key of the command, with its comment


def test_without_a_command_all_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/videomamba-depth"])
    console.main()
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in console.COMMANDS)


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/videomamba-depth", "trian"])
    with pytest.raises(SystemExit) as stopped:
        console.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no command 'trian'; there are train, stream")


def test_every_extra_that_is_named_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for package, extra in extras.EXTRAS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{extra} = ["))
        assert f'"{package}>=' in line


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    with pytest.raises(UserError, match=r"^raw=zarr needs zarr: pip install 'videomamba-depth\[train\]'$"):
        extras.require("zarr", "raw=zarr")
    monkeypatch.setattr(sys, "version_info", (3, 10, 19))
    with pytest.raises(UserError, match=r"^raw=zarr needs zarr, which needs Python 3.11 or newer$"):
        extras.require("zarr", "raw=zarr")


def test_streaming_and_training_import_no_extra() -> None:
    commands = ", ".join(f"videomamba_depth.commands.{name}" for name in console.COMMANDS)
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(extras.EXTRAS)!r})); import {commands}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


class Installed:
    """The wheel in a virtual environment that sees the other packages of this one, but not this repository."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.folder, environment = folder, folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
        (packages,) = environment.glob("lib/python*/site-packages")
        others = [path for path in map(Path, site.getsitepackages()) if path.is_dir()]
        # Added after Python has started, so that no .pth file there, as that of an editable install, is read.
        (packages / "others.pth").write_text("\n".join(map(str, others)) + "\n")
        install = ["install", "--quiet", "--no-deps", "--no-index", f"--prefix={environment}", str(wheel)]
        pip = [environment / "bin/python", "-m", "pip", *install, "--ignore-installed"]
        subprocess.run(pip, check=True, cwd=folder, env=self.environment, timeout=120)
        self.program = environment / "bin/videomamba-depth"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {
            **kept,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "SELECTIVE_SCAN_CACHE_DIR": str(self.folder / "kernels"),
        }

    def run(self, *arguments: str, timeout_s: float = 600) -> str:
        """Run the console command; return what it printed."""
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def page(self, *arguments: str) -> bytes:
        """Start the page's server, return its page, and end it with SIGTERM."""
        options = {"cwd": self.folder, "env": self.environment, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([self.program, *arguments], **options) as server:
            lines = []
            for line in server.stderr:
                lines.append(line)
                if address := re.search(r"http://\S+", line):
                    break
            else:
                raise AssertionError("".join(lines))
            try:
                with urllib.request.urlopen(address[0], timeout=60) as answer:
                    return answer.read()
            finally:
                server.terminate()
                assert server.wait(60) == 130


@pytest.mark.slow
def test_the_installed_commands_run_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(wheel, tmp_path)
    (clip,) = tmp_path.glob("environment/lib/python*/site-packages/videomamba_depth/assets/clip.mp4")
    (tmp_path / "videos").mkdir()
    shutil.copy(clip, tmp_path / "videos")
    cpu = ("device=cpu", "threads=1")
    assert "usage" in installed.run("--help")
    train = (
        "train", "debug=smoke", "name=mine", "trainer.device=cpu", "trainer.threads=1", "data.num_workers=0",
        "trainer.total_steps=4", "model=plain_stack", "loss=raw",
    )  # fmt: skip
    installed.run(*train, "trainer.steps=2")
    installed.run(*train, "trainer.steps=4")
    assert list((tmp_path / "kernels").glob("*.so"))
    assert (tmp_path / "runs/mine/checkpoints/step_00000004").is_dir()
    installed.run("stream", "checkpoint=runs/mine/last", "input=videos/clip.mp4", "output=out", "raw=zarr", *cpu)
    assert (tmp_path / "out/clip.mp4").is_file()
    installed.run("precompute", "root=videos", "cache=cache", "short_side=56", "batch_frames=16", *cpu)
    report = ("synthetic.videos=1", "synthetic.frames=4", "output=report", *cpu)
    installed.run("evaluate", "checkpoint=runs/mine/last", *report)
    assert (tmp_path / "report/evaluation.html").is_file()
    assert "differs from PyTorch" in installed.run(
        "export", "runs/mine/last", "depth.onnx", "--size", "60", "70", "--frames", "3"
    )
    assert b"<title>" in installed.page("serve", "checkpoint=runs/mine/last", "port=0", *cpu)
