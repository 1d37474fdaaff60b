"""How far an evaluation has come: a bar over all clips, with the time left, also within a clip."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from videomamba_depth.evaluation.clips import ClipSource, EvaluationClip

STEPS = ("method", "palindrome", "cut")
"""What moves the bar; frames and flow are shown alone."""
_REFRESH_S = 0.5
Clip = TypeVar("Clip", EvaluationClip, ClipSource)


class EvaluationBar:
    """A bar for `evaluate_clips`: hand it the clips through `over`, and itself as `progress`.

    num_clips: how many there will be. methods: methods of a clip. extra: runs backwards and across a cut of a clip.
    """

    def __init__(self, num_clips: int, methods: int, extra: int) -> None:
        self.num_clips = num_clips
        self._steps = methods + extra + 1  # the frames before the first method count as one
        self._shown_at = 0.0
        self._bar = tqdm(
            total=num_clips * self._steps,
            smoothing=0.0,  # the steps are uneven; the mean of all says best what is left
            bar_format="{desc}: {percentage:3.0f}% |{bar:20}| {elapsed}, {remaining} left{postfix}",
        )

    def over(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Pass clips on, and close the bar after the last."""
        with self._bar, logging_redirect_tqdm():
            for number, clip in enumerate(clips):
                self._bar.set_description_str(f"clip {number + 1}/{self.num_clips} {clip.name}", refresh=False)
                self._move_to(number * self._steps, "opening")
                yield clip
                self._move_to((number + 1) * self._steps, "done")

    def __call__(self, what: str, which: int | str) -> None:
        """Take what was done, see `Progress`."""
        if what not in STEPS:
            if time.monotonic() - self._shown_at > _REFRESH_S:
                self._show(f"{what} {which}")
            return
        first = self._bar.n % self._steps == 0
        self._move_to(self._bar.n + (2 if first else 1), f"{what} {which}")

    def _move_to(self, step: int, text: str) -> None:
        self._bar.n = step
        self._show(text)

    def _show(self, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=True)
        self._shown_at = time.monotonic()
