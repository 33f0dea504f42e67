from __future__ import annotations

import math

import pytest
import torch

from torchstone.data import majority_vote, simulate_answers
from torchstone.studies._rivals.crowd import CrowdLayer, dawid_skene

C, A, N = 3, 4, 60


def crowd() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    confusion = torch.stack([torch.full((C, C), 1 / C), *[0.7 * torch.eye(C) + 0.1] * 3])
    y = torch.arange(N) % C
    ids, answers = simulate_answers(y, confusion, 3, generator=draws)
    gone = torch.rand(N, 3, generator=draws) < 0.2
    gone[:, 0] = False
    return y, ids.masked_fill(gone, -1), answers.masked_fill(gone, -1)


def literal_dawid_skene(ids: torch.Tensor, answers: torch.Tensor, iterations: int, smoothing: float) -> torch.Tensor:
    """The equations of 1979, one annotator, sample and class at a time."""
    given = [
        [(int(a), int(c)) for a, c in zip(*rows, strict=True) if c >= 0] for rows in zip(ids, answers, strict=True)
    ]
    p = [[sum(c == k for _, c in one) / len(one) for k in range(C)] for one in given]
    for _ in range(iterations):
        prior = [sum(q[k] for q in p) + smoothing for k in range(C)]
        counts = [[[smoothing] * C for _ in range(C)] for _ in range(A)]
        for one, q in zip(given, p, strict=True):
            for a, c in one:
                for k in range(C):
                    counts[a][k][c] += q[k]
        rates = [[[v / sum(row) for v in row] for row in matrix] for matrix in counts]
        new = []
        for one in given:
            likelihood = [prior[k] / sum(prior) * math.prod(rates[a][k][c] for a, c in one) for k in range(C)]
            new.append([v / sum(likelihood) for v in likelihood])
        p = new
    return torch.tensor(p)


@pytest.mark.parametrize("iterations", [0, 1, 20])
def test_dawid_and_skene_by_hand(iterations: int) -> None:
    _, ids, answers = crowd()
    got = dawid_skene(ids, answers, C, iterations=iterations, smoothing=0.3)
    torch.testing.assert_close(got, literal_dawid_skene(ids, answers, iterations, 0.3), atol=1e-5, rtol=0)


def test_their_votes_beat_the_majority_where_some_annotators_guess() -> None:
    draws = torch.Generator().manual_seed(1)
    confusion = torch.cat([torch.full((6, C, C), 1 / C), (0.9 * torch.eye(C) + 0.1 / C).repeat(3, 1, 1)])
    y = torch.arange(600) % C
    ids, answers = simulate_answers(y, confusion, 5, generator=draws)
    voted = dawid_skene(ids, answers, C).argmax(1)
    assert float((voted == y).float().mean()) > float((majority_vote(answers, C) == y).float().mean()) + 0.05


def test_one_answer_each_leaves_the_votes() -> None:
    answers = torch.arange(N)[:, None] % C
    assert torch.equal(dawid_skene(torch.arange(N)[:, None] % A, answers, C).argmax(1), answers[:, 0])


def test_the_crowd_layer_by_hand() -> None:
    _, ids, answers = crowd()
    layer, logits = CrowdLayer(A, C), torch.randn(N, C)
    with torch.no_grad():
        layer.confusion.add_(torch.randn(A, C, C))
    confusion, total, number = layer.confusion.detach().softmax(-1), 0.0, 0
    for i in range(N):
        p = logits[i].softmax(0)
        for a, c in zip(ids[i], answers[i], strict=True):
            if c >= 0:
                total -= math.log(sum(float(p[k] * confusion[a, k, c]) for k in range(C)))
                number += 1
    assert float(layer(logits, ids, answers, answers >= 0).detach()) == pytest.approx(total / number, rel=1e-5)
    start = CrowdLayer(A, C, right=0.8).confusion.softmax(-1)
    torch.testing.assert_close(start.diagonal(dim1=1, dim2=2), torch.full((A, C), 0.8))


def test_the_crowd_layer_learns_who_guesses() -> None:
    draws = torch.Generator().manual_seed(0)
    confusion = torch.stack([torch.full((C, C), 1 / C), torch.eye(C)])
    y = torch.arange(3000) % C
    ids, answers = simulate_answers(y, confusion, generator=draws)
    layer, logits = CrowdLayer(2, C), 10 * torch.nn.functional.one_hot(y).float()
    sgd = torch.optim.SGD(layer.parameters(), lr=5.0)
    for _ in range(100):
        loss = layer(logits, ids, answers, answers >= 0)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    torch.testing.assert_close(layer.confusion.detach().softmax(-1), confusion, atol=0.06, rtol=0)
