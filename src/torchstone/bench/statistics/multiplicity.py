r"""Adjusting p-values (and e-values) when several claims are judged together.

Source: Holm, *A simple sequentially rejective multiple test procedure*, Scand. J. Statist. 6 (1979); Benjamini and
Hochberg, *Controlling the false discovery rate*, JRSS B 57 (1995); Wang and Ramdas, *False discovery rate control with
e-values*, JRSS B 84 (2022).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from torchstone._checks import check_one_of

__all__ = ["adjust"]


def adjust(p: ArrayLike, method: str = "holm") -> Float[np.ndarray, " m"]:
    r"""Adjusted p-values: reject those at most alpha, and the error of the whole family is at most alpha.

    .. math:: \text{holm: } \max_{j \le i} (m - j + 1) p_{(j)} \qquad \text{bh: } \min_{j \ge i} \frac{m}{j} p_{(j)}
        \qquad \text{e-bh: } \min_{j \ge i} \frac{m}{j\, e_{(j)}}

    Holm bounds the chance of any false rejection, under any dependence. Benjamini-Hochberg bounds the expected share
    of false ones. e-BH takes e-values instead, does the same under any dependence, and is the one to use where
    comparisons stopped early.

    Args:
        p: p-values in [0, 1], or for ``"e-bh"`` e-values (not negative, infinity allowed).
        method: ``"holm"``, ``"bh"`` or ``"e-bh"``.

    Shapes:
        ``p``: (m,); returns (m,), in the same order, at most 1.

    Cost:
        O(m log m).

    Raises:
        ValueError: if ``p`` is not 1-D or a value lies outside its range.

    Source:
        Module docstring.

    Example:
        >>> adjust([0.01, 0.04, 0.03, 0.005]).round(2)
        array([0.03, 0.06, 0.06, 0.02])
        >>> int((adjust([40, 25, 3, 100, 1.2], "e-bh") <= 0.05).sum())
        1
    """
    check_one_of("method", method, ("holm", "bh", "e-bh"))
    values = np.asarray(p, float)
    if values.ndim != 1:
        raise ValueError(f"p must have shape (m,), but has {values.shape}")
    kind, top = ("e", np.inf) if method == "e-bh" else ("p", 1.0)
    bad = np.flatnonzero(~((values >= 0) & (values <= top)))
    if bad.size:
        raise ValueError(f"{kind}-values must lie in [0, {top:g}], but number {bad[0]} is {values[bad[0]]}")
    if method == "e-bh":
        with np.errstate(divide="ignore"):
            values = 1 / values
    m = values.size
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(m)
    if method == "holm":
        adjusted[order] = np.maximum.accumulate(values[order] * np.arange(m, 0, -1))
    else:
        steps = values[order] * m / np.arange(1, m + 1)
        adjusted[order] = np.minimum.accumulate(steps[::-1])[::-1]
    return np.minimum(adjusted, 1.0)
