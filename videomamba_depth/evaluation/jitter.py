"""A teacher whose depth jitters as a whole: a condition to test students with."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from torch import Tensor, nn

from videomamba_depth.evaluation.cache import digest
from videomamba_depth.evaluation.code_digest import code_digest
from videomamba_depth.evaluation.methods import Method
from videomamba_depth.evaluation.recurrence import Stream
from videomamba_depth.utils.settings import check_settings, ranged

WAVE_FRAMES = 96


@dataclass(frozen=True, kw_only=True)
class TeacherJitter:
    """Depth x of the decoder becomes (1 + s) x + b · mean(x), s and b of every frame.

    scale, shift: standard deviations of s and b, drawn anew in every frame. drift: amplitude of a wave of
    `WAVE_FRAMES` frames in both, each with a phase of its own. What is drawn depends on the clip's first frame alone:
    teacher and students get the same.
    """

    scale: float = ranged(0, 1, 0.0)
    shift: float = ranged(0, 1, 0.0)
    drift: float = ranged(0, 1, 0.0)

    def __post_init__(self) -> None:
        check_settings(self)

    def __bool__(self) -> bool:
        return bool(self.scale or self.shift or self.drift)

    def amounts(self, first_frame: Tensor) -> Iterator[tuple[float, float]]:
        """Return (s, b) of one frame after the other, for a stream that begins with `first_frame`, of the CPU."""
        seed = hashlib.sha1(np.ascontiguousarray(first_frame.numpy()).tobytes()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(seed, "little"))
        phases = rng.uniform(0, 2 * np.pi, 2)
        for t in itertools.count():
            wave = self.drift * np.sin(2 * np.pi * t / WAVE_FRAMES + phases)
            s, b = (self.scale, self.shift) * rng.standard_normal(2) + wave
            yield float(s), float(b)

    def of_method(self, method: Method, head: nn.Module) -> Method:
        """Return a method that has streams, whose decoder `head` jitters; the same one where nothing does."""
        new_stream = method.new_stream
        if not self or new_stream is None:
            return method
        about = digest(method.digest, asdict(self), code_digest(__name__))
        return replace(method, new_stream=lambda: self.of(new_stream(), head), digest=about)

    def of(self, stream: Stream, head: nn.Module) -> Stream:
        """Return a stream, which has seen nothing, whose decoder `head` jitters while it is run."""
        amounts: Iterator[tuple[float, float]] | None = None

        def jittering(frame: Tensor) -> Tensor:
            nonlocal amounts
            amounts = self.amounts(frame) if amounts is None else amounts
            s, b = next(amounts)

            def change(module: nn.Module, inputs: object, depth: Tensor) -> Tensor:
                return (1 + s) * depth + b * depth.mean((-2, -1), keepdim=True)

            hook = head.register_forward_hook(change)
            try:
                return stream(frame)
            finally:
                hook.remove()

        return jittering
