"""The Mamba mixer: one recurrent layer over a sequence of tokens, with its state as argument and return value."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selective_scan import causal_conv1d, selective_scan, state_shape, zero_state

LayerState = tuple[Tensor, Tensor]
"""`(conv_state [T, d_inner, d_conv], ssm_state [T, d_inner, d_state])`; T is the number of sequences."""


class MixerOutput(NamedTuple):
    """What a recurrent layer returns for a chunk of L tokens."""

    y: Tensor  # [T, L, d_model]
    state: LayerState
    summary: Tensor  # [T, L, d_state] mean over channels of the SSM state after each token; differentiable


class ScanBranch(NamedTuple):
    """The weights of one direction: all that lies between the input projection and the output projection."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: Tensor  # [d_inner, d_state]
    D: Tensor  # [d_inner]


class MambaMixer(nn.Module):
    """Selective state-space mixer with carried state (Gu & Dao, "Mamba", arXiv 2312.00752, section 3.4).

    `x, z = in_proj(x); x = silu(conv1d(x)); y = scan(x) · silu(z); out_proj(y)`. Parameter names and shapes are the
    published ones, so that weights load by name.

    Args:
        d_model: channels of a token.
        d_state: states per channel (N).
        d_conv: width of the causal depthwise convolution, 2 to 4.
        expand: `d_inner = expand · d_model`.
        dt_rank: rank of the step-size projection; "auto" is `ceil(d_model / 16)`.
        dt_min, dt_max: range that the initial step sizes are drawn from, log-uniformly.
        discretization: a name in `selective_scan.DISCRETIZATIONS`.
        backend: scan backend, see `selective_scan.selective_scan`; None chooses.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        conv_bias: bool = True,
        bias: bool = False,
        discretization: str = "zoh",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.discretization, self.backend = discretization, backend
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        init_dt_proj_(self.dt_proj, dt_min, dt_max)

    scan = staticmethod(selective_scan)

    def init_state(self, num_sequences: int, dtype: torch.dtype, device: torch.device | str) -> LayerState:
        """Return the zero state of `num_sequences` new sequences; float32 at least, whatever `dtype` tokens have."""
        dtype = torch.promote_types(dtype, torch.float32)
        conv = zero_state((num_sequences, self.d_inner, self.d_conv), dtype, device)
        shape = state_shape(num_sequences, self.d_inner, self.d_state, self.discretization)
        return conv, zero_state(shape, dtype, device)

    def forward(self, x: Tensor, state: LayerState | None = None) -> MixerOutput:
        """Mix a chunk.

        Args:
            x: `[T, L, d_model]`, L ≥ 1.
            state: what the previous chunk returned; None starts new sequences. Never written to.
        """
        conv_state, ssm_state = state if state is not None else (None, None)
        u, z = self.in_proj(x).chunk(2, dim=-1)  # [T, L, d_inner]: what is scanned, and its gate
        y, next_state, summary = self.scan_branch(u, z, conv_state, ssm_state)
        return MixerOutput(self.out_proj(y), next_state, summary)

    def scan_branch(
        self,
        u: Tensor,
        z: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        branch: ScanBranch | None = None,
    ) -> tuple[Tensor, LayerState, Tensor]:
        """Convolve, scan and gate `u, z [T, L, d_inner]` forward in time; returns `(y, state, summary)`.

        `branch` holds the weights to do it with; None: the mixer's own.
        """
        w = branch or ScanBranch(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        u, conv_state = causal_conv1d(
            u,
            w.conv1d.weight.squeeze(1),
            w.conv1d.bias,
            initial_state=conv_state,
            activation="silu",
            backend=self.backend,
        )
        # What makes the scan selective: Δ, B and C depend on the token. [T, L, dt_rank], [T, L, d_state] twice
        dt, B, C = w.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y, ssm_state, summary = self.scan(
            u,
            F.linear(dt, w.dt_proj.weight),  # the bias is added inside the scan, in float32
            -torch.exp(w.A_log.float()) if w.A_log.dtype != torch.float64 else -torch.exp(w.A_log),
            B,
            C,
            D=w.D,
            z=z,
            delta_bias=w.dt_proj.bias,
            delta_softplus=True,
            initial_state=ssm_state,
            discretization=self.discretization,
            backend=self.backend,
            with_summary=True,
        )
        return y, (conv_state, ssm_state), summary


def init_dt_proj_(dt_proj: nn.Linear, dt_min: float, dt_max: float, dt_floor: float = 1e-4) -> None:
    """Initialize so that softplus(bias) is log-uniform in [dt_min, dt_max] (Mamba, section 3.6)."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    log_dt = torch.rand(dt_proj.out_features) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
    with torch.no_grad():
        dt_proj.bias.copy_(inverse_softplus(torch.exp(log_dt).clamp(min=dt_floor)))


def inverse_softplus(x: Tensor) -> Tensor:
    """Return y with softplus(y) = x, for x > 0, without overflow."""
    return x + torch.log(-torch.expm1(-x))
