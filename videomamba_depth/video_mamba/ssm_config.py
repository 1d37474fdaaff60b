"""The mixer's options as configs of the field write them (`ssm_cfg`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selective_scan import DISCRETIZATIONS
from selective_scan.backends import OFF, ON
from videomamba_depth.video_mamba.patch_embed import check_sizes

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
_FAST_PATH = "use_fast_path"  # the field's name for the fused kernels
_SWITCHES = (_FAST_PATH, "conv_bias", "bias")
_ONLY_DEFAULTS = {"dt_init": "random", "dt_scale": 1.0, "dt_init_floor": 1e-4}
"""Keys of the published mixer that are known here at their published defaults alone: they start the step sizes."""


def mixer_arguments(ssm_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the keyword arguments of `MambaMixer` in an `ssm_cfg`; None is empty.

    `use_fast_path=False` runs the reference in place of a fused kernel; True leaves the choice open. Switches may be
    words, see `switch`.

    Raises:
        ValueError: an unknown key, which would otherwise change nothing without a word, an unknown discretization, a
            size or a switch that is none, step sizes that do not rise, or a `use_fast_path` that contradicts `backend`.
    """
    config = dict(ssm_cfg or {})
    known = (*_MIXER_KEYS, _FAST_PATH, *_ONLY_DEFAULTS)
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f"ssm_cfg has unknown keys {unknown}; the known ones are {', '.join(known)}")
    for key, default in _ONLY_DEFAULTS.items():
        if config.get(key, default) != default:
            raise ValueError(f"ssm_cfg[{key!r}] must be {default!r}, the published default; got {config[key]!r}")
    sizes = {key: config[key] for key in ("d_state", "d_conv", "expand", "dt_rank") if key in config}
    check_sizes(**{key: size for key, size in sizes.items() if (key, size) != ("dt_rank", "auto")})
    low, high = config.get("dt_min", 0.001), config.get("dt_max", 0.1)
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"dt_min and dt_max must be finite with 0 < dt_min ≤ dt_max; got {low} and {high}")
    config.update({key: switch(f"ssm_cfg[{key!r}]", config[key]) for key in _SWITCHES if key in config})
    arguments = {key: value for key, value in config.items() if key in _MIXER_KEYS}
    if not config.get(_FAST_PATH, True):
        if arguments.get("backend") not in (None, "auto", "reference"):
            raise ValueError(f"ssm_cfg says use_fast_path=False and backend={arguments['backend']!r}; give one of them")
        arguments["backend"] = "reference"
    if "discretization" in arguments:
        check_discretization(arguments["discretization"])
    return arguments


def switch(name: str, value: Any) -> bool:
    """Return a switch as a bool: True, False, 1, 0, or one of the words in `selective_scan.backends.ON` and `OFF`."""
    word = str(value).strip().lower()
    if word not in (*ON, *OFF):
        raise ValueError(f"{name} must be one of {'/'.join(ON)} or {'/'.join(OFF)}; got {value!r}")
    return word in ON


def check_discretization(name: str) -> str:
    """Return a discretization's name; ValueError with the list of names when there is no such one."""
    if name == "poly_noncausal":
        raise ValueError(
            "'poly_noncausal' sees the whole sequence: only Vim(discretization_method=...) offers it; use 'poly'"
        )
    if name not in DISCRETIZATIONS:
        raise ValueError(f"unknown discretization {name!r}; choose one of {', '.join(DISCRETIZATIONS)}")
    return name
