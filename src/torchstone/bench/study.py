"""The vocabulary of the bench: study, experiment, arm, cell, track.

These are plain declarations. They hold no training code, draw nothing and store nothing; what they do is check
themselves when they are built, so that a misspelt name is found before hours are spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from torchstone.bench.claims import Claim, Trend
from torchstone.bench.outcome import Outcome, Row
from torchstone.bench.seeds import Seeds
from torchstone.bench.space import Dist
from torchstone.errors import SealedDataError, StudyError, did_you_mean

__all__ = ["ROLES", "SCALES", "Arm", "Cell", "Checkpoint", "Experiment", "Sealed", "Study", "Track"]

ROLES = ("method", "baseline", "rival", "ablation", "control", "oracle", "heuristic", "published")
SCALES = ("smoke", "bench", "paper")

T = TypeVar("T")


class Checkpoint(Protocol):
    """Where a long run may save its state; both methods are safe to call at any time."""

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or ``None``."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state, atomically."""
        ...


class _NoCheckpoint:
    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class Sealed(Generic[T]):
    """Test data that can be opened in a run that counts, but not while an arm is tuned."""

    _content: T
    _sealed: bool

    def open(self) -> T:
        """The test data.

        Raises:
            SealedDataError: while the arm is being tuned.
        """
        if self._sealed:
            raise SealedDataError(
                "test data are sealed while an arm is tuned: when cell.tuning, return Outcome(objective=...) alone"
            )
        return self._content


def _no_shared() -> None:
    return None


def _no_log(name: str, value: float, step: int | None = None) -> None:
    return None


def _no_snapshot(predictor: Any) -> None:
    return None


def _no_tick() -> None:
    return None


@dataclass(frozen=True)
class Cell:
    """All that an arm may know: experiment, case and replicate, with their seeds.

    Args:
        experiment: name of the experiment.
        case: level inside the experiment (data set, noise rate, size).
        replicate: number of the replicate, from 0.
        seeds: its random streams; the same for all arms and cases of the replicate.
        setting: the study's own sizes for the scale at hand.
        shared: work that several arms need (``Experiment.shared``), computed once per cell on first use.
        tuning: True while the arm is tuned: return ``Outcome(objective=...)`` and nothing else.
        device: where to compute.
        checkpoint: where a long run may save its state.
        log: ``log(name, value, step)`` adds a point to a curve.
        snapshot: may be called after every epoch with the current predictor, from which the bench draws learning
            curves; nothing comes back, so a method cannot profit from it.
        tick: an arm that can stack replicates calls it after each step, by which the bench learns how fast it is.
    """

    experiment: str
    case: str
    replicate: int
    seeds: Seeds
    setting: Any = None
    shared: Callable[[], Any] = _no_shared
    tuning: bool = False
    device: str = "cpu"
    checkpoint: Checkpoint = field(default_factory=_NoCheckpoint)
    log: Callable[..., None] = _no_log
    snapshot: Callable[[Any], None] = _no_snapshot
    tick: Callable[[], None] = _no_tick

    def seal(self, content: T) -> Sealed[T]:
        """Wrap test data so that they cannot be opened while an arm is tuned."""
        return Sealed(content, self.tuning)


@dataclass(frozen=True)
class Arm:
    """One way to do the job.

    Args:
        run: module-level function ``run(cell, **hyper) -> Outcome`` (or a callable object of a module-level class).
        hyper: fixed hyper-parameters, and the defaults of those in ``space``.
        space: hyper-parameters to tune, with their distributions; every tunable arm gets the same number of draws.
        tuned_as: take the tuned hyper-parameters of that arm (a control must not be tuned on its own).
        role: one of :data:`ROLES`.
        cases: the cases it runs on; ``()`` means all.
        about: one line for the report.
        stacked: module-level function ``stacked(cells, hypers) -> outcomes`` that does in one pass what
            ``run(cell, **hyper)`` does for each cell and its hyper-parameters. The cells are replicates of one case,
            or, while tuning, one replicate with different draws. A cell that diverged says so in its outcome. Both
            functions call ``tick()`` of the (first) cell after each step. Used where it is faster.
    """

    run: Callable[..., Outcome]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Dist] = field(default_factory=dict)
    tuned_as: str | None = None
    role: str = "baseline"
    cases: tuple[str, ...] = ()
    about: str = ""
    stacked: Callable[[Sequence[Cell], Sequence[Mapping[str, Any]]], Sequence[Outcome]] | None = None

    def __post_init__(self) -> None:
        for part, function in (("run", self.run), ("stacked", self.stacked)):
            qualname = getattr(function, "__qualname__", type(function).__qualname__)
            if "<" in qualname:
                raise StudyError(
                    f"{part} of an arm must be a module-level function, so that a worker process finds it; "
                    f"got {qualname}"
                )
        if self.role not in ROLES:
            raise did_you_mean("role", self.role, ROLES)
        if self.space and self.tuned_as:
            raise StudyError("an arm has either its own search space or tuned_as, not both")
        for name, dist in self.space.items():
            if not isinstance(dist, Dist):
                raise StudyError(
                    f"space[{name!r}] must be a distribution (Uniform, LogUniform, Integers, Choice), got {dist!r}"
                )


