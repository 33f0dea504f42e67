"""How results look in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from torchstone.bench.report.summary import arm_lines, claim_lines, notes, state, tuning_lines
from torchstone.bench.report.wording import (
    DASH,
    SCOPE,
    SIGNS,
    SMOKE,
    TONES,
    change,
    duration,
    interval,
    number,
    signed,
    spread,
)
from torchstone.bench.result import Result
from torchstone.bench.statistics.scores import ScoreReport
from torchstone.bench.statistics.verdict import Verdict
from torchstone.catalogue import Paper

__all__ = ["fields", "paper", "render", "result", "scores", "study", "table"]

STYLES = {"good": "bold green", "bad": "bold red", "doubt": "bold yellow", "open": "bold dim"}


def render(*parts: RenderableType) -> None:
    """Print to stdout."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    for part in parts:
        console.print(part, markup=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A light table; long words are folded, never cut."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in header:
        grid.add_column(Text(name), overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def verdict_text(verdict: str) -> Text:
    """The word in its colour, after its sign."""
    tone = TONES[Verdict(verdict)]
    return Text(f"{SIGNS[tone]} {verdict}", style=STYLES[tone])


def result(found: Result, *, report: Path | None, command: str) -> None:
    """Show a result: verdicts, then the means behind them, then all that one must know beside."""
    title = Text.assemble((found.study.name, "bold"), f", {found.scale} scale, {duration(found.seconds)}: ")
    parts: list[RenderableType] = [Text(""), title + verdict_text(found.verdict)]
    if found.scale == "smoke":
        parts.append(Text(SMOKE, style="bold yellow"))
    parts += [Text(""), *_claims(found)]
    for experiment in found.study.experiments:
        parts += _arms(found, experiment.name)
    parts += [Text(""), *map(Text, notes(found)), Text(SCOPE, style="dim"), Text("")]
    parts.append(fields({"report": str(report or "none"), "store": found.store, "again": command}))
    render(*parts)


def _claims(found: Result) -> list[RenderableType]:
    """Experiment by experiment, a line for each claim and below it its verdict and numbers."""
    lines = claim_lines(found)
    header, *rows = _aligned(
        ("verdict", "n", "P [95 %]", "e", "effect [95 %]"),
        *(
            (
                f"{SIGNS[line.tone]} {line.verdict}",
                line.replicates,
                f"{line.estimate} {line.interval}".rstrip(),
                line.e_value,
                f"{line.effect} {line.effect_interval}".rstrip(),
            )
            for line in lines
        ),
    )
    parts: list[RenderableType] = [_indented(Text("  ".join(header), style="dim"))]
    for experiment in found.study.experiments:
        here = [(line, row) for line, row in zip(lines, rows, strict=True) if line.experiment == experiment.name]
        head = Text.assemble((experiment.name, "bold"), f" ({state(found, experiment.name)})")
        parts += [Text(""), head]
        if experiment.name in found.not_run:
            head.append(f": {len(here)} claim{'s' * (len(here) != 1)}, see the report")
            continue
        said = ""
        for line, (verdict, *numbers) in here:
            parts.append(Text.assemble(line.claim, (f" ({line.mark})" if line.mark else "", "bold")))
            parts.append(_indented(Text.assemble((verdict, STYLES[line.tone]), "  ", "  ".join(numbers).rstrip())))
            if line.tone != "good" and line.reason != said:  # the same reason is said once
                parts.append(_indented(Text(line.reason, style="dim")))
                said = line.reason
    return parts


def _aligned(*rows: Sequence[str]) -> list[list[str]]:
    """The cells, padded to the width of their columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]


def _indented(text: RenderableType) -> Padding:
    return Padding(text, (0, 0, 0, 2), expand=False)


def _arms(found: Result, experiment: str) -> list[RenderableType]:
    """A block per case; metrics that do not fit side by side go below each other."""
    lines = arm_lines(found, experiment)
    metrics = found.metrics(experiment)
    parts: list[RenderableType] = []
    for case in dict.fromkeys(line.case for line in lines):
        title = f"{experiment}, {case}" if case != "default" else experiment
        parts += [Text(""), Text(f"{title}: mean ± standard deviation", style="bold")]
        for start in range(0, len(metrics), 3):
            cells = [(line, line.cells[start : start + 3]) for line in lines if line.case == case]
            rows = [(line.arm, line.role, *row) for line, row in cells if any(cell != DASH for cell in row)]
            if rows:
                parts.append(table(("arm", "role", *metrics[start : start + 3]), rows))
    tuned = tuning_lines(found, experiment)
    if tuned:
        parts += [Text(""), Text(f"{experiment}: hyper-parameters", style="bold")]
        parts.append(fields({arm: f"{values} ({how})" for arm, values, how in tuned}, style=""))
    return parts


def fields(values: Mapping[str, str], style: str = "bold") -> Table:
    """Names and values in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in values.items():
        if value:
            grid.add_row(Text(name, style=style), Text(value))
    return grid


def paper(row: Paper, study: Mapping[str, Any] | None, obstacle: str, evidence: Mapping[str, Any] | None) -> None:
    """Show a row of the catalogue with its study and the verdict of the last published run."""
    parts: list[RenderableType] = [
        Text(row.title, style="bold"),
        Text(", ".join(row.authors)),
        Text(f"{row.byline}  {row.url}"),
        Text(""),
        Text(row.claim),
        Text(""),
    ]
    facts = {
        "slug": row.slug,
        "field": row.field,
        "track": row.track,
        "needs": ", ".join(row.needs),
        "extra": f'pip install "torchstone[{row.extra}]"' if row.extra else "",
        "status": row.status,
        "objects": ", ".join((*row.objects, *row.rivals)),
    }
    parts.append(fields(facts))
    if study is None:
        parts += [Text(""), Text(obstacle)]
    for experiment in study["experiments"] if study else ():
        parts += [Text(""), *_experiment(experiment)]
    if evidence is not None:
        parts += [Text(""), Text.assemble(("evidence: ", "bold"), verdict_text(evidence["verdict"]))]
        for entry in evidence["verdicts"]:
            parts.append(_indented(Text.assemble(verdict_text(entry["verdict"]), f": {entry['claim']}")))
    render(*parts)


def study(stated: Mapping[str, Any]) -> None:
    """Show what a study of one's own states."""
    parts: list[RenderableType] = [Text(stated["name"], style="bold")]
    parts += [Text(stated["about"])] if stated["about"] else []
    for experiment in stated["experiments"]:
        parts += [Text(""), *_experiment(experiment)]
    render(*parts)


def _experiment(stated: Mapping[str, Any]) -> list[RenderableType]:
    low, high = stated["replicates"]
    count = f"{low}" if low == high else f"{low} to {high}"
    head = Text.assemble(
        (f"experiment {stated['name']}", "bold"), f": {count} replicates, {', '.join(stated['scales'])} scale"
    )
    lines = [
        "arms    " + ", ".join(f"{arm['name']} ({arm['role']})" for arm in stated["arms"]),
        "cases   " + ", ".join(stated["cases"]),
        *(["needs   " + ", ".join(stated["needs"])] if stated["needs"] else []),
    ]
    for claim in stated["claims"]:
        mark = "primary" if claim["primary"] else "premise" if claim["premise"] else "claim"
        lines.append(f"{mark:<8}{claim['text']}")
    return [head, *(_indented(Text(line)) for line in lines)]


def scores(report: ScoreReport) -> None:
    """Show what a table of scores says: methods, comparisons, ranks."""
    means = [(one.method, str(one.n), spread(one.mean, one.sd)) for one in report.methods]
    parts: list[RenderableType] = [table(("method", "n", "mean ± sd"), means), Text("")]
    pairs = report.rows()
    header, *rows = _aligned(
        ("verdict", "P [interval]", "difference [interval]", "p"),
        *(
            (
                f"{SIGNS[TONES[Verdict(pair['verdict'])]]} {pair['verdict']}",
                f"{number(pair['p_outperforms'])} {interval((pair['p_low'], pair['p_high']))}",
                f"{signed(pair['difference'])} {change((pair['difference_low'], pair['difference_high']))}".rstrip(),
                number(pair["p_adjusted"], 2),
            )
            for pair in pairs
        ),
    )
    parts.append(_indented(Text("  ".join(header), style="dim")))
    for pair, (verdict, *numbers) in zip(pairs, rows, strict=True):
        parts.append(Text(f"{pair['method']} outperforms {pair['versus']}"))
        style = STYLES[TONES[Verdict(pair["verdict"])]]
        parts.append(_indented(Text.assemble((verdict, style), "  ", "  ".join(numbers).rstrip())))
    if report.ranking is not None:
        ranks = zip(report.ranking.methods, report.ranking.mean_rank, report.ranking.first, strict=True)
        lines = [(name, number(float(rank)), f"{float(first):.0%}") for name, rank, first in ranks]
        parts += [Text(""), table(("method", "mean rank", "ranks first"), lines)]
        parts += [Text(f"no test tells these apart: {', '.join(clique)}") for clique in report.ranking.cliques]
    how = "paired by replicate" if report.paired else "unpaired"
    why = f" ({report.unpaired_reason})" if report.unpaired_reason else ""
    rules = f"Compared {how}{why}; a difference is meaningful from P = {report.gamma:g}; "
    rules += f"intervals, verdicts and p (Holm) hold for all pairs together at {report.alpha:.0%}."
    parts += [Text(""), Text(rules), Text("Replicates must be independent runs, their number fixed in advance.")]
    render(*parts)
