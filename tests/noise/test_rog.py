from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from torchstone.errors import UnknownNameError
from torchstone.models import MODELS, build
from torchstone.noise import MinCovDetTied, RobustGenerativeClassifier, gaussian_classifier, hidden_layers
from torchstone.noise.mcd import smallest_per_class
from torchstone.noise.rog import ensemble_weights, mixture

C = 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two hidden layers, with batch normalisation, which would show a forgotten evaluation mode."""
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, C))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return net.to(dtype)


LAYERS = ("2", "4")


def samples(n: int = 240, seed: int = 0, wrong: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    truth = torch.randint(C, (n,), generator=generator)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64) + 2 * torch.eye(C, 6, dtype=torch.float64)[truth]
    redrawn = torch.randint(C, (n,), generator=generator)
    return x, torch.where(torch.rand(n, generator=generator) < wrong, redrawn, truth)


def batches(x: torch.Tensor, *columns: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return list(zip(*(column.split(50) for column in (x, *columns)), strict=True))


def fitted(seed: int = 0, val: bool = True, layers: Any = LAYERS, **arguments: Any) -> RobustGenerativeClassifier:
    rog = RobustGenerativeClassifier(network(), layers, C, generator=seeded(seed), **arguments)
    return rog.fit(batches(*samples()), batches(*samples(100, 1)) if val else None)


# ---------------------------------------------------------------- the linear layer


def test_bayes_rule_by_hand():
    layer = gaussian_classifier(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.diag(torch.tensor([4.0, 0.5])))
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(layer.bias.detach(), torch.tensor([-2.0, -1.0]) - math.log(2))


def test_bayes_rule_is_that_of_the_densities():
    generator = seeded()
    means = torch.randn(C, 4, generator=generator, dtype=torch.float64)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = root @ root.T
    priors = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    density = MultivariateNormal(means, covariance).log_prob(x[:, None])
    for given, expected in ((priors, density + priors.log()), (None, density)):
        found = gaussian_classifier(means, covariance.inverse(), priors=given)(x).log_softmax(1)
        torch.testing.assert_close(found, expected.log_softmax(1))


def test_the_layer_draws_no_random_number():
    net, before = network(), torch.random.get_rng_state()
    gaussian_classifier(torch.eye(2), torch.eye(2))
    RobustGenerativeClassifier(net, LAYERS, C, generator=seeded()).fit([samples()], [samples()])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"means": torch.zeros(3)}, r"means must have shape \(classes, d\)"),
        ({"precision": torch.eye(3)}, r"precision must have shape \(2, 2\), as means have 2 columns"),
        ({"priors": torch.ones(3) / 3}, r"priors must have as many rows as means \(2\)"),
        ({"priors": torch.ones(2)}, "priors must be positive with sum 1"),
        ({"priors": torch.tensor([0.0, 1.0])}, "priors must be positive with sum 1"),
    ],
)
def test_bad_gaussians(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_classifier(**{"means": torch.eye(2), "precision": torch.eye(2), **arguments})


# ---------------------------------------------------------------- the weights of the layers


def layer_log_probs(n: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two layers, the second of which knows more."""
    y = torch.randint(C, (n,), generator=seeded(5))
    logits = torch.randn(2, n, C, generator=seeded(6), dtype=torch.float64)
    logits[1] += 2 * torch.eye(C, dtype=torch.float64)[y]
    return logits.log_softmax(2), y


