"""Settings: frozen dataclasses whose fields say what they may hold, and how they are read from plain values.

    @dataclass(frozen=True)
    class OutputSpec:
        gain: float = ranged(0, 1, 0.95, open="both")
        form: Literal["innovation", "plain"] = "innovation"
        root: str | None = path(None)

A component's own dataclass is the schema of its group of keys: what refuses a value is declared once, beside its type,
and a new key is a field here and a line in the YAML file. Types are bool, int, float, str, `Literal`, lists and tuples
of them, other settings, and `X | None`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from videomamba_depth.utils.errors import UserError

REQUIRED: Any = dataclasses.MISSING
"""Stands for a default where there is none."""

T = TypeVar("T")
_ALLOWED, _LIKE, _DERIVED, _INLINED = "allowed", "like", "derived", "inlined"


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
        numbers: what `[1,2]` may hold in place of a text.
    """

    pattern: str = r"[^\0]+"
    meaning: str = "text, not empty"
    is_path: bool = False
    is_named: bool = False
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
    default: Any = REQUIRED,
    *,
    open: Literal["", "low", "high", "both"] = "",
    length: int | tuple[int, int] = (1, 64),
) -> Any:
    """Declare a number, or a list of `length` numbers, between two bounds; `open` names those that are not in it."""
    return _declare(Range(low, high, open, (length, length) if isinstance(length, int) else length), default)


def choice(*options: str, default: Any = REQUIRED, length: tuple[int, int] = (0, 64)) -> Any:
    """Declare one of `options`, or a list of them."""
    return _declare(Choice(options, length), default)


def text(pattern: str = Text.pattern, meaning: str = Text.meaning, default: Any = REQUIRED) -> Any:
    """Declare a text, or a list of them, that match a regular expression; `meaning` says it in words."""
    return _declare(Text(pattern, meaning), default)


def texts_by_name() -> Any:
    """Declare lists of texts under names of the user's own."""
    return field(default_factory=dict, metadata={_ALLOWED: Text()})


def path(default: Any = REQUIRED, *, named: bool = False, numbers: Range | None = None) -> Any:
    """Declare a path, or what may be one: a leading `~` is the home folder; `named`: also after a `NAME:`."""
    meaning = "a path, not empty" if numbers is None else f"a path, or a list of numbers {numbers}"
    return _declare(Text(r"[^\0]+", meaning, True, named, numbers), default)


def file_name(default: Any = REQUIRED) -> Any:
    """Declare what files or folders are called by; `a/b` is a folder in a folder."""
    part = r"""(?!\.{1,2}(/|$))(?=[^/]*[^/'"\s])[^/\0\n]+"""
    return _declare(Text(rf"{part}(/{part})*", "a name, not empty and without '.' or '..' as a part"), default)


