"""Many seeds stacked, against one after the other and against worker processes.

Run ``python -m benchmarks.stacking`` for 8 seeds, or with ``--full`` for 20 as well. Each way trains the same nets on
the same batches with SGD and momentum; stacked and loop end in the same weights, which is checked. The ways take turns,
so that a busy machine slows all alike; ratios are medians over turns with a 95 % sign interval. One torch thread a
process; times include building the nets. The processes, one per core, have started before the clock runs.

``loop / stacked`` above 1: stacking pays. ``loop / recipe`` is the same for the bare ``vmap(grad_and_value(...))`` of
torch's own tutorial on ensembles, without what :func:`~torchstone.training.fit_stacked` adds to it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import median

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state

from benchmarks.sop import ratio
from torchstone.data import TensorData
from torchstone.models import MLP, SmallCNN, StridedCNN, seeded
from torchstone.training import fit, fit_stacked, stack, supervised

STEPS, TURNS = 20, 8
LOSS = supervised(nn.functional.cross_entropy)


class TinyTransformer(nn.Module):
    """One layer of attention over an image's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.layer(self.embed(x.squeeze(1))).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp 64-32-10": partial(MLP, 64, 10, hidden=(32,)),
    "mlp 64-256-256-10": partial(MLP, 64, 10, hidden=(256, 256)),
    "cnn 8-16": partial(SmallCNN, 1, 10, width=8),
    "cnn 8-16-32, batch norm": partial(StridedCNN, 1, 10, width=8),
    "transformer d=32": TinyTransformer,
}


def setup(kind: str, seeds: list[int]) -> tuple[list[nn.Module], list[torch.Generator]]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    models = []
    for generator in generators:
        with seeded(generator):
            models.append(MODELS[kind]())
    return models, generators


def data(batch: int) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS * batch, 1, 8, 8, generator=generator)
    return TensorData(x, torch.arange(len(x)) % 10, tuple("0123456789"), "random")


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


def looped(kind: str, batch: int, seeds: list[int]) -> list[dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    models, generators = setup(kind, seeds)
    for model, g in zip(models, generators, strict=True):
        fit(model, data(batch), LOSS, sgd(model.parameters()), epochs=1, batch_size=batch, generator=g)
    return [model.state_dict() for model in models]


def stacked(kind: str, batch: int, seeds: list[int]) -> list[dict[str, torch.Tensor]]:
    models, generators = setup(kind, seeds)
    model = stack(models)
    rule = sgd(model.parameters())
    fit_stacked(model, data(batch), LOSS, rule, epochs=1, batch_size=batch, generators=generators)
    return model.state_dicts()


def recipe(kind: str, batch: int, seeds: list[int]) -> None:
    models, generators = setup(kind, seeds)
    params, buffers = stack_module_state(models)
    base, rule, rows = models[0], sgd(params.values()), data(batch)

    def loss(params, buffers, x, y):
        return nn.functional.cross_entropy(functional_call(base, (params, buffers), (x,)), y)

    step = torch.vmap(grad_and_value(loss), randomness="different")
    orders = torch.stack([torch.randperm(len(rows), generator=g) for g in generators])
    for index in orders.split(batch, 1):
        grads, _ = step(params, buffers, rows.x[index], rows.y[index])
        for name, parameter in params.items():
            parameter.grad = grads[name]
        rule.step()


def in_processes(pool: Executor, workers: int, kind: str, batch: int, seeds: list[int]) -> None:
    parts = [seeds[i::workers] for i in range(workers)]
    list(pool.map(looped, [kind] * workers, [batch] * workers, parts))


def check_equal(kind: str, batch: int, seeds: list[int]) -> None:
    for ours, theirs in zip(stacked(kind, batch, seeds), looped(kind, batch, seeds), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def main(full: bool) -> None:
    torch.set_num_threads(1)
    workers = os.cpu_count() or 1
    print(f"torch {torch.__version__}, one thread, {workers} processes; ms a step and seed, 64 inputs, {STEPS} steps")
    head = ("model", "batch", "S", "loop", "loop / stacked", "loop / recipe", "loop / processes")
    line = "{:<24} {:>5} {:>3} {:>6}  {:<18} {:<18} {}"
    print(line.format(*head))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for kind in MODELS:
            for batch in (32, 128):
                check_equal(kind, batch, [0, 1])
                for count in (8, 20) if full else (8,):
                    seeds = list(range(count))
                    arms: dict[str, Callable[[], object]] = {
                        "loop": partial(looped, kind, batch, seeds),
                        "stacked": partial(stacked, kind, batch, seeds),
                        "recipe": partial(recipe, kind, batch, seeds),
                        "processes": partial(in_processes, pool, workers, kind, batch, seeds),
                    }
                    seconds: dict[str, list[float]] = {name: [] for name in arms}
                    for turn in range(TURNS + 1):
                        for name, arm in arms.items():
                            start = time.perf_counter()
                            arm()
                            if turn:  # the first warms up
                                seconds[name].append(time.perf_counter() - start)
                    one = median(seconds["loop"]) / STEPS / count * 1e3
                    ratios = [ratio(seconds["loop"], seconds[name]) for name in ("stacked", "recipe", "processes")]
                    print(line.format(kind, batch, count, f"{one:.2f}", *ratios), flush=True)


if __name__ == "__main__":
    main("--full" in sys.argv[1:])
