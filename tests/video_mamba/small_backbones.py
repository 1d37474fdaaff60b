"""Small backbones with random weights of order one, so that every path through them matters."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from videomamba_depth.video_mamba.backbone import MaskedVideoMamba, VideoMamba
from videomamba_depth.video_mamba.pretrain import PretrainVideoMamba
from videomamba_depth.video_mamba.vim import Vim

Model = TypeVar("Model", bound=nn.Module)

SIZE: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "ssm_cfg": {"d_state": 4, "backend": "reference"},
}
PATCHES = 4  # patches of a frame of 8x8 px


@torch.no_grad()
def randomize_(model: Model, seed: int = 0) -> Model:
    """Give every parameter random values that keep activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight") or name.endswith("norm_f.weight") or name == "distill_head.0.weight":
            value = 1 + 0.2 * noise
        elif "A_log" in name or "A_b_log" in name:
            value = 0.7 * noise - 1  # decay rates between 0.1 and 1.5: memories of several frames
        elif "conv1d" in name and parameter.ndim == 3:
            value = 0.7 * noise
        elif parameter.ndim >= 2 and "token" not in name and "pos" not in name:
            value = noise / parameter[0].numel() ** 0.5
        else:
            value = noise
        parameter.copy_(value)
    return model


def contract(seed: int = 0, **options: Any) -> PretrainVideoMamba:
    """A causal streaming backbone of 3 layers, 8 frames in its table."""
    return randomize_(PretrainVideoMamba(**{**SIZE, "depth": 3, "num_frames": 8, **options}), seed).eval()


def image_model(seed: int = 0, **options: Any) -> VideoMamba:
    """A bidirectional image backbone of 3 layers."""
    return randomize_(VideoMamba(**{**SIZE, "depth": 3, "num_classes": 5, **options}), seed).eval()


def video_model(seed: int = 0, **options: Any) -> VideoMamba:
    """A bidirectional video backbone of 3 layers."""
    return image_model(seed, **{"num_frames": 4, **options})


def masked_model(seed: int = 0, **options: Any) -> MaskedVideoMamba:
    """A masked-pretrained backbone of 3 layers."""
    return randomize_(MaskedVideoMamba(**{**SIZE, "depth": 3, "num_frames": 4, "clip_dim": 6, **options}), seed).eval()


def vim_model(seed: int = 0, **options: Any) -> Vim:
    """A Vim of 4 layers."""
    return randomize_(Vim(**{**SIZE, "depth": 4, "num_classes": 5, **options}), seed).eval()


def clip(num_frames: int, batch: int = 2, size: tuple[int, int] = (8, 8), seed: int = 1) -> Tensor:
    """Random pixels `[B, 3, T, H, W]`."""
    return torch.randn(batch, 3, num_frames, *size, generator=torch.Generator().manual_seed(seed))


def stream(model: PretrainVideoMamba, x: Tensor, split: list[int], state: Any = None, offset: int = 0) -> Any:
    """Feed `x` in chunks of `split` frames; returns the tokens, joined, and the last state."""
    tubelet = model.patch_embed.tubelet_size
    state = state if state is not None else model.allocate_state(x.shape[0])
    tokens = []
    for chunk in x.split(split, dim=2):
        out, state = model.forward_features(chunk, ssm_state=state, temporal_pos_offset=offset)
        tokens.append(out)
        offset += chunk.shape[2] // tubelet
    return torch.cat(tokens, dim=1), state


def state_tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in order."""
    layers = state.values() if isinstance(state, dict) else state
    return [tensor for layer in layers for tensor in layer]
