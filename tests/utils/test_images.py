"""Frames are made smaller without aliasing, as transformers' image processor of Depth Anything does it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import tiny_student
from torch.nn import functional as F
from transformers import DPTImageProcessor

from videomamba_depth.data.transforms import resize_images
from videomamba_depth.models.checkpoint import bare_teacher
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder, VideoMambaSpec
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.images import _shrink_rows, shrink_images, unit_images

PATCH = 14


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return uint8 [H, W, 3] noise of full contrast, every pixel by itself: the finest detail that there is."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(image: np.ndarray, side: int) -> torch.Tensor:
    """Return what transformers' processor makes of an image before it normalizes, [1, 3, h, w] in [0, 1]."""
    processor = DPTImageProcessor(
        size={"height": side, "width": side}, keep_aspect_ratio=True, ensure_multiple_of=PATCH, do_normalize=False,
        resample=3,
    )  # fmt: skip
    return processor(images=image, return_tensors="pt")["pixel_values"]


SIZES = [(240, 320), (270, 480), (360, 202), (125, 414), (300, 250)]


@pytest.mark.parametrize("side", [56, 112])
@pytest.mark.parametrize("size", SIZES)
def test_shrinks_as_transformers_processor(size: tuple[int, int], side: int) -> None:
    image = picture(*size)
    expected = processed(image, side)
    floats = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0) / 255
    small = shrink_images(floats, (expected.shape[-2], expected.shape[-1]))
    # Measured 0.52 / 255, as its last pass rounds; with transformers 5.0, on Pillow, both do: 1.38 / 255.
    assert (small - expected).abs().max() <= 2 / 255
    bytes_ = resize_images(image[None], (expected.shape[-2], expected.shape[-1]))
    assert np.abs(bytes_[0].transpose(2, 0, 1) / 255 - expected[0].numpy()).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_the_encoder_sees_what_the_processor_gives(tiny_teacher_folder: str, size: tuple[int, int]) -> None:
    encoder = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=56)
    image = picture(*size)
    expected = processed(image, 56)
    assert encoder.input_resolution(*size) == tuple(expected.shape[-2:])
    features = encoder.encode_frame(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0) / 255)
    wanted = encoder.encode_frame(expected)  # which needs no resizing
    for name in features:
        assert (features[name] - wanted[name]).abs().max() < 0.05 * wanted[name].abs().max()  # measured 0.01


@pytest.mark.parametrize("size", [(56, 70), (40, 50), (56, 68)])
def test_what_does_not_shrink_is_untouched(tiny_teacher_folder: str, size: tuple[int, int]) -> None:
    """Frames that are enlarged, or have the size already, give the bits that plain cubic resizing always gave."""
    encoder = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=56)
    assert encoder.input_resolution(*size) == (56, 70)
    rgb = torch.from_numpy(picture(*size)).permute(2, 0, 1).unsqueeze(0) / 255
    assert shrink_images(rgb, (56, 70)) is rgb
    pixels = (rgb - encoder.mean) / encoder.std
    if size != (56, 70):
        pixels = F.interpolate(pixels, (56, 70), mode="bicubic", align_corners=False)
    with torch.no_grad():
        hidden = encoder.backbone.forward_with_filtered_kwargs(pixels).feature_maps
        expected = encoder.reassemble_stage(hidden, 4, 5)
    assert all(torch.equal(a, b) for a, b in zip(encoder.encode_frame(rgb).values(), expected, strict=True))


def test_other_devices_give_the_same_but_for_single_levels() -> None:
    image = torch.from_numpy(picture(240, 320)).permute(2, 0, 1).unsqueeze(0)
    off = (_shrink_rows(image.float(), 154) - _shrink_rows(image, 154).float()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.02  # measured 0.004: their weights have fewer digits


PICTURES = {
    "bytes": (torch.randint(0, 256, (1, 3, 28, 42), dtype=torch.uint8), r"torch\.uint8: use rgb\.float\(\) / 255"),
    "0 to 255": (torch.rand(1, 3, 28, 42) * 255, r"got .* need rgb / 255"),
    "normalized": (torch.randn(1, 3, 28, 42), "mean and standard deviation are the model's own"),
    "NaN": (torch.rand(1, 3, 28, 42).masked_fill(torch.eye(28, 42) > 0, torch.nan), "NaN or infinite"),
    "infinite": (torch.rand(1, 3, 28, 42).masked_fill(torch.eye(28, 42) > 0, torch.inf), "NaN or infinite"),
    "shape": (torch.rand(1, 4, 28, 42), r"must be a tensor \[B, (N, )?3, H, W\]"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture_is_refused_at_every_entry(tiny_encoder: DepthAnythingEncoder, name: str) -> None:
    picture, message = PICTURES[name]
    student = tiny_student(tiny_encoder)
    stream = DepthStream(copy.deepcopy(student), device="cpu")
    good = torch.rand(1, 3, 28, 42)
    stream.step_tensor(good)
    before = stream.states
    teacher = bare_teacher(tiny_encoder)
    entries = [tiny_encoder.encode_frame, tiny_encoder.predict_depth, lambda x: teacher.encode(x.unsqueeze(1))]
    if name != "shape":  # those of clips and streams say more
        entries += [student.step, lambda x: student(x.unsqueeze(1)), stream.step_tensor]
    for entry in entries:
        with pytest.raises(ValueError, match=message):
            entry(picture)
    assert stream.states is before


def test_rounding_beyond_the_range_is_no_mistake(tiny_encoder: DepthAnythingEncoder) -> None:
    tiny_encoder.encode_frame(torch.rand(1, 3, 28, 42) * 1.002 - 0.001)


def test_dtypes_stay() -> None:
    image = torch.from_numpy(picture(40, 60)).permute(2, 0, 1).unsqueeze(0)
    for dtype in (torch.float16, torch.float32, torch.float64):
        small = shrink_images(image.to(dtype) / 255, (20, 30))
        assert small.dtype == dtype
        assert (small.double() * 255 - shrink_images(image, (20, 30)).double()).abs().max() < 0.8


@pytest.mark.parametrize("size", [(20, 30), (20, 80), (40, 60), (50, 70)])
def test_bytes_become_the_same_floats(size: tuple[int, int]) -> None:
    image = torch.from_numpy(picture(40, 60)).permute(2, 0, 1).unsqueeze(0)
    assert torch.equal(unit_images(image, size), shrink_images(image.float() / 255, size))


def stripes(size: tuple[int, int]) -> torch.Tensor:
    """Return two frames [2, 3, H, W] of vertical stripes as fine as pixels, the second one pixel further."""
    columns = torch.arange(size[1]) % 2
    frame = columns.float().expand(1, 3, *size)
    return torch.cat([frame, 1 - frame])


def test_fine_detail_that_moves_does_not_flicker(tiny_teacher_folder: str) -> None:
    encoders = (
        DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=56),
        VideoMambaEncoder.from_spec(
            VideoMambaSpec(num_layers=4, embed_dim=24, img_size=64, backend="reference"), (8, 12, 16, 16),
            DepthKind.RELATIVE, short_side=64,
        ),
    )  # fmt: skip
    for encoder in encoders:
        with torch.no_grad():
            moved = encoder.encode_frame(stripes((320, 400)))["s2"]
            gray = encoder.encode_frame(torch.stack([torch.zeros(3, 320, 400), torch.ones(3, 320, 400)]))["s2"]
        # Against black and white: measured 0.05 and 0.01; 0.7 and more without antialiasing.
        assert (moved[0] - moved[1]).abs().mean() < 0.15 * (gray[0] - gray[1]).abs().mean()
