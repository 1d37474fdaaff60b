"""The published sizes, and presets for streaming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from videomamba_depth.video_mamba.pretrain import PretrainVideoMamba


class Variant(NamedTuple):
    """Size of a backbone."""

    depth: int
    embed_dim: int


VARIANTS = {"t": Variant(24, 192), "s": Variant(24, 384), "m": Variant(32, 576), "b": Variant(24, 768)}
"""The published sizes; `VideoMamba(**VARIANTS["s"]._asdict())` builds one."""


@dataclass(frozen=True)
class StreamPreset:
    """A size and a chunk length to run a stream with.

    Attributes:
        variant: a name in `VARIANTS`.
        chunk_frames: frames per call, at one frame per token.
        purpose: what it gains and costs; docs/video_mamba.md has the measurements.
        deterministic: what `configure_determinism` is to be given before the stream; None: either.
    """

    variant: str
    chunk_frames: int
    purpose: str
    deterministic: bool | None = None

    def build(self, **options: Any) -> PretrainVideoMamba:
        """Return the streaming backbone; options are those of `PretrainVideoMamba`.

        By default it pools with "avg", which every chunk can, and runs for ever (temporal_policy "clamp").
        """
        from videomamba_depth.video_mamba.pretrain import PretrainVideoMamba  # the sizes alone are of use without it

        defaults: dict[str, Any] = {"pool_type": "avg", "temporal_policy": "clamp"}
        return PretrainVideoMamba(**{**VARIANTS[self.variant]._asdict(), **defaults, **options})

    def stream(self, model: PretrainVideoMamba, clip: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `(x_vis [B, t·s, C], x_pool [B, t, C])` of one call after another, see `PretrainVideoMamba.forward`.

        Args:
            model: what `build` returned.
            clip: `[B, C, T, H, W]` normalized pixels; cut into calls of `chunk_frames`, the last may be shorter.
        """
        state = model.allocate_state(clip.shape[0])
        for start in range(0, clip.shape[2], self.chunk_frames):
            chunk, row = clip[:, :, start : start + self.chunk_frames], start // model.patch_embed.tubelet_size
            tokens, pooled, state = model(chunk, keep_temporal=True, ssm_state=state, temporal_pos_offset=row)
            yield tokens, pooled


PRESETS = {
    "throughput": StreamPreset("t", 16, "most frames per second; results come 16 frames at a time"),
    "balanced": StreamPreset("t", 4, "nearly as many frames per second; results come 4 frames at a time"),
    "low_latency": StreamPreset("t", 1, "a result after every frame; each call pays its overhead for one frame"),
    "gpu_throughput": StreamPreset("t", 64, "most frames per second on a large GPU", deterministic=False),
    "gpu_balanced": StreamPreset("t", 32, "runs that repeat to the bit on a large GPU", deterministic=True),
    "gpu_low_latency": StreamPreset("t", 8, "short delay and little memory on a GPU; 8 to 16 frames"),
}
"""By name: those for a CPU, with measurements, and those for GPUs that the field's VideoMamba code publishes, with all
kernels fused. State and results do not depend on the choice, only speed, delay and memory do."""
