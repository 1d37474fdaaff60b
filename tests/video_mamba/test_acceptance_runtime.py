"""Acceptance points of running: the documented quick start, determinism, cheap imports."""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_backbones import clip, contract

import videomamba_depth.video_mamba as package
from videomamba_depth.video_mamba import (
    DeterminismConfig,
    add_determinism_args,
    configure_determinism,
    configure_determinism_from_args,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "video_mamba.md"


@pytest.fixture(autouse=True)
def _restore_determinism() -> Iterator[None]:
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    if before is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    else:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = before


def printed_code(page: Path, after: str) -> dict:
    """Run the first Python block after a text of a page, as printed; return its names."""
    block = re.search(r"```python\n(.*?)```", page.read_text().split(after, 1)[1], re.DOTALL)[1]
    names: dict = {}
    exec(compile(block, str(page), "exec"), names)
    return names


def test_point_11_the_quick_start_of_the_readme_runs_as_printed() -> None:
    names = printed_code(ROOT / "README.md", "The causal VideoMamba backbone streams")
    model, clip_ = names["backbone"], names["clip"]
    assert sum(p.numel() for p in model.parameters()) == 6_228_864
    assert names["tokens"].shape == (1, 4 * 196, 192)
    assert names["pooled"].shape == (1, 1, 192)
    with torch.no_grad():
        whole = model(clip_)[0]
    torch.testing.assert_close(names["tokens"], whole[:, 4 * 196 :], atol=1e-4, rtol=0)


def test_point_11_the_quick_start_of_the_docs_runs_as_printed() -> None:
    names = printed_code(DOCS, "## Quick start")
    model, clip_, outputs = names["model"], names["clip"], names["outputs"]
    assert len(outputs) == 2
    whole = model(clip_, keep_temporal=True)
    torch.testing.assert_close(torch.cat([out[0] for out in outputs], 1), whole[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([out[1] for out in outputs], 1), whole[1], atol=1e-4, rtol=0)


def test_point_11_the_presets_example_of_the_docs_runs_as_printed() -> None:
    names = printed_code(DOCS, "| `low_latency`")
    assert names["x_vis"].shape == (1, 2 * 196, 192)
    assert names["x_pool"].shape == (1, 2, 192)


def test_the_transformers_example_of_the_docs_runs_as_printed() -> None:
    names = printed_code(DOCS, "## In transformers")
    assert names["scores"].shape == (1, 10)
    assert names["classes"].shape == (2, 5, 224, 224)


def _train_two_steps() -> list[torch.Tensor]:
    configure_determinism(7, deterministic=True, warn_only=False)
    model = package.PretrainVideoMamba(
        img_size=8, patch_size=4, depth=2, embed_dim=16, drop_path_rate=0.3, ssm_cfg={"backend": "reference"}
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 2, 8, 8))[1].square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()] + [torch.tensor([random.random(), np.random.rand()])]


def test_point_18_two_runs_are_bitwise_equal() -> None:
    first, second = _train_two_steps(), _train_two_steps()
    assert all(map(torch.equal, first, second))
    configure_determinism(8, deterministic=False)
    assert not torch.equal(first[-1], torch.tensor([random.random(), np.random.rand()]))


def test_point_18_the_resolved_config_is_returned_and_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    loose = configure_determinism(1, deterministic=False)
    assert loose == DeterminismConfig(1, False, True, cudnn_benchmark=True, allow_tf32=True)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()
    strict = configure_determinism(1, deterministic=True, warn_only=False)
    assert strict == DeterminismConfig(1, True, False, cudnn_benchmark=False, allow_tf32=False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32
    mixed = configure_determinism(1, True, cudnn_benchmark=True, allow_tf32=True)
    assert (mixed.cudnn_benchmark, mixed.allow_tf32, mixed.warn_only) == (True, True, True)
    assert torch.backends.cudnn.benchmark
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", DeterminismConfig(0, False, False, True, True)),
        ("--seed 5 --deterministic", DeterminismConfig(5, True, False, False, False)),
        ("--deterministic --deterministic-warn-only", DeterminismConfig(0, True, True, False, False)),
        ("--deterministic --cudnn-benchmark on --allow-tf32 on", DeterminismConfig(0, True, False, True, True)),
        ("--cudnn-benchmark off --allow-tf32 off", DeterminismConfig(0, False, False, False, False)),
        ("--cudnn-benchmark auto --allow-tf32 auto", DeterminismConfig(0, False, False, True, True)),
    ],
)
def test_point_18_flags(flags: str, expected: DeterminismConfig) -> None:
    parser = argparse.ArgumentParser()
    assert add_determinism_args(parser) is parser
    assert configure_determinism_from_args(parser.parse_args(flags.split())) == expected


def test_point_19_importing_the_package_is_cheap_and_all_17_names_are_there() -> None:
    assert len(package.__all__) == 17
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'build_video'"):
        package.build_video  # noqa: B018
    code = "import sys, videomamba_depth.video_mamba; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_point_19_no_cuda_package_is_imported_by_a_forward_pass() -> None:
    contract()(clip(1))
    assert not {"mamba_ssm", "causal_conv1d"} & set(sys.modules)