def device_name(default: Any = REQUIRED) -> Any:
    """Declare where a model runs."""
    return _declare(Text(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N"), default)


def _declare(allowed: Allowed, default: Any) -> Any:
    return field(default=default, metadata={_ALLOWED: allowed})


def like(other: str) -> Any:
    """Declare a group of keys that says only what differs from the group `other`, which is declared before it."""
    return field(metadata={_LIKE: other})


def derived(default: Any) -> Any:
    """Declare a field that is no key: whoever builds the component works it out."""
    return field(default=default, metadata={_DERIVED: True})


def inlined() -> Any:
    """Declare settings of a component whose keys stand among those of the group that holds it."""
    return field(metadata={_INLINED: True})


class Key(NamedTuple):
    """One key of a schema.

    Attributes:
        name: in full, such as "model.s1.heads".
        kind: bool, int, float or str: of the value, and of a list's elements.
        is_list, or_list: it must be, or may be, a list.
        may_lack: a YAML file need not name it, since its group may be null or says only what differs.
    """

    name: str
    kind: Any
    is_list: bool
    or_list: bool
    is_optional: bool
    allowed: Allowed | None
    may_lack: bool = False


def declared(schema: type, prefix: str = "", may_lack: bool = False) -> Iterator[Key]:
    """Yield every key of a schema, nested ones too."""
    for item, hint in _keys(schema):
        name, group = prefix + item.name, _group(hint)
        if group is not None and _INLINED in item.metadata:
            yield from declared(group, prefix, may_lack)
        elif group is None:
            yield _key(name, hint, item.metadata.get(_ALLOWED), may_lack)
        else:
            yield from declared(group, f"{name}.", may_lack or _is_optional(hint) or _LIKE in item.metadata)


def read_settings(schema: type[T], values: Mapping[str, Any], prefix: str = "", base: Any = None) -> T:
    """Return an instance of `schema` from plain values, nested as it is; a leading `~` of every path is replaced.

    Args:
        prefix: of the keys' names in messages.
        base: where a key is missing or null, its value is that of this instance.

    Raises:
        UserError: an unknown key, a missing value, a wrong type or a value that is not allowed, with the key's full
            name.
    """
    keys = _keys(schema)
    unknown = sorted(set(values) - _names(schema))
    if unknown:
        raise UserError(f"config: there is no key '{prefix}{unknown[0]}'; '--cfg job' prints all keys and values")
    read: dict[str, Any] = {}
    for item, hint in keys:
        name, value = item.name, values.get(item.name)
        if value is None and _LIKE in item.metadata:
            value = {}
        if _INLINED in item.metadata:
            own = {key: values[key] for key in _names(hint) & values.keys()}
            read[name] = read_settings(hint, own, prefix, getattr(base, name, None))
        elif value is None and base is not None:
            read[name] = getattr(base, name)
        elif name in values or value is not None:
            group = _group(hint)
            if group is None:
                read[name] = _read(_key(prefix + name, hint, item.metadata.get(_ALLOWED)), hint, value)
            elif value is None and _is_optional(hint):
                read[name] = None
            elif not isinstance(value, Mapping):
                off = f", or {prefix}{name}=null for none" if _is_optional(hint) else ""
                raise UserError(f"{prefix}{name} is a group of keys; got {_shown(value)}: set {prefix}{name}.KEY{off}")
            else:
                read[name] = read_settings(group, value, f"{prefix}{name}.", read.get(item.metadata.get(_LIKE, "")))
        elif item.default is REQUIRED and item.default_factory is REQUIRED:
            raise UserError(f"config: no value for {prefix}{name}; set it on the command line: {prefix}{name}=...")
    try:
        return schema(**read)
    except ValueError as error:  # from the schema's own __post_init__: values that do not fit each other
        group_name = prefix.removesuffix(".")
        raise UserError(str(error) if group_name in str(error) else f"{group_name}: {error}") from error


def to_values(settings: Any) -> dict[str, Any]:
    """Return settings as plain values, nested as they are: what `read_settings` reads."""
    values: dict[str, Any] = {}
    for item, _ in _keys(type(settings)):
        value = getattr(settings, item.name)
        plain = to_values(value) if is_dataclass(value) else value
        values |= plain if _INLINED in item.metadata else {item.name: plain}
    return values


def lacking_defaults(schema: type, flat: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the defaults that a schema declares for keys that a flat config, `{full key: value}`, lacks.

    Keys of a group that may be null are filled in only where another key of it is there.
    """
    lacking: dict[str, Any] = {}
    for item, hint in _keys(schema):
        name, group = prefix + item.name, _group(hint)
        if group is not None and _INLINED in item.metadata:
            lacking |= lacking_defaults(group, flat, prefix)
        elif group is not None:
            if not _is_optional(hint) or any(key.startswith(f"{name}.") for key in flat):
                lacking |= lacking_defaults(group, flat, f"{name}.")
        elif item.default is not REQUIRED and name not in flat:
            lacking[name] = list(item.default) if isinstance(item.default, tuple) else item.default
    return lacking


def check_settings(settings: Any) -> None:
    """Check the fields of an instance against what they declare; for `__post_init__` of a component's settings.

    Raises:
        ValueError: naming the field.
    """
    schema: type = type(settings)
    hints = _hints(schema)
    for item in fields(settings):
        hint = hints[item.name]
        if _group(hint) is None:
            problem = _problem(_key(item.name, hint, item.metadata.get(_ALLOWED)), getattr(settings, item.name))
            if problem is not None:
                raise ValueError(problem)


@cache
def _hints(schema: type) -> dict[str, Any]:
    """Return the types of a schema's fields; evaluated once, since every field of every instance is checked."""
    return get_type_hints(schema)


def _keys(schema: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields of a schema that are keys, with their types."""
    hints = _hints(schema)
    return [(item, hints[item.name]) for item in fields(schema) if _DERIVED not in item.metadata]


def _names(schema: type) -> set[str]:
    """Return the names of the keys and groups of a schema, without those in its groups."""
    return set().union(*(_names(hint) if _INLINED in item.metadata else {item.name} for item, hint in _keys(schema)))


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def _group(hint: Any) -> type | None:
    """Return the settings that a type stands for, optional ones too; None for any other type."""
    return next((member for member in _members(hint) if is_dataclass(member)), None)  # type: ignore[return-value]


def _key(name: str, hint: Any, allowed: Allowed | None, may_lack: bool = False) -> Key:
    members = [member for member in _members(hint) if member is not type(None)]
    lists = [member for member in members if get_origin(member) in (list, tuple)]
    if get_origin(members[0]) is dict:
        name, lists = f"{name}.*", [get_args(members[0])[1]]
        members = lists
    kind = members[0] if members != lists else get_args(lists[0])[0]
    if get_origin(kind) is Literal:
        allowed, kind = allowed or Choice(get_args(kind)), str
    return Key(name, kind, members == lists, bool(lists), _is_optional(hint), allowed, may_lack)


def _read(key: Key, hint: Any, value: Any) -> Any:
    """Return a value in the type that its field has."""
    if key.name.endswith(".*"):
        if not isinstance(value, Mapping):
            raise UserError(f"{key.name[:-2]} is a group of keys; got {_shown(value)}")
        return {name: _read(key._replace(name=f"{key.name[:-1]}{name}"), list, texts) for name, texts in value.items()}
    problem = _problem(key, value)
    if problem is not None:
        raise UserError(problem)
    if isinstance(value, list | tuple):
        is_tuple = any(get_origin(member) is tuple for member in _members(hint))
        return (tuple if is_tuple else list)(_converted(key, element) for element in value)
    return None if value is None else _converted(key, value)


def _converted(key: Key, value: Any) -> Any:
    if isinstance(value, str) and isinstance(key.allowed, Text):
        return key.allowed.expanded(value)
    return float(value) if key.kind is float else value


def _problem(key: Key, value: Any) -> str | None:
    """Say what is wrong with a value; None if nothing is."""
    allowed, shown = key.allowed, _shown(value)
    if value is None and key.is_optional:
        return None
    if key.kind is bool:
        return None if isinstance(value, bool) else f"{key.name} must be true or false; got {shown}"
    assert allowed is not None, key.name
    if isinstance(value, list | tuple):
        if isinstance(allowed, Text) and allowed.numbers:
            allowed = allowed.numbers
        elif not key.or_list:
            return f"{key.name} must be {allowed}; got {shown}"
        low, high = allowed.length
        if not low <= len(value) <= high:
            return f"{key.name} must hold {low if low == high else f'{low} to {high}'} values; got {list(value)}"
    elif key.is_list:
        return f"{key.name} must be a list, [A,B], of values {allowed}; got {shown}"
    kind: Any = (int, float) if key.kind is float or (key.kind is str and isinstance(allowed, Range)) else key.kind
    for element in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(element, kind) or isinstance(element, bool) or element not in allowed:
            whole = "a whole number, " if kind is int and isinstance(element, float) else ""
            return f"{key.name} must be {whole}{allowed}; got {_shown(element)}"
    return None


def _shown(value: Any) -> Any:
    return f"'{value}'" if isinstance(value, str) else "null" if value is None else value
