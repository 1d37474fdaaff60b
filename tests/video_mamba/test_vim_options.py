"""Vim's options: each does what its name says, and combinations without a meaning are refused with the reason."""

from __future__ import annotations

import pytest
import torch
from small_backbones import SIZE, clip, contract, vim_model

from selective_scan import DISCRETIZATIONS
from videomamba_depth.video_mamba.rope import rotary_angles, rotate_patches
from videomamba_depth.video_mamba.vim import Vim, VisionMamba

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
    assert (middle.cls_positions(16), front.cls_positions(16)) == ((8,), (0,))
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


def test_bidirectional_pairs_sum_a_layer_and_a_flipped_one() -> None:
    model = vim_model(bimamba_type="none", if_bidirectional=True, depth=4)
    residual, branch = torch.zeros(1, 1, 16), model._embed(IMAGE, (2, 2))
    for index, (ahead, back) in enumerate((model.layers[:2], model.layers[2:])):
        stream = branch + residual
        one = ahead.mixer.mix(ahead.norm(stream))
        other = back.mixer.mix(back.norm(stream.flip(1))).flip(1)
        branch, residual = one + other, stream + stream
        assert index < 2
    torch.testing.assert_close(model.forward_features(IMAGE), model.norm_f(residual + branch))
    changed = IMAGE.clone()
    changed[:, :, -1, -1] += 1
    first = (model.forward_features(IMAGE) - model.forward_features(changed))[:, 0].abs().max()
    assert first > 1e-4, "the first token sees the last patch"
    one_way = vim_model(bimamba_type="none", use_middle_cls_token=False)
    assert (one_way.forward_features(IMAGE) - one_way.forward_features(changed))[:, :4].abs().max() == 0


def test_the_published_example_builds() -> None:
    model = VisionMamba(
        img_size=32, patch_size=16, stride=16, depth=2, embed_dim=16, d_state=4, channels=3, num_classes=5,
        drop_rate=0.1, drop_path_rate=0.1, rms_norm=True, residual_in_fp32=True, fused_add_norm=True,
        if_bidirectional=True, final_pool_type="none", if_abs_pos_embed=True, if_rope=True, if_rope_residual=True,
        bimamba_type="v2", device="cpu", dtype=torch.float32, initializer_cfg=None, pt_hw_seq_len=14,
    )  # fmt: skip
    assert VisionMamba is Vim
    assert model.layers[0].mixer.d_state == 4
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    features = model.eval()(IMAGE.repeat(1, 1, 4, 4), return_features=True)
    torch.testing.assert_close(model.head(features), model(IMAGE.repeat(1, 1, 4, 4)))
    assert VisionMamba(img_size=32, depth=1, embed_dim=16, if_cls_token=False)(torch.randn(1, 3, 32, 32)).shape == (
        1,
        1000,
    )
    with pytest.raises(ValueError, match="d_state=4 and d_state is 8; give it once"):
        vim_model(d_state=8)


def test_double_and_tail_cls() -> None:
    double, tail = vim_model(use_double_cls_token=True), vim_model(use_tail_cls_token=True)
    assert (double.cls_positions(4), tail.cls_positions(4)) == ((0, 5), (4,))
    assert double.pos_embed.shape[1] == 6
    tokens = double.forward_features(IMAGE)
    torch.testing.assert_close(double(IMAGE), double.head((tokens[:, 0] + tokens[:, 5]) / 2))
    torch.testing.assert_close(double.patch_features(IMAGE), tokens[:, 1:5])
    torch.testing.assert_close(tail(IMAGE), tail.head(tail.forward_features(IMAGE)[:, 4]))
    assert double.no_weight_decay() == {"pos_embed", "cls_token_head", "cls_token_tail"}


def test_flipped_sequences_in_training_alone() -> None:
    model = vim_model(flip_img_sequences_ratio=1.0, if_rope=True)
    plain = vim_model(if_rope=True)
    torch.testing.assert_close(model(IMAGE), plain(IMAGE))
    model.train()
    embedded = model._embed(IMAGE, (2, 2))
    assert model.forward_features(IMAGE).shape == embedded.shape
    assert (model(IMAGE) - plain(IMAGE)).abs().max() > 1e-3
    never = vim_model(flip_img_sequences_ratio=1e-9).train()
    torch.testing.assert_close(never(IMAGE), vim_model()(IMAGE))


def test_layer_scale_multiplies_each_mixer() -> None:
    model = vim_model(init_layer_scale=0.5)
    mixer, x = model.layers[0].mixer, torch.randn(2, 5, 16)
    scaled = mixer.mix(x)
    gamma = mixer.gamma.detach().clone()
    mixer.gamma.data.fill_(1.0)
    torch.testing.assert_close(scaled, mixer.mix(x) * gamma)
    assert torch.equal(
        Vim(**{**SIZE, "depth": 1, "init_layer_scale": 0.5}).layers[0].mixer.gamma, torch.full((16,), 0.5)
    )


