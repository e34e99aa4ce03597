"""The documentation as a site: `make docs`. Pages are those of docs/ and benchmarks/ as they stand; nothing is copied.

The source folder is the repository, so that links between the pages hold here as they do on GitHub. Made at build time, into
docs/generated/: a page for each runtime and the Python API.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.site import SECTIONS, contents, write_generated  # noqa: E402

project = "longrope-export"
author = "its contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["docs/*.md", "docs/generated/**.md", "benchmarks/*.md", "*.md"]
exclude_patterns = ["runs", "build", "README.md", "docs/generated/index.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.xref_ambiguous"]
default_role = "code"
smartquotes = False  # two hyphens begin an option
nitpicky = (
    False  # types of other libraries have no pages here; links between pages are checked by myst, which has no switch
)
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_copyright = False
html_show_sourcelink = False
html_extra_path = ["static/index.html"]
html_theme_options = {"navigation_with_keys": True}


def add_contents(app: Any, docname: str, source: list[str]) -> None:
    """The tree of pages, behind the index as GitHub shows it."""
    if docname == root_doc:
        source[0] += contents(SECTIONS)


def keep_colons(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Of a property napoleon takes what stands before a colon for its type; here it is a sentence."""
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)


def setup(app: Any) -> dict[str, bool]:
    """Write the generated pages before anything is read."""
    write_generated(ROOT / "docs" / "generated")
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
