"""Where the variation of a score comes from, source by source.

Source: Bouthillier et al., *Accounting for variance in machine learning benchmarks*, MLSys 2021, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchstone._checks import check_float
from torchstone.bench.statistics._samples import as_array

__all__ = ["SourceVariance", "variance_by_source"]


@dataclass(frozen=True)
class SourceVariance:
    """Spread of the score while one source varies and all others are held fixed.

    Args:
        sd: standard deviation.
        ci: its interval under normal scores (chi-squared); about 10 replicates are needed for it to say much.
        n: replicates.
        share: variance divided by that with everything varied; NaN if that was not given. Shares need not add up to
            1: sources interact.
    """

    sd: float
    ci: tuple[float, float]
    n: int
    share: float


def variance_by_source(
    scores_by_source: Mapping[str, Any], *, everything: str = "all", alpha: float = 0.05
) -> dict[str, SourceVariance]:
    """Standard deviation of the score per source of variation, largest first.

    Args:
        scores_by_source: source -> scores of one arm with only that source varied; under the name ``everything``
            those with all sources varied, if known.
        everything: that name.
        alpha: error rate of the intervals.

    Shapes:
        Each value: (replicates,), at least 2; they may differ in length.

    Cost:
        O(all scores).

    Raises:
        ValueError: if a score is NaN or infinite, or a source has fewer than 2.

    Source:
        Module docstring, figure 1.

    Example:
        >>> spread = variance_by_source({"init": [1.0, 2.0, 3.0], "split": [0.0, 2.0, 4.0], "all": [0.0, 2.0, 4.0]})
        >>> [(source, entry.sd, entry.share) for source, entry in spread.items()]
        [('split', 2.0, 1.0), ('all', 2.0, 1.0), ('init', 1.0, 0.25)]
    """
    from scipy.special import chdtri

    check_float("alpha", alpha, 0, 1, open_low=True, open_high=True)
    samples = {source: as_array(source, scores).ravel() for source, scores in scores_by_source.items()}
    variances = {source: float(sample.var(ddof=1)) for source, sample in samples.items()}
    total = variances.get(everything, math.nan)
    spread = {}
    for source in sorted(variances, key=lambda source: -variances[source]):
        n, squares = samples[source].size, variances[source] * (samples[source].size - 1)
        ci = tuple(math.sqrt(squares / float(chdtri(n - 1, tail))) for tail in (alpha / 2, 1 - alpha / 2))
        share = variances[source] / total if total else math.nan
        spread[source] = SourceVariance(math.sqrt(variances[source]), (ci[0], ci[1]), n, share)
    return spread
