"""What the value of a key may be, declared beside its type in the schema, and the one walk that checks all of them.

    steps: int = ranged(1, 10**9)
    betas: list[float] = ranged(0, 1, open="high", length=2)
    form: str = choice("innovation", "plain")
    root: str | None = path()

The declarations are metadata of the dataclass fields, so that what refuses a value can also be read: `declared`.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from videomamba_depth.utils.device import DTYPES as _TORCH_DTYPES
from videomamba_depth.utils.errors import UserError

DTYPES = tuple(_TORCH_DTYPES)
_ALLOWED = "allowed"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both in it unless `open` says otherwise; NaN is never in it.

    Attributes:
        length: how many numbers a list holds, at least and at most.
    """

    low: float
    high: float
    open: Literal["", "low", "high", "both"] = ""
    length: tuple[int, int] = (1, 64)

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        return above and (value < self.high if self.open in ("high", "both") else value <= self.high)

    def __str__(self) -> str:
        if (self.low == 0 and self.open == "low") or (self.low == 1 and isinstance(self.low, int)):
            return f"positive and at most {self.high:.10g}"
        left, right = "(" if self.open in ("low", "both") else "[", ")" if self.open in ("high", "both") else "]"
        return f"in {left}{self.low:.10g}, {self.high:.10g}{right}"


