"""What is seen on stderr while a study runs: a live table on a terminal, one line per replicate elsewhere.

A display only listens. If nobody can see it any more (a closed pipe) it falls silent, and the work goes on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from torchstone.bench.report.wording import duration, evidence, hyper, number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from torchstone.bench.judge import Judgement
    from torchstone.bench.runner import Event

__all__ = ["Tally", "watch"]

_PLAN = ("arms", "cases", "draws", "runs", "replicates")

Listener = Callable[["Event"], None]


@contextlib.contextmanager
def watch(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Listener]:
    """Give a listener for :func:`torchstone.run` that shows progress on ``stream`` (stderr) as long as it is open."""
    out: TextIO = stream or sys.stderr
    if quiet:
        yield lambda event: None
    elif out.isatty():
        with _live(out) as listener:
            yield listener
    else:
        tally = Tally()

        def listen(event: Event) -> None:
            tally.note(event)
            for line in tally.lines(event):
                with contextlib.suppress(BrokenPipeError):
                    out.write(f"{line}\n")
                    out.flush()

        yield listen


@contextlib.contextmanager
def _live(stream: TextIO) -> Iterator[Listener]:
    from rich.console import Console
    from rich.live import Live

    tally, console = Tally(), Console(file=stream)

    def listen(event: Event) -> None:
        tally.note(event)
        if event.kind in ("plan", "failed", "stopped"):  # stays in the scrollback
            for line in tally.lines(event):
                console.print(line, markup=False, highlight=False)

    with Live(get_renderable=lambda: _table(tally), console=console, transient=True, refresh_per_second=4):
        yield listen


class Tally:
    """Counts what the events of one call tell, experiment by experiment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.begin("", {})

    def begin(self, experiment: str, planned: Mapping[str, int]) -> None:
        """Start to count an experiment."""
        self.experiment = experiment
        self.planned = planned
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
            self.begin(fields["experiment"], {name: fields[name] for name in _PLAN})
        elif event.kind == "tuned":
            self.arms |= dict.fromkeys(fields["tunings"])
        elif event.kind == "run":
            spec = fields["spec"]
            self.arms.setdefault(spec.arm)
            self.computed += 1
            if spec.kind == "hpo":
                self.draws[spec.arm] += 1
            else:
                self.trials[spec.arm, spec.replicate] += 1
        elif event.kind == "replicate":
            self.replicates = fields["number"] + 1
            self.judgements = fields["judgements"]
            self.trials = Counter({key: count for key, count in self.trials.items() if key[1] >= self.replicates})

    @property
    def elapsed(self) -> float:
        """Seconds since the experiment began."""
        return self.clock() - self.started

    @property
    def remaining(self) -> float | None:
        """Seconds to the last replicate at the pace so far; less if the verdicts are settled before."""
        if not self.computed:
            return None
        share = self.planned["runs"] / max(1, self.planned["replicates"])
        trials = self.replicates * share + self.trials.total()
        draws = 0 if self.replicates or self.trials else self.planned["draws"] - self.draws.total()
        return self.elapsed / self.computed * max(0.0, self.planned["runs"] - trials + draws)

    @property
    def pace(self) -> str:
        """Time spent, and at most to come."""
        rest = self.remaining
        return duration(self.elapsed) + (f", at most {duration(rest)} to go" if rest else "")

    def lines(self, event: Event) -> list[str]:
        """The event in plain text; most single runs are not worth a line."""
        fields, plan = event.fields, self.planned
        if event.kind == "plan":
            tuning = f"{plan['draws']} tuning draw{'s' * (plan['draws'] != 1)}, then " if plan["draws"] else ""
            size = f"{plan['arms']} arms on {plan['cases']} case{'s' * (plan['cases'] != 1)}"
            replicates = f"{plan['replicates']} replicate{'s' * (plan['replicates'] != 1)}"
            return [f"{self.experiment}: {size}; {tuning}at most {replicates} ({plan['runs']} runs)"]
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
        if event.kind == "stopped":
            count = fields["replicates"]
            return [f"{fields['experiment']}: {fields['reason']} ({count} replicate{'s' * (count != 1)})"]
        return []


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
