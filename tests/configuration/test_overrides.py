"""Text on the command line is taken as it is; lists, null, groups and sweeps stay what Hydra makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from videomamba_depth.configuration.ablate_schema import AblateConfig
from videomamba_depth.configuration.cli import CONFIG_DIR, load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.configuration.overrides import flags_last, quote_overrides
from videomamba_depth.configuration.schema import PrecomputeConfig, TrainConfig
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.errors import UserError

NAMES = [
    "über.mp4", "日本.mp4", "clip (1).mp4", "a,b.mp4", "a=b.mp4", "it's.mp4", "#1.mp4", "a&b!.mp4", "{a}.mp4",
    "[x] clip.mp4", "[x]", "{x: 1}", "2024_01_15", "3.10", "1e5", "true", "None", "nan", "0x10", "-", "--", "+1",
    " a b ",
    "back\\slash", "end\\", "\\'", "'quoted'", '"x"', "$HOME", "${x}", "${name}", "${oc.env:HOME}", "$${a}", "\\${x}",
    "a: b",
    "%20", "*", "@a", "a\tb", "a;b|c>d", "n" * 250, "\udcff\udcfe.mp4", "model.s1.d_state=2,lr=1", "choice(a,b)",
]  # fmt: skip


def stream(**keys: str) -> StreamConfig:
    needed = {"checkpoint": "a", "input": "b", "output": "c", **keys}
    return load_config("stream", StreamConfig, [f"{key}={value}" for key, value in needed.items()])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_as_it_is(name: str) -> None:
    config = stream(checkpoint=name, input=name, output=name)
    assert (config.checkpoint, config.input, config.output) == (name, name, name)
    if name not in ('"x"', "'quoted'", " a b "):
        train = load_config("train", TrainConfig, [f"name={name}"])
        assert (train.name, train.run_dir) == (name, f"runs/{name}")


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", codec=None), min_size=1).filter(lambda text: text != "???"))
def test_any_text_is_taken_as_it_is(text: str) -> None:
    if not text.startswith("~"):
        assert stream(input=text).input == text


@pytest.mark.parametrize("argument", ["=1", "=", "+=1", "++=1", "~=1", "~", "@x=1", "", "hydra=1", "hydra/launcher=1"])
def test_an_override_without_a_key(argument: str) -> None:
    with pytest.raises(UserError, match=r"^config: "):
        load_config("train", TrainConfig, [argument])


def test_three_question_marks() -> None:
    assert stream(input="???").input == "./???"  # the same file
    with pytest.raises(UserError, match=r"name cannot be '\?\?\?'"):
        load_config("train", TrainConfig, ["name=???"])


PATHS: list[tuple[str, type, str, list[str]]] = [
    ("stream", StreamConfig, "input", ["checkpoint=a", "output=b"]),
    ("stream", StreamConfig, "output", ["checkpoint=a", "input=b"]),
    ("stream", StreamConfig, "checkpoint", ["input=a", "output=b"]),
    ("stream", StreamConfig, "intrinsics", ["checkpoint=a", "input=a", "output=b"]),
    ("train", TrainConfig, "data.root", []),
    ("train", TrainConfig, "data.teacher_cache", []),
    ("train", TrainConfig, "teacher.name", []),
    ("train", TrainConfig, "model.encoder", []),
    ("train", TrainConfig, "model.video_mamba.pretrained", []),
    ("train", TrainConfig, "reference_flow.weights", []),
    ("train", TrainConfig, "run_dir", []),
    ("precompute", PrecomputeConfig, "root", ["cache=a"]),
    ("precompute", PrecomputeConfig, "cache", ["root=a"]),
    ("evaluate", EvaluateConfig, "checkpoint", []),
    ("evaluate", EvaluateConfig, "input", ["checkpoint=a"]),
    ("evaluate", EvaluateConfig, "output", ["checkpoint=a"]),
    ("evaluate", EvaluateConfig, "rgbd.poses", ["checkpoint=a"]),
    ("evaluate", EvaluateConfig, "rgbd.intrinsics", ["checkpoint=a"]),
    ("evaluate", EvaluateConfig, "cache", ["checkpoint=a"]),
    ("evaluate", EvaluateConfig, "teacher.name", ["preset=held_out"]),
    ("ablate", AblateConfig, "output", []),
    ("serve", ServeConfig, "checkpoint", []),
]


@pytest.mark.parametrize(("command", "schema", "key", "needed"), PATHS)
def test_a_tilde_is_the_home_folder(command: str, schema: type, key: str, needed: list[str]) -> None:
    value: Any = load_config(command, schema, [*needed, f"{key}=~/videos/x"])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == str(Path.home() / "videos" / "x")


def test_a_tilde_after_a_name() -> None:
    home = str(Path.home())
    assert stream(checkpoint="teacher:~/t").checkpoint == f"teacher:{home}/t"
    config = load_config("evaluate", EvaluateConfig, ["checkpoint=[a:~/x,~/y/last,b:/z]"])
    assert config.checkpoint == [f"a:{home}/x", f"{home}/y/last", "b:/z"]
    assert stream(input="file~1.mp4").input == "file~1.mp4"


def test_lists_of_texts() -> None:
    def checkpoint(value: str) -> Any:
        return load_config("evaluate", EvaluateConfig, [f"checkpoint={value}"]).checkpoint

    assert checkpoint("[a:runs/x (1)/last,b:runs/d=1/last]") == ["a:runs/x (1)/last", "b:runs/d=1/last"]
    assert checkpoint("['a:runs/k=1,l=2/last',\"b:it's\"]") == ["a:runs/k=1,l=2/last", "b:it's"]
    assert checkpoint("[]") == []
    assert checkpoint("[x] clip") == "[x] clip"
    ablate = load_config("ablate", AblateConfig, ["evaluation=[split=tuning,kinds=[moving,fast]]", "only=[form]"])
    assert ablate.evaluation == ["split=tuning", "kinds=[moving,fast]"]
    more = load_config("ablate", AblateConfig, ["+ablations.mine=['optim.lr=3e-4','data.stride=[1,2]']"])
    assert more.ablations["mine"] == ["optim.lr=3e-4", "data.stride=[1,2]"]
    assert load_config("evaluate", EvaluateConfig, ["preset=held_out", "kinds=[fast]"]).synthetic.kinds == ("fast",)
    assert load_config("train", TrainConfig, ["data.stride=[1,2]"]).data.playback.stride == (1, 2)
    assert stream(intrinsics="[9,9,1,1]").intrinsics == [9, 9, 1, 1]


def test_null_and_unquoted_values_stay() -> None:
    config = load_config("train", TrainConfig, ["model.encoder=null", "data.crop=null", "trainer.threads=null"])
    assert (config.model.encoder, config.data.transform.crop, config.trainer.threads) == (None, None, None)
    assert load_config("train", TrainConfig, ["name=null"]).name == "null"  # a key that takes no null
    plain = ["name=x", "experiment=demo", "optim.lr=1e-3", "~experiment", "hydra.verbose=true", "run_dir=/a/b-c"]
    assert quote_overrides(plain, TrainConfig, CONFIG_DIR) == plain


@pytest.mark.parametrize("flags", [["-m"], ["--multirun"], ["--cfg", "job"], ["--info", "config"], ["-c=job"], []])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_flags_stand_anywhere(flags: list[str], place: int) -> None:
    overrides = ["name=a", "~experiment"]
    given = [*overrides[:place], *flags, *overrides[place:]]
    parsed = get_args_parser().parse_args(flags_last(given))
    assert parsed.overrides == overrides
    assert parsed.multirun == (flags in (["-m"], ["--multirun"]))


def test_flags_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"no flag '--steps'; keys are given as KEY=VALUE"):
        flags_last(["name=a", "--steps=5"])
    with pytest.raises(UserError, match="-m and --cfg exclude each other"):
        flags_last(["-m", "name=a,b", "--cfg", "job"])


def test_sweeps_stay_sweeps() -> None:
    given = ["-m", "name=a,b c,2024_01_15", "model.encoder=null,video_mamba", "optim.lr=1,2", "name=choice(a,b)"]
    quoted = ["-m", "name=a,b c,'2024_01_15'", "model.encoder=null,video_mamba", "optim.lr=1,2", "name=choice(a,b)"]
    assert quote_overrides(given, TrainConfig, CONFIG_DIR, sweep=True) == quoted
    assert quote_overrides(["name='a,b',c"], TrainConfig, CONFIG_DIR, sweep=True) == ["name='a,b',c"]
