"""Small runs of the benchmarks, as processes."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.waiting import CEILING

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """A run that has ended well."""

    figures: dict[str, Any]
    stdout: str
    stderr: str


def run_benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with arguments in the project's root, to its end."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=3 * CEILING, check=False
    )


def run_small(output: Path, *arguments: str) -> Ran:
    """Run a benchmark in small, which must end well and report a number for each result.

    Args:
        output: The file for the figures.
        arguments: Of Python; `--small` and `--output` come on top.
    """
    ran = run_benchmark(*arguments, "--small", "--output", str(output))
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(output.read_text("utf-8"))
    for result in figures["results"]:
        assert math.isfinite(result["median"]), result
    return Ran(figures, ran.stdout, ran.stderr)
