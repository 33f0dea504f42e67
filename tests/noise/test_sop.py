from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from torchstone.noise import SparseOverparamLoss, sparse_overparam_loss, suggest_rates
from torchstone.noise.sop import (
    balance_term,
    consistency_term,
    corrected_probabilities,
    cross_entropy_head,
    noise_masses,
    squared_head,
)

N, C, B = 12, 4, 5
VARIANTS = ("code", "paper")


def batch(seed: int = 0, size: int = B) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels (a function of the index) and indices of a batch without repeats."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(N, generator=generator)[:size]
    return 2 * torch.randn(size, C, generator=generator, dtype=torch.float64), index * 7 % C, index


def rows(seed: int = 0, size: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    u = torch.rand(size, 1, generator=generator, dtype=torch.float64)
    return u, 1.2 * torch.rand(size, C, generator=generator, dtype=torch.float64)


def criterion(seed: int = 0, **arguments) -> SparseOverparamLoss:
    generator = torch.Generator().manual_seed(seed)
    return SparseOverparamLoss(N, C, **{"dtype": torch.float64, "init_std": 0.3, **arguments}, generator=generator)


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    exponentials = [math.exp(value - top) for value in z]
    return [value / sum(exponentials) for value in exponentials]


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def oracle(z, y, u, v, z_aug, *, eps, variant, balance, consistency, stopped):
    """The equations in plain loops over floats; ``stopped`` = (z, u, v) stand where no gradient may pass."""
    z_stop, u_stop, v_stop = stopped
    size = len(z)
    loss, mean_q = 0.0, [0.0] * C
    for i in range(size):
        p = softmax(z[i])
        put = [clip(u[i][0] ** 2, 0, 1) if c == y[i] else 0.0 for c in range(C)]
        put_stop = [clip(u_stop[i][0] ** 2, 0, 1) if c == y[i] else 0.0 for c in range(C)]
        taken = [0.0 if c == y[i] else clip(v[i][c] ** 2, 0, 1) for c in range(C)]
        taken_stop = [0.0 if c == y[i] else clip(v_stop[i][c] ** 2, 0, 1) for c in range(C)]

        q = [max(p[c] + put[c] - taken_stop[c], eps) for c in range(C)]
        total = max(sum(q), eps)
        q = [clip(value / total, eps, 1.0) for value in q]
        loss -= math.log(q[y[i]]) / size
        for c in range(C):
            mean_q[c] += q[c] / size

        predicted = z_stop[i].index(max(z_stop[i]))
        for c in range(C):
            squared_put = put_stop[c] if variant == "paper" else put[c]
            loss += ((c == predicted) + squared_put - taken[c] - (c == y[i])) ** 2 / size

        if consistency:
            for a, b in zip(softmax(z_stop[i]), softmax(z_aug[i]), strict=True):
                loss += consistency * a * (math.log(a) - math.log(b)) / size
    for c in range(C):
        loss -= balance / C * math.log(clip(mean_q[c], eps, 1.0))
    return loss


def central_difference(f, tensor: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    gradient = torch.zeros_like(tensor)
    for place in range(tensor.numel()):
        shifted = [tensor.clone(), tensor.clone()]
        shifted[0].view(-1)[place] += step
        shifted[1].view(-1)[place] -= step
        gradient.view(-1)[place] = (f(shifted[0].tolist()) - f(shifted[1].tolist())) / (2 * step)
    return gradient


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.9)])
def test_value_and_gradients_equal_the_equations_in_plain_loops(variant, weights):
    (z, y, _), (u, v), z_aug = batch(1), rows(1), batch(2)[0]
    inputs = [tensor.requires_grad_() for tensor in (z, u, v, z_aug)]
    loss = sparse_overparam_loss(
        z, y, u, v, z_aug, eps=0.02, variant=variant, lambda_balance=weights[0], lambda_consistency=weights[1]
    )
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    values = [tensor.tolist() for tensor in inputs]
    assert v.max() > 1  # the clip acts

    def slow(position, changed):
        z_, u_, v_, aug_ = (changed if k == position else value for k, value in enumerate(values))
        return oracle(
            z_, y.tolist(), u_, v_, aug_, eps=0.02, variant=variant, balance=weights[0], consistency=weights[1],
            stopped=values[:3],
        )  # fmt: skip

    torch.testing.assert_close(loss.item(), slow(0, values[0]))
    for position, gradient in enumerate(gradients):
        expected = central_difference(lambda changed, k=position: slow(k, changed), inputs[position].detach())
        gradient = torch.zeros_like(expected) if gradient is None else gradient
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_known_values():
    u, v, y = torch.tensor([[0.5]]), torch.tensor([[9.0, 2.0, 0.5]]), torch.tensor([0])
    put, taken = noise_masses(u, v, y)
    assert put.tolist() == [[0.25, 0.0, 0.0]]
    assert taken.tolist() == [[0.0, 1.0, 0.25]]
    q = corrected_probabilities(torch.tensor([[0.5, 0.25, 0.25]]).log(), put, taken, eps=0.125)
    torch.testing.assert_close(q, torch.tensor([[0.75, 0.125, 0.125]]))
    torch.testing.assert_close(cross_entropy_head(q, y).item(), -math.log(0.75))
    torch.testing.assert_close(squared_head(torch.tensor([[0.0, 1.0, 0.0]]), put, taken, y).item(), 0.75**2 + 0.25**2)
    torch.testing.assert_close(balance_term(q).item(), -(math.log(0.75) + 2 * math.log(0.125)) / 3)
    same = torch.tensor([[1.0, 2.0, 3.0]])
    assert consistency_term(same, same).item() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_noise_it_is_cross_entropy_plus_a_constant(variant):
    z, y, _ = batch()
    z.requires_grad_()
    zero = torch.zeros(B, C, dtype=torch.float64)
    loss = sparse_overparam_loss(z, y, zero[:, :1], zero, variant=variant)
    expected = F.cross_entropy(z, y)
    misses = (z.argmax(1) != y).double().mean()
    torch.testing.assert_close(loss, expected + 2 * misses)
    assert z.detach().softmax(1).min() > 1e-4
    torch.testing.assert_close(
        torch.autograd.grad(loss, z)[0], torch.autograd.grad(expected, z)[0], rtol=1e-6, atol=1e-12
    )


