"""What the engine costs: seconds a trial, finished runs a second, seconds to ask where a large store stands.

Run ``python -m benchmarks.engine [PYTHON]``. Ours and Optuna take turns at the same 200 trivial trials, each time with
a new SQLite file, so that a busy machine slows both alike. PYTHON is an interpreter that has Optuna (by default this
one); if it has none that part is left out with a line that says so.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from torchstone.bench import Arm, Cell, Experiment, Higher, Outcome, Study
from torchstone.bench.capture import Streams
from torchstone.bench.identity import RunSpec
from torchstone.bench.runner import Event, Options, run_study
from torchstone.bench.store import Store
from torchstone.bench.store.queries import planned_row
from torchstone.bench.store.schema import metric, run

TRIALS, ROUNDS = 200, 5
MANY = 50_000
PROCESSES, SHARE = 8, 100
LIMITS = {
    "trial": 5e-3,
    "listening to a run": 2e-4,
    "status of 50 000 runs": 0.3,
    "`torchstone status`, its start included": 0.3,
    "seconds a finished run": 1 / 100,
}

OPTUNA = """
import sys, time, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=f"sqlite:///{sys.argv[1]}", sampler=optuna.samplers.RandomSampler(0))
def objective(trial):
    return trial.suggest_float("x", 0.0, 1.0)
started = time.perf_counter()
study.optimize(objective, n_trials=int(sys.argv[2]))
print(time.perf_counter() - started)
"""

FINISH = """
import sys, time
from torchstone.bench.outcome import Outcome
from torchstone.bench.store import Store, owner_id
path, *ids = sys.argv[1:]
with Store.open(path) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for run_id in ids:
        (mine,) = store.claim([run_id], owner_id())
        assert store.finish(mine, owner_id(), Outcome({"accuracy": 0.5}), wall_s=0.0, cpu_s=0.0)
    print("done", flush=True)
