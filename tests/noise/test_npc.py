from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Gamma, kl_divergence
from torch.utils.data import DataLoader

from torchstone.data import IndexedDataset, TensorData
from torchstone.errors import DivergedError, UnknownNameError
from torchstone.models import MLP, StridedCNN
from torchstone.noise import NoisyPredictionCalibrator, calibrate, knn_prior, npc
from torchstone.noise.last_layer import last_linear, penultimate, with_new_last
from torchstone.noise.npc import npc_loss
from torchstone.noise.transition import dirichlet_mode
from torchstone.testing.contracts import check_generator
from torchstone.training import FileCheckpoint

C, D = 4, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(n: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=generator(seed))


def network(**options: Any) -> MLP:
    """A network that is sure of itself and predicts every class."""
    net = MLP(D, C, hidden=(8, 5), activation=nn.Tanh, generator=generator(1), **options)
    with torch.no_grad():
        net.head.weight.copy_(10 * torch.eye(C, 5))
        net.head.bias.zero_()
        net.body[0].weight.mul_(3)  # pyright: ignore[reportCallIssue]
    return net


def calibrator(net: nn.Module | None = None, **options: Any) -> NoisyPredictionCalibrator:
    return NoisyPredictionCalibrator.from_classifier(net or network(), **{"k": 3, "generator": generator(2), **options})


def random_rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64).softmax(-1)


# ---------------------------------------------------------------- from predictions to the truth


def test_on_a_discrete_toy_the_transition_of_bayes_rule_recovers_the_truth():
    truth = random_rows(3, C, seed=1)  # p(y | x) of three inputs
    confusion = random_rows(3, C, C, seed=2)  # p(yhat = j | y = k, x), rows k
    joint = truth[:, :, None] * confusion
    predicted = joint.sum(1)
    bayes = (joint / predicted[:, None]).mT
    torch.testing.assert_close(calibrate(bayes, predicted), truth, rtol=1e-12, atol=0)
    inverse = torch.linalg.solve(confusion.mT, predicted)  # what a transition matrix gives
    torch.testing.assert_close(calibrate(bayes, predicted), inverse)


def test_with_the_identity_the_classifier_is_left_as_it_is():
    probs = random_rows(5, C)
    assert torch.equal(calibrate(torch.eye(C, dtype=torch.float64).expand(5, C, C), probs), probs)


def test_a_calibrator_that_trusts_each_prediction_is_the_classifier():
    module = calibrator()
    with torch.no_grad():
        module.encoder.weight.zero_()
        module.encoder.weight[:, -C:] = 1e9 * torch.eye(C) - 1e3  # one concentration of 1e9, the others at delta
        module.encoder.bias.zero_()
    x = inputs()
    expected = module.classifier(x).softmax(1)  # pyright: ignore[reportOptionalCall]
    torch.testing.assert_close(module.predict_proba(x), expected, rtol=1e-5, atol=1e-7)


def test_mode_of_a_dirichlet_density_by_hand():
    assert dirichlet_mode(torch.tensor([[2.0, 4.0]])).tolist() == [[0.25, 0.75]]
    alpha = torch.tensor([1.5, 2.0, 4.5], dtype=torch.float64)
    density = torch.distributions.Dirichlet(alpha).log_prob
    top = dirichlet_mode(alpha)
    for shift in ([0.01, -0.01, 0.0], [0.0, 0.01, -0.01], [-0.01, 0.0, 0.01]):
        assert density(top) > density(top + torch.tensor(shift, dtype=torch.float64))


def test_rows_of_the_transition_are_distributions():
    h = calibrator().transition(100 * inputs())
    torch.testing.assert_close(h.sum(2), torch.ones(40, C))
    assert h.min() > 0


def literal(module: NoisyPredictionCalibrator, x: torch.Tensor) -> torch.Tensor:
    """One pass of the whole network for each predicted class, as the authors' code does it."""
    rows = []
    for j in range(C):
        onehot = torch.zeros(len(x), C)
        onehot[:, j] = 1
        alpha = nn.functional.softplus(module.encoder(torch.cat([module.backbone(x), onehot], 1))) + 1 + 1 / C
        rows.append((alpha - 1) / (alpha - 1).sum(1, keepdim=True))
    return torch.stack(rows, 1)


