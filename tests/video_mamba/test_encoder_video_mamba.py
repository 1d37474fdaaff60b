"""The VideoMamba encoder has the interface that the student needs, and can be trained through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_backbones import image_model, video_model

from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.video_mamba.checkpoints import save_backbone


def encoder(**options) -> VideoMambaEncoder:
    torch.manual_seed(0)
    backbone = image_model(depth=8, num_classes=0)
    return VideoMambaEncoder(backbone, (4, 6, 8, 10), DepthKind.RELATIVE, **options)


@pytest.mark.parametrize(("size", "input_size"), [((8, 12), None), ((13, 22), None), ((30, 50), 12), ((2, 3), None)])
def test_maps_have_the_promised_sizes(size: tuple[int, int], input_size: int | None) -> None:
    model = encoder(input_size=input_size)
    features = model.encode_frame(torch.rand(2, 3, *size))
    assert tuple(features) == ("s0", "s1", "s2", "s3")
    expected = model.feature_sizes(*size)
    for channels, (name, x) in zip(model.channels, features.items(), strict=True):
        assert x.shape == (2, channels, *expected[name])
        assert x.isfinite().all()
    assert expected["s0"][0] == 4 * expected["s2"][0]


def test_a_frame_is_encoded_by_itself_and_every_parameter_learns() -> None:
    model = encoder()
    rgb = torch.rand(3, 3, 8, 8)
    together = model.encode_frame(rgb)
    alone = model.encode_frame(rgb[1:2])
    for name in together:
        torch.testing.assert_close(together[name][1:2], alone[name], atol=1e-5, rtol=1e-5)
    sum(x.square().sum() for x in together.values()).backward()
    for name, parameter in model.named_parameters():
        if name == "backbone.norm_f.weight":
            assert not parameter.requires_grad
        else:
            assert parameter.grad.abs().max() > 0, name
    assert model.taps == (1, 3, 5, 7)


def test_official_image_files_can_start_it(tmp_path: Path) -> None:
    source = image_model(depth=4)
    save_backbone(source, tmp_path / "image.safetensors")
    options = {"img_size": 8, "patch_size": 4, "depth": 4, "embed_dim": 16, "ssm_cfg": {"d_state": 4}}
    build = VideoMambaEncoder.from_variant
    model = build(
        "t", (4, 4, 4, 4), DepthKind.METRIC, max_depth_m=20.0, pretrained=tmp_path / "image.safetensors", **options
    )
    assert torch.equal(model.backbone.pos_embed, source.pos_embed)
    assert (model.depth_kind, model.max_depth_m, model.patch_size) == (DepthKind.METRIC, 20.0, 4)
    with pytest.raises(ValueError, match="variant must be one of t, s, m, b"):
        build("xl", (4, 4, 4, 4), DepthKind.METRIC)
    with pytest.raises(ValueError, match="at least 4 layers"):
        VideoMambaEncoder(image_model(), (4, 4, 4, 4), DepthKind.RELATIVE)
    with pytest.raises(ValueError, match="for images"):
        VideoMambaEncoder(video_model(depth=4), (4, 4, 4, 4), DepthKind.RELATIVE)
    with pytest.raises(ValueError, match=r"rgb must have shape \[B, 3, H, W\]"):
        model.encode_frame(torch.rand(3, 8, 8))
