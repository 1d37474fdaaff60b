"""The project says things in the words of its field, in American spelling: names, config keys, comments and prose.

Meanings of a word that the field knows are allowed by patterns, such as the row of a table or "in front of".
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("videomamba_depth", "kernels", "scripts", "tests", "benchmarks", "examples", "configs", "docs", "compat")
FILES = ("train.py", "inference_streaming.py", "setup.py", "README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")
KINDS = (".py", ".yaml", ".md", ".toml", ".js", ".css", ".html", ".j2", ".cpp", ".h")
OLD_NAMES = (  # they hold the names of before, so that users of them are told the new ones
    "videomamba_depth/configuration/old_keys.py",
    "tests/configuration/test_old_keys.py",
    "tests/test_vocabulary.py",
)


class Rule(NamedTuple):
    """A word that is not used, what is said in its place, and where it means something else."""

    word: str  # regular expression of a whole word
    instead: str
    allowed: str = r"(?!)"  # regular expression of a phrase in which it may stand; matches nothing by default
    within: str = ""  # regular expression of the paths that are read; empty: all


PROSE = [
    Rule("afresh", "again, or reset", r"^\"?afresh\"?$"),  # a key of files that version 0.1.0 saved
    Rule(
        "behind",
        "after",
        r"(falls?|left|leaves?|lags?|lies|hidden) behind|"
        r"behind (glass|(the|an?|another) (\w+ )?(camera|wall|surface|object))",
    ),
    Rule("desks?", "context", r"table or desk|^desk$"),  # furniture, and the name of a recording
    Rule("fresh(ly)?", "new, or held-out"),
    Rule(
        "fronts?",
        "Pareto front",
        r"in front|Pareto fronts?|front cameras?|building whose front|front\.(mp4|mov)|\"front\"|^front$",
    ),  # the last two: where a CLS token stands
    Rule("gauges?", "affine ambiguity, or scale and shift"),
    Rule("guests?", "upload"),
    Rule("judg(e|es|ed|ing)", "score, or evaluate"),
    Rule("lanes?", "queue", within=r"\.(py|md|yaml)$"),  # in C++ they are those of a vector
    Rule("(an?|the|its|their|each|every) look|looks? of", "appearance, or descriptor"),
    Rule("ours", "nothing: what has no source is the project's own", r"of ours|ours (or|and)|or ours"),
    Rule("prices?", "cost"),
    Rule(  # not those of a table, a picture or a file
        r"(baselines?|students?|student's|teacher's|filters?|untrained|faulty|broken|depth) rows?|"
        r"rows? (beside|minus)|row's",
        "method, or baseline",
        within="evaluat|ablat|results",
    ),
    Rule("whole or not at all", "atomic"),
    Rule("(errors )?that a person can cause", "user errors"),
    Rule("freed of (its |their )?flicker", "smoothed over time along optical flow"),
    Rule("strangers may send", "untrusted uploads"),
    Rule("cannot hold still", "recurrent refinement at output resolution"),
]
STORED = (  # names in teacher caches that version 0.1.0 wrote too, and names of its own that a benchmark needs
    r"^stabilised(_scale|/c/0/0/0)?$|stabilised(_digest|_scale)? +(float16|float32|uint8)|/ stabilised_scale|"
    r"attributes +stabilised:|chunk 0 of stabilised|^loss=stabilised$|^_stabilised$"
)
SPELLING = [
    Rule(rf"\w*{british}\w*", american, STORED)
    for british, american in (
        ("colour", "color"), ("behaviour", "behavior"), ("neighbour", "neighbor"), ("favour", "favor"),
        ("honour", "honor"), ("centr(e|ed|es|ing)", "center"), ("fibre", "fiber"), ("metres?", "meter"),
        ("grey", "gray"), ("licence", "license"), ("artefact", "artifact"), ("catalogue", "catalog"),
        ("(anal|paral)ys(e|ed|ing)", "yze"),
        ("(normal|stabil|initial|optim|summar|minim|maxim|general|organ|recogn|quant|discret|regular|synchron|serial"
         "|character|emphas|memor|penal|random|standard|util|vector|linear|visual|color)is(e|ed|es|ing|er|ation|ations)",
         "ize"),
    )
]  # fmt: skip
NAMES = {
    "afresh": "again", "behind": "after", "desk": "context", "desks": "contexts", "fresh": "new, or held_out",
    "freshly": "newly", "front": "pareto_front", "fronts": "pareto_fronts", "gauge": "affine", "guest": "upload",
    "guests": "uploads", "judge": "score", "judged": "scored", "judges": "scores", "judging": "scoring",
    "lane": "queue", "lanes": "queues", "look": "descriptor", "looks": "descriptors", "price": "cost",
    "prices": "costs",
}  # fmt: skip
NAMES_ALONE = {"told", "said", "why", "there", "way", "how"}  # not as a variable; a test's name is a sentence
ROWS_OF_PICTURES_AND_FILES = {"row", "rows", "image_row", "_pose_rows", "_jumps_of_rows"}
ALLOWED_NAMES = re.compile(
    r"look_?at|look[-_]?(ups?|ahead)|Cancelled|pareto[-_]?fronts?|in[-_]front|"
    r"lcam_front|freiburg2_desk|evaluate_fresh|memory_fronts|index_behind",
    re.IGNORECASE,
)  # the second line: names that others gave, of a former script, of a key in saved results and of a kind of file
LITERAL_NAMES = {  # a cupboard's front, a road's lane, those of a vector, and where a CLS token stands
    ("videomamba_depth/data/synthetic/household.py", "front"),
    ("videomamba_depth/data/synthetic/outdoors.py", "lane"),
    ("kernels/selective_scan/triton_kernels/scan.py", "lane"),
    ("tests/video_mamba/test_vim_options.py", "front"),
}


class Place(NamedTuple):
    """A file's line, and what stands there."""

    path: str
    line: int
    text: str


