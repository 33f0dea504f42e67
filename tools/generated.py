"""Write what is made from the catalogue and the evidence: the table in README.md, the verdicts in docs/methods/.

``make generated`` writes; with ``--check`` it only says whether all is up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchstone import catalogue
from torchstone.bench import evidence
from torchstone.bench.report.wording import number, signed

ROOT = Path(__file__).resolve().parents[1]


def readme_table() -> str:
    """All papers, with the adjusted verdict of those that have evidence."""
    found = {name: evidence.load(name) for name in evidence.names()}
    verdicts = evidence.adjusted_verdicts({name: stored for name, stored in found.items() if stored is not None})
    return catalogue.markdown_table(verdicts)


def verdict_section(stored: Mapping[str, Any]) -> str:
    """The claims of a study with their verdicts, and the scores behind them."""
    lines = ["| experiment | claim | verdict | replicates | P | effect |", "| --- | --- | --- | --- | --- | --- |"]
    for claim in stored["verdicts"]:
        kind = " (primary)" if claim["primary"] else " (premise)" if claim["premise"] else ""
        low, high = claim["effect_interval"]
        effect = f"{_signed(claim['effect'])} [{_signed(low)}, {_signed(high)}]" if low is not None else ""
        lines.append(
            f"| {claim['experiment']} | {claim['claim']}{kind} | **{claim['verdict']}** | {claim['replicates']} "
            f"| {_plain(claim['estimate'])} | {effect} |"
        )
    for name, metrics in stored["means"].items():
        derived = stored["derived"].get(name, {})
        if derived:
            lines += ["", f"*{name}*: values derived from each of {stored['replicates'][name]} replicates.", ""]
            lines += ["| value | mean (standard deviation) |", "| --- | --- |"]
            lines += [f"| {value} | {_mean(entry)} |" for value, entry in derived.items()]
        claimed = {claim["metric"] for claim in stored["verdicts"] if claim["experiment"] == name}
        shown = [metric for metric in metrics if metric in claimed]
        if not shown:
            continue
        lines += ["", f"*{name}*: mean (standard deviation) over {stored['replicates'][name]} replicates.", ""]
        slots = list(dict.fromkeys(slot for metric in shown for slot in metrics[metric]))
        lines += [f"| arm | case | {' | '.join(shown)} |", "| --- " * (2 + len(shown)) + "|"]
        for slot in slots:
            arm, case = slot.split("/")
            cells = [_mean(metrics[metric].get(slot)) for metric in shown]
            lines.append(f"| {arm} | {case} | {' | '.join(cells)} |")
    cost, versions = stored["cost"], stored["environment"]
    lines += [
        "",
        f"Scale {stored['scale']}, seed {stored['seed']}; {cost['runs']} runs, {cost['core_seconds']:.0f} core-seconds "
        f"on {versions['cpu']}, torch {versions['packages']['torch']}.",
    ]
    if stored["not_run"]:
        lines += ["", "Not run: " + "; ".join(f"*{name}*, {why}" for name, why in stored["not_run"].items()) + "."]
    return "\n".join(lines)


def _plain(value: float | None) -> str:
    return "" if value is None else number(value)


def _signed(value: float | None) -> str:
    return "" if value is None else signed(value)


def _mean(entry: list[float] | None) -> str:
    if entry is None or entry[0] is None:
        return ""
    return f"{entry[0]:.3f}" + ("" if entry[1] is None else f" ({entry[1]:.3f})")


def rendered(path: Path) -> str:
    """The text of a file with its generated part renewed."""
    text = path.read_text(encoding="utf-8")
    if path.name == "README.md":
        return _between(text, "<!-- generated: catalogue -->", "<!-- end generated -->", readme_table().rstrip())
    stored = evidence.load(path.stem)
    return text if stored is None else _between(text, "<!-- verdict -->", "<!-- /verdict -->", verdict_section(stored))


def _between(text: str, start: str, end: str, content: str) -> str:
    pattern = f"({re.escape(start)}\n).*?({re.escape(end)})"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def main() -> int:
    """Write, or with ``--check`` compare; return the exit code."""
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs" / "methods").glob("*.md"))):
        new = rendered(path)
        if new != path.read_text(encoding="utf-8"):
            stale.append(path.relative_to(ROOT))
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"not up to date: {', '.join(map(str, stale))}; run `make generated`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
