"""Whitening: the data sets of S seeds in one decomposition, against S fits of scikit-learn, one after another.

Run ``python -m benchmarks.whitening``. The peer is ``PCA(whiten=True, svd_solver="covariance_eigh")``, the fastest of
its solvers where samples outnumber dimensions; both are given centred second moments and float64, and fit and transform
the same data, on one thread. Seconds are those of the processor, and the two take turns, so that a busy machine slows
both alike; the ratio is the median over turns with a 95 % sign interval. Before that, their results are compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from benchmarks.sop import ratio
from torchstone.dynamics import Whitening

SIZES = ((20, 200, 16), (20, 400, 61), (20, 2000, 61), (20, 2000, 256), (4, 4000, 784))
TURNS = 6


def data(seeds: int, n: int, d: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(seeds, n, d, generator=generator, dtype=torch.float64) @ mix


def at_once(x: torch.Tensor) -> torch.Tensor:
    return Whitening("pca", center=True).fit(x).transform(x)


def one_by_one(x: torch.Tensor) -> torch.Tensor:
    from sklearn.decomposition import PCA

    fits = [PCA(whiten=True, svd_solver="covariance_eigh") for _ in x]
    return torch.from_numpy(np.stack([fit.fit_transform(own) for fit, own in zip(fits, x.numpy(), strict=True)]))


def largest_difference(x: torch.Tensor) -> float:
    """Of the two results' second moments between samples, which know neither signs of axes nor scale."""
    ours, theirs = (white[0] / white[0].norm(dim=1).square().mean().sqrt() for white in (at_once(x), one_by_one(x)))
    return float((ours @ ours.T - theirs @ theirs.T).abs().max())


def seconds(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    start = time.process_time()
    function(x)
    return time.process_time() - start


def main(turns: int = TURNS) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        compare(turns)


def compare(turns: int) -> None:
    print(f"torch {torch.__version__}, one thread, float64; median ms to fit and transform")
    print(f"{'S':>3} {'n':>5} {'d':>4} {'difference':>10} {'at once':>8} {'sklearn':>8}  sklearn / at once")
    for seeds, n, d in SIZES:
        x = data(seeds, n, d)
        difference = largest_difference(x)  # also warms up
        pairs = [(seconds(at_once, x), seconds(one_by_one, x)) for _ in range(turns)]
        ours, theirs = (list(column) for column in zip(*pairs, strict=True))
        print(
            f"{seeds:>3} {n:>5} {d:>4} {difference:>10.1e} {1e3 * median(ours):>8.1f} {1e3 * median(theirs):>8.1f}  "
            f"{ratio(theirs, ours)}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