@cache
def paths() -> list[str]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    named = [path.relative_to(ROOT).as_posix() for path in [*found, *(ROOT / name for name in FILES)]]
    return sorted(set(named) - set(OLD_NAMES))


@cache
def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tokens(path: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(read(path)).readline))


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every string of a module, the fixed parts of f-strings too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@cache
def prose() -> list[Place]:
    """Return every comment and string of Python files, and every line of all others."""
    places = []
    for path in paths():
        text = read(path)
        if not path.endswith(".py"):
            places += [Place(path, number, line) for number, line in enumerate(text.splitlines(), 1)]
            continue
        places += [Place(path, t.start[0], t.string) for t in tokens(path) if t.type == tokenize.COMMENT]
        for first, value in strings(ast.parse(text)):
            places += [Place(path, first + offset, line) for offset, line in enumerate(value.splitlines())]
    return places


@cache
def names() -> list[Place]:
    """Return every name of Python files, once per file and name."""
    places = {}
    for path in paths():
        if path.endswith(".py"):
            for token in tokens(path):
                if token.type == tokenize.NAME:
                    places.setdefault((path, token.string), Place(path, token.start[0], token.string))
    return list(places.values())


def names_within(text: str) -> list[str]:
    """Return the names in a line of prose: words joined by underscores, hyphens or a change of case."""
    return [name for name in re.findall(r"[A-Za-z][\w-]*\w", text) if re.search(r"[_-]|[a-z][A-Z]", name)]


def words_within(names_read: Iterable[str]) -> set[str]:
    """Return the words of names, without what is allowed."""
    return {word for name in names_read for word in words_of(ALLOWED_NAMES.sub("", name))}


