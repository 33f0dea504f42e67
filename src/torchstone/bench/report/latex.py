r"""Results as LaTeX: a table of verdicts, and for each experiment one of arms and metrics, in the style of booktabs.

The document needs the packages ``booktabs`` and, for quotation marks in names, ``fontenc`` with ``T1``; names in other
scripts than Latin need a LaTeX with Unicode fonts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from torchstone.bench.report.summary import arm_lines, claim_lines, state, unfinished
from torchstone.bench.report.wording import visible
from torchstone.bench.result import Result

__all__ = ["escaped", "latex"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": r"{-}",  # else two become a dash
    "[": "{[}",  # else an argument of \\ or \item
    "]": "{]}",
    "±": r"$\pm$",
    "\N{EN DASH}": r"\textendash{}",
    "∞": r"$\infty$",
    "…": r"\ldots{}",
}
_TO_ESCAPE = re.compile("[" + re.escape("".join(_SPECIAL)) + "]")


def escaped(text: str) -> str:
    r"""Text that LaTeX sets as it is, in one line.

    Example:
        >>> escaped("50% of a_b & {c}")
        '50\\% of a\\_b \\& \\{c\\}'
    """
    return _TO_ESCAPE.sub(lambda found: _SPECIAL[found[0]], " ".join(visible(text).split()))


def latex(results: Result | Iterable[Result]) -> str:
    """The verdicts and the means of one or several results as tables."""
    found = [results] if isinstance(results, Result) else results
    return "\n".join("\n".join(_study(result)) + "\n" for result in found)


def _study(result: Result) -> Iterator[str]:
    how_far = "".join(f" Unfinished: {escaped(one)}." for one in unfinished(result))
    yield from _table(
        r"p{0.38\linewidth}lrrr",
        ("claim", "verdict", "n", r"$P$ (95\% interval)", r"effect (95\% interval)"),
        [
            (
                escaped(line.claim + (f" ({line.mark})" if line.mark else "")),
                escaped(line.verdict),
                line.replicates,
                _numbers(line.estimate, line.interval),
                _numbers(line.effect, line.effect_interval),
            )
            for line in claim_lines(result)
        ],
        f"Claims of {escaped(result.study.name)} at {escaped(result.scale)} scale.{how_far}",
    )
    for experiment in result.study.experiments:
        arms, metrics = arm_lines(result, experiment.name), result.metrics(experiment.name)
        if arms:
            yield ""
            yield from _table(
                "ll" + "r" * len(metrics),
                ("case", "arm", *map(escaped, metrics)),
                [(escaped(line.case), escaped(line.arm), *map(_numbers, line.cells)) for line in arms],
                f"{escaped(experiment.name)}: mean and standard deviation; {escaped(state(result, experiment.name))}.",
            )


def _numbers(*texts: str) -> str:
    """Numbers with a minus sign in place of a hyphen."""
    joined = escaped(" ".join(filter(None, texts)))
    return joined.replace("{-}", "$-$")


def _table(columns: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Iterator[str]:
    yield r"\begin{table}"
    yield rf"\caption{{{caption}}}"
    yield rf"\begin{{tabular}}{{{columns}}}"
    yield r"\toprule"
    yield " & ".join(header) + r" \\"
    yield r"\midrule"
    yield from (" & ".join(row) + r" \\" for row in rows)
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield r"\end{table}"
