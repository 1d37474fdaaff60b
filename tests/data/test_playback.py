"""Strides and backward play: which frames are drawn, and which maps still hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import write_video

from videomamba_depth.data.dataset_synthetic import SyntheticClipDataset
from videomamba_depth.data.dataset_video import VideoClipDataset
from videomamba_depth.data.playback import Playback, adapt_relative_maps
from videomamba_depth.data.synthetic import WorldConfig
from videomamba_depth.data.transforms import ClipTransform

WORLD = WorldConfig(height=28, width=42)
BOTH_WAYS = Playback((1, 2), 0.5)


def test_draws_cover_strides_and_directions_and_stay_inside() -> None:
    playback, rng = Playback((1, 3, 9), 0.5), np.random.default_rng(0)
    drawn = [playback.draw(4, 12, rng) for _ in range(200)]
    assert {indices.step for indices in drawn} == {1, -1, 3, -3}  # 9 does not fit
    assert all(len(indices) == 4 and min(indices) >= 0 and max(indices) < 12 for indices in drawn)
    assert {min(indices) for indices in drawn if abs(indices.step) == 3} == {0, 1, 2}
    assert Playback((2,), 1.0).draw(1, 1, rng) == range(1)
    with pytest.raises(ValueError, match="too few"):
        playback.draw(4, 3, rng)


def test_plain_play_draws_as_if_there_were_no_choice() -> None:
    ours, plain = np.random.default_rng(1), np.random.default_rng(1)
    assert Playback().draw(4, 12, ours)[0] == plain.integers(9)
    assert ours.random() == plain.random()


@pytest.mark.parametrize("options", [{"stride": ()}, {"stride": (0,)}, {"reverse_probability": 1.5}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
        Playback(**options)


def test_maps_of_the_frame_before_are_kept_for_forward_neighbors_only() -> None:
    maps = {"rgb": np.ones((3, 2, 2, 3)), "static": np.ones((3, 2, 2), bool), "flow_bwd": np.ones((3, 2, 2, 2))}
    kept = adapt_relative_maps(maps, range(5, 8))
    assert not kept["static"][0].any()
    assert kept["static"][1:].all()
    assert not kept["flow_bwd"][0].any()
    assert maps["static"].all()  # the input is unchanged
    for indices in (range(7, 4, -1), range(1, 6, 2)):
        assert set(adapt_relative_maps(maps, indices)) == {"rgb"}


@pytest.mark.parametrize("num_worlds", [None, 2])
def test_synthetic_clips_show_the_frames_that_they_name(num_worlds: int | None) -> None:
    """Every map is that of the named frame, in playing order; found by rendering the whole world once more."""
    transform = ClipTransform(random_crop=False)
    dataset = SyntheticClipDataset(WORLD, clip_frames=3, transform=transform, num_worlds=num_worlds, playback=BOTH_WAYS)
    whole: dict[str, Any] = {}
    if num_worlds is not None:
        whole = {rendered.name: rendered.maps for rendered in map(dataset._keep, range(num_worlds))}
    steps = set()
    for index in range(16):
        item = dataset[index]
        frames = item["meta"].frame_indices
        steps.add(frames[1] - frames[0])
        assert item["rgb"].shape[0] == item["inv_depth"].shape[0] == 3
        assert ("static" in item) == ("flow_bwd" in item) == (frames[1] - frames[0] == 1)
        if whole:
            depth = whole[item["meta"].video_id]["inv_depth"][list(frames)]
            np.testing.assert_array_equal(item["inv_depth"][:, 0].numpy(), depth)
        assert np.all(np.diff(item["meta"].timestamps_s) * (frames[1] - frames[0]) > 0)
    assert steps == {1, -1, 2, -2}


def test_backward_clips_of_a_video_are_forward_ones_turned_round(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=12)
    plain: dict[str, Any] = {"transform": ClipTransform(random_crop=False), "clip_frames": 3}
    forth = VideoClipDataset(tmp_path, **plain)
    back = VideoClipDataset(tmp_path, playback=Playback(reverse_probability=1.0), **plain)
    for index in range(4):
        a, b = forth[index], back[index]
        assert a["meta"].frame_indices == b["meta"].frame_indices[::-1]
        np.testing.assert_array_equal(a["rgb"].numpy(), b["rgb"].flip(0).numpy())
    assert len(back[0, 1]["meta"].frame_indices) == 1