def test_one_shared_pass_equals_a_pass_for_each_class():
    x = inputs()
    module = calibrator(network(batch_norm=True, dropout=0.3))
    module.fit(x, epochs=1, batch_size=10, generator=generator())
    expected = literal(module, x)
    torch.testing.assert_close(module.transition(x, batch_size=7), expected, rtol=1e-6, atol=1e-6)
    p = module.classifier(x).softmax(1)  # pyright: ignore[reportOptionalCall]
    slow = torch.stack([torch.stack([expected[:, j, k] * p[:, j] for j in range(C)]).sum(0) for k in range(C)], 1)
    torch.testing.assert_close(module.predict_proba(x, batch_size=9), slow, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(module(x).exp(), slow, rtol=1e-6, atol=1e-6)


@settings(max_examples=5)
@given(st.permutations(range(C)))
def test_permuting_the_classes_everywhere_permutes_the_answer(order):
    places, x = torch.tensor(order), inputs()
    plain = calibrator()
    other = copy.deepcopy(plain)
    with torch.no_grad():
        head = last_linear(other.classifier)[1]  # pyright: ignore[reportArgumentType]
        head.weight.copy_(head.weight[places])
        head.bias.copy_(head.bias[places])
        columns = torch.cat([torch.arange(C), C + places])
        for layer in (other.encoder, other.decoder):
            layer.weight.copy_(layer.weight[places][:, columns])
            layer.bias.copy_(layer.bias[places])
    torch.testing.assert_close(other.predict_proba(x), plain.predict_proba(x)[:, places])
    torch.testing.assert_close(other.transition(x), plain.transition(x)[:, places][:, :, places])
    # The loss too, but for the sample: the mean of many.
    predicted, prior = torch.arange(40) % C, random_rows(40, C).float()
    losses = [
        torch.stack([module.loss(x, y, mass, generator=generator(i)) for i in range(60)]).mean()
        for module, y, mass in ((plain, predicted, prior), (other, places.argsort()[predicted], prior[:, places]))
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.03, atol=0)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("sampler", ["exact", "approx"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_is_the_sum_of_its_parts(sampler, normalize):
    module = calibrator(sampler=sampler, normalize_latent=normalize, rho=3.0, beta=0.7).double()
    x, predicted = inputs().double(), torch.arange(40) % C
    prior = torch.eye(C, dtype=torch.float64)[(predicted + 1) % C]
    loss = module.loss(x, predicted, prior, generator=generator())

    with torch.no_grad():
        h, onehot = module.backbone(x), torch.eye(C, dtype=torch.float64)[predicted]
        alpha = nn.functional.softplus(module.encoder(torch.cat([h, onehot], 1))) + 1 + 1 / C
        z = npc.sample_gamma(alpha, sampler=sampler, normalize=normalize, generator=generator())
        p = module.decoder(torch.cat([h, z], 1)).sigmoid()
    expected = 0.0
    for i in range(40):
        for k in range(C):
            expected -= float(p[i, k].log() if predicted[i] == k else (1 - p[i, k]).log())
            expected += 0.7 * float(kl_divergence(Gamma(alpha[i, k], 1.0), Gamma(1 + 1 / C + 3.0 * prior[i, k], 1.0)))
    torch.testing.assert_close(loss.item(), expected / 40)


def test_the_loss_by_hand():
    logits, predicted = torch.zeros(1, 2), torch.tensor([0])
    alpha, prior = torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0, 2.0]])
    value = npc_loss(logits, predicted, alpha, prior, beta=2.0)
    assert value.item() == pytest.approx(2 * 0.6931472 + 2 * 0.5772157, rel=1e-6)


def test_everything_is_trained_but_the_classifier():
    net = network()
    module = calibrator(net)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    history = module.fit(inputs(), epochs=2, batch_size=16, reference_batch=16, generator=generator())
    assert (history.steps, history.epochs, len(history.curves["loss"])) == (6, 2, 2)
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("classifier.")
    assert all(torch.equal(weight, net.state_dict()[name]) for name, weight in network().state_dict().items())
    assert not module.training
    assert {name.partition(".")[0] for name, weight in module.named_parameters() if weight.requires_grad} == {
        "backbone",
        "encoder",
        "decoder",
    }


def test_it_learns_from_predictions_and_never_sees_a_label():
    states = []
    for label in (0, 3):
        module = calibrator()
        data = TensorData(inputs(), torch.full((40,), label), tuple("abcd"), "x")
        loader = DataLoader(IndexedDataset(data), batch_size=16)
        module.fit(loader, epochs=1, batch_size=16, reference_batch=16, generator=generator())
        states.append(torch.cat([weight.flatten() for weight in module.parameters()]))
    assert torch.equal(*states)


