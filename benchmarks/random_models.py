"""Models of the published sizes with random weights, for timing: nothing that is timed depends on the values."""

from __future__ import annotations

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from videomamba_depth.models.checkpoint import bare_teacher
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.encoder_video_mamba import VideoMambaEncoder, VideoMambaSpec
from videomamba_depth.models.geometry import GeometrySpec
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.output_refiner import OutputSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth

PATCH = 14
TRUST_CHANNELS = 16
# Of Depth Anything V2: width, layers, heads, layers whose features are taken, channels of s0..s3 and of the fusion.
SIZES = {
    "tiny": (48, 4, 3, [1, 2, 3, 4], [8, 12, 16, 16], 16),  # for tests of the benchmarks themselves
    "small": (384, 12, 6, [3, 6, 9, 12], [48, 96, 192, 384], 64),
    "base": (768, 12, 12, [3, 6, 9, 12], [96, 192, 384, 768], 128),
    "large": (1024, 24, 16, [5, 12, 18, 24], [256, 512, 1024, 1024], 256),
}
RECIPE = TemporalSpec(
    ScaleSpec(num_blocks=0),
    ScaleSpec(initial_gain=0.7),
    ScaleSpec(initial_gain=0.8, advect=False),
    ScaleSpec(initial_gain=0.8, advect=False),
)
"""The temporal stacks of configs/model/base.yaml; flow and carried output have its values by default."""


def build_encoder(size: str = "small", device: str = "cpu") -> DepthAnythingEncoder:
    """Return a Depth Anything of a size in `SIZES`."""
    width, layers, heads, taken, neck, fusion = SIZES[size]
    backbone = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=518,
        patch_size=PATCH,
        out_indices=taken,
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        patch_size=PATCH,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        head_hidden_size=32,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = DepthAnythingForDepthEstimation(config)
    torch.nn.init.constant_(model.head.conv3.bias, 3.0)  # away from the dead side of the ReLU
    return DepthAnythingEncoder(model.eval(), f"random {size} encoder").to(device)


def build_student(
    encoder: DepthAnythingEncoder,
    temporal: TemporalSpec = RECIPE,
    *,
    moves: bool = True,
    refines: bool = True,
    train_head: bool = False,
    geometry: GeometrySpec | None = None,
    variant: str | None = None,
) -> VideoMambaDepth:
    """Return a student, the recommended recipe by default.

    Args:
        moves: it has flow. refines: its output is carried. train_head: the decoder learns too.
        variant: of a VideoMamba in place of the teacher's encoder.
    """
    own: DepthAnythingEncoder | VideoMambaEncoder = encoder
    if variant is not None:
        own = VideoMambaEncoder.from_spec(VideoMambaSpec(variant), encoder.channels, encoder.depth_kind)
    flow, output = MotionSpec() if moves else None, OutputSpec() if refines else None
    trust_channels = TRUST_CHANNELS if geometry is not None else 0  # as the shipped student has
    student = VideoMambaDepth(
        own, encoder.head, temporal, train_head, flow, output, geometry, trust_channels=trust_channels
    )
    return student.to(encoder.mean.device).eval()


def build_variants(encoder: DepthAnythingEncoder) -> dict[str, VideoMambaDepth]:
    """Return what streams are compared of: the bare teacher first, then students on the same encoder."""
    return {
        "teacher": bare_teacher(encoder),
        "recipe": build_student(encoder),
        "recipe + geometry": build_student(encoder, geometry=GeometrySpec()),
    }
