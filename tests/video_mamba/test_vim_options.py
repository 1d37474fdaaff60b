"""Vim's options: each does what its name says, and combinations without a meaning are refused with the reason."""

from __future__ import annotations

import pytest
import torch
from small_backbones import SIZE, clip, vim_model

from selective_scan import DISCRETIZATIONS
from videomamba_depth.layers.mamba_mixer import MambaMixer
from videomamba_depth.video_mamba.rope import rotary_angles, rotate_patches

PUBLISHED = ("zoh", "foh", "bilinear", "poly", "highorder", "rk4")
NO_CLS = {"if_cls_token": False, "use_middle_cls_token": False}
IMAGE = clip(1)[:, :, 0]


def test_the_six_published_discretizations_are_selectable_and_differ() -> None:
    outputs = {name: vim_model(discretization_method=name)(IMAGE) for name in PUBLISHED}
    for i, a in enumerate(PUBLISHED):
        for b in PUBLISHED[:i]:
            assert (outputs[a] - outputs[b]).abs().max() > 1e-4, (a, b)
    for name in DISCRETIZATIONS:
        assert vim_model(discretization_method=name)(IMAGE).isfinite().all()
    with pytest.raises(ValueError, match=r"unknown discretization 'simpson'.*zoh"):
        vim_model(discretization_method="simpson")
    with pytest.raises(ValueError, match="give it once"):
        vim_model(ssm_cfg={"discretization": "foh"}, discretization_method="rk4")


def test_cls_stands_in_the_middle_or_in_front() -> None:
    middle, front = vim_model(img_size=16), vim_model(img_size=16, use_middle_cls_token=False)
    x = torch.randn(2, 3, 16, 16)
    assert middle.cls_position(16) == 8
    assert front.cls_position(16) == 0
    torch.testing.assert_close(middle(x), middle.head(middle.forward_features(x)[:, 8]))
    torch.testing.assert_close(front(x), front.head(front.forward_features(x)[:, 0]))
    assert (middle(x) - front(x)).abs().max() > 1e-2
    torch.testing.assert_close(
        middle.patch_features(x), torch.cat([middle.forward_features(x)[:, :8], middle.forward_features(x)[:, 9:]], 1)
    )


@pytest.mark.parametrize("pool", ["none", "mean", "max", "all"])
def test_final_pool_types_without_a_cls(pool: str) -> None:
    model = vim_model(final_pool_type=pool, **NO_CLS)
    tokens = model.forward_features(IMAGE)
    assert tokens.shape == (2, 4, 16)
    scores = model.head(tokens)
    expected = {
        "none": scores[:, -1],
        "mean": model.head(tokens.mean(1)),
        "max": scores.max(1).values,
        "all": scores,
    }[pool]
    torch.testing.assert_close(model(IMAGE), expected)


def test_bidirectional_pairs_average_a_layer_and_a_flipped_one() -> None:
    model = vim_model(bimamba_type="none", if_bidirectional=True, depth=4)
    assert all(type(layer.mixer) is MambaMixer for layer in model.layers)
    stream, branch = 0, model._embed(IMAGE, (2, 2))
    for ahead, back in (model.layers[:2], model.layers[2:]):
        stream = stream + branch  # the same for both: flipping it twice changes nothing
        one = ahead.mixer(ahead.norm(stream)).y
        other = back.mixer(back.norm(stream.flip(1))).y.flip(1)
        branch = (one + other) / 2
    torch.testing.assert_close(model.forward_features(IMAGE), model.norm_f(stream + branch))
    changed = IMAGE.clone()
    changed[:, :, -1, -1] += 1
    first = (model.forward_features(IMAGE) - model.forward_features(changed))[:, 0].abs().max()
    assert first > 1e-4, "the first token sees the last patch"
    one_way = vim_model(bimamba_type="none", use_middle_cls_token=False)
    assert (one_way.forward_features(IMAGE) - one_way.forward_features(changed))[:, :4].abs().max() == 0


