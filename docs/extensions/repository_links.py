"""Links of a page to files outside docs/ (code, configurations, results) lead to the repository on the web.

In the checkout and on GitHub the pages keep their relative links, which ``tests/test_docs.py`` follows.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]*)((?:#[^)]*)?\))")


def to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the relative links of one page that leave the folder of the documentation."""
    docs = Path(app.srcdir).resolve()
    folder = (docs / page).parent

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists():
            raise ExtensionError(f"{page} links to {match[2]}, which does not exist")
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(docs.parent).as_posix()
        return f"{match[1]}{app.config.repository_url}/{kind}/main/{path}{match[3]}"

    source[0] = LINK.sub(replaced, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("repository_url", "", "env", str)
    app.connect("source-read", to_repository)
    return {"parallel_read_safe": True}