@dataclass(frozen=True)
class Experiment:
    """Arms x cases x replicates, with the claims made about them.

    Args:
        name: unique within the study.
        arms: name -> arm.
        claims: what is claimed, declared before anything runs.
        cases: levels inside the experiment.
        settings: scale -> the study's own frozen dataclass of sizes.
        replicates: smallest and largest number; ``(n, n)`` fixes it, ``(1, 1)`` is a re-analysis or a theorem.
        tries: random draws for each tunable arm.
        tune_on: the case on which arms are tuned (replicate 0); by default the first.
        shared: work that several arms of a cell need.
        derive: values computed from a whole row (slopes, rank correlations), for claims with ``arm=""``.
        premises: claims that must hold before the others mean anything.
        needs: what must be at hand beyond the installation (names of data sets, ``gpu``); else "not run".
        data: identity of the data (name and content hash), part of every run's identity.

    Raises:
        StudyError, UnknownNameError: when the parts contradict each other or a name does not resolve.
    """

    name: str
    arms: Mapping[str, Arm]
    claims: tuple[Claim, ...]
    cases: tuple[str, ...] = ("default",)
    settings: Mapping[str, Any] = field(default_factory=dict)
    replicates: tuple[int, int] = (6, 29)
    tries: int = 8
    tune_on: str = ""
    shared: Callable[[Cell], Any] | None = None
    derive: Callable[[Row], Mapping[str, float]] | None = None
    premises: tuple[Claim, ...] = ()
    needs: tuple[str, ...] = ()
    data: str = ""

    def __post_init__(self) -> None:
        where = f"experiment {self.name!r}"
        if not self.arms:
            raise StudyError(f"{where} has no arms")
        if not self.claims:
            raise StudyError(f"{where} claims nothing: an experiment needs at least one claim that can come out false")
        for label, names in (
            ("cases", self.cases),
            ("claims", self.claims),
            ("premises", self.premises),
            ("needs", self.needs),
        ):
            if not isinstance(names, tuple):
                raise StudyError(f"{label} of {where} must be a tuple, got {type(names).__name__}")
            if len(set(names)) != len(names):
                raise StudyError(f"{label} of {where} holds duplicates")
        low, high = self.replicates
        if not 1 <= low <= high:
            raise StudyError(f"replicates of {where} must satisfy 1 <= smallest <= largest, got {self.replicates}")
        if not self.cases:
            raise StudyError(f"{where} has no cases")
        if self.tries < 1:
            raise StudyError(f"tries of {where} must be at least 1, got {self.tries}")
        _resolve("scale", self.settings, SCALES)
        if self.tune_on:
            _resolve("case", [self.tune_on], self.cases)
        for name, arm in self.arms.items():
            _resolve("case", arm.cases, self.cases)
            if arm.tuned_as is not None:
                _resolve("arm", [arm.tuned_as], self.arms)
                if not self.arms[arm.tuned_as].space:
                    raise StudyError(f"arm {name!r} is tuned as {arm.tuned_as!r}, which has no search space")
            if arm.space and self.tuning_case not in self.cases_of(name):
                raise StudyError(
                    f"arm {name!r} of {where} is tuned on case {self.tuning_case!r}, on which it does not run"
                )
        for claim in (*self.premises, *self.claims):
            self._check_claim(claim)

    def _check_claim(self, claim: Claim) -> None:
        if not isinstance(claim, Claim):
            raise StudyError(f"experiment {self.name!r} lists {claim!r} as a claim, which it is not")
        if not claim.arm:
            if self.derive is None:
                raise StudyError(
                    f"claim '{claim.sentence()}' speaks about a derived value, but {self.name!r} derives none"
                )
            return
        _resolve("arm", claim.arms, self.arms)
        _resolve("case", claim.cases, self.cases)
        for arm in claim.arms:
            missing = [case for case in claim.cases if case not in self.cases_of(arm)]
            if missing:
                raise StudyError(
                    f"claim '{claim.sentence()}' speaks about case {missing[0]!r}, on which arm {arm!r} does not run"
                )
        if not isinstance(claim, Trend) and not set.intersection(*(set(self.cases_of(arm)) for arm in claim.arms)):
            raise StudyError(f"the arms of claim '{claim.sentence()}' have no case in common")

    @property
    def tuning_case(self) -> str:
        """The case on which arms are tuned."""
        return self.tune_on or self.cases[0]

    @property
    def fixed(self) -> bool:
        """Whether the number of replicates is fixed in advance."""
        return self.replicates[0] == self.replicates[1]

    def cases_of(self, arm: str) -> tuple[str, ...]:
        """Cases on which an arm runs."""
        return self.arms[arm].cases or self.cases

    @cached_property
    def slots(self) -> tuple[tuple[str, str], ...]:
        """All (arm, case) pairs of one replicate, case by case."""
        return tuple((arm, case) for case in self.cases for arm in self.arms if case in self.cases_of(arm))

    def row(self, replicate: int, outcomes: Mapping[tuple[str, str], Outcome]) -> Row:
        """The complete row of a replicate, with its derived values.

        Raises:
            StudyError: if an outcome is missing.
        """
        missing = [slot for slot in self.slots if slot not in outcomes]
        if missing:
            raise StudyError(f"replicate {replicate} of {self.name!r} is incomplete: {missing[0]} is missing")
        row = Row(replicate, {slot: outcomes[slot] for slot in self.slots})
        return row if self.derive is None else Row(replicate, row.outcomes, dict(self.derive(row)))


