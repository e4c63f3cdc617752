"""The committed rules with their time shrunk, so that windows of hours fit into a drill of a minute."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

FACTOR = 100
"""An hour of the rules is 36 seconds of the drill, and their shortest window, five minutes, three scrapes."""
SHORTEST = 3.0
"""Seconds that a window has at least: a rate needs two samples, and one scrape may come late."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WINDOW = re.compile(r"(?<=\[)(\d+)([smhd])(?=])")
_OFFSET = re.compile(r"(?<=offset )(\d+)([smhd])\b")


def seconds(duration: str) -> float:
    """What a duration of the rules is in the drill: `for: 5m` is 3 seconds.

    Args:
        duration: A number and a unit, as Prometheus writes it.
    """
    number, unit = re.fullmatch(r"(\d+)([smhd])", duration).groups()  # type: ignore[union-attr]
    return int(number) * _SECONDS[unit] / FACTOR


def _written(value: float) -> str:
    return f"{round(value * 1000)}ms"


def shrink_expression(expression: str) -> str:
    """A rule's PromQL: what is in brackets or behind `offset` is shrunk. Names of recorded series stay as they are."""
    shrunk = _WINDOW.sub(lambda found: _written(max(seconds(found[0]), SHORTEST)), expression)
    return _OFFSET.sub(lambda found: _written(seconds(found[0])), shrunk)


def shrink(source: Path, target: Path) -> None:
    """Copy files of rules. How many it takes and how much of them is left as it is: only time is shrunk.

    Args:
        source: The directory of the committed ones.
        target: Where the others go.
    """
    target.mkdir()
    for path in source.glob("*.yaml"):
        groups: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
        for group in groups["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["expr"] = shrink_expression(rule["expr"])
                if "for" in rule:
                    rule["for"] = _written(seconds(rule["for"]))
        (target / path.name).write_text(json.dumps(groups), "utf-8")  # JSON is YAML.
