"""Sphinx's configuration: MyST pages whose cells are run, and an API from the docstrings.

docker/run bash docs/build                                        with an environment of its own
python3 -m sphinx -W --keep-going -n docs docs/_build/html        where requirements.txt is installed
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

DOCS = Path(__file__).parent
CHECKOUT = DOCS.parent

# For this process, and for the kernels and the demos that it starts.
sys.path[:0] = [str(CHECKOUT), str(DOCS / "extensions")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HYCO_CHECKOUT"] = str(CHECKOUT)

import hyco_fem  # noqa: E402

project = "hyco_fem"
author = "The hyco_fem authors"
copyright = "2026, the hyco_fem authors; MIT licence"
version = release = hyco_fem.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_design",
    "sphinx_copybutton",
    "names",
    "toml_keys",
    "mathml",
    "streams",
]
exclude_patterns = ["_build", "extensions"]
nitpicky = True

# -- pages -----------------------------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist", "smartquotes"]
myst_heading_anchors = 3
math_number_all = False
html_math_renderer = "mathml"
highlight_language = "text"
copybutton_prompt_text = "$ "


def sources() -> str:
    """A hash of all that cells run: outputs of another state of the package are not taken from the cache."""
    digest = hashlib.sha256(sys.version.encode())
    for folder, pattern in (
        ("hyco_fem", "*.py"),
        ("demos", "*.py"),
        ("demos", "*.toml"),
        ("demos", "*.csv"),
        ("meshes", "*.msh"),
    ):
        for path in sorted((CHECKOUT / folder).rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


nb_execution_mode = "cache"
cache = DOCS / "_build" / f"executed-{sources()}"
for old in cache.parent.glob("executed-*"):
    if old != cache and time.time() - old.stat().st_mtime > 86400:  # not that of a build that is going on
        shutil.rmtree(old, ignore_errors=True)
nb_execution_cache_path = str(cache)
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True  # by streams.py

# -- API -------------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# -- HTML ------------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "hyco_fem"
html_static_path = ["_static"]
html_css_files = ["hyco.css"]
html_sidebars = {page: [] for page in ("index", "tour", "faq")}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "hyco_fem"},
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}
