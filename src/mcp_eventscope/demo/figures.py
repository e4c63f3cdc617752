"""The values in /metrics: of one worker, since an earlier scrape, or summed over several."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

EVENTS_STORED = "eventscope_events_stored_total"
STORE_SECONDS = "eventscope_store_duration_seconds"
REPLAY_SECONDS = "eventscope_replay_duration_seconds"
REPLAYED_EVENTS = "eventscope_replay_events"
EVENTS_FOLLOWED = "eventscope_events_followed_total"
RESUME_AGE = "eventscope_resume_age_seconds"
EVENTS_MISSING = "eventscope_events_missing_total"
EVENTS_CORRUPT = "eventscope_events_corrupt_total"
ORPHANED = "eventscope_requests_orphaned_total"
ERRORS = "eventscope_errors_total"

_Key = tuple[str, frozenset[tuple[str, str]]]


class Figures:
    """The samples of one scrape."""

    def __init__(self, samples: Mapping[_Key, float]) -> None:
        self._samples = samples

    @classmethod
    def of(cls, scrape: str) -> Self:
        """Parse a scrape in the Prometheus text format."""
        samples: defaultdict[_Key, float] = defaultdict(float)
        for family in text_string_to_metric_families(scrape):
            for sample in family.samples:
                samples[sample.name, frozenset(sample.labels.items())] += sample.value
        return cls(samples)

    @classmethod
    def sum(cls, figures: Iterable[Self]) -> Self:
        """The sums over several workers."""
        samples: defaultdict[_Key, float] = defaultdict(float)
        for some in figures:
            for key, value in some._samples.items():
                samples[key] += value
        return cls(samples)

    def since(self, before: Self) -> Self:
        """The increase since an earlier scrape of the same workers."""
        return type(self)({key: value - before._samples.get(key, 0) for key, value in self._samples.items()})

    def total(self, name: str, **labels: str) -> float:
        """The sum of a sample over the labels that are not given."""
        wanted = frozenset(labels.items())
        return sum(value for (sample, has), value in self._samples.items() if sample == name and wanted <= has)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a sample by the values of a label, without zeros."""
        values = sorted({dict(has)[label] for (sample, has) in self._samples if sample == name})
        return {value: total for value in values if (total := self.total(name, **{label: value}))}

    def mean(self, histogram: str) -> float | None:
        """The mean of a histogram; None if it has no observation."""
        count = self.total(f"{histogram}_count")
        return self.total(f"{histogram}_sum") / count if count else None

    @property
    def resumed(self) -> int:
        """Replays that delivered every event that the client had missed."""
        return int(sum(self.total(f"{REPLAY_SECONDS}_count", outcome=good) for good in ("resumed", "caught_up")))

    @property
    def replayed(self) -> int:
        """Missed events that were sent when the client reconnected."""
        return int(self.total(f"{REPLAYED_EVENTS}_sum"))

    @property
    def followed(self) -> int:
        """Later events that were sent on a resumed stream."""
        return int(self.total(EVENTS_FOLLOWED))

    @property
    def delivered(self) -> int:
        """Events that were sent on a resumed stream."""
        return self.replayed + self.followed
