"""Which runs an ablation is made of, what is done with them, and what the table says."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, run_command

from videomamba_depth.configuration.ablate_schema import RECIPE, AblateConfig, list_runs
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.evaluation.ablation import ablation_markdown, over_seeds, summarize
from videomamba_depth.training.run_folder import CONFIG_JSON
from videomamba_depth.utils.checkpoint import write_manifest
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import to_values


def ablate_config(*overrides: str) -> AblateConfig:
    return load_config("ablate", AblateConfig, list(overrides))


def test_every_listed_ablation_is_a_training_that_differs_from_the_recipe() -> None:
    runs = list_runs(ablate_config("seeds=[0]"))
    assert len({run.folder for run in runs}) == len(runs)
    configs = {run.variant: to_values(load_config("train", TrainConfig, list(run.overrides))) for run in runs}
    for config in configs.values():
        assert config["trainer"].pop("seed") == 0
        config.pop("run_dir")
    assert [variant for variant, config in configs.items() if config == configs[RECIPE]] == [RECIPE]


def test_how_students_are_evaluated_is_checked_before_they_are_trained(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "scripts/ablate.py"))["main"]
    with pytest.raises(UserError, match="no key 'foo'"):
        main(ablate_config("only=[form]", "evaluation=[foo=1]", f"output={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_runs_are_named_by_their_overrides_and_ordered_by_seed() -> None:
    config = ablate_config("only=[form]", "seeds=[3,1]", "output=out", "base=['data.num_worlds=2']")
    runs = list_runs(config)
    assert [run.seed for run in runs] == [3] * (len(runs) // 2) + [1] * (len(runs) // 2)
    assert runs[1].folder == Path("out/model.form=plain/seed=3")
    assert runs[1].overrides[:3] == ("experiment=ablation", "data.num_worlds=2", "model.form=plain")
    named = "+ablations.w=['model.video_mamba.pretrained=runs/m.safetensors']"
    weights = ablate_config("only=[w]", named, "output=out")
    assert list_runs(weights)[1].folder == Path("out/model.video_mamba.pretrained=runs_m.safetensors/seed=0")
    with pytest.raises(UserError, match="no group 'shape'"):
        list_runs(ablate_config("only=[shape]"))
    with pytest.raises(UserError, match="workers must be positive"):
        ablate_config("workers=0")


def test_finished_runs_are_skipped_and_changed_ones_refused(tmp_path: Path) -> None:
    is_finished = runpy.run_path(str(ROOT / "scripts" / "ablate.py"))["is_finished"]
    overrides = ("base=['trainer.steps=3']", f"output={tmp_path}", "seeds=[0]")
    run = list_runs(ablate_config(*overrides))[0]
    assert not is_finished(run)
    config = to_values(load_config("train", TrainConfig, list(run.overrides)))
    for step, finished in ((2, False), (3, True)):
        checkpoint = run.folder / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / CONFIG_JSON).write_text(json.dumps(config))
        write_manifest(checkpoint)
        assert is_finished(run) == finished
    other = list_runs(ablate_config(*overrides[1:], "base=['trainer.steps=3','optim.lr=0.5']"))[0]
    with pytest.raises(UserError, match=r"optim.lr=0.001, now it is optim.lr=0.5"):
        is_finished(other)


def test_the_loss_of_a_run_is_that_of_its_last_fifth(tmp_path: Path) -> None:
    final_loss = runpy.run_path(str(ROOT / "scripts" / "ablate.py"))["final_loss"]
    run = list_runs(ablate_config(f"output={tmp_path}", "seeds=[0]"))[0]
    run.folder.mkdir(parents=True)
    losses = {10: 9.0, 80: 5.0, 90: 1.0, 95: None, 100: 3.0}
    lines = [json.dumps({"step": step, "loss/total": loss}) for step, loss in losses.items()]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines))
    assert final_loss(run) == 2.0
    (run.folder / "metrics.jsonl").write_text("")
    assert math.isnan(final_loss(run))


def changes(**tge: float) -> dict[str, Any]:
    return {"moving": {"changes": {name: {"tge": [value, 1.0, 4]} for name, value in tge.items()}}}


def test_seeds_are_averaged_and_paired_with_the_recipe() -> None:
    groups = changes(teacher=0.0, r0=-50.0, r1=-40.0, a0=-30.0, a1=-22.0)
    found = summarize(groups, {"recipe": {0: "r0", 1: "r1"}, "a=1": {0: "a0", 1: "a1"}}, "recipe")
    assert found["recipe"]["change"]["moving"]["tge"]["mean"] == -45.0
    paired = found["a=1"]["minus_recipe"]["moving"]["tge"]
    assert paired["values"] == [20.0, 18.0]
    assert paired["std"] == pytest.approx(2**0.5)
    assert math.isnan(over_seeds([1.0, None])["std"])
    assert math.isnan(found["recipe"]["change"]["moving"]["edge_ratio"]["mean"])  # nowhere measured


def test_the_table_shows_spread_and_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videomamba_depth.evaluation.ablation.COLUMNS", (("moving", "tge"), ("fast", "tge")))
    changed = changes(r0=-50.0, r1=-40.0, a0=-30.0, a1=-22.0)
    variants = summarize(changed, {"recipe": {0: "r0", 1: "r1"}, "a=1": {0: "a0", 1: "a1"}}, "recipe")
    result = {
        "variants": variants,
        "groups": {"recipe": "recipe", "a=1": "letters"},
        "reference": "recipe",
        "losses": {"recipe": over_seeds([0.2, 0.3]), "a=1": over_seeds([0.25, math.nan])},
        "failed": {"b=1#0": "x"},
        "about": "Made.",
    }
    text = ablation_markdown(result)
    assert "| recipe | 2 | 0.2500 ± 0.0707 | −45.0 ± 7.1 |" in text
    assert "| a=1 | 2 | 0.2500 | −26.0 ± 5.7 (+19.0 ± 1.0) |" in text
    assert "b=1#0: x" in text


@pytest.mark.slow
def test_the_command_trains_evaluates_and_goes_on(tmp_path: Path) -> None:
    tiny = "base=['debug=smoke','trainer.steps=2','data.num_worlds=2']"
    small = "evaluation=['preset=tuning','synthetic.videos=1','synthetic.frames=6','synthetic.height=56',"
    small += "'synthetic.width=70','synthetic.long_videos=0','cache=cache','short_side=56']"
    command = ("scripts/ablate.py", "output=out", "+ablations.mine=['model.form=plain']", "only=[mine]", tiny, small)
    first = run_command(tmp_path, *command, "seeds=[0]", timeout_s=900)
    assert first.status == 0, first.err
    assert "2 runs, 0 of them finished" in first.err
    second = run_command(tmp_path, *command, "seeds=[0,1]", timeout_s=900)
    assert "4 runs, 2 of them finished" in second.err
    assert "| model.form=plain | 2 |" in (tmp_path / "out" / "ablation.md").read_text()