def test_a_shuffled_loader_sees_the_predictions_of_its_samples(monkeypatch):
    x, seen = inputs(), []
    module = calibrator()
    plain = module.loss

    def loss(x_: torch.Tensor, predicted: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        seen.append((x_, predicted, prior))
        return plain(x_, predicted, prior)

    monkeypatch.setattr(module, "loss", loss)
    data = TensorData(x, torch.zeros(40, dtype=torch.int64), tuple("abcd"), "x")
    loader = DataLoader(IndexedDataset(data), batch_size=16, shuffle=True, generator=generator(5))
    module.fit(loader, epochs=1, batch_size=16, reference_batch=16, generator=generator())
    found = penultimate(network(), x)
    prior = knn_prior(found.features["penultimate"], found.logits.softmax(1), batch_size=16, k=3, generator=generator())
    for x_, predicted, mass in seen:
        index = (x_[:, None] == x).all(2).int().argmax(1)
        assert torch.equal(predicted, found.logits.argmax(1)[index])
        assert torch.equal(mass, prior[index])


def test_without_a_prior_no_neighbours_are_sought(monkeypatch):
    sought: list[Any] = []
    monkeypatch.setattr(npc, "knn_prior", lambda *args, **options: sought.append(args))
    calibrator(rho=0.0).fit(inputs(), epochs=1, generator=generator())
    assert not sought


def test_a_right_prior_mends_a_classifier_with_one_bad_class():
    """Three clusters; the classifier says 1 where the truth is 2, but the prior knows better."""
    truth = torch.arange(300) % 3
    x = 4 * torch.eye(3)[truth] + 0.3 * torch.randn(300, 3, generator=generator())
    noisy = torch.where(truth == 2, 1, truth)
    probs = 0.9 * torch.eye(3)[noisy] + 0.1 / 3
    module = NoisyPredictionCalibrator(MLP(3, 3, hidden=(16,), generator=generator()), 3, generator=generator())

    def right(*args: Any, **options: Any) -> torch.Tensor:
        return torch.eye(3)[truth]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npc, "knn_prior", right)
        module.fit(x, probs=probs, epochs=40, lr=1e-2, batch_size=64, generator=generator())
    assert (module.predict_proba(x, probs).argmax(1) == truth).float().mean() > 0.95
    assert (probs.argmax(1) == truth).float().mean() < 0.7


@pytest.mark.parametrize("sampler", ["exact", "approx"])
def test_same_generator_same_result(sampler):
    def run(g: torch.Generator) -> torch.Tensor:
        module = calibrator(network(dropout=0.2), sampler=sampler, generator=g)
        module.fit(inputs(), epochs=1, batch_size=16, reference_batch=16, generator=g)
        return module.predict_proba(inputs(5))

    check_generator(run)


def test_a_run_resumes_bit_for_bit(tmp_path):
    whole, first, second = calibrator(), calibrator(), calibrator()
    arguments: dict[str, Any] = {"batch_size": 16, "reference_batch": 16}
    whole.fit(inputs(), epochs=4, generator=generator(3), **arguments)
    checkpoint = FileCheckpoint(tmp_path / "npc.pt")
    first.fit(inputs(), epochs=2, generator=generator(3), checkpoint=checkpoint, **arguments)
    second.fit(inputs(), epochs=4, generator=generator(3), checkpoint=checkpoint, **arguments)
    assert torch.equal(whole.predict_proba(inputs()), second.predict_proba(inputs()))


def test_a_loss_that_is_not_finite_stops_the_training():
    module = calibrator()
    with torch.no_grad():
        module.encoder.bias.fill_(torch.inf)
    with pytest.raises(DivergedError, match="the loss became"):
        module.fit(inputs(), epochs=1, generator=generator())


# ---------------------------------------------------------------- any classifier


