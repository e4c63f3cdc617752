"""The end-to-end benchmark runs, and its figures make sense, good or bad."""

from pathlib import Path
from typing import Any

import pytest

from support.benchmarks import run_small

pytestmark = pytest.mark.slow

SERVERS = {"none", "memory", "ours"}
"""The contestants that need no peer."""


def _end_to_end(directory: Path, *measures: str) -> dict[str, Any]:
    """The figures of a small run without the peer, which must report every target."""
    output = directory / "new" / "end_to_end.json"
    ran = run_small(output, "-m", "benchmarks.end_to_end", "--only", *SERVERS, *measures)
    for result in ran.figures["results"]:
        assert result["target"] is None or result["name"] in ran.stdout
    return ran.figures


def test_end_to_end_benchmark_without_faults_reports_figures(tmp_path: Path) -> None:
    """Every contestant has figures at each distance of Redis; those with a store are resumed."""
    figures = _end_to_end(tmp_path, "latency", "cpu", "resume")
    near, distant = (figures["latency"][distance] for distance in ("0", "2"))
    assert distant["round_trip_ms"] >= 2
    assert near["round_trip_ms"] < distant["round_trip_ms"]
    for by in (near["by"], distant["by"], figures["cpu"]):
        assert by.keys() == SERVERS
    assert figures["resume"].keys() == SERVERS - {"none"}
    for (run,) in figures["resume"].values():
        assert 0 < run["p50"] <= run["p99"]


def test_end_to_end_benchmark_under_fault_and_load_reports_figures(tmp_path: Path) -> None:
    """Every due call is counted; in an outage every cut call resumes, with each message once."""
    figures = _end_to_end(tmp_path, "outage", "open_loop")
    assert figures["open_loop"]["50"].keys() == SERVERS
    for run in figures["open_loop"]["50"].values():
        assert run["due"] == run["answered"]
        assert 0 < run["ms"]["p50"] <= run["ms"]["p99.9"]
    (ours,) = figures["outage"]["ours"]
    assert ours["calls"] > 0
    assert (ours["cut"], ours["without_id"], ours["twice"]) == (ours["resumed"], 0, 0)
    assert (ours["missing"], ours["missing_uncut"], ours["refused"]) == (0, 0, 0)
    # The SDK's own resume may miss a response that is stored between its replay and its live phase.
    (memory,) = figures["outage"]["memory"]
    assert memory["resumed"] > 0
    assert (memory["without_id"], memory["twice"], memory["refused"]) == (0, 0, 0)
