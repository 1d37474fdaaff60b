"""The student that is shipped: it loads by name, fits the shipped teacher, and is steadier than it on a new scene."""

from __future__ import annotations

import torch

from videomamba_depth.data.synthetic import WorldConfig, render_video
from videomamba_depth.models.checkpoint import load_student, load_teacher
from videomamba_depth.streaming.stream import DepthStream


def test_the_shipped_student_is_steadier_than_the_shipped_teacher() -> None:
    student, teacher = load_student("embedded"), load_teacher("embedded")
    video = render_video(4_000_000_007, WorldConfig(height=112, width=140, num_frames=12, camera_motion="static"))
    clip = torch.from_numpy(video.rgb).permute(0, 3, 1, 2).float()[None] / 255
    with torch.inference_mode():
        ours = student(clip)[0][0, :, 0]
        theirs = teacher.decode(teacher.encode_frame(clip[0]), (112, 140))[:, 0]
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-3)  # a first frame has no past
    flicker = [float((depth[4:] - depth[3:-1]).abs().mean()) for depth in (ours, theirs)]
    assert flicker[0] < 0.6 * flicker[1]


def test_it_streams_by_name_and_with_another_memory() -> None:
    frames = render_video(4_000_000_009, WorldConfig(height=56, width=70, num_frames=4)).rgb
    last = {}
    for memory in (0.25, 1.0):
        stream = DepthStream("embedded", memory=memory)
        last[memory] = [stream.step(frame) for frame in frames][-1]
        assert last[memory].shape == (56, 70)
    assert (last[0.25] != last[1.0]).any()
