"""Position tables: resizing them in space, and what happens beyond their end in time."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from videomamba_depth.utils.errors import describe

_logger = logging.getLogger(__name__)

Grid = tuple[int, int]
"""(rows, columns) of patches."""


def resize_spatial_table(table: Tensor, built: Grid, target: Grid) -> Tensor:
    """Resize a table of patch positions bicubically, in float32.

    Args:
        table: `[1, rows·columns, C]` row-major, without the CLS row.
        built: grid that the table was made for. It is stated and never guessed: 196 rows are 14x14 as well as 7x28.
        target: grid that is wanted.

    Returns:
        `[1, target rows · target columns, C]` in the table's dtype; the table itself when the grids agree.
    """
    if table.shape[1] != built[0] * built[1]:
        raise ValueError(
            f"table has {table.shape[1]} rows, not {built[0] * built[1]} as a grid of {built[0]}x{built[1]} has"
        )
    if built == target:
        return table
    maps = table.unflatten(1, built).permute(0, 3, 1, 2)
    wide = torch.promote_types(table.dtype, torch.float32)
    maps = F.interpolate(maps.to(wide), size=target, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def split_rows(table: Tensor, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split tokens or a table `[B, L, C]` into its patches `[B, L − k, C]` and the k rows at `positions`."""
    patches = [row for row in range(table.shape[1]) if row not in positions]
    return table[:, patches], table[:, list(positions)]


def join_rows(patches: Tensor, others: Tensor, positions: Sequence[int]) -> Tensor:
    """Undo `split_rows`: insert `others [B, k, C]` so that they stand at `positions` (ascending) of the result."""
    pieces, taken = [], 0
    for index, position in enumerate(positions):
        pieces += [patches[:, taken : position - index], others[:, index : index + 1]]
        taken = position - index
    return torch.cat([*pieces, patches[:, taken:]], dim=1)


def resize_temporal_table(table: Tensor, length: int) -> Tensor:
    """Resize a table of temporal positions `[1, F, C]` linearly to `[1, length, C]`, in float32."""
    if table.shape[1] == length:
        return table
    wide = torch.promote_types(table.dtype, torch.float32)
    resized = F.interpolate(table.to(wide).transpose(1, 2), size=length, mode="linear", align_corners=False)
    return resized.transpose(1, 2).to(table.dtype)


@dataclass(frozen=True)
class TemporalPolicy:
    """What a model does with a frame beyond its temporal table of F rows (a row stands for `tubelet` frames).

    "clamp": every later frame takes the last row, so that a stream may run without end; logged once. "error": raise.
    "resize_once(N)": the table is stretched linearly to N rows once, from the start of the stream; beyond N, raise. The
    table is never stretched per chunk: a chunk's positions would then depend on where the stream was cut.
    """

    name: str = "clamp"
    total: int | None = None  # rows, "resize_once" alone

    @staticmethod
    def parse(text: str | TemporalPolicy) -> TemporalPolicy:
        """Read "clamp", "error" or "resize_once(64)"."""
        if isinstance(text, TemporalPolicy):
            return text
        if text in ("clamp", "error"):
            return TemporalPolicy(text)
        match = re.fullmatch(r"resize_once\(\s*(\d+)\s*\)", text) if isinstance(text, str) else None
        if match is None or int(match[1]) == 0:
            raise ValueError(f"temporal_policy must be 'clamp', 'error' or 'resize_once(N)' with N ≥ 1; got {text!r}")
        return TemporalPolicy("resize_once", int(match[1]))

    def __str__(self) -> str:
        return self.name if self.total is None else f"{self.name}({self.total})"

    def rows(self, table: Tensor, offset: int, length: int) -> Tensor:
        """Return the positions `[1, length, C]` of rows `offset` to `offset + length − 1` of a stream.

        Args:
            table: `[1, F, C]`.
            offset: index of the first row, ≥ 0.

        Raises:
            ValueError, TypeError: the rows lie beyond the table and the policy has nothing for them, or `check_offset`.
        """
        check_offset(offset)
        end = offset + length
        if self.name == "clamp":
            if end > table.shape[1]:
                _log_clamped(table.shape[1])
            index = torch.arange(offset, end, device=table.device).clamp(max=table.shape[1] - 1)
            return table.index_select(1, index)
        if self.total is not None:
            table = resize_temporal_table(table, self.total)
        if end > table.shape[1]:
            raise ValueError(
                f"temporal positions {offset} to {end - 1} lie beyond the table of {table.shape[1]} rows"
                f" (temporal_policy={str(self)!r}); feed shorter streams, or set temporal_policy to 'clamp' or to"
                " 'resize_once(N)' with N rows for the whole stream"
            )
        return table[:, offset:end]


def is_integer(value: object) -> bool:
    """Tell whether a value is an integer of Python, numpy or a trace of PyTorch, and no switch."""
    return isinstance(value, int | Integral | torch.SymInt) and not isinstance(value, bool)


def check_offset(offset: int) -> None:
    """Raise TypeError where the row that a chunk starts at is no integer, ValueError where it is negative."""
    if not is_integer(offset):
        raise TypeError(
            f"temporal_pos_offset must be an integer, rows (frames / tubelet) seen so far; got {describe(offset)}"
        )
    if offset < 0:
        raise ValueError(f"temporal_pos_offset must be non-negative; got {offset}")


@functools.cache
def _log_clamped(num_rows: int) -> None:
    """Warn once per length of table."""
    _logger.warning(
        "frames beyond the temporal table of %d rows take its last row (temporal_policy='clamp'); 'error' refuses them"
        " and 'resize_once(N)' stretches the table to N rows",
        num_rows,
    )
