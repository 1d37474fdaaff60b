"""Keys that had another name keep working, each with one line that names the new one."""

from __future__ import annotations

import logging

import pytest

from videomamba_depth.configuration.ablate_schema import AblateConfig
from videomamba_depth.configuration.cli import CONFIG_DIR, load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.configuration.old_keys import OLD_KEYS, renamed, renamed_values
from videomamba_depth.configuration.schema import TrainConfig
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import declared

TRAIN_KEYS = {key.name for key in declared(TrainConfig)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.motion=mixed", "data.camera_motion=mixed"),
        ("data.colour_jitter=0.3", "data.color_jitter=0.3"),
        ("model.motion=none", "model.flow=null"),
        ("model.motion=flow", "model.flow={}"),
        ("model.motion_short_side=99", "model.flow.short_side=99"),
        ("model.output.enabled=false", "model.output=null"),
        ("flow=inverse_search", "reference_flow=inverse_search"),
        ("flow.max_motion_px=0.7", "reference_flow.max_motion_px=0.7"),
        ("loss.target=stabilised", "loss.target=stabilized"),
        ("teacher=depth_anything_v2_small", "teacher=depth_anything_v2"),
        (
            "teacher=depth_anything_v2_metric_outdoor_large",
            "teacher=depth_anything_v2_metric teacher.name=depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf",
        ),
    ],
)
def test_an_old_key_builds_what_the_new_one_does(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = load_config("train", TrainConfig, new.split())
    assert not caplog.records
    assert load_config("train", TrainConfig, old.split()) == expected
    assert [record.getMessage() for record in caplog.records] == [f"{old} is now {new}"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dtype=bfloat16", "precision=bfloat16"),
        ("input_size=28", "short_side=28"),
        ("raw_dtype=float32", "raw_precision=float32"),
        ("colour_map=turbo", "color.map=turbo"),
        ("colour_map=grey", "color.map=gray"),
        ("color.map=grey", "color.map=gray"),
        ("colour_percentiles=[1,99]", "color.percentiles=[1,99]"),
        ("colour_range=[0,5]", "color.range=[0,5]"),
        ("colour_time_constant_s=0", "color.time_constant_s=0"),
    ],
)
def test_old_keys_of_the_stream(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    needed = ["checkpoint=a", "input=b", "output=c"]
    expected = load_config("stream", StreamConfig, [*needed, new])
    assert expected != load_config("stream", StreamConfig, needed)
    assert not caplog.records
    assert load_config("stream", StreamConfig, [*needed, old]) == expected
    assert [record.getMessage() for record in caplog.records] == [f"{old} is now {new}"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.output.enabled=false model.output.gain=0.5", "model.output=null"),
        ("++model.output.gain=0.5 model.output.enabled=false", "model.output=null"),
        ("model.motion_short_side=112 model.motion=none model.motion_flow=dis_fast", "model.flow=null"),
        ("model.motion=none model.flow.short_side=112", "model.flow=null"),
        ("model.motion=none model.motion=flow model.motion_short_side=112", "model.flow.short_side=112"),
    ],
)
def test_an_old_off_stays_off_whatever_else_is_set(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    assert load_config("train", TrainConfig, old.split()) == load_config("train", TrainConfig, [new])
    assert ("has no effect: model." in caplog.text) == new.endswith("=null")


@pytest.mark.parametrize(
    ("command", "schema", "override"),
    [
        ("train", TrainConfig, "dtype=float16"),
        ("train", TrainConfig, "stabilise=true"),
        ("train", TrainConfig, "split=tuning"),
        ("stream", StreamConfig, "flow=dis"),
        ("stream", StreamConfig, "worlds.videos=3"),
        ("stream", StreamConfig, "teacher.licence=x"),
        ("ablate", AblateConfig, "flow=dis"),
        ("ablate", AblateConfig, "worlds.videos=2"),
        ("ablate", AblateConfig, "split=tuning"),
    ],
)
def test_no_command_is_sent_to_a_key_that_it_lacks(
    command: str, schema: type, override: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=f"there is no key '{override.partition('=')[0]}'"):
        load_config(command, schema, [override])
    assert not caplog.records


def test_old_keys_of_the_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    old = ["split=tuning", "worlds.videos=2", "kinds=[fast]", "flow=dis", "html.rows=[teacher]"]
    new = [
        "preset=tuning",
        "synthetic.videos=2",
        "synthetic.kinds=[fast]",
        "reference_flow=dis",
        "html.methods=[teacher]",
    ]
    expected = load_config("evaluate", EvaluateConfig, ["checkpoint=a", *new])
    assert load_config("evaluate", EvaluateConfig, ["checkpoint=a", *old]) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{a} is now {b}" for a, b in zip(old, new, strict=True)
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.output.enabled=False", "model.output=null"),
        ("model.output={enabled:false,gain:0.5}", "model.output=null"),
        ("model.output={enabled: True, gain: 0.5}", "model.output.gain=0.5"),
        ("+flow={name:dis,max_motion_px:0.7}", "reference_flow.max_motion_px=0.7"),
    ],
)
def test_old_keys_in_other_notations(old: str, new: str) -> None:
    assert load_config("train", TrainConfig, [old]) == load_config("train", TrainConfig, [new])


