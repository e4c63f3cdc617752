"""What is counted of sessions, requests and resumes, with instruments that are given."""

import platform
from importlib.metadata import PackageNotFoundError, version

from mcp_eventscope.telemetry import catalog_resumes, catalog_sessions
from mcp_eventscope.telemetry.declarations import Label
from mcp_eventscope.telemetry.facts import Requested, ServingFact, SessionBegan, SessionEnded, SessionRefused
from mcp_eventscope.telemetry.instruments import Instruments
from mcp_eventscope.telemetry.measurements import ReplayMeasurement


class ServingMetrics:
    """Counts what is told of serving. Every child is bound here, once.

    Args:
        instruments: Of one store.
    """

    def __init__(self, instruments: Instruments) -> None:
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        self._sessions = gauge(catalog_sessions.SESSIONS)
        self._begun = {v: counter(catalog_sessions.SESSIONS_BEGUN, v) for v in _values(catalog_sessions.ORIGIN)}
        self._ended = {v: counter(catalog_sessions.SESSIONS_ENDED, v) for v in _values(catalog_sessions.END)}
        self._refused = {v: counter(catalog_sessions.SESSIONS_REFUSED, v) for v in _values(catalog_sessions.REFUSAL)}
        self._requests = {v: counter(catalog_sessions.REQUESTS, v) for v in _values(catalog_sessions.REVISION)}
        self._first_event = histogram(catalog_resumes.FIRST_EVENT)
        self._send = histogram(catalog_resumes.SEND)
        self._ttl_ratio = histogram(catalog_resumes.TTL_RATIO)
        installed = (_version(name) for name in ("mcp-eventscope", "mcp", "redis"))
        gauge(catalog_sessions.BUILD_INFO, *installed, platform.python_version()).set(1)

    def told(self, fact: ServingFact) -> None:
        """Something arose above the store."""
        match fact:
            case SessionBegan():
                self._begun[fact.origin].inc()
                self._sessions.inc()
            case SessionEnded():
                self._ended[fact.reason].inc()
                self._sessions.dec()
            case SessionRefused():
                self._refused[fact.reason].inc()
            case Requested():
                self._requests[fact.revision].inc()

    def replayed(self, replay: ReplayMeasurement) -> None:
        """A replay ended."""
        if replay.first_event is not None:
            self._first_event.observe(replay.first_event)
        if replay.sending:
            self._send.observe(replay.sending)
        if replay.ttl_ratio is not None:
            self._ttl_ratio.observe(replay.ttl_ratio)


def _values(label: Label) -> tuple[str, ...]:
    return label.values or ()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"  # It was copied, not installed.
