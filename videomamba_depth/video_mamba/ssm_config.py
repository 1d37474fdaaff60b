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
_FAST_PATH = "use_fast_path"  # the name of the field for "the fused kernels"


def mixer_arguments(ssm_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the keyword arguments of `MambaMixer` in an `ssm_cfg`; None is empty.

    `use_fast_path=False` runs the reference in place of a fused kernel; True leaves the choice open.

    Raises:
        ValueError: an unknown key, which would otherwise change nothing and say nothing, an unknown discretization, or
            a `use_fast_path` that is no boolean or contradicts `backend`.
    """
    config = dict(ssm_cfg or {})
    unknown = sorted(set(config) - {*_MIXER_KEYS, _FAST_PATH})
    if unknown:
        known = ", ".join((*_MIXER_KEYS, _FAST_PATH))
        raise ValueError(f"ssm_cfg has unknown keys {unknown}; the known ones are {known}")
    arguments = {key: value for key, value in config.items() if key in _MIXER_KEYS}
    fast = config.get(_FAST_PATH, True)
    if not isinstance(fast, bool):
        raise ValueError(f"ssm_cfg['use_fast_path'] must be true or false; got {fast!r}")
    if not fast:
        if arguments.get("backend") not in (None, "auto", "reference"):
            raise ValueError(f"ssm_cfg says use_fast_path=False and backend={arguments['backend']!r}; give one of them")
        arguments["backend"] = "reference"
    if "discretization" in arguments:
        check_discretization(arguments["discretization"])
    return arguments


def check_discretization(name: str) -> str:
    """Return a discretization's name; ValueError with the list of names when there is no such one."""
    if name not in DISCRETIZATIONS:
        raise ValueError(f"unknown discretization {name!r}; choose one of {', '.join(DISCRETIZATIONS)}")
    return name
