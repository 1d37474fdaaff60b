"""Shared by all losses: masking that stops NaN, full precision, and sums that do not depend on the split of a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# In units of the residual, which the losses measure in spreads of the target: a tenth of a percent of it.
HUBER_WIDTH = 1e-3


class LossSums(NamedTuple):
    """The two halves of a masked mean, kept apart so that counts can be summed over ranks or micro-batches.

    numerators: [T] weighted sums of the T terms of a loss (differentiable).
    counts: [T] how many valid elements each sum ran over (no gradient).

    The loss is `mean_of_sums(numerators, counts)`. Under data parallelism, all-reduce `counts` (sum), call
    `mean_of_sums(numerators, global_counts)` and multiply by the world size, since DDP averages gradients.
    """

    numerators: Tensor
    counts: Tensor


def mean_of_sums(numerators: Tensor, counts: Tensor) -> Tensor:
    """Return `Σ_i numerators_i / counts_i`, a scalar; a term without valid elements gives 0 with gradient 0.

    Args:
        numerators: [T] weighted sums.
        counts: [T] number of elements of each sum; ≥ 0.
    """
    safe_counts = torch.where(counts > 0, counts, torch.ones_like(counts))
    return (numerators / safe_counts).sum()


def stack_sums(numerators: list[Tensor], counts: list[Tensor]) -> LossSums:
    """Join scalar sums and scalar counts into one `LossSums` of `len(numerators)` terms."""
    return LossSums(torch.stack(numerators), torch.stack(counts).detach())


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` where `mask` holds and 0 elsewhere, so that NaN or inf outside never reaches a gradient.

    Multiplying by the mask would not do: NaN · 0 is NaN.
    """
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def huber(residual: Tensor) -> Tensor:
    """Return |r| rounded off below δ = `HUBER_WIDTH`, element by element: r²/(2δ) for |r| < δ, |r| − δ/2 beyond.

    A student that starts as its teacher differs from it by rounding alone; under |r| each such pixel would pull with
    full force in a random direction, here with almost none.
    """
    return F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=HUBER_WIDTH) / HUBER_WIDTH


def as_loss(sums: Callable[Arguments, LossSums]) -> Callable[Arguments, Tensor]:
    """Return the function that gives the scalar mean of what `sums` returns; 0 with gradient 0 where nothing counts."""

    @wraps(sums)
    def loss(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        return mean_of_sums(*sums(*args, **kwargs))

    return loss


def in_full_precision(function: Callable[..., Result]) -> Callable[..., Result]:
    """Run `function` outside autocast, with its float16 and bfloat16 tensors as float32 (float64 is kept)."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Result:
        wide_args = [_widen(argument) for argument in args]
        wide_kwargs = {name: _widen(argument) for name, argument in kwargs.items()}
        device_type = next((t.device.type for t in _tensors([*wide_args, *wide_kwargs.values()])), "cpu")
        with torch.autocast(device_type=device_type, enabled=False):
            return function(*wide_args, **wide_kwargs)

    return run


def check_clip(name: str, value: Tensor, like: Tensor | None = None, mask: bool = False) -> None:
    """Raise ValueError or TypeError unless `value` is a clip [B,N,1,H,W] (shaped like `like`; bool if `mask`)."""
    if value.ndim != 5 or value.shape[2] != 1:
        raise ValueError(f"{name} must have shape [B,N,1,H,W]; got {list(value.shape)}")
    if like is not None and value.shape != like.shape:
        raise ValueError(f"{name} must have the prediction's shape {list(like.shape)}; got {list(value.shape)}")
    if mask and value.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool mask; got {value.dtype} (compare it with a threshold first)")


def _widen(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.float() if argument.dtype in (torch.float16, torch.bfloat16) else argument
    if isinstance(argument, (list, tuple)) and any(isinstance(item, Tensor) for item in argument):
        return type(argument)(_widen(item) for item in argument)
    return argument


def _tensors(arguments: list[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for argument in arguments:
        items = argument if isinstance(argument, (list, tuple)) else [argument]
        found.extend(item for item in items if isinstance(item, Tensor))
    return found
