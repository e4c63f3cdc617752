"""The benchmarks run, and their figures make sense. Whether they are good is not for a test to say."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

SERVERS = {"none", "memory", "ours"}
"""The contestants of the end-to-end benchmark that need no peer."""

# Some peers are installed for other tests, not all, and not for benchmarks: here there are none.
STORE = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(('mcp_persist', 'fastmcp', 'key_value')));"
    "runpy.run_module('benchmarks.store', run_name='__main__', alter_sys=True)"
)


def _end_to_end(directory: Path, *measures: str) -> dict[str, Any]:
    """The figures of a small run without the peer, which must report every target."""
    output = directory / "new" / "end_to_end.json"
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.end_to_end",
            "--small",
            "--output",
            str(output),
            "--only",
            *SERVERS,
            *measures,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    figures: dict[str, Any] = json.loads(output.read_text("utf-8"))
    for result in figures["results"]:
        assert math.isfinite(result["median"]), result
        assert result["target"] is None or result["name"] in ran.stdout
    return figures


def test_end_to_end_without_faults(tmp_path: Path) -> None:
    """Latency and processor time are measured for every contestant, with Redis at the distance that is asked for."""
    figures = _end_to_end(tmp_path, "latency", "cpu")
    near, distant = (figures["latency"][distance] for distance in ("0", "2"))
    assert distant["round_trip_ms"] >= 2
    assert near["round_trip_ms"] < distant["round_trip_ms"]
    for by in (near["by"], distant["by"], figures["cpu"]):
        assert by.keys() == SERVERS


def test_end_to_end_under_fault_and_load(tmp_path: Path) -> None:
    """Every call that is due is counted; in an outage of Redis every cut call resumes, with each message once."""
    figures = _end_to_end(tmp_path, "outage", "open_loop")
    assert figures["open_loop"]["50"].keys() == SERVERS
    for run in figures["open_loop"]["50"].values():
        assert run["due"] == run["answered"]
        assert 0 < run["ms"]["p50"] <= run["ms"]["p99.9"]
    (ours,) = figures["outage"]["ours"]
    assert ours["calls"] > 0
    assert (ours["cut"], ours["without_id"], ours["twice"]) == (ours["resumed"], 0, 0)
    assert (ours["missing"], ours["missing_uncut"], ours["refused"]) == (0, 0, 0)
    # The SDK's own resume may miss the response: what is stored between its replay and its going live.
    (memory,) = figures["outage"]["memory"]
    assert memory["resumed"] > 0
    assert (memory["without_id"], memory["twice"], memory["refused"]) == (0, 0, 0)


def test_follow(tmp_path: Path) -> None:
    """The small run ends well: nothing lost, no read failed, every figure a number, and a table that names them."""
    output = tmp_path / "new" / "follow.json"
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.follow", "--small", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(output.read_text("utf-8"))
    told = figures["measured_with"]
    assert told["python"]
    assert told["cores"] > 0
    assert told["server"].startswith("valkey ")
    assert {"mcp", "redis", "mcp-eventscope"} <= told["packages"].keys()
    for result in figures["results"]:
        assert math.isfinite(result["median"]), result
        assert result["median"] >= 0, result
        assert result["name"] in ran.stdout
    for key in ("two_workers", "one_worker"):
        (latency,) = figures["latency"][key]
        assert latency["heard"] == latency["expected"] == 50
        assert latency["responses"] == latency["followers"] == 10
        assert 0 < latency["said_to_wire_ms"]["p50"] <= latency["said_to_wire_ms"]["max"]
    (crowd,) = figures["crowd"]
    assert crowd["connections"]["pubsub"] == 1
    assert (crowd["completed"], crowd["delivered"], crowd["failed_reads"]) == (200, 400, 0)
    assert figures["idle"]["alone"]["other_per_second"] == 0


def test_store(tmp_path: Path) -> None:
    """The small run needs no peer, and says who was left out; every target is judged on a number, and told."""
    output = tmp_path / "new" / "store.json"
    ran = subprocess.run(
        [sys.executable, "-c", STORE, "--small", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(output.read_text("utf-8"))
    assert {"ours", "root", "metrics", "spans"} <= figures["competitors"].keys()
    for name in figures["left_out"]:
        assert f"left out: {name}, for want of " in ran.stderr
    for result in figures["results"]:
        assert math.isfinite(result["median"]), result
        assert result["median"] > 0, result
        assert result["name"] in ran.stdout
    for writers, by in figures["stores"].items():
        for name in figures["competitors"]:
            (told,) = by[name]
            assert told["stores"] >= min(int(writers), 1000)
            assert 0 < told["ms"]["p50"] <= told["ms"]["p99"] <= told["ms"]["max"]
            assert told["cpu_us_per_store"] > 0
    judged = {result["name"] for result in figures["results"] if result["target"] is not None}
    assert {"p50, one writer, to the same EVALSHA", "replay of the last 20 of 2,000, to 200"} <= judged
    assert figures["memory"]["ours"][0]["used_memory_per_event"] > 300
    (layout,) = figures["layout"]
    for lengths in layout.values():
        assert lengths["ours"]["cpu_us"] > 0
        assert lengths["earlier"]["bytes"] > 300
    cost = figures["telemetry"]
    assert cost["bare"]["append_us"] < cost["all on"]["append_us"]


def test_store_in_full_needs_the_peers(tmp_path: Path) -> None:
    """A full run without them would compare with nobody: it says what to install, and writes nothing."""
    output = tmp_path / "store.json"
    ran = subprocess.run(
        [sys.executable, "-c", STORE, "--only", "persist", "memory", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 1
    assert "not installed: mcp_persist" in ran.stderr
    assert "--group bench" in ran.stderr
    assert not output.exists()
