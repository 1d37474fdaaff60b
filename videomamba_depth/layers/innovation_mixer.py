"""A selective scan whose weights sum to one: a recurrent estimate of its own input, and the innovation on it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selective_scan import causal_conv1d, selective_scan, state_shape, zero_state
from selective_scan.mean_step import mean_step, mean_step_fits
from videomamba_depth.layers.mamba_mixer import LayerState, MixerOutput, inverse_softplus

_MAX_STEP_BILINEAR = 1.9
"""Largest |Δ·A| for methods whose decay changes sign at 2; beyond, the weights of the mean would turn negative."""


class InnovationMixer(nn.Module):
    """Return `out_proj(h − x)`, h_t = Σ_k w_tk x_k / Σ_k w_tk, with selective weights w ≥ 0.

    The weights are those of a selective scan: channels are grouped in heads; a head has its own step size Δ_t and N
    decay rates A; B_t ≥ 0 says how much a frame counts, C_t ≥ 0 which of the rates are read. One extra channel per
    head scans the constant 1 and so yields Σ_k w_tk. Three properties follow, for every discretization: h is a mean of
    past and present (unit gain), h = x exactly on the first frame, and an all-zero state is a new stream.
    The scan runs in float32 (float64 for float64 tokens): h − x is a small difference. The summary is divided by
    the weights' sum too, so that it has no ramp at the start of a stream.

    Args:
        d_model: channels of a token.
        d_state: decay rates per head (N).
        d_conv: width of the causal convolution on the control channels, 2 to 4.
        expand: copies of x, each with its own heads; the scan has `expand · d_model + heads` channels.
        heads: groups of channels with their own Δ, per copy.
        d_control: width of the path that computes Δ, B, C and the gate.
        time_constants: fastest and slowest initial memory in frames; the rates are spread geometrically between them.
        initial_gain: share of the innovation that passes before training; 0 changes nothing, 1 replaces x by h.
        discretization: a name in `selective_scan.DISCRETIZATIONS`.
        backend: scan backend; None chooses.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 4,
        d_conv: int = 4,
        expand: int = 1,
        heads: int = 4,
        d_control: int | None = None,
        time_constants: tuple[float, float] = (1.5, 12.0),
        initial_gain: float = 0.0,
        discretization: str = "zoh",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if d_model % heads:
            raise ValueError(f"d_model must be a multiple of heads; got {d_model} and {heads}")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.num_heads = heads * expand
        self.d_control = d_control if d_control is not None else max(16, d_model // 2)
        self.discretization, self.backend = discretization, backend
        self.in_proj = nn.Linear(d_model, self.d_control)
        self.conv1d = nn.Conv1d(self.d_control, self.d_control, d_conv, groups=self.d_control)
        # outputs: Δ per head, gate per head, B, C
        self.x_proj = nn.Linear(self.d_control, 2 * self.num_heads + 2 * d_state)
        rates = torch.logspace(-math.log10(time_constants[0]), -math.log10(time_constants[1]), d_state)
        self.A_log = nn.Parameter(torch.log(rates).repeat(self.num_heads, 1))
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)
        self._init_weights(initial_gain)

    def _init_weights(self, gain: float) -> None:
        """Start as a bank of plain smoothers: Δ = B = C = 1 and gate ½ for every input, then W = 2 · gain."""
        one = inverse_softplus(torch.tensor(1.0)).item()
        nn.init.normal_(self.x_proj.weight, std=0.02)
        with torch.no_grad():
            self.x_proj.bias.fill_(one)
            self.x_proj.bias[self.num_heads : 2 * self.num_heads] = 0.0
            copies = torch.eye(self.d_model).repeat(1, self.expand) / self.expand
            self.out_proj.weight.copy_(2.0 * gain * copies)

    def init_state(self, num_sequences: int, dtype: torch.dtype, device: torch.device | str) -> LayerState:
        """Return the zero state of `num_sequences` new sequences; float32 at least, whatever `dtype` tokens have."""
        dtype = torch.promote_types(dtype, torch.float32)
        conv = zero_state((num_sequences, self.d_control, self.d_conv), dtype, device)
        channels = self._state_channels(self.expand * self.d_model) + self._state_channels(self.num_heads)
        columns = state_shape(1, 1, self.d_state, self.discretization)[2]
        return conv, zero_state((num_sequences, channels, columns), dtype, device)

    def forward(self, x: Tensor, control: Tensor, state: LayerState | None = None, memory: float = 1.0) -> MixerOutput:
        """Mix a chunk.

        Args:
            x: tokens `[T, L, d_model]`, L ≥ 1.
            control: `[T, L, d_control]`, what Δ, B, C and the gate are computed from.
            state: what the previous chunk returned; None starts new sequences. Never written to.
            memory: > 0, lengthens all time constants by that factor; 1: as trained; toward 0, h becomes x.
        """
        conv_state, ssm_state = state if state is not None else (None, None)
        _, mass = self._split_state(ssm_state)
        has_past = x.new_zeros(len(x), dtype=torch.bool) if mass is None else (mass != 0).flatten(1).any(1)
        has_past = has_past.view(-1, 1, 1)
        # 1. The control path sees the last d_conv frames: what is new shows in how they differ.
        control, conv_state = causal_conv1d(
            control,  # [T, L, d_control]
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=conv_state,
            activation="silu",
            backend=self.backend,
        )
        # 2. From here in float32 at least, whatever autocast says: h − x is a small difference of large numbers.
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            # [T, L, 2·heads + 2·d_state]: Δ and gate per head, B, C
            controls = F.linear(control.to(precise), self.x_proj.weight.to(precise), self.x_proj.bias.to(precise))
            if ssm_state is not None and self._fuses(x, ssm_state):
                # A streamed frame: scans, mean, gate and difference in one kernel that reads the state once.
                u = x[:, 0].repeat(1, self.expand) if self.expand > 1 else x[:, 0]  # [T, expand·d_model]
                rates = self._rates(torch.float32, memory)
                step, ssm_state, summary = mean_step(ssm_state, u, controls[:, 0], rates)
                innovation, summary = step.unsqueeze(1), summary.unsqueeze(1)
            else:
                rates = self._rates(precise, memory)
                estimate, ssm_state, summary = self._estimate(x.to(precise), controls, rates, ssm_state)
                gate = controls[..., self.num_heads : 2 * self.num_heads].sigmoid()  # [T, L, heads]
                innovation = estimate - x.to(precise).repeat(1, 1, self.expand)  # [T, L, expand·d_model]
                innovation = (innovation.unflatten(-1, (self.num_heads, -1)) * gate.unsqueeze(-1)).flatten(-2)
        # 3. W mixes copies and channels; it starts at `initial_gain`. On a first frame h = x, and the branch is 0 to
        #    the bit: the quotient of the two scans is not x to the bit on every machine.
        innovation = torch.cat([torch.where(has_past, innovation[:, :1], 0.0), innovation[:, 1:]], 1)
        branch = self.out_proj(innovation.to(x.dtype))
        return MixerOutput(branch, (conv_state, ssm_state), summary)

    def advect(self, state: LayerState, move: Callable[[Tensor, bool], Tensor]) -> LayerState:
        """Return the state with every sequence's part taken from where its place in the scene was one frame before.

        Args:
            move: maps `[T, ...]` to the same shape; the flag asks for a sharp interpolation, which may overshoot.

        The means are moved sharply, and apart from the weights they rest on: those must not become negative.
        """
        conv, ssm = state
        values, mass = self._split_state(ssm)
        assert values is not None
        assert mass is not None
        per_head = self.expand * self.d_model // self.num_heads
        if values.shape[1] != self.expand * self.d_model:  # two-tap methods carry their last input along: all linear
            return move(conv, False), move(ssm, False)
        weight = mass.repeat_interleave(per_head, 1)  # [T, expand·d_model, d_state] ≥ 0
        mean = torch.where(weight > 0, values / weight.clamp(min=torch.finfo(ssm.dtype).tiny), 0.0)
        mass = move(mass, False)  # linear: a bicubic weight could become negative
        values = move(mean, True) * mass.repeat_interleave(per_head, 1)
        return move(conv, False), torch.cat([values, mass], dim=1)

    def _estimate(
        self, x: Tensor, controls: Tensor, rates: Tensor, ssm_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(h [T, L, expand·d_model], state, summary)`: the weighted mean of each head's channels."""
        heads, n = self.num_heads, self.d_state
        dt, _, B, C = controls.split([heads, heads, n, n], dim=-1)
        B, C = F.softplus(B), F.softplus(C)  # [T, L, N] > 0: the weights of a mean must not be negative
        delta = F.softplus(dt)
        if self.discretization in ("bilinear", "tustin"):
            delta = torch.minimum(delta, _MAX_STEP_BILINEAR / rates.abs().amax(-1))
        per_head = self.expand * self.d_model // heads
        values_state, mass_state = self._split_state(ssm_state)

        def scan(u: Tensor, delta: Tensor, rates: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return selective_scan(
                u,
                delta,
                rates,
                B,
                C,
                delta_softplus=False,
                initial_state=state,
                discretization=self.discretization,
                backend=self.backend,
                with_summary=True,
            )

        # One scan over the values, Σ_k w_tk x_k, and one over the constant 1, Σ_k w_tk: their ratio is the mean.
        weighted, values_state, values_summary = scan(
            x.repeat(1, 1, self.expand),
            delta.repeat_interleave(per_head, -1),
            rates.repeat_interleave(per_head, 0),
            values_state,
        )
        mass, mass_state, mass_summary = scan(x.new_ones(*x.shape[:2], heads), delta, rates, mass_state)
        mean = weighted.unflatten(-1, (heads, per_head)) / mass.unsqueeze(-1)
        state = torch.cat([values_state, mass_state], dim=1)
        return mean.flatten(-2), state, values_summary / mass_summary

    def _fuses(self, x: Tensor, ssm_state: Tensor) -> bool:
        """Tell whether this is a streamed step that can run as one kernel."""
        channels = self.expand * self.d_model
        return x.shape[1] == 1 and mean_step_fits(
            ssm_state, channels, self.num_heads, self.d_state, self.discretization, self.backend
        )

    def _rates(self, dtype: torch.dtype, memory: float) -> Tensor:
        """Return the decay rates A, `[heads, N]`, negative."""
        return -torch.exp(self.A_log.to(dtype)) / memory

    def _split_state(self, ssm_state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Cut the carried state into the scan's over the values and the scan's over the constant 1."""
        if ssm_state is None:
            return None, None
        channels = self._state_channels(self.expand * self.d_model)
        return ssm_state[:, :channels], ssm_state[:, channels:]

    def _state_channels(self, channels: int) -> int:
        return state_shape(1, channels, self.d_state, self.discretization)[1]
