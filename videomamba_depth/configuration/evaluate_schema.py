"""Names and types of `configs/evaluate.yaml`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videomamba_depth.configuration.schema import TeacherConfig
from videomamba_depth.evaluation.datasets.rgbd import RgbdFormat
from videomamba_depth.evaluation.datasets.worlds import WorldSet
from videomamba_depth.evaluation.engine import Protocol
from videomamba_depth.evaluation.jitter import TeacherJitter
from videomamba_depth.evaluation.predictions import Prediction
from videomamba_depth.evaluation.protocols import PROTOCOLS
from videomamba_depth.flow.estimators import FlowSettings
from videomamba_depth.utils.depth_kind import parse_kind
from videomamba_depth.utils.device import DTYPES
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import choice, device_name, file_name, path, ranged, text


@dataclass(frozen=True, kw_only=True)
class HtmlConfig:
    """The page beside JSON and Markdown, and which methods its pictures show besides the students."""

    enabled: bool
    methods: list[str] = text()
    clips: int | None = ranged(0, 10**6, None)
    video_frames: int = ranged(0, 100_000)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Protocol):
    """`configs/evaluate.yaml`; the keys of the protocol stand beside the others."""

    checkpoint: str | list[str] | None = path(None, named=True)
    prediction: str | list[str] = path(named=True)
    prediction_kind: str | list[str] = text()
    prediction_scale: str | list[str] = text()
    reference: str | None = text(default=None)
    against: str | None = text(default=None)
    check: bool
    memory: list[float] = ranged(0, 1e6, open="low")
    encode_every: list[int] = ranged(1, 10_000)
    geometry: bool = False
    plain_geometry: bool = False
    affine: bool = False
    untrained: bool = False
    baselines: bool = True
    targets: bool
    teacher: TeacherConfig
    input: str | list[str] = path()
    protocol: str | None = choice(*PROTOCOLS, default=None)
    output: str | None = path(None)
    name: str = file_name()
    cache: str | None = path(None)
    jitter: TeacherJitter = field(default_factory=TeacherJitter)
    synthetic: WorldSet
    rgbd: RgbdFormat
    reference_flow: FlowSettings
    html: HtmlConfig
    short_side: int | None = ranged(14, 8192, None)
    precision: str = choice("auto", *DTYPES)
    device: str = device_name()
    threads: int | None = ranged(1, 1024, None)
    workers: int = ranged(1, 256)


def name_checkpoints(value: str | Sequence[str] | None) -> dict[str, str]:
    """Return {method: checkpoint} of "PATH", "NAME:PATH" or a list of them; a single nameless one is "student".

    Raises:
        UserError: two students of one name.
    """
    entries = _listed(value)
    named = [_named(entry, "student" if len(entries) == 1 else Path(entry).parent.name or entry) for entry in entries]
    return _by_name("checkpoint", named)


def name_predictions(
    value: str | Sequence[str], kinds: str | Sequence[str], scales: str | Sequence[str], alone: bool
) -> list[Prediction]:
    """Return recorded depth by method, of "PATH", "NAME:PATH" or a list; nameless ones are called like their folders.

    kinds, scales: "NAME:VALUE", or one value for all. alone: there is one clip.

    Raises:
        UserError: two of one name, a value for no prediction, or one that is no kind or scale.
    """
    roots = _by_name("prediction", [_named(entry, Path(entry).stem) for entry in _listed(value)])
    kind_of, scale_of = (
        _values_by_name(key, entries, roots)
        for key, entries in (("prediction_kind", kinds), ("prediction_scale", scales))
    )
    predictions = []
    for name, root in roots.items():
        kind = None if name not in kind_of else parse_kind(kind_of[name], f"prediction_kind of '{name}'")
        try:
            scale = float(scale_of[name]) if name in scale_of else None
        except ValueError:
            raise UserError(f"prediction_scale of '{name}' must be a number; got '{scale_of[name]}'") from None
        predictions.append(Prediction(name, Path(root), kind, scale, alone))
    return predictions


def _values_by_name(key: str, value: str | Sequence[str], names: Collection[str]) -> dict[str, str]:
    entries = [_named(entry, "") for entry in _listed(value)]
    if len(entries) == 1 and not entries[0][0]:
        return dict.fromkeys(names, entries[0][1])
    if unknown := [name for name, _ in entries if name not in names]:
        raise UserError(
            f"{key} has a value for '{unknown[0]}'; write NAME:VALUE for one of {', '.join(names) or 'none'}"
        )
    return _by_name(key, entries)


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _named(entry: str, default: str) -> tuple[str, str]:
    name, colon, rest = entry.partition(":")
    return (name, rest) if colon else (default, entry)


def _by_name(key: str, entries: Sequence[tuple[str, str]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, value in entries:
        if name in named:
            raise UserError(f"{key} names '{name}' twice; write NAME:FOLDER with a name of its own for each")
        named[name] = value
    return named
