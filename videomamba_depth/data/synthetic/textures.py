"""Tileable procedural textures with mip maps, packed into one atlas so that a frame needs two look-ups."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
TILE_PX = 128
NUM_LEVELS = 6  # 128 px down to 4 px
_PITCH = TILE_PX + 1  # one wrapped column and row, so that bilinear look-ups cross the tile's border
_LEVEL_PX = np.array([TILE_PX >> level for level in range(NUM_LEVELS)], np.float32)
_LEVEL_X = np.concatenate([[0], np.cumsum(_LEVEL_PX + 1)[:-1]]).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_bank() -> Array:
    """Return tileable noise fields [24,128,128], each of mean 0.5 and std 0.2, from white-ish to cloud-like."""
    rng = np.random.default_rng(20240117)
    fx = np.fft.fftfreq(TILE_PX)[:, None]
    fy = np.fft.rfftfreq(TILE_PX)[None]
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    fields = []
    for index in range(24):
        spectrum = np.fft.rfft2(rng.standard_normal((TILE_PX, TILE_PX))) * radius ** -(0.6 + 0.06 * index)
        spectrum[0, 0] = 0
        field = np.fft.irfft2(spectrum, s=(TILE_PX, TILE_PX))
        fields.append(np.clip(0.5 + 0.2 * field / field.std(), 0, 1))
    return np.stack(fields).astype(np.float32)


def tile_noise(rng: np.random.Generator, rough: bool | None = None) -> Array:
    """Draw a noise field [128,128] in [0,1]: a shifted, flipped member of the bank."""
    low, high = {None: (0, 24), True: (0, 10), False: (14, 24)}[rough]
    field = _noise_bank()[rng.integers(low, high)]
    shift = rng.integers(0, TILE_PX, 2)
    field = np.roll(field, (int(shift[0]), int(shift[1])), axis=(0, 1))
    return field[:: rng.choice([-1, 1])].T if rng.random() < 0.5 else field


def tile_grid() -> tuple[Array, Array]:
    line = ((np.arange(TILE_PX) + 0.5) / TILE_PX).astype(np.float32)  # exact: multiples of 1/256
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


def _stripes(rng: np.random.Generator) -> Array:
    x, y = tile_grid()
    kx, ky = max(int(rng.integers(0, 13)), 1), int(rng.integers(0, 4))
    wave = np.sin(2 * np.pi * (kx * x + ky * y)) * rng.choice([1.5, 20.0])
    return np.clip(0.5 + 0.5 * wave, 0, 1)


def _checker(rng: np.random.Generator) -> Array:
    x, y = tile_grid()
    kx, ky = rng.integers(1, 9, 2)
    return ((np.floor(2 * kx * x) + np.floor(2 * ky * y)) % 2).astype(np.float32)


def _tiles(rng: np.random.Generator) -> Array:
    """Bricks, floor tiles or planks: cells of random tone, grout between, every second row shifted."""
    x, y = tile_grid()
    columns, rows = rng.integers(1, 8), rng.integers(2, 13)
    row = np.floor(rows * y).astype(int)
    shifted = columns * x + (row % 2) * rng.choice([0.0, 0.5]) * (rows % 2 == 0)
    tones = rng.uniform(0.2, 0.8, (rows, columns)).astype(np.float32) * 0.6 + 0.4
    cell = tones[row, np.floor(shifted).astype(int) % columns]
    width = 0.012 + 0.02 * rng.random()
    grout = (np.abs(shifted - np.round(shifted)) / columns < width) | (
        np.abs(rows * y - np.round(rows * y)) / rows < width
    )
    return np.where(grout, np.float32(0), cell)


def _dots(rng: np.random.Generator) -> Array:
    x, y = tile_grid()
    k = rng.integers(2, 10)
    distance = np.hypot((k * x) % 1 - 0.5, (k * y) % 1 - 0.5)
    return np.clip((rng.uniform(0.2, 0.45) - distance) * TILE_PX / k, 0, 1)


def _wood(rng: np.random.Generator) -> Array:
    _, y = tile_grid()
    rings = rng.integers(2, 8) * y + rng.uniform(0.5, 2.0) * tile_noise(rng, rough=False)
    return 0.5 + 0.5 * np.sin(2 * np.pi * rings)


def _blotches(rng: np.random.Generator) -> Array:
    return np.clip((tile_noise(rng) - 0.5) * rng.uniform(2, 15) + 0.5, 0, 1)


def _rectangles(rng: np.random.Generator) -> Array:
    """A poster-like collage."""
    image = np.full((TILE_PX, TILE_PX), rng.random(), np.float32)
    for _ in range(rng.integers(4, 16)):
        top, left = rng.integers(0, TILE_PX - 8, 2)
        height, width = rng.integers(6, 60, 2)
        image[top : top + height, left : left + width] = rng.random()
    return image


def _plain(rng: np.random.Generator) -> Array:
    return np.clip(0.5 + 0.3 * (tile_noise(rng) - 0.5), 0, 1)


def facade(rng: np.random.Generator) -> Array:
    """Windows in a wall, the pattern of the courtyard's buildings."""
    x, y = tile_grid()
    columns, rows = rng.integers(2, 5, 2)
    inside = (np.abs((columns * x) % 1 - 0.5) < rng.uniform(0.18, 0.34)) & (
        np.abs((rows * y) % 1 - 0.5) < rng.uniform(0.2, 0.36)
    )
    tones = rng.uniform(0, 0.3, (rows, columns)).astype(np.float32)
    cell = tones[np.floor(rows * y).astype(int), np.floor(columns * x).astype(int)]
    return np.where(inside, cell, 0.85 + 0.3 * (tile_noise(rng) - 0.5)).astype(np.float32)


