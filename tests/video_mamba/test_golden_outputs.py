"""Every family against the plain second implementation, in float64."""

from __future__ import annotations

import numpy as np
import plain_backbones as plain
import pytest
import torch
from small_backbones import clip, contract, image_model, masked_model, randomize_, video_model, vim_model

from videomamba_depth.video_mamba import BiMambaRefinerBlock

TINY = {"embed_dim": 8, "depth": 2, "ssm_cfg": {"d_state": 2}}
TOLERANCE = 1e-6  # measured: 3e-15


def agree(ours: torch.Tensor, golden: np.ndarray) -> None:
    assert golden.shape == tuple(ours.shape)
    assert np.abs(golden).max() > 0.3, "a comparison of near-zeros says nothing"
    np.testing.assert_allclose(ours.detach().numpy(), golden, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_contract_class_agrees(tubelet: int) -> None:
    model = contract(kernel_size=tubelet, num_frames=4, **TINY).double()
    x = clip(4, batch=1).double()
    agree(model.forward_features(x)[0], plain.contract(x[0].numpy(), plain.weights_of(model), 2, 4, tubelet))


@pytest.mark.parametrize("tubelet", [1, 2])
def test_video_family_agrees(tubelet: int) -> None:
    model = video_model(tubelet_size=tubelet, **TINY).double()
    x = clip(4, batch=1).double()
    tokens, scores = plain.video(x[0].numpy(), plain.weights_of(model), 2, 4, tubelet)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_masked_family_agrees_on_visible_tokens(tubelet: int) -> None:
    model = masked_model(tubelet_size=tubelet, **{**TINY, "depth": 3}).double()
    x = clip(4, batch=1).double()
    num_tokens = 1 + 4 * 4 // tubelet
    visible = [index for index in range(num_tokens) if index % 3 != 2]
    mask = torch.ones(1, num_tokens, dtype=torch.bool)
    mask[:, visible] = False
    features, decoded = plain.masked(x[0].numpy(), plain.weights_of(model), 3, 4, tubelet, visible)
    agree(model.forward_features(x, mask)[0], features)
    agree(model(x, mask)[0], decoded)


def test_image_family_agrees() -> None:
    model = image_model(**TINY).double()
    x = clip(1, batch=1, seed=3)[:, :, 0].double()
    tokens, scores = plain.image(x[0].numpy(), plain.weights_of(model), 2, 4)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)


@pytest.mark.parametrize("rope", [False, True])
def test_vim_with_middle_cls_agrees(rope: bool) -> None:
    model = vim_model(if_rope=rope, **{**TINY, "img_size": (8, 12)}).double()
    x = clip(1, batch=1, size=(8, 12), seed=3)[:, :, 0].double()
    tokens, scores = plain.vim(x[0].numpy(), plain.weights_of(model), 2, 4, rope)
    agree(model.forward_features(x)[0], tokens)
    agree(model(x)[0], scores)


def test_refiner_block_agrees() -> None:
    block = randomize_(BiMambaRefinerBlock(8, ssm_cfg={"d_state": 2})).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    agree(block(x)[0][0], plain.refiner(x[0].numpy(), plain.weights_of(block)))
    in_frames = block(x.unflatten(1, (3, 2)))[0]  # 3 frames of 2 tokens: frames are reversed, not tokens
    agree(in_frames.flatten(1, 2)[0], plain.refiner(x[0].numpy(), plain.weights_of(block), per_frame=2))
