"""What every object owes its user, as small checks that any test suite can call.

Each check raises ``AssertionError`` with one sentence: what was seen and how to mend it. The suites of this package
(:func:`~torchstone.testing.check_loss` and its like) put them together per kind of object and report everything
that is broken at once.
"""

from __future__ import annotations

import copy
import inspect
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import did_you_mean

__all__ = [
    "check_autocast",
    "check_compiles",
    "check_contiguity",
    "check_deepcopy",
    "check_device_free",
    "check_docstring",
    "check_empty",
    "check_generator",
    "check_refuses",
    "check_repeatable",
    "check_state_dict",
    "run_checks",
]


def run_checks(subject: str, checks: Mapping[str, Callable[[], None]], *, skip: Collection[str] = ()) -> None:
    """Run all ``checks`` but those named in ``skip``; raise one ``AssertionError`` that lists every broken contract.

    Raises:
        AssertionError: if a check fails; any exception inside a check counts.
        UnknownNameError: if ``skip`` names no check.

    Example:
        >>> run_checks("Thing", {"sums": lambda: None})
    """
    for name in skip:
        if name not in checks:
            raise did_you_mean(f"contract of {subject}", name, checks)
    broken: list[tuple[str, Exception]] = []
    for name, check in checks.items():
        if name not in skip:
            try:
                check()
            except Exception as error:
                broken.append((name, error))
    if broken:
        lines = [
            f"- {name}: {error if isinstance(error, AssertionError) else f'raised {type(error).__name__}: {error}'}"
            for name, error in broken
        ]
        plural = "contract" if len(broken) == 1 else "contracts"
        raise AssertionError(f"{subject} breaks {len(broken)} {plural}:\n" + "\n".join(lines)) from broken[0][1]


def check_docstring(subject: object, *, require: Sequence[str] = ("Shapes", "Raises", "Source")) -> None:
    """The docstring of a class, of a function, or of an instance's class, has the blocks named in ``require``."""
    while isinstance(subject, partial):
        subject = subject.func
    owner: Any = subject if inspect.isclass(subject) or inspect.isroutine(subject) else type(subject)
    text = inspect.cleandoc(owner.__doc__ or "")  # an inherited one tells of another class
    demand(bool(text), f"{owner.__name__} has no docstring", "write one line on what it computes")
    missing = [block for block in require if not re.search(rf"^\s*{block}:", text, re.MULTILINE)]
    demand(not missing, f"the docstring of {owner.__name__} lacks {', '.join(missing)}", "add a block 'Name: ...' each")


def check_repeatable(function: Callable[..., Any], *inputs: Any) -> None:
    """Equal state of torch's generator, equal output, to the bit; inputs stay as they are.

    ``function`` must start from the same state each time it is called.
    """
    before = copy.deepcopy(inputs)
    with stream(0):
        first = function(*inputs)
    demand(same(tensors(before), tensors(inputs)), "an input was changed in place", "work on a copy or out of place")
    with stream(0):
        second = function(*inputs)
    demand(
        same(tensors(first), tensors(second)),
        "two runs from the same seed differ",
        "draw from a torch.Generator, not from random or numpy, and keep no state outside parameters and buffers",
    )


def check_generator(run: Callable[[torch.Generator], Any]) -> None:
    """``run(generator)`` depends on the generator alone, really uses it, and leaves torch's global stream untouched."""
    with stream(1):
        before = torch.get_rng_state()
        first = run(torch.Generator().manual_seed(0))
        untouched = torch.equal(before, torch.get_rng_state())
    with stream(2):
        second = run(torch.Generator().manual_seed(0))
        other = run(torch.Generator().manual_seed(1))
    demand(untouched, "the global random stream was advanced", "hand the generator to every call that draws")
    demand(
        same(tensors(first), tensors(second)),
        "the same generator gave different results",
        "draw from the generator only",
    )
    demand(
        not same(tensors(first), tensors(other)), "another seed gave the same result", "draw from the given generator"
    )


def check_contiguity(function: Callable[..., Any], *inputs: Any) -> None:
    """Inputs that are views with gaps give the same output as packed ones."""
    spread = [torch.stack([x, x], -1)[..., 0] if isinstance(x, Tensor) else x for x in inputs]
    with stream(0):
        expected = function(*inputs)
    with stream(0):
        got = function(*spread)
    demand(
        near(expected, got), "a non-contiguous input gave another result", "use reshape instead of view or as_strided"
    )


def check_deepcopy(module: nn.Module, *inputs: Any) -> None:
    """A deep copy computes the same and shares no parameter or buffer with the original."""
    twin = copy.deepcopy(module)
    with stream(0):
        expected = module(*inputs)
    with stream(0):
        got = twin(*inputs)
    demand(same(tensors(expected), tensors(got)), "a deep copy gives another result", "keep all state in the module")
    ours, theirs = ({t.data_ptr() for t in [*m.parameters(), *m.buffers()] if t.numel()} for m in (module, twin))
    demand(not ours & theirs, "a deep copy shares memory with the original", "do not override __deepcopy__ so")


