"""Keys that had another name: they keep working, each with one line that names the new one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from videomamba_depth.configuration.overrides import split_values
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import declared, lacking_defaults

log = logging.getLogger(__name__)

_CONSTANTS = {"null": None, "true": True, "false": False}
_V2, _METRIC = "teacher=depth_anything_v2", "teacher=depth_anything_v2_metric"
_ID = "teacher.name=depth-anything/Depth-Anything-V2"

OLD_KEYS: dict[str, str] = {
    "data.motion": "data.camera_motion",
    "data.colour_jitter": "data.color_jitter",
    "teacher.licence": "",
    "dtype": "precision",
    "input_size": "short_side",
    "raw_dtype": "raw_precision",
    "colour_map=grey": "color.map=gray",
    "color.map=grey": "color.map=gray",
    "colour_map": "color.map",
    "colour_percentiles": "color.percentiles",
    "colour_range": "color.range",
    "colour_time_constant_s": "color.time_constant_s",
    "html.rows": "html.methods",
    "kinds": "synthetic.kinds",
    "split=final": "preset=held_out",
    "split=tuning": "preset=tuning",
    "synthetic.motion=fast": "synthetic.kinds=[fast]",
    "synthetic.motion=moving": "synthetic.kinds=[moving]",
    "synthetic.motion=static": "synthetic.kinds=[static]",
    "worlds.": "synthetic.",
    "worlds.first_seed": "synthetic.seed",
    "model.motion=none": "model.flow=null",
    "model.motion=flow": "model.flow={}",  # on, as it is
    "model.motion_flow": "model.flow.estimator",
    "model.motion_short_side": "model.flow.short_side",
    "model.output.enabled=false": "model.output=null",
    "model.output.enabled=true": "model.output={}",
    "flow": "reference_flow",
    "flow.name": "reference_flow.estimator",
    "flow.": "reference_flow.",
    "loss=stabilised": "loss=default",
    "loss.target=stabilised": "loss.target=stabilized",
    "target=stabilised": "target=stabilized",
    "stabilise": "stabilize",
    "teacher=depth_anything_v1_small": f"{_V2} teacher.name=LiheYoung/depth-anything-small-hf",
    "teacher=depth_anything_v1_large": f"{_V2} teacher.name=LiheYoung/depth-anything-large-hf",
    f"{_V2}_base": f"{_V2} {_ID}-Base-hf",
    f"{_V2}_large": f"{_V2} {_ID}-Large-hf",
    f"{_V2}_small": _V2,
    f"{_METRIC}_indoor_small": _METRIC,
    f"{_METRIC}_indoor_base": f"{_METRIC} {_ID}-Metric-Indoor-Base-hf",
    f"{_METRIC}_indoor_large": f"{_METRIC} {_ID}-Metric-Indoor-Large-hf",
    f"{_METRIC}_outdoor_small": f"{_METRIC} {_ID}-Metric-Outdoor-Small-hf",
    f"{_METRIC}_outdoor_large": f"{_METRIC} {_ID}-Metric-Outdoor-Large-hf",
}
"""OLD → NEW, for the overrides of every command and for the stored configs of runs.

Whoever renames a key adds a line in one of these forms; the first that fits, in this order, is taken:

    "KEY=VALUE": "KEY=VALUE KEY=VALUE"   one value, or the choice of a group; any number of overrides, none for ""
    "KEY": "KEY"                         a key with whatever it holds, a group with whatever is chosen; "": it is gone
    "GROUP.": "GROUP."                   every key of a group that has no line of its own

