"""Pooled embeddings, preprocessing and dense features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_backbones import clip, contract, image_model, masked_model, state_tensors, video_model, vim_model

from videomamba_depth.video_mamba.embedding import Preprocessing, normalize_imagenet


def test_preprocessing_resizes_crops_and_normalizes() -> None:
    prepare = Preprocessing(resize=256, crop=224, interpolation="bicubic")
    ramp = torch.linspace(0, 1, 320).expand(1, 3, 160, 320)
    out = prepare(ramp, (28, 28))
    assert out.shape == (1, 3, 28, 28)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    back = out * std[:, None, None] + mean[:, None, None]
    # short side 160 → 32 px, so 320 → 64 px, of which the middle 28 stay: 18/64 to 46/64 of the ramp
    torch.testing.assert_close(back[0, 0, 14, [0, -1]], torch.tensor([18.5 / 64, 45.5 / 64]), atol=5e-3, rtol=0)
    same = normalize_imagenet(torch.full((1, 3, 2, 2), 0.5))
    torch.testing.assert_close(same[0, :, 0, 0], (0.5 - mean) / std)
    exact = torch.rand(1, 3, 28, 28)
    identity = Preprocessing(resize=224, crop=224, interpolation="bilinear")
    torch.testing.assert_close(identity(exact, (28, 28)), normalize_imagenet(exact))
    torch.testing.assert_close(
        prepare((ramp * 255).round().to(torch.uint8), (28, 28)), prepare((ramp * 255).round() / 255, (28, 28))
    )


def test_each_family_has_its_own_preprocessing() -> None:
    for model in (image_model(), vim_model()):
        assert model.preprocessing == Preprocessing(256, 224, "bicubic")
    for model in (video_model(), masked_model(), contract()):
        assert model.preprocessing == Preprocessing(224, 224, "bilinear")


def test_embed_averages_the_patches_and_leaves_the_cls_out() -> None:
    images = torch.rand(3, 3, 10, 14)
    for model in (image_model(), vim_model()):
        x = model.preprocess(images)
        assert x.shape == (3, 3, 8, 8)
        tokens = model.forward_features(x)
        position = 2 if model.family == "vim" else 0
        patches = torch.cat([tokens[:, :position], tokens[:, position + 1 :]], 1)
        torch.testing.assert_close(model.embed(images), patches.mean(1))
        torch.testing.assert_close(model.embed(images, pool="cls"), tokens[:, position])


def test_embed_takes_images_of_any_size_and_clips() -> None:
    images = [torch.rand(3, 9, 20), torch.randint(0, 255, (3, 30, 12), dtype=torch.uint8)]
    model = image_model().bfloat16().train()
    vectors = model.embed(images)
    assert vectors.shape == (2, 16)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    assert model.training
    clips = torch.rand(2, 4, 3, 9, 9)
    for video in (video_model(), masked_model(), contract()):
        assert video.preprocess(clips).shape == (2, 3, 4, 8, 8)
        assert video.embed(clips).shape == (2, 16)
    assert video_model().embed(clips, pool="cls").shape == (2, 16)
    one_by_one = torch.cat([contract().embed(clips[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(contract().embed(clips), one_by_one)


def test_embed_refuses_what_it_cannot_mean() -> None:
    model = image_model()
    with pytest.raises(ValueError, match=r"must have shape \[3, H, W\]"):
        model.embed(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"must have shape \[T, 3, H, W\]"):
        video_model().embed(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="divide by 255"):
        model.embed(torch.rand(2, 3, 8, 8) * 255)
    with pytest.raises(ValueError, match="got nan to nan"):
        model.embed(torch.full((2, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"must hold pixels; got Tensor torch.float32 \[3, 0, 8\]"):
        model.embed(torch.rand(2, 3, 0, 8))
    with pytest.raises(ValueError, match=r"must have shape \[3, H, W\]; got ndarray"):
        model.embed([np.zeros((3, 8, 8), np.uint8)])
    with pytest.raises(TypeError, match="uint8, or floats"):
        model.embed(torch.ones(2, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one item"):
        model.embed([])
    with pytest.raises(ValueError, match="pool must be"):
        model.embed(torch.rand(1, 3, 8, 8), pool="max")
    with pytest.raises(ValueError, match="stands before all frames"):
        contract().embed(torch.rand(1, 2, 3, 8, 8), pool="cls")
    with pytest.raises(ValueError, match="if_cls_token=False"):
        vim_model(if_cls_token=False, use_middle_cls_token=False).embed(torch.rand(1, 3, 8, 8), pool="cls")
    with pytest.raises(ValueError, match="has no head"):
        image_model(num_classes=0)(clip(1)[:, :, 0])


def test_dense_features_are_the_streams_after_layers() -> None:
    model, x = image_model(), torch.randn(2, 3, 8, 12)
    maps = model.dense_features(x, (0, 2))
    assert [m.shape for m in maps] == [(2, 16, 2, 3)] * 2
    normed = model.norm_f(maps[1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(normed, model.forward_features(x)[:, 1:])
    assert (maps[0] - maps[1]).abs().max() > 0.1
    assert video_model().dense_features(clip(4), (1,))[0].shape == (2, 16, 4, 2, 2)
    for layers in ((), (2, 0), (0, 0), (3,), (-1, 1)):
        with pytest.raises(ValueError, match="layers must rise"):
            model.dense_features(x, layers)


def test_dense_features_of_vim_leave_the_middle_cls_out() -> None:
    x = torch.randn(2, 3, 8, 12)
    for model in (vim_model(), vim_model(bimamba_type="none", if_bidirectional=True)):
        maps = model.dense_features(x, (1, 3))
        assert [m.shape for m in maps] == [(2, 16, 2, 3)] * 2
        torch.testing.assert_close(model.norm_f(maps[1].flatten(2).transpose(1, 2)), model.patch_features(x))
        assert (maps[0] - maps[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="in pairs: take the odd ones"):
        model.dense_features(x, (0, 3))


@pytest.mark.parametrize("as_dict", [False, True])
def test_dense_features_of_the_causal_model_stream(as_dict: bool) -> None:
    model, x = contract(), clip(6, size=(8, 12))
    with torch.no_grad():
        whole = model.dense_features(x, (0, 1))  # the last layer is not run, but its state goes on
        state, parts, offset = model.allocate_state(2, as_dict=as_dict), [], 0
        for chunk in x.split([1, 2, 3], dim=2):
            maps, state = model.dense_features(chunk, (0, 1), ssm_state=state, temporal_pos_offset=offset)
            parts.append(maps)
            offset += chunk.shape[2]
        _, final = model.forward_features(x, ssm_state=model.allocate_state(2))
    for index in (0, 1):
        assert whole[index].shape == (2, 16, 6, 2, 3)
        joined = torch.cat([maps[index] for maps in parts], dim=2)
        torch.testing.assert_close(joined, whole[index], atol=1e-4, rtol=0)
    for ours, theirs in zip(state_tensors(state), state_tensors(final), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    (last,) = model.dense_features(x, (2,))
    torch.testing.assert_close(model.norm(last.flatten(2).transpose(1, 2)), model.patch_features(x))
