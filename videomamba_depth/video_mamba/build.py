"""From a config to a streaming backbone."""

from __future__ import annotations

from typing import Any

from videomamba_depth.video_mamba.checkpoints import load_contract_weights
from videomamba_depth.video_mamba.pretrain import PretrainVideoMamba

_FIELDS = (
    "img_size",
    "patch_size",
    "depth",
    "embed_dim",
    "channels",
    "drop_path_rate",
    "ssm_cfg",
    "norm_epsilon",
    "fused_add_norm",
    "rms_norm",
    "residual_in_fp32",
    "bimamba",
    "pool_type",
    "kernel_size",
    "num_frames",
    "use_checkpoint",
    "checkpoint_num",
)


def build_videomamba(config: Any, add_pool_norm: bool = True, temporal_policy: str = "clamp") -> PretrainVideoMamba:
    """Build the causal streaming backbone that `config.vision_encoder` describes, and load its weights.

    Args:
        config: any object with an attribute `vision_encoder` that has the attributes img_size, patch_size, depth,
            embed_dim, channels, drop_path_rate, ssm_cfg, norm_epsilon, fused_add_norm, rms_norm, residual_in_fp32,
            bimamba, pool_type, kernel_size, num_frames, use_checkpoint, checkpoint_num (see `PretrainVideoMamba`) and
            pretrained: None, or the path of a plain state dict; then ckpt_num_frame too.
        add_pool_norm: also return pooled vectors, see `PretrainVideoMamba.forward`.
        temporal_policy: "clamp", "error" or "resize_once(N)", see `TemporalPolicy`.

    Raises:
        AttributeError: an attribute is missing; names it.
        ValueError, NotImplementedError, CheckpointError: see `PretrainVideoMamba` and `load_contract_weights`.
    """
    encoder = _require(config, "vision_encoder", "config")
    fields = {name: _require(encoder, name, "config.vision_encoder") for name in _FIELDS}
    pretrained = _require(encoder, "pretrained", "config.vision_encoder")
    model = PretrainVideoMamba(**fields, add_pool_norm=add_pool_norm, temporal_policy=temporal_policy)
    if pretrained is not None:
        load_contract_weights(model, pretrained, _require(encoder, "ckpt_num_frame", "config.vision_encoder"))
    return model


def _require(config: Any, name: str, where: str) -> Any:
    """Return an attribute; configs that answer None for what they lack are refused as those that raise."""
    missing = AttributeError(f"{where}.{name} is required and missing")
    try:
        value = getattr(config, name)
    except (AttributeError, KeyError) as error:
        raise missing from error
    if value is None and name not in ("ssm_cfg", "pretrained"):
        raise missing
    return value
