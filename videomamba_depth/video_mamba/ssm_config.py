"""The mixer's options as configs of the field write them (`ssm_cfg`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selective_scan import DISCRETIZATIONS

_MIXER_KEYS = (
    "d_state",
    "d_conv",
    "expand",
    "dt_rank",
    "dt_min",
    "dt_max",
    "conv_bias",
    "bias",
    "discretization",
    "backend",
)
_IGNORED_KEYS = ("use_fast_path",)  # names a code path of mamba-ssm that gives the same numbers


def mixer_arguments(ssm_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the keyword arguments of `MambaMixer` in an `ssm_cfg`; None is empty.

    Raises:
        ValueError: an unknown key, which would otherwise change nothing and say nothing, or an unknown discretization.
    """
    config = dict(ssm_cfg or {})
    unknown = sorted(set(config) - {*_MIXER_KEYS, *_IGNORED_KEYS})
    if unknown:
        raise ValueError(f"ssm_cfg has unknown keys {unknown}; the known ones are {', '.join(_MIXER_KEYS)}")
    arguments = {key: value for key, value in config.items() if key in _MIXER_KEYS}
    if "discretization" in arguments:
        check_discretization(arguments["discretization"])
    return arguments


def check_discretization(name: str) -> str:
    """Return a discretization's name; ValueError with the list of names when there is no such one."""
    if name not in DISCRETIZATIONS:
        raise ValueError(f"unknown discretization {name!r}; choose one of {', '.join(DISCRETIZATIONS)}")
    return name
