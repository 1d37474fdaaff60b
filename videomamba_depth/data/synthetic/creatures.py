"""People- and animal-like bodies of jointed ellipsoids and cylinders that walk or stand."""

import numpy as np

from videomamba_depth.data.synthetic.geometry import BOX, CONE, CYLINDER, ELLIPSOID
from videomamba_depth.data.synthetic.limbs import Joint, Limb, Walk
from videomamba_depth.data.synthetic.materials import Materials
from videomamba_depth.data.synthetic.stage import Triple


def draw_walk(rng: np.random.Generator, spot: tuple[float, float], leg: float, height: float = 0.0) -> Walk:
    """Draw a walk on a circle around a spot, for legs of a length in m; every third body stands."""
    speed = 0.0 if rng.random() < 0.35 else float(rng.choice([-1, 1]) * rng.uniform(0.4, 2.0) * leg)
    return Walk(
        center=spot,
        radius=float(rng.uniform(0.5, 3.0)) if speed else 0.01,
        speed=speed,
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=float(rng.uniform(2.4, 3.6) / leg),
        sway=(float(rng.uniform(0, 0.6)), float(rng.uniform(0.3, 1.5))),
        height=height,
    )


def person(rng: np.random.Generator, m: Materials, spot: tuple[float, float], height: float = 0.0) -> list[Limb]:
    """Draw a walking or standing person-like body of 1.0 to 2.0 m."""
    size = rng.uniform(1.0, 2.0) / 1.8
    wide = rng.uniform(0.8, 1.35)
    leg, arm = 0.88 * size, 0.62 * size
    walk = draw_walk(rng, spot, leg, height)
    skin, shirt, trousers, hair = m.pick("skin"), m.pick("cloth"), m.pick("cloth"), m.pick("fur")
    lean = Joint((0, -leg, 0), (float(rng.normal(-0.05, 0.08)), 0.0), 0.03, 0.5)

    def limb(shape: int, center: Triple, half: Triple, texture: int, *joints: Joint) -> Limb:
        return Limb(shape, center, half, (texture,), 0.4, walk, joints)

    torso = 0.58 * size
    parts = [
        limb(ELLIPSOID, (0, -torso / 2, 0), (0.19 * wide * size, torso * 0.6, 0.12 * wide * size), shirt, lean),
        limb(BOX, (0, -torso * 0.78, 0), (0.17 * wide * size, torso * 0.16, 0.08 * size), shirt, lean),
        limb(ELLIPSOID, (0, -torso - 0.2 * size, 0.02), (0.095 * size, 0.13 * size, 0.11 * size), skin, lean),
        limb(ELLIPSOID, (0, -torso - 0.25 * size, -0.015), (0.102 * size, 0.11 * size, 0.112 * size), hair, lean),
        limb(CYLINDER, (0, -torso - 0.06 * size, 0), (0.055 * size, 0.07 * size, 0.055 * size), skin, lean),
    ]
    raised = float(rng.uniform(0.3, 2.6)) if rng.random() < 0.25 else 0.0
    for side in (-1, 1):
        phase = np.pi * (side > 0)
        hip = Joint((side * 0.09 * wide * size, -leg, 0), (0.0, 0.0), 0.5, phase)
        knee = Joint((0, leg * 0.5, 0), (-0.25, 0.0), 0.25, phase + 1.2)
        thigh, shin = (0.085 * wide * size, leg * 0.27, 0.085 * wide * size), (0.055 * size, leg * 0.26, 0.055 * size)
        parts += [
            limb(ELLIPSOID, (0, leg * 0.24, 0), thigh, trousers, hip),
            limb(ELLIPSOID, (0, leg * 0.23, 0), shin, trousers, hip, knee),
            limb(BOX, (0, leg * 0.475, 0.06 * size), (0.04 * size, 0.025, 0.11 * size), hair, hip, knee),
        ]
        up = (raised if side > 0 else 0.0) + 0.05
        shoulder = Joint((side * 0.2 * wide * size, -torso * 0.88, 0), (up, side * -0.12), 0.45, phase + np.pi)
        elbow = Joint((0, arm * 0.5, 0), (float(rng.uniform(0.1, 1.2)), 0.0), 0.15, phase)
        parts += [
            limb(ELLIPSOID, (0, arm * 0.24, 0), (0.05 * size, arm * 0.28, 0.05 * size), shirt, lean, shoulder),
            limb(ELLIPSOID, (0, arm * 0.22, 0), (0.04 * size, arm * 0.26, 0.04 * size), skin, lean, shoulder, elbow),
            limb(ELLIPSOID, (0, arm * 0.5, 0), (0.04 * size, 0.07 * size, 0.03 * size), skin, lean, shoulder, elbow),
        ]
    if rng.random() < 0.3:
        bag = (0.13 * size, 0.2 * size, 0.09 * size)
        parts.append(limb(BOX, (0, -torso * 0.55, -0.2 * wide * size), bag, m.pick("thing"), lean))
    return parts