def test_divide_out_halves_the_sum_of_the_directions() -> None:
    halved, summed = (vim_model(if_divide_out=flag).layers[0].mixer for flag in (True, False))
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(halved.mix(x) * 2, summed.mix(x))


def test_rope_rotates_patches_and_leaves_the_cls() -> None:
    angles = rotary_angles((2, 3), (2, 3), 8, torch.device("cpu"))
    assert angles.shape == (6, 4)
    torch.testing.assert_close(angles[:, 0], torch.tensor([0.0, 0, 0, 1, 1, 1]))  # rows turn the first half
    torch.testing.assert_close(angles[:, 2], torch.tensor([0.0, 1, 2, 0, 1, 2]))  # columns the second
    torch.testing.assert_close(angles[:, 1], angles[:, 0] / 100)
    stretched = rotary_angles((4, 3), (2, 3), 8, torch.device("cpu"))
    torch.testing.assert_close(stretched[:, 0].view(4, 3)[:, 0], torch.tensor([0.0, 0.5, 1, 1.5]))
    tokens = torch.randn(1, 7, 8)
    turned = rotate_patches(tokens, angles, 3)
    torch.testing.assert_close(turned[:, 3], tokens[:, 3])
    torch.testing.assert_close(turned.norm(dim=-1), tokens.norm(dim=-1))
    torch.testing.assert_close(
        turned[0, 5, :2].dot(tokens[0, 5, :2]), tokens[0, 5, :2].norm() ** 2 * torch.tensor(1.0).cos()
    )
    plain, rope, both = (
        vim_model(if_rope=r, if_rope_residual=s)(IMAGE) for r, s in ((False, False), (True, False), (True, True))
    )
    assert (plain - rope).abs().max() > 1e-3
    assert (both - rope).abs().max() > 1e-3
    assert vim_model(if_rope=True)(torch.randn(2, 3, 12, 16)).shape == (2, 5)


def test_without_a_position_table() -> None:
    model = vim_model(if_abs_pos_embed=False, if_rope=True)
    assert "pos_embed" not in model.state_dict()
    assert model(IMAGE).shape == (2, 5)
    assert vim_model(if_abs_pos_embed=False, **NO_CLS)(IMAGE).shape == (2, 5)


def test_overlapping_patches() -> None:
    model = vim_model(img_size=8, stride=2)
    assert model.patch_embed.grid_size == (3, 3)
    assert model.forward_features(IMAGE).shape == (2, 10, 16)


def test_use_cuda_kernel_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(choice: bool | None) -> str | None:
        return vim_model(use_cuda_kernel=choice, ssm_cfg={"d_state": 4}).layers[0].mixer.backend

    assert backend(None) is None
    assert backend(False) == "reference"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend(True) == "triton"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="use_cuda_kernel=True needs a CUDA device"):
        backend(True)
    with pytest.raises(ValueError, match="both choose the kernels"):
        vim_model(use_cuda_kernel=False)  # SIZE names a backend


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"if_bidirectional": True}, "both directions twice"),
        ({"if_bidirectional": True, "bimamba_type": "none", "depth": 3}, "even depth; got 3"),
        ({"bimamba_type": "v1"}, "'v2' or 'none'; got 'v1'"),
        ({"if_cls_token": False}, "no CLS token to place"),
        ({"final_pool_type": "max"}, "no effect with a CLS token"),
        ({"final_pool_type": "none"}, "no effect with a CLS token"),
        ({"final_pool_type": "sum"}, "final_pool_type must be one of"),
        ({"if_rope_residual": True}, "needs if_rope=True"),
        ({"if_rope": True, "embed_dim": 18}, "embed_dim % 4 == 0; got 18"),
        ({"ssm_cfg": {"dstate": 3}}, r"unknown keys \['dstate'\]"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        vim_model(**options)
    assert SIZE["patch_size"] == 4
