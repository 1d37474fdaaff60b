"""Check that the streaming backbone keeps its contract on this machine: chunks equal the whole, gradients too.

The whole model is run (CLS, positions, layers, pooling), with random weights of order one, so that a fault in any state
shows. Prints one line per check; the exit status is 0 when all pass, 1 when one fails, 2 for bad arguments.

    python scripts/check_streaming_state.py --deterministic
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from videomamba_depth.layers.bidirectional_mixer import STREAMING_STATEMENT
from videomamba_depth.utils.arguments import positive, whole
from videomamba_depth.utils.errors import UserError, building, exit_on_user_error
from videomamba_depth.video_mamba import (
    PretrainVideoMamba,
    add_determinism_args,
    allocate_state,
    configure_determinism_from_args,
    validate_state,
)
from videomamba_depth.video_mamba.variants import VARIANTS

Check = tuple[str, float, float]
"""(name, measured, bound): passes when measured ≤ bound."""


def main(arguments: list[str] | None = None) -> int:
    """Run all checks; returns the exit status."""
    args = parse_arguments(arguments)
    config = configure_determinism_from_args(args)
    print(f"{STREAMING_STATEMENT}\n{config}\ndevice {args.device}, variant {args.variant}, {args.frames} frames")
    failures = 0
    for name, measured, bound in checked(args):
        passed = measured <= bound  # false for NaN
        failures += not passed
        print(f"{'ok    ' if passed else 'FAILED'} {name}: {measured:.2e} (≤ {bound:.0e})")
    print(f"{failures} checks failed" if failures else "all checks passed")
    return 1 if failures else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda (default: cpu)")
    parser.add_argument("--variant", default="small", choices=("small", *VARIANTS), help="size (default: a small one)")
    parser.add_argument("--frames", type=whole(4, 10_000), default=12, help="frames of the clip (default: 12)")
    parser.add_argument("--backend", default=None, help="scan backend, see selective_scan (default: automatic)")
    parser.add_argument("--tolerance", type=positive, default=1e-4, help="largest difference allowed (default: 1e-4)")
    return add_determinism_args(parser).parse_args(arguments)


def checked(args: argparse.Namespace) -> Iterator[Check]:
    """Yield every check's result; what a wrong option leads to names the options."""
    with building("--backend, --device"):
        yield from run_checks(args)