def check_state_dict(make: Callable[[], Any], advance: Callable[[Any], Any]) -> None:
    """Saved, loaded into a fresh module and continued equals never stopped, to the bit.

    The state goes through ``torch.save`` and ``torch.load(weights_only=True)``. ``advance(module)`` trains a few steps,
    is called before and after the stop, and returns what must agree.
    """
    module, fresh = make(), make()
    with stream(0):
        advance(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    with stream(1):
        expected = advance(module)
    with stream(1):
        got = advance(fresh)
    mend = "register what changes as a parameter, a buffer, or through get_extra_state"
    demand(same(tensors(expected), tensors(got)), "a run resumed from state_dict() gives another result", mend)
    ours, theirs = list(module.state_dict().values()), list(fresh.state_dict().values())
    demand(same(tensors(ours), tensors(theirs)), "a run resumed from state_dict() ends in another state", mend)


def check_empty(function: Callable[..., Any], *inputs: Any) -> None:
    """No row at all gives a finite result, or a ``ValueError`` that says so."""
    empty = [x[:0] if isinstance(x, Tensor) and x.ndim else x for x in inputs]
    try:
        output = function(*empty)
    except ValueError as error:
        demand(bool(str(error)), "an empty batch raises a ValueError without a message", "name the empty argument")
        return
    demand(finite(output), f"an empty batch gives {output}", "return a finite value (0 for a mean) or raise ValueError")


def check_autocast(function: Callable[..., Any], *inputs: Any) -> None:
    """Under bfloat16 autocast the output is finite."""
    with torch.autocast(_device(inputs).type, torch.bfloat16), stream(0):
        output = function(*inputs)
    demand(finite(output), "the output under bfloat16 autocast is not finite", "compute the delicate part in float32")


def check_compiles(function: Callable[..., Any], *inputs: Any) -> None:
    """``torch.compile`` takes it without a graph break, gives the same, and does not compile again on the second call.

    ``function`` must give the same output each time it is called; a module may be passed as it is.
    """
    with stream(0):
        expected = copy.deepcopy(function)(*inputs)
    torch.compiler.reset()
    try:
        compiled = torch.compile(copy.deepcopy(function), backend="eager", fullgraph=True)
        with stream(0):
            got = compiled(*inputs)
        demand(near(expected, got), "the compiled result differs from the eager one", "avoid side effects in forward")
        torch.compiler.set_stance("fail_on_recompile")
        try:
            compiled(*inputs)
        finally:
            torch.compiler.set_stance("default")
    except AssertionError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise AssertionError(
            f"torch.compile(fullgraph=True) fails with {type(error).__name__}: {first}; keep Python control flow and "
            ".item() off tensor values, and state that changes in tensors"
        ) from error
    finally:
        torch.compiler.reset()


def check_device_free(function: Callable[..., Any], *inputs: Any) -> None:
    """Tensors made inside are made on the device of the inputs, whatever torch's default device is."""
    mend = "pass device=x.device (or the generator's device) wherever a tensor is made"
    with stream(0), torch.device("meta"):
        try:
            output = function(*inputs)
        except RuntimeError as error:
            raise AssertionError(f"a tensor was made on the default device ({error}); {mend}") from error
    demand(all(t.device == _device(inputs) for t in tensors(output)), "the output is on another device", mend)


def check_refuses(call: Callable[[], Any], *, says: Sequence[str], what: str) -> None:
    """``call()`` raises ``ValueError`` or ``TypeError`` whose message contains each word of ``says``.

    ``what`` tells in a failure what was passed, such as ``"a negative class number"``.
    """
    try:
        call()
    except (ValueError, TypeError) as error:
        missing = [word for word in says if word not in str(error)]
        demand(
            not missing,
            f"the error on {what} lacks {' and '.join(map(repr, missing))} ({error})",
            "name the argument, its value and the limit",
        )
    except Exception as error:
        message = f"{what} raises {type(error).__name__} ({error}); raise ValueError or TypeError naming the argument"
        raise AssertionError(message) from error
    else:
        raise AssertionError(f"{what} is accepted; raise ValueError or TypeError naming argument, value and limit")


# Tools of the suites


def demand(holds: bool, seen: str, mend: str) -> None:
    """Raise ``AssertionError`` with what was ``seen`` and how to ``mend`` it unless it ``holds``."""
    if not holds:
        raise AssertionError(f"{seen}; {mend}")


@contextmanager
def stream(seed: int) -> Iterator[None]:
    """Give torch's global CPU generator this seed inside the block, and its old state afterwards."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(before)


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` so that each call starts from the state it has now; a plain function is returned as it is."""
    return (lambda *inputs: copy.deepcopy(function)(*inputs)) if isinstance(function, nn.Module) else function


def tensors(output: Any) -> list[Tensor]:
    """Return all tensors and numbers in nested containers, in order, as tensors."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in tensors(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in tensors(value)]
    if isinstance(output, bool | int | float):
        return [torch.tensor(output, device="cpu")]
    return []


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the bit (NaN equals NaN)."""
    return len(a) == len(b) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | (x.isnan() & y.isnan())).all())
        for x, y in zip(a, b, strict=True)
    )


def near(a: Any, b: Any) -> bool:
    """Whether two outputs agree up to rounding."""
    try:
        torch.testing.assert_close(tensors(a), tensors(b), equal_nan=True)
    except AssertionError:
        return False
    return True


def finite(output: Any) -> bool:
    """Whether all numbers of an output are finite."""
    return all(bool(t.isfinite().all()) for t in tensors(output))


def _device(inputs: Sequence[Any]) -> torch.device:
    return next((t.device for t in tensors(list(inputs))), torch.device("cpu"))
