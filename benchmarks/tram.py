"""TRAM: a training step against one without privileged information, a test step, and the mean over all annotators.

Run ``python -m benchmarks.tram``. Bodies of 640 features, PI head of width 128, one annotator per image: a ResNet-20
with a layer to 640 features, which takes less than a hundredth of the multiplications of the paper's WRN-28-10, and a
perceptron, the worst case. The mean over annotators is taken once with products of features and of
annotators apart, and once as the equations are written, on all pairs. Arms take turns, so that a busy machine slows
all alike; ratios are medians over turns with a 95 % sign interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.sop import ratio
from torchstone.models import MLP, resnet20
from torchstone.noise import TRAM, TRAMLoss, marginalize

FEATURES, WIDTH, CLASSES, BATCH = 640, 128, 10, 128
ANNOTATORS = (20, 400, 2571)  # the last: those of CIFAR-10H
CHUNK = 64  # annotators at a time in the mean over all pairs, for memory
SECONDS = 25.0  # for the turns of one comparison
TURNS = (6, 200)


class Wide(nn.Module):
    """A ResNet-20 with 640 features in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet20(generator=torch.Generator().manual_seed(0))
        self.last = nn.Linear(64, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return self.last(self.net.features(x)).relu()


def bodies() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Name -> what makes the body, shape of an input."""
    return {
        "ResNet-20, 640 features": (Wide, (3, 32, 32)),
        "MLP 784-640": (lambda: MLP(784, CLASSES, hidden=(FEATURES,)).body, (784,)),
    }


def in_turns(arms: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each turn, by arm."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    start = time.perf_counter()
    for turn in range(TURNS[1]):
        for name, arm in arms.items():
            before = time.perf_counter()
            arm()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - before)
        if turn >= TURNS[0] and time.perf_counter() - start > SECONDS:
            break
    return seconds


def tram(body: nn.Module, annotators: int) -> TRAM:
    return TRAM(body, FEATURES, 0, CLASSES, width=WIDTH, pi_embedding=nn.Embedding(annotators, WIDTH))


def training(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One step of SGD of each arm, on the same batch."""
    x, y = torch.randn(BATCH, *shape), torch.randint(CLASSES, (BATCH,))
    ids, criterion = torch.randint(400, (BATCH,)), TRAMLoss()
    without, with_pi = nn.Sequential(make(), nn.Linear(FEATURES, CLASSES)), tram(make(), 400)

    def step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def run() -> None:
            value = loss()
            sgd.zero_grad()
            value.backward()
            sgd.step()

        return run

    return {
        "no PI": step(without, lambda: F.cross_entropy(without(x), y)),
        "TRAM": step(with_pi, lambda: criterion(with_pi(x, ids), y)),
    }


def testing(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One prediction of each arm."""
    x = torch.randn(BATCH, *shape)
    without, with_pi = nn.Sequential(make(), nn.Linear(FEATURES, CLASSES)).eval(), tram(make(), 400).eval()
    return {
        "no PI": torch.no_grad()(lambda: without(x)),
        "TRAM": torch.no_grad()(lambda: with_pi(x).logits),
    }


def on_all_pairs(model: TRAM, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean as the equations are written: features and annotators side by side, for each pair."""
    head, features = model.pi_head, model.features(x)
    total = torch.zeros(len(x), CLASSES)
    for part in ids.split(CHUNK):
        e = head.embed(part).expand(len(x), -1, -1)
        phi = features.unsqueeze(1).expand(-1, len(part), -1)
        joint = head.joint(torch.cat([phi, e], -1)).relu() + e
        total += head.out(torch.cat([phi, joint], -1)).softmax(-1).sum(1)
    return total / len(ids)


def means(annotators: int) -> dict[str, Callable[[], object]]:
    model = tram(nn.Identity(), annotators).eval()
    x, ids = torch.randn(BATCH, FEATURES), torch.arange(annotators)
    with torch.no_grad():
        torch.testing.assert_close(marginalize(model, x, ids), on_all_pairs(model, x, ids))
    return {
        "all pairs": torch.no_grad()(lambda: on_all_pairs(model, x, ids)),
        "apart": torch.no_grad()(lambda: marginalize(model, x, ids)),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, batch {BATCH}, float32; median ms")
    for name, (make, shape) in bodies().items():
        for what, arms in (("training step", training(make, shape)), ("test step", testing(make, shape))):
            seconds = in_turns(arms)
            plain, ours = (1e3 * median(seconds[arm]) for arm in ("no PI", "TRAM"))
            print(
                f"{name:<24} {what:<14} no PI {plain:>7.2f}  TRAM {ours:>7.2f}  "
                f"TRAM/no PI {ratio(seconds['TRAM'], seconds['no PI'])}",
                flush=True,
            )
    for annotators in ANNOTATORS:
        seconds = in_turns(means(annotators))
        pairs, ours = (1e3 * median(seconds[arm]) for arm in ("all pairs", "apart"))
        print(
            f"mean over {annotators:>4} annotators: all pairs {pairs:>8.2f}  apart {ours:>7.2f}  "
            f"all pairs/apart {ratio(seconds['all pairs'], seconds['apart'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
