"""Training learns, and stops before it does harm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_resume import train
from tiny import tiny_teacher
from torch import Tensor

from videomamba_depth.data.clip import ClipMeta
from videomamba_depth.data.labels.stabilized_cache import TargetSettings
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models.checkpoint import load_student, read_weights
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.training import labeller as labeller_module
from videomamba_depth.training.labeller import Labeller
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.logger import read_json_lines

ONE_CLIP = (
    "data.num_worlds=1",
    "data.camera_motion=moving",
    "data.flip=false",
    "data.p_single_frame=0",
    "data.perturb.probability=0",
)


def test_overfits_one_clip_of_another_teacher(tmp_path: Path, tiny_teacher_folder: str) -> None:
    """The student starts from a damaged copy of the teacher's decoder, and approaches the teacher."""
    other = tmp_path / "other"
    damaged = tiny_teacher()
    with torch.no_grad():
        for p in damaged.head.parameters():
            p.mul_(1 + 0.5 * torch.randn_like(p))
    damaged.save_pretrained(other)
    run = tmp_path / "run"
    options = (
        *ONE_CLIP,
        "model=plain_stack",
        "loss=raw",
        "trainer.steps=24",
        "trainer.checkpoint_every=24",
        "optim.lr=0.005",
        "model.train_head=true",
    )
    assert train(run, tiny_teacher_folder, f"model.encoder={other}", "loss.temporal_gradient_weight=0", *options)
    losses = [record["loss/ssi"] for record in read_json_lines(run / "metrics.jsonl")]
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4])


def test_a_frozen_decoder_stays_the_teacher_s(tmp_path: Path, tiny_teacher_folder: str) -> None:
    run = tmp_path / "run"
    assert train(run, tiny_teacher_folder, "trainer.steps=3")
    weights = read_weights(run / "last" / "student.safetensors")
    teacher = read_weights(Path(tiny_teacher_folder) / "model.safetensors")
    assert torch.equal(weights["head.head.conv1.weight"], teacher["head.conv1.weight"])
    moved = [name for name in weights if name.endswith("out_proj.weight") and weights[name].abs().max() > 0]
    assert len(moved) == 3


def test_a_loss_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, tiny_teacher_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert train(run, tiny_teacher_folder, "trainer.steps=2", "trainer.total_steps=4")
    before = (run / "last" / "trainer.safetensors").read_bytes()
    from videomamba_depth.models.videomamba_depth import VideoMambaDepth

    decode = VideoMambaDepth._decode
    monkeypatch.setattr(VideoMambaDepth, "_decode", lambda *args: decode(*args) * float("inf"))
    with pytest.raises(UserError, match=r"loss .* at step 3, batch \d+, frame \d+ \(videos: synthetic/.* is intact"):
        train(run, tiny_teacher_folder, "trainer.steps=4")
    assert (run / "last" / "trainer.safetensors").read_bytes() == before


def test_a_stabilized_target_flickers_less_than_the_teacher(tiny_encoder: DepthAnythingEncoder) -> None:
    """The same picture under noise: the raw target changes from frame to frame, the stabilized one hardly."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 10, generator=generator), (56, 70), mode="bicubic")
    clip = (picture + 0.01 * torch.randn(8, 3, 56, 70, generator=generator)).clamp(0, 1).unsqueeze(0)
    batch = {"rgb": clip, "rgb_clean": clip, "meta": [ClipMeta("made", tuple(range(8)), tuple(map(float, range(8))))]}
    change, calls = {}, []

    def flow(source: Tensor, target: Tensor) -> Tensor:
        calls.append(len(source))
        return DISFlow()(source, target)

    for stabilize in (False, True):
        target = TargetSettings("stabilized" if stabilize else "raw", target_radius=4, target_sigma=2.5)
        labeller = Labeller(tiny_encoder, tiny_encoder, flow, 0.5, 0.06, 8, None, target)
        labels = labeller(batch, torch.device("cpu"))
        assert calls == [7, 7]  # there and back once, for target and static mask together
        calls.clear()
        assert labels.target.valid.all()
        change[stabilize] = float((labels.target.depth[:, 1:] - labels.target.depth[:, :-1]).abs().mean())
    assert 0 < change[True] < 0.5 * change[False]


def test_the_labeller_makes_geometric_targets_of_the_clean_clip_each_on_its_own(
    tiny_encoder: DepthAnythingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_red(
        depth: Tensor, clip: Tensor, flow: object, *, radius: int, sigma: float, depth_kind: object
    ) -> Tensor:
        return torch.full_like(depth, float(clip[0, 0, 0, 0]) + radius + sigma)

    monkeypatch.setitem(labeller_module.OFFLINE_TARGETS, "geometry", first_red)
    clean = torch.rand(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    meta = [ClipMeta("made", (0, 1, 2), (0.0, 1.0, 2.0))] * 2
    labeller = Labeller(tiny_encoder, tiny_encoder, DISFlow(), 0.5, 0.06, 8, None, TargetSettings("geometry"))
    depth = labeller({"rgb": 1 - clean, "rgb_clean": clean, "meta": meta}, torch.device("cpu")).target.depth
    for sample in range(2):
        assert torch.allclose(depth[sample], clean[sample, 0, 0, 0, 0] + 13)


def test_stabilizing_needs_flow(tiny_encoder: DepthAnythingEncoder) -> None:
    with pytest.raises(ValueError, match="flow"):
        Labeller(tiny_encoder, tiny_encoder, None, 0.5, 0.06, 8, None, target=TargetSettings("stabilized"))


@pytest.mark.parametrize("options", [("model=plain_stack",), ()])
def test_a_trained_student_gives_single_images_the_teacher_s_depth(
    tmp_path: Path, tiny_teacher_folder: str, options: tuple[str, ...]
) -> None:
    """N = 1 is the first frame of a stream: states and carried output have nothing to add, whatever was learned."""
    run = tmp_path / "run"
    assert train(run, tiny_teacher_folder, "optim.lr=0.05", "trainer.steps=4", *options)
    student = load_student(run / "last")
    teacher = DepthAnythingEncoder.from_pretrained(tiny_teacher_folder, short_side=28)
    images = torch.rand(3, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    moving = torch.stack([images, images.flip(-1)], 1)
    with torch.no_grad():
        wanted = teacher.predict_depth(images)
        torch.testing.assert_close(student(images[:, None])[0][:, 0], wanted, rtol=1e-5, atol=1e-6)
        second = student(moving)[0][:, 1]
        assert not torch.allclose(second, teacher.predict_depth(moving[:, 1]), rtol=1e-3)  # it did learn
