"""What one rank keeps beside the weights comes back as it was."""

from __future__ import annotations

from pathlib import Path

import torch

from videomamba_depth.training.trainer_state import Carry, load_carry, save_carry


def test_random_draws_go_on_where_they_stopped(tmp_path: Path) -> None:
    """Stochastic depth draws from PyTorch's generator; a run that is continued draws what it would have drawn."""
    save_carry(tmp_path, 0, Carry(), step=3)
    expected = torch.rand(4)
    torch.manual_seed(123)
    assert load_carry(tmp_path, 0, torch.device("cpu"), 3) == Carry()
    assert torch.equal(torch.rand(4), expected)
