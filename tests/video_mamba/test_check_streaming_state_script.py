"""The self-check script: passes here, without any CUDA package, and notices every way to lose a state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from commands import load_script

from videomamba_depth.layers.mamba_mixer import MambaMixer
from videomamba_depth.video_mamba import pretrain

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_streaming_state.py"
FAST = ["--frames", "4"]

_WITHOUT_CUDA_PACKAGES = """
import runpy, sys
from importlib.machinery import PathFinder
class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = {"triton", "mamba_ssm", "causal_conv1d", "cupy", "nvidia"}
        return None if name.split(".")[0] in hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def script() -> ModuleType:
    return load_script("check_streaming_state")


def test_point_19_passes_on_a_cpu_without_cuda_packages() -> None:
    command = [sys.executable, "-c", _WITHOUT_CUDA_PACKAGES, str(SCRIPT), "--deterministic", *FAST]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "A causal model streams" in result.stdout
    assert "all checks passed" in result.stdout
    assert "FAILED" not in result.stdout


def _drop(index: int, part: int) -> Callable:
    original = MambaMixer.forward

    def forward(self, x, state=None):
        if state is not None and self.layer_index == index:
            state = tuple(t * 0 if k == part else t for k, t in enumerate(state))
        return original(self, x, state)

    return forward


@pytest.mark.parametrize(("part", "name"), [(0, "conv"), (1, "ssm")])
def test_fails_when_one_layer_loses_its_state(
    part: int, name: str, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    number = iter(range(100))
    build = script.build

    def numbered(*args):
        model = build(*args)
        for layer in model.layers:
            layer.mixer.layer_index = next(number) % model.depth
        return model

    monkeypatch.setattr(script, "build", numbered)
    monkeypatch.setattr(MambaMixer, "forward", _drop(2, part))
    assert script.main(FAST) == 1
    assert "FAILED tubelet 1, RMS norm: tokens, halves" in capsys.readouterr().out


def test_fails_when_the_cls_comes_in_every_chunk(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_cls(model, *args):
        size, _, visible = prepare(model, *args)
        return size, True, visible

    prepare = pretrain.PretrainVideoMamba._prepare
    monkeypatch.setattr(pretrain.PretrainVideoMamba, "_prepare", with_cls)
    assert script.main(FAST) == 1


def test_fails_when_gradients_stop_between_chunks(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def detached(layers, like):
        return [(c.detach(), s.detach()) for c, s in layers]

    monkeypatch.setattr(pretrain, "pack_layers", detached)
    assert script.main(FAST) == 1


def test_offers_every_determinism_flag_and_refuses_nonsense(script: ModuleType) -> None:
    flags = "--seed 3 --deterministic --deterministic-warn-only --cudnn-benchmark off --allow-tf32 auto"
    args = script.parse_arguments(flags.split())
    assert (args.seed, args.deterministic, args.deterministic_warn_only) == (3, True, True)
    for arguments in (["--cudnn-benchmark", "maybe"], ["--frames", "3"]):
        with pytest.raises(SystemExit) as error:
            script.parse_arguments(arguments)
        assert error.value.code == 2
    with pytest.raises(script.UserError, match="--device cuda:99"):
        script.main(["--device", "cuda:99"])


@pytest.fixture(autouse=True)
def _restore_determinism() -> object:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
