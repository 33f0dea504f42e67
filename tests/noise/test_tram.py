from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchstone.noise import TRAM, HeteroscedasticSoftmax, TRAMLoss, TRAMOutput, marginalize
from torchstone.testing import check_generator

B, R, D, M, C, W, A = 6, 3, 5, 2, 4, 8, 7
SOFTMAX = HeteroscedasticSoftmax(C)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=draws(seed), dtype=torch.float64)


def body() -> nn.Sequential:
    linear = nn.Linear(3, D).double()
    with torch.no_grad():
        linear.weight.copy_(normal(D, 3, seed=9))
        linear.bias.zero_()
    return nn.Sequential(linear, nn.BatchNorm1d(D), nn.ReLU()).double()


def model(**options) -> TRAM:
    options = {"width": W, "generator": draws(), **options}
    return TRAM(options.pop("body", None) or body(), D, options.pop("pi_dim", M), C, **options).double()


def batch(*shape: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, pi = normal(B, 3, seed=seed), normal(*(shape or (B,)), M, seed=seed + 1)
    return x, pi, torch.randint(C, shape or (B,), generator=draws(seed + 2))


def gradients(net: TRAM, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in net.named_parameters()}


def heads(net: TRAM, x, pi, y) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of the loss apart."""
    output = net(x, pi)
    assert output.logits_pi is not None
    return F.cross_entropy(output.logits_pi, y), F.cross_entropy(output.logits, y)


def test_each_head_trains_its_own_part():
    net, data = model(), batch()
    with_pi, without = heads(net, *data)
    moved = gradients(net, without)
    assert {name for name, grad in moved.items() if grad is not None} == {"head.weight", "head.bias"}
    with_pi, _ = heads(net, *data)
    moved = gradients(net, with_pi)
    assert moved["head.weight"] is None
    assert moved["head.bias"] is None
    assert all(grad is not None and grad.any() for name, grad in moved.items() if not name.startswith("head"))
    loss = TRAMLoss(no_pi_weight=3.0)(net(data[0], data[1]), data[2])
    together = gradients(net, loss)
    for name, grad in moved.items():
        if grad is not None:
            torch.testing.assert_close(together[name], grad)  # whatever the weight of the other head


def test_without_detach_the_wrong_labels_reach_the_body():
    net, data = model(detach=False), batch()
    moved = gradients(net, heads(net, *data)[1])
    assert moved["body.0.weight"] is not None
    assert moved["body.0.weight"].any()
    assert moved["pi_head.joint.weight"] is None


def test_the_loss_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    logits_pi = torch.tensor([[[0.0, 0.0], [0.0, math.log(4.0)]], [[math.log(9.0), 0.0], [0.0, 0.0]]])
    y, mask = torch.tensor([[0, 1], [0, -1]]), torch.tensor([[True, True], [True, False]])
    own = (math.log(4 / 3) + math.log(4) + math.log(2)) / 3
    pi = (math.log(2) + math.log(5 / 4) + math.log(10 / 9)) / 3
    got = TRAMLoss(0.5)((logits, logits_pi), y, mask)
    assert float(got) == pytest.approx(pi + 0.5 * own)
    one = TRAMLoss()(TRAMOutput(logits, logits_pi[:, 0]), y[:, 0])
    assert float(one) == pytest.approx((math.log(2) + math.log(10 / 9) + math.log(4 / 3) + math.log(2)) / 2)


def test_distillation_follows_the_pi_head_and_leaves_it_alone():
    net, (x, pi, y) = model(), batch()
    output = net(x, pi)
    assert output.logits_pi is not None
    teacher, student = output.logits_pi.softmax(1), output.logits.log_softmax(1)
    divergence = (teacher * (teacher.log() - student)).sum(1).mean()
    own, with_pi = F.cross_entropy(output.logits, y), F.cross_entropy(output.logits_pi, y)
    got = TRAMLoss(2.0, distillation=0.3)(output, y)
    torch.testing.assert_close(got, with_pi + 2 * (0.7 * own + 0.3 * divergence))
    moved = gradients(net, TRAMLoss(1e6, distillation=1.0)(net(x, pi), y))
    alone = gradients(net, heads(net, x, pi, y)[0])
    torch.testing.assert_close(moved["pi_head.out.weight"], alone["pi_head.out.weight"])
    # Where the student agrees with its teacher there is nothing left to learn from it.
    same = (output.logits_pi.detach().requires_grad_(), output.logits_pi.detach())
    TRAMLoss(distillation=1.0)(same, y).backward()
    assert same[0].grad is not None
    assert same[0].grad.abs().max() < 1e-12


def test_the_heads_coincide_where_the_joint_block_is_nothing():
    own = nn.Linear(D, C)
    net = model(head=own)
    with torch.no_grad():
        net.pi_head.out.weight[:, D:] = 0
        net.pi_head.out.weight[:, :D] = own.weight
        net.pi_head.out.bias.copy_(own.bias)
    x, pi, _ = batch(B, R)
    output = net(x, pi)
    assert output.logits_pi is not None
    torch.testing.assert_close(output.logits_pi, output.logits.unsqueeze(1).expand(B, R, C))


def test_constant_privileged_information_says_nothing():
    net = model().eval()
    x = normal(B, 3)[[0, 0, 1, 1, 2, 2]]
    logits_pi = net(x, torch.full((B, M), 0.7, dtype=torch.float64)).logits_pi
    torch.testing.assert_close(logits_pi[::2], logits_pi[1::2])
    assert not torch.allclose(logits_pi[0], logits_pi[2])


@pytest.mark.parametrize("padded", [False, True])
def test_annotators_in_a_table_equal_copies_of_the_image(padded):
    table, copies = model(), model()
    x, pi, y = batch(B, R)
    mask = torch.rand(B, R, generator=draws(5)) < 0.6 if padded else torch.ones(B, R, dtype=torch.bool)
    mask[0] = torch.tensor([True, False, False]) if padded else True
    where = mask.nonzero()[:, 0]
    # Copies would change the statistics of batch norm, so features are taken from the one pass that both share.
    features = copies.features(x)
    output = TRAMOutput(copies.head(features.detach())[where], copies.pi_head(features[where], pi[mask]))
    expected = TRAMLoss()(output, y[mask])
    noisy_pi, noisy_y = (pi + 0.0).clone(), y.clone()
    noisy_pi[~mask], noisy_y[~mask] = 99.0, -1
    got = TRAMLoss()(table(x, noisy_pi), noisy_y, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    one, other = gradients(table, got), gradients(copies, expected)
    for name, grad in one.items():
        torch.testing.assert_close(grad, other[name], rtol=0, atol=1e-9)


def test_batch_norm_sees_each_image_once():
    net, plain = model(), body()
    x, pi, _ = batch(B, R)
    net(x, pi)
    plain(x)
    norm, expected = net.body[1], plain[1]  # pyright: ignore[reportIndexIssue]  # both are nn.Sequential
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)
    assert norm.num_batches_tracked == 1


def test_the_mean_over_all_annotators_is_the_sum():
    net = model(pi_dim=0, pi_embedding=nn.Embedding(A, W)).eval()
    x = normal(B, 3)
    counts = torch.tensor([4.0, 0.0, 1.0, 2.0, 5.0, 1.0, 3.0])
    every = net(x, torch.arange(A).expand(B, A)).logits_pi
    assert every is not None
    expected = (every.softmax(-1) * (counts / counts.sum()).double()[:, None]).sum(1)
    for size in (1, 3, 100):
        got = marginalize(net, x, torch.arange(A), weights=counts, batch=size)
        torch.testing.assert_close(got, expected)
    drawn = torch.repeat_interleave(torch.arange(A), counts.long())
    torch.testing.assert_close(marginalize(net, x, drawn, batch=4), expected)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(A)), st.integers(1, A))
def test_order_and_batch_of_the_samples_do_not_matter(order, size):
    net, pi = model().eval(), normal(A, M)
    x = normal(2, 3)
    got = marginalize(net, x, pi[list(order)], batch=size)
    torch.testing.assert_close(got, marginalize(net, x, pi))


def test_probabilities_stay_exact_far_out():
    net = model().eval()
    with torch.no_grad():
        net.pi_head.out.weight.mul_(1e4)
    p = marginalize(net, normal(B, 3), normal(A, M))
    assert p.isfinite().all()
    torch.testing.assert_close(p.sum(1), torch.ones(B, dtype=torch.float64))


def test_one_head_in_evaluation_and_an_error_in_training():
    net = model()
    with pytest.raises(ValueError, match=r"pi is missing: in training mode .*; call eval\(\) to predict without"):
        net(normal(B, 3))
    x, pi, _ = batch()
    alone, both = net.eval()(x), net(x, pi)
    assert alone.logits_pi is None
    assert torch.equal(alone.logits, both.logits)
    with pytest.raises(ValueError, match=r"output has no logits_pi: call the model with pi"):
        TRAMLoss()(alone, torch.zeros(B, dtype=torch.int64))


def test_an_own_head_and_a_generator():
    own = nn.Linear(D, C)
    net = model(head=own)
    assert net.head is own
    assert TRAM(body(), D, M, C, head=own).head is own
    check_generator(lambda generator: list(TRAM(nn.Identity(), D, M, C, generator=generator).parameters()))


def test_state_goes_from_one_to_another():
    trained, resumed = model(), model(generator=draws(1))
    x = normal(B, 3)
    assert not torch.equal(trained.eval()(x).logits, resumed.eval()(x).logits)
    resumed.load_state_dict(copy.deepcopy(trained.state_dict()))
    assert torch.equal(trained(x).logits, resumed(x).logits)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(B, C).long()}, TypeError, "logits must be floating point, but have dtype torch.int64"),
        ({"logits": torch.zeros(B, R, C)}, ValueError, r"logits must have shape \(6, classes\), but have \(6, 3, 4\)"),
        ({"logits_pi": torch.zeros(B, C)}, ValueError, r"logits_pi must have the shape \(6, 3, 4\) .*have \(6, 4\)"),
        ({"targets": torch.zeros(B, R)}, TypeError, "targets must have dtype torch.int64, but have torch.float32"),
        ({"targets": torch.zeros(B, R, 1).long()}, ValueError, r"targets must have shape \(batch,\) or"),
        ({"targets": torch.full((B, R), C)}, ValueError, "targets must lie in 0..3 where mask is True, but span 4..4"),
        ({"mask": torch.ones(B, R)}, ValueError, r"mask must be bool of shape \(6, 3\), but is torch.float32"),
        ({"mask": torch.zeros(B, R) > 0}, ValueError, "mask leaves no annotator in the batch"),
    ],
)
def test_bad_batches(change, error, message):
    good = {
        "logits": torch.zeros(B, C),
        "logits_pi": torch.zeros(B, R, C),
        "targets": torch.zeros(B, R, dtype=torch.int64),
        "mask": torch.ones(B, R, dtype=torch.bool),
    }
    TRAMLoss()((good["logits"], good["logits_pi"]), good["targets"], good["mask"])
    bad = {**good, **change}
    with pytest.raises(error, match=message):
        TRAMLoss()((bad["logits"], bad["logits_pi"]), bad["targets"], bad["mask"])


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: TRAMLoss(-1.0), ValueError, "no_pi_weight must lie in"),
        (lambda net, x: TRAMLoss(distillation=1.5), ValueError, "distillation must lie in"),
        (lambda net, x: net(x, torch.zeros(B - 1, M).double()), ValueError, r"pi must have as many rows as features"),
        (lambda net, x: net(x, torch.zeros(B, M).long()), TypeError, "for annotators' ids give an embedding"),
        (lambda net, x: model(body=nn.Linear(3, 2).double())(x, x), ValueError, r"body must give features of shape"),
        (lambda net, x: marginalize(net, x, torch.zeros(0, M).double()), ValueError, "pi_samples must hold one row"),
        (lambda net, x: marginalize(net, x, normal(A, M), weights=torch.ones(2)), ValueError, r"weights must have sha"),
        (lambda net, x: marginalize(net, x, normal(A, M), weights=torch.zeros(A)), ValueError, "and not all 0"),
        (lambda net, x: marginalize(net, x, normal(A, M), batch=0), ValueError, "batch must be >= 1"),
        (
            lambda net, x: TRAM(body(), D, M, C, head=nn.Linear(D, C), softmax=SOFTMAX),
            ValueError,
            "give head or softmax",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(model(), normal(B, 3))


def test_an_empty_batch_costs_nothing():
    nothing = torch.zeros(0, R, dtype=torch.int64)
    output = TRAMOutput(torch.zeros(0, C), torch.zeros(0, R, C))
    assert TRAMLoss()(output, nothing).item() == 0
