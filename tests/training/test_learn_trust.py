"""A trust learns from the truth which corrections to believe."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, load_script
from tiny import save_student_with_flow
from torch import Tensor

from videomamba_depth.models.checkpoint import (
    load_student,
    read_description,
)
from videomamba_depth.models.parallax_trust import NUM_CLUES, Parallax, ParallaxTrust
from videomamba_depth.training.parallax_trust import Example, errors, errors_of_decoder, learn
from videomamba_depth.utils.atomic import write_json
from videomamba_depth.utils.checkpoint import write_manifest
from videomamba_depth.utils.errors import UserError

N, GH, GW = 8, 12, 16


def example(seed: int) -> tuple[Example, Tensor]:
    """Return a video whose decoder is wrong, and the correction that would be right.

    The correction that parallax proposes is right where the first clue is 1, and of the wrong sign where it is -1.
    """
    draw = torch.Generator().manual_seed(seed)
    truth = 0.3 + torch.rand(1, 1, GH, GW, generator=draw).expand(N, 1, GH, GW)
    needed = 0.1 * torch.randn(N, 1, GH, GW, generator=draw)
    clues = torch.randn(N, NUM_CLUES, GH, GW, generator=draw)
    sign = clues[:, :1].sign()
    clues[:, :1] = sign
    zero, one = torch.zeros(N), torch.ones(N)
    parallax = Parallax(clues, sign * needed, truth * (-needed).exp(), torch.zeros_like(truth), one, 2 * one, zero)
    known = torch.ones_like(truth, dtype=torch.bool)
    return Example(parallax, truth, known), needed


@pytest.mark.parametrize("with_shift", [True, False])
def test_errors_vanish_with_the_right_correction(with_shift: bool) -> None:
    video, right = example(0)
    assert [float(e) for e in errors(video, right, with_shift)] == pytest.approx([0, 0, 0, 0], abs=1e-5)
    decoder = errors_of_decoder(video, with_shift)
    torch.testing.assert_close(decoder, errors(video, torch.zeros_like(right), with_shift))
    assert min(float(e) for e in decoder) > 0.02
    flipped = video.flipped()
    torch.testing.assert_close(errors(flipped, right.flip(-1), with_shift), errors(video, right, with_shift))


def test_a_shift_is_fitted_where_depth_has_one_and_unknown_points_do_not_count() -> None:
    video, right = example(0)
    shifted = video._replace(parallax=video.parallax._replace(shift=torch.full((N,), -0.7)))
    assert float(errors(shifted, right).video) < 1e-5
    assert float(errors(shifted, right, with_shift=False).video) > 0.1
    unknown = video.known.clone()
    unknown[..., :4] = False
    lies = torch.where(unknown, video.inv_depth, 5.0)
    assert float(errors(video._replace(inv_depth=lies, known=unknown), right).video) < 1e-5


def test_an_example_comes_back_from_arrays() -> None:
    video, _ = example(0)
    again = Example.from_arrays({name: np.array(values) for name, values in video.arrays().items()})
    torch.testing.assert_close(again, video, rtol=0, atol=0)
    part = video.frames(2, 3)
    assert len(part.known) == 3
    assert torch.equal(part.parallax.clues, video.parallax.clues[2:5])


def test_it_learns_which_corrections_are_right() -> None:
    torch.manual_seed(0)
    trust = ParallaxTrust(8)
    videos = [example(seed)[0] for seed in range(6)]
    learn(trust, videos, steps=200, rate=1e-2, seed=0, with_shift=True)
    unseen, _ = example(100)
    plain = errors(unseen, unseen.parallax.correction)
    learned = errors(unseen, trust(unseen.parallax))
    assert learned.video < 0.7 * plain.video, (learned, plain)
    assert learned.frame < 0.7 * plain.frame, (learned, plain)
    assert not any(p.requires_grad for p in trust.parameters())
    assert not trust(unseen.parallax).requires_grad


def test_learning_is_a_function_of_its_seed() -> None:
    videos = [example(seed)[0] for seed in range(2)]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        trust = ParallaxTrust(2)
        learn(trust, videos, steps=12, rate=1e-2, seed=seed, with_shift=True)
        found.append(trust.last.weight.clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.fixture(scope="module")
def student(tiny_teacher_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with flow, in a folder of its run."""
    return save_student_with_flow(tmp_path_factory.mktemp("run"), tiny_teacher_folder, {"step": 3})


def complete_worlds(work: Path) -> dict[Path, int]:
    """Return when the arrays of each finished world were written."""
    files = [file for file in work.rglob("*.npy") if not file.parent.name.startswith(".")]
    return {file: file.stat().st_mtime_ns for file in files}


