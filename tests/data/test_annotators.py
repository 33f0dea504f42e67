from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from torchstone.data import AnnotatorDataset, answer_table, majority_vote, simulate_answers
from torchstone.testing import check_generator

N, R, C, A = 6, 3, 4, 5
ANSWERS = torch.tensor([[0, 1, 2], [3, -1, -1], [2, 2, -1], [1, 0, 3], [-1, -1, -1], [-1, 3, 1]])
IDS = torch.tensor([[4, 1, 0], [2, -1, -1], [0, 3, -1], [1, 2, 3], [-1, -1, -1], [-1, 4, 2]])
FEATURES = torch.arange(N * R * 2, dtype=torch.float32).view(N, R, 2)


def inputs() -> TensorDataset:
    return TensorDataset(torch.arange(N, dtype=torch.float32)[:, None], torch.full((N,), 9))


def data(*, ids: bool = True, features: bool = False, **options: Any) -> AnnotatorDataset:
    return AnnotatorDataset(inputs(), ANSWERS, IDS if ids else None, FEATURES if features else None, **options)


def test_items_hold_all_answers_padded():
    x, ids, y, mask = data()[2]
    assert (x.tolist(), ids.tolist(), y.tolist(), mask.tolist()) == ([2], [0, 3, -1], [2, 2, -1], [True, True, False])
    x, features, y, mask = data(ids=False, features=True)[1]
    assert features.tolist() == [[6, 7], [0, 0], [0, 0]]
    _, pair, _, _ = data(features=True)[3]
    assert [part.tolist() for part in pair] == [[1, 2, 3], [[18, 19], [20, 21], [22, 23]]]
    assert (data().num_annotators, data().pi_dim, data(ids=False, features=True).num_annotators) == (5, 0, 0)
    assert data(num_annotators=9, features=True).pi_dim == 2


@pytest.mark.parametrize("options", [{}, {"features": True}, {"ids": False, "features": True}, {"sample": 2}])
def test_a_loader_gives_what_the_tables_hold(options):
    found = data(**options)
    for x, pi, y, mask in DataLoader(found, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)):
        index = x[:, 0].long()
        assert y.shape == mask.shape == (len(x), options.get("sample", R))
        assert torch.equal(mask, y >= 0)
        if "sample" not in options:
            direct = found.annotations(index)
            assert torch.equal(direct.y, y)
            first, second = (direct.pi, pi) if isinstance(pi, torch.Tensor) else (direct.pi[0], pi[0])
            assert torch.equal(first, second)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_a_draw_takes_different_answers_and_keeps_them_with_their_annotators(sample, seed):
    found = data(features=True, sample=sample, generator=torch.Generator().manual_seed(seed))
    (ids, features), y, mask = found.annotations(torch.arange(N))
    width = min(sample, R)
    assert y.shape == (N, width)
    for row in range(N):
        known = {
            (int(IDS[row, k]), int(ANSWERS[row, k]), tuple(FEATURES[row, k].tolist()))
            for k in range(R)
            if ANSWERS[row, k] >= 0
        }
        drawn = [(int(ids[row, k]), int(y[row, k]), tuple(features[row, k].tolist())) for k in range(width)]
        real = [entry for entry, there in zip(drawn, mask[row], strict=True) if there]
        assert len(real) == len(set(real)) == min(len(known), width)
        assert set(real) <= known
        assert all(e == (-1, -1, (0.0, 0.0)) for e, there in zip(drawn, mask[row], strict=True) if not there)


