"""Which frames of a video make a clip: how far apart, from where, forwards or backwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from videomamba_depth.utils.settings import check_settings, ranged

# Maps that refer to the frame before in the video.
_RELATIVE = ("flow_bwd", "static")


@dataclass(frozen=True)
class Playback:
    """How clips are played; settings of `data`.

    stride: distance in frames of the video, or several: each clip draws one of those that fit.
    reverse_probability: of playing a clip backwards, in [0, 1]: a camera's way and its reverse are equally likely.
    """

    stride: int | tuple[int, ...] = ranged(1, 100_000, 1)
    reverse_probability: float = ranged(0, 1, 0.0)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def strides(self) -> tuple[int, ...]:
        """All distances."""
        return (self.stride,) if isinstance(self.stride, int) else self.stride

    def fitting(self, frames: int, available: int) -> tuple[int, ...]:
        """Return the strides at which a clip of `frames` fits into a video of `available` frames."""
        return tuple(stride for stride in self.strides if (frames - 1) * stride < available)

    def one_stride(self, rng: np.random.Generator) -> Playback:
        """Draw one of the strides, whatever fits; a choice of one draws nothing from the generator."""
        return replace(self, stride=self.strides[int(rng.integers(len(self.strides)))])

    def draw(self, frames: int, available: int, rng: np.random.Generator) -> range:
        """Draw a clip's frame indices in playing order; a choice of one draws nothing from the generator.

        Raises:
            ValueError: no stride fits.
        """
        fitting = self.fitting(frames, available)
        if not fitting:
            raise ValueError(f"{available} frames are too few for {frames} frames at strides {self.strides}")
        stride = fitting[int(rng.integers(len(fitting)))]
        start = int(rng.integers(available - (frames - 1) * stride))
        indices = range(start, start + (frames - 1) * stride + 1, stride)
        reverse = frames > 1 and self.reverse_probability > 0 and rng.random() < self.reverse_probability
        return indices[::-1] if reverse else indices


def adapt_relative_maps(maps: dict[str, np.ndarray], indices: range) -> dict[str, np.ndarray]:
    """Return a clip's maps [N,...] without what refers to a frame before that is not the one before in the clip.

    Flow and static masks are left out unless frames follow one another forwards (whoever needs them estimates them);
    the first frame has none before it, so that its own are 0 and False.
    """
    if len(indices) > 1 and indices.step != 1:
        return {name: values for name, values in maps.items() if name not in _RELATIVE}
    adapted = dict(maps)
    for name in adapted.keys() & set(_RELATIVE):
        adapted[name] = adapted[name].copy()
        adapted[name][0] = 0
    return adapted
