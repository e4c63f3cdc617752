"""The committed rules with their time shrunk, so that windows of hours fit into a drill of a minute."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

FACTOR = 100
"""An hour of the rules is 36 intervals of the drill, and their shortest window, five minutes, three scrapes."""
SHORTEST = 3.0
"""Intervals that a window has at least: a rate needs two samples, and one scrape may come late."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WINDOW = re.compile(r"(?<=\[)(\d+)([smhd])(?=])")
_OFFSET = re.compile(r"(?<=offset )(\d+)([smhd])\b")


def intervals(duration: str) -> float:
    """Return a duration of the rules in intervals of the drill: `for: 5m` is 3.

    Args:
        duration: A number and a unit, as Prometheus writes it.
    """
    number, unit = re.fullmatch(r"(\d+)([smhd])", duration).groups()  # type: ignore[union-attr]
    return int(number) * _SECONDS[unit] / FACTOR


def _written(value: float) -> str:
    return f"{round(value * 1000)}ms"


def shrink_expression(expression: str, interval: int) -> str:
    """Shrink the durations in brackets and behind `offset`. Names of recorded series stay as they are."""
    shrunk = _WINDOW.sub(lambda found: _written(interval * max(intervals(found[0]), SHORTEST)), expression)
    return _OFFSET.sub(lambda found: _written(interval * intervals(found[0])), shrunk)


def shrink(source: Path, target: Path, interval: int) -> None:
    """Copy files of rules. Thresholds stay as they are: only time is shrunk.

    Args:
        source: The directory of the committed ones.
        target: Where the others go.
        interval: Seconds between two scrapes, and two evaluations.
    """
    target.mkdir()
    for path in source.glob("*.yaml"):
        groups: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
        for group in groups["groups"]:
            group["interval"] = f"{interval}s"
            for rule in group["rules"]:
                rule["expr"] = shrink_expression(rule["expr"], interval)
                if "for" in rule:
                    rule["for"] = _written(interval * intervals(rule["for"]))
        (target / path.name).write_text(json.dumps(groups), "utf-8")  # JSON is YAML.