def test_mixture_by_hand_and_its_gradient():
    log_probs = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]], dtype=torch.float64).log()
    omega = torch.tensor([math.log(3), 0.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(mixture(log_probs, omega).exp(), torch.tensor([[0.6, 0.4]], dtype=torch.float64))
    many, y = layer_log_probs(5)
    assert torch.autograd.gradcheck(lambda o: mixture(many, o)[torch.arange(5), y], (omega,))
    # d/d omega_k of -log p_y is w_k (1 - p_ky / p_y)
    (gradient,) = torch.autograd.grad(-mixture(log_probs, omega)[0, 0], omega)
    expected = torch.tensor([0.75 * (1 - 0.5 / 0.6), 0.25 * (1 - 0.9 / 0.6)], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_weights_are_learnt_as_the_authors_code_does():
    log_probs, y = layer_log_probs()
    found = ensemble_weights(log_probs, y, epochs=3, batch_size=40, generator=seeded(7))
    omega, first, second = np.ones(2), np.zeros(2), np.zeros(2)
    order, step = seeded(7), 0
    for _ in range(3):
        for batch in torch.randperm(len(y), generator=order).split(40):
            w = np.exp(omega) / np.exp(omega).sum()
            p = log_probs[:, batch, y[batch]].exp().numpy()
            gradient = (w[:, None] * (1 - p / (w @ p))).mean(1)
            step += 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            omega -= 0.02 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(found, omega, rtol=1e-9)
    assert found[1] > found[0]


def test_weights_without_validation_samples_are_equal():
    assert fitted(val=False).weights.tolist() == [0.5, 0.5]
    learnt = fitted().weights
    assert learnt.sum().item() == pytest.approx(1)
    assert abs(learnt[0].item() - 0.5) > 1e-3


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_equals_the_method_step_by_step(share):
    """From features taken by hand: estimate, choose the nearest validation samples, weigh, mix."""
    rog = fitted(val_share=share)
    net = network().eval()
    (x, y), (x_val, y_val), generator = samples(), samples(100, 1), seeded()
    heads, val_log_probs = [], []
    for depth in (3, 5):
        features, val_features = net[:depth](x).detach(), net[:depth](x_val).detach()
        mcd = MinCovDetTied.official(generator=generator).fit(features, y)
        heads.append((gaussian_classifier(mcd.means_, mcd.precision_), depth))
        val_log_probs.append(heads[-1][0](val_features).log_softmax(1).detach())
    distance = torch.stack(
        [(f - m) @ mcd.precision_ @ (f - m) for f, m in zip(val_features, mcd.means_[y_val], strict=True)]
    )
    near = [i for i in range(100) if distance[i] <= distance.sort().values[int(share * 100) - 1]]
    near.sort(key=lambda i: distance[i].item())
    omega = ensemble_weights(torch.stack(val_log_probs)[:, near], y_val[near], generator=generator)
    new = samples(20, 2)[0]
    weights = omega.softmax(0)

    def log_p(z: torch.Tensor) -> torch.Tensor:
        parts = [w * head(net[:depth](z)).softmax(1) for w, (head, depth) in zip(weights, heads, strict=True)]
        return torch.stack(parts).sum(0).log().detach()

    torch.testing.assert_close(rog.weights, weights)
    torch.testing.assert_close(rog(new), log_p(new))
    torch.testing.assert_close(rog.noise_score, -log_p(x)[torch.arange(len(y)), y])


def test_one_layer_is_that_layer():
    rog = fitted(layers="4")
    assert rog.weights.tolist() == [1.0]
    x = samples(20, 2)[0]
    torch.testing.assert_close(rog(x), rog.heads[0](network().eval()[:5](x)).log_softmax(1).detach())
    assert torch.equal(rog(x), rog.layer_log_probs(x)[0])


def test_keeping_all_of_one_layer_is_linear_discriminant_analysis():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    (x, _), net = samples(), network().eval()
    y = torch.arange(len(x)) % C
    rog = RobustGenerativeClassifier(net, "4", C, support_fraction=1.0).fit([(x, y)])
    peer = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / C] * C).fit(net[:5](x).detach().numpy(), y.numpy())
    new = samples(50, 3)[0]
    np.testing.assert_allclose(rog(new).exp().detach(), peer.predict_proba(net[:5](new).detach().numpy()), rtol=1e-6)


def test_wrong_labels_score_high():
    generator = seeded()
    truth = torch.arange(300) % C
    x = torch.randn(300, 6, generator=generator, dtype=torch.float64) + 6 * torch.eye(C, 6, dtype=torch.float64)[truth]
    wrong = torch.rand(300, generator=generator) < 0.3
    y = torch.where(wrong, (truth + 1) % C, truth)
    rog = RobustGenerativeClassifier(nn.Identity(), "", C, generator=generator, n_steps=None).fit([(x, y)])
    assert rog.noise_score[wrong].min() > rog.noise_score[~wrong].max()
    assert (rog(x).argmax(1) == truth).all()


def test_the_network_is_left_as_it_was():
    net = network().train()
    net[4].eval()
    before = copy.deepcopy(net.state_dict())
    rog = RobustGenerativeClassifier(net, LAYERS, C, generator=seeded()).fit(batches(*samples()))
    rog(samples(9)[0])
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert [module.training for module in net] == [True, True, True, True, False, True]
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in rog.heads.parameters())
    assert not any(module._forward_hooks for module in net)


