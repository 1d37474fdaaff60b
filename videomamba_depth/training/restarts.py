"""What is drawn: how many frames of a clip are encoded, and which streams are restarted in the middle of a scene."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from videomamba_depth.training.labeller import Chunk
from videomamba_depth.training.trainer_state import Carry, Position

# Keep these draws apart from one another and from those about batches and items.
_RESTART_STREAM = 0x5EED_0FF5
_ENCODING_STREAM = 0x5EED_0E7C


def draw_restarts(probability: float, seed: int, position: Position, rank: int, batch_size: int) -> Tensor:
    """Return which streams `[B]` bool of a rank are reset at a chunk: a pure function of its arguments.

    The first chunk of a clip has new states anyway: nothing is drawn there.
    """
    if probability <= 0 or position.frame == 0:
        return torch.zeros(batch_size, dtype=torch.bool)
    rng = np.random.default_rng((_RESTART_STREAM, seed, position.batch, position.frame, rank))
    return torch.from_numpy(rng.random(batch_size) < probability)


def draw_encode_every(longest: int, seed: int, batch: int) -> int:
    """Return of how many frames of a batch of clips one is encoded, 1 to `longest`: a pure function of its arguments.

    Alike on all ranks, so that their steps take alike.
    """
    return int(np.random.default_rng((_ENCODING_STREAM, seed, batch)).integers(1, longest + 1))


def restart(carry: Carry, chunk: Chunk, streams: Tensor) -> tuple[Carry, Chunk]:
    """Return carry and chunk as they are where `streams [B]` bool are reset.

    Their states are those of a new stream. Nothing is asked of them across the border: the frame before counts as
    invalid, and no pixel as static or moved from it. Scale and shift stay the clip's: a new state must not change
    the alignment.
    """
    if carry.states is None or carry.tail is None or not streams.any():
        return carry, chunk
    target, tail, motion = chunk.target, carry.tail, chunk.motion
    keep = ~streams.to(target.static.device)
    tail = tail._replace(valid=tail.valid & keep.view(-1, 1, 1, 1, 1))
    chunk = chunk._replace(target=target._replace(static=_clear_first(target.static, keep)))
    if motion is not None:
        chunk = chunk._replace(motion=motion._replace(trusted=_clear_first(motion.trusted, keep)))
    return Carry(carry.states.reset(streams), tail), chunk


def _clear_first(mask: Tensor, keep: Tensor) -> Tensor:
    """Return a mask `[B, N, 1, h, w]` that is False on the first frame where `keep [B]` is."""
    cleared = mask.clone()
    cleared[:, 0] &= keep.view(-1, 1, 1, 1)
    return cleared
