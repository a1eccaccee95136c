"""What a run took and cost."""

import pytest
from report_facts import make_facts

from lorry.report.account import cost, with_account
from lorry.run_info import RunInfo
from lorry.training.loop import Progress


def test_the_phases_add_up_and_training_is_that_of_all_runs():
    about = RunInfo(instance="ml.g4dn.xlarge", seconds={"starting": 5.0, "reading": 20.0, "merging": 10.0})
    log = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.9, "expected_seconds": 90.0}]
    progress = Progress(seconds=100.0, evaluating=15.0)
    facts = with_account(make_facts(log=log), about, progress, 2, {"train": "abc"})
    assert facts.metrics["time"] == {
        "seconds": 150.0,
        "phases": {"starting": 5.0, "reading": 20.0, "training": 100.0, "evaluation": 15.0, "merging": 10.0},
        "expected_training_seconds": 90.0,
    }
    assert facts.metrics["cost"]["dollars"] == pytest.approx(2 * 0.7364 * 150 / 3600, abs=1e-4)
    assert facts.metrics["cost"]["instances"] == 2
    assert facts.fingerprints == {"train": "abc"}
    assert facts.metrics["training"] == make_facts().metrics["training"]


def test_no_price_is_made_up():
    assert cost("", 1, 100.0) is None
    assert cost("ml.p5.48xlarge", 1, 100.0) is None