In the last two forms, what the command's schema still declares stays: what one command renames, another may keep. A
command that lacks a new key takes no notice of the line.
"""

_OTHER_VALUES = {
    "loss=stabilised": "loss.target_radius=4 loss.target_sigma=2.5 loss.ssi_gradient_weight=0.5"
    " loss.temporal_gradient_weight=1.0",
}
"""OLD → overrides that bring back the values that it had, where its new form holds others."""


def renamed(arguments: Sequence[str], schema: type, groups: Iterable[str] = ()) -> list[str]:
    """Return overrides with their new keys; every one that had an old key is named in one line of the log.

    An old key that switches a group off does so wherever it stands: the group's other keys among the overrides go.

    Args:
        groups: of the command's config, also those that the schema does not name.

    Raises:
        UserError: an old key has no translation with this value, naming the new keys.
    """
    known = (*(key.name for key in declared(schema)), *groups)
    result: list[str] = []
    switched: dict[str, list[str]] = {}  # groups that an old key switches: off is "null", on "{}"
    sweep = not {"-m", "--multirun"}.isdisjoint(arguments)
    for argument in (part for given in arguments for part in _keys_of_group(given, known)):
        key, _, value = argument.lstrip("+").partition("=")
        values = list(split_values(value)) if sweep else [value]
        if len(values) > 1 and any(f"{key}={each}" in OLD_KEYS for each in values):
            new = _new_sweep(argument, key, values, known)
        else:
            new = _new_overrides(key, value, known)
        if new is None:
            _check_value(argument, key, known)
        result += [argument] if new is None else new
        if new is not None:
            former = f", with other values; the former: {_OTHER_VALUES[argument]}" if argument in _OTHER_VALUES else ""
            log.warning("%s is now %s%s", argument, _named(new), former)
            for name, _, value in (override.partition("=") for override in new):
                if {"null", "{}"} & set(split_values(value)):
                    switched[name] = list(split_values(value))
    for group, values in switched.items():
        own = [override for override in result if override.lstrip("+").startswith(f"{group}.")]
        if "null" in values and len(values) > 1 and own:
            raise UserError(f"config: a sweep over {group}=null does not go with {own[0]}; run it by itself")
        for override in own if values == ["null"] else []:
            result.remove(override)
            log.warning("%s has no effect: %s is off", override, group)
    return result


def _keys_of_group(argument: str, known: tuple[str, ...]) -> Iterator[str]:
    """Yield GROUP={KEY:VALUE,...} as GROUP.KEY=VALUE each if one of the keys is old; any other override as it is."""
    group, _, value = argument.lstrip("+").partition("=")
    parts = [part.partition(":") for part in split_values(value[1:-1])] if re.fullmatch("{[^{}]+}", value) else []
    keys = [(f"{group}.{key.strip()}", text.strip()) for key, _, text in parts]
    if any(_new_overrides(key, text, known) is not None for key, text in keys):
        yield from (f"{key}={text}" for key, text in keys)
    else:
        yield argument


def _new_sweep(argument: str, key: str, values: Sequence[str], known: tuple[str, ...]) -> list[str] | None:
    """Return a sweep over values some of which are old, as a sweep over one new key."""
    new = {value: _new_overrides(key, value, known) for value in values}
    if all(overrides is None for overrides in new.values()):
        return None
    each = [[f"{key}={value}"] if overrides is None else overrides for value, overrides in new.items()]
    names = {override.partition("=")[0] for overrides in each for override in overrides}
    if len(names) > 1 or any(len(overrides) != 1 for overrides in each):
        old = "; ".join(f"{key}={value} is now {_named(overrides)}" for value, overrides in new.items() if overrides)
        raise UserError(f"config: '{argument}' cannot be swept in one key: {old}; run each by itself")
    return [f"{names.pop()}={','.join(override.partition('=')[2] for (override,) in each)}"]


def _check_value(argument: str, key: str, known: tuple[str, ...]) -> None:
    """Refuse another value of a key of which only some values have a translation."""
    values = [old.partition("=")[2] for old in OLD_KEYS if old.startswith(f"{key}=")]
    new = {f"{key}={value}": _new_overrides(key, value, known) for value in values}
    if not _is_known(key, known) and any(new.values()):
        named = "; ".join(f"{old} is now {_named(overrides)}" for old, overrides in new.items() if overrides)
        raise UserError(f"config: there is no key '{key}' any more, got '{argument}': {named}")


def upgraded_values(stored: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """Return a stored config, flat, as of today: with its new keys, and the defaults of those that it lacks."""
    values = renamed_values(stored, schema)
    return values | lacking_defaults(schema, values)


def renamed_values(stored: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """Return a stored config, flat, with its new keys; what had old ones is named in one line of the log."""
    known = tuple(key.name for key in declared(schema))
    result: dict[str, Any] = {}
    old: list[str] = []
    for key, value in stored.items():
        text = value if isinstance(value, str) else json.dumps(value)
        new = _new_overrides(key, text, known)
        for override in [] if new is None else new:
            name, _, given = override.partition("=")
            if given != "{}":  # a group that is on: its keys say what it holds
                result[name] = value if given == text else _CONSTANTS.get(given, given)
        if new is None:
            result[key] = value
        else:
            old.append(f"{key} is now {_named(new)}")
    if old:
        log.warning("settings stored by an older version: %s", "; ".join(old))
    off = tuple(f"{key}." for key, value in result.items() if value is None)
    return {key: value for key, value in result.items() if not key.startswith(off)}


def _named(overrides: Sequence[str]) -> str:
    return " ".join(overrides) or "nothing: it has no effect"


def _new_overrides(key: str, value: str, known: tuple[str, ...]) -> list[str] | None:
    """Return what an override is now, as overrides; None for one that is not old."""
    new: list[str] | None = None
    constant = value.lower() if value.lower() in ("true", "false") else value  # YAML takes True as well
    group = next((old for old in OLD_KEYS if old.endswith(".") and key.startswith(old)), None)
    if f"{key}={constant}" in OLD_KEYS:
        new = OLD_KEYS[f"{key}={constant}"].split()
    elif _is_known(key, known):
        pass
    elif key in OLD_KEYS:
        new = [f"{OLD_KEYS[key]}={value}"] if OLD_KEYS[key] else []
    elif group is not None:
        new = [f"{OLD_KEYS[group]}{key.removeprefix(group)}={value}"]
    if new is None:
        return None
    needed = [override.partition("=")[0] for override in new] or [key.rpartition(".")[0]]
    return new if all(_is_known(name, known) for name in needed) else None


def _is_known(key: str, known: tuple[str, ...]) -> bool:
    """Return whether a command has a key or group."""
    return any(name == key or name.startswith(f"{key}.") for name in known)
