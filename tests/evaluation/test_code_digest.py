"""Keys of kept results: code that decides numbers changes them; words, formatting and places do not."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from videomamba_depth.evaluation import code_digest as module
from videomamba_depth.evaluation import context, feature_average, model_methods, recurrence
from videomamba_depth.evaluation.code_digest import closure, digest_of, source_roots
from videomamba_depth.evaluation.datasets import world_kinds, worlds
from videomamba_depth.evaluation.metrics import registry
from videomamba_depth.flow.estimators import DISFlow
from videomamba_depth.models import checkpoint, encoder_da

KINDS = {
    "world": (world_kinds.__name__,),
    "teacher": (feature_average.__name__, encoder_da.__name__),
    "scores": (registry.__name__, context.__name__, recurrence.__name__),
    "student": (model_methods.__name__, checkpoint.__name__),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy of our sources, {package: folder}."""
    root = tmp_path_factory.mktemp("sources")
    only_code = shutil.ignore_patterns("assets", "__pycache__", "*.html", "static")
    return {name: Path(shutil.copytree(path, root / name, ignore=only_code)) for name, path in source_roots().items()}


def digests(roots: dict[str, Path]) -> dict[str, str]:
    module._native.cache_clear()
    return {kind: digest_of(names, roots) for kind, names in KINDS.items()}


# What is changed, by a pattern that finds it wherever it lies, and the kinds of results that it decides.
CHANGES = {
    "the forward-backward test": (r"\n(def consistency_mask\()", r"\n@changed\n\1", {"world", "teacher", "scores"}),
    "the least coverage of a pair": (r"(\nMIN_COVERAGE = )", r"\1 2 *", {"world", "scores"}),
    "what is fast": (r"(\nFAST_PERCENTILE = )", r"\1 0.5 *", {"scores"}),
    "the strength of the feature average": (r"(\nDEFAULT_ALPHA = )", r"\1 0.5 *", {"teacher"}),
    "how a frame is encoded": (r"(\n +)(def encode_frame\()", r"\1@changed\1\2", {"teacher", "student"}),
    "the C++ of the scan": (r"(\breturn )", r"\g<1>0 + ", {"student"}),
    "the C++ of the flow": (r"(\breturn )", r"\g<1>0 + ", {"world", "scores", "teacher", "student"}),
}
UNTOUCHED = {"what is fast": {"world", "teacher"}}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_numbers_changes_the_key(change: str, copy: dict[str, Path]) -> None:
    before = digests(copy)
    pattern, replacement, kinds = CHANGES[change]
    native = "C++" in change
    files = [file for root in copy.values() for file in root.rglob("*.[ch]*" if native else "*.py")]
    folder = {"the C++ of the scan": "selective_scan", "the C++ of the flow": "flow"}.get(change)
    texts = {file: file.read_text() for file in files if folder is None or folder in file.parts}
    found = {f: re.sub(pattern, replacement, text, count=1, flags=re.DOTALL) for f, text in texts.items()}
    found = {f: text for f, text in found.items() if text != texts[f]}
    assert found
    try:
        for file, text in found.items():
            file.write_text(text)
        after = digests(copy)
    finally:
        for file in found:
            file.write_text(texts[file])
    changed = {kind for kind in KINDS if after[kind] != before[kind]}
    assert changed >= kinds
    assert not changed & UNTOUCHED.get(change, set())


def test_words_and_formatting_change_no_key(copy: dict[str, Path]) -> None:
    before = digests(copy)
    rewritten = {}
    for file in closure(KINDS["scores"], copy).values():
        rewritten[file] = file.read_text()
        tree = ast.parse(rewritten[file])
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and module._is_text(body[0]):
                body[0].value.value = "Other words."
        file.write_text("# another comment\n" + ast.unparse(tree) + "\n\n\n")
    try:
        assert digests(copy) == before
    finally:
        for file, text in rewritten.items():
            file.write_text(text)


def test_a_move_changes_no_key(tmp_path: Path) -> None:
    def write(layout: dict[str, str]) -> dict[str, Path]:
        root = Path(tmp_path / str(len(list(tmp_path.iterdir()))) / "videomamba_depth")
        for name, text in layout.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return {"videomamba_depth": root}

    maths = "import numpy as np\n\n\ndef f(x):\n    return np.sqrt(x)\n"
    old = write({"a/maths.py": maths, "a/use.py": "from .maths import f\nimport os\n\n\ndef g():\n    return f(2)\n"})
    use = "import os\n\nfrom videomamba_depth.b.c.maths import f\n\n\ndef g():\n    return f(2)\n"
    new = write({"b/c/maths.py": maths, "d/use.py": use, "b/__init__.py": '"""A folder."""\n'})
    other = write({"b/c/maths.py": maths.replace("sqrt", "cbrt"), "d/use.py": use})
    key = digest_of(["videomamba_depth.a.use"], old)
    assert digest_of(["videomamba_depth.d.use"], new) == key
    assert digest_of(["videomamba_depth.d.use"], other) != key
    with pytest.raises(ModuleNotFoundError, match=r"videomamba_depth\.a\.use"):
        digest_of(["videomamba_depth.a.use"], new)


def test_another_library_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(KINDS["world"], source_roots())
    versions = {"opencv-python": "0.0"}
    real = module.metadata.version
    monkeypatch.setattr(module.metadata, "version", lambda name: versions.get(name) or real(name))
    monkeypatch.setattr(module, "_version", module._version.__wrapped__)  # nothing is remembered
    assert digest_of(KINDS["world"], source_roots()) != before


def test_kept_worlds_lie_under_these_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def digest() -> str:
        (source,) = worlds.WorldSet(kinds=("moving",), videos=1).sources(tmp_path, DISFlow(), "dis")
        assert source.digest is not None
        return source.digest()

    before = digest()
    assert digest() == before
    monkeypatch.setattr(worlds, "code_digest", lambda *modules: "another")
    assert digest() != before
