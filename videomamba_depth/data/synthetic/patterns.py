"""A bank of richer tileable patterns: fallen leaves, cells, marble, cloth, grass, bark, gravel, writing, stains."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.textures import PATTERNS, TILE_PX, tile_grid, tile_noise

Array = NDArray[np.float32]
_PER_KIND = 12


@lru_cache(maxsize=1)
def bank() -> dict[str, Array]:
    """Return {kind: patterns [n,128,128,2]}, values in [0,1]: shares of a second and a third color over a first.

    Drawn once per process from a seed of its own; scenes shift, turn and color them.
    """
    makers = {
        "dead_leaves": _dead_leaves, "cells": _cells, "marble": _marble, "cloth": _cloth, "blades": _blades,
        "foliage": _foliage, "bark": _bark, "gravel": _gravel, "writing": _writing, "plain": _plain, "any": _any,
    }  # fmt: skip
    return {
        kind: np.stack([make(np.random.default_rng([20261129, number, i])) for i in range(_PER_KIND)])
        for number, (kind, make) in enumerate(makers.items())
    }


def pattern(rng: np.random.Generator, kind: str) -> Array:
    """Draw a pattern [128,128,2] of a kind: one of the bank, shifted, flipped and perhaps turned."""
    drawn = bank()[kind][rng.integers(_PER_KIND)]
    shift = rng.integers(0, TILE_PX, 2)
    drawn = np.roll(drawn, (int(shift[0]), int(shift[1])), axis=(0, 1))
    drawn = drawn[:, :: rng.choice([-1, 1])]
    upright = kind in ("blades", "bark", "writing")
    return drawn if upright or rng.random() < 0.5 else drawn.transpose(1, 0, 2)


def _second(rng: np.random.Generator, first: Array, strength: float = 0.6) -> Array:
    """Join a slow stain as the share of the third color to a pattern [128,128]."""
    stain = np.clip((tile_noise(rng, rough=False) - 0.5) * rng.uniform(1, 6) + rng.uniform(0, 0.5), 0, 1)
    return np.stack([np.clip(first, 0, 1), stain * np.float32(strength)], -1).astype(np.float32)


def _wrapped(rng: np.random.Generator, image: Array, reach: float, draw) -> None:  # type: ignore[no-untyped-def]
    """Call draw(x, y) at a random place, and again wherever the tile's border cuts the drawing."""
    x, y = rng.uniform(0, TILE_PX, 2)
    for dx in (-TILE_PX, 0, TILE_PX):
        for dy in (-TILE_PX, 0, TILE_PX):
            if -reach < x + dx < TILE_PX + reach and -reach < y + dy < TILE_PX + reach:
                draw(round(x + dx), round(y + dy))


def _dead_leaves(rng: np.random.Generator) -> Array:
    """Shapes of all sizes that hide each other. Source: Lee, Mumford and Huang, "Occlusion models" (2001)."""
    image = np.full((TILE_PX, TILE_PX, 3), 0.5, np.float32)
    square = rng.random() < 0.4
    for _ in range(130):
        size = min(40.0, 3.0 * rng.random() ** -0.6)
        tone = (float(rng.random()), float(rng.random() ** 2), 0.0)
        angle, ratio = float(rng.uniform(0, 180)), rng.uniform(0.3, 1)

        def draw(x: int, y: int, size: float = size, tone=tone, angle: float = angle, ratio: float = ratio) -> None:  # type: ignore[no-untyped-def]
            if square:
                box = cv2.boxPoints(((x, y), (2 * size, 2 * size * ratio), angle))
                cv2.fillConvexPoly(image, box.round().astype(np.int32), tone)
            else:
                cv2.ellipse(image, (x, y), (round(size), round(size * ratio)), angle, 0, 360, tone, -1)

        _wrapped(rng, image, size + 2, draw)
    return np.ascontiguousarray(image[..., :2])


