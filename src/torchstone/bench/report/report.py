"""The report of a result: one plain HTML page that needs no network and no script, or Markdown.

Everything shown comes from the result, and every text is escaped.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchstone.bench.report.stripplot import strip_plot
from torchstone.bench.report.summary import arm_lines, claim_lines, notes, state, tuning_lines
from torchstone.bench.report.wording import SCOPE, SIGNS, SMOKE, duration
from torchstone.bench.result import Result
from torchstone.catalogue import papers
from torchstone.errors import require

__all__ = ["markdown", "report_path", "write_report"]


def report_path(result: Result) -> Path | None:
    """Where the report lies by default: ``reports/`` beside the store, or ``None`` if the store is no file."""
    path = result.store.removeprefix("sqlite:///")
    if path == result.store or path in ("", ":memory:"):
        return None
    return Path(path).parent / "reports" / f"{_file_name(result.study.name)}-{result.scale}.html"


def _file_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return kept.strip(".-") or "study"


def write_report(result: Result, path: str | Path, *, command: str = "") -> Path:
    """Write the report as one HTML file, atomically.

    Args:
        result: what to report.
        path: the file; its folder is made if need be.
        command: the command that runs the study again; by default put together from the result.

    Returns:
        The absolute path of the file.

    Raises:
        MissingDependencyError: without jinja2 or matplotlib.
        OSError: if the file cannot be written.
    """
    page = _html(result, command or _again(result))
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _html(result: Result, command: str) -> str:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError:
        raise require("jinja2", "bench") from None
    loader = PackageLoader("torchstone.bench.report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    claims = claim_lines(result)
    experiments = list(_experiments(result))
    for part in experiments:
        for case in part["cases"]:
            case["plot"] = Markup(case["plot"])  # drawn here, with its texts escaped
    return pages.get_template("report.html").render(
        name=result.study.name,
        about=result.study.about,
        scale=result.scale,
        seconds=duration(result.seconds),
        warning=SMOKE if result.scale == "smoke" else "",
        headline=claims[0],
        claims=claims,
        signs=SIGNS,
        threshold=f"{result.e_threshold:g}",
        experiments=experiments,
        scope=SCOPE,
        notes=notes(result),
        command=command,
        seed=result.study.seed,
        store=result.store,
        environment=list(_flat(result.environment)),
    )


def _experiments(result: Result) -> Iterator[dict[str, Any]]:
    for number, experiment in enumerate(result.study.experiments):
        name = experiment.name
        lines = arm_lines(result, name)
        metric = _plotted(result, name)
        cases = []
        for index, case in enumerate(dict.fromkeys(line.case for line in lines)):
            arms = [line for line in lines if line.case == case]
            prefix = f"plot{number}-{index}"
            plot = _plot(result, name, case, metric, [line.arm for line in arms], prefix) if metric else ""
            cases.append({"name": case, "arms": arms, "metric": metric, "plot": plot})
        yield {
            "name": name,
            "metrics": result.metrics(name),
            "cases": cases,
            "tuning": tuning_lines(result, name),
            "state": state(result, name),
        }


def _plotted(result: Result, experiment: str) -> str:
    """The metric worth a picture: that of the primary claim, else of the first claim, else the first there is."""
    claims = sorted(result.study.experiment(experiment).claims, key=lambda claim: not claim.primary)
    metrics = result.metrics(experiment)
    return next((claim.metric for claim in claims if claim.metric in metrics), metrics[0] if metrics else "")


def _plot(result: Result, experiment: str, case: str, metric: str, arms: list[str], prefix: str) -> str:
    rows = result.rows[experiment]
    scores = {arm: [float(np.mean(row.outcomes[arm, case].values.get(metric, np.nan))) for row in rows] for arm in arms}
    known = result.study.experiment(experiment).arms
    title = f"{metric} of every arm in {len(rows)} paired replicates, {experiment}, {case}"
    return strip_plot(scores, metric=metric, title=title, roles={arm: known[arm].role for arm in arms}, prefix=prefix)


def _again(result: Result) -> str:
    """How to run the study again, where nobody says which command it was."""
    place = result.store.removeprefix("sqlite:///")
    if result.study.name in {row.slug for row in papers()}:
        return shlex.join(["torchstone", "run", result.study.name, "--scale", result.scale, "--store", place])
    return f"torchstone.run(study, scale={result.scale!r}, store={place!r})  # or the same call of torchstone.compare"


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping as (dotted name, text)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif value not in (None, "", [], ()):
            yield f"{above}{name}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def markdown(result: Result) -> str:
    """The verdicts, means and notes as Markdown, ending in a newline."""
    claims = claim_lines(result)
    lines = [f"# {_escaped(result.study.name)}: {claims[0].verdict}", "", f"*{_escaped(claims[0].claim)}*", ""]
    if result.scale == "smoke":
        lines += [f"**{SMOKE}**", ""]
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
    lines += ["", *(f"- {_escaped(note)}" for note in (SCOPE, *notes(result)))]
    return "\n".join(lines) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return [f"| {' | '.join(map(_escaped, cells))} |" for cells in lines]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"[\\`*_<>|#&]|\](?=\()", r"\\\g<0>", " ".join(text.split()))
