"""TRAM as the track calls it: the user's network with its last layer, and a head beside it that sees annotators.

The network keeps its own last linear layer as the head without privileged information, so what comes out is the
network itself, as cheap to use as without TRAM.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchstone.bench.study import Cell
from torchstone.data.annotators import AnnotatorDataset
from torchstone.data.tensors import TensorData
from torchstone.models.seeding import seeded
from torchstone.noise import TRAM, TRAMLoss
from torchstone.noise.last_layer import last_linear
from torchstone.tracks._label_source import KINDS
from torchstone.tracks._noisy_data import Problem, Setting
from torchstone.tracks._noisy_fits import MakeModel, train_by_recipe
from torchstone.training import Batch

__all__ = ["Body", "annotated", "fit_tram", "network_of", "train_tram", "unknown_annotators"]


def fit_tram(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float = 0.05,
    width: int = 128,
    detach: bool = True,
    distillation: float = 0.0,
    sample: int | None = None,
) -> nn.Module:
    """Transfer and marginalize; the predictor is the network from ``make_model``.

    Args:
        make_model: gives a fresh network that ends in an ``nn.Linear``.
        train: training data with the columns ``annotator`` or ``pi``, and ``answer`` where there are several labels.
        val: not used.
        cell: setting and seeds.
        lr: learning rate of the network and both heads.
        width: hidden units of the head with privileged information.
        detach: whether the features are closed to the head without it.
        distillation: share of distillation in the loss of that head.
        sample: answers drawn for each image and step; all by default.
    """
    options = {"width": width, "detach": detach, "distillation": distillation, "sample": sample}
    return network_of(train_tram(make_model, train, val, cell, lr=lr, **options))


def train_tram(
    make_model: MakeModel,
    train: TensorData,
    val: TensorData,
    cell: Cell,
    *,
    lr: float = 0.05,
    width: int = 128,
    detach: bool = True,
    distillation: float = 0.0,
    sample: int | None = None,
) -> TRAM:
    """As :func:`fit_tram`, but returns both heads; the network from ``make_model`` is in ``.body.network``."""
    known = annotated(train, sample=sample, generator=cell.seeds.generator("noise", "annotators"))
    network = make_model()
    body = Body(network)
    init = cell.seeds.generator("init", "pi")
    embedding = None
    if known.num_annotators:
        with seeded(init):
            embedding = nn.Embedding(known.num_annotators, width)
            nn.init.xavier_uniform_(embedding.weight)  # small, as the weights of the authors' one-hot layer
    model = TRAM(
        body,
        body.last.in_features,
        known.pi_dim,
        train.num_classes,
        width=width,
        detach=detach,
        pi_embedding=embedding,
        head=body.last,
        generator=init,
    )
    train_by_recipe(
        model, train, cell, _loss(TRAMLoss(distillation=distillation), known.to(cell.device)), lr=lr, predictor=network
    )
    return model


def network_of(model: TRAM) -> nn.Module:
    """The network that :func:`train_tram` was given."""
    assert isinstance(model.body, Body)
    return model.body.network


class Body(nn.Module):
    """What the last linear layer of a network sees, from one ordinary pass through the network.

    Raises:
        TypeError: if the network has no ``nn.Linear``.
        ValueError: at the first pass, if the logits are not what the last of them gives.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        _, self.last = last_linear(network)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (batch, D)."""
        seen: list[tuple[Tensor, Tensor]] = []

        def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((args[0], output))

        handle = self.last.register_forward_hook(look)
        try:
            logits = self.network(x)
        finally:
            handle.remove()
        if not seen or seen[-1][1] is not logits:
            raise ValueError(
                "tram needs a network whose logits are the output of its last nn.Linear, but "
                f"{type(self.network).__name__} does something else with it"
            )
        return seen[-1][0]


def annotated(
    train: TensorData, *, sample: int | None = None, generator: torch.Generator | None = None
) -> AnnotatorDataset:
    """What ``train`` knows of its labels: columns ``annotator`` (ids), ``pi`` (features) and ``answer``.

    Without ``answer`` the labels themselves are the answers, one each. Features are brought to mean 0 and standard
    deviation 1 over the answers.

    Raises:
        ValueError: if there is neither ``annotator`` nor ``pi``, or they do not fit the labels.
    """
    columns = train.columns
    if "annotator" not in columns and "pi" not in columns:
        raise ValueError(
            f"tram needs to know who gave each label, but data {train.name!r} have no column 'annotator' (numbers from "
            "0 on) or 'pi' (features of each label)"
        )
    answers = columns.get("answer", train.y)
    if int(answers.max()) >= train.num_classes:
        raise ValueError(f"column 'answer' must hold classes 0..{train.num_classes - 1}, but one is {answers.max()}")
    features = columns.get("pi")
    if features is not None:
        features = _standardised(features.float(), answers)
    return AnnotatorDataset(train, answers, columns.get("annotator"), features, sample=sample, generator=generator)


def unknown_annotators(data: TensorData, setting: Setting) -> str:
    """Why TRAM cannot be trained on the labels of some case; empty if it can."""
    for case in setting.labels:
        try:
            annotated(Problem(data).everything(setting, case))
        except (TypeError, ValueError) as error:
            noise = ": nobody gave the labels of noise that is put in" if setting.source(case).kind in KINDS else ""
            return f"{error}{noise}"
    return ""


def _standardised(features: Tensor, answers: Tensor) -> Tensor:
    if features.ndim == answers.ndim:
        features = features.unsqueeze(-1)
    if features.shape[:-1] != answers.shape:
        return features  # which AnnotatorDataset refuses, and says why
    there = features[answers >= 0]
    spread = there.std(0, correction=0)
    return (features - there.mean(0)) / torch.where(spread > 0, spread, 1)


def _loss(criterion: TRAMLoss, known: AnnotatorDataset) -> Callable[[nn.Module, Batch], Tensor]:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert batch.index is not None  # data in memory have one
        pi, y, mask = known.annotations(batch.index)
        return criterion(model(batch.x, pi), y, mask)

    return loss
