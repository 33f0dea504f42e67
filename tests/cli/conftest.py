"""Typer 0.20 imports names that newer releases of click deprecate; its warning says nothing about our code."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import typer  # noqa: F401
