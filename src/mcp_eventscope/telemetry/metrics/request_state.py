"""Updates the metrics of request states and the answers to them."""

from mcp_eventscope.request_state.facts import (
    AnswerEnd,
    AnswerEnded,
    AnswerRepeated,
    KeysChanged,
    RequestStateFact,
    StateOpened,
    StateRefused,
    StateSealed,
)
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.metrics.instruments import Instruments


class RequestStateMetrics:
    """Records facts about request states. Every child is bound once, in the constructor.

    Args:
        instruments: The instruments of one store.
    """

    def __init__(self, instruments: Instruments) -> None:
        counter, sources = instruments.counter, catalog.request_state.KEY_SOURCE.values or ()
        self._sealed = {source: counter(catalog.request_state.STATES_SEALED, source) for source in sources}
        self._opened = counter(catalog.request_state.STATES_OPENED)
        self._refused = {
            reason: counter(catalog.request_state.STATES_REFUSED, reason)
            for reason in catalog.request_state.STATE_REFUSAL_REASON.values or ()
        }
        self._answers = {
            outcome: counter(catalog.request_state.ANSWERS, outcome)
            for outcome in catalog.request_state.ANSWER_OUTCOME.values or ()
        }
        self._repeated = counter(catalog.request_state.ANSWERS_REPEATED)
        self._duration = instruments.histogram(catalog.request_state.ANSWER_DURATION)
        self._wait = instruments.histogram(catalog.request_state.ANSWER_WAIT)
        self._key_age = instruments.optional_gauge(catalog.request_state.KEY_AGE)
        self._source = {source: instruments.gauge(catalog.request_state.KEY_SOURCES, source) for source in sources}
        self._changes = {source: counter(catalog.request_state.KEY_CHANGES, source) for source in sources}

    def record(self, fact: RequestStateFact) -> None:
        """Record a fact."""
        match fact:
            case StateSealed():
                self._sealed[fact.source].inc()
                self._key_age.set(fact.key_age)
            case StateOpened():
                self._opened.inc()
            case StateRefused():
                self._refused[fact.reason].inc()
            case AnswerEnded():
                # A worker that was only frozen reports again what the one that declared it dead has counted.
                if fact.end is not AnswerEnd.WORKER_LOST or fact.seconds is None:
                    self._answers[fact.end].inc()
                if fact.seconds is not None:
                    self._duration.observe(fact.seconds)
            case AnswerRepeated():
                self._repeated.inc()
                self._wait.observe(fact.waited)
            case KeysChanged():
                self._changes[fact.source].inc()
                for source, gauge in self._source.items():
                    gauge.set(int(source == fact.source))
