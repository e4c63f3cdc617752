"""Updates the metrics of sessions, requests and resumes."""

import platform

from mcp_eventscope.sdk_versions import VERSION, version_of
from mcp_eventscope.telemetry import catalog
from mcp_eventscope.telemetry.declarations import Label, Metric
from mcp_eventscope.telemetry.facts import (
    OperationEnded,
    Requested,
    ResumeWaited,
    ServingFact,
    SessionBegan,
    SessionEnd,
    SessionEnded,
    SessionRefused,
    SessionsAged,
    SessionUsed,
)
from mcp_eventscope.telemetry.measurements import ReplayMeasurement
from mcp_eventscope.telemetry.metrics.instruments import Histogram, Instruments

_VERSIONS = (VERSION, version_of("mcp"), version_of("redis"), platform.python_version())


class SessionMetrics:
    """Records facts about serving. Every child is bound once: in the constructor, or on demand where declared so.

    Args:
        instruments: The instruments of one store.
    """

    def __init__(self, instruments: Instruments) -> None:
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        self._sessions = gauge(catalog.sessions.SESSIONS_ACTIVE)
        self._started = {v: counter(catalog.sessions.SESSIONS_STARTED, v) for v in _values(catalog.sessions.ORIGIN)}
        self._ended = {
            v: counter(catalog.sessions.SESSIONS_ENDED, v) for v in _values(catalog.sessions.SESSION_END_REASON)
        }
        self._refused = {
            v: counter(catalog.sessions.REQUESTS_REFUSED, v) for v in _values(catalog.sessions.REFUSAL_REASON)
        }
        self._resume_wait = histogram(catalog.sessions.RESUME_WAIT)
        self._requests = {
            v: counter(catalog.sessions.REQUESTS_RECEIVED, v) for v in _values(catalog.sessions.PROTOCOL_VERSION)
        }
        self._session_seconds = {
            (version, error_type): histogram(catalog.sessions.SESSION_DURATION, version, error_type)
            for version in _values(catalog.sessions.NEGOTIATED_VERSION)
            for error_type in _values(catalog.sessions.SESSION_ERROR_TYPE)
        }
        self._lives = {
            v: histogram(catalog.sessions.SESSION_DURATION_BY_END, v)
            for v in _values(catalog.sessions.SESSION_END_REASON)
        }
        self._idle = histogram(catalog.sessions.SESSION_IDLE)
        self._oldest_age = gauge(catalog.sessions.SESSIONS_OLDEST_AGE)
        self._longest_idle = gauge(catalog.sessions.SESSIONS_LONGEST_IDLE)
        self._operation_seconds = _OnDemand(instruments, catalog.sessions.OPERATION_DURATION)
        for error_type in catalog.sessions.TOOL_CALL_ERRORS:
            self._operation_seconds.of("tools/call", error_type)
        self._first_event = histogram(catalog.resumes.REPLAY_TIME_TO_FIRST_EVENT)
        self._send = histogram(catalog.resumes.REPLAY_SEND_DURATION)
        self._ttl_ratio = histogram(catalog.resumes.RESUME_TTL_RATIO)
        gauge(catalog.sessions.BUILD_INFO, *_VERSIONS).set(1)

    def record(self, fact: ServingFact) -> None:
        """Record a fact about sessions and requests."""
        match fact:
            case SessionBegan():
                self._started[fact.origin].inc()
                self._sessions.inc()
            case SessionEnded():
                self._ended[fact.reason].inc()
                self._sessions.dec()
                error_type = fact.reason.value if fact.reason is SessionEnd.FAILED else ""
                self._session_seconds[fact.protocol_version, error_type].observe(fact.seconds)
                self._lives[fact.reason].observe(fact.seconds)
                if fact.idle is not None:
                    self._idle.observe(fact.idle)
            case SessionUsed():
                self._idle.observe(fact.idle)
            case SessionsAged():
                self._oldest_age.set(fact.oldest)
                self._longest_idle.set(fact.idle)
            case OperationEnded():
                self._operation_seconds.of(fact.method, fact.error_type).observe(fact.seconds)
            case SessionRefused():
                self._refused[fact.reason].inc()
            case ResumeWaited():
                self._resume_wait.observe(fact.seconds)
            case Requested():
                self._requests[fact.protocol_version].inc()

    def replayed(self, replay: ReplayMeasurement) -> None:
        """Record the end of a replay."""
        if replay.first_event is not None:
            self._first_event.observe(replay.first_event)
        if replay.sending:
            self._send.observe(replay.sending)
        if replay.ttl_ratio is not None:
            self._ttl_ratio.observe(replay.ttl_ratio)


class _OnDemand:
    """The children of a histogram, each bound when it is first needed. Its labels are closed sets."""

    def __init__(self, instruments: Instruments, metric: Metric) -> None:
        self._instruments = instruments
        self._metric = metric
        self._children: dict[tuple[str, ...], Histogram] = {}

    def of(self, *values: str) -> Histogram:
        """The child with these values of the labels after `store`."""
        if values not in self._children:
            self._children[values] = self._instruments.histogram(self._metric, *values)
        return self._children[values]


def _values(label: Label) -> tuple[str, ...]:
    return label.values or ()
