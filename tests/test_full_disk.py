"""Commands on a full disk: one line, exit status 2, no staging folder left, and "written" only of what is.

A limit on the size of a file (RLIMIT_FSIZE) stands for the disk: the file that grows beyond it is refused.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from commands import Result, run_command
from media import write_video

SMOKE = ("debug=smoke", "trainer.device=cpu", "trainer.threads=1", "trainer.logger=none", "data.num_workers=0")


def run_with_largest_file(num_bytes: int, folder: Path, script: str, *arguments: str) -> Result:
    """Run a command of which no file may grow beyond `num_bytes`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    wrapper = folder / "limited.py"
    wrapper.write_text(
        f"import resource, runpy\nresource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, {before[1]}))\n"
        f"runpy.run_path({str(Path(__file__).parents[1] / script)!r}, run_name='__main__')\n"
    )
    return run_command(folder, str(wrapper), *arguments)


def assert_one_line(done: Result) -> None:
    assert done.status == 2, done.err
    assert len(done.errors) == 1, done.err
    assert "Traceback" not in done.err
    assert "File too large" in done.errors[0]
    assert "free some space" in done.errors[0]


def test_training(tmp_path: Path, tiny_teacher_folder: str) -> None:
    done = run_with_largest_file(
        100_000, tmp_path, "train.py", f"teacher.name={tiny_teacher_folder}", "run_dir=run", *SMOKE
    )
    assert_one_line(done)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_precompute(tmp_path: Path, tiny_teacher_folder: str) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "clip.mp4", num_frames=4)
    done = run_with_largest_file(
        2000, tmp_path, "scripts/precompute_teacher_depth.py", f"teacher.name={tiny_teacher_folder}", "root=videos",
        "cache=cache", "short_side=28", "device=cpu", "threads=1",
    )  # fmt: skip
    assert_one_line(done)


@pytest.mark.parametrize(
    "options", [("raw=npz", "video=none"), ("raw=zarr", "video=none"), ("video=depth", "raw=none")]
)
def test_streaming(tmp_path: Path, options: tuple[str, str]) -> None:
    write_video(tmp_path / "clip.mp4", num_frames=20, width=128, height=96)
    done = run_with_largest_file(
        6000, tmp_path, "inference_streaming.py", "checkpoint=embedded", "input=clip.mp4", "output=out",
        "input_size=56", "device=cpu", "threads=1", *options,
    )  # fmt: skip
    assert_one_line(done)
    assert "and written" not in done.errors[0]
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_evaluation(tmp_path: Path) -> None:
    """The report grows beyond the limit; the frames, in temporary files, do not."""
    write_video(tmp_path / "clip.mp4", num_frames=4, width=16, height=16)
    done = run_with_largest_file(
        12_000, tmp_path, "scripts/evaluate.py", "checkpoint=embedded", "input=clip.mp4", "output=out", "short_side=56",
        "device=cpu", "threads=1", "palindrome=false", "cut_frames=0", "cache=null",
        "html.enabled=false",
    )  # fmt: skip
    assert_one_line(done)
    assert "cannot write out/evaluation" in done.errors[0]
    assert "wrote" not in done.out
    assert not list((tmp_path / "out").rglob("*.partial"))
