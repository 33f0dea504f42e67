"""Time spans as people read them; needs nothing else of the bench."""

from __future__ import annotations

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """A time span in at most two units.

    Example:
        >>> duration(0.42), duration(75), duration(3700)
        ('0.4 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
