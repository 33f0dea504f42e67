"""Neural collapse of features that come in batches: the meter's one pass against two.

Run ``python -m benchmarks.neural_collapse``. The peer is written from the documented equations of the package
``neural-collapse`` (rhubarbwu): sums of the classes in a first pass through network and data, by a one-hot product;
the covariance within classes in a second, with those means; then the pseudo-inverse of Sigma_B; float32 throughout.
Both see the same batches, whose features a network of a few layers, as wide as they are, computes anew in every pass.
They take turns, so that a busy machine slows both alike; ratios are medians over turns with a 95 % sign interval. NC1
is compared with that of all features at once in float64: the peer's with an explicit cut-off of its pseudo-inverse,
and with torch's default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.sop import ratio
from torchstone.dynamics import NeuralCollapseMeter, nc_metrics

SIZES = ((10, 512, 1024), (100, 512, 1024), (1000, 512, 1024), (10, 2048, 1024), (100, 512, 128))
LAYERS, ROWS, TURNS = 4, 8_192, 6
RTOL = 1e-6  # the least that float32 allows for: the same for all


@dataclass
class Source:
    """Batches of features behind a layer of a network, with the passes that were made."""

    x: Tensor
    y: Tensor
    network: nn.Module
    batch: int
    passes: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        with torch.inference_mode():
            for x, y in zip(self.x.split(self.batch), self.y.split(self.batch), strict=True):
                yield self.network(x), y


def source(classes: int, dim: int, batch: int) -> Source:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(ROWS) % classes
    means = torch.randn(classes, dim, generator=generator)
    x = means[y] + 0.3 * torch.randn(ROWS, dim, generator=generator)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layer = nn.Linear(dim, dim)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(dim, dim, generator=generator) / dim**0.5)
            layer.bias.fill_(1.0)
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers)
    return Source(x, y, network, batch)


def one_pass(data: Source, classes: int, dim: int) -> tuple[float, int]:
    """NC1, and numbers kept."""
    meter = NeuralCollapseMeter(classes, dim)
    for features, labels in data:
        meter.update(features, labels)
    return float(meter.compute(rtol=RTOL).nc1), sum(buffer.numel() for buffer in meter.buffers())


def two_passes(data: Source, classes: int, dim: int, rtol: float | None = RTOL) -> tuple[float, int]:
    totals, counts = torch.zeros(classes, dim), torch.zeros(classes)
    for features, labels in data:
        one_hot = (labels[:, None] == torch.arange(classes)).float()
        totals += one_hot.mT @ features
        counts += one_hot.sum(0)
    means = totals / counts[:, None]
    scatter = torch.zeros(dim, dim)
    for features, labels in data:
        centred = features - means[labels]
        scatter += centred.mT @ centred
    offsets = means - means.mean(0)
    between = offsets.mT @ offsets / classes
    inverse = torch.linalg.pinv(between) if rtol is None else torch.linalg.pinv(between, rtol=rtol, hermitian=True)
    return float((inverse @ scatter).trace() / counts.sum() / classes), totals.numel() + counts.numel() + dim * dim


def main(turns: int = TURNS) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROWS} rows behind {LAYERS} layers; seconds")
    head = ("K", "d", "batch", "one pass", "two passes", "two / one", "passes", "numbers kept", "relative error of NC1")
    print("{:>5} {:>5} {:>6} {:>9} {:>11}  {:<20} {:>7} {:>14}  {}".format(*head))
    for classes, dim, batch in SIZES:
        data = source(classes, dim, batch)
        ways: dict[str, Callable[..., tuple[float, int]]] = {"one": one_pass, "two": two_passes}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found, passes = {}, {}
        for turn in range(turns + 1):
            for name, way in ways.items():
                data.passes = 0
                start = time.perf_counter()
                found[name] = way(data, classes, dim)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
                passes[name] = data.passes
        exact = float(nc_metrics(torch.cat([features for features, _ in data]), data.y, rtol=RTOL).nc1)
        default = two_passes(data, classes, dim, None)[0]
        errors = [abs(value / exact - 1) for value in (found["one"][0], found["two"][0], default)]
        print(
            f"{classes:>5} {dim:>5} {batch:>6} {median(seconds['one']):>9.2f} {median(seconds['two']):>11.2f}  "
            f"{ratio(seconds['two'], seconds['one']):<20} {passes['one']:>3}/{passes['two']:<3} "
            f"{found['one'][1]:>7}/{found['two'][1]:<7} one {errors[0]:.0e}, two {errors[1]:.0e}, "
            f"default cut-off {errors[2]:.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