def run_checks(args: argparse.Namespace) -> Iterator[Check]:
    """Yield every check's result."""
    if args.frames < 4 or args.frames % 2:
        raise UserError(f"--frames must be even and at least 4; got {args.frames}")
    try:
        device = torch.device(args.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {args.device} is not available: {str(error).splitlines()[0]}") from error
    for tubelet, rms_norm in ((1, True), (2, False)):
        model = build(args, tubelet, rms_norm).to(device)
        side = model.patch_embed.img_size[0]
        clip = torch.randn(2, 3, args.frames * tubelet, side, side).to(device)
        label = f"tubelet {tubelet}, {'RMS norm' if rms_norm else 'layer norm'}: "
        for name, measured, bound in check_model(model, clip, args.tolerance):
            yield label + name, measured, bound


def build(args: argparse.Namespace, tubelet: int, rms_norm: bool) -> PretrainVideoMamba:
    """Return a model with random weights of order one, whose table is shorter than the clip."""
    if args.variant == "small":
        size: dict[str, Any] = {"depth": 3, "embed_dim": 32, "img_size": 16, "patch_size": 8}
    else:
        size = VARIANTS[args.variant]._asdict()
    model = PretrainVideoMamba(
        **size,
        kernel_size=tubelet,
        num_frames=args.frames * tubelet // 2,
        rms_norm=rms_norm,
        pool_type="avg",
        temporal_policy="clamp",
        ssm_cfg={"backend": args.backend},
    )
    randomize_(model)
    return model.train()  # without drop path the same numbers as in eval mode


@torch.no_grad()
def randomize_(model: PretrainVideoMamba) -> None:
    """Replace the weights by ones that use every path: memories of several tokens, tables of order one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif "A_log" in name:
            parameter.copy_(0.7 * noise - 1)
        elif parameter.ndim == 3 or parameter.ndim == 1:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)


def check_model(model: PretrainVideoMamba, clip: Tensor, tolerance: float) -> Iterator[Check]:
    """Yield the checks of one model."""
    frames = clip.shape[2] // model.patch_embed.tubelet_size
    splits = {"one by one": [1] * frames, "halves": [frames // 2] * 2, "uneven": [1, frames - 3, 2]}
    whole = run(model, clip, [frames])
    chunked = {}
    for name, split in splits.items():
        chunked = run(model, clip, split)
        yield f"tokens, {name}", difference(chunked["tokens"], whole["tokens"]), tolerance
        yield f"pooled vectors, {name}", difference(chunked["pooled"], whole["pooled"]), tolerance
        yield f"final state, {name}", relative(chunked["state"], whole["state"]), tolerance
        for kind in ("parameter", "input"):
            worst = max(map(relative, chunked[f"{kind} gradients"], whole[f"{kind} gradients"]))
            yield f"{kind} gradients, {name}", worst, tolerance * 10
    yield from check_state(model, clip, splits["halves"])
    # Control: these checks would see a state that is lost.
    lost = run(model, clip, splits["halves"], lambda state: [(c * 1e-9, s * 1e-9) for c, s in state])
    yield "control: 0.1 / difference without the state", 0.1 / difference(lost["tokens"], whole["tokens"]), 1
    yield "the same run again", difference(run(model, clip, splits["uneven"])["tokens"], chunked["tokens"]), 0


def run(
    model: PretrainVideoMamba, clip: Tensor, split: list[int], between: Callable[[Any], Any] = lambda state: state
) -> dict[str, Any]:
    """Stream a clip in chunks of `split` temporal rows, with one loss over all; returns all there is to compare."""
    tubelet = model.patch_embed.tubelet_size
    model.zero_grad()
    chunks = [chunk.clone().requires_grad_() for chunk in clip.split([rows * tubelet for rows in split], dim=2)]
    state = allocate_state(model, clip.shape[0])
    tokens, pooled, offset = [], [], 0
    for chunk, length in zip(chunks, split, strict=True):
        validate_state(model, state, clip.shape[0])
        out, vectors, state = model(chunk, keep_temporal=True, ssm_state=state, temporal_pos_offset=offset)
        state, offset = between(state), offset + length
        tokens.append(out)
        pooled.append(vectors)
    result = torch.cat(tokens, 1)
    (result.square().mean() + result.sin().mean() + torch.cat(pooled, 1).square().mean()).backward()
    return {
        "tokens": result.detach(),
        "pooled": torch.cat(pooled, 1).detach(),
        "state": torch.cat([tensor.detach().flatten() for layer in state for tensor in layer]),
        "input gradients": [torch.cat([chunk.grad for chunk in chunks if chunk.grad is not None], 2)],
        "parameter gradients": [parameter.grad for parameter in model.parameters()],
    }


@torch.no_grad()
def check_state(model: PretrainVideoMamba, clip: Tensor, halves: list[int]) -> Iterator[Check]:
    """Yield the checks of what may be done to a state: use it twice, convert its container, save and load it."""
    first, second = clip.chunk(2, dim=2)
    _, _, state = model(first, ssm_state=model.allocate_state(clip.shape[0]))
    before = [tensor.clone() for layer in state for tensor in layer]
    outputs = []
    for version in (state, tuple(state), dict(enumerate(state)), save_and_load(state), state):
        outputs.append(model(second, ssm_state=version, temporal_pos_offset=halves[0])[0])
    for name, tokens in zip(("as a tuple", "as a dict", "saved and loaded", "used twice"), outputs[1:], strict=True):
        yield f"one state, {name}", difference(outputs[0], tokens), 0
    rows = model.forward_features(second, ssm_state=state, temporal_pos_offset=halves[0])[0].shape[1]
    yield "CLS tokens in a chunk that continues", float(rows - outputs[0].shape[1]), 0
    after = [tensor for layer in state for tensor in layer]
    yield "the caller's state is untouched", max(map(difference, before, after)), 0


def save_and_load(state: Any) -> Any:
    """Return the state after a trip through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference."""
    return (a - b).abs().max().item() if a.shape == b.shape else float("inf")


def relative(a: Tensor, b: Tensor) -> float:
    """Return the largest difference in units of the largest value."""
    return difference(a, b) / max(b.abs().max().item(), 1e-6)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
