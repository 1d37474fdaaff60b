"""The mixers of Vim: every published way to read a whole sequence in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selective_scan import ScanOutput, selective_scan
from videomamba_depth.layers.bidirectional_mixer import BidirectionalMixer
from videomamba_depth.layers.mamba_mixer import MambaMixer

NON_CAUSAL = "poly_noncausal"
"""The polynomial method as the study of discretizations publishes it (arXiv 2604.20606): the coefficients of "poly" in
a scan of the sequence and in one of the reversed sequence, averaged. It needs the whole sequence: no stream can use it.
"""


class VimMixer(BidirectionalMixer):
    """A mixer of whole sequences `[T, L, d_model]`.

    Args:
        d_model: channels of a token.
        bimamba_type: "v2": two directions, each with its own weights between the shared projections. "v1": the second
            direction has its own A alone and reads what the first one's convolution and projections give. "none": one
            direction.
        halve: average the directions of "v2"; False: sum.
        init_layer_scale: start of a learned factor per channel on the output (`gamma`); None: without.
        mixer: keyword arguments of `MambaMixer`; discretization may be `NON_CAUSAL`, but for "v1".
    """

    def __init__(
        self,
        d_model: int,
        bimamba_type: str = "v2",
        halve: bool = True,
        init_layer_scale: float | None = None,
        **mixer: Any,
    ) -> None:
        non_causal = mixer.get("discretization") == NON_CAUSAL
        if non_causal:
            mixer["discretization"] = "poly"
        if bimamba_type == "v2":
            super().__init__(d_model, halve, **mixer)
        else:
            MambaMixer.__init__(self, d_model, **mixer)
        self.bimamba_type, self.non_causal = bimamba_type, non_causal
        if bimamba_type == "v1":
            self.A_b_log = nn.Parameter(self.A_log.detach().clone())
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), float(init_layer_scale)))

    def mix(self, x: Tensor) -> Tensor:
        """Mix whole sequences `x [T, L, d_model]`, L ≥ 1; same shape out."""
        if self.bimamba_type == "v2":
            y = super().mix(x)
        else:
            u, z = self.in_proj(x).chunk(2, dim=-1)
            y = self.out_proj(self.scan_branch(u, z, None, None)[0])
        return y * self.gamma if hasattr(self, "gamma") else y

    def scan(  # type: ignore[override]
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor, **options: Any
    ) -> ScanOutput:
        """Scan, and for "v1" and `NON_CAUSAL` scan the reversed sequence too."""
        options["with_summary"] = False
        out = selective_scan(u, delta, A, B, C, z=z, **options)
        if self.bimamba_type != "v1" and not self.non_causal:
            return out
        back_A = -torch.exp(self.A_b_log.to(A.dtype)) if self.bimamba_type == "v1" else A
        u, delta, B, C, z = (x.flip(1) for x in (u, delta, B, C, z))
        y = out.y + selective_scan(u, delta, back_A, B, C, z=z, **options).y.flip(1)
        return ScanOutput(y if self.bimamba_type == "v1" else y / 2, out.state, out.summary)