def animal(rng: np.random.Generator, m: Materials, spot: tuple[float, float], height: float = 0.0) -> list[Limb]:
    """Draw a four-legged body, from a cat to a bear or a cow."""
    leg = float(np.exp(rng.uniform(np.log(0.12), np.log(0.8))))
    long, thick = leg * rng.uniform(0.7, 1.3), leg * rng.uniform(0.25, 0.65)
    walk = draw_walk(rng, spot, leg, height)
    fur, other = m.pick("fur"), m.pick("fur")
    tile = max(0.15, leg)

    def limb(shape: int, center: Triple, half: Triple, texture: int, *joints: Joint) -> Limb:
        return Limb(shape, center, half, (texture,), tile, walk, joints)

    body = Joint((0, -leg - thick * 0.55, 0), (float(rng.normal(0, 0.06)), 0.0), 0.03, 0.0)
    neck = Joint((0, -thick * 0.3, long * 0.85), (float(rng.uniform(-0.3, 1.1)), 0.0), 0.08, 0.7)
    reach, head = leg * rng.uniform(0.25, 0.7), thick * rng.uniform(0.45, 0.75)
    tail = Joint((0, -thick * 0.3, -long * 0.95), (float(rng.uniform(-2.6, -0.6)), 0.0), 0.2, 0.2)
    parts = [
        limb(ELLIPSOID, (0, 0, 0), (thick * 0.8, thick, long), fur, body),
        limb(ELLIPSOID, (0, -thick * 0.1, long * 0.55), (thick * 0.75, thick * 0.95, long * 0.5), fur, body),
        limb(ELLIPSOID, (0, -reach * 0.3, reach * 0.35), (thick * 0.4, thick * 0.5, reach * 0.8), fur, body, neck),
        limb(ELLIPSOID, (0, -reach * 0.45, reach + head * 0.4), (head * 0.75, head * 0.75, head), fur, body, neck),
        limb(
            ELLIPSOID, (0, -reach * 0.3, reach + head * 1.2), (head * 0.4, head * 0.35, head * 0.6), other, body, neck
        ),
        limb(CYLINDER, (0, leg * 0.35, 0), (thick * 0.1, leg * 0.35, thick * 0.1), other, body, tail),
    ]
    for side in (-1, 1):
        ear = (side * head * 0.5, -reach * 0.45 - head * 0.8, reach + head * 0.1)
        parts.append(limb(CONE, ear, (head * 0.25, head * 0.4, head * 0.12), other, body, neck))
        for end in (-1, 1):
            phase = np.pi * (side * end > 0)
            hip = Joint((side * thick * 0.55, -leg * 1.05, end * long * 0.68), (0.0, 0.0), 0.4, phase)
            knee = Joint((0, leg * 0.5, 0), (0.15 * end, 0.0), 0.25, phase + 1.0)
            upper, lower = (thick * 0.28, leg * 0.36, thick * 0.36), (thick * 0.16, leg * 0.3, thick * 0.17)
            parts += [
                limb(ELLIPSOID, (0, leg * 0.22, 0), upper, fur, hip),
                limb(ELLIPSOID, (0, leg * 0.27, 0), lower, other, hip, knee),
            ]
    return parts