@dataclass(frozen=True)
class Choice:
    """One of some words; of a list, each element."""

    options: tuple[str, ...]
    length: tuple[int, int] = (0, 64)

    def __contains__(self, value: str) -> bool:
        return value in self.options

    def __str__(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Text:
    """Any text, taken from the command line as it is.

    Attributes:
        pattern: what all of it must match; `meaning`: the same in words.
        is_path: a leading `~` is the home folder.
        is_named: `NAME:PATH` is a path too, with a name before it.
        is_list: `[A,B]` is a list of texts, where the type says nothing.
        numbers: what `[1,2]` may hold in place of a text.
    """

    pattern: str = r"[^\0]+"
    meaning: str = "text, not empty"
    is_path: bool = False
    is_named: bool = False
    is_list: bool = False
    numbers: Range | None = None
    length: tuple[int, int] = (0, 10_000)

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None

    def __str__(self) -> str:
        return self.meaning

    def expanded(self, value: str) -> str:
        """Return a path with its leading `~` replaced; other text unchanged."""
        name, colon, rest = value.partition(":") if self.is_named and not value.startswith("~") else ("", "", value)
        return f"{name}{colon}{os.path.expanduser(rest)}" if self.is_path else value


Allowed = Range | Choice | Text


def ranged(
    low: float,
    high: float,
    default: Any = MISSING,
    *,
    open: Literal["", "low", "high", "both"] = "",
    length: int | tuple[int, int] = (1, 64),
) -> Any:
    """Declare a number, or a list of `length` numbers, between two bounds; `open` names those that are not in it."""
    return _declare(Range(low, high, open, (length, length) if isinstance(length, int) else length), default)


def choice(*options: str, default: Any = MISSING, length: tuple[int, int] = (0, 64)) -> Any:
    """Declare one of `options`, or a list of them."""
    return _declare(Choice(options, length), default)


def text(pattern: str = Text.pattern, meaning: str = Text.meaning, default: Any = MISSING) -> Any:
    """Declare a text, or a list of them, that match a regular expression; `meaning` says it in words."""
    return _declare(Text(pattern, meaning), default)


def texts_by_name() -> Any:
    """Declare lists of texts under names of the user's own."""
    return field(default_factory=dict, metadata={_ALLOWED: Text()})


def path(default: Any = MISSING, *, named: bool = False, is_list: bool = False, numbers: Range | None = None) -> Any:
    """Declare a path, or what may be one: a leading `~` is the home folder; `named`: also behind a `NAME:`."""
    meaning = "a path, not empty" if numbers is None else f"a path, or a list of numbers {numbers}"
    return _declare(Text(r"[^\0]+", meaning, True, named, is_list, numbers), default)


def file_name(default: Any = MISSING) -> Any:
    """Declare what files or folders are called by; `a/b` is a folder in a folder."""
    part = r"""(?!\.{1,2}(/|$))(?=[^/]*[^/'"\s])[^/\0\n]+"""
    return _declare(Text(rf"{part}(/{part})*", "a name, not empty and without '.' or '..' as a part"), default)


def device_name(default: Any = MISSING) -> Any:
    """Declare where a model runs."""
    return _declare(Text(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N"), default)


def _declare(allowed: Allowed, default: Any) -> Any:
    return field(default=default, metadata={_ALLOWED: allowed})


@dataclass(frozen=True)
class Key:
    """One key of a schema.

    Attributes:
        name: in full, such as "model.s1.heads".
        kind: bool, int, float, str or Any: of the value, or of the elements where `is_list`.
    """

    name: str
    kind: Any
    is_list: bool
    is_optional: bool
    allowed: Allowed | None


def declared(schema: type, prefix: str = "") -> Iterator[Key]:
    """Yield every key of a schema, nested ones too."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        hint, full = hints[item.name], prefix + item.name
        if is_dataclass(hint):
            yield from declared(hint, f"{full}.")  # type: ignore[arg-type]
            continue
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        inner = next(member for member in members if member is not type(None))
        is_list, is_optional = get_origin(inner) is list, type(None) in members
        if get_origin(inner) is dict:
            full, inner, is_list = f"{full}.*", get_args(get_args(inner)[1])[0], True
        elif is_list:
            inner = get_args(inner)[0]
        yield Key(full, inner, is_list, is_optional, item.metadata.get(_ALLOWED))


def check_groups(schema: type, config: Mapping[str, Any], prefix: str = "") -> None:
    """Check that groups of keys hold keys, and that no number stands for true or false.

    Raises:
        UserError: one holds something else; the message names it in full.
    """
    hints = get_type_hints(schema)
    for name, value in config.items():
        if is_dataclass(hints.get(name)):
            if not isinstance(value, Mapping):
                raise UserError(f"{prefix}{name} is a group of keys; got '{value}': set {prefix}{name}.KEY")
            check_groups(hints[name], value, f"{prefix}{name}.")
        elif hints.get(name) is bool and isinstance(value, int | float) and not isinstance(value, bool):
            raise UserError(f"{prefix}{name} must be true or false; got {value}")


def check_values(schema: type, values: Mapping[str, Any]) -> None:
    """Check the values of a config, nested as its schema, against what the schema declares.

    Raises:
        UserError: a value is not allowed; the message names its key in full.
    """
    for key in declared(schema):
        value: Any = values
        for part in key.name.split("."):
            value = [text for texts in value.values() for text in texts] if part == "*" else value[part]
        if value is not None and key.allowed is not None:
            _check(key, value)


def _check(key: Key, value: Any) -> None:
    allowed = key.allowed
    if isinstance(allowed, Text) and allowed.numbers and isinstance(value, list):
        allowed = allowed.numbers
    assert allowed is not None
    if isinstance(value, list):
        low, high = allowed.length
        if not low <= len(value) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise UserError(f"{key.name} must hold {wanted} values; got {value}")
    for element in value if isinstance(value, list) else [value]:
        fits = isinstance(element, int | float) if isinstance(allowed, Range) else isinstance(element, str)
        if isinstance(element, bool) or not fits or element not in allowed:
            shown = f"'{element}'" if isinstance(element, str) else element
            raise UserError(f"{key.name} must be {allowed}; got {shown}")


def expand_paths(schema: type, config: Any) -> None:
    """Replace a leading `~` in every path of `config`, an instance of `schema`, in place."""
    for key in declared(schema):
        if isinstance(key.allowed, Text) and key.allowed.is_path:
            *folders, last = key.name.split(".")
            owner = config
            for folder in folders:
                owner = getattr(owner, folder)
            value = getattr(owner, last)
            if isinstance(value, str):
                setattr(owner, last, key.allowed.expanded(value))
            elif isinstance(value, list):
                setattr(owner, last, [key.allowed.expanded(v) if isinstance(v, str) else v for v in value])
