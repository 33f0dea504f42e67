"""One run of the study: the samples it draws, and the model of one of six families that it trains on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchstone import models, training
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import Choice, Dist, Integers, LogUniform, Uniform
from torchstone.data import carve_validation, load, mnist1d, out_of_bootstrap, random_split_indices
from torchstone.data.tensors import TensorData
from torchstone.errors import require

__all__ = ["FAMILIES", "NETWORKS", "Family", "Parts", "Run", "Sizes", "accuracy", "draw_parts", "small_cnn"]

Predict = Callable[[Tensor], Tensor]

VALIDATION = 0.2
OFFICIAL_VALIDATION = 10_000


@dataclass(frozen=True)
class Sizes:
    """How much is computed, the same for all families.

    Args:
        samples: size of the pool that a run's samples are drawn from; ``None`` is the whole data set.
        epochs: passes of a network over its training samples.
        batch_size: samples in one step.
        trees: of a forest.
        bootstrap: draw training samples with replacement and test on the rest; else the official parts are used.
    """

    samples: int | None = None
    epochs: int = 20
    batch_size: int = 32
    trees: int = 100
    bootstrap: bool = True


@dataclass(frozen=True)
class Run:
    """Where a run takes its chance from: one sub-stream of each source, by name.

    Args:
        seeds: streams of the replicate.
        name: of the sub-stream, for all sources.
        varied: other names for some of them.
    """

    seeds: Seeds
    name: str
    varied: Mapping[str, str] = field(default_factory=dict)

    def generator(self, source: str, *names: str) -> torch.Generator:
        """The generator of a source."""
        return self.seeds.generator(source, self.varied.get(source, self.name), *names)


class Parts(NamedTuple):
    """What a run trains on, is tuned on, and is tested on."""

    train: TensorData
    val: TensorData
    test: TensorData


@lru_cache(maxsize=4)
def dataset(name: str) -> TensorData:
    """A data set by name; ``mnist1d`` is one fixed draw of it."""
    return mnist1d(5000, generator=torch.Generator().manual_seed(0)) if name == "mnist1d" else load(name)


def draw_parts(name: str, run: Run, sizes: Sizes) -> Parts:
    """Draw the samples of a run; they depend on its stream ``split`` alone.

    With ``sizes.bootstrap`` as many samples as there are in the pool are drawn with replacement, and those never drawn
    are tested on; of the drawn, a fifth (of the distinct ones) validates, and no duplicate of them is trained on.
    Without it the official parts are used, and ``split`` chooses nothing.
    """
    data = dataset(name)
    if not sizes.bootstrap:
        return _official(data)
    if sizes.samples is not None:
        (pool,) = random_split_indices(
            len(data), [sizes.samples], generator=run.generator("split", "pool"), stratify=data.y
        )
        data = data.subset(pool)
    drawn, rest = out_of_bootstrap(len(data), generator=run.generator("split"))
    train, val = carve_validation(drawn, VALIDATION, generator=run.generator("split", "validation"))
    return Parts(data.subset(train), data.subset(val), data.subset(rest))


def _official(data: TensorData) -> Parts:
    if data.test is None:
        raise ValueError(f"data {data.name!r} have no official test part")
    held = min(OFFICIAL_VALIDATION, len(data) // 5)
    train, val = random_split_indices(
        len(data), [len(data) - held, held], generator=torch.Generator().manual_seed(0), stratify=data.y
    )
    return Parts(data.subset(train), data.subset(val), data.test)


def accuracy(predict: Predict, data: TensorData) -> float:
    """Share of the samples that get their own class."""
    return float((predict(data.x).cpu() == data.y).double().mean())


# ---------------------------------------------------------------- families


@dataclass(frozen=True)
class Family:
    """How models of one family are trained, their setting without tuning, and what tuning searches."""

    fit: Callable[..., Predict]
    default: Mapping[str, Any]
    space: Mapping[str, Dist]


def small_cnn(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Three normalised convolutions of width 3, two of them with stride 2, over a signal or an image."""
    conv, norm = {2: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv2d, nn.BatchNorm2d)}[len(input_shape)]
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in ((input_shape[0], 8, 1), (8, 16, 2), (16, 16, 2)):
        layers += [conv(fan_in, fan_out, 3, stride=stride, padding=1, bias=False), norm(fan_out), nn.ReLU()]
    places = prod((size + 3) // 4 for size in input_shape[1:])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * places, num_classes))


def mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two layers, 64 normalised hidden units."""
    return models.MLP(prod(input_shape), num_classes, hidden=(64,), batch_norm=True)


def wide_mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two layers, 512 normalised hidden units."""
    return models.MLP(prod(input_shape), num_classes, hidden=(512,), batch_norm=True)


@dataclass(frozen=True)
class Network:
    """Train a network by SGD; the learning rate falls to a tenth after a quarter and after half of the epochs."""

    model: str | Callable[..., nn.Module]

    def __call__(
        self,
        train: TensorData,
        run: Run,
        sizes: Sizes,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        device: str = "cpu",
    ) -> Predict:
        """Return the trained network's classes of inputs."""
        net = models.build(self.model, tuple(train.x.shape[1:]), train.num_classes, generator=run.generator("init"))
        sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        drops = torch.optim.lr_scheduler.MultiStepLR(sgd, [sizes.epochs // 4, sizes.epochs // 2])
        training.fit(
            net,
            train,
            training.supervised(nn.CrossEntropyLoss()),
            sgd,
            epochs=sizes.epochs,
            batch_size=sizes.batch_size,
            generator=run.generator("order"),
            scheduler=drops,
            drop_last=True,  # a batch of one cannot be normalised
            device=device,
        )
        return lambda x: training.predict(net, x).argmax(1)


def fit_knn(
    train: TensorData,
    run: Run,
    sizes: Sizes,
    *,
    neighbours: int,
    power: float,
    nearness: float,
    device: str = "cpu",
) -> Predict:
    """Let the nearest samples vote, in the metric of that power, with weights distance^-nearness."""
    x, y = train.x.flatten(1), torch.nn.functional.one_hot(train.y, train.num_classes).float()

    def predict(inputs: Tensor) -> Tensor:
        near = torch.cdist(inputs.flatten(1), x, p=power).topk(min(neighbours, len(x)), largest=False)
        votes = (near.values + 1e-6) ** -nearness
        return (votes[..., None] * y[near.indices]).sum(1).argmax(1)

    return predict


def fit_forest(
    train: TensorData,
    run: Run,
    sizes: Sizes,
    *,
    max_features: Any,
    min_samples_leaf: int,
    max_depth: int | None,
    device: str = "cpu",
) -> Predict:
    """Grow a random forest."""
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        raise require("sklearn", "bench") from None
    forest = RandomForestClassifier(
        sizes.trees,
        max_features=max_features,
        min_samples_leaf=min_samples_leaf,
        max_depth=max_depth,
        random_state=int(torch.randint(2**31, (), generator=run.generator("noise"))),
    )
    forest.fit(train.x.flatten(1).numpy(), train.y.numpy())
    return lambda x: torch.from_numpy(forest.predict(x.flatten(1).numpy()))


SGD_DEFAULT = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
"""The common setting of the paper, meant for networks with batch normalisation; so all hidden layers here have it."""

SGD_SPACE = {"lr": LogUniform(1e-5, 0.5), "momentum": Uniform(0.0, 0.9), "weight_decay": LogUniform(1e-8, 1e-3)}
"""The paper's search space."""


def _network(model: str | Callable[..., nn.Module]) -> Family:
    return Family(Network(model), SGD_DEFAULT, SGD_SPACE)


FAMILIES = {
    "logistic": _network("linear"),
    "mlp": _network(mlp),
    "wide-mlp": _network(wide_mlp),
    "cnn": _network(small_cnn),
    "knn": Family(
        fit_knn,
        {"neighbours": 5, "power": 2.0, "nearness": 0.0},
        {"neighbours": Integers(1, 30), "power": Choice(1.0, 2.0), "nearness": Uniform(0.0, 4.0)},
    ),
    "forest": Family(
        fit_forest,
        {"max_features": "sqrt", "min_samples_leaf": 1, "max_depth": None},
        {"max_features": Uniform(0.02, 1.0), "min_samples_leaf": Integers(1, 10), "max_depth": Integers(3, 30)},
    ),
}
"""Name -> family; networks start from the paper's common setting, the others from scikit-learn's defaults."""

NETWORKS = {
    "logistic": FAMILIES["logistic"],
    "mlp": FAMILIES["mlp"],
    "cnn": FAMILIES["cnn"],
    **{name: _network(name) for name in ("strided-cnn", "resnet20", "resnet18")},
}
"""The networks that are ranked on images of 32 x 32 pixels."""
