"""The figures of soak runs are counted, and kept in one file."""

import json
from pathlib import Path

from soak.checker import check
from soak.history import SDK, STANDALONE, Kind, Observation, Operation, Outcome, What
from soak.results import add, figures

STREAM = {"client": 3, "session": "3.1", "stream": "call-1"}
HISTORY = [
    Observation(0.0, What.BEGIN),
    Observation(1.0, What.CALL, **STREAM, kind="count", number=1, request="1", note=SDK),  # type: ignore[arg-type]
    Observation(2.0, What.BEGAN, **STREAM, operation=Operation.POST),  # type: ignore[arg-type]
    Observation(3.0, What.EVENT, **STREAM, kind=Kind.PRIMING, id="1"),  # type: ignore[arg-type]
    Observation(4.0, What.CUT, **STREAM, kind="closed"),  # type: ignore[arg-type]
    Observation(5.0, What.REDIS_KILLED, kind="saved"),
    Observation(5.5, What.REDIS_FLUSHED),
    Observation(6.0, What.BEGAN, **STREAM, operation=Operation.RESUME, id="1"),  # type: ignore[arg-type]
    Observation(7.0, What.EVENT, **STREAM, kind=Kind.RESULT, id="3", number=1, request="1"),  # type: ignore[arg-type]
    Observation(8.0, What.DONE, **STREAM, kind=Outcome.RESULT),  # type: ignore[arg-type]
    Observation(8.1, What.BEGAN, 3, "3.1", STANDALONE, operation=Operation.LISTEN),
    Observation(9.0, What.END),
]


def test_figures_of_a_run_count_calls_faults_and_violations() -> None:
    """The notification of the call is lost, and its client passed none on."""
    run = figures(HISTORY, check(HISTORY))
    assert (run["seconds"], run["calls"], run["by_the_sdk_client"]) == (9, 1, 1)
    assert (run["cuts"], run["resumes"], run["standalone_connections"]) == (1, 1, 1)
    assert (run["messages"], run["standalone_messages"]) == (1, 0)
    assert run["outcomes"] == {"result": 1}
    assert run["faults"] == {"redis flushed": 1, "redis killed, saved": 1}
    assert {name: count for name, count in run["violations"].items() if count} == {"lost": 1}


def test_results_of_runs_are_summed_and_a_repeated_seed_is_replaced(tmp_path: Path) -> None:
    """Each seed counts once."""
    path = tmp_path / "results" / "soak.json"
    run = figures(HISTORY, check(HISTORY))
    for seed in (7, 7, 10, 9):
        content = add(path, seed, run, {"cores": 2})
    assert json.loads(path.read_text("utf-8")) == content
    assert list(content["runs"]) == ["7", "9", "10"]
    total = content["total"]
    assert (total["seconds"], total["calls"], total["violations"]["lost"], total["violations"]["hang"]) == (27, 3, 3, 0)
    assert total["faults"]["redis flushed"] == 3