class Unusual(nn.Module):
    """Registers its head first, and averages over places only before it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, C)
        self.convolution = nn.Conv1d(1, 3, 3)
        self.gate = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.convolution(x[:, None]).relu().mean(2)
        return self.head(h * self.gate(h).sigmoid())


@pytest.mark.filterwarnings("ignore:classes .* are never predicted")
@pytest.mark.parametrize(
    ("net", "x", "last"),
    [
        (network(), inputs(), None),
        (nn.Linear(D, C), inputs(), None),
        (nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Sequential(nn.Dropout(), nn.Linear(5, C))), inputs(), None),
        (StridedCNN(1, C, width=2), torch.rand(20, 1, 9, 9), None),
        (Unusual(), inputs(), "head"),
    ],
    ids=["mlp", "linear", "nested", "cnn", "named"],
)
def test_it_works_after_any_network_with_a_last_linear_layer(net, x, last):
    module = NoisyPredictionCalibrator.from_classifier(net, last=last, k=2, generator=generator())
    module.fit(x, epochs=1, batch_size=5, reference_batch=5, generator=generator())
    assert module.predict_proba(x).shape == (len(x), C)
    wide = NoisyPredictionCalibrator.from_classifier(net, last=last, feature_dim=7, k=2)
    assert wide.transition(x).shape == (len(x), C, C)


def test_the_rule_takes_the_layer_registered_last():
    assert last_linear(Unusual())[0] == "gate"
    assert last_linear(network())[0] == "head"
    with pytest.raises(UnknownNameError, match="unknown layer 'haed': did you mean 'head'"):
        NoisyPredictionCalibrator.from_classifier(network(), last="haed")
    with pytest.raises(TypeError, match=r"model must have a last layer of type nn.Linear, but Tanh has none"):
        NoisyPredictionCalibrator.from_classifier(nn.Tanh())
    with pytest.raises(TypeError, match=r"layer 'body' must be an nn.Linear, but is a Sequential"):
        last_linear(network(), "body")


def test_the_new_layer_is_the_only_change_and_shares_nothing():
    net = network().requires_grad_(False)
    fresh = with_new_last(net, 9, generator=generator())
    assert {n: tuple(w.shape) for n, w in fresh.named_parameters() if "head" in n} == {
        "head.weight": (9, 5),
        "head.bias": (9,),
    }
    assert torch.equal(fresh.get_parameter("body.0.weight"), net.get_parameter("body.0.weight"))
    assert all(weight.requires_grad for weight in fresh.parameters())
    assert not {w.data_ptr() for w in fresh.parameters()} & {w.data_ptr() for w in net.parameters()}
    assert with_new_last(nn.Linear(3, 2, bias=False).double(), 5).weight.shape == (5, 3)  # pyright: ignore


def test_what_the_last_layer_sees():
    net, x = network(dropout=0.5), inputs()
    net.train()
    found = penultimate(net, x, batch_size=7)
    torch.testing.assert_close(found.features["penultimate"], net.eval().features(x))
    torch.testing.assert_close(found.logits, net(x))
    data = TensorData(x, torch.arange(40) % C, tuple("abcd"), "x")
    loader = DataLoader(IndexedDataset(data), batch_size=7, shuffle=True, generator=generator())
    shuffled = penultimate(net, loader)
    torch.testing.assert_close(shuffled.features["penultimate"], found.features["penultimate"])
    torch.testing.assert_close(shuffled.logits, found.logits)
    assert shuffled.y is not None
    assert torch.equal(shuffled.y, data.y)
    assert not net.head._forward_pre_hooks


def test_a_black_box_needs_features_and_probabilities_alone():
    net, x, new = network(), inputs(), inputs(seed=9)
    train, test = penultimate(net, x), penultimate(net, new)
    module = NoisyPredictionCalibrator(nn.Linear(5, C), C, k=3, generator=generator())
    arguments: dict[str, Any] = {"probs": train.logits.softmax(1), "reference_batch": 16, "epochs": 2}
    module.fit(train.features["penultimate"], generator=generator(), **arguments)
    p = module.predict_proba(test.features["penultimate"], test.logits.softmax(1))
    assert p.shape == (40, C)
    with pytest.raises(ValueError, match="probs must be given where the calibrator has no classifier"):
        module.predict_proba(test.features["penultimate"])
    with pytest.raises(ValueError, match="probs must be given where the calibrator has no classifier"):
        module.fit(x)
    with pytest.raises(ValueError, match="features must be given where data come from a loader"):
        module.fit([x], **arguments)


def test_a_classifier_of_probabilities_equals_one_of_logits():
    net, x = network(), inputs()
    of_probabilities = nn.Sequential(copy.deepcopy(net), nn.Softmax(1))
    plain = calibrator(net)
    other = calibrator(of_probabilities, outputs="probabilities", last="0.head")
    other.backbone = copy.deepcopy(plain.backbone)
    for module in (plain, other):
        module.fit(x, epochs=1, batch_size=16, reference_batch=16, generator=generator())
    torch.testing.assert_close(plain.predict_proba(x), other.predict_proba(x))
    with pytest.raises(ValueError, match="outputs are probabilities: build the calibrator with outputs='probab"):
        calibrator(of_probabilities).fit(x)
    with pytest.raises(ValueError, match="outputs are logits: build the calibrator with outputs='logits'"):
        calibrator(net, outputs="probabilities").fit(x)


def test_inference_is_in_evaluation_mode_and_modes_are_put_back():
    module = calibrator(network(dropout=0.5)).train()
    assert module.classifier is not None
    assert not any(part.training for part in module.classifier.modules())
    x = inputs()
    assert torch.equal(module.predict_proba(x), module.predict_proba(x))
    assert torch.equal(module.transition(x), module.transition(x))
    assert module.training
    assert module.backbone.training


def test_state_dict_round_trip():
    module = calibrator()
    module.fit(inputs(), epochs=1, batch_size=16, reference_batch=16, generator=generator())
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = NoisyPredictionCalibrator.from_classifier(MLP(D, C, hidden=(8, 5), activation=nn.Tanh))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(module.predict_proba(inputs(5)), other.predict_proba(inputs(5)))


def test_double_precision():
    module = calibrator(network().double())
    assert module.encoder.weight.dtype == torch.float64
    module.fit(inputs().double(), epochs=1, generator=generator())
    assert module.predict_proba(inputs().double()).dtype == torch.float64


def test_extreme_features_give_finite_answers():
    module = calibrator()
    with torch.no_grad():
        module.encoder.weight.mul_(1e6)
    p = module.predict_proba(1e4 * inputs())
    torch.testing.assert_close(p.sum(1), torch.ones(40))
    assert module(1e4 * inputs()).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_an_accelerator_it_gives_what_it_gives_on_the_cpu():
    x, module = inputs(), calibrator()
    other = copy.deepcopy(module).to("cuda")
    torch.testing.assert_close(other.predict_proba(x), module.predict_proba(x), rtol=1e-4, atol=1e-5)
    module.fit(x, epochs=2, reference_batch=16, generator=generator(), device="cuda")
    assert {weight.device.type for weight in module.parameters()} == {"cuda"}
    p = module.predict_proba(x)
    assert p.device.type == "cpu"
    torch.testing.assert_close(p, module.cpu().predict_proba(x), rtol=1e-4, atol=1e-5)


@pytest.mark.untyped
def test_errors():
    x = inputs()
    nan = x.clone()
    nan[2, 0] = torch.nan
    probs = random_rows(40, C).float()
    for call, message in (
        (lambda: calibrator(rho=-1.0), r"rho must lie in \[0, inf\], but is -1.0"),
        (lambda: calibrator(delta=1.0), r"delta must lie in \(1, inf\], but is 1.0"),
        (lambda: calibrator(sampler="best"), "sampler must be one of"),
        (lambda: calibrator(mode="best"), "mode must be one of"),
        (lambda: calibrator(outputs="best"), "outputs must be one of"),
        (lambda: calibrator(k=10).fit(x), "k must be at most the number of references"),
        (lambda: calibrator().fit(nan), "outputs of the classifier holds"),
        (lambda: calibrator().fit(x, features=x[:3]), r"features must have as many rows as probs \(40\), but has 3"),
        (lambda: calibrator().fit(x[:3], probs=probs, features=x), r"data must have as many rows as probs"),
        (lambda: calibrator().fit(x, probs=probs[:, :2]), r"probs must have 4 columns \(num_classes\), but have 2"),
        (lambda: calibrator().fit(x, probs=5 * probs), "probs must be >= 0 with rows of sum 1"),
        (lambda: calibrator().predict_proba(x, probs[:3]), r"probs must have as many rows as x \(40\), but has 3"),
        (lambda: calibrator().predict_proba(x, batch_size=0), "batch_size must be >= 1"),
        (
            lambda: NoisyPredictionCalibrator(network(), C, feature_dim=5).transition(x),
            r"backbone must give .* \(40, 5\)",
        ),
        (lambda: calibrate(torch.ones(40, 2, 2), probs), r"transition must have shape \(40, 4, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_loader_must_tell_its_samples_apart():
    data = TensorData(inputs(), torch.arange(40) % C, tuple("abcd"), "x")
    with pytest.raises(ValueError, match=r"a loader must give \(x, y, index\)"):
        calibrator(rho=0.0).fit(DataLoader(data, batch_size=16))
    with pytest.raises(ValueError, match=r"a loader must give each index in 0..31 once"):
        calibrator().fit(DataLoader(IndexedDataset(data), batch_size=16, drop_last=True, shuffle=True))
