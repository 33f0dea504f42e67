"""Run a study at bench scale and write its evidence: ``make evidence SLUG=sop``.

One at a time on a machine, whichever clone it is started from: the times are part of the evidence. Resumable: finished
runs are kept in ``.torchstone/evidence.db``, so a call that was interrupted or killed goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from torchstone import api
from torchstone.bench import evidence
from torchstone.bench.runner import Event

ROOT = Path(__file__).resolve().parents[1]
E_THRESHOLD = 100.0  # so that a clean win survives the adjustment over all studies


def lock_path() -> Path:
    """The file that is locked as long as evidence is made: the user's, not the clone's."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torchstone" / "evidence.lock"


def _tell(event: Event) -> None:
    if event.kind in ("plan", "tuned", "replicate", "stopped", "failed"):
        shown = {key: value for key, value in event.fields.items() if key not in ("judgements", "tunings")}
        print(event.kind, *(f"{key}={value}" for key, value in shown.items()), file=sys.stderr, flush=True)


def main(slugs: list[str]) -> int:
    """Write the evidence of each study named; return the exit code."""
    if not slugs or "" in slugs:
        print("which study? make evidence SLUG=sop", file=sys.stderr)
        return 2
    lock_path().parent.mkdir(parents=True, exist_ok=True)
    with lock_path().open("w") as lock:  # the system unlocks it even if this process is killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another evidence run is going on on this machine; its times would be spoilt", file=sys.stderr)
            return 1
        return next((code for code in map(_make, slugs) if code), 0)


def _make(slug: str) -> int:
    store = ROOT / ".torchstone" / "evidence.db"
    result = api.run(slug, store=store, e_threshold=E_THRESHOLD, jobs=os.cpu_count() or 1, listen=_tell)
    print(result)
    if result.failures:
        print(*result.failures, sep="\n", file=sys.stderr)
        return 1
    smoke = api.run(slug, scale="smoke", store=":memory:")
    evidence.save(evidence.record(result, smoke), ROOT / "src/torchstone/evidence" / f"{slug}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