@pytest.mark.parametrize(
    ("command", "schema", "override", "message"),
    [
        (
            "train",
            TrainConfig,
            "model.output.enabled=1",
            "got 'model.output.enabled=1': .*=false is now model.output=null",
        ),
        ("train", TrainConfig, "model.motion=on", "no key 'model.motion' any more.*none is now model.flow=null"),
        (
            "evaluate",
            EvaluateConfig,
            "split=x",
            "split=final is now preset=held_out; split=tuning is now preset=tuning",
        ),
        ("train", TrainConfig, "model.output={x:1}", "there is no key 'model.output.x'"),
        ("train", TrainConfig, "model.outputs={x:1}", "there is no key 'model.outputs'"),
    ],
)
def test_what_has_no_translation_is_refused_in_one_line(
    command: str, schema: type, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(command, schema, [override])
    assert "\n" not in str(caught.value)


def test_sweeps_over_old_values() -> None:
    def swept(*overrides: str) -> list[str]:
        return renamed(["-m", *overrides], TrainConfig)[1:]

    assert swept("model.motion=none,flow") == ["model.flow=null,{}"]
    assert swept("teacher=depth_anything_v2_small,embedded") == ["teacher=depth_anything_v2,embedded"]
    assert swept("data.motion=fast,static") == ["data.camera_motion=fast,static"]
    assert swept("optim.lr=1,2", "data.stride=[1,2]") == ["optim.lr=1,2", "data.stride=[1,2]"]
    with pytest.raises(UserError, match=r"teacher=depth_anything_v2_base is now .*; run each by itself"):
        swept("teacher=depth_anything_v2_base,embedded")
    with pytest.raises(UserError, match=r"a sweep over model\.flow=null does not go with model\.flow\.short_side=112"):
        swept("model.motion=none,flow", "model.motion_short_side=112")


def test_an_old_choice_whose_values_changed_says_how_to_have_them_back(caplog: pytest.LogCaptureFixture) -> None:
    loss = load_config("train", TrainConfig, ["loss=stabilised"]).loss
    assert loss == load_config("train", TrainConfig, ["loss=default"]).loss
    line, _, former = caplog.messages[0].partition("; the former: ")
    assert line == "loss=stabilised is now loss=default, with other values"
    loss = load_config("train", TrainConfig, former.split()).loss
    assert (loss.target_radius, loss.target_sigma) == (4, 2.5)
    assert (loss.ssi_gradient_weight, loss.temporal_gradient_weight) == (0.5, 1)


def test_a_key_that_is_gone_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert load_config("train", TrainConfig, ["teacher.licence=x"]) == load_config("train", TrainConfig, [])
    assert "teacher.licence=x is now nothing" in caplog.text


def test_every_line_names_what_is_there() -> None:
    for old, new in OLD_KEYS.items():
        assert old not in TRAIN_KEYS, old
        for override in new.split():
            key, equals, value = override.partition("=")
            is_choice = equals and (CONFIG_DIR / key / f"{value}.yaml").is_file()
            if not is_choice and key.partition(".")[0] in {name.partition(".")[0] for name in TRAIN_KEYS}:
                assert any(f"{name}.".startswith(key.rstrip(".") + ".") for name in TRAIN_KEYS), new


def test_keys_of_today_stay(caplog: pytest.LogCaptureFixture) -> None:
    given = ["data.camera_motion=mixed", "+x=1", "~experiment", "-m", "name=data.motion=1", "teacher.name=data.motion"]
    assert renamed(given, TrainConfig) == given
    assert renamed_values({"data.root": None, "data.stride": [1, 2]}, TrainConfig) == {
        "data.root": None,
        "data.stride": [1, 2],
    }
    assert not caplog.records


def test_stored_settings_keep_their_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    stored = {"data.motion": "mixed", "data.colour_jitter": 0.25, "teacher.licence": "x", "trainer.steps": 4}
    expected = {"data.camera_motion": "mixed", "data.color_jitter": 0.25, "trainer.steps": 4}
    assert renamed_values(stored, TrainConfig) == expected
    (record,) = caplog.records
    assert "data.motion is now data.camera_motion=mixed; " in record.getMessage()


def test_groups_that_were_off_and_on_are_read_from_a_stored_config() -> None:
    stored = {
        "model.motion": "none",
        "model.motion_flow": "dis",
        "model.motion_short_side": 224,
        "model.output.gain": 0.6,
    }
    off = renamed_values({**stored, "model.output.enabled": False}, TrainConfig)
    assert off == {"model.flow": None, "model.output": None}
    on = renamed_values({**stored, "model.motion": "flow", "model.output.enabled": True}, TrainConfig)
    assert on == {"model.flow.estimator": "dis", "model.flow.short_side": 224, "model.output.gain": 0.6}
