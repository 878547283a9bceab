"""mkdocs hook: pages of the site that lie elsewhere in the repository, where people look for them first."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "i2e_pipeline/sample/README.md": "sample.md",
}
"""File of the repository → page of the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, page in ELSEWHERE.items():
        content = relinked((ROOT / path).read_text(encoding="utf-8"), path)
        files.append(File.generated(config, page, content=content))
    return files


def relinked(text: str, path: str) -> str:
    """Links of a file at `path` as its page on the site has them: relative to docs/."""

    def link(found: re.Match[str]) -> str:
        target = ((ROOT / path).parent / found[1]).resolve()
        inner = target.relative_to(ROOT).as_posix()
        return f"]({ELSEWHERE.get(inner, inner.removeprefix('docs/'))}{found[2] or ''})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", link, text)
