"""Bring pages that lie outside docs/ into the site, their links to each other changed to suit; a hook of mkdocs.yml."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "kernels/selective_scan/README.md": "selective_scan.md",
}
"""Files of the repository, and what they are called in the site."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to the files of the site."""
    from mkdocs.structure.files import File

    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=with_links_of_the_site(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change the links of a page of docs/."""
    is_added = page.file.src_uri in PAGES.values()
    return markdown if is_added else with_links_of_the_site(markdown, f"docs/{page.file.src_uri}")


def with_links_of_the_site(text: str, source: str) -> str:
    """Return a page whose relative links lead from where it lies in the site to where their targets do.

    Args:
        text: Markdown.
        source: its file, relative to the repository.
    """
    folder = posixpath.dirname(source)

    def changed(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        target = posixpath.normpath(posixpath.join(folder, path))
        return f"]({PAGES.get(target, target.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", changed, text)
