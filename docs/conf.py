"""Sphinx configuration."""

import torchstone

project = "torchstone"
author = "The torchstone developers"
release = torchstone.__version__
extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "torchstone"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]
