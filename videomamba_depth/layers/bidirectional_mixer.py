"""The bidirectional mixer of VideoMamba and Vim ("v2"): two scans between shared projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selective_scan import ScanOutput, selective_scan
from videomamba_depth.layers.mamba_mixer import LayerState, MambaMixer, MixerOutput, ScanBranch, init_dt_proj_

STREAMING_STATEMENT = (
    "A causal model streams: outputs in chunks equal outputs in one go, whatever the split. A bidirectional model"
    " needs the whole clip: passing a state raises."
)
"""What each family of backbones may promise."""


class BidirectionalMixer(MambaMixer):
    """`out_proj(y_f + flip(y_b))`: a forward scan, and a scan of the sequence flipped in time (Zhu et al., Vim, arXiv
    2401.09417, section 3.3; Li et al., VideoMamba, arXiv 2403.06977).

    The directions share `in_proj` and `out_proj`; each has its own convolution, `x_proj`, `dt_proj`, A and D. Parameter
    names are the published ones (`A_b_log`, `conv1d_b`, ...).

    Args:
        d_model: channels of a token.
        halve: return the mean of the two directions (Vim, "divide out") and not their sum (VideoMamba).
        mixer: keyword arguments of `MambaMixer`.
    """

    def __init__(self, d_model: int, halve: bool = False, **mixer: Any) -> None:
        super().__init__(d_model, **mixer)
        self.halve = halve
        self.A_b_log = nn.Parameter(self.A_log.detach().clone())
        self.D_b = nn.Parameter(torch.ones(self.d_inner))
        self.conv1d_b = nn.Conv1d(
            self.d_inner, self.d_inner, self.d_conv, groups=self.d_inner, bias=self.conv1d.bias is not None
        )
        self.x_proj_b = nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj_b = nn.Linear(self.dt_rank, self.d_inner)
        init_dt_proj_(self.dt_proj_b, mixer.get("dt_min", 0.001), mixer.get("dt_max", 0.1))

    def forward(self, x: Tensor, state: LayerState | None = None) -> MixerOutput:
        """Refuse: use `mix`. A bidirectional layer has no state to return."""
        raise TypeError(f"BidirectionalMixer has no state; call mix(x) on the whole sequence. {STREAMING_STATEMENT}")

    @staticmethod
    def scan(*arguments: Any, **options: Any) -> ScanOutput:
        """Scan without the summary, which nothing reads here and which costs a sixth to two thirds of the time."""
        return selective_scan(*arguments, **{**options, "with_summary": False})

    def mix(self, x: Tensor) -> Tensor:
        """Mix whole sequences `x [T, L, d_model]`, L ≥ 1; same shape out."""
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [T, L, d_inner]
        forward, _, _ = self.scan_branch(u, z, None, None)
        branch = ScanBranch(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        # The second scan reads the sequence from its end; its output is turned around again before they are added.
        backward, _, _ = self.scan_branch(u.flip(1), z.flip(1), None, None, branch)
        y = forward + backward.flip(1)
        return self.out_proj(y / 2 if self.halve else y)


def refuse_state(state: object, family: str) -> None:
    """Raise ValueError when a state is handed to a bidirectional model."""
    if state is not None:
        raise ValueError(
            f"{family} is bidirectional and takes no state: its backward scan needs the frames that are still to come."
            f" {STREAMING_STATEMENT} Run the whole clip at once, or use PretrainVideoMamba (causal; bidirectional"
            " weights must be fine-tuned to become causal)"
        )
