"""Statistics of the bench against their peers: the same numbers, and how much faster.

Run ``python -m benchmarks.statistics``. Ours and theirs take turns on the same data, so that a busy machine slows both
alike; the ratio is the geometric mean of theirs over ours, with a 95 % bootstrap interval. Peers that are not installed
are left out with a line that says so.
"""

from __future__ import annotations

# `python benchmarks/x.py` puts this folder first on the path, where this file would pass for the standard library's.
if __name__ == "statistics":
    raise ImportError("run benchmarks as modules from the repository's root: python -m benchmarks.sop")

import contextlib
import importlib.util
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from torchstone.bench.statistics import (
    adjust,
    claims_better,
    compare,
    decide,
    kendall_tau,
    mean_interval,
    normal_scores,
    percentile_interval,
    rank_interval,
    rank_methods,
    ranking_instability,
    sign_flip_test,
    signed_rank_test,
)

SECONDS = 4.0  # for the turns of one pair
TURNS = (3, 200)
DRAWS = 10_000


@dataclass(frozen=True)
class Pair:
    """One job done by ours and by a peer; their numbers may differ by at most ``tolerance``."""

    job: str
    peer: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    tolerance: float


def probability(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """P(A > B) over all pairs, vectorised over resamples."""
    return (np.sign(a[..., :, None] - b[..., None, :]).mean(axis=(-1, -2)) + 1) / 2


def bootstrap(samples: tuple[np.ndarray, ...], statistic: Callable[..., Any], batch: int | None = None) -> list[float]:
    result = stats.bootstrap(
        samples, statistic, n_resamples=DRAWS, method="percentile", vectorized=True, batch=batch, rng=1
    )
    return [float(end) for end in result.confidence_interval]


def pairs() -> Iterator[Pair]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, size=29), rng.normal(size=29)
    d = a - b
    wins = (d > 0).astype(float)
    yield Pair(
        "interval of paired P, n = 29",
        "scipy.stats.bootstrap",
        lambda: percentile_interval(wins),
        lambda: bootstrap((wins,), np.mean),
        1 / 29 + 1e-9,  # one lattice step
    )
    yield Pair(
        "interval of a mean, n = 29",
        "scipy.stats.bootstrap",
        lambda: mean_interval(d),
        lambda: bootstrap((d,), np.mean),
        0.02,
    )
    yield Pair(
        "interval of unpaired P, n = m = 29",
        "scipy.stats.bootstrap",
        lambda: rank_interval((a, b)),
        lambda: bootstrap((a, b), probability, batch=1000),
        0.01,
    )
    yield Pair(
        "signed-rank p, n = 29",
        "scipy.stats.wilcoxon",
        lambda: signed_rank_test(d),
        lambda: stats.wilcoxon(d, method="exact")[1],
        1e-12,
    )
    yield from stability(rng)
    few = d[:12]
    yield Pair(
        "sign-flip p, n = 12, exact",
        "scipy.stats.permutation_test",
        lambda: sign_flip_test(few),
        lambda: stats.permutation_test((few,), np.mean, permutation_type="samples", vectorized=True).pvalue,
        1e-12,
    )
    if found("statsmodels"):
        from statsmodels.stats.multitest import multipletests

        p = rng.random(62) ** 2
        for ours, theirs in (("holm", "holm"), ("bh", "fdr_bh")):
            yield Pair(
                f"{ours} of 62 p-values",
                "statsmodels",
                lambda ours=ours: adjust(p, ours),
                lambda theirs=theirs: multipletests(p, method=theirs)[1],
                1e-12,
            )
    if found("autorank"):
        import pandas as pd

        autorank = importlib.import_module("autorank").autorank
        scores = pd.DataFrame({f"m{i}": rng.normal(i / 3, 1, size=20) for i in range(5)})

        def ours_ranks() -> list[float]:
            ranking = rank_methods(scores)
            return [*sorted(ranking.mean_rank), ranking.friedman_p]

        def their_ranks() -> list[float]:
            with contextlib.redirect_stdout(io.StringIO()):
                result = autorank(scores, alpha=0.05, force_mode="nonparametric")
            return [*sorted(result.rankdf["meanrank"]), result.pvalue]

        yield Pair("ranks of 5 methods, Friedman, all pairs, n = 20", "autorank", ours_ranks, their_ranks, 1e-12)


def stability(rng: np.random.Generator) -> Iterator[Pair]:
    """Orders of methods, and rules of comparison; the peers are the plain loops that a paper's own code would be."""
    scores = rng.normal(np.arange(8)[:, None] / 2, 1, size=(8, 10))
    order = np.argsort(-scores.mean(axis=1))

    def drawn() -> float:
        same = 0
        for _ in range(20_000):
            runs = [scores[i, rng.integers(10)] for i in order]
            same += all(a > b for a, b in pairwise(runs))
        return same / 20_000

    yield Pair(
        "share of single-run rankings in order, 8 x 10 runs",
        "loop over 20 000 draws",
        lambda: ranking_instability(scores).same_order,
        drawn,
        0.01,
    )
    one, two = scores[:, 0], scores[:, 1]
    yield Pair(
        "Kendall's tau of 8 methods",
        "scipy.stats.kendalltau",
        lambda: kendall_tau(one, two),
        lambda: stats.kendalltau(one, two)[0],
        1e-12,
    )
    a, b = normal_scores(0.75, studies=1000, rho=0.7)
    yield Pair(
        "sequential rule on 1 000 comparisons of 29 pairs",
        "decide(), one by one",
        lambda: claims_better("sequential", a, b).mean(),
        lambda: np.mean([decide(x > y).verdict == "reproduced" for x, y in zip(a, b, strict=True)]),
        1e-12,
    )


def found(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: left out")
        return False
    return True


def measure(pair: Pair) -> tuple[list[float], list[float]]:
    """Seconds of each turn, ours and theirs, without the first that warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for turn in range(TURNS[1]):
        for times, job in zip(seconds, (pair.ours, pair.theirs), strict=True):
            before = time.perf_counter()
            job()
            if turn:
                times.append(time.perf_counter() - before)
        if turn >= TURNS[0] and time.perf_counter() - start > SECONDS:
            break
    return seconds


def main() -> None:
    warnings.simplefilter("ignore")  # peers warn about their own defaults
    print(f"{'job':<50} {'peer':<30} {'differ by':>9} {'ours ms':>8} {'theirs ms':>9}  times as fast")
    for pair in pairs():
        gap = float(np.abs(np.asarray(pair.ours(), float) - np.asarray(pair.theirs(), float)).max())
        assert gap <= pair.tolerance, f"{pair.job}: ours and {pair.peer} differ by {gap}"
        ours, theirs = measure(pair)
        ratios = np.log(theirs) - np.log(ours)
        low, high = mean_interval(ratios)
        print(
            f"{pair.job:<50} {pair.peer:<30} {gap:>9.1e} "
            f"{1e3 * np.median(ours):>8.3f} {1e3 * np.median(theirs):>9.3f}  "
            f"{math.exp(ratios.mean()):.1f} [{math.exp(low):.1f}, {math.exp(high):.1f}]"
        )
    a, b = np.random.default_rng(0).normal(size=(2, 29))
    times = []
    for _ in range(50):
        before = time.perf_counter()
        compare(a, b)
        times.append(time.perf_counter() - before)
    print(f"compare() of 29 pairs, with interval, tests, effects and verdict: {1e3 * np.median(times):.2f} ms")


if __name__ == "__main__":
    main()
