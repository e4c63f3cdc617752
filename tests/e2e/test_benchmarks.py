"""The benchmarks run, and their figures make sense. Whether they are good is not for a test to say."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


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