"""


def trivial(cell: Cell) -> Outcome:
    return Outcome({"accuracy": cell.seeds.numpy("noise").random()})


def study(trials: int) -> Study:
    arms = {"a": Arm(trivial), "b": Arm(trivial)}
    claim = Higher("accuracy", "a", 0.0, primary=True)
    return Study("trivial", (Experiment("main", arms, (claim,), replicates=(trials // 2, trials // 2)),))


@contextlib.contextmanager
def new_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "results.db"


def seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def our_trials(**options: object) -> float:
    with new_file() as path, Store.open(path) as store:
        return seconds(lambda: run_study(study(TRIALS), store, Options(**options)))  # pyright: ignore[reportArgumentType]


def optuna_trials(python: str) -> float:
    with new_file() as path:
        command = [python, "-c", OPTUNA, str(path), str(TRIALS)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def listening() -> float:
    streams, rounds = Streams(), 500

    def listen() -> None:
        for _ in range(rounds):
            with streams() as said:
                said()

    with contextlib.redirect_stdout(io.StringIO()):
        return min(seconds(listen) for _ in range(ROUNDS)) / rounds


def together() -> float:
    """Seconds a run when so many processes claim and finish runs one by one in one file."""
    specs = [RunSpec("s", "main", "a", "x", number, "bench") for number in range(PROCESSES * SHARE)]
    with new_file() as path:
        with Store.open(path) as store:
            store.plan(specs, study_id=store.add_study("s", {}))
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", FINISH, str(path), *(spec.run_id for spec in specs[place::PROCESSES])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for place in range(PROCESSES)
        ]
        pipes = [(worker.stdin, worker.stdout) for worker in workers if worker.stdin and worker.stdout]
        for _, out in pipes:
            assert out.readline() == "ready\n"
        started = time.perf_counter()
        for inside, _ in pipes:
            inside.write("go\n")
            inside.flush()
        for _, out in pipes:
            assert out.readline() == "done\n"
        taken = time.perf_counter() - started
        for worker in workers:
            worker.communicate()
        with Store.open(path) as store:
            assert store.summary()[0].done == len(specs)
    return taken / len(specs)


def fill(store: Store) -> None:
    """Many finished runs of one study, with a number each."""
    first = RunSpec("s", "main", "a", "x", 0, "bench", setting={"epochs": 3})
    study_id = store.add_study("s", {"plan": {"scale": "bench"}})
    places = itertools.product(range(MANY // 20), "abcdefghij", "xy")
    specs = [replace(first, replicate=number, arm=arm, case=case) for number, arm, case in places]
    ended = {"status": "done", "attempts": 1, "wall_s": 1.0, "shared_s": 0.0, "cpu_s": 1.0}
    rows = [{**planned_row(spec, study_id, 0.0), **ended, "ended": float(spec.replicate)} for spec in specs]
    numbers = [{"run_id": row["id"], "kind": "value", "name": "accuracy", "value": 0.5, "status": "ok"} for row in rows]
    with store._database.begin(write=True) as connection:
        connection.execute(run.insert(), rows)
        connection.execute(metric.insert(), numbers)


def large_store() -> Iterator[tuple[str, float]]:
    with new_file() as path:
        with Store.open(path) as store:
            fill(store)
            run_id = RunSpec("s", "main", "a", "x", 7, "bench", setting={"epochs": 3}).run_id
        with Store.open(path, read_only=True) as store:
            yield "status of 50 000 runs", median(seconds(store.summary) for _ in range(ROUNDS))
            for what, ask in (
                ("mean seconds by arm", lambda: store.mean_seconds("s", "bench")),
                ("one run by id", lambda: store.find_runs(run_id[:8])),
                ("one run by name", lambda: store.find_runs("s/main/a/x/7")),
            ):
                assert ask()
                yield what, median(seconds(ask) for _ in range(ROUNDS))
        command = [sys.executable, "-m", "torchstone.cli", "status", "--store", str(path)]

        def status() -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        before = processor_time()
        yield "`torchstone status`, its start included", median(seconds(status) for _ in range(ROUNDS))
        yield "the same, time of processor (mean)", (processor_time() - before) / ROUNDS


def processor_time() -> float:  # of child processes; who else uses the machine matters little
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def planning() -> float:
    """Seconds to tell what is done and how long the rest takes, of a study that is nearly over."""
    told: list[float] = []
    with Store.open(":memory:") as store:
        run_study(study(2000), store)
        started = time.perf_counter()

        def listen(event: Event) -> None:
            if event.kind == "plan":
                told.append(time.perf_counter() - started)
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_study(study(2000), store, Options(listen=listen))
    return told[0]


def has_optuna(python: str) -> bool:
    return not subprocess.run([python, "-c", "import optuna"], check=False, capture_output=True).returncode


def tell(what: str, value: float, unit: str = "s", scale: float = 1.0) -> None:
    limit = LIMITS.get(what)
    judged = "" if limit is None else f", limit {limit * scale:g} {unit}: {'within' if value < limit else 'OVER'}"
    print(f"{what:<42} {value * scale:.3g} {unit}{judged}", flush=True)


def main(python: str) -> None:
    peer = has_optuna(python)
    our_trials()  # warm up
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(our_trials() / TRIALS)
        if peer:
            theirs.append(optuna_trials(python) / TRIALS)
    tell("trial", median(ours), "ms", 1e3)
    tell("trial, two worker processes and their start", our_trials(jobs=2) / TRIALS, "ms", 1e3)
    if peer:
        tell("trial of Optuna on SQLite", median(theirs), "ms", 1e3)
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"Optuna takes {median(ratios):.1f} times as long ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    else:
        print(f"{python} has no optuna: not compared (give an interpreter that has it)")
    tell("listening to a run", listening(), "ms", 1e3)
    each = together()
    tell("seconds a finished run", each, "ms", 1e3)
    print(f"{PROCESSES} processes on one file finish {1 / each:.0f} runs a second")
    for what, value in large_store():
        tell(what, value)
    tell("plan of 2 000 runs", planning())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