def test_predictions_do_not_depend_on_the_batch():
    rog, x = fitted(), samples(30, 4)[0]
    torch.testing.assert_close(rog(x), torch.cat([rog(part) for part in x.split(7)]))


def test_inputs_get_their_gradient():
    x = samples(4)[0].requires_grad_()
    assert torch.autograd.gradcheck(fitted(), (x,))


def test_a_function_may_give_the_features():
    net = network().eval()
    by_name, one = fitted(), fitted(layers="4")
    twin = RobustGenerativeClassifier(net, lambda x: (net[:3](x), net[:5](x)), C, generator=seeded())
    twin.fit(batches(*samples()), batches(*samples(100, 1)))
    x = samples(20, 2)[0]
    torch.testing.assert_close(twin(x), by_name(x))
    single = RobustGenerativeClassifier(net, net[:5].forward, C, generator=seeded()).fit(batches(*samples()))
    torch.testing.assert_close(single(x), one(x))


def test_spatial_dimensions_are_averaged_and_a_third_column_is_ignored():
    kernel = nn.Conv2d(1, 4, 3)
    net = nn.Sequential(kernel, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, C))
    with torch.no_grad():
        kernel.weight.copy_(torch.randn(4, 1, 3, 3, generator=seeded()))
    x, y = torch.randn(90, 1, 8, 8, generator=seeded()), torch.arange(90) % C
    rog = RobustGenerativeClassifier(net, "1", C, support_fraction=1.0).fit(batches(x, y, torch.arange(90)))
    features = net[:2](x).mean((2, 3))
    expected = MinCovDetTied(1.0).fit(features, y)
    head = gaussian_classifier(expected.means_, expected.precision_)
    torch.testing.assert_close(rog(x), head(features).log_softmax(1).detach(), rtol=1e-3, atol=1e-4)


def test_a_state_is_saved_and_loaded():
    rog, x = fitted(), samples(20, 2)[0]
    fresh = RobustGenerativeClassifier(network(seed=9), LAYERS, C)
    with pytest.raises(RuntimeError, match="has no Gaussians yet: call fit, or load a state"):
        fresh(x)
    fresh.load_state_dict(rog.state_dict())
    assert torch.equal(fresh(x), rog(x))
    other = fitted(layers="4")
    other.load_state_dict(rog.state_dict() | {})  # more layers than it had
    assert len(other.heads) == 2
    assert torch.equal(copy.deepcopy(rog)(x), rog(x))
    holder = nn.Sequential(RobustGenerativeClassifier(network(seed=9), LAYERS, C))
    holder.load_state_dict(nn.Sequential(rog).state_dict())
    assert torch.equal(holder(x), rog(x))
    assert not any(parameter.requires_grad for parameter in fresh.heads.parameters())


def test_single_precision_networks_have_single_precision_heads():
    rog = RobustGenerativeClassifier(network(dtype=torch.float32), LAYERS, C, generator=seeded())
    x, y = samples()
    rog.fit(batches(x.float(), y), batches(x.float(), y))
    assert rog(x.float()).dtype == torch.float32
    exact = RobustGenerativeClassifier(network(), LAYERS, C, generator=seeded()).fit(batches(x, y), batches(x, y))
    torch.testing.assert_close(rog(x.float()).double(), exact(x), rtol=1e-2, atol=1e-2)


def test_the_generator_decides_all():
    x = samples(20, 2)[0]
    assert torch.equal(fitted(1)(x), fitted(1)(x))
    assert not torch.equal(fitted(1)(x), fitted(2)(x))


