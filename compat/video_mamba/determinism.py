"""Seeds and deterministic algorithms."""

from videomamba_depth.video_mamba import (
    DeterminismConfig,
    add_determinism_args,
    configure_determinism,
    configure_determinism_from_args,
)

__all__ = ["DeterminismConfig", "add_determinism_args", "configure_determinism", "configure_determinism_from_args"]