def test_the_heads_do_not_reach_across():
    (z, y, _), (u, v) = batch(), rows()
    for tensor in (z, u, v):
        tensor.requires_grad_()
    put, taken = noise_masses(u, v, y)
    cross_entropy = cross_entropy_head(corrected_probabilities(z, put, taken), y)
    assert torch.autograd.grad(cross_entropy, v, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(squared_head(z, put, taken, y), z, allow_unused=True, retain_graph=True) == (None,)
    (gradient,) = torch.autograd.grad(sparse_overparam_loss(z, y, u, v), v)
    assert gradient.gather(1, y[:, None]).eq(0).all()


def test_only_the_code_variant_lets_the_squared_head_move_u():
    (z, y, _), (u, v) = batch(), rows()
    u.requires_grad_()
    cross_entropy = cross_entropy_head(corrected_probabilities(z, *noise_masses(u, v, y)), y)
    (alone,) = torch.autograd.grad(cross_entropy, u)
    (paper,) = torch.autograd.grad(sparse_overparam_loss(z, y, u, v, variant="paper"), u)
    (code,) = torch.autograd.grad(sparse_overparam_loss(z, y, u, v, variant="code"), u)
    torch.testing.assert_close(paper, alone)
    assert (code != alone).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0, 3))
def test_masses_and_probabilities_stay_in_their_places(seed, scale):
    (z, y, _), (u, v) = batch(seed), rows(seed)
    put, taken = noise_masses(scale * u, scale * v, y)
    label = F.one_hot(y, C).bool()
    for mass in (put, taken):
        assert ((mass >= 0) & (mass <= 1)).all()
    assert put[~label].eq(0).all()
    assert taken[label].eq(0).all()
    q = corrected_probabilities(z, put, taken)
    assert (q.sum(1) - 1).abs().max() <= C * 1e-4
    assert ((q >= 1e-4) & (q <= 1)).all()


