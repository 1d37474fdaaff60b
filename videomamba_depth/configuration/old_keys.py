"""Keys that had another name: they keep working, each with one line that names the new one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from videomamba_depth.utils.settings import declared

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


def renamed(arguments: Sequence[str], schema: type, groups: Iterable[str] = ()) -> list[str]:
    """Return overrides with their new keys; every one that had an old key is named in one line of the log.

    An old key that switches a group off does so wherever it stands: the group's other keys among the overrides go.

    Args:
        groups: of the command's config, also those that the schema does not name.
    """
    known = (*(key.name for key in declared(schema)), *groups)
    result: list[str] = []
    switched: dict[str, str] = {}  # that an old key switches: the override that says on or off
    for argument in arguments:
        key, _, value = argument.partition("=")
        new = _new_overrides(key.lstrip("+"), value, known)
        result += [argument] if new is None else new
        if new is not None:
            log.warning("%s is now %s", argument, _named(new))
            switched |= {
                override.partition("=")[0]: override for override in new if override.endswith(("=null", "={}"))
            }
    for group in (group for group, override in switched.items() if override.endswith("=null")):
        for override in [override for override in result if override.lstrip("+").startswith(f"{group}.")]:
            result.remove(override)
            log.warning("%s has no effect: %s is off", override, group)
    return result


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
    group = next((old for old in OLD_KEYS if old.endswith(".") and key.startswith(old)), None)
    if f"{key}={value}" in OLD_KEYS:
        new = OLD_KEYS[f"{key}={value}"].split()
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