@cache
def prose_by_word() -> dict[str, list[Place]]:
    """Return the lines of prose, but for those of C++, in whose names each word of `NAMES` stands."""
    found: dict[str, list[Place]] = {}
    for place in prose():
        if not place.path.startswith("kernels/selective_scan/cpp"):  # lanes of vectors
            for word in words_within(names_within(place.text)) & NAMES.keys():
                found.setdefault(word, []).append(place)
    return found


@cache
def words_of(name: str) -> list[str]:
    """Split a name at underscores and where the case changes."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def broken(rule: Rule, place: Place) -> bool:
    """Tell whether a word stands in a line otherwise than in an allowed phrase."""
    if rule.within and not re.search(rule.within, place.path):
        return False
    word = re.compile(rf"(?<![\w-])({rule.word})(?![\w-])", re.IGNORECASE)
    return bool(word.search(place.text)) and bool(
        word.search(re.sub(rule.allowed, " ", place.text, flags=re.IGNORECASE))
    )


def report(places: list[Place], instead: str) -> str:
    lines = [f"{place.path}:{place.line}: {place.text.strip()[:120]}" for place in places]
    return "\n".join([f"say {instead}:", *lines])


@pytest.mark.parametrize("rule", [*PROSE, *SPELLING], ids=lambda rule: rule.instead)
def test_prose_uses_the_words_of_the_field(rule: Rule) -> None:
    found = [place for place in prose() if broken(rule, place)]
    assert not found, report(found, rule.instead)


@pytest.mark.parametrize("word", sorted(NAMES))
def test_names_use_the_words_of_the_field(word: str) -> None:
    found = [
        place
        for place in names()
        if word in words_within([place.text]) and (place.path, place.text) not in LITERAL_NAMES
    ]
    found += prose_by_word().get(word, [])
    assert not found, report(found, NAMES[word])


def test_a_method_is_no_row() -> None:
    found = [
        place
        for place in names()
        if re.search("evaluat|ablat", place.path)
        and {"row", "rows"} & set(words_of(place.text))
        and place.text not in ROWS_OF_PICTURES_AND_FILES
        and not place.text.startswith("test_")
    ]
    assert not found, report(found, "method")


def test_names_are_nouns() -> None:
    found = [
        place
        for place in names()
        if place.text.strip("_") in NAMES_ALONE or set(words_of(place.text)[:1]) & NAMES_ALONE
    ]
    assert not found, report(found, "what it is")


@pytest.mark.parametrize("rule", SPELLING, ids=lambda rule: rule.instead)
def test_names_are_spelled_as_the_libraries_do(rule: Rule) -> None:
    found = [
        place
        for place in names()
        if any(re.fullmatch(rule.word, word) for word in words_of(place.text)) and not ALLOWED_NAMES.search(place.text)
    ]
    assert not found, report(found, rule.instead)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("it starts afresh", True),
        ("the frame behind it", True),
        ("a point behind the camera", False),
        ("in front of a wall", False),
        ("the front of all baselines", True),
        ("the Pareto front", False),
        ("normalised", True),
        ("normalized, otherwise noise", False),
        ("Colour", True),
        ("geometric", False),
        ("in metres", True),
        ("a refreshed page", False),
        ("the image row in which the teacher jumps", False),
        ("the student's row", True),
        ("what a view looks like", False),
        ("the look of a view", True),
    ],
)
def test_the_rules_themselves(text: str, wrong: bool) -> None:
    assert any(broken(rule, Place("docs/results.md", 1, text)) for rule in [*PROSE, *SPELLING]) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("fresh_clips: 4", True),
        ("call `judge_clip` first", True),
        ("a fresh-looking clip", True),
        ("see `FreshClips`", True),
        ("the_lane: 1", True),
        ("front_of_all", True),
        ("`ParetoFront`, `pareto_front` and look-ups", False),
        ("a refreshed_page", False),
        ("the index_in_front", False),
    ],
)
def test_names_in_prose_are_read(text: str, wrong: bool) -> None:
    assert bool(words_within(names_within(text)) & NAMES.keys()) == wrong
