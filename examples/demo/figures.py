"""The figures that /metrics reports, added up over the workers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

STORED_EVENTS = "eventscope_stored_events_total"
STORE_SECONDS = "eventscope_store_duration_seconds"
REPLAY_SECONDS = "eventscope_replay_duration_seconds"
REPLAYED_EVENTS = "eventscope_replay_events"
FOLLOWED_EVENTS = "eventscope_followed_events_total"
RESUME_AGE = "eventscope_resume_age_seconds"
MISSING_EVENTS = "eventscope_replay_missing_events_total"
CORRUPT_EVENTS = "eventscope_replay_corrupt_events_total"
ERRORS = "eventscope_errors_total"

_Key = tuple[str, frozenset[tuple[str, str]]]


class Figures:
    """The samples of one scrape of every worker."""

    def __init__(self, samples: Mapping[_Key, float]) -> None:
        self._samples = samples

    @classmethod
    def of(cls, scrapes: Iterable[str]) -> Self:
        """Parse scrapes in the Prometheus text format."""
        samples: defaultdict[_Key, float] = defaultdict(float)
        for scrape in scrapes:
            for family in text_string_to_metric_families(scrape):
                for sample in family.samples:
                    samples[sample.name, frozenset(sample.labels.items())] += sample.value
        return cls(samples)

    def total(self, name: str, **labels: str) -> float:
        """The sum of a sample over all labels that are not given."""
        wanted = frozenset(labels.items())
        return sum(value for (sample, has), value in self._samples.items() if sample == name and wanted <= has)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a sample by the values of a label, those that are zero left out."""
        values = sorted({dict(has)[label] for (sample, has) in self._samples if sample == name})
        return {value: total for value in values if (total := self.total(name, **{label: value}))}

    def mean(self, histogram: str) -> float | None:
        """The mean of what a histogram observed; None when that is nothing."""
        count = self.total(f"{histogram}_count")
        return self.total(f"{histogram}_sum") / count if count else None

    @property
    def resumed(self) -> int:
        """Replays that delivered all that was owed."""
        return int(sum(self.total(f"{REPLAY_SECONDS}_count", outcome=good) for good in ("resumed", "caught_up")))

    @property
    def delivered(self) -> int:
        """Events that went out through a resumed stream: those that were missed, and those said later."""
        return int(self.total(f"{REPLAYED_EVENTS}_sum") + self.total(FOLLOWED_EVENTS))
