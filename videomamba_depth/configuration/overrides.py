"""Overrides as a person writes them: what the schema types as text is taken as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.settings import Choice, Key, Text, declared

_NO_KEY = re.compile(r"[+~]*(@[^=]*)?(=.*)?", re.DOTALL)
_KEY = re.compile(r"(\+{0,2})([A-Za-z_][\w./]*)=(.*)", re.DOTALL)
_SWEEP = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(")
_ONE_OF = ("-r", "--run", "-m", "--multirun", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
_WITH_VALUE = ("-c", "--cfg", "-i", "--info", "-p", "--package", "-cn", "--config-name", "-cd", "--config-dir")
_FLAGS = {
    *_ONE_OF,
    *_WITH_VALUE,
    "-cp",
    "--config-path",
    "--resolve",
    "--hydra-help",
    "--version",
    "--experimental-rerun",
}
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


def quote_overrides(arguments: Sequence[str], schema: type, groups: Path, sweep: bool = False) -> list[str]:
    """Return command-line arguments in which every text is quoted that Hydra would read otherwise.

    Text is what follows the first `=` of a key that `schema` types as text, of an element of a list of texts, and of a
    config group. `null` stays what it is where the schema allows it, and so does every other argument.

    A key that YAML files need not name is marked so that Hydra takes it all the same.

    Args:
        groups: folder of the config groups.
        sweep: commas separate the values of a sweep (`--multirun`).
    """
    keys = {key.name: key for key in declared(schema)}
    return [_quote_override(argument, keys, groups, sweep) for argument in arguments]


def flags_last(arguments: Sequence[str]) -> list[str]:
    """Return arguments with Hydra's flags after the overrides: its parser takes no overrides on both sides of one.

    Raises:
        UserError: there is no such flag, or two of them exclude each other.
    """
    flags: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_flag = argument.startswith("-") or (before in _WITH_VALUE and "=" not in argument)
        (flags if is_flag else overrides).append(argument)
    names = [flag.partition("=")[0] for flag in flags if flag.startswith("-")]
    if unknown := [name for name in names if name not in _FLAGS]:
        raise UserError(f"config: there is no flag '{unknown[0]}'; keys are given as KEY=VALUE, --help lists them")
    if len(exclusive := [name for name in names if name in _ONE_OF]) > 1:
        raise UserError(f"config: {exclusive[0]} and {exclusive[1]} exclude each other; leave one out")
    return overrides + flags


def _quote_override(argument: str, keys: dict[str, Key], groups: Path, sweep: bool) -> str:
    if _NO_KEY.fullmatch(argument):
        raise UserError(f"config: '{argument}' names no key; an override is KEY=VALUE")
    match = _KEY.fullmatch(argument)
    if match is None:
        return argument
    prefix, name, value = match.groups()
    key = keys.get(name) or keys.get(f"{name.rpartition('.')[0]}.*")
    if key is not None and key.may_lack:
        prefix = "++"  # set it, whether a YAML file names it or not
        argument = f"++{name}={value}"
    if key is None and (groups / name).is_dir():
        key = Key(name, str, False, False, False, Text())
    if key is None or not isinstance(key.allowed, Text | Choice) or (sweep and _SWEEP.match(value)):
        return argument
    values = list(split_values(value)) if sweep and "," in value else [value]
    return f"{prefix}{name}={','.join(_quote_value(key, text) for text in values)}"


def _quote_value(key: Key, value: str) -> str:
    """Return a value as Hydra is to read it: a list of texts, null, or text."""
    assert isinstance(key.allowed, Text | Choice)
    written_as_list = value.startswith("[") and value.endswith("]")
    if isinstance(key.allowed, Text) and key.allowed.numbers and written_as_list:
        return value
    if key.is_list or (key.or_list and written_as_list):
        if not written_as_list:
            return value  # refused by the schema
        return f"[{','.join(map(quote, split_values(value[1:-1])))}]"
    return value if value == "null" and key.is_optional else quote(_not_missing(key, value))


def _not_missing(key: Key, value: str) -> str:
    """Return a text that OmegaConf takes for a value; `???` is its sign for a missing one."""
    if value != "???":
        return value
    if isinstance(key.allowed, Text) and key.allowed.is_path:
        return "./???"
    raise UserError(f"{key.name} cannot be '???', which stands for a value that is missing; choose another")


def quote(value: str) -> str:
    """Return `value`, quoted where Hydra would not read just this text."""
    try:
        read = OverridesParser.create().parse_override(f"key={value}")
        plain = not read.is_sweep_override() and isinstance(read.value(), str) and read.value() == value
    except HydraException:
        plain = False
    if plain and "${" not in value and value == value.strip():
        return value
    literal = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", value)
    return QuotedString(literal, Quote.single).with_quotes()


def split_values(values: str) -> Iterator[str]:
    """Yield what stands between the commas that are in no bracket and no quotes; quotes around a whole part go."""
    depth, quote_mark, part = 0, "", ""
    if not values.strip():
        return
    for character in values:
        if quote_mark:
            quote_mark = "" if character == quote_mark and not part.endswith("\\") else quote_mark
        elif character in "'\"" and not part.strip():
            quote_mark = character
        elif character in _BRACKETS:
            depth += 1
        elif character in _BRACKETS.values():
            depth -= 1
        elif character == "," and depth <= 0:
            yield _unquoted(part)
            part, depth = "", 0
            continue
        part += character
    yield _unquoted(part)


def _unquoted(part: str) -> str:
    part = part.strip()
    if len(part) > 1 and part[0] in "'\"" and part[0] == part[-1]:
        return re.sub(rf"\\([\\{part[0]}])", r"\1", part[1:-1])
    return part