def test_the_script_writes_the_student_with_a_trust_and_renders_nothing_twice(student: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    options = f"--work-dir {work} --worlds 7 --frames 8 --height 42 --width 56 --channels 4 --steps 20 --workers 1"

    def command(name: str) -> list[str | Path]:
        return [sys.executable, ROOT / "scripts" / "learn_trust.py", student, tmp_path / name, *options.split()]

    with subprocess.Popen(command("first"), stderr=subprocess.DEVNULL, start_new_session=True) as killed:
        while killed.poll() is None and len(complete_worlds(work)) < 2 * 9:
            time.sleep(0.05)
        os.killpg(killed.pid, signal.SIGKILL)
    written = [complete_worlds(work)]
    assert len(written[0]) < 7 * 9
    for name in ("first", "deeper/second"):
        done = subprocess.run(command(name), capture_output=True, text=True, check=True)
        assert "set aside (1 worlds), one alignment per video: error" in done.stderr
        written.append(complete_worlds(work))
    assert written[0].items() <= written[1].items()
    assert len(written[1]) == 7 * 9
    assert written[1] == written[2]
    first, second = (load_student(tmp_path / name, geometry=True) for name in ("first", "deeper/second"))
    assert first.trust is not None
    assert second.trust is not None
    for name, values in first.trust.state_dict().items():
        assert torch.equal(second.trust.state_dict()[name], values)
    assert read_description(tmp_path / "first")["step"] == 3
    assert (tmp_path / "first").stat().st_mode == student.stat().st_mode
    started = load_student(student)
    assert all(torch.equal(first.state_dict()[name], values) for name, values in started.state_dict().items())


def like(student: Path, folder: Path, **other: object) -> Path:
    """Return a copy of a student, in a folder beside it, that is described otherwise."""
    shutil.copytree(student, folder)
    write_json(folder / "student.json", {**read_description(student), **other})
    write_manifest(folder)
    return folder


def test_the_script_says_what_it_cannot_do(student: Path, tmp_path: Path) -> None:
    script = load_script("learn_trust")
    with pytest.raises(UserError, match="exists already; name another folder"):
        script.main([str(student), str(tmp_path)])
    still = like(student, tmp_path / "still", motion=None)
    with pytest.raises(UserError, match="was trained without any"):
        script.main([str(still), str(tmp_path / "new")])


def test_places_that_cannot_be_written_are_refused_before_anything_is_rendered(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("learn_trust")
    monkeypatch.setattr(script, "examples", lambda args: pytest.fail("rendered"))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    work = f"--work-dir={tmp_path / 'work'}"
    with pytest.raises(UserError, match=r"cannot write .*file/new: Not a directory; see to the folder"):
        script.main([str(student), str(tmp_path / "file" / "new"), work])
    with pytest.raises(UserError, match="exists already; name another folder"):
        script.main([str(student), str(tmp_path / "link"), work])
    with pytest.raises(UserError, match=r"cannot write .*file: File exists; see to the folder"):
        script.main([str(student), str(tmp_path / "new"), f"--work-dir={tmp_path / 'file'}"])
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_what_another_student_saw_is_not_taken_for_what_this_one_sees(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, folders = load_script("learn_trust"), []
    monkeypatch.setattr(script, "ProcessPoolExecutor", lambda workers, context: nullcontext(Pool()))

    class Pool:
        def map(self, example: partial[Path], numbers: range) -> list[Path]:
            folders.append(example.keywords["folder"])
            return []

    motion = read_description(student)["motion"]
    others = [
        student,
        like(student, student.parent / "copy"),
        like(student, student.parent / "other_flow", motion={**motion, "estimator": "inverse_search"}),
        like(student, student.parent / "larger", input_size=56),
    ]
    for folder in others:
        assert not list(script.examples(script.parse_arguments([str(folder), str(tmp_path / "new")])))
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


def test_learning_that_diverges_says_so() -> None:
    torch.manual_seed(0)
    videos = [example(seed)[0] for seed in range(2)]
    with pytest.raises(UserError, match=r"learning diverged at step \d+ of 40; choose a lower rate than 1e\+12 \(--lr"):
        learn(ParallaxTrust(2), videos, steps=40, rate=1e12, seed=0, with_shift=True)


def test_clues_that_a_first_frame_lacks_are_scaled_by_those_of_others() -> None:
    videos = [example(seed)[0] for seed in range(2)]
    for video in videos:
        video.parallax.clues[0] = 0
    trust = ParallaxTrust(2)
    learn(trust, videos, steps=20, rate=1e-3, seed=0, with_shift=True)
    assert float(trust.scale.min()) > 0.5
