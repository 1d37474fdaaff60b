"""Masks that say where a panel is and where one sees through it: foliage, grass, fences, railings, nets."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 96
Mask = NDArray[np.uint8]
FOLIAGE, GRASS, FENCE, BRANCHES, RAGGED = (range(i, i + 12) for i in range(0, 60, 12))


@lru_cache(maxsize=1)
def masks() -> NDArray[np.bool_]:
    """Return all masks [60,96,96], twelve of each kind: True where something is. Row 0 is the top (−y)."""
    makers = (_foliage, _grass, _fence, _branches, _ragged)
    drawn = [make(np.random.default_rng([20261129, kind, i])) for kind, make in enumerate(makers) for i in range(12)]
    return np.stack(drawn) > 127


def _canvas() -> Mask:
    return np.zeros((SIZE, SIZE), np.uint8)


def _point(x: float, y: float) -> tuple[int, int]:
    return round(float(x)), round(float(y))


def _foliage(rng: np.random.Generator) -> Mask:
    """Leaves around the middle, fewer toward the rim."""
    image = _canvas()
    long = rng.uniform(3, 9)
    for _ in range(int(900 / long)):
        x, y = SIZE / 2 + rng.normal(0, SIZE / 5.5, 2)
        axes = _point(long * rng.uniform(0.6, 1.2), long * rng.uniform(0.25, 0.6))
        cv2.ellipse(image, _point(x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return image


def _grass(rng: np.random.Generator) -> Mask:
    """Blades that stand on the lower side."""
    image = _canvas()
    for _ in range(int(rng.integers(14, 50))):
        x, lean, height = rng.uniform(6, SIZE - 6), rng.normal(0, 12), rng.uniform(0.3, 0.98) * SIZE
        bend = np.array([[x, SIZE], [x + 0.2 * lean, SIZE - 0.5 * height], [x + lean, SIZE - height]])
        cv2.polylines(image, [bend.round().astype(np.int32)], False, 255, int(rng.integers(1, 4)))
    return image


def _fence(rng: np.random.Generator) -> Mask:
    """Pickets, bars, lattices and grids: repeated and thin."""
    image, step, width = _canvas(), int(rng.integers(8, 25)), int(rng.integers(2, 6))
    slant = int(rng.choice([0, 0, SIZE]))
    for x in range(-SIZE, 2 * SIZE, step):
        cv2.line(image, (x, 0), (x + slant, SIZE), 255, width)
        if slant:
            cv2.line(image, (x + slant, 0), (x, SIZE), 255, width)
    for y in rng.choice([4, SIZE // 4, SIZE // 2, 3 * SIZE // 4, SIZE - 5], int(rng.integers(1, 4)), replace=False):
        cv2.line(image, (0, int(y)), (SIZE, int(y)), 255, width + 1)
    return image


def _branches(rng: np.random.Generator) -> Mask:
    """A bare branching plant that grows from the lower side."""
    image = _canvas()
    tips = [(SIZE / 2, float(SIZE), -np.pi / 2, 26.0, 5.0)]
    while tips:
        x, y, angle, length, width = tips.pop()
        x2, y2 = x + length * np.cos(angle), y + length * np.sin(angle)
        cv2.line(image, _point(x, y), _point(x2, y2), 255, max(1, round(width)))
        if length > 6:
            for _ in range(int(rng.integers(2, 4))):
                tips.append((x2, y2, angle + rng.normal(0, 0.55), length * rng.uniform(0.6, 0.85), width * 0.6))
    return image


def _ragged(rng: np.random.Generator) -> Mask:
    """A blob with an irregular rim and holes: torn cloth, rock faces, distant crowns."""
    rough = sum(
        cv2.resize(rng.standard_normal((n, n)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) / n**0.7
        for n in (4, 8, 16, 32)
    )
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    radius = np.hypot(line[:, None], line)
    return np.where(np.asarray(rough) * 0.7 + 0.75 - radius > 0, 255, 0).astype(np.uint8)
