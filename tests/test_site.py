"""The pages of the site are all listed, and links between them lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = runpy.run_path(str(ROOT / "docs/site_pages.py"))


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([a-z_]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.name for path in ROOT.glob("docs/*.md")]
    assert sorted(listed) == sorted([*pages, *SITE["PAGES"].values()])


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("README.md", "[a](docs/flow.md#x) [b](LICENSE)", "[a](flow.md#x) [b](LICENSE)"),
        ("docs/flow.md", "[a](../README.md#y) [b](figures/a.png)", "[a](index.md#y) [b](figures/a.png)"),
        ("docs/flow.md", "[a](https://a.org/b.md) [b](#c)", "[a](https://a.org/b.md) [b](#c)"),
        ("kernels/selective_scan/README.md", "[a](../../docs/flow.md)", "[a](flow.md)"),
    ],
)
def test_links_lead_to_where_pages_lie_in_the_site(source: str, text: str, expected: str) -> None:
    assert SITE["with_links_of_the_site"](text, source) == expected


def test_links_between_files_of_the_repository_lead_somewhere() -> None:
    pages = [ROOT / name for name in SITE["PAGES"]] + sorted(ROOT.glob("docs/*.md"))
    lost = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in pages
        for path in re.findall(r"\]\((?![a-z]+:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / path).exists()
    ]
    assert lost == []
