"""The paper's own protocol in the study of the extended model: a ResNet-18 on MNIST and CIFAR-10; it takes a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from torchstone.bench.outcome import Outcome
from torchstone.bench.study import Cell
from torchstone.data import TensorData, load
from torchstone.dynamics import MSEClassificationLoss, NeuralCollapseMeter, layerwise_nc
from torchstone.dynamics.neural_collapse.metrics import frame_error
from torchstone.models import ResNet, resnet18
from torchstone.models.seeding import seeded
from torchstone.studies._extended_ufm_nets import frame_gap
from torchstone.training import EpochEnd, accuracy, capture, fit, pooled, predict
from torchstone.training.evaluate import evaluating

__all__ = ["Full", "known_data", "run_resnet"]

STAGES = ("body.4", "body.6", "body.8", "body.10")
BRANCH, SHORTCUT = "body.10.norm2", "body.10.shortcut"  # their sum is what the last ReLU sees


@dataclass(frozen=True)
class Full:
    """Sizes. The learning rate falls by ten every 40 epochs; images are not augmented."""

    source: str
    epochs: int = 200
    per_class: int = 5000
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    drop_every: int = 40
    measure_every: int = 10


def known_data(cell: Cell) -> TensorData:
    """``shared`` of the experiments."""
    return load(cell.setting.source)


def run_resnet(cell: Cell) -> Outcome:
    """Train on squared error, with a bias in the last layer or without one, and measure every stage on training data.

    Values as in the small networks; layers are the ends of the four stages, averaged over the image.
    """
    size: Full = cell.setting
    data: TensorData = cell.shared()
    order = torch.randperm(len(data), generator=cell.seeds.generator("split"))
    kept = torch.cat([order[data.y[order] == label][: size.per_class] for label in range(data.num_classes)])
    mean, scale = data.x[kept].mean(), data.x[kept].std()
    x, y = ((data.x[kept] - mean) / scale).to(cell.device), data.y[kept].to(cell.device)
    net = resnet18(data.x.shape[1], data.num_classes, generator=cell.seeds.generator("init"))
    if cell.case == "no-bias":
        with seeded(cell.seeds.generator("init", "head")):
            net.head = nn.Linear(net.num_features, data.num_classes, bias=False)
    net = net.to(cell.device)
    free = [] if net.head.bias is None else [net.head.bias]
    decayed = [p for p in net.parameters() if not any(p is each for each in free)]
    groups = [{"params": decayed, "weight_decay": size.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD([group for group in groups if group["params"]], size.lr, size.momentum)
    error = MSEClassificationLoss(data.num_classes)
    batches = list(zip(x.split(1000), y.split(1000), strict=True))

    def measure(end: EpochEnd) -> None:
        if end.history.epochs % size.measure_every == 0:
            for name, value in _values(net, batches, data.num_classes).items():
                cell.log(name, value, end.history.epochs)

    history = fit(
        net,
        TensorData(x, y, data.class_names, data.name),
        lambda model, batch: data.num_classes / 2 * error(model(batch.x), batch.y),
        optimizer,
        epochs=size.epochs,
        batch_size=size.batch_size,
        generator=cell.seeds.generator("order"),
        scheduler=StepLR(optimizer, size.drop_every),
        callbacks=[measure],
        checkpoint=cell.checkpoint,
    )
    objective = -history.curves["loss"][-1]
    if cell.tuning:
        return Outcome(objective=objective)
    values = _values(net, batches, data.num_classes)
    values["train"] = accuracy(predict(net, x), y)
    test = cell.seal(data.test).open()
    if test is not None:
        values["test"] = accuracy(predict(net, (test.x - mean) / scale), test.y)
    return Outcome(values, objective=objective, cost=history.cost)


@torch.no_grad()
def _values(net: ResNet, batches: list[tuple[torch.Tensor, torch.Tensor]], classes: int) -> dict[str, float]:
    found = layerwise_nc(net, batches, STAGES, head="head", pooling="average", frame="orthogonal")
    before = NeuralCollapseMeter(classes, net.num_features).to(batches[0][0].device)
    with evaluating(net), capture(net, (BRANCH, SHORTCUT)) as outputs:
        for x, y in batches:
            net(x)
            before.update(pooled(outputs[BRANCH] + outputs[SHORTCUT]), y)
    rows = net.head.weight.double()
    layers = [found[name] for name in (*STAGES[:-1], "head")]
    values = {f"nc1_{place}": float(each.nc1) for place, each in enumerate(layers, 1)}
    pairs = zip(layers, layers[1:], (1, 2, 3), strict=False)
    values |= {f"fall_{p}{p + 1}": float((one.nc1 / two.nc1).log10()) for one, two, p in pairs}
    return values | {
        "rows_of": float(frame_error(rows @ rows.mT, "orthogonal")),
        "rows_gap": float(frame_gap(rows)),
        "means_gap": float(frame_gap(layers[-1].means)),
        "before_gap": float(frame_gap(before.compute().means)),
    }
