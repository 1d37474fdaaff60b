"""The VideoMamba encoder has the interface that the student needs, and can be trained through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_backbones import image_model, video_model

from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder, VideoMambaSpec
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError
from videomamba_depth.video_mamba.backbone import VideoMamba
from videomamba_depth.video_mamba.checkpoints import save_backbone
from videomamba_depth.video_mamba.vim import Vim


def encoder(**options) -> VideoMambaEncoder:
    torch.manual_seed(0)
    backbone = image_model(depth=8, num_classes=0)
    return VideoMambaEncoder(backbone, (4, 6, 8, 10), DepthKind.RELATIVE, **options)


@pytest.mark.parametrize(("size", "short_side"), [((8, 12), None), ((13, 22), None), ((30, 50), 12), ((2, 3), None)])
def test_maps_have_the_promised_sizes(size: tuple[int, int], short_side: int | None) -> None:
    model = encoder(short_side=short_side)
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
    source = VideoMamba(img_size=8, patch_size=4, depth=4, embed_dim=16, num_classes=5)
    save_backbone(source, tmp_path / "image.safetensors")
    spec = VideoMambaSpec(num_layers=4, embed_dim=16, img_size=16, patch_size=4, backend="reference")
    started = replace(spec, pretrained=str(tmp_path / "image.safetensors"))
    model = VideoMambaEncoder.from_spec(started, (4, 4, 4, 4), DepthKind.METRIC, max_depth_m=20.0)
    assert model.description()["spec"]["pretrained"] is None  # its weights are the checkpoint's
    assert torch.equal(model.backbone.layers[3].mixer.A_b_log, source.layers[3].mixer.A_b_log)
    assert torch.equal(model.backbone.pos_embed[:, 0], source.pos_embed[:, 0])
    assert model.backbone.pos_embed.shape == (1, 17, 16)  # the file's 2x2 table, stretched
    assert (model.depth_kind, model.max_depth_m, model.patch_size) == (DepthKind.METRIC, 20.0, 4)
    vim = Vim(img_size=8, patch_size=4, depth=4, embed_dim=16, num_classes=5)
    save_backbone(vim, tmp_path / "vim.safetensors")
    with pytest.raises(UserError, match="family 'vim'"):
        replace(spec, pretrained=str(tmp_path / "vim.safetensors")).build()


def test_a_description_builds_the_same_encoder_again() -> None:
    spec = VideoMambaSpec(num_layers=4, embed_dim=16, img_size=8, patch_size=4)
    model = VideoMambaEncoder.from_spec(spec, (4, 6, 8, 10), DepthKind.METRIC, max_depth_m=20.0)
    again = VideoMambaEncoder.from_description(json.loads(json.dumps(model.description())), short_side=12)
    again.load_state_dict(model.state_dict())
    model.short_side = 12
    rgb = torch.rand(1, 3, 10, 15)
    for name, x in model.encode_frame(rgb).items():
        assert torch.equal(again.encode_frame(rgb)[name], x)
    assert (again.depth_kind, again.max_depth_m, again.channels) == (DepthKind.METRIC, 20.0, (4, 6, 8, 10))
    assert VideoMambaSpec().build().get_num_layers() == 24
    with pytest.raises(ValueError, match="got its backbone from outside"):
        encoder().description()


def test_what_it_cannot_be_built_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 layers"):
        VideoMambaEncoder(image_model(), (4, 4, 4, 4), DepthKind.RELATIVE)
    with pytest.raises(ValueError, match="for images"):
        VideoMambaEncoder(video_model(depth=4), (4, 4, 4, 4), DepthKind.RELATIVE)
    with pytest.raises(ValueError, match=r"rgb must be a tensor \[B, 3, H, W\]"):
        encoder().encode_frame(torch.rand(3, 8, 8))
