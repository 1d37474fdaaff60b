"""Small models of the real architecture with lively random weights: their output depends on their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from videomamba_depth.models.checkpoint import describe_encoder, save_student, student_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.motion import MotionSpec
from videomamba_depth.models.temporal_mamba import ScaleSpec, TemporalSpec
from videomamba_depth.models.videomamba_depth import VideoMambaDepth

OLD_EXPORTER = torch.__version__ < "2.9"
"""Whether PyTorch's compiler and ONNX exporter are too old for what is tested of them."""


def tiny_teacher(kind: str = "relative", seed: int = 0) -> DepthAnythingForDepthEstimation:
    """Return a Depth Anything model of 0.2 M parameters, random."""
    torch.manual_seed(seed)
    backbone = Dinov2Config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=126,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=48,
        patch_size=14,
        neck_hidden_sizes=[8, 12, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=10 if kind == "metric" else 1,
    )
    model = DepthAnythingForDepthEstimation(config)
    enliven(model)
    with torch.no_grad():
        model.head.conv3.bias.fill_(3.0 if kind == "relative" else 0.0)  # away from the dead side of the ReLU
    return model.eval()


def enliven(module: nn.Module, gain: float = 1.0) -> None:
    """Draw every matrix and kernel anew so that it keeps the scale of what passes."""
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.normal_(std=gain * p[0].numel() ** -0.5)


def save_tiny_teacher(folder: Path, kind: str = "relative") -> str:
    """Write a tiny teacher in Hugging Face form; return the folder as text."""
    tiny_teacher(kind).save_pretrained(folder)
    return str(folder)


def tiny_student(
    encoder: DepthAnythingEncoder,
    form: str = "innovation",
    discretization: str = "zoh",
    trained: bool = True,
    num_blocks: tuple[int, int, int, int] = (1, 1, 2, 2),
) -> VideoMambaDepth:
    """Return a student; `trained` moves every temporal weight away from its start."""
    torch.manual_seed(1)

    def scale(num_blocks: int) -> ScaleSpec:
        return ScaleSpec(num_blocks=num_blocks, form=form, discretization=discretization, backend="reference")  # type: ignore[arg-type]

    student = VideoMambaDepth(encoder, encoder.head, TemporalSpec(*map(scale, num_blocks)))
    if trained:
        with torch.no_grad():
            for p in student.temporal.parameters():
                p.add_(torch.randn_like(p) * 0.2)
    return student.eval()


def save_student_with_flow(root: Path, teacher_folder: str, extra: dict[str, Any] | None = None) -> Path:
    """Write a student with flow and no blocks, its teacher copied beside it; return its folder, `root/last`."""
    encoder = DepthAnythingEncoder.from_pretrained(teacher_folder)
    encoder.save_pretrained(root / "encoder")
    folder = root / "last"
    folder.mkdir()
    spec, motion = TemporalSpec(*[ScaleSpec(num_blocks=0)] * 4), MotionSpec()
    student = VideoMambaDepth(encoder, encoder.head, spec, motion=motion)
    about = describe_encoder(encoder, "../encoder")
    save_student(folder, student_weights(student), spec, about, 42, extra, motion=motion)
    return folder
