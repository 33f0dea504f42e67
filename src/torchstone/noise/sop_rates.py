"""Learning rates for sparse over-parameterization, from how fast u and v must grow.

Squares that start at 1e-16 grow by a factor a visit. With too small a rate they never get anywhere in the epochs there
are, and the method silently equals cross entropy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torchstone._checks import check_float, check_int, check_one_of

__all__ = ["Rates", "suggest_rates"]


class Rates(NamedTuple):
    """Learning rates of u and v."""

    lr_u: float
    lr_v: float


def suggest_rates(
    batch_size: int, epochs: int, *, init_std: float = 1e-8, share: float = 0.5, variant: str = "code"
) -> Rates:
    """Rates at which u and v grow from ``init_std`` to 1 within ``share`` of the epochs (at least one).

    Each epoch visits a sample once. While V << 1, a visit at which the network predicts class c multiplies v_ic by
    1 + 4 lr_v / B. While U << 1, a visit at which the given label has probability p and is not the prediction
    multiplies u_i by 1 + (2 lr_u / B) ((1 - p) / p + 2). Such a label has p <= 1/2, so that is at least 1 + 6 lr_u / B
    (in ``variant="paper"`` the summand 2 is missing: 1 + 2 lr_u / B). The growth that takes both to 1 in time is
    g = init_std^(-1 / (share x epochs)), reached at

        lr_v = (g - 1) B / 4        lr_u = (g - 1) B / 6   (``"paper"``: (g - 1) B / 2).

    Far below these rates nothing happens: the loss is cross entropy. B is the batch of all processes together. Only
    log(init_std) / epochs matters, so a short schedule can start higher (give the same ``init_std`` to the loss). Do so
    when lr_v > B / 8: from there on v can overshoot 1, where the clip of ``variant="code"`` holds it for good. For 120
    epochs of B = 128 this gives 7.7 and 11.5, where the authors use 10 and 10 (CIFAR-10) or 1 and 10 (CIFAR-100).

    Cost: O(1).
    Raises: ValueError if an argument is outside its range.
    Source: the linearised SGD step of the loss; Liu et al., ICML 2022, table A.1, for comparison.

    Example:
        >>> "u {:.1f}, v {:.1f}".format(*suggest_rates(128, 120))
        'u 7.7, v 11.5'
        >>> "u {:.1f}, v {:.1f}".format(*suggest_rates(128, 30))  # v > 128 / 8: start higher
        'u 51.5, v 77.3'
        >>> "u {:.1f}, v {:.1f}".format(*suggest_rates(128, 30, init_std=1e-2))
        'u 7.7, v 11.5'
    """
    check_int("batch_size", batch_size, 1)
    check_int("epochs", epochs, 1)
    check_float("init_std", init_std, 0, 1, open_low=True, open_high=True)
    check_float("share", share, 0, 1, open_low=True)
    check_one_of("variant", variant, ("code", "paper"))
    gain = math.expm1(-math.log(init_std) / max(share * epochs, 1))
    return Rates(lr_u=gain * batch_size / (2 if variant == "paper" else 6), lr_v=gain * batch_size / 4)
