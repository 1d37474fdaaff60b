"""Acceptance points of shapes, masks, positions and of what is refused at the entry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_backbones import PATCHES, clip, contract, image_model, masked_model, stream, video_model, vim_model

from videomamba_depth.layers.mamba_mixer import MambaMixer
from videomamba_depth.video_mamba.pooling import mean_per_slice
from videomamba_depth.video_mamba.positions import resize_spatial_table
from videomamba_depth.video_mamba.streaming import allocate_state

DIFFERENT = 0.1


@pytest.mark.parametrize("pool_type", ["cls", "avg", "cls+avg", "cls_cat_avg"])
@pytest.mark.parametrize("keep_temporal", [False, True])
@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("with_state", [False, True])
def test_point_10_shapes(pool_type: str, keep_temporal: bool, tubelet: int, with_state: bool) -> None:
    x, t = clip(4), 4 // tubelet
    average = t if keep_temporal else 1
    rows = {"cls": 1, "avg": average, "cls+avg": average, "cls_cat_avg": 1 + average}[pool_type]
    model = contract(pool_type=pool_type, kernel_size=tubelet)
    state = allocate_state(model, 2) if with_state else None
    outputs = model(x, keep_temporal=keep_temporal, ssm_state=state)
    assert isinstance(outputs, tuple)
    assert len(outputs) == (3 if with_state else 2)
    assert outputs[0].shape == (2, t * PATCHES, 16)
    assert outputs[1].shape == (2, rows, 16)
    features = model.forward_features(x, ssm_state=state)
    tokens = features[0] if with_state else features
    assert tokens.shape == (2, 1 + t * PATCHES, 16)
    torch.testing.assert_close(tokens[:, 1:], outputs[0])

    plain = contract(pool_type=pool_type, kernel_size=tubelet, add_pool_norm=False)
    outputs = plain(x, keep_temporal=keep_temporal, ssm_state=allocate_state(plain, 2) if with_state else None)
    assert isinstance(outputs, tuple) == with_state
    torch.testing.assert_close(outputs[0] if with_state else outputs, tokens)
    if with_state and (pool_type == "avg"):
        vis, pool, _ = model(x, keep_temporal=keep_temporal, ssm_state=stream(model, x, [4])[1], temporal_pos_offset=t)
        assert vis.shape == (2, t * PATCHES, 16)
        assert pool.shape == (2, rows, 16)


def test_point_10_pooled_values_are_the_means_they_claim() -> None:
    x = clip(4)
    tokens = contract().forward_features(x)
    cls, patches = tokens[:, :1], tokens[:, 1:]
    per_frame = patches.unflatten(1, (4, PATCHES)).mean(2)
    for pool_type, keep_temporal, expected in (
        ("cls", False, cls),
        ("cls", True, cls),
        ("avg", False, patches.mean(1, keepdim=True)),
        ("avg", True, per_frame),
        ("cls+avg", False, cls + patches.mean(1, keepdim=True)),
        ("cls+avg", True, cls + per_frame),
        ("cls_cat_avg", False, torch.cat([cls, patches.mean(1, keepdim=True)], 1)),
        ("cls_cat_avg", True, torch.cat([cls, per_frame], 1)),
    ):
        model = contract(pool_type=pool_type)
        torch.testing.assert_close(model(x, keep_temporal=keep_temporal)[1], model.pool_norm(expected))


def test_point_10_unknown_options_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="pool_type must be one of"):
        contract(pool_type="max")
    with pytest.raises(NotImplementedError, match="bimamba=True"):
        contract(bimamba=False)
    with pytest.raises(ValueError, match=r"unknown keys \['d_stat'\]"):
        contract(ssm_cfg={"d_stat": 8})
    with pytest.raises(ValueError, match="unknown discretization 'euler'"):
        contract(ssm_cfg={"discretization": "euler"})
    with pytest.raises(ValueError, match="num_frames"):
        contract(num_frames=1, kernel_size=2)
    with pytest.raises(ValueError, match="use_fast_path=False and backend='cpp'"):
        contract(ssm_cfg={"use_fast_path": False, "backend": "cpp"})
    with pytest.raises(ValueError, match=r"ssm_cfg\['use_fast_path'\] must be one of .*; got 'fast'"):
        contract(ssm_cfg={"use_fast_path": "fast"})
    with pytest.raises(ValueError, match=r"ssm_cfg\['dt_init'\] must be 'random'"):
        contract(ssm_cfg={"dt_init": "constant"})


@pytest.mark.parametrize("make", [contract, image_model, video_model, vim_model])
def test_sizes_that_are_none_are_refused_by_name(make: Callable[..., torch.nn.Module]) -> None:
    wrong: dict[str, tuple] = dict.fromkeys(("depth", "embed_dim", "channels"), (0, -1, 2.0, "8", None, True))
    wrong |= dict.fromkeys(("img_size", "patch_size"), (0, (8, 0), (8, 8, 8), 8.0, "88", None))
    wrong |= {"stride": (0, -1)} if make is vim_model else {}
    wrong |= {"num_classes": (-1, 2.5)} if make is not contract else {}
    wrong |= {"num_frames": (0, 2.5), "tubelet_size": (0,)} if make is video_model else {}
    wrong |= {"teacher_dim": (0,)} if make is image_model else {}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} must be .*; got"):
                make(**{name: value})


def test_point_10_the_fast_path_can_be_left_out() -> None:
    for cfg, backend in (
        ({"use_fast_path": False}, "reference"),
        ({"use_fast_path": False, "backend": "auto"}, "reference"),
        ({"use_fast_path": True}, None),
        *(({"use_fast_path": word}, "reference") for word in ("false", "False", "off", "0", 0, "no")),
        *(({"use_fast_path": word}, None) for word in ("true", "on", "1", 1)),
        ({"dt_init": "random", "dt_scale": 1.0, "dt_init_floor": 1e-4, "conv_bias": "true"}, None),
        ({"use_fast_path": True, "backend": "cpp"}, "cpp"),
    ):
        mixers = [m for m in contract(ssm_cfg=cfg).modules() if isinstance(m, MambaMixer)]
        assert {mixer.backend for mixer in mixers} == {backend}


def test_point_10_bad_inputs_are_refused() -> None:
    model = contract(kernel_size=2)
    for x, message in (
        (clip(2)[0], r"x must have shape \[B, C, T, H, W\]"),
        (clip(2)[:, :2], "with C = 3"),
        (clip(2)[:, :, :0], "at least one frame; got T = 0"),
        (clip(3), "must be divisible by tubelet size"),
        (clip(2, size=(3, 8)), "smaller than one patch"),
        (clip(2, size=(8, 3)), "smaller than one patch"),
    ):
        for call in (model, model.forward_features):
            with pytest.raises(ValueError, match=message):
                call(x)
    with pytest.raises(TypeError, match="floating point"):
        model(clip(2).to(torch.uint8))
    with pytest.raises(ValueError, match="temporal_pos_offset must be non-negative"):
        model(clip(2), temporal_pos_offset=-1)
    for no_tensor in (None, clip(2).numpy()):
        with pytest.raises(TypeError, match=r"x must be a tensor \[B, C, T, H, W\]; got"):
            model(no_tensor)
    for offset in (1.0, True, "1", None, torch.tensor(1)):
        with pytest.raises(TypeError, match="temporal_pos_offset must be an integer"):
            model(clip(2), temporal_pos_offset=offset)
    assert torch.equal(model(clip(2), temporal_pos_offset=np.int64(1))[0], model(clip(2), temporal_pos_offset=1)[0])
    with pytest.raises(ValueError, match=r"x must have shape \[B, C, H, W\]"):
        image_model()(clip(1))


def test_point_10_use_image_treats_an_image_as_a_clip_of_one_frame() -> None:
    model, x = contract(), clip(1)
    assert torch.equal(model(x, use_image=True)[0], model(x)[0])


@pytest.mark.parametrize("tubelet", [1, 2])
def test_point_13_every_row_and_parameter_gets_a_gradient(tubelet: int) -> None:
    model = contract(kernel_size=tubelet).train()
    tokens, pooled = model(clip(8))
    (tokens.square().sum() + pooled.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name
    for table in (model.pos_embed, model.temporal_pos_embedding, model.cls_token):
        assert (table.grad.abs().amax((0, 2)) > 1e-4).all()


def test_point_13_gradients_in_the_bidirectional_families() -> None:
    image = clip(1)[:, :, 0]
    for model, x in ((image_model(), image), (video_model(), clip(4)), (vim_model(), image), (masked_model(), clip(4))):
        model.train()
        (model(x).square().cos().sum() + model.forward_features(x).square().cos().sum()).backward()
        for name, parameter in model.named_parameters():
            if isinstance(model, type(masked_model())) and (name.startswith("layers.2.") or name == "norm.weight"):
                assert parameter.grad is None, f"{name} takes no part in the pretraining"
            else:
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("with_state", [False, True])
def test_point_14_hiding_a_frame_equals_the_clip_without_it(with_state: bool) -> None:
    model, x = contract(), clip(4)
    with torch.no_grad():
        model.temporal_pos_embedding[:] = model.temporal_pos_embedding[:, :1].clone()
    mask = torch.zeros(2, 1 + 4 * PATCHES, dtype=torch.bool)
    mask[:, 1 : 1 + PATCHES] = True
    states = [model.allocate_state(2) if with_state else None for _ in range(2)]
    hidden, without = model(x, mask=mask, ssm_state=states[0]), model(x[:, :, 1:], ssm_state=states[1])
    assert hidden[0].shape == (2, 3 * PATCHES, 16)
    torch.testing.assert_close(hidden[0], without[0])
    torch.testing.assert_close(hidden[1], without[1])


def test_point_14_masks_pick_tokens_per_sample_and_pool_per_frame() -> None:
    model, x = contract(pool_type="avg"), clip(2)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, [2, 7]] = True
    mask[1, [5, 6]] = True
    tokens, pooled = model(x, mask=mask, keep_temporal=True)
    assert tokens.shape == (2, 6, 16)
    means = [[tokens[0, :3], tokens[0, 3:]], [tokens[1, :4], tokens[1, 4:]]]
    expected = torch.stack([torch.stack([frame.mean(0) for frame in sample]) for sample in means])
    torch.testing.assert_close(pooled, model.pool_norm(expected))
    frames = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])  # the norm would hide a wrong scale
    torch.testing.assert_close(mean_per_slice(tokens, frames, 2), expected)
    alone = model(x[1:], mask=mask[1:])[0]
    torch.testing.assert_close(alone, tokens[1:])


def test_point_14_masks_work_in_continuation_chunks() -> None:
    model, x = contract(pool_type="avg"), clip(4)
    mask = torch.zeros(2, 1 + 4 * PATCHES, dtype=torch.bool)
    mask[:, [3, 9, 10, 14]] = True
    whole = model(x, mask=mask)[0]
    half = mask[:, 1 + 2 * PATCHES :]
    for second in (half, torch.cat([torch.zeros(2, 1, dtype=torch.bool), half], 1)):  # with and without CLS column
        a, _, state = model(x[:, :, :2], mask=mask[:, : 1 + 2 * PATCHES], ssm_state=model.allocate_state(2))
        b, _, _ = model(x[:, :, 2:], mask=second, ssm_state=state, temporal_pos_offset=2)
        torch.testing.assert_close(torch.cat([a, b], 1), whole, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="at least one patch token visible"):
        model.forward_features(x[:, :, 2:], torch.ones_like(half), ssm_state=state, temporal_pos_offset=2)


def test_point_14_bad_masks_are_refused() -> None:
    x = clip(2)
    good = torch.zeros(2, 9, dtype=torch.bool)

    def with_hidden(*places: tuple[int, int]) -> torch.Tensor:
        mask = good.clone()
        for row, column in places:
            mask[row, column] = True
        return mask

    all_hidden = torch.ones(2, 9, dtype=torch.bool)
    all_hidden[:, 0] = False
    for mask, message in (
        (good[0], "mask must be 2-D"),
        (good[:1], "mask batch size mismatch: expected 2, got 1"),
        (good[:, 1:], "mask token length mismatch: expected 9, got 8"),
        (torch.zeros(2, 10, dtype=torch.bool), "mask token length mismatch"),
        (with_hidden((1, 0)), "CLS token visible"),
        (with_hidden((0, 3)), "same number of visible tokens"),
        (all_hidden, "at least one patch token visible"),
    ):
        with pytest.raises(ValueError, match=message):
            contract()(x, mask=mask)
    one_frame = with_hidden(*[(row, column) for row in range(2) for column in range(1, 5)])
    with pytest.raises(ValueError, match="at least one visible patch token for each temporal slice"):
        contract()(x, mask=one_frame, keep_temporal=True)
    contract()(x, mask=one_frame)
    contract(pool_type="cls")(x, mask=all_hidden)
    for wrong in (good.float(), good.tolist()):
        with pytest.raises(TypeError, match="bool tensor"):
            contract()(x, mask=wrong)


def test_point_15_a_column_table_stays_constant_along_rows() -> None:
    model = contract(img_size=224, patch_size=16, embed_dim=8, depth=1)
    columns = torch.randn(14, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.pos_embed[0, 1:] = columns.repeat(14, 1)
    table = resize_spatial_table(model.pos_embed[:, 1:], model.patch_embed.grid_size, (14, 24)).unflatten(1, (14, 24))
    torch.testing.assert_close(table, table[:, :1].expand_as(table), atol=1e-5, rtol=0)
    assert (table[0, 0, 0] - table[0, 0, -1]).abs().max() > DIFFERENT
    # the model itself: equal patches in a column keep equal embeddings, whatever the row
    x = torch.zeros(1, 3, 1, 224, 384)
    with torch.no_grad():
        embedded = model._embed(x, model.patch_embed.token_shape(x), 0).unflatten(1, (14, 24))
    torch.testing.assert_close(embedded, embedded[:, :1].expand_as(embedded), atol=1e-5, rtol=0)


def test_point_15_rows_and_columns_of_an_oblong_table_keep_their_meaning() -> None:
    columns = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    table = columns.repeat(2, 1).unsqueeze(0)  # 2x6 patches, the same in both rows
    resized = resize_spatial_table(table, (2, 6), (4, 3)).unflatten(1, (4, 3))
    torch.testing.assert_close(resized, resized[:, :1].expand_as(resized), atol=1e-5, rtol=0)
    rows = torch.tensor([0.0, 1.0]).repeat_interleave(6).view(1, 12, 1)
    shape = resize_spatial_table(rows, (2, 6), (2, 3)).flatten()
    torch.testing.assert_close(shape, torch.tensor([0.0, 0, 0, 1, 1, 1]), atol=1e-5, rtol=0)


def test_point_15_the_built_grid_is_used_and_not_guessed_from_the_aspect_ratio() -> None:
    model = contract(img_size=(16, 16), patch_size=4, depth=1)  # 4x4 patches; 8x32 px has 2x8, as many
    x = clip(1, batch=1, size=(8, 32))
    with torch.no_grad():
        embedded = model._embed(x, model.patch_embed.token_shape(x), 0)
        bare = model.patch_embed(x).flatten(1, 2) + model.temporal_pos_embedding[:, :1]
    maps = model.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(maps, (2, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(embedded - bare, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    assert (embedded - bare - model.pos_embed[:, 1:]).abs().max() > DIFFERENT
    with pytest.raises(ValueError, match="table has 16 rows, not 6"):
        resize_spatial_table(model.pos_embed[:, 1:], (2, 3), (4, 4))


def test_point_15_a_middle_cls_table_keeps_its_cls_row() -> None:
    model = vim_model(img_size=16, depth=2)  # 4x4 patches, CLS row 8
    x = torch.zeros(1, 3, 16, 24)  # 4x6 patches, CLS at 12
    with torch.no_grad():
        tokens = model._embed(x, (4, 6))
        patches = model.patch_embed(x).squeeze(1)
    torch.testing.assert_close(tokens[:, 12], (model.cls_token + model.pos_embed[:, 8:9])[:, 0])
    table = torch.cat([model.pos_embed[:, :8], model.pos_embed[:, 9:]], 1)
    resized = resize_spatial_table(table, (4, 4), (4, 6))
    others = torch.cat([tokens[:, :12], tokens[:, 13:]], 1)
    torch.testing.assert_close(others - patches, resized, atol=1e-5, rtol=0)
    assert model(torch.randn(2, 3, 16, 24)).shape == (2, 5)


def test_other_sizes_and_long_clips_run_in_the_whole_clip_families() -> None:
    assert video_model()(clip(6, size=(8, 16))).shape == (2, 5)  # longer than its table: stretched as a whole
    assert masked_model()(clip(2, size=(8, 16))).shape == (2, 1 + 2 * 8, 6)
    shorter = video_model().forward_features(clip(2))
    model = video_model()
    with torch.no_grad():
        model.temporal_pos_embedding[:, 2:] = 7
    torch.testing.assert_close(model.forward_features(clip(2)), shorter)  # a short clip takes the first rows
