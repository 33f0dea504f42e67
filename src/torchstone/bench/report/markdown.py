"""Results as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torchstone.bench.report.summary import arm_lines, claim_lines, notes, state, tuning_lines, unfinished
from torchstone.bench.report.wording import LIMITS, SCOPE, visible
from torchstone.bench.result import Result

__all__ = ["markdown"]


def markdown(results: Result | Iterable[Result]) -> str:
    """The verdicts, means and notes of one or several results as Markdown, ending in a newline."""
    found = [results] if isinstance(results, Result) else results
    return "\n".join("\n".join(_study(result)) + "\n" for result in found)


def _study(result: Result) -> list[str]:
    claims = claim_lines(result)
    lines = [f"# {_escaped(result.study.name)}: {claims[0].verdict}", "", f"*{_escaped(claims[0].claim)}*", ""]
    if result.scale == "smoke":
        lines += [f"**{LIMITS['smoke']}**", ""]
    for how_far in unfinished(result):
        lines += [f"**Unfinished: {_escaped(how_far)}. The verdict may change.**", ""]
    header = ("claim", "", "verdict", "replicates", "P", "95 % interval", "e-value", "effect", "95 % interval")
    lines += _table(
        header,
        [
            (c.claim, c.mark, c.verdict, c.replicates, c.estimate, c.interval, c.e_value, c.effect, c.effect_interval)
            for c in claims
        ],
    )
    for experiment in result.study.experiments:
        lines += ["", f"## {_escaped(experiment.name)}", "", _escaped(f"{state(result, experiment.name)}.")]
        arms = arm_lines(result, experiment.name)
        if not arms:
            continue
        chosen = {arm: values for arm, values, _ in tuning_lines(result, experiment.name)}
        lines += [
            "",
            *_table(
                ("case", "arm", *result.metrics(experiment.name), "hyper-parameters"),
                [(line.case, line.arm, *line.cells, chosen.get(line.arm, "")) for line in arms],
            ),
        ]
    limits = [] if result.scale == "smoke" else [LIMITS[result.scale]]
    return [*lines, "", *(f"- {_escaped(note)}" for note in (*limits, SCOPE, *notes(result)))]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(map(_escaped, cells))} |" for cells in lines]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"[\\`*_<>|#&]|\](?=\()", r"\\\g<0>", " ".join(visible(text).split()))