def test_draws_are_even_and_come_from_the_generator():
    found = data(sample=1, generator=torch.Generator().manual_seed(0))
    counts = Counter(int(found.annotations(torch.tensor([0])).pi) for _ in range(3000))
    assert set(counts) == {4, 1, 0}
    assert all(abs(count - 1000) < 120 for count in counts.values())
    assert {int(found.annotations(torch.tensor([5])).y) for _ in range(50)} == {3, 1}
    index = torch.arange(N).repeat(20)
    check_generator(lambda generator: data(sample=1, generator=generator).annotations(index).y)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_draw_anew_each_epoch():
    found = data(sample=1, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(found, batch_size=N, num_workers=1, generator=torch.Generator().manual_seed(1))
    epochs = [next(iter(loader))[2].flatten().tolist() for _ in range(8)]
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = DataLoader(found, batch_size=N, num_workers=1, generator=torch.Generator().manual_seed(1))
    assert epochs[0] == next(iter(again))[2].flatten().tolist()


def test_an_id_without_an_answer_is_nobody():
    found = AnnotatorDataset(inputs(), ANSWERS, IDS.clamp(min=0))
    assert torch.equal(found.annotations(torch.arange(N)).pi, IDS)


def test_one_answer_each_and_another_device():
    found = AnnotatorDataset(inputs(), torch.arange(N) % C, torch.arange(N) % A)
    assert found[3][1:] == (torch.tensor([3]), torch.tensor([3]), torch.tensor([True]))
    moved = found.to("cpu")
    assert torch.equal(moved.answers, found.answers)
    assert moved.num_annotators == A


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"annotators": None}, ValueError, r"give annotators \(ids\) or features, or both"),
        ({"answers": ANSWERS.float()}, TypeError, "answers must have dtype torch.int64, but have torch.float32"),
        ({"answers": ANSWERS[:5]}, ValueError, r"answers must have as many rows as dataset \(6\), but has 5"),
        ({"answers": ANSWERS - 1}, ValueError, "answers must have at least 1 column of numbers from 0 on, or -1"),
        ({"annotators": IDS[:, :2]}, ValueError, r"annotators must have the shape of answers \(6, 3\), but have"),
        ({"annotators": IDS - (IDS == 2) * 3}, ValueError, "but sample 1 has an answer by nobody"),
        ({"num_annotators": 4}, ValueError, r"annotators must lie in 0..3 \(num_annotators\), but one is 4"),
        ({"features": FEATURES.long()}, TypeError, "features must be floating point"),
        ({"features": FEATURES[:, :2]}, ValueError, r"features must have shape \(6, 3, 'm'\) as answers"),
        ({"features": FEATURES / 0}, ValueError, "features holds .* NaN or infinite values"),
        ({"sample": 0}, ValueError, "sample must be >= 1"),
        ({"dataset": iter(())}, TypeError, "dataset must have numbered items"),
    ],
)
@pytest.mark.untyped
def test_bad_tables(change, error, message):
    with pytest.raises(error, match=message):
        AnnotatorDataset(**{"dataset": inputs(), "answers": ANSWERS, "annotators": IDS, **change})


@pytest.mark.untyped
def test_a_long_list_becomes_a_table():
    item = torch.tensor([2, 0, 2, 2, 0])
    ids, answers = answer_table(item, torch.arange(5), torch.arange(10, 15), 4)
    assert ids.tolist() == [[1, 4, -1], [-1, -1, -1], [0, 2, 3], [-1, -1, -1]]
    assert answers.tolist() == [[11, 14, -1], [-1, -1, -1], [10, 12, 13], [-1, -1, -1]]
    with pytest.raises(ValueError, match=r"item must lie in 0..1, but spans 0..2"):
        answer_table(item, item, item, 2)
    with pytest.raises(ValueError, match="answer must have as many rows as item"):
        answer_table(item, item, item[:2], 3)


def test_votes():
    answers = torch.tensor([[1, 2, 2], [3, 0, -1], [-1, 2, -1], [0, 3, 3]])
    assert majority_vote(answers, 4).tolist() == [2, 3, 2, 3]
    with pytest.raises(ValueError, match="sample 4 has no answer to vote with"):
        majority_vote(ANSWERS, 4)
    with pytest.raises(ValueError, match=r"answers must lie in -1..2, but span -1..3"):
        majority_vote(answers, 3)


def test_simulated_annotators_answer_by_their_confusion():
    draws = torch.Generator().manual_seed(0)
    confusion = torch.rand(A, C, C, generator=draws)
    confusion /= confusion.sum(2, keepdim=True)
    y = torch.arange(20_000) % C
    ids, answers = simulate_answers(y, confusion, 2, generator=draws)
    assert (ids[:, 0] != ids[:, 1]).all()
    assert torch.bincount(ids.flatten()).float().sub(8000).abs().max() < 300
    seen = torch.zeros(A, C, C)
    seen.index_put_((ids.flatten(), y.repeat_interleave(2), answers.flatten()), torch.ones(()), accumulate=True)
    torch.testing.assert_close(seen / seen.sum(2, keepdim=True), confusion, atol=0.05, rtol=0)
    check_generator(lambda generator: simulate_answers(y[:50], confusion, generator=generator))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([0]), torch.rand(2, 3, 3)), "confusion must hold one distribution over the classes"),
        ((torch.tensor([3]), torch.eye(3).expand(2, 3, 3)), "y must lie in 0..2"),
        ((torch.tensor([0]), torch.eye(3).expand(2, 3, 3), 3), "per_item must be in 1..2"),
        ((torch.tensor([0]), torch.eye(3)), r"confusion must have shape \(annotators, classes, classes\)"),
    ],
)
@pytest.mark.untyped
def test_bad_crowds(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_answers(*arguments)