def wrong_label_visits(variant: str, lr_u: float, lr_v: float, start: float, visits: int, size: int = 8):
    """A sample labelled 0 that the network puts at class 1 (p = 0.49 against 0.51), visited again and again."""
    module = SparseOverparamLoss(size, 2, dtype=torch.float64, variant=variant)
    with torch.no_grad():
        module.u.fill_(start)
        module.v.fill_(start)
    optimizer = torch.optim.SGD(module.param_groups(lr_u, lr_v))
    logits = torch.tensor([0.49, 0.51], dtype=torch.float64).log().expand(size, 2)
    index = torch.arange(size)
    history = []
    for _ in range(visits):
        optimizer.zero_grad()
        module(logits, torch.zeros(size, dtype=torch.int64), index).backward()
        optimizer.step()
        if variant == "paper":
            module.project_(index)
        history.append((module.u[0, 0].item(), module.v[0, 1].item()))
    return history


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lr_v", [0.5, 10.0])
def test_one_visit_multiplies_v_by_the_growth_factor(variant, lr_v):
    start = 5e-4  # V = 2.5e-7
    ((u, v),) = wrong_label_visits(variant, 0.1, lr_v, start, visits=1)
    assert v / start == pytest.approx(1 + 4 * lr_v / 8, rel=1e-6)
    odds = 0.51 / 0.49 + (2 if variant == "code" else 0)
    assert u / start == pytest.approx(1 + 2 * 0.1 / 8 * odds, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("epochs", "init_std"), [(120, 1e-8), (60, 1e-4)])
def test_suggested_rates_grow_u_and_v_in_time_and_no_sooner(variant, epochs, init_std):
    rates = suggest_rates(8, epochs, init_std=init_std, variant=variant)
    history = wrong_label_visits(variant, *rates, start=init_std, visits=epochs)
    half, end = history[epochs // 2 - 1], history[-1]
    assert 0.5 < half[1] < 1.1
    assert 0.5 < half[0] < 1.7
    assert end[0] > 0.5
    assert end[1] > 0.99
    assert max(history[epochs // 4]) < 0.05
    slow = wrong_label_visits(variant, *(rate / 20 for rate in rates), start=init_std, visits=epochs)
    assert max(slow[-1]) < 4 * math.sqrt(init_std)  # a twentieth of the rates: still cross entropy


def test_v_overshoots_one_only_above_an_eighth_of_the_batch():
    gentle = wrong_label_visits("code", 0.1, 8 / 8, start=1e-3, visits=60)
    hasty = wrong_label_visits("code", 0.1, 8 / 4, start=1e-3, visits=60)
    assert 0.99 < max(v for _, v in gentle) <= 1 + 1e-12
    assert 1.001 < hasty[-1][1] == hasty[-10][1]  # and stays there


def test_suggested_rates_by_hand():
    assert suggest_rates(40, 8, init_std=1e-4) == pytest.approx((9 * 40 / 6, 9 * 40 / 4))  # growth 1e4^(1/4) = 10
    assert suggest_rates(40, 4, init_std=1e-4, share=1.0) == pytest.approx((60.0, 90.0))
    assert suggest_rates(40, 8, init_std=1e-4, variant="paper").lr_u == pytest.approx(180.0)
    assert suggest_rates(4, 1, init_std=0.5).lr_v == pytest.approx(1.0)  # never less than one visit
    with pytest.raises(ValueError, match="epochs must be >= 1"):
        suggest_rates(8, 0)
    with pytest.raises(ValueError, match="variant must be one of"):
        suggest_rates(8, 1, variant="both")


def train(
    module: SparseOverparamLoss, steps: range, *, rows_of=None, model: torch.nn.Linear | None = None, lr: float = 2.0
):
    """Steps on fixed inputs of a linear model (or on free logits); ``rows_of`` maps sample to row of u and v."""
    optimizers = [torch.optim.SGD(module.param_groups(lr, 2 * lr))]
    if model is not None:
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for step in steps:
        logits, target, index = batch(step)
        if model is not None:
            logits = model(inputs()[index])
        for optimizer in optimizers:
            optimizer.zero_grad()
        module(logits, target, index if rows_of is None else rows_of[index]).backward()
        for optimizer in optimizers:
            optimizer.step()
        module.project_(index if rows_of is None else rows_of[index])


def inputs() -> torch.Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def linear() -> torch.nn.Linear:
    model = torch.nn.Linear(3, C).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.filterwarnings("ignore:index names a sample twice")
def test_sliced_updates_equal_dense_ones(variant, repeat):
    module = criterion(variant=variant, lambda_balance=0.1)
    u, v = (tensor.detach().clone().requires_grad_() for tensor in (module.u, module.v))
    sliced = torch.optim.SGD(module.param_groups(2.0, 4.0))
    dense = torch.optim.SGD([{"params": [u], "lr": 2.0}, {"params": [v], "lr": 4.0}])
    for step in range(20):
        logits, target, index = batch(step)
        if repeat:
            index, target = index.clone(), target.clone()
            index[1], target[1] = index[0], target[0]
        sliced.zero_grad()
        dense.zero_grad()
        loss = module(logits, target, index)
        expected = sparse_overparam_loss(logits, target, u[index], v[index], variant=variant, lambda_balance=0.1)
        loss.backward()
        expected.backward()
        sliced.step()
        dense.step()
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module.u, u)
    torch.testing.assert_close(module.v, v)


@pytest.mark.parametrize("foreach", [None, True, False])
def test_unvisited_samples_keep_their_bits(foreach):
    module = criterion(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.param_groups(5.0, 5.0), foreach=foreach)
    logits, target, index = batch()
    module(logits, target, index).backward()
    assert module.v.grad is not None
    assert module.v.grad.layout == torch.sparse_coo
    assert module.v.grad._nnz() == B
    optimizer.step()
    away = torch.ones(N, dtype=torch.bool)
    away[index] = False
    assert torch.equal(module.u[away], before["u"][away])
    assert torch.equal(module.v[away], before["v"][away])
    assert (module.u[index] != before["u"][index]).all()


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(N)))
def test_permuting_the_samples_changes_nothing(order):
    rows_of = torch.tensor(order)
    plain, permuted = criterion(init_std=0.1), criterion(init_std=0.1)
    with torch.no_grad():
        permuted.u[rows_of], permuted.v[rows_of] = plain.u.clone(), plain.v.clone()
    models = linear(), linear()
    train(plain, range(6), model=models[0])
    train(permuted, range(6), model=models[1], rows_of=rows_of)
    assert torch.equal(models[0].weight, models[1].weight)
    assert torch.equal(plain.v, permuted.v[rows_of])
    assert torch.equal(plain.noise_score(), permuted.noise_score(rows_of))


