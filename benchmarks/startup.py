"""How long one waits for nothing: `torchstone list` and `import torchstone`, against their limits.

Every command runs in a process of its own, in turns, so that a busy machine slows all of them alike; medians are
compared. Run it with `python -m benchmarks.startup [ROUNDS]`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIST_LIMIT = 0.3  # seconds, all in all
IMPORT_LIMIT = 0.2  # seconds, over `import torch`

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "torchstone list": ["-m", "torchstone.cli", "list"],
    "torchstone --help": ["-m", "torchstone.cli", "--help"],
    "import torch": ["-c", "import torch"],
    "import torch, torchstone": ["-c", "import torch, torchstone"],
    "import torch, torchstone.noise": ["-c", "import torch, torchstone.noise"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    for arguments in COMMANDS.values():  # warm the disk cache
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{rounds} rounds, seconds: median (fastest to slowest)")
    for name, values in times.items():
        print(f"  {name:<32} {median[name]:.3f} ({min(values):.3f} to {max(values):.3f})")

    def over_torch(name: str) -> float:
        return statistics.median(a - b for a, b in zip(times[name], times["import torch"], strict=True))

    for what, value, limit in (
        ("torchstone list", median["torchstone list"], LIST_LIMIT),
        ("torchstone --help", median["torchstone --help"], LIST_LIMIT),
        ("import torchstone over torch", over_torch("import torch, torchstone"), IMPORT_LIMIT),
        ("import torchstone.noise over torch", over_torch("import torch, torchstone.noise"), IMPORT_LIMIT),
    ):
        print(f"{what:<34} {value:.3f} s, limit {limit} s: {'within' if value < limit else 'OVER'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
