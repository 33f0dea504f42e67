"""Training dynamics: theory you can compute for your own network and data."""

__all__: list[str] = []
