"""RoG: class means and shared covariance by MCD, batched over classes, against scikit-learn.

Run ``python -m benchmarks.rog``. The first peer does what the authors' code does, with the same 70 % and one step: an
``EmpiricalCovariance`` for each class, on rows picked by NumPy (the authors append them one by one). It takes turns
with ours, so that a busy machine slows both alike; ratios are medians over turns with a 95 % sign interval. The second
is ``MinCovDet``, the estimator of one class with many restarts: seconds for one of the classes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from benchmarks.sop import ratio
from torchstone.noise import MinCovDetTied

SIZES = ((50_000, 128, 10), (50_000, 512, 10), (50_000, 512, 100))
TURNS = 6


def data(n: int, d: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=generator)
    return torch.randn(n, d, generator=generator) + centres[labels], labels


def batched(x: torch.Tensor, y: torch.Tensor) -> None:
    MinCovDetTied.official(generator=torch.Generator().manual_seed(0)).fit(x, y)


def per_class(x: torch.Tensor, y: torch.Tensor) -> None:
    """The authors' procedure: random 70 %, covariance of each class, distances by the pooled one, once more."""
    from scipy.linalg import pinvh
    from sklearn.covariance import EmpiricalCovariance

    points, labels, chance = x.numpy(), y.numpy(), np.random.default_rng(0)
    rows = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    kept = [chance.permutation(own)[: int(0.7 * len(own))] for own in rows]
    for step in (0, 1):
        fits = [EmpiricalCovariance().fit(points[own]) for own in kept]
        pooled = sum(len(own) * fit.covariance_ for own, fit in zip(kept, fits, strict=True)) / sum(map(len, kept))
        precision = pinvh(pooled)
        if step == 0:
            for label, (own, fit) in enumerate(zip(rows, fits, strict=True)):
                centred = points[own] - fit.location_
                distance = ((centred @ precision) * centred).sum(1)
                kept[label] = own[distance.argsort()[: int(0.7 * len(own))]]


def min_cov_det(x: torch.Tensor, y: torch.Tensor) -> None:
    from sklearn.covariance import MinCovDet

    MinCovDet(random_state=0, support_fraction=0.7).fit(x[y == 0].numpy())


def measure(
    x: torch.Tensor, y: torch.Tensor, arms: dict[str, Callable[..., None]], turns: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm(x, y)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main(turns: int = TURNS) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; median seconds of a fit")
    head = ("N", "d", "C", "batched", "per class", "per class / batched", "MinCovDet, one class")
    print("{:>6} {:>4} {:>4} {:>8} {:>9}  {:<22} {}".format(*head))
    for n, d, classes in SIZES:
        x, y = data(n, d, classes)
        seconds = measure(x, y, {"batched": batched, "per class": per_class}, turns)
        alone = "-"
        if d <= 128:  # minutes in more dimensions
            start = time.perf_counter()
            min_cov_det(x, y)
            alone = f"{time.perf_counter() - start:.1f}"
        print(
            f"{n:>6} {d:>4} {classes:>4} {median(seconds['batched']):>8.2f} {median(seconds['per class']):>9.2f}  "
            f"{ratio(seconds['per class'], seconds['batched']):<22} {alone}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
