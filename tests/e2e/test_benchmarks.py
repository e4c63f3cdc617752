"""The benchmarks run, and their figures make sense, good or bad."""

import json
from pathlib import Path

import pytest

from support.benchmarks import run_benchmark, run_small

pytestmark = pytest.mark.slow

# Some peers are installed for other tests, not all, and not for benchmarks: here there are none.
STORE = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(('mcp_persist', 'fastmcp', 'key_value')));"
    "runpy.run_module('benchmarks.store', run_name='__main__', alter_sys=True)"
)


def test_follow_benchmark_in_small_reports_figures(tmp_path: Path) -> None:
    """Nothing is lost, no read fails, every figure is a number, and a table names them."""
    ran = run_small(tmp_path / "new" / "follow.json", "-m", "benchmarks.follow")
    figures = ran.figures
    measured = figures["measured_with"]
    assert measured["python"]
    assert measured["cores"] > 0
    assert measured["server"].startswith("valkey ")
    assert {"mcp", "redis", "mcp-eventscope"} <= measured["packages"].keys()
    for result in figures["results"]:
        assert result["median"] >= 0, result
        assert result["name"] in ran.stdout
    for key in ("two_workers", "one_worker"):
        (latency,) = figures["latency"][key]
        assert latency["received"] == latency["expected"] == 50
        assert latency["responses"] == latency["followers"] == 10
        assert 0 < latency["sent_to_wire_ms"]["p50"] <= latency["sent_to_wire_ms"]["max"]
    (crowd,) = figures["crowd"]
    assert crowd["connections"]["pubsub"] == 1
    assert (crowd["completed"], crowd["delivered"], crowd["failed_reads"]) == (200, 400, 0)
    assert figures["idle"]["alone"]["other_per_second"] == 0


def test_store_benchmark_in_small_reports_figures(tmp_path: Path) -> None:
    """It needs no peer, lists those left out, and judges every target on a number."""
    ran = run_small(tmp_path / "new" / "store.json", "-c", STORE, "--only", "ours", "root", "metrics", "persist")
    figures = ran.figures
    assert {"ours", "root", "metrics"} == figures["competitors"].keys()
    assert figures["left_out"] == ["persist"]
    for name in figures["left_out"]:
        assert f"left out: {name}, for want of " in ran.stderr
    for result in figures["results"]:
        assert result["median"] > 0, result
        assert result["name"] in ran.stdout
    for writers, by in figures["stores"].items():
        for name in figures["competitors"]:
            (measured,) = by[name]
            assert measured["stores"] >= min(int(writers), 1000)
            assert 0 < measured["ms"]["p50"] <= measured["ms"]["p99"] <= measured["ms"]["max"]
            assert measured["cpu_us_per_store"] > 0
    judged = {result["name"] for result in figures["results"] if result["target"] is not None}
    assert {"p50, one writer, to the same EVALSHA", "replay of the last 20 of 2,000, to 200"} <= judged
    assert figures["memory"]["ours"][0]["used_memory_per_event"] > 300
    (layout,) = figures["layout"]
    for lengths in layout.values():
        assert lengths["ours"]["cpu_us"] > 0
        assert lengths["earlier"]["bytes"] > 300
    cost = figures["telemetry"]
    assert cost["bare"]["append_us"] < cost["all on"]["append_us"]


def test_store_benchmark_in_full_needs_the_peers(tmp_path: Path) -> None:
    """Without them it names the packages to install, and writes nothing."""
    output = tmp_path / "store.json"
    ran = run_benchmark("-c", STORE, "--only", "persist", "memory", "--output", str(output))
    assert ran.returncode == 1
    assert "not installed: mcp_persist" in ran.stderr
    assert "--group bench" in ran.stderr
    assert not output.exists()


def test_failures_benchmark_reports_a_resume_on_the_other_worker(tmp_path: Path) -> None:
    """A cut call of ours resumes there, with each message once."""
    output = tmp_path / "failures.json"
    ran = run_benchmark(
        *("-m", "benchmarks.failures", "--rounds", "1", "--only", "ours"),
        *("--cases", "other_worker", "--output", str(output)),
    )
    assert ran.returncode == 0, ran.stderr
    (run,) = json.loads(output.read_text("utf-8"))["cases"]["other_worker"]["ours"]
    assert (run["outcome"], run["last_status"], run["missing"], run["twice"]) == ("result", "200", 0, 0)
    assert "other_worker" in ran.stdout


def test_limits_benchmark_in_small_keeps_the_limits(tmp_path: Path) -> None:
    """Each client is served, or refused by the session limit, and no worker outgrows its bound."""
    output = tmp_path / "limits.json"
    parts = ("streams", "reconnects", "max_sessions")
    ran = run_benchmark("-m", "benchmarks.limits", "--small", "--output", str(output), "--only", *parts)
    figures = json.loads(output.read_text("utf-8"))["parts"]
    assert figures.keys() == set(parts), ran.stderr
    for name, part in figures.items():
        assert name in ran.stdout
        assert part["bystander_failed"] == 0
        # The bound on latency is that of a machine without other load.
        assert [problem for problem in part["exceeded"] if not problem.startswith("p99")] == []
    assert figures["streams"]["statuses"] == {"200": 40}
    assert (figures["reconnects"]["complete"], figures["reconnects"]["statuses"]) == (12, {"200": 12})
    assert figures["max_sessions"]["statuses"] == {"200": 4, "503": 4}