PATTERNS: tuple[Callable[[np.random.Generator], Array], ...] = (
    _stripes, _checker, _tiles, _tiles, _dots, _wood, _blotches, _blotches, _rectangles, _plain, _plain,
)  # fmt: skip


def random_albedo(rng: np.random.Generator) -> Array:
    """Draw a linear RGB albedo [3] in 0.03..0.9, of mostly low saturation as in real rooms."""
    gray = rng.uniform(0.15, 0.85) ** 1.3
    tint = rng.uniform(0, 1, 3) - 0.5
    return np.clip(gray * (1 + rng.choice([0.15, 0.5, 1.3]) * tint), 0.03, 0.9).astype(np.float32)


def paint(rng: np.random.Generator, pattern: Array, contrast: float = 1.0) -> Array:
    """Color a pattern [128,128] with two albedos and a little grain; return linear RGB [128,128,3] in [0,1]."""
    first = random_albedo(rng)
    second = first + np.float32(contrast) * (random_albedo(rng) - first)
    color = first + pattern[..., None].astype(np.float32) * (second - first)
    grain = 1 + np.float32(rng.uniform(0.1, 0.5)) * (tile_noise(rng) - 0.5)
    return np.clip(color * grain[..., None], 0.01, 1.0)


def random_texture(rng: np.random.Generator, contrast: float = 1.0) -> Array:
    """Draw a texture [128,128,3], linear RGB in [0,1]."""
    return paint(rng, PATTERNS[rng.integers(len(PATTERNS))](rng), contrast)


@dataclass(frozen=True)
class TextureAtlas:
    """Textures with their mip levels in one image: level l stands in column block l, texture m in row block m."""

    image: Array  # [num_textures·129, Σ(level+1), 3] linear RGB

    @staticmethod
    def build(textures: list[Array]) -> "TextureAtlas":
        """Pack textures, each [128,128,3]."""
        image = np.zeros((len(textures) * _PITCH, int((_LEVEL_PX + 1).sum()), 3), np.float32)
        for row, texture in enumerate(textures):
            tile = np.ascontiguousarray(texture, np.float32)
            for level in range(NUM_LEVELS):
                size = TILE_PX >> level
                if level:
                    tile = cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA)
                x, y = int(_LEVEL_X[level]), row * _PITCH
                image[y : y + size + 1, x : x + size + 1] = cv2.copyMakeBorder(tile, 0, 1, 0, 1, cv2.BORDER_WRAP)
        return TextureAtlas(image)

    def sample(self, texture: NDArray[np.int32], u: Array, v: Array, level: Array) -> Array:
        """Look colors up, trilinearly.

        texture: index [n]; u, v: position in tiles [n], wrapped; level: mip level [n], any real number.
        Returns linear RGB [n,3].
        """
        level = np.clip(level, 0, NUM_LEVELS - 1.001).astype(np.float32)
        base = level.astype(np.int32)
        blend = (level - base)[:, None]
        u, v = u - np.floor(u), v - np.floor(v)
        row = texture.astype(np.float32) * _PITCH
        return self._bilinear(base, u, v, row) * (1 - blend) + self._bilinear(base + 1, u, v, row) * blend

    def _bilinear(self, level: NDArray[np.int32], u: Array, v: Array, row: Array) -> Array:
        size = _LEVEL_PX[level]
        if u.size == 0:
            return np.zeros((0, 3), np.float32)
        columns = 512  # cv2.remap wants a picture, not a long row
        shape = (-(-u.size // columns), columns)
        x, y = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        x.ravel()[: u.size] = u * size + _LEVEL_X[level]
        y.ravel()[: u.size] = v * size + row
        return cv2.remap(self.image, x, y, cv2.INTER_LINEAR).reshape(-1, 3)[: u.size]
