"""Attention by matrix products: the same as PyTorch's, however the weights are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.models import attention as module
from videomamba_depth.models.attention import attention
from videomamba_depth.models.encoder_da import DepthAnythingEncoder

# Of values of standard deviation 1: measured 0.0074, by PyTorch's kernel in bfloat16 0.0022.
MAX_ERROR = 0.022


def _arguments(tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    # As encoders make them: heads side by side in the last axis.
    return [torch.randn(2, tokens, 3, 64, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)]


@pytest.mark.parametrize(("tokens", "block"), [(193, 1 << 19), (257, 257 * 100), (200, 7)])
@torch.no_grad()
def test_products_are_attention(tokens: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    arguments = _arguments(tokens)
    exact = F.scaled_dot_product_attention(*(x.double() for x in arguments))
    found = attention(*arguments)
    assert found.dtype == torch.bfloat16
    assert not torch.equal(found, F.scaled_dot_product_attention(*arguments))
    assert (found.double() - exact).abs().max() < MAX_ERROR
    query, key, value = arguments
    assert torch.equal(attention(2 * query, key, value, scale=1 / 16), found)
    alone = attention(*(x[1:] for x in arguments))
    assert torch.equal(alone[0], found[1])


def test_elsewhere_it_is_pytorchs() -> None:
    few, exact, many = _arguments(64), _arguments(200, torch.float32), _arguments(200)
    with torch.no_grad():
        for arguments in (few, exact):
            assert torch.equal(attention(*arguments), F.scaled_dot_product_attention(*arguments))
    assert torch.equal(attention(*many), F.scaled_dot_product_attention(*many))  # a gradient may be wanted


def test_an_encoder_in_bfloat16_takes_products(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = torch.rand(1, 3, 14 * 14, 14 * 15, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = tiny_encoder.encode_frame(rgb)
        monkeypatch.setattr(module, "MIN_TOKENS", 1000)
        of_pytorch = tiny_encoder.encode_frame(rgb)
    assert not torch.equal(found["s3"], of_pytorch["s3"])
    assert (found["s3"].float() - of_pytorch["s3"].float()).abs().max() < 0.05 * of_pytorch["s3"].float().std()
