"""The teacher's training: exact resume, a pool of stills that depends on the step alone, the card."""

import argparse
import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from commands import load_script

from videomamba_depth.data.synthetic.stills import Stills
from videomamba_depth.models.encoder_da import DepthAnythingEncoder
from videomamba_depth.models.small_depth_anything import save_small_depth_anything
from videomamba_depth.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = "--num-stills 12 --first-stills 4 --stills-per-step 2 --steps 5 --early-steps 5 --batch-size 2 --width 32"
TINY += " --num-layers 4 --warmup 2 --log-every 2 --save-every 1 --evaluate-every 0"


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="it needs PyTorch 2.9")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("pretrain_embedded_teacher")


def arguments(script: ModuleType, folder: Path, extra: str = "") -> argparse.Namespace:
    return script.parse_arguments([*f"{TINY} {extra}".split(), "--work-dir", str(folder)])


def stills_in(folder: Path) -> Stills:
    """Write stills of noise over a ramp: what they show does not matter here."""
    stills = Stills(folder / "stills", 12)
    rng = np.random.default_rng(0)
    stills.rgb[:] = rng.integers(0, 256, stills.rgb.shape)
    stills.inv_depth[:] = np.linspace(0.1, 1, stills.inv_depth.shape[1])[:, None] + rng.uniform(0, 0.2, (12, 1, 1))
    stills.done[:] = 1
    return stills


@needs_muon
def test_stopped_and_continued_gives_the_same_bits(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = script.train(stills_in(tmp_path / "whole"), [], arguments(script, tmp_path / "whole"))
    stills, args = stills_in(tmp_path / "killed"), arguments(script, tmp_path / "killed")

    class Killed(Exception):
        pass

    update = script.Run.update

    def killed_at_three(run, batch, args):  # type: ignore[no-untyped-def]
        if run.step == 3:
            raise Killed
        return update(run, batch, args)

    monkeypatch.setattr(script.Run, "update", killed_at_three)
    with pytest.raises(Killed):
        script.train(stills, [], args)
    monkeypatch.setattr(script.Run, "update", update)
    for extra, message in (("--seed 1", "--seed 0"), ("--width 64", "--width 32"), ("--steps 2", "has done 3 steps")):
        with pytest.raises(UserError, match=message):
            script.train(stills, [], arguments(script, tmp_path / "killed", extra))
    continued = script.train(stills, [], args)
    for part in ("model", "average"):
        theirs = getattr(whole, part).state_dict()
        for name, value in getattr(continued, part).state_dict().items():
            assert torch.equal(value, theirs[name]), name


def test_a_batch_depends_on_its_step_alone_and_on_the_stills_that_are_promised(
    script: ModuleType, tmp_path: Path
) -> None:
    stills, args = stills_in(tmp_path), arguments(script, tmp_path)
    assert [script.num_stills_at(step, args) for step in range(6)] == [4, 6, 8, 10, 12, 12]
    first = script.draw_batch(stills, 1, args)
    stills.rgb[6:] = 0  # beyond the pool of step 1
    again = script.draw_batch(stills, 1, args)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    rgb, inv_depth = first
    assert rgb.shape[0] == inv_depth.shape[0] == 2
    assert rgb.shape[2:] == inv_depth.shape[2:]
    assert all(side % 10 == 0 for side in rgb.shape[2:])
    assert 0 <= rgb.min() <= rgb.max() <= 1
    other = script.draw_batch(stills, 2, args)
    assert other[0].shape != rgb.shape or not torch.equal(other[0], rgb)


def test_the_learning_rate_rises_stays_and_falls(script: ModuleType, tmp_path: Path) -> None:
    args = arguments(script, tmp_path, "--steps 100 --warmup 10")
    rates = [script.rate_share(step, args) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10:70] == pytest.approx(np.ones(60))
    assert all(a > b for a, b in itertools.pairwise(rates[70:]))
    assert rates[-1] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * 29 / 30)))


def test_the_prediction_in_training_is_the_models_own(script: ModuleType) -> None:
    model = script.build_small_depth_anything(width=32, num_layers=4)
    rgb = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(pixel_values=script.normalized(rgb)).predicted_depth[:, None]
        ours = script.predict_inverse_depth(model, rgb, bfloat16=False)
        rough = script.predict_inverse_depth(model, rgb, bfloat16=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, theirs, rtol=0.05, atol=0.05)
    assert (rough.bfloat16().float() != rough).any(), "the head is not rounded to bfloat16"


def test_what_is_saved_is_a_small_depth_anything(script: ModuleType, tmp_path: Path) -> None:
    model = script.build_small_depth_anything()
    assert sum(p.numel() for p in model.parameters()) < 8e6
    save_small_depth_anything(model, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 16e6
    encoder = DepthAnythingEncoder.from_pretrained(str(tmp_path), short_side=110)
    depth = encoder.predict_depth(torch.rand(1, 3, 112, 140, generator=torch.Generator().manual_seed(0)))
    assert depth.shape == (1, 1, 112, 140)
    assert (depth > 0).all()
    assert encoder.input_resolution(112, 140) == (110, 140)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["ensure_multiple_of"] == model.config.patch_size


def test_a_dead_renderer_ends_the_wait(tmp_path: Path) -> None:
    class Dead:
        exitcode = 1

    stills = stills_in(tmp_path)
    stills.wait_for(12, [Dead()])  # type: ignore[list-item]
    stills.done[3] = 0
    stills.wait_for(3, [Dead()])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="died"):
        stills.wait_for(4, [Dead()])  # type: ignore[list-item]


def test_stills_of_another_number_are_refused(tmp_path: Path) -> None:
    stills_in(tmp_path)
    with pytest.raises(UserError, match="expected"):
        Stills(tmp_path / "stills", 13)


@pytest.mark.parametrize("wrong", ["--first-stills 13", "--width 36", "--ema 1"])
def test_options_that_do_not_fit_are_refused_by_name(script: ModuleType, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong.split()[0]):
        arguments(script, tmp_path, wrong)


@needs_muon
def test_every_parameter_has_one_optimizer_and_only_matrices_of_blocks_have_muon(script: ModuleType) -> None:
    model = script.build_small_depth_anything(width=32, num_layers=4)
    muon, adamw = script.build_optimizers(model)
    names = {id(p): name for name, p in model.named_parameters()}
    theirs, rest = ([id(p) for g in o.param_groups for p in g["params"]] for o in (muon, adamw))
    assert sorted(theirs + rest) == sorted(names)
    assert len(theirs) == 4 * 6
    assert all("encoder.layer." in names[i] and names[i].endswith("weight") for i in theirs)
    plain = next(g for g in adamw.param_groups if g["weight_decay"] == 0)
    assert all(p.ndim <= 1 for p in plain["params"])