def test_poly_as_published_sees_the_future_and_refuses_streams() -> None:
    model = vim_model(discretization_method="poly_noncausal", bimamba_type="none", use_middle_cls_token=False)
    causal = vim_model(discretization_method="poly", bimamba_type="none", use_middle_cls_token=False)
    changed = IMAGE.clone()
    changed[:, :, -1, -1] += 1
    for one, sees in ((model, True), (causal, False)):
        first = (one.forward_features(IMAGE) - one.forward_features(changed))[:, 0].abs().max()
        assert bool(first > 1e-4) is sees
    with pytest.raises(ValueError, match="takes no state"):
        model(IMAGE, ssm_state=object())
    with pytest.raises(ValueError, match="sees the whole sequence"):
        contract(ssm_cfg={"discretization": "poly_noncausal"})


def test_divide_out_halves_the_sum_of_the_directions() -> None:
    halved, summed = (vim_model(if_divide_out=flag).layers[0].mixer for flag in (True, False))
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(halved.mix(x) * 2, summed.mix(x))
    for options, same in (({}, halved), ({"if_devide_out": True}, halved), ({"if_devide_out": False}, summed)):
        torch.testing.assert_close(vim_model(**options).layers[0].mixer.mix(x), same.mix(x))


def test_rope_rotates_patches_and_leaves_the_cls() -> None:
    angles = rotary_angles((2, 3), (2, 3), 8, torch.device("cpu"))
    assert angles.shape == (6, 8)
    torch.testing.assert_close(angles[:, 0], torch.tensor([0.0, 0, 0, 1, 1, 1]))  # rows turn the first half
    torch.testing.assert_close(angles[:, 4], torch.tensor([0.0, 1, 2, 0, 1, 2]))  # columns the second
    torch.testing.assert_close(angles[:, 2], angles[:, 0] / 100)
    torch.testing.assert_close(angles[:, 1::2], angles[:, ::2])  # both channels of a pair alike
    stretched = rotary_angles((4, 3), (2, 3), 8, torch.device("cpu"))
    torch.testing.assert_close(stretched[:, 0].view(4, 3)[:, 0], torch.tensor([0.0, 0.5, 1, 1.5]))
    tokens = torch.randn(1, 7, 8)
    turned = rotate_patches(tokens, angles.cos(), angles.sin(), 3)
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
        ({"bimamba_type": "v1", "discretization_method": "poly_noncausal"}, "give one of them"),
        ({"use_tail_cls_token": True, "use_double_cls_token": True}, "both place the CLS"),
        ({"use_double_cls_token": True, "if_rope": True}, "leaves one token alone"),
        ({"rope_still": "last"}, "rope_still must be"),
        ({"if_bidirectional": True, "bimamba_type": "none", "depth": 3}, "even depth; got 3"),
        ({"bimamba_type": "v3"}, "'v1', 'v2' or 'none'; got 'v3'"),
        ({"if_cls_token": False, "use_tail_cls_token": True}, "no CLS token to place"),
        ({"final_pool_type": "max"}, "no effect with a CLS token"),
        ({"final_pool_type": "sum"}, "final_pool_type must be one of"),
        ({"if_divide_out": True, "if_devide_out": False}, "two spellings of one option"),
        ({"if_rope_residual": True}, "needs if_rope=True"),
        ({"if_rope": True, "embed_dim": 18}, "embed_dim % 4 == 0; got 18"),
        ({"flip_img_sequences_ratio": 2}, "flip_img_sequences_ratio is a share, at most 1"),
        ({"flip_img_sequences_ratio": float("nan")}, "flip_img_sequences_ratio is a share"),
        ({"init_layer_scale": float("nan")}, "init_layer_scale must be None or a finite number"),
        ({"drop_rate": float("nan")}, r"drop_rate must be in \[0, 1\]"),
        ({"if_rope": True, "pt_hw_seq_len": 0}, "pt_hw_seq_len must be a positive integer; got 0"),
        ({"ssm_cfg": {"d_state": 0}}, "d_state must be a positive integer; got 0"),
        ({"ssm_cfg": {"expand": 1.5}}, "expand must be a positive integer; got 1.5"),
        ({"ssm_cfg": {"dt_rank": "all"}}, "dt_rank must be a positive integer; got 'all'"),
        ({"ssm_cfg": {"dt_max": float("nan")}}, "finite with 0 < dt_min ≤ dt_max; got 0.001 and nan"),
        ({"ssm_cfg": {"dt_min": 0.2}}, "got 0.2 and 0.1"),
        ({"ssm_cfg": {"dstate": 3}}, r"unknown keys \['dstate'\]"),
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        vim_model(**options)
    assert SIZE["patch_size"] == 4
