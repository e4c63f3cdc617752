"""Asks a Prometheus what Grafana would ask it for a panel, with the variables at the top of the page chosen."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.boards import BOARDS
from support.prometheus import Prometheus

ALL = ".+"
"""What a variable is when nothing is chosen."""
CHOICES = ("job", "instance", "store", "redis_job", "redis_instance")

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Target:
    """One query of a panel; of an annotation, whose panel is 0."""

    board: str
    panel: int
    title: str
    ref: str
    expr: str
    legend: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.board} {self.panel} {self.title!r} {self.ref} {self.legend}"


@dataclass(frozen=True)
class View:
    """What is looked at: how long until when, scraped how often, and of which job."""

    prometheus: Prometheus
    seconds: float
    end: float
    interval: int
    """Seconds between two scrapes."""
    job: str = ALL

    @property
    def range(self) -> str:
        """How long, as Prometheus writes it."""
        return f"{round(self.seconds * 1000)}ms"

    @property
    def rate_interval(self) -> str:
        """Of Grafana: at least four times the scrape interval."""
        return f"{4 * self.interval}s"

    def query(self, text: str) -> str:
        """A query with its variables substituted."""
        values = {"__rate_interval": self.rate_interval, "__range": self.range, "__interval": f"{self.interval}s"}
        values |= dict.fromkeys(CHOICES, ALL) | {"job": self.job}
        filled = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values[found[1] or found[2]], text)
        assert "$" not in filled, filled
        return filled

    def ask(self, target: Target) -> list[dict[str, Any]]:
        """The series that a panel would draw, each with `points`: what is no number is left out."""
        query = self.query(target.expr)
        if target.instant:
            found = self.prometheus.ask("query", query=query, time=f"{self.end}")["result"]
            for series in found:
                series["values"] = [series["value"]]
        else:
            begin = self.end - self.seconds
            times = {"start": f"{begin}", "end": f"{self.end}", "step": f"{self.interval}"}
            found = self.prometheus.ask("query_range", query=query, **times)["result"]
        for series in found:
            series["points"] = [number for _, text in series["values"] if not math.isnan(number := float(text))]
        return [series for series in found if series["points"]]

    def last(self, target: Target) -> dict[Labels, float]:
        """The last value of each series."""
        return {labels(series["metric"]): series["points"][-1] for series in self.ask(target)}

    def greatest(self, target: Target) -> dict[Labels, float]:
        """The greatest value of each series."""
        return {labels(series["metric"]): max(series["points"]) for series in self.ask(target)}

    def increases(self, name: str, label: str) -> dict[str, float]:
        """The increases of the counters of this name, summed by a label; values without an increase are omitted."""
        sums: dict[str, float] = defaultdict(float)
        for found, grown in self.counted(f'{name}{{job=~"$job"}}').items():
            sums[dict(found)[label]] += grown
        return {value: grown for value, grown in sums.items() if grown}

    def counted(self, selector: str) -> dict[Labels, float]:
        """How far counters have come, from raw samples: exact, and over restarts. All begin at 0."""
        ranged = f"{self.query(selector)}[{self.range}]"
        result = self.prometheus.ask("query", query=ranged, time=f"{self.end}")["result"]
        return {labels(series["metric"]): _grown([float(value) for _, value in series["values"]]) for series in result}


def _grown(samples: list[float]) -> float:
    total = before = 0.0
    for sample in samples:
        total += sample - before if sample >= before else sample
        before = sample
    return total


def labels(metric: Mapping[str, str]) -> Labels:
    """The labels of a series, without its name."""
    return frozenset((name, value) for name, value in metric.items() if name != "__name__")


def targets() -> Iterator[Target]:
    """Every query of every panel and annotation of every dashboard."""
    for board in BOARDS.values():
        for note in board["annotations"]["list"]:
            yield Target(board["uid"], 0, note["name"], "", note["expr"], "", instant=False)
        for panel in board["panels"]:
            for inner in (panel, *panel.get("panels", ())):
                for one in inner.get("targets", ()):
                    yield Target(
                        board["uid"],
                        inner["id"],
                        inner["title"],
                        one["refId"],
                        one["expr"],
                        one["legendFormat"],
                        bool(one["instant"]),
                    )