def _resolve(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    options = tuple(known)
    for name in names:
        if name not in options:
            raise did_you_mean(kind, name, options)


@dataclass(frozen=True)
class Study:
    """One paper's experiments (or one comparison on somebody's data).

    Args:
        name: the paper's slug, or the name of the comparison.
        experiments: one or more; exactly one claim over all of them is primary, and its experiment needs nothing
            beyond the installation.
        seed: seed of the whole study.
        about: one or two sentences for the report.

    Raises:
        StudyError: if names repeat, or not exactly one claim is primary.
    """

    name: str
    experiments: tuple[Experiment, ...]
    seed: int = 0
    about: str = ""

    def __post_init__(self) -> None:
        names = [experiment.name for experiment in self.experiments]
        if not names or len(set(names)) != len(names):
            raise StudyError(f"study {self.name!r} needs experiments with unique names, got {names}")
        primary = [(e, claim) for e in self.experiments for claim in e.claims if claim.primary]
        if len(primary) != 1:
            raise StudyError(f"study {self.name!r} must have exactly one primary claim, but has {len(primary)}")
        if any(claim.primary for e in self.experiments for claim in e.premises):
            raise StudyError(f"a premise of study {self.name!r} is marked primary: a premise is no claim of the paper")
        experiment, claim = primary[0]
        if experiment.needs:
            raise StudyError(
                f"the primary claim '{claim.sentence()}' must be decidable on embedded data, but {experiment.name!r} "
                f"needs {', '.join(experiment.needs)}"
            )

    def experiment(self, name: str) -> Experiment:
        """The experiment of that name.

        Raises:
            UnknownNameError: with the nearest name that exists.
        """
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise did_you_mean("experiment", name, [e.name for e in self.experiments])

    @property
    def primary(self) -> tuple[Experiment, Claim]:
        """The experiment and claim by which the study is judged."""
        return next((e, claim) for e in self.experiments for claim in e.claims if claim.primary)


@dataclass(frozen=True)
class Track:
    """A problem with a protocol: what a method must offer, what data it takes, how it is scored.

    Args:
        name: name of the problem, e.g. ``noisy-labels``.
        arms: the catalogue's methods and baselines for it; anybody's own can be added by name.
        study: ``study(data=..., model=..., arms=..., baseline=..., **options) -> Study`` builds the comparison.
        about: one or two sentences.
        data_help: which data it takes, and how clean validation and test data are found.
        refit: ``refit(result, path, device=...)`` trains the winner on all data and saves it; ``None`` if it cannot.
    """

    name: str
    arms: Mapping[str, Arm]
    study: Callable[..., Study]
    about: str = ""
    data_help: str = ""
    refit: Callable[..., Any] | None = None
