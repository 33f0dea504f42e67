"""What the arms of the study of TRAM train, and how they predict without annotators.

A function ``train_...`` gives a network with both heads; a function ``by_...`` turns it into a predictor, so that ways
to predict share one training. The functions ``fit_...`` train a plain network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.bench.study import Cell
from torchstone.data.annotators import AnnotatorDataset, majority_vote, simulate_answers
from torchstone.data.registry import load
from torchstone.data.tensors import TensorData
from torchstone.models import initialize_
from torchstone.noise import TRAM, marginalize
from torchstone.studies._rivals.crowd import CrowdLayer, dawid_skene
from torchstone.tracks._noisy_data import Problem, Task
from torchstone.tracks._noisy_fits import MakeModel, train_by_recipe
from torchstone.tracks._tram_fit import annotated, fit_tram, network_of, train_tram
from torchstone.training import Batch, predict

__all__ = [
    "CROWDS",
    "SimulatedCrowd",
    "by_marginal",
    "by_mean_pi",
    "by_no_pi",
    "by_student",
    "by_zero_pi",
    "fit_crowd_layer",
    "fit_dawid_skene",
    "fit_distilled",
    "fit_no_pi",
    "fit_without_spammers",
    "train_on_confidence",
    "train_on_everything",
    "train_on_ids",
    "train_on_indicator",
    "train_on_permuted",
    "train_on_random",
    "train_undetached",
]

CROWDS = {"a20": (20, 1), "a400": (400, 1), "a20x3": (20, 3)}
"""Case -> annotators, answers for each image. The first half of the annotators guess, the others are always right."""

RANDOM_PI = 8  # numbers in a random vector of privileged information
CONFIDENCE_NOISE = 0.5  # standard deviation of the noise of an answer's stated confidence


@dataclass(frozen=True, eq=False)
class SimulatedCrowd:
    """``Experiment.shared``: an embedded set whose right labels are replaced by answers of simulated annotators.

    Columns of the training data: ``annotator`` and ``answer`` (n, R); ``pi`` (n, R, 2) holds whether the answer is
    wrong, and a confidence, 1 for a right and 0 for a wrong answer with normal noise. Arms say which they use.
    """

    data: str

    def __call__(self, cell: Cell) -> Task:
        """The task of a cell."""
        data = load(self.data)
        annotators, per_item = CROWDS[cell.case]
        generator = cell.seeds.generator("noise", "crowd")
        classes = data.num_classes
        guess = torch.full((annotators // 2, classes, classes), 1 / classes)
        right = torch.eye(classes).expand(annotators - len(guess), -1, -1)
        ids, answers = simulate_answers(data.y, torch.cat([guess, right]), per_item, generator=generator)
        wrong = (answers != data.y[:, None]).float()
        confidence = 1 - wrong + CONFIDENCE_NOISE * torch.randn(wrong.shape, generator=generator)
        columns = {
            "label": majority_vote(answers, classes),
            "annotator": ids,
            "answer": answers,
            "pi": torch.stack([wrong, confidence], -1),
        }
        return Problem(replace(data, columns=columns))(cell)


# ---------------------------------------------------------------- networks with both heads


def train_on_everything(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM with all that is known of the labels."""
    return train_tram(make_model, train, val, cell, lr=lr)


