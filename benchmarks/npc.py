"""NPC: exact samples against the published approximation, one shared pass against one per class, and the vote.

Run ``python -m benchmarks.npc``. Within each comparison the two take turns in one process, so that a busy machine slows
both alike. Ratios are medians over turns with a 95 % sign interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.sop import ratio
from torchstone.models import MLP, SmallCNN
from torchstone.noise import NoisyPredictionCalibrator, sample_gamma
from torchstone.noise.knn_prior import knn_vote

ALPHAS = (0.1, 1.1, 2.0, 6.1, 20.0)
DRAWS = 1_000_000
BATCHES = ((128, 10), (128, 100), (1024, 1000))  # samples, classes
CLASSES = (10, 100)
VOTES = ((50_000, 3_910, 128), (10_000, 3_910, 2_048))  # samples, references, features: 128 is the authors' CNN
SECONDS = 5.0  # for the turns of one comparison
TURNS = (6, 200)


def turns(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Seconds of each turn of both; the first turn warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for turn in range(TURNS[1] + 1):
        for arm, taken in zip((first, second), seconds, strict=True):
            before = time.perf_counter()
            arm()
            if turn:
                taken.append(time.perf_counter() - before)
        if turn >= TURNS[0] and time.perf_counter() - start > SECONDS:
            break
    return seconds


def bias() -> None:
    print(f"samples: mean and variance of {DRAWS:.0e} draws; a gamma variable has alpha and alpha")
    print(f"{'alpha':>6}  {'exact':>16}  {'published':>16}  {'dE[z]/dalpha, exact':>20}  published")
    generator = torch.Generator().manual_seed(0)
    for alpha in ALPHAS:
        cells, slopes = [], []
        for sampler in ("exact", "approx"):
            many = torch.full((DRAWS,), alpha, requires_grad=True)
            z = sample_gamma(many, sampler=sampler, generator=generator)
            (slope,) = torch.autograd.grad(z.sum(), many)
            cells.append(f"{float(z.detach().mean()):7.3f} {float(z.detach().var()):8.3f}")
            slopes.append(float(slope.mean()))
        print(f"{alpha:>6g}  {cells[0]:>16}  {cells[1]:>16}  {slopes[0]:>20.3f}  {slopes[1]:.3f}", flush=True)


def sampling() -> None:
    print("\ntime of a sample and its gradient, us")
    print(f"{'batch':>6} {'C':>5} {'exact':>8} {'published':>10}  exact / published")
    for batch, classes in BATCHES:
        alpha = torch.rand(batch, classes).mul(5).add(1.1).requires_grad_()

        def draw(sampler: str, alpha: Tensor = alpha) -> None:
            sample_gamma(alpha, sampler=sampler).sum().backward()

        exact, approx = turns(lambda: draw("exact"), lambda: draw("approx"))
        micro = [f"{1e6 * median(seconds):.0f}" for seconds in (exact, approx)]
        print(f"{batch:>6} {classes:>5} {micro[0]:>8} {micro[1]:>10}  {ratio(exact, approx)}", flush=True)


def pass_for_each_class(module: NoisyPredictionCalibrator, x: Tensor) -> Tensor:
    """H as the authors' code computes it: the backbone and the encoder once for each predicted class."""
    rows = []
    with torch.inference_mode():
        for j in range(module.num_classes):
            onehot = torch.zeros(len(x), module.num_classes)
            onehot[:, j] = 1
            alpha = nn.functional.softplus(module.encoder(torch.cat([module.backbone(x), onehot], 1))) + module.delta
            rows.append((alpha - 1) / (alpha - 1).sum(1, keepdim=True))
    return torch.stack(rows, 1)


def inference() -> None:
    print("\nH of 256 samples, ms: one shared pass against one pass for each class")
    print(f"{'backbone':>10} {'C':>5} {'shared':>8} {'C passes':>9}  C passes / shared")
    x = torch.rand(256, 1, 28, 28)
    for name, make in (("MLP", lambda c: MLP(784, c)), ("SmallCNN", lambda c: SmallCNN(1, c))):
        for classes in CLASSES:
            module = NoisyPredictionCalibrator.from_classifier(make(classes)).eval()
            torch.testing.assert_close(module.transition(x), pass_for_each_class(module, x))
            slow, fast = turns(lambda m=module: pass_for_each_class(m, x), lambda m=module: m.transition(x))
            milli = [f"{1e3 * median(seconds):.3g}" for seconds in (fast, slow)]
            print(f"{name:>10} {classes:>5} {milli[0]:>8} {milli[1]:>9}  {ratio(slow, fast)}", flush=True)


def vote() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    print("\nvote of 10 neighbours, s: in chunks against scikit-learn")
    print(f"{'n':>7} {'refs':>6} {'d':>5} {'ours':>7} {'sklearn':>8}  sklearn / ours")
    for n, references, d in VOTES:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(n, d, generator=generator).relu()
        known, labels = features[:references], torch.randint(10, (references,), generator=generator)
        peer = KNeighborsClassifier(10, weights="distance").fit(known.numpy(), labels.numpy())

        def theirs(peer: KNeighborsClassifier = peer, features: Tensor = features) -> Tensor:
            return torch.from_numpy(peer.predict_proba(features.numpy()))

        def ours(features: Tensor = features, known: Tensor = known, labels: Tensor = labels) -> Tensor:
            return knn_vote(features, known, labels, num_classes=10)

        # In float32 the tenth neighbour of a few samples is a near tie, and falls to either side.
        assert (ours() - theirs()).abs().amax(1).gt(1e-3).double().mean() < 1e-3
        slow, fast = turns(theirs, ours)
        print(
            f"{n:>7} {references:>6} {d:>5} {median(fast):>7.3g} {median(slow):>8.3g}  {ratio(slow, fast)}", flush=True
        )


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, float32\n")
    bias()
    sampling()
    inference()
    vote()


if __name__ == "__main__":
    main()
