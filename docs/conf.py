"""Sphinx configuration."""

import sys
from pathlib import Path

import torchstone

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "_ext")]

project = "torchstone"
author = "The torchstone developers"
release = torchstone.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "command_line",
    "curves",
    "docstrings",
    "methods_table",
    "pictures",
    "public_api",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!torchstone).*")]  # other packages: their pages are not looked up here

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "furo"
html_title = "torchstone"
html_static_path = ["_static"]
html_css_files = ["torchstone.css"]
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "picture-ink": "#1f2328",
        "picture-good": "#1a7f4b",
        "picture-bad": "#b3261e",
        "picture-doubt": "#8a6d1d",
        "picture-ours": "#c05a12",
        "picture-theirs": "#2a6db0",
    },
    "dark_css_variables": {
        "picture-ink": "#d6d9de",
        "picture-good": "#4cc38a",
        "picture-bad": "#ff7a70",
        "picture-doubt": "#d9b84a",
        "picture-ours": "#f0954a",
        "picture-theirs": "#6fb1f0",
    },
}
