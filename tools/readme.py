"""Write the generated parts of README.md: ``make readme``; with ``--check``, only say whether they are up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from torchstone import catalogue
from torchstone.bench import evidence

README = Path(__file__).resolve().parents[1] / "README.md"


def verdicts() -> dict[str, str]:
    """Adjusted verdict of every study with evidence."""
    found = {name: evidence.load(name) for name in evidence.names()}
    return evidence.adjusted_verdicts({name: stored for name, stored in found.items() if stored is not None})


def rendered(text: str) -> str:
    """``text`` with its generated parts replaced."""
    table = catalogue.markdown_table(verdicts())
    pattern = r"(<!-- generated: catalogue -->\n).*?(<!-- end generated -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{table.rstrip()}\n{match[2]}", text, flags=re.DOTALL)


def main() -> int:
    """Write, or with ``--check`` compare; return the exit code."""
    old = README.read_text(encoding="utf-8")
    new = rendered(old)
    if "--check" in sys.argv:
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
