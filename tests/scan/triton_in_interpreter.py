"""Runs the Triton backend in Triton's interpreter; a script, because TRITON_INTERPRET must precede its import.

`test_scan_triton.py` starts it with the names of methods, or "conv", as arguments.
"""

from __future__ import annotations

import sys

import torch
from scan_cases import assert_close, make_case, relative_rms, run, split_run

from selective_scan import causal_conv1d, causal_conv1d_step, selective_scan_ref, selective_scan_step

SINGLE = torch.float32


def check_scan(method: str) -> None:
    # Odd on purpose: channels do not fill a block of 32 or 64, one state more than a power of two.
    case = make_case(2, 3, 5, 3, method)
    assert_close(run(case.to(SINGLE), "triton"), run(case, "reference"), SINGLE)
    if method in ("zoh", "tustin"):
        case = make_case(2, 2, 67, 2, method)  # two blocks of channels
        assert_close(run(case.to(SINGLE), "triton"), run(case, "reference"), SINGLE)
        whole = run(case.to(SINGLE), "triton")
        for name, x in split_run(case.to(SINGLE), [1, 1], "triton").items():
            assert relative_rms(x, whole[name]) <= 1e-5, name
        bare = make_case(2, 2, 4, 1, method, gate=False, initial_state=False)
        del bare.arguments["D"], bare.arguments["delta_bias"]
        assert_close(run(bare.to(SINGLE), "triton"), run(bare, "reference"), SINGLE)


def check_step(method: str) -> None:
    case = make_case(2, 1, 6, 4, method).to(SINGLE)
    truth, state_truth, _ = selective_scan_ref(**case.arguments, discretization=method)
    flat = {name: x.squeeze(1) if x.dim() == 3 else x for name, x in case.arguments.items()}
    state = case.arguments["initial_state"].clone()
    flat.pop("initial_state")
    y, returned = selective_scan_step(state, **flat, discretization=method, backend="triton", inplace=True)
    assert returned is state
    assert relative_rms(y, truth.squeeze(1)) < 1e-6
    assert relative_rms(state, state_truth) < 1e-6


def check_conv() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    for batch, length, channels, width in ((2, 5, 6, 4), (1, 2, 3, 3), (2, 1, 4, 2)):
        leaves = (normal(batch, length, channels), normal(channels, width), normal(channels))
        state = normal(batch, channels, width)
        for activation in ("silu", None):
            results = []
            for backend in ("triton", "reference"):
                y, final = causal_conv1d(*leaves, state, activation, backend)
                loss = (y * torch.arange(channels)).sum() + final.sin().sum()
                results.append((y, final, *torch.autograd.grad(loss, (*leaves, state))))
            for got, truth in zip(*results, strict=True):
                assert relative_rms(got, truth) < 2e-6
    with torch.no_grad():
        x, weight, bias, state = normal(2, 6), normal(6, 4), normal(6), normal(2, 6, 4)
        truth, state_truth = causal_conv1d_step(state, x, weight, bias, backend="reference")
        y, _ = causal_conv1d_step(state, x, weight, bias, backend="triton", inplace=True)
        assert relative_rms(y, truth) < 1e-6
        assert torch.equal(state, state_truth)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # NaN in memory that is not written
    for method in sys.argv[1:]:
        if method == "conv":
            check_conv()
        else:
            check_scan(method)
            check_step(method)
        sys.stdout.write(f"{method} agrees\n")
