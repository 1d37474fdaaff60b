"""What a frame may cost is bounded before anything is computed, in every model and at every entry point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_teacher

from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder, VideoMambaSpec
from videomamba_depth.models.input_size import MAX_ASPECT_RATIO, MAX_PIXELS, model_input_size
from videomamba_depth.streaming.stream import DepthStream
from videomamba_depth.utils.depth_kind import DepthKind
from videomamba_depth.utils.errors import UserError


@pytest.mark.parametrize(("height", "width"), [(2, 4000), (4000, 2), (4, 2000), (16, 1000)])
def test_narrow_frames_are_refused_by_both_encoders_before_they_run(height: int, width: int) -> None:
    video_mamba = VideoMambaEncoder.from_spec(
        VideoMambaSpec(num_layers=4, embed_dim=32, img_size=32, backend="reference"),
        (8, 8, 8, 8),
        DepthKind.RELATIVE,
        112,
    )
    for encoder in (DepthAnythingEncoder(tiny_teacher(), "tiny", short_side=112), video_mamba):
        for ask in (encoder.input_resolution, encoder.feature_sizes):
            with pytest.raises(UserError, match=f"frames of {width}x{height} px are too narrow.*at most 10:1"):
                ask(height, width)
        with pytest.raises(UserError, match="too narrow"):
            encoder.encode_frame(torch.zeros(1, 3, height, width))


def test_a_stream_refuses_them_in_one_line() -> None:
    stream = DepthStream("embedded", device="cpu", short_side=56)
    with pytest.raises(UserError, match="frames of 4000x2 px are too narrow") as caught:
        stream.step(np.zeros((2, 4000, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_limits() -> None:
    assert model_input_size(40, 40 * MAX_ASPECT_RATIO, 56, 14) == (56, 560)
    assert model_input_size(2, 4000, None, 14) == (14, 4004)  # nothing is enlarged: cheap
    assert model_input_size(2160, 4096, None, 16) == (2160, 4096)
    with pytest.raises(UserError, match=r"too large: the model would see 7686x4326.*smaller short_side"):
        model_input_size(4320, 7680, None, 14)
    with pytest.raises(UserError, match="too large"):
        model_input_size(1080, 1920, 5600, 14)
    rows, columns = model_input_size(720, 1280, 2016, 14)
    assert rows * columns <= MAX_PIXELS
