"""Labels that a live teacher has made, kept so that a frame is labeled once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class LabelMemory:
    """Labels by frame, up to a number of bytes: the ones that were not asked for longest are dropped first.

    Args:
        max_bytes: 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._labels: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the label of a frame, made where it is not kept; nobody may change it."""
        label = self._labels.pop(key, None)
        if label is None:
            label = make()
            self._bytes += label.nbytes
        self._labels[key] = label
        while self._bytes > self._max_bytes:
            self._bytes -= self._labels.popitem(last=False)[1].nbytes
        return label
