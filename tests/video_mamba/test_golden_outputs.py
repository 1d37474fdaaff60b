"""Every family against the plain second implementation, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_backbones as plain
import pytest
import torch
from small_backbones import Model, clip, contract, image_model, masked_model, randomize_, video_model, vim_model

from videomamba_depth.video_mamba import BiMambaRefinerBlock
from videomamba_depth.video_mamba.checkpoints import load_backbone, load_contract_weights

TINY = {"embed_dim": 8, "depth": 2, "ssm_cfg": {"d_state": 2}}
TOLERANCE = 1e-6  # measured: 3e-15


def agree(ours: torch.Tensor, golden: np.ndarray) -> None:
    assert golden.shape == tuple(ours.shape)
    assert np.abs(golden).max() > 0.3, "a comparison of near-zeros says nothing"
    np.testing.assert_allclose(ours.detach().numpy(), golden, atol=TOLERANCE, rtol=0)


def through_a_file(make: Callable[..., Model], folder: Path, **options: Any) -> Model:
    """A model with random weights that came from a file as its authors write it."""
    saved, model = make(**options), make(seed=1, **options)
    state = saved.state_dict()
    torch.save(state if saved.family in ("contract", "videomamba_video") else {"model": state}, folder / "file.pth")
    if saved.family == "contract":
        load_contract_weights(model, folder / "file.pth", 4)
    else:
        load_backbone(model, folder / "file.pth", saved.family)
    return model.double()


@pytest.mark.parametrize("tubelet", [1, 2])
def test_contract_class_agrees(tubelet: int, tmp_path: Path) -> None:
    model = through_a_file(contract, tmp_path, kernel_size=tubelet, num_frames=4, **TINY)
    x = clip(4, batch=1).double()
    agree(model.forward_features(x)[0], plain.contract(x[0].numpy(), plain.weights_of(model), 2, 4, tubelet))


@pytest.mark.parametrize("tubelet", [1, 2])
def test_video_family_agrees(tubelet: int, tmp_path: Path) -> None:
    model = through_a_file(video_model, tmp_path, tubelet_size=tubelet, **TINY)
    x = clip(4, batch=1).double()
    tokens, scores = plain.video(x[0].numpy(), plain.weights_of(model), 2, 4, tubelet)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_masked_family_agrees_on_visible_tokens(tubelet: int, tmp_path: Path) -> None:
    model = through_a_file(masked_model, tmp_path, tubelet_size=tubelet, **{**TINY, "depth": 3})
    x = clip(4, batch=1).double()
    num_tokens = 1 + 4 * 4 // tubelet
    visible = [index for index in range(num_tokens) if index % 3 != 2]
    mask = torch.ones(1, num_tokens, dtype=torch.bool)
    mask[:, visible] = False
    features, decoded = plain.masked(x[0].numpy(), plain.weights_of(model), 3, 4, tubelet, visible)
    agree(model.forward_features(x, mask)[0], features)
    agree(model(x, mask)[0], decoded)


@pytest.mark.parametrize("family", ["videomamba_masked", "videomamba_retrieval"])
def test_classifiers_from_other_families_agree(family: str, tmp_path: Path) -> None:
    source = masked_model(**TINY).state_dict()
    if family == "videomamba_retrieval":
        source = {f"vision_encoder.{name}": tensor for name, tensor in source.items()}
    torch.save({"model": source}, tmp_path / "file.pth")
    model = video_model(seed=1, **TINY)
    load_backbone(model, tmp_path / "file.pth", family)
    x = clip(4, batch=1).double()
    tokens, scores = plain.video(x[0].numpy(), plain.weights_of(model.double()), 2, 4, 1)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)
    assert torch.equal(model.cls_token.float(), masked_model(**TINY).cls_token)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_video_text_files_agree(tubelet: int, tmp_path: Path) -> None:
    encoder = {**masked_model(tubelet_size=tubelet, **TINY).state_dict(), "text_encoder.positions": torch.arange(3)}
    encoder |= {"pool_norm.weight": torch.randn(8), "pool_norm.bias": torch.randn(8)}
    file = {name if name.startswith("text") else f"vision_encoder.{name}": tensor for name, tensor in encoder.items()}
    torch.save({"model": file}, tmp_path / "file.pth")
    model = video_model(seed=1, num_classes=0, pool_norm=True, tubelet_size=tubelet, **TINY)
    load_backbone(model, tmp_path / "file.pth", "videomamba_retrieval")
    x = clip(4, batch=1).double()
    golden = plain.retrieval(x[0].numpy(), plain.weights_of(model.double()), 2, 4, tubelet)
    agree(model.pooled_features(x)[0], golden)


@pytest.mark.parametrize("teacher_dim", [None, 6])
def test_image_family_agrees(teacher_dim: int | None, tmp_path: Path) -> None:
    model = through_a_file(image_model, tmp_path, teacher_dim=teacher_dim, **TINY)
    x = clip(1, batch=1, seed=3)[:, :, 0].double()
    tokens, scores = plain.image(x[0].numpy(), plain.weights_of(model), 2, 4)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)
    if teacher_dim is not None:
        agree(model.forward_distill(x)[1][0], plain.distilled(tokens, plain.weights_of(model)))


VIM = {  # options of the model, options of the plain implementation
    "as released": ({}, {}),
    "fine-tuned": ({"stride": 2}, {"stride": 2}),
    "rope": ({"if_rope": True}, {"rope": True}),
    "double CLS": ({"use_double_cls_token": True}, {"cls": "both"}),
    "tail CLS": ({"use_tail_cls_token": True}, {"cls": "tail"}),
    "pairs": ({"if_bidirectional": True}, {"pairs": True}),
    "pairs of one-way layers": (
        {"if_bidirectional": True, "bimamba_type": "none"},
        {"pairs": True, "directions": "forward"},
    ),
    "v1": ({"if_bimamba": True}, {"directions": "v1"}),
    "layer scale": ({"init_layer_scale": 0.1}, {}),
    "poly": ({"discretization_method": "poly_noncausal", "bimamba_type": "none"}, {"directions": "poly"}),
}


@pytest.mark.parametrize("name", VIM)
def test_vim_agrees(name: str, tmp_path: Path) -> None:
    options, plain_options = VIM[name]
    model = through_a_file(vim_model, tmp_path, **{**TINY, "img_size": (8, 12), **options})
    x = clip(1, batch=1, size=(8, 12), seed=3)[:, :, 0].double()
    tokens, scores = plain.vim(x[0].numpy(), plain.weights_of(model), 2, 4, **plain_options)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)
    assert ("rope.freqs_cos" in model.state_dict()) is (name == "rope")


def test_refiner_block_agrees() -> None:
    block = randomize_(BiMambaRefinerBlock(8, ssm_cfg={"d_state": 2})).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    agree(block(x)[0][0], plain.refiner(x[0].numpy(), plain.weights_of(block)))
    in_frames = block(x.unflatten(1, (3, 2)))[0]  # 3 frames of 2 tokens: frames are reversed, not tokens
    agree(in_frames.flatten(1, 2)[0], plain.refiner(x[0].numpy(), plain.weights_of(block), per_frame=2))