@pytest.mark.untyped
def test_what_it_cannot_use():
    x, y = samples()
    with pytest.raises(UnknownNameError, match="unknown layer '9'"):
        RobustGenerativeClassifier(network(), ["9"], C).fit([(x, y)])
    with pytest.raises(TypeError, match=r"a loader must yield batches \(x, y\) or \(x, y, index\)"):
        fitted().fit([x])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one batch, but yields none"):
        fitted().fit([])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        fitted().fit([(x, y + 1)])
    with pytest.raises(ValueError, match="class 2 of 3 has none"):
        fitted().fit([(x, y.clamp(max=1))])


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ()}, "layers must name at least one layer"),
        ({"num_classes": 1}, "num_classes must be >= 2"),
        ({"val_share": 0.0}, "val_share must lie in"),
        ({"support_fraction": 2.0}, "support_fraction must lie in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RobustGenerativeClassifier(**{"backbone": network(), "layers": LAYERS, "num_classes": C, **arguments})


# ---------------------------------------------------------------- which layers


class Functional(nn.Module):
    """Activations that are no modules; one layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.third = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = nn.ModuleDict({"head": nn.Linear(4, C)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.twice(self.twice(self.first(x).relu()).relu()).relu()
        return self.body["head"](self.third(h).relu())


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("mlp", (1, 8, 8), ("body.1", "body.3")),
        ("cnn", (1, 8, 8), ("body.2", "body.6", "body.9")),
        ("strided-cnn", (1, 8, 8), ("body.2", "body.5", "body.8")),
        ("resnet20", (3, 8, 8), ("body.9", "body.10", "body.11")),
        (Functional, (6,), ("first", "third")),
    ],
)
def test_hidden_layers_of_known_networks(model, shape, expected):
    net = build(model, shape, C, generator=seeded())
    x = torch.zeros(2, *shape)
    assert hidden_layers(net, x) == expected
    assert hidden_layers(net, x, last=1) == expected[-1:]
    around = nn.Sequential(nn.Identity(), net)
    assert hidden_layers(around, x) == tuple(f"1.{name}" for name in expected)
    assert not any(module._forward_hooks for module in net.modules())


def test_every_network_of_ours_with_a_hidden_layer_can_be_used():
    x, y = torch.randn(60, 1, 8, 8, generator=seeded()), torch.arange(60) % C
    for name in set(MODELS) - {"linear", "resnet18"}:
        net = build(name, (1, 8, 8), C, generator=seeded())
        rog = RobustGenerativeClassifier(net, hidden_layers(net, x[:1]), C, ridge=0.1, generator=seeded())
        torch.testing.assert_close(rog.fit([(x, y)])(x[:3]).exp().sum(1), torch.ones(3))
    for bare in (build("linear", (1, 8, 8), C), nn.Linear(64, C), nn.Identity()):
        with pytest.raises(ValueError, match="has no hidden layer to classify by: name the layers yourself"):
            hidden_layers(bare, torch.zeros(1, 64))


def test_support_is_chosen_by_the_given_label_and_the_shared_covariance():
    """The traps: distances to the predicted class, or by a covariance of each class of its own."""
    x = torch.tensor([[0.0], [0.2], [0.4], [3.0], [10.0], [14.0], [18.0], [0.1]], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    found = MinCovDetTied(0.75, None, 20, generator=seeded()).fit(x, y)
    assert found.support_.tolist() == [True, True, True, False, True, True, True, False]
    assert smallest_per_class(found.gaussians_.mahalanobis(x, y), y, torch.tensor([3, 3])).equal(found.support_)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_accelerator_gives_what_the_cpu_gives():
    x, new = samples()[0], samples(20, 2)[0]
    there = RobustGenerativeClassifier(network().cuda(), LAYERS, C, generator=seeded())
    there.fit(batches(*samples()), batches(*samples(100, 1)))
    here = fitted()
    assert there.heads[0].weight.device.type == there.noise_score.device.type == "cuda"
    torch.testing.assert_close(there(new.cuda()).cpu(), here(new))
    torch.testing.assert_close(there.noise_score.cpu(), here.noise_score)
    mcd = MinCovDetTied(0.7, None, generator=seeded()).fit(x.cuda(), samples()[1].cuda())
    assert torch.equal(mcd.support_.cpu(), MinCovDetTied(0.7, None, generator=seeded()).fit(*samples()).support_)
