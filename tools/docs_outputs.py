"""Run the commands of pages in full and write what they print into the pages.

``python -m tools.docs_outputs docs/tutorial.md`` takes the minutes that the commands take; the tests run the same
commands at the smallest scale, and compare what does not depend on it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.pages import Reader


def renewed(page: str, folder: Path) -> str:
    """The page with the output of every command that shows one."""
    for shown in reversed(Reader(folder).read(page)):
        lines = [line.rstrip() for line in shown.printed.strip("\n").splitlines()]
        text = "\n".join(lines).replace(f"{folder}/", "")
        page = f"{page[: shown.block.start]}{text}\n{page[shown.block.end :]}"
    return page


def main() -> int:
    """Renew the pages named on the command line."""
    for name in sys.argv[1:]:
        path = Path(name)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHSTONE_STORE"] = f"{folder}/results.db"
            path.write_text(renewed(path.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
