from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from torchstone import testing
from torchstone.errors import UnknownNameError

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))


def broken(message: str):
    return pytest.raises(AssertionError, match=message)


def test_all_broken_contracts_are_reported_at_once():
    def fails() -> None:
        raise AssertionError("saw this; do that")

    def crashes() -> None:
        raise KeyError("gone")

    checks = {"one": fails, "two": lambda: None, "three": crashes}
    with broken("^Thing breaks 2 contracts:\n- one: saw this; do that\n- three: raised KeyError: 'gone'$"):
        testing.run_checks("Thing", checks)
    with broken("^Thing breaks 1 contract:\n- three"):
        testing.run_checks("Thing", checks, skip=["one"])
    testing.run_checks("Thing", checks, skip=["one", "three"])


def test_a_misspelt_contract_to_skip_is_an_error():
    with pytest.raises(UnknownNameError, match="unknown contract of Thing 'devise'"):
        testing.run_checks("Thing", {"device": lambda: None}, skip=["devise"])


def test_docstring():
    def silent():
        pass

    def documented():
        """Compute.

        Shapes: none.
        Raises:
            ValueError: never.
        """

    testing.check_docstring(partial(documented), require=("Shapes", "Raises"))
    with broken("docstring of documented lacks Source; add"):
        testing.check_docstring(documented)
    with broken("silent has no docstring"):
        testing.check_docstring(silent, require=())
    testing.check_docstring(nn.Linear(2, 2), require=("Shape",))


def test_repeatable():
    testing.check_repeatable(nn.Dropout(), X)
    with broken("two runs from the same seed differ"):
        testing.check_repeatable(lambda x: x * random.random(), X)
    with broken("an input was changed in place"):
        testing.check_repeatable(lambda x: x.mul_(2), X.clone())


def test_generator():
    testing.check_generator(lambda g: torch.rand(3, generator=g))
    with broken("the global random stream was advanced"):
        testing.check_generator(lambda g: torch.rand(3) + torch.rand(3, generator=g))
    with broken("the same generator gave different results"):
        testing.check_generator(lambda g: [random.random(), torch.rand(3, generator=g)])
    with broken("another seed gave the same result"):
        testing.check_generator(lambda g: torch.zeros(3))


def test_contiguity():
    testing.check_contiguity(lambda x: x.reshape(-1), X)
    with broken("a non-contiguous input gave another result"):
        testing.check_contiguity(lambda x: x.as_strided((12,), (1,)), X)


def test_deepcopy():
    class Shared(nn.Linear):
        def __deepcopy__(self, memo):
            twin = Shared(3, 2)
            twin.weight, twin.bias = self.weight, self.bias
            return twin

    class Forgetful(nn.Linear):
        def __deepcopy__(self, memo):
            return Forgetful(3, 2)

    testing.check_deepcopy(nn.Linear(3, 2), X)
    with broken("a deep copy shares memory"):
        testing.check_deepcopy(Shared(3, 2), X)
    with broken("a deep copy gives another result"):
        testing.check_deepcopy(Forgetful(3, 2), X)


class Counter(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class HiddenCounter(nn.Module):
    calls = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        return x * self.calls


class Leaking(Counter):
    """Hidden state leaks into a buffer without showing in any output."""

    hidden = 0

    def advance(self) -> None:
        self.hidden += 1
        self.calls += self.hidden


def test_state_dict():
    testing.check_state_dict(Counter, lambda module: module(X))
    with broken(r"resumed from state_dict\(\) gives another result"):
        testing.check_state_dict(HiddenCounter, lambda module: module(X))
    with broken(r"resumed from state_dict\(\) ends in another state"):
        testing.check_state_dict(Leaking, Leaking.advance)


def test_empty():
    testing.check_empty(lambda x: x.sum(), X)
    with broken("an empty batch gives nan"):
        testing.check_empty(lambda x: x.mean(), X)
    with broken("ValueError without a message"):
        testing.check_empty(refuse_silently, X)
    with pytest.raises(IndexError):
        testing.check_empty(lambda x: x[0], X)


def refuse_silently(x: Tensor) -> Tensor:
    raise ValueError


def test_autocast():
    testing.check_autocast(lambda x: x @ x.T, X)
    with broken("under bfloat16 autocast is not finite"):
        testing.check_autocast(
            lambda x: (1 - (x / x).mean() - (torch.full((1, 1), 1e-3) @ torch.ones(1, 1) + 1 - 1)).log(), X
        )


@pytest.mark.untyped
def test_compiles():
    def breaks(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    testing.check_compiles(nn.Linear(3, 2), X)
    with broken(r"torch.compile\(fullgraph=True\) fails with .*; keep Python control flow"):
        testing.check_compiles(breaks, X)
    with broken("Detected recompile"):
        testing.check_compiles(HiddenCounter(), X)


def test_device_free():
    testing.check_device_free(lambda x: x + torch.arange(3, device=x.device), X)
    with broken("a tensor was made on the default device"):
        testing.check_device_free(lambda x: x + torch.arange(3), X)
    with broken("the output is on another device"):
        testing.check_device_free(lambda x: torch.zeros(len(x)), X)


def test_refuses():
    def strict(n: int) -> None:
        if n < 1:
            raise ValueError(f"n must be >= 1, but is {n}")

    testing.check_refuses(lambda: strict(-3), says=["n", "-3", ">= 1"], what="n = -3")
    with broken("n = 3 is accepted; raise ValueError"):
        testing.check_refuses(lambda: strict(3), says=[], what="n = 3")
    with broken(r"the error on n = -3 lacks 'width' \(n must be >= 1, but is -3\)"):
        testing.check_refuses(lambda: strict(-3), says=["width"], what="n = -3")
    with broken("n raises KeyError"):
        testing.check_refuses(lambda: {}[0], says=[], what="n")