def train_on_ids(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM with who gave each label."""
    return train_tram(make_model, _with(train, "annotator"), val, cell, lr=lr)


def train_undetached(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM whose head without privileged information trains the features too."""
    return train_tram(make_model, _with(train, "annotator"), val, cell, lr=lr, detach=False)


def train_on_permuted(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM with the right annotators at the wrong labels."""
    ids = train.columns["annotator"].clone()
    there = ids >= 0
    given = ids[there]
    ids[there] = given[torch.randperm(len(given), generator=cell.seeds.generator("noise", "permuted"))]
    train = replace(train, columns={**train.columns, "annotator": ids})
    return train_tram(make_model, _with(train, "annotator"), val, cell, lr=lr)


def train_on_random(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM with a random vector for each label, which says nothing of it but that it is this one."""
    shape = (*train.columns["answer"].shape, RANDOM_PI)
    pi = torch.randn(shape, generator=cell.seeds.generator("noise", "random"))
    return train_tram(make_model, _with(replace(train, columns={**train.columns, "pi": pi}), "pi"), val, cell, lr=lr)


def train_on_indicator(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM told which labels are wrong."""
    return train_tram(make_model, _with(_part_of_pi(train, 0), "pi"), val, cell, lr=lr)


def train_on_confidence(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> TRAM:
    """TRAM with who gave each label, and how sure of it they were."""
    return train_tram(make_model, _with(_part_of_pi(train, 1), "annotator", "pi"), val, cell, lr=lr)


# ---------------------------------------------------------------- predictors made of them


def by_no_pi(model: TRAM, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """The head without privileged information: TRAM itself."""
    return network_of(model)


def by_marginal(model: TRAM, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """The mean of the head with privileged information over all annotators, by their frequency."""
    return _Marginal(model, _frequency(model, train))


def by_mean_pi(model: TRAM, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """The head with privileged information, given the mean annotator: the mean of one-hot vectors."""
    frequency = _frequency(model, train)
    return _Imputed(model, frequency / frequency.sum())


def by_zero_pi(model: TRAM, train: TensorData, val: TensorData, cell: Cell) -> nn.Module:
    """The head with privileged information, given zeros."""
    return _Imputed(model, torch.zeros_like(_frequency(model, train)))


def by_student(model: TRAM, train: TensorData, val: TensorData, cell: Cell, *, student_lr: float) -> nn.Module:
    """Generalised distillation: a new network learns half from the labels, half from the head that saw annotators."""
    known = annotated(_with(train, "annotator"))
    teacher = _answers_of(model, train.x, known)
    student = initialize_(copy.deepcopy(network_of(model)), cell.seeds.generator("init", "student"))
    known, teacher = known.to(cell.device), teacher.to(cell.device)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert batch.index is not None
        _, y, mask = known.annotations(batch.index)
        log_p = network(batch.x).log_softmax(1).unsqueeze(1)
        log_q = teacher[batch.index]
        divergence = (log_q.exp() * (log_q - log_p)).sum(2)
        return 0.5 * divergence[mask].mean() + 0.5 * _cross_entropy(log_p, y, mask)

    train_by_recipe(student, train, cell, loss, lr=student_lr)
    return student


class _Marginal(nn.Module):
    frequency: Tensor

    def __init__(self, model: TRAM, frequency: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("frequency", frequency)

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(len(self.frequency), device=x.device)
        return marginalize(self.model, x, ids, weights=self.frequency).log()


class _Imputed(nn.Module):
    share: Tensor

    def __init__(self, model: TRAM, share: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("share", share)

    def forward(self, x: Tensor) -> Tensor:
        head = self.model.pi_head
        assert head.embedding is not None
        return head.combine(self.model.features(x), (self.share @ head.embedding.weight).relu())


# ---------------------------------------------------------------- plain networks


def fit_no_pi(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> nn.Module:
    """Cross entropy with all answers, as if all were right."""
    return _fit(make_model(), train, cell, annotated(_with(train, "annotator")), _answers_as_labels, lr=lr)


def fit_without_spammers(
    make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float
) -> nn.Module:
    """Cross entropy with the answers of those who do not guess: images without one take part in no step."""
    annotators, _ = CROWDS[cell.case]
    answer = train.columns["answer"].masked_fill(train.columns["annotator"] < annotators // 2, -1)
    known = annotated(_with(replace(train, columns={**train.columns, "answer": answer}), "annotator"))
    return _fit(make_model(), train, cell, known, _answers_as_labels, lr=lr)


def fit_distilled(
    make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float, distillation: float
) -> nn.Module:
    """TRAM whose head without privileged information learns from the other head too."""
    return fit_tram(make_model, _with(train, "annotator"), val, cell, lr=lr, distillation=distillation)


def fit_crowd_layer(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> nn.Module:
    """A confusion matrix for each annotator behind the network, which is used without it."""
    known = annotated(_with(train, "annotator"))
    layer = CrowdLayer(known.num_annotators, train.num_classes).to(cell.device)

    def of_crowd(logits: Tensor, ids: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return layer(logits, ids, y, mask)

    return _fit(make_model(), train, cell, known, of_crowd, lr=lr, extra=layer)


def fit_dawid_skene(make_model: MakeModel, train: TensorData, val: TensorData, cell: Cell, *, lr: float) -> nn.Module:
    """Cross entropy with the classes that the votes of Dawid and Skene hold for right, each by its probability."""
    posterior = dawid_skene(train.columns["annotator"], train.columns["answer"], train.num_classes).to(cell.device)
    network = make_model()

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        assert batch.index is not None
        return F.cross_entropy(network(batch.x), posterior[batch.index])

    train_by_recipe(network, train, cell, loss, lr=lr)
    return network


# ---------------------------------------------------------------- what they share


def _with(train: TensorData, *names: str) -> TensorData:
    """The training data with these columns and the answers alone."""
    kept = {name: train.columns[name] for name in (*names, "answer") if name in train.columns}
    return replace(train, columns=kept)


def _part_of_pi(train: TensorData, place: int) -> TensorData:
    return replace(train, columns={**train.columns, "pi": train.columns["pi"][..., place : place + 1]})


def _fit(
    network: nn.Module,
    train: TensorData,
    cell: Cell,
    known: AnnotatorDataset,
    criterion: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    lr: float,
    extra: nn.Module | None = None,
) -> nn.Module:
    """Train with ``criterion(logits, ids, answers, mask)``; its weights, in ``extra``, do not decay."""
    known = known.to(cell.device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert batch.index is not None
        ids, y, mask = known.annotations(batch.index)
        return criterion(model(batch.x), ids, y, mask)

    groups = [] if extra is None else [{"params": list(extra.parameters()), "weight_decay": 0.0}]
    modules = [] if extra is None else [extra]
    train_by_recipe(network, train, cell, loss, lr=lr, groups=groups, modules=modules)
    return network


def _answers_as_labels(logits: Tensor, ids: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return _cross_entropy(logits.log_softmax(1).unsqueeze(1), y, mask)


def _cross_entropy(log_p: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Mean of -log p at the answers that there are; 0 if there is none."""
    nll = -log_p.expand(*y.shape, -1).gather(2, y.clamp(min=0).unsqueeze(2)).squeeze(2)
    return nll.where(mask, 0).sum() / mask.sum().clamp(min=1)


def _frequency(model: TRAM, train: TensorData) -> Tensor:
    """How many of the training labels each annotator gave."""
    embedding = model.pi_head.embedding
    assert embedding is not None
    ids = train.columns["annotator"]
    return torch.bincount(ids[ids >= 0], minlength=embedding.num_embeddings).float().to(embedding.weight.device)


def _answers_of(model: TRAM, x: Tensor, known: AnnotatorDataset) -> Tensor:
    """Log-probabilities of the head with privileged information, (n, R, classes), on the CPU."""
    model.eval()
    with torch.no_grad():
        features = predict(model.body, x)
        parts = [
            model.pi_head(part.to(_device(model)), known.annotations(index).pi.to(_device(model))).log_softmax(2).cpu()
            for part, index in zip(features.split(1024), torch.arange(len(x)).split(1024), strict=True)
        ]
    return torch.cat(parts)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
