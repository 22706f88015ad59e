"""Sphinx's settings for the site: ``make docs`` builds it into docs/_build, and every warning is an error."""

from __future__ import annotations

import configparser
import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS / "extensions"))

# Commands print what a user's terminal would show: no colours, always the same width, no network.
os.environ.update(COLUMNS="100", NO_COLOR="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg")

metadata = configparser.ConfigParser()
metadata.read(ROOT / "setup.cfg", encoding="utf-8")

project = "hafm_lightning"
copyright = "its authors, MIT licence"
repository_url = metadata["metadata"]["url"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "repository_links",
    "generated_reference",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "extensions"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "attrs_inline"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "both"
add_module_names = False
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "hafm_lightning"
html_static_path = ["audio", "style"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": repository_url, "source_branch": "main", "source_directory": "docs/"}
html_show_sphinx = False
