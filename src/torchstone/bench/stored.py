"""Results read back from a store, finished or not, without computing anything and without the study's code.

A store keeps what each study stated, with the identity of its code, beside the runs. So the pass that runs a study can
be repeated with an executor that looks up instead of computing, and ends where the store does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

from torchstone.bench.description import restore
from torchstone.bench.identity import RunSpec
from torchstone.bench.outcome import Row
from torchstone.bench.result import Result
from torchstone.bench.runner import Options, RunStudy
from torchstone.bench.store import Store, StudyRecord
from torchstone.bench.study import Experiment
from torchstone.bench.worker import CellDone
from torchstone.errors import StoreError, did_you_mean

__all__ = ["stored_result", "stored_studies"]


def stored_studies(store: Store) -> dict[tuple[str, str], StudyRecord]:
    """The studies in a store: (name, scale) -> what was stated last under that name and scale."""
    records = (record for record in store.studies() if "plan" in record.stated)
    return {(record.name, record.stated["plan"]["scale"]): record for record in records}


def stored_result(store: Store, name: str, *, scale: str | None = None) -> Result:
    """The result of a study as far as it is in the store.

    Args:
        store: an open store; it is only read.
        name: name of the study, as ``torchstone status`` shows it.
        scale: its scale; by default the one that was run last.

    Returns:
        What running the study would return if it were stopped where the store ends. An experiment that is not at its
        end says so in ``result.stopped``, whose text then begins with
        :data:`~torchstone.bench.runner.UNFINISHED`. ``seconds`` is the time of all its runs together.

    Raises:
        UnknownNameError: for a name that is not in the store.
        StoreError: for a study stored by a version that kept too little of it.
    """
    found = stored_studies(store)
    scales = {of: record for (known, of), record in found.items() if known == name}
    if not scales:
        if any(summary.study == name for summary in store.summary()):
            raise StoreError(
                f"study {name!r} was stored by an older torchstone, which did not keep its claims: run it again; "
                "its runs are not computed anew"
            )
        raise did_you_mean("study in the store", name, {known for known, _ in found})
    if scale is not None and scale not in scales:
        raise did_you_mean(f"scale of study {name!r} in the store", scale, scales)
    record = scales[scale] if scale is not None else max(scales.values(), key=lambda one: one.at)
    plan = record.stated["plan"]
    options = Options(
        scale=plan["scale"],
        e_threshold=plan["e_threshold"],
        replicates=plan["replicates"],
        variance=plan.get("variance", False),
        stack=plan.get("stack", "never"),
    )
    study = restore(record.stated, store.derived(record.study_id))
    result = _ReadStudy(study, store, options, _Lookup(store), plan, record.study_id).all()
    environments = store.environments()
    known = [run for run in result.runs if run.env_id in environments]
    last = max(known, key=lambda run: run.ended or 0.0, default=None)
    return replace(
        result,
        environment=environments[last.env_id] if last else {},
        seconds=sum(run.wall_s + run.shared_s for run in result.runs),
    )


class _ReadStudy(RunStudy):
    """The same pass, which writes nothing."""

    def keep_derived(self, experiment: Experiment, row: Row) -> None:
        """Nothing: that is where it came from."""


@dataclass
class _Lookup:
    """An executor that computes nothing: a cell is what the store holds of it."""

    store: Store

    def run(self, cells: Iterable[Sequence[RunSpec]]) -> Generator[CellDone]:
        """What is stored of each cell, in order."""
        for cell in cells:
            done = self.store.outcomes([spec.run_id for spec in cell])
            missing = [spec.run_id for spec in cell if spec.run_id not in done]
            failures = tuple(
                f"{run.experiment}/{run.arm}/{run.case}/{run.replicate}: {run.error_type}: {run.error_text}"
                for run in (self.store.records(missing) if missing else ())
                if run.status == "failed"
            )
            yield CellDone(tuple(cell), done, failures)
