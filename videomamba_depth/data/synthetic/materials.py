"""Materials of the newer families: a pattern, three colors that go together, gloss; counted into one atlas."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from videomamba_depth.data.synthetic.appearance import Finish
from videomamba_depth.data.synthetic.patterns import pattern
from videomamba_depth.data.synthetic.textures import TILE_PX, TextureAtlas, facade, tile_noise

Array = NDArray[np.float32]

# What a surface is made of → (patterns, range of hue in turns, of saturation, of value); colors are then spread.
_STUFF: dict[str, tuple[tuple[str, ...], tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "wall": (("plain", "plain", "plain", "any", "cells", "marble"), (0.0, 1.0), (0.0, 0.25), (0.25, 0.9)),
    "floor": (("any", "any", "marble", "plain", "cells", "cloth"), (0.02, 0.15), (0.0, 0.5), (0.1, 0.7)),
    "wood": (("bark", "any", "marble"), (0.03, 0.11), (0.3, 0.7), (0.08, 0.55)),
    "thing": (
        ("dead_leaves", "plain", "plain", "any", "cloth", "writing", "marble", "cells"),
        (0.0, 1.0), (0.0, 0.95), (0.04, 0.95),
    ),
    "cloth": (("cloth", "cloth", "plain", "any", "dead_leaves"), (0.0, 1.0), (0.0, 0.9), (0.03, 0.8)),
    "print": (("writing", "dead_leaves", "any"), (0.0, 1.0), (0.0, 0.9), (0.2, 0.95)),
    "metal": (("plain", "any"), (0.5, 0.7), (0.0, 0.2), (0.1, 0.7)),
    "paint": (("plain",), (0.0, 1.0), (0.0, 0.95), (0.05, 0.9)),
    "leaves": (("foliage",), (0.17, 0.38), (0.3, 0.8), (0.08, 0.45)),
    "grass": (("blades", "blades", "foliage"), (0.14, 0.33), (0.25, 0.7), (0.1, 0.5)),
    "bark": (("bark",), (0.03, 0.12), (0.1, 0.5), (0.06, 0.4)),
    "earth": (("gravel", "plain", "dead_leaves", "foliage"), (0.03, 0.14), (0.1, 0.5), (0.1, 0.6)),
    "rock": (("marble", "gravel", "plain", "cells"), (0.02, 0.16), (0.0, 0.25), (0.12, 0.65)),
    "road": (("plain", "gravel", "cells"), (0.0, 1.0), (0.0, 0.08), (0.08, 0.4)),
    "skin": (("plain",), (0.02, 0.08), (0.25, 0.6), (0.15, 0.8)),
    "fur": (("blades", "plain", "dead_leaves"), (0.02, 0.12), (0.05, 0.6), (0.05, 0.8)),
}  # fmt: skip
# stuff → probability that it is glossy
_GLOSS = {"metal": 0.8, "paint": 0.5, "thing": 0.35, "floor": 0.4, "wood": 0.3, "print": 0.3}


@dataclass
class Materials:
    """Textures as they are asked for; at most `most` of each stuff, so that an atlas stays small."""

    rng: np.random.Generator
    most: int = 4
    textures: list[Array] = field(default_factory=list)
    finish: list[tuple[float, float, float, float]] = field(default_factory=list)  # specular, exponent, mirror, clear
    emissive: list[bool] = field(default_factory=list)
    _made: dict[str, list[int]] = field(default_factory=dict)

    def pick(self, stuff: str) -> int:
        """Return the index of a texture of some stuff, a new one while there are few."""
        made = self._made.setdefault(stuff, [])
        if len(made) < self.most and (not made or self.rng.random() < 0.7):
            gloss = self.rng.random() < _GLOSS.get(stuff, 0.0)
            shine = (
                (float(self.rng.uniform(0.05, 0.6)), float(np.exp(self.rng.uniform(1.5, 4.5)))) if gloss else (0.0, 1.0)
            )
            made.append(self.add(self._texture(stuff), (*shine, 0.0, 0.0)))
        return made[int(self.rng.integers(len(made)))]

    def add(
        self, texture: Array, finish: tuple[float, float, float, float] = (0, 1, 0, 0), shines: bool = False
    ) -> int:
        """Count a texture [128,128,3] in and return its index."""
        self.textures.append(texture)
        self.finish.append(finish)
        self.emissive.append(shines)
        return len(self.textures) - 1

    def lamp(self, color: Array, strength: float) -> int:
        """Return a texture that shines by itself."""
        return self.add(
            np.broadcast_to(color * np.float32(strength), (TILE_PX, TILE_PX, 3)).astype(np.float32), shines=True
        )

    def glass(self) -> int:
        """Return a tinted, glossy, mostly transparent texture."""
        tint = np.broadcast_to(self.rng.uniform(0.3, 0.8, 3).astype(np.float32), (TILE_PX, TILE_PX, 3))
        return self.add(tint, (0.6, 80.0, 0.0, float(self.rng.uniform(0.5, 0.9))))

    def polished(self, index: int, mirror: float) -> int:
        """Return a copy of a texture that mirrors, for floors."""
        return self.add(self.textures[index], (0.2, 40.0, mirror, 0.0))

    def facade(self) -> int:
        """Return a wall with windows; like `pick`, a new one while there are few."""
        made = self._made.setdefault("facade", [])
        if len(made) < self.most and (not made or self.rng.random() < 0.7):
            made.append(self._facade())
        return made[int(self.rng.integers(len(made)))]

    def _facade(self) -> int:
        shade = facade(self.rng)
        wall = self._texture("wall")
        glass = self.rng.uniform(0.02, 0.25, 3).astype(np.float32)
        window = (shade < 0.5)[..., None]
        tone = (0.5 + shade)[..., None]
        return self.add(np.where(window, glass * tone * 2, wall * (0.8 + 0.2 * tone)).astype(np.float32))

    def grain(self) -> int:
        """Return the fine noise that every surface is multiplied with."""
        return self.add(np.repeat(tile_noise(self.rng, rough=True)[..., None], 3, -1).astype(np.float32))

    def cloud(self) -> int:
        """Return the noise that clouds are made of."""
        return self.add(np.repeat(tile_noise(self.rng, rough=False)[..., None], 3, -1).astype(np.float32))

    def atlas(self) -> TextureAtlas:
        """Pack all textures."""
        return TextureAtlas.build(self.textures)

    def finishes(self) -> Finish:
        """Return the gloss of all textures."""
        return Finish(*np.array(self.finish, np.float32).T.copy())

    def _texture(self, stuff: str) -> Array:
        rng = self.rng
        patterns, hues, saturations, values = _STUFF[stuff]
        shares = pattern(rng, str(rng.choice(patterns)))
        hue = rng.uniform(*hues)
        spread = rng.choice([0.02, 0.06, 0.3]) * (hues[1] - hues[0])
        low, high = np.log(values)
        value = np.exp(rng.uniform(low, high) + rng.normal(0, rng.uniform(0.1, 1.1), 3))
        hsv = np.stack(
            [(hue + rng.normal(0, spread, 3)) % 1 * 360, rng.uniform(*saturations) * rng.uniform(0.5, 1, 3), value], -1
        )
        hsv[:, 2] = np.clip(hsv[:, 2], 0.03, 0.95)
        colors = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
        first = colors[0] + shares[..., :1] * (colors[1] - colors[0])
        return np.clip(first + shares[..., 1:] * (colors[2] - first), 0.01, 1.0).astype(np.float32)
