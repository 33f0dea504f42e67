"""What is seen on stderr while a study runs: the plan; then a live table on a terminal, else one line per replicate.

A display only listens. If nobody can see it any more (a closed pipe) it falls silent, and the work goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from torchstone.bench.report.wording import duration, evidence, hyper, number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from torchstone.bench.judge import Judgement
    from torchstone.bench.runner import Event

__all__ = ["Tally", "watch"]

Listener = Callable[["Event"], None]

_STAY = ("planned", "failed", "interrupted", "variance", "stopped")  # events that a terminal keeps in its scrollback


@contextlib.contextmanager
def watch(
    *, quiet: bool = False, plain: bool = False, jobs: int = 1, stream: TextIO | None = None
) -> Iterator[Listener]:
    """Give a listener for :func:`torchstone.run` that shows progress on ``stream`` as long as it is open.

    Args:
        quiet: show nothing.
        plain: lines on a terminal too, which leave room for a debugger.
        jobs: worker processes, for the plan.
        stream: where to; by default stderr.
    """
    out: TextIO = stream or sys.stderr
    if quiet:
        yield lambda event: None
    elif out.isatty() and not plain:
        with _live(out, jobs) as listener:
            yield listener
    else:
        tally = Tally(jobs)

        def listen(event: Event) -> None:
            tally.note(event)
            for line in tally.lines(event):
                with contextlib.suppress(BrokenPipeError):
                    out.write(f"{line}\n")
                    out.flush()

        yield listen


@contextlib.contextmanager
def _live(stream: TextIO, jobs: int) -> Iterator[Listener]:
    from rich.console import Console
    from rich.live import Live

    tally, console = Tally(jobs), Console(file=stream)

    def listen(event: Event) -> None:
        tally.note(event)
        if event.kind in _STAY:
            for line in tally.lines(event):
                console.print(line, markup=False, highlight=False)

    with Live(get_renderable=lambda: _table(tally), console=console, transient=True, refresh_per_second=4):
        yield listen


class Tally:
    """Counts what the events of one call tell, experiment by experiment."""

    def __init__(self, jobs: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.jobs, self.clock = jobs, clock
        self.plans: dict[str, Mapping[str, Any]] = {}
        self._begin("")

    def _begin(self, experiment: str) -> None:
        """Start to count an experiment."""
        self.experiment = experiment
        self.planned = self.plans.get(experiment, {})
        self.arms: dict[str, None] = {}
        self.draws: Counter[str] = Counter()
        self.trials: Counter[tuple[str, int]] = Counter()  # (arm, replicate), of replicates not complete yet
        self.replicates = 0
        self.computed = 0
        self.judgements: Sequence[Judgement] = ()
        self.started = self.clock()

    def note(self, event: Event) -> None:
        """Take an event into account."""
        fields = event.fields
        if event.kind == "plan":
            self.plans[fields["experiment"]] = fields
            return
        experiment = fields["spec"].experiment if "spec" in fields else fields.get("experiment", self.experiment)
        if event.kind == "planned":
            experiment = next(iter(self.plans), "")
        if experiment != self.experiment:
            self._begin(experiment)
        if event.kind == "tuned":
            self.arms |= dict.fromkeys(fields["tunings"])
        elif event.kind == "run":
            spec = fields["spec"]
            self.arms.setdefault(spec.arm)
            self.computed += 1
            if spec.kind == "hpo":
                self.draws[spec.arm] += 1
            elif spec.kind == "trial":
                self.trials[spec.arm, spec.replicate] += 1
        elif event.kind == "replicate":
            self.replicates = fields["number"] + 1
            self.judgements = fields["judgements"]
            self.trials = Counter({key: count for key, count in self.trials.items() if key[1] >= self.replicates})
        elif event.kind == "stopped":
            names = [*self.plans]
            for name in names[names.index(experiment) + 1 :][:1]:  # its first run may take long to end
                self._begin(name)

    @property
    def elapsed(self) -> float:
        """Seconds since the experiment began."""
        return self.clock() - self.started

    @property
    def remaining(self) -> float | None:
        """Seconds to the last replicate at the pace so far (or of past runs); less if all is settled before."""
        if not self.computed:
            estimate = self.planned.get("estimate")
            return None if estimate is None else max(0.0, estimate - self.elapsed)
        share = self.planned["runs"] / max(1, self.planned["replicates"])
        trials = self.replicates * share + self.trials.total()
        draws = 0 if self.replicates or self.trials else self.planned["draws"] - self.draws.total()
        return self.elapsed / self.computed * max(0.0, self.planned["runs"] - trials + draws)

    @property
    def pace(self) -> str:
        """Time spent, and at most to come."""
        rest = self.remaining
        return duration(self.elapsed) + (f", at most {duration(rest)} to go" if rest else "")

    def plan_lines(self) -> list[str]:
        """What will be run: a line for each experiment, then one for all."""
        lines = []
        for name, plan in self.plans.items():
            tuning = f"{_count(plan['draws'], 'tuning draw')}, then " if plan["draws"] else ""
            size = f"{_count(plan['arms'], 'arm')} on {_count(plan['cases'], 'case')}"
            lines.append(f"{name}: {size}; {tuning}at most {_count(plan['replicates'], 'replicate')}")
        plans = self.plans.values()
        total = sum(plan["draws"] + plan["runs"] for plan in plans)
        stored = sum(plan.get("done", 0) for plan in plans)
        estimates = [plan.get("estimate") for plan in plans]
        known = sum(estimate for estimate in estimates if estimate is not None)
        if stored == total:
            left = "all of them in the store"
        else:
            left = f"{stored} of them in the store, " if stored else ""
            unknown = None in estimates
            left += "the first ones will tell how long they take" if unknown else f"at most {_roughly(known)}"
            left += f" with {_count(self.jobs, 'job')}"
        return [*lines, f"plan: {_count(len(plans), 'experiment')}, at most {_count(total, 'run')}; {left}"]

    def lines(self, event: Event) -> list[str]:
        """The event in plain text; most single runs are not worth a line."""
        fields, plan = event.fields, self.planned
        if event.kind == "planned":
            return self.plan_lines() if self.plans else []
        if event.kind == "tuned":
            tuned = {arm: tuning for arm, tuning in fields["tunings"].items() if tuning.draws}
            return [f"{self.experiment}: tuned {arm}: {hyper(tuning.hyper)}" for arm, tuning in tuned.items()]
        if event.kind == "replicate":
            claim = next((j for j in self.judgements if j.claim.primary), self.judgements[0])
            decided = sum(j.decided for j in self.judgements)
            state = f"P={number(claim.estimate)} e={evidence(claim.e_value)}"
            state += f", {decided}/{len(self.judgements)} claims decided"
            return [f"{self.experiment}: replicate {self.replicates}/{plan['replicates']}: {state}; {self.pace}"]
        if event.kind == "failed":
            spec, error = fields["spec"], fields["error"]
            where = f"{spec.experiment}/{spec.arm}/{spec.case}/{spec.replicate}"
            return [f"failed: {where}: {' '.join(str(error).split())}"]
        if event.kind == "interrupted":
            return ["interrupted: finishing what is running; interrupt again to stop at once"]
        if event.kind == "variance":
            return [f"{self.experiment}: {_count(fields['runs'], 'run')} to tell the sources of variation apart"]
        if event.kind == "stopped":
            return [f"{fields['experiment']}: {fields['reason']} ({_count(fields['replicates'], 'replicate')})"]
        return []


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _roughly(seconds: float) -> str:
    """A time span as one says it beforehand."""
    if seconds < 55:
        return f"about {max(1, round(seconds))} s"
    if seconds < 3570:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600, 1):g} h"


def _table(tally: Tally) -> RenderableType:
    """The live picture of the running experiment."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    plan = tally.planned
    if not plan:
        return Text("")
    at = f"replicate {tally.replicates}/{plan['replicates']}"
    if plan["draws"] and not (tally.replicates or tally.trials):
        at = f"tuning draw {tally.draws.total()}/{plan['draws']}"
    head = Text(f"{tally.experiment}: {at}; {tally.pace}", style="bold")
    arms = Table.grid(padding=(0, 2))
    for arm in tally.arms:
        done = tally.replicates + sum(key[0] == arm and runs >= plan["cases"] for key, runs in tally.trials.items())
        arms.add_row(Text(f"  {arm}"), _bar(done, plan["replicates"]), f"{done}/{plan['replicates']}")
    claims = Table.grid(padding=(0, 2))
    for j in tally.judgements:
        state = Text(str(j.verdict) if j.decided else "open", style="" if j.decided else "dim")
        claims.add_row(Text(f"  {j.claim.sentence()}"), f"P={number(j.estimate)}", f"e={evidence(j.e_value)}", state)
    return Group(head, arms, claims)


def _bar(done: int, of: int, width: int = 16) -> str:
    filled = round(width * done / of) if of else 0
    return "█" * filled + "░" * (width - filled)
