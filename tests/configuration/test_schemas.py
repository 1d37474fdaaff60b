"""Every number, choice and text of every schema is checked, by what is declared beside it."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import pytest

from videomamba_depth.configuration.ablate_schema import AblateConfig
from videomamba_depth.configuration.cli import load_config
from videomamba_depth.configuration.evaluate_schema import EvaluateConfig
from videomamba_depth.configuration.schema import PrecomputeConfig, TrainConfig
from videomamba_depth.configuration.serve_schema import ServeConfig
from videomamba_depth.configuration.stream_schema import StreamConfig
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import Choice, Key, Range, Text, declared, read_settings, to_values

SCHEMAS: dict[str, tuple[type, list[str]]] = {
    "train": (TrainConfig, []),
    "precompute": (PrecomputeConfig, ["root=a", "cache=b"]),
    "stream": (StreamConfig, ["checkpoint=a", "input=b", "output=c"]),
    "evaluate": (EvaluateConfig, ["checkpoint=a"]),
    "ablate": (AblateConfig, []),
    "serve": (ServeConfig, ["checkpoint=a"]),
}
KEYS = [(command, key) for command, (schema, _) in SCHEMAS.items() for key in declared(schema)]


def load(command: str, *overrides: str) -> Any:
    schema, needed = SCHEMAS[command]
    return load_config(command, schema, [*needed, *overrides])


def test_every_key_declares_what_it_may_be() -> None:
    for command, key in KEYS:
        if key.kind is bool:
            continue
        wanted = {int: Range, float: Range, str: (Choice, Text)}.get(key.kind, (Range, Text))
        assert isinstance(key.allowed, wanted), f"{command}: {key.name}"


def outside(key: Key) -> list[Any]:
    """Return values that are not allowed."""
    if isinstance(key.allowed, Choice):
        values: list[Any] = ["", "x", key.allowed.options[0].upper() + "?"]
    else:
        assert isinstance(key.allowed, Range)
        low, high = key.allowed.low, key.allowed.high
        values = [low - 1, high + 1, math.nan, math.inf, -math.inf, True]
        values += [low] if key.allowed.open in ("low", "both") else []
        values += [high] if key.allowed.open in ("high", "both") else []
    return [[value] * max(1, key.allowed.length[0]) for value in values] if key.is_list else values


@pytest.mark.parametrize("command", SCHEMAS)
def test_what_lies_outside_is_refused_with_the_key_in_full(command: str) -> None:
    values = to_values(load(command))
    for key in declared(SCHEMAS[command][0]):
        if isinstance(key.allowed, Text):
            continue
        *groups, name = key.name.split(".")
        owner = functools.reduce(lambda values, group: values[group] or {}, groups, values)  # null: off by default
        for value in outside(key) if key.allowed else []:
            with pytest.raises(UserError, match=re.escape(key.name)):
                read_settings(SCHEMAS[command][0], {**values, **nested(key.name, {**owner, name: value}, values)})


def nested(key: str, owner: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` changed so that the group of `key` is `owner`."""
    group, _, rest = key.partition(".")
    inner = values[group] or {} if rest else {}
    return {group: {**inner, **nested(rest, owner, inner)}} if rest else owner


def test_nan_is_in_no_range() -> None:
    assert all(math.nan not in key.allowed for _, key in KEYS if isinstance(key.allowed, Range))


@pytest.mark.parametrize(
    ("command", "override", "message"),
    [
        ("train", "data.crop=[56]", "data.crop must hold 2 values; got [56]"),
        ("train", "data.crop=[8192,8192]", "data.crop=[8192, 8192] is too large"),
        ("train", "data.crop=[2304,4096]", "data.batch_size="),
        ("train", "data.clip_frames=100000", "data.clip_frames=100000 with"),
        ("train", "data.batch_size=4096", "data.batch_size=4096 with data.crop="),
        ("train", "model.video_mamba.embed_dim=8192", "model.video_mamba.embed_dim must be in [8, 2048]"),
        ("train", "model.video_mamba.img_size=8192", "model.video_mamba.img_size must be in [16, 2048]"),
        ("precompute", "crop=[8192,8192]", "crop=[8192, 8192] is too large"),
        ("train", "data.num_workers=99999", "data.num_workers must be in [0, 256]"),
        ("train", "model.s2.num_blocks=1000000", "model.s2.num_blocks must be in [0, 64]"),
        ("train", "optim.ema_decay=nan", "optim.ema_decay must be in [0, 1); got nan"),
        ("train", "trainer.device=tpu", "trainer.device must be one of auto, cpu, cuda; got 'tpu'"),
        ("train", "loss.temporal_gradient_strides=[]", "loss.temporal_gradient_strides must hold"),
        ("train", "name=", "name must be a name"),
        ("train", "name=''", "name must be a name"),
        ("train", "name=../x", "name must be a name"),
        ("train", "run_dir=", "run_dir must be a path"),
        ("train", "experiment=null", "experiment/null'; there are ablation"),
        ("train", "trainer=1", "trainer/1'; there are default"),
        ("train", "model.s1=3", "model.s1 is a group of keys; got 3: set model.s1.KEY"),
        ("train", "model.scale=null", "model.scale is a group of keys; got null: set model.scale.KEY"),
        ("train", "model.flow=none", "got 'none': set model.flow.KEY, or model.flow=null for none"),
        ("train", "model.output=none", "got 'none': set model.output.KEY, or model.output=null for none"),
        ("train", "trainer={a:1}", "trainer"),
        ("train", "trainer.compile=2", "trainer.compile must be true or false; got 2"),
        ("train", "model.scan_backend=tpu", "model.scan_backend must be one of"),
        ("stream", "device=cuda:x", "device must be auto, cpu, cuda or cuda:N"),
        ("stream", "fps=0.0002", "fps must be in [0.01, 1000]"),
        ("stream", "intrinsics=[1,2,3]", "intrinsics must hold 4 values"),
        ("stream", "intrinsics=[1,2,3,nan]", "intrinsics must be"),
        ("stream", "key_frames.max_scale=0.5", "key_frames.max_scale must be in [1, "),
        ("stream", "key_frames.enter=0.1", "key_frames.leave, .enter and .duplicate"),
        ("evaluate", "synthetic.height=1", "synthetic.height must be in [16, 4096]"),
        ("evaluate", "precision=x", "precision must be one of"),
        ("evaluate", "synthetic.kinds=[slow]", "synthetic.kinds must be one of"),
        ("evaluate", "memory=[]", "memory must hold"),
        ("ablate", "seeds=[]", "seeds must hold"),
        ("ablate", "seeds=[0,1,0]", "seeds must differ"),
    ],
)
def test_refusals(command: str, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(command, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_that_cannot_be_read_is_named() -> None:
    with pytest.raises(UserError, match=r"config: 'trainer\.steps=\$\(ls\)' is no override"):
        load("train", "trainer.steps=$(ls)")
