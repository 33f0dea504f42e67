from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes import two_arm_study
from torchstone.bench import evidence
from torchstone.bench.result import Result
from torchstone.bench.runner import Options, run_study
from torchstone.bench.store import Store


def smoke(good: float = 0.9) -> Result:
    with Store.open(":memory:") as store:
        return run_study(two_arm_study(good), store, Options(scale="smoke"))


def stored() -> dict:
    with Store.open(":memory:") as store:
        result = run_study(two_arm_study(tuned=True), store, Options(e_threshold=100.0))
    return evidence.record(result, smoke())


def test_evidence_is_plain_json_and_holds_what_the_verdict_rests_on(tmp_path: Path) -> None:
    record = stored()
    evidence.save(record, tmp_path / "fake.json")
    assert json.loads((tmp_path / "fake.json").read_text()) == json.loads(json.dumps(record))
    assert [path.name for path in tmp_path.iterdir()] == ["fake.json"]
    assert (record["verdict"], record["replicates"], record["e_threshold"]) == ("reproduced", {"main": 8}, 100.0)
    mean, sd, n = record["means"]["main"]["accuracy"]["method/default"]
    assert n == 8
    assert 0.5 < mean < 1
    assert sd > 0
    assert record["cost"]["runs"] == 2 * 8 + 2 * 8
    assert record["environment"]["python"]


def test_behaviour_that_moved_is_noticed_and_noise_of_the_processor_is_not() -> None:
    record = stored()
    assert evidence.moved(record, smoke()) == []
    assert evidence.moved(record, smoke(0.9 + 0.04)) == []
    differences = evidence.moved(record, smoke(0.9 + 0.06))
    assert len(differences) == 1
    assert differences[0].startswith("main/method/default accuracy: ")


def test_a_metric_that_vanished_has_moved() -> None:
    record = stored()
    record["smoke"]["main/method/default"]["extra"] = 1.0
    assert evidence.moved(record, smoke()) == ["main/method/default extra: 1.0 when the evidence was made, None now"]


def primary(verdict: str, e: float = 1.0, against: float = 1.0, always: bool = False) -> dict:
    claim = {"primary": True, "verdict": verdict, "e_value": e, "e_against": against, "always": always}
    return {"verdicts": [{"primary": False}, claim]}


def test_verdicts_are_adjusted_for_the_number_of_studies() -> None:
    found = {
        "clean": primary("reproduced", e=115.0),
        "weak": primary("reproduced", e=25.0),
        "wrong": primary("refuted", against=400.0),
        "coin": primary("not significant"),
        "theorem": primary("holds", always=True),
    }
    assert evidence.adjusted_verdicts(found) == {
        "clean": "reproduced",
        "weak": "reproduced (not after adjustment)",
        "wrong": "refuted",
        "coin": "not significant",
        "theorem": "holds",
    }
    alone = {"weak": primary("reproduced", e=25.0)}
    assert evidence.adjusted_verdicts(alone) == {"weak": "reproduced"}
    assert evidence.adjusted_verdicts({}) == {}


@pytest.mark.parametrize("name", evidence.names())
def test_evidence_in_the_package_is_complete(name: str) -> None:
    found = evidence.load(name)
    assert found is not None
    assert found["study"] == name
    assert found["scale"] == "bench"
    assert sum(claim["primary"] for claim in found["verdicts"]) == 1
    assert found["smoke"]


def test_a_study_without_evidence_has_none() -> None:
    assert evidence.load("no-such-study") is None
