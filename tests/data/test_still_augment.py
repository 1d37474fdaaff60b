"""Augmentation of stills: colors change, depth is only cropped and flipped."""

import numpy as np

from videomamba_depth.data.still_augment import _crop, augment_still


def still() -> tuple[np.ndarray, np.ndarray]:
    """Return a picture and inverse depth that both say where in the still a pixel is."""
    y, x = np.mgrid[:60, :80]
    rgb = np.stack([3 * y, 3 * x, np.full_like(x, 100)], -1).astype(np.uint8)
    return rgb, (1 + y / 60 + 10 * np.floor(x / 8)).astype(np.float16)


def test_the_same_draw_gives_the_same_and_sizes_are_as_asked() -> None:
    rgb, inverse = still()
    for height, width in ((40, 50), (30, 90), (50, 20), (70, 90)):
        image, target = augment_still(np.random.default_rng(3), rgb, inverse, height, width)
        again, _ = augment_still(np.random.default_rng(3), rgb, inverse, height, width)
        np.testing.assert_array_equal(image, again)
        assert image.shape == (height, width, 3)
        assert target.shape == (height, width)
        assert image.dtype == target.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1


def test_depth_keeps_its_values_and_its_edges() -> None:
    rgb, inverse = still()
    known = np.unique(inverse.astype(np.float32))
    flipped = 0
    for seed in range(20):
        _, target = augment_still(np.random.default_rng(seed), rgb, inverse, 40, 50)
        assert np.isin(target, known).all(), "nothing between two surfaces is made up"
        assert (np.diff(target, axis=0) >= 0).all(), "never upside down"
        flipped += target[0, 0] > target[0, -1]
    assert 4 <= flipped <= 16


def test_edges_of_depth_lie_where_those_of_the_picture_do() -> None:
    y, x = np.mgrid[:60, :80]
    apart_x, apart_y = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        for axis, apart in ((x, apart_x), (y, apart_y)):
            step = (axis >= axis.max() // 2).astype(np.uint8)
            image, target = _crop(rng, np.repeat(255 * step[..., None], 3, -1), step.astype(np.float16), 36, 46)
            flipped = target[0, 0] > target[0, -1]
            # The mean shift of the step along the axis, in px, positive toward larger coordinates before the flip.
            apart.append((image[..., 0] - target).sum() / (36 if axis is x else 46) * (1 if not flipped else -1))
    # Measured: 0.02 ± 0.02 and 0.01 ± 0.02 px; 0.49 down where OpenCV's INTER_NEAREST takes the wrong neighbor.
    assert abs(np.mean(apart_x)) < 0.08
    assert abs(np.mean(apart_y)) < 0.08


def test_crops_are_of_many_sizes_and_places() -> None:
    rgb, inverse = still()
    extents = []
    for seed in range(40):
        _, target = augment_still(np.random.default_rng(seed), rgb, inverse, 30, 40)
        extents.append((target[-1, 0] - target[0, 0]) * 60)
    assert min(extents) < 40
    assert max(extents) > 52


def test_colors_change_a_lot_but_the_picture_can_still_be_seen() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    inverse = np.ones((96, 128), np.float16)
    means, likeness = [], []
    for seed in range(60):
        image, _ = augment_still(np.random.default_rng(seed), rgb, inverse, 96, 128)
        means.append(image.mean((0, 1)))
        likeness.append(image.std())
    assert np.std(means, axis=0).min() > 0.04
    assert np.mean(likeness) > 0.1
