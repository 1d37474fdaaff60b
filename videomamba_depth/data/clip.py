"""What a dataset item is, and how items become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videomamba_depth.data.transforms import Geometry


@dataclass(frozen=True)
class ClipMeta:
    """Where a clip comes from.

    video_id: path relative to the data root, or a synthetic world's name.
    frame_indices: the clip's frames within its video.
    timestamps_s: their presentation times in seconds.
    """

    video_id: str
    frame_indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]


class WholeFrames(NamedTuple):
    """What a teacher labels of a clip: frames before crop, flip, colors and damage."""

    rgb: Tensor  # uint8 [N,h,w,3] at the size that the clip's frames were resized to
    geometry: Geometry  # what became of them: the label goes the same way


def collate_clips(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items [N,...] into a batch [B,N,...]; "meta" becomes a list of B `ClipMeta`.

    A map that only some items have (a teacher depth whose cache covers part of the videos) is left out, so that
    whoever needs it computes it for the whole batch. "whole" becomes a list of B `WholeFrames`, left out where nobody
    needs it: with a teacher depth.

    Raises:
        ValueError: items of different sizes.
    """
    batch: dict[str, Any] = {"meta": [item["meta"] for item in items]}
    shared = set.intersection(*(set(item) for item in items)) - {"meta"}
    if "whole" in shared and "teacher_depth" not in shared:
        batch["whole"] = [item["whole"] for item in items]
    for name in sorted(shared - {"whole"}):
        shapes = {tuple(item[name].shape) for item in items}
        if len(shapes) > 1:
            raise ValueError(
                f"{name!r} has different shapes within a batch: {sorted(shapes)}; give the transform a fixed image_size"
            )
        batch[name] = torch.stack([item[name] for item in items])
    return batch


class SharedFlags:
    """Flags in shared memory, so that loader workers log a thing once between them, not once each.

    Two workers that raise one flag in the same instant may both be first; a repeated warning is all that can follow.
    """

    def __init__(self, size: int) -> None:
        self._flags = torch.zeros(max(size, 1), dtype=torch.uint8).share_memory_()

    def first(self, place: int = 0) -> bool:
        """Raise the flag at `place`; return whether it was down."""
        was_down = int(self._flags[place]) == 0
        self._flags[place] = 1
        return was_down
