"""One module per paper: its experiments, arms and claims as a ``STUDY``, which :func:`torchstone.run` runs."""