class Numbered(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, item: int):
        return inputs()[item], item * 7 % C, item


def test_a_shuffling_loader_needs_the_index_of_the_data_set():
    module, model, seen = criterion(), linear(), []
    optimizer = torch.optim.SGD(module.param_groups(0.1, 0.1))
    loader = DataLoader(Numbered(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0))
    module.check_dataset(Numbered())
    for _ in range(2):
        for x, y, index in loader:
            optimizer.zero_grad()
            before = module.u.detach().clone()
            module(model(x), y, index).backward()
            optimizer.step()
            assert set((module.u != before).nonzero()[:, 0].tolist()) == set(index.tolist())
            seen += index.tolist()
    assert seen[:N] != sorted(seen[:N])
    assert module.labels.tolist() == [item * 7 % C for item in range(N)]


def test_the_position_in_the_batch_is_not_the_index():
    module, logits = criterion(), torch.zeros(2, C)
    module(logits, torch.tensor([3, 1]), torch.arange(2))
    with pytest.raises(
        ValueError, match="sample 1 came with label 1 before and with 2 now: index must be the position in"
    ):
        module(logits, torch.tensor([3, 2]), torch.arange(2))


def test_evaluation_does_not_note_labels():
    module = criterion().eval()
    module(*batch())
    assert module.labels.eq(-1).all()


def test_noise_score_and_corrected_targets_by_hand():
    module = SparseOverparamLoss(4, 3)
    with torch.no_grad():
        module.u.copy_(torch.tensor([[0.5], [1.5], [1.0], [0.5]]))
        module.v.copy_(torch.tensor([[9.0, 0.5, 0.0], [0.0, 9.0, 2.0], [0.0, 0.0, 9.0], [0.5, 0.5, 0.5]]))
    module(torch.zeros(3, 3), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(
        module.noise(), torch.tensor([[0.25, -0.25, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    )
    torch.testing.assert_close(module.noise_score(), torch.tensor([0.25, 1.0, 1.0, 0.25]))
    third = [1 / 3] * 3
    expected = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], third, third])
    torch.testing.assert_close(module.corrected_targets(), expected)
    picked = torch.tensor([1, 0])
    torch.testing.assert_close(module.corrected_targets(picked), expected[picked])
    torch.testing.assert_close(module.noise(picked), module.noise()[picked])
    torch.testing.assert_close(module.noise_score(picked), module.noise_score()[picked])


def test_projection_touches_the_given_rows_only():
    module = criterion(init_std=0.9)
    before = module.v.detach().clone()
    module.project_(torch.tensor([3, 3, 5]))
    torch.testing.assert_close(module.v[[3, 5]], before[[3, 5]].clamp(-1, 1), rtol=0, atol=0)
    module.v.data[[3, 5]] = before[[3, 5]]
    assert torch.equal(module.v, before)
    assert before.abs().max() > 1
    module.project_()
    assert module.v.abs().max() <= 1
    assert module.u.abs().max() <= 1


def test_the_groups_are_plain_sgd_and_adam_is_refused():
    module = criterion()
    optimizer = torch.optim.SGD(module.param_groups(1.0, 2.0), lr=9.0, momentum=0.9, weight_decay=0.1)
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0, 0), (2, 0, 0)]
    assert [g["params"][0] is p for g, p in zip(optimizer.param_groups, (module.u, module.v), strict=True)] == [
        True,
        True,
    ]
    module(*batch()).backward()
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        torch.optim.Adam(module.param_groups(1.0, 1.0)).step()
    with pytest.raises(ValueError, match="lr_v must lie in"):
        module.param_groups(1.0, -1.0)