def _nearest_cells(rng: np.random.Generator, count: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return distances to the first and second nearest of random points, in tiles, and the nearest's index."""
    x, y = tile_grid()
    points = rng.random((count, 2)).astype(np.float32)
    dx, dy = np.abs(x[..., None] - points[:, 0]), np.abs(y[..., None] - points[:, 1])
    distance = np.hypot(np.minimum(dx, 1 - dx), np.minimum(dy, 1 - dy))
    two = np.partition(distance, 1, axis=-1)
    return two[..., 0], two[..., 1], distance.argmin(-1)


def _cells(rng: np.random.Generator) -> Array:
    """Irregular paving: cells of random tone between joints."""
    count = int(rng.integers(6, 50))
    first, second, index = _nearest_cells(rng, count)
    joint = np.clip((second - first) * TILE_PX / rng.uniform(1, 4), 0, 1)
    return _second(rng, (0.35 + 0.65 * rng.random(count).astype(np.float32)[index]) * joint)


def _gravel(rng: np.random.Generator) -> Array:
    """Pebbles, light above and dark between."""
    count = int(rng.integers(60, 160))
    first, second, index = _nearest_cells(rng, count)
    dome = np.clip(1 - first / (second + 1e-3), 0, 1) ** 0.5
    return _second(rng, dome * (0.4 + 0.6 * rng.random(count).astype(np.float32)[index]))


def _marble(rng: np.random.Generator) -> Array:
    warp = rng.uniform(1, 5)
    veins = np.abs(np.sin(np.pi * (rng.integers(1, 4) * tile_grid()[0] + warp * tile_noise(rng, rough=False))))
    return _second(rng, veins ** rng.uniform(0.3, 1.5))


def _cloth(rng: np.random.Generator) -> Array:
    x, y = tile_grid()
    kx, ky = rng.integers(8, 40, 2)
    weave = 0.5 + 0.25 * np.sin(2 * np.pi * kx * x) + 0.25 * np.sin(2 * np.pi * ky * y)
    stripes = np.floor(rng.integers(2, 9) * (x if rng.random() < 0.5 else y)) % 2
    return np.stack([np.clip(weave * 0.6 + 0.4 * tile_noise(rng), 0, 1), stripes * rng.choice([0.0, 0.8])], -1).astype(
        np.float32
    )


def _strokes(rng: np.random.Generator, count: int, lean: float, length: float) -> Array:
    image = np.zeros((TILE_PX, TILE_PX), np.float32)
    for _ in range(count):
        dx, dy, tone = rng.normal(0, lean), length * rng.uniform(0.4, 1), float(rng.random())
        width = int(rng.integers(1, 3))

        def draw(x: int, y: int, dx: float = dx, dy: float = dy, tone: float = tone, width: int = width) -> None:
            cv2.line(image, (x, y), (round(x + dx), round(y - dy)), tone, width)

        _wrapped(rng, image, length + lean, draw)
    return image


def _blades(rng: np.random.Generator) -> Array:
    return _second(rng, _strokes(rng, 500, rng.uniform(2, 7), rng.uniform(8, 26)))


def _foliage(rng: np.random.Generator) -> Array:
    """Small leaves in front of darkness."""
    image = np.zeros((TILE_PX, TILE_PX), np.float32)
    size = rng.uniform(3, 9)
    for _ in range(int(1800 / size)):
        angle, tone = float(rng.uniform(0, 180)), float(rng.uniform(0.15, 1))
        axes = (round(size), max(1, round(size * rng.uniform(0.25, 0.6))))

        def draw(x: int, y: int, angle: float = angle, tone: float = tone, axes: tuple[int, int] = axes) -> None:
            cv2.ellipse(image, (x, y), axes, angle, 0, 360, tone, -1)

        _wrapped(rng, image, size + 1, draw)
    return _second(rng, image, 0.4)


def _bark(rng: np.random.Generator) -> Array:
    stretched = np.repeat(tile_noise(rng, rough=True)[:: int(rng.choice([4, 8]))], 8, axis=0)[:TILE_PX]
    fiber = cv2.GaussianBlur(np.resize(stretched, (TILE_PX, TILE_PX)), (1, 9), 0)
    return _second(rng, 0.5 + (fiber - 0.5) * rng.uniform(1, 4))


def _writing(rng: np.random.Generator) -> Array:
    """Lines of signs on a plain ground: posters, covers, labels."""
    image = np.full((TILE_PX, TILE_PX), 255 * rng.integers(0, 2), np.uint8)
    ink, y = 255 - float(image[0, 0]), 14
    while y < TILE_PX - 2:
        scale = float(rng.choice([0.3, 0.4, 0.7, 1.1]))
        text = "".join(chr(rng.integers(33, 127)) if rng.random() > 0.2 else " " for _ in range(24))
        cv2.putText(image, text, (4, y), int(rng.integers(0, 5)), scale, ink, 1 + int(scale > 0.6))
        y += round(10 + 24 * scale * rng.uniform(0.8, 1.6))
    return _second(rng, image / np.float32(255), 0.3)


def _plain(rng: np.random.Generator) -> Array:
    return _second(rng, 0.5 + (tile_noise(rng) - 0.5) * rng.uniform(0.2, 1.0), rng.uniform(0.1, 0.5))


def _any(rng: np.random.Generator) -> Array:
    return _second(rng, PATTERNS[rng.integers(len(PATTERNS))](rng))
