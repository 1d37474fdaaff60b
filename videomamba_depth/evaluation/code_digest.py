"""What kept results are keyed by, besides their inputs: the code that decides them, and the libraries it runs on.

The digest of a module covers the module and all of ours that it imports, however far down, as syntax trees without
docstrings, so that neither words nor formatting throw results away. Files count by what they hold, not by where they
lie: a module that only moves, and its importers, keep their digest.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

OURS = ("videomamba_depth", "selective_scan")
"""Packages whose files are read; everything else counts by its version."""

DISTRIBUTIONS = {"cv2": ("opencv-python", "opencv-python-headless"), "PIL": ("pillow",)}
"""Where a library is not installed under the name that it is imported by."""

NATIVE_SUFFIXES = frozenset({".cpp", ".h", ".cu"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def code_digest(*modules: str) -> str:
    """Return 12 hex digits that change when the code of any of the modules does; worked out once per process.

    modules: dotted names, such as `function.__module__`, which a move does not leave behind.
    """
    return digest_of(modules, source_roots())


@cache
def source_roots() -> Mapping[str, Path]:
    """Return where each of our packages lies."""
    return {name: Path(spec.origin).parent for name in OURS if (spec := find_spec(name)) and spec.origin}


def digest_of(modules: Iterable[str], roots: Mapping[str, Path]) -> str:
    """Return the digest of `modules` with our packages at `roots` = {package: folder}.

    Raises:
        ModuleNotFoundError: one of `modules` has no file there.
    """
    files = closure(modules, roots)
    sources = [_source(file) for file in files.values()]
    contents = {source.digest for source in sources}
    native = {_native(roots[package]) for package in {name.partition(".")[0] for name in files}}
    versions = {f"{library} {_version(library)}" for source in sources for library in source.libraries}
    return _sha256(*sorted(contents), *sorted(native), *sorted(versions))[:12]


def closure(modules: Iterable[str], roots: Mapping[str, Path]) -> dict[str, Path]:
    """Return {module: file} of `modules` and of all of ours that they import, however far down; as `digest_of`."""
    waiting, found = list(modules), dict[str, Path]()
    file_of = cache(partial(_file, roots=roots))
    if unknown := [name for name in waiting if file_of(name) is None]:
        raise ModuleNotFoundError(f"no source file of module {unknown[0]}")
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if name in found or file is None:
            continue
        found[name] = file
        for module, member in _source(file).imports:
            base = _absolute(module, name, file)
            inside = f"{base}.{member}"
            # `from package import x` needs the package's own code only where x is not a module of it.
            waiting.append(inside if member and file_of(inside) else base)
    return found


@dataclass(frozen=True)
class _Source:
    """One file: a digest of what it says, what of ours it imports as (module, member), and others' packages."""

    digest: str
    imports: tuple[tuple[str, str], ...]
    libraries: frozenset[str]


def _source(file: Path) -> _Source:
    about = file.stat()
    return _source_at(file, about.st_mtime_ns, about.st_size)


@cache
def _source_at(file: Path, mtime_ns: int, size: int) -> _Source:
    return _read(file.read_text(encoding="utf-8"))


@cache
def _read(text: str) -> _Source:
    reduced = _Reduced()
    reduced.add(ast.parse(text))
    return _Source(
        _sha256("".join(reduced.tokens), *sorted(reduced.bound)), tuple(reduced.imports), frozenset(reduced.libraries)
    )


class _Reduced:
    """What a syntax tree says without docstrings, and its imports, which then count without order or place."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.imports: list[tuple[str, str]] = []
        self.libraries: set[str] = set()
        self.bound: set[str] = set()

    def add(self, value: object) -> None:
        """Add a node, a list of nodes, or a plain value."""
        if isinstance(value, list):
            self.tokens.append("[")
            for item in value:
                self.add(item)
            self.tokens.append("]")
        elif not isinstance(value, ast.AST):
            self.tokens.append(f"{value!r},")
        elif isinstance(value, ast.Import):
            for alias in value.names:
                self._import(alias.name, "", alias.asname or "")
        elif isinstance(value, ast.ImportFrom):
            for alias in value.names:
                self._import("." * value.level + (value.module or ""), alias.name, alias.asname or "")
        elif not _is_for_type_checkers(value):
            self._node(value)

    def _node(self, node: ast.AST) -> None:
        self.tokens.append(f"{type(node).__name__}(")
        for name in node._fields:
            if name == "ctx":  # Load or Store, which the place says already
                continue
            value = getattr(node, name, None)
            if name == "body" and isinstance(node, _DOCUMENTED):
                value = [statement for statement in node.body if not _is_text(statement)]
            self.add(value)
        self.tokens.append(")")

    def _import(self, module: str, member: str, name: str) -> None:
        top = module.partition(".")[0]
        ours = top in OURS or not top
        self.bound.add(f"{'' if ours else module} {member} {name}")
        if ours:
            self.imports.append((module, member))
        elif top not in sys.stdlib_module_names:
            self.libraries.add(top)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a bare string: a docstring, or the words under a constant."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _absolute(module: str, importer: str, file: Path) -> str:
    """Return a module's full name; relative ones begin with dots."""
    rest = module.lstrip(".")
    level = len(module) - len(rest)
    if level == 0:
        return module
    package = importer.split(".") if file.name == "__init__.py" else importer.split(".")[:-1]
    return ".".join([*package[: len(package) - level + 1], *([rest] if rest else [])])


def _file(module: str, roots: Mapping[str, Path]) -> Path | None:
    """Return the file of one of our modules; None where there is none."""
    top, *rest = module.split(".")
    if top not in roots:
        return None
    path = roots[top].joinpath(*rest)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


@cache
def _native(root: Path) -> str:
    """Return a digest of a package's C++ and CUDA, without comments and spacing."""
    files = sorted(file for file in root.rglob("*") if file.suffix in NATIVE_SUFFIXES)
    return _sha256(*sorted(" ".join(_without_comments(file).split()) for file in files))


def _without_comments(file: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", file.read_text(encoding="utf-8"), flags=re.DOTALL)


@cache
def _version(library: str) -> str:
    for distribution in DISTRIBUTIONS.get(library, (library,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _sha256(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}\0{text}".encode())
    return digest.hexdigest()
