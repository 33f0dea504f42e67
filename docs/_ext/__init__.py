"""Sphinx extensions of these pages: what they show is read from the package itself, so that it cannot go stale."""