def test_gradients_accumulate_over_backward_passes():
    module, logits = criterion(), batch(0)
    module(*logits).backward()
    module(*logits).backward()
    twice = module.v.grad
    module.zero_grad()
    module(*logits).backward()
    assert twice is not None
    assert module.v.grad is not None
    torch.testing.assert_close(twice.to_dense(), 2 * module.v.grad.to_dense())


def test_the_generator_decides_the_start():
    one, same, other = criterion(1), criterion(1), criterion(2)
    assert torch.equal(one.v, same.v)
    assert not torch.equal(one.v, other.v)
    large = SparseOverparamLoss(2000, 10, generator=torch.Generator().manual_seed(0))
    assert large.v.std().item() == pytest.approx(1e-8, rel=0.02)
    assert large.u.std().item() == pytest.approx(1e-8, rel=0.05)


def test_state_dict_resumes_and_deepcopy_is_apart():
    straight, stopped = criterion(init_std=0.1), criterion(init_std=0.1)
    train(straight, range(8))
    train(stopped, range(4))
    twin = copy.deepcopy(stopped)
    resumed = criterion(7)
    resumed.load_state_dict(stopped.state_dict())
    train(resumed, range(4, 8))
    assert all(
        torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert torch.equal(twin.v, stopped.v)
    assert not torch.equal(twin.v, resumed.v)


def test_v_in_a_file_trains_like_v_in_memory(tmp_path):
    memory, mapped = criterion(init_std=0.1), criterion(init_std=0.1, file=tmp_path / "v.bin")
    train(memory, range(4))
    train(mapped, range(4))
    assert torch.equal(memory.v, mapped.v)
    on_disk = torch.from_file(str(tmp_path / "v.bin"), size=N * C, dtype=torch.float64).view(N, C)
    assert torch.equal(on_disk, mapped.v)
    copied = copy.deepcopy(mapped)
    train(mapped, range(4, 5))
    assert not torch.equal(copied.v, mapped.v)
    with pytest.raises(ValueError, match=r"v.bin' exists: name a new one, and resume by load_state_dict"):
        criterion(file=tmp_path / "v.bin")
    resumed = criterion(file=tmp_path / "w.bin")
    resumed.load_state_dict(mapped.state_dict())
    assert (tmp_path / "w.bin").read_bytes() == (tmp_path / "v.bin").read_bytes()


@pytest.mark.parametrize(("dtype", "init_std"), [(torch.bfloat16, 1e-8), (torch.float16, 1e-3)])
def test_half_precision_storage_learns_too(dtype, init_std):
    module = criterion(dtype=dtype, init_std=init_std)
    assert module.u.ne(0).all()
    reference = criterion(dtype=torch.float64)
    with torch.no_grad():
        reference.u.copy_(module.u)
        reference.v.copy_(module.v)
    train(module, range(8), lr=10.0)
    train(reference, range(8), lr=10.0)
    assert module.u.dtype == module.v.dtype == dtype
    assert module.noise().dtype == torch.float32
    torch.testing.assert_close(module.v.double(), reference.v.detach(), rtol=0.1, atol=init_std)


def test_autocast_and_loss_scaling_change_nothing_but_precision():
    plain, scaled = criterion(dtype=torch.float32), criterion(dtype=torch.float32)
    logits, target, index = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = torch.nn.functional.linear(logits.float(), torch.eye(C))
        loss = plain(low, target, index)
    assert low.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    torch.optim.SGD(plain.param_groups(1.0, 1.0)).step()

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(scaled(low.float(), target, index)).backward()
    scaler.step(torch.optim.SGD(scaled.param_groups(1.0, 1.0)))
    torch.testing.assert_close(scaled.v, plain.v)
    torch.testing.assert_close(scaled.u, plain.u)


def test_gradcheck():
    (_, y, _), (u, v), z_aug = batch(), rows(3), batch(2)[0]
    names = {"variant": "code", "lambda_balance": 0.2, "lambda_consistency": 0.5, "eps": 1e-3}
    fixed = batch()[0]  # every gradient that reaches u, v and the second view; the network's is stopped in places
    assert torch.autograd.gradcheck(
        lambda u, z_aug: sparse_overparam_loss(fixed, y, u, v, z_aug, **names),
        (u.requires_grad_(), z_aug.requires_grad_()),
    )


def test_empty_batch_is_zero_and_strided_input_is_welcome():
    nothing = torch.zeros(0, dtype=torch.int64)
    module = criterion(lambda_balance=0.1)
    loss = module(torch.zeros(0, C, requires_grad=True), nothing, nothing)
    loss.backward()
    torch.optim.SGD(module.param_groups(1.0, 1.0)).step()
    assert loss.item() == 0
    logits, target, index = batch()
    assert torch.equal(module(logits.T.contiguous().T, target, index), module(logits, target, index))


def test_not_a_number_gives_a_loss_that_is_not_a_number():
    logits, target, index = batch()
    logits[0, 0] = math.nan
    assert criterion()(logits, target, index).isnan()


def test_a_repeated_sample_is_warned_about():
    logits, _, _ = batch()
    with pytest.warns(UserWarning, match="names a sample twice"):
        criterion()(logits, torch.zeros(B, dtype=torch.int64), torch.tensor([0, 1, 2, 3, 3]))


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(B, 3)}, ValueError, r"logits must have 4 columns \(num_classes\), but have 3"),
        ({"logits": torch.zeros(B)}, ValueError, r"logits must have shape \(batch, classes\)"),
        ({"logits": torch.zeros(B, C).long()}, TypeError, "logits must be floating point"),
        ({"target": torch.zeros(B, C)}, TypeError, "target must have dtype torch.int64"),
        ({"target": torch.zeros(B, C).long()}, ValueError, r"target must have shape \(batch,\)"),
        ({"target": torch.full((B,), -1)}, ValueError, "target must lie in 0..3"),
        ({"index": torch.arange(B) + N}, ValueError, "index must lie in 0..11, but spans 12..16"),
        ({"index": torch.arange(B) - 1}, ValueError, "index must lie in 0..11, but spans -1..3"),
        ({"index": torch.arange(B + 1)}, ValueError, "index must have as many rows as logits"),
        ({"logits_aug": torch.zeros(B, 3)}, ValueError, r"logits_aug must have the shape of logits \(5, 4\)"),
    ],
)
def test_bad_batches(change, error, message):
    logits, target, index = batch()
    with pytest.raises(error, match=message):
        criterion()(**{"logits": logits, "target": target, "index": index, **change})


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be >= 1"),
        ({"num_classes": 1}, ValueError, "num_classes must be >= 2"),
        ({"eps": 0.5}, ValueError, "eps must lie in"),
        ({"init_std": 0.0}, ValueError, "init_std must lie in"),
        ({"dtype": torch.float16}, ValueError, r"init_std must lie in \[6.10352e-05, 1\], but is 1e-08"),
        ({"dtype": torch.int64}, TypeError, "dtype must be floating point"),
        ({"variant": "Paper"}, ValueError, "variant must be one of 'code', 'paper'"),
        ({"lambda_balance": -1.0}, ValueError, "lambda_balance must lie in"),
        ({"file": "v.bin", "device": "meta"}, ValueError, "file keeps v on the CPU, but device is meta"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseOverparamLoss(**{"num_samples": N, "num_classes": C, **arguments})


def test_a_missing_second_view_and_a_data_set_of_another_size():
    with pytest.raises(ValueError, match=r"lambda_consistency is 0.9: give logits_aug"):
        criterion(lambda_consistency=0.9)(*batch())
    with pytest.raises(ValueError, match="num_samples is 12, but the data set has 3 samples"):
        criterion().check_dataset([1, 2, 3])


@pytest.mark.untyped
def test_compiles_without_a_graph_break_or_a_second_compilation():
    torch.compiler.reset()
    module, expected = criterion(lambda_balance=0.1), criterion(lambda_balance=0.1)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for step in range(3):
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            loss = compiled(*batch(step))
        loss.backward()
        torch.testing.assert_close(loss, expected(*batch(step)))
    assert torch.equal(module.labels, expected.labels)
    assert module.v.grad is not None
    assert module.v.grad.layout == torch.sparse_coo
