"""Cuts of a clip of tensors are those of its frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import DEVICES

from videomamba_depth.flow.clip_motion import cuts_of_clip, detect_cuts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shots", [[1], [9], [5, 4], [1, 8], [3, 1, 5], [2, 2, 1, 1, 1, 4], [3, 1, 1, 5], [2, 1]])
def test_cuts_of_a_clip(shots: list[int], device: str) -> None:
    """A run of frames that all differ is no cut; a shot of one frame has two."""
    rng = np.random.default_rng(0)
    frames = [np.clip(40 * i + rng.integers(0, 30, (18, 22, 3)), 0, 255) for i, n in enumerate(shots) for _ in range(n)]
    levels = np.stack(frames).astype(np.uint8)
    clip = torch.from_numpy(levels).permute(0, 3, 1, 2).to(device).float() / 255
    found = cuts_of_clip(clip)
    assert tuple(found.nonzero().flatten().tolist()) == detect_cuts(levels)
    assert found.shape == (len(levels),)
    cuts = {(5, 4): (5,), (1, 8): (1,), (3, 1, 5): (3, 4), (2, 2, 1, 1, 1, 4): (2,), (2, 1): (2,)}
    assert detect_cuts(levels) == cuts.get(tuple(shots), ())
