"""Log events: the one module that imports structlog."""

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

import structlog

from mcp_eventscope.store.events import EventsLost, LossReason, StoreDegraded, StoreEvent, StoreRecovered
from mcp_eventscope.store.results import BacklogStatus
from mcp_eventscope.telemetry import catalog, catalog_resumes, catalog_sessions, declarations
from mcp_eventscope.telemetry.facts import Inert, Refusal, ServingFact, SessionRefused, TTLShort
from mcp_eventscope.telemetry.measurements import Measurement, ReplayMeasurement, SampleMeasurement
from mcp_eventscope.telemetry.tracing import trace_ids

REPEAT_SECONDS = 10.0
"""The same event of the same store is logged at most this often; the next one tells how many were left out."""

_KINDS = ("reason", "sink", "operation")
"""Fields by which events of one name are told apart: each has few values, and one must not hide another."""

_IDS_SHOWN = 5

_FIXES = {
    LossReason.OVERFLOW: "Redis was unreachable for longer than the backlog lasts: see why, or raise backlog_bytes= "
    "and backlog_events= of RedisEventStore",
    LossReason.REJECTED: "Redis refused the event: it is too large for Redis or a proxy, or its key has another type; "
    "use a separate key_prefix= for this store",
    LossReason.ROLLBACK: "Redis lost events that it had acknowledged: use appendonly yes, and a failover that keeps "
    "acknowledged writes",
    LossReason.SESSION_LIMIT: "a session exceeded max_session_bytes=: raise it, lower ttl=, or send smaller messages",
    LossReason.SHUTDOWN: "stop processes while Redis is reachable: this one ended with events in memory",
}


_REFUSALS = {
    Refusal.LIMIT: "raise max_sessions=, lower session_idle_timeout=, or run more workers",
    Refusal.OWNER: "nothing, if a client has changed its credential; else somebody tries the ids of others' sessions",
    Refusal.UNAVAILABLE: "see why the store does not answer: event_store.degraded, /healthz",
}
"""What is told of, and what can be done about it. Ids that nobody knows any more are every day's."""


class Logger(Protocol):
    """What is asked of a logger: structlog's, or anything alike."""

    def info(self, event: str, **fields: Any) -> Any:
        """Log a piece of information."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Log a warning."""

    def error(self, event: str, **fields: Any) -> Any:
        """Log an error."""


class Log:
    """Writes the catalog's events.

    Args:
        logger: Where to; None is structlog as the application configured it, or, where it did not, the standard
            library's logger `mcp_eventscope`: structlog's own default prints on standard output, which may be a
            protocol's.

    Raises:
        TypeError: `logger` is the standard library's, which takes no fields: every event would be lost.
    """

    def __init__(self, logger: Logger | None = None) -> None:
        if isinstance(logger, logging.Logger | logging.LoggerAdapter):
            msg = (
                "logger must take fields, as structlog's loggers do, and the standard library's do not: "
                "pass structlog.wrap_logger(…) of it, or None to log to logging.getLogger('mcp_eventscope')"
            )
            raise TypeError(msg)
        self._given = logger
        self._last: dict[tuple[object, ...], float] = {}
        self._suppressed: dict[tuple[object, ...], int] = {}
        self._unheard: list[Exception] = []
        self._failed: Callable[[Exception], None] = self._unheard.append

    def write(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event at the level that the catalog gives it, with the ids of the current trace."""
        logger = self._given if self._given is not None else _default_logger()
        told = {name: value for name, value in fields.items() if value is not None}
        getattr(logger, event.level)(event.name, **told, **trace_ids())

    def announce(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event while an application is built or started, which a logger that raises must not prevent."""
        try:
            self.write(event, **fields)
        except Exception as error:  # noqa: BLE001 - whatever a logger of the application's raises
            self._failed(error)

    def report_failures(self, failed: Callable[[Exception], None]) -> None:
        """Have announcements that fail reported: those until now, made before there was anybody to count them, too.

        Args:
            failed: Called with what was raised; it does not raise itself.
        """
        unheard, self._unheard = self._unheard, []
        self._failed = failed
        for error in unheard:
            failed(error)

    def write_seldom(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event unless the same was logged within its time, or `REPEAT_SECONDS`; then it is counted.

        What happens for another reason, or in another sink, is not the same.
        """
        now, every = time.monotonic(), event.repeat or REPEAT_SECONDS
        kind = (event.name, *(fields.get(name) for name in _KINDS))
        if now - self._last.get(kind, -every) < every:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._last[kind] = now
        self.write(event, **fields, suppressed=self._suppressed.pop(kind, None))


class LogSink:
    """Tells of the measurements that somebody should hear of."""

    def __init__(self, store: str, log: Log) -> None:
        self._store = store
        self._log = log

    def configured(self, *, ttl_missing: bool) -> None:
        """A store was decorated."""
        if ttl_missing:
            self._log.write(
                catalog.TTL_MISSING,
                store=self._store,
                fix="pass ttl= in seconds, longer than clients stay away, for example ttl=3600",
            )

    def unscoped(self) -> None:
        """A root store was used through the SDK's interface."""
        self._log.write(
            catalog.UNSCOPED,
            store=self._store,
            fix="serve with mcp_eventscope.http_app() or ResumableSessionManager, which give each session its own part",
        )

    def stored(self, measured: Measurement, session: str | None) -> None:
        """An event was stored, or not."""
        if measured.outcome == "error":
            self._log.write_seldom(catalog.STORE_FAILED, **self._failure(measured, session))

    def told(self, fact: StoreEvent, waiting: BacklogStatus) -> None:
        """The store has told something that no caller is told."""
        match fact:
            case StoreDegraded():
                self._log.write(catalog.STORE_DEGRADED, store=self._store, reason=fact.reason.value, error=fact.error)
            case StoreRecovered():
                self._log.write(
                    catalog.STORE_RECOVERED,
                    store=self._store,
                    reason=fact.reason.value,
                    seconds=round(fact.seconds, 3),
                    backlog_events=waiting.events,
                )
            case EventsLost():
                self._log.write_seldom(
                    catalog.EVENTS_LOST,
                    store=self._store,
                    reason=fact.reason.value,
                    events=fact.events,
                    payload_bytes=fact.payload_bytes,
                    fix=_FIXES.get(fact.reason),
                )

    def read(self, operation: str, measured: Measurement, session: str | None) -> None:
        """A replay, or the following of a stream, ended."""
        if measured.outcome == "error":
            self._log.write_seldom(catalog.REPLAY_FAILED, operation=operation, **self._failure(measured, session))
        elif isinstance(measured, ReplayMeasurement) and measured.outcome in {"gap", "missed"} and measured.facts:
            facts = measured.facts
            self._log.write_seldom(
                catalog.REPLAY_INCOMPLETE,
                store=self._store,
                session=session,
                stream_id=measured.stream_id,
                outcome=measured.outcome,
                reason=None if facts.miss is None else facts.miss.value,
                missing=facts.missing,
                corrupt=len(facts.corrupt),
                event_ids=facts.corrupt[:_IDS_SHOWN] or None,
            )
        elif isinstance(measured, ReplayMeasurement) and (measured.ttl_ratio or 0) > catalog_resumes.NEAR_TTL:
            self._log.write_seldom(
                catalog_resumes.RESUME_LATE,
                store=self._store,
                session=session,
                stream_id=measured.stream_id,
                age=round(measured.facts.age, 3) if measured.facts and measured.facts.age else None,
                ttl=measured.ttl,
                fix="raise ttl=: clients stay away for about as long as events are kept",
            )

    def serving(self, fact: ServingFact, log: Log | None) -> None:
        """Something arose above the store; of most of it nobody needs to hear."""
        log = log or self._log
        match fact:
            case SessionRefused() if fact.reason in _REFUSALS:
                log.write_seldom(
                    catalog_sessions.SESSION_REFUSED,
                    store=self._store,
                    session=fact.session,
                    reason=fact.reason.value,
                    fix=_REFUSALS[fact.reason],
                )
            case Inert():
                log.write(catalog.INERT, mode=fact.mode, fix=fact.fix)
            case TTLShort():
                log.write(
                    catalog_sessions.TTL_SHORT,
                    store=self._store,
                    ttl=fact.ttl,
                    limit=fact.limit,
                    seconds=fact.seconds,
                    fix=fact.fix,
                )

    def sampled(self, sample: SampleMeasurement, ttl: int | None) -> None:
        """Redis was sampled, or not."""
        if sample.outcome == "error":
            self._log.write_seldom(
                catalog.SAMPLE_FAILED,
                store=self._store,
                error=str(sample.error) if sample.error_type != "other" else type(sample.error).__qualname__,
                error_type=sample.error_type,
            )
        elif ttl is not None and sample.facts is not None and sample.facts.lasting:
            # Their kinds, and not their names, which hold session ids.
            self._log.write_seldom(
                catalog.TTL_MISSING_KEYS,
                store=self._store,
                keys=sum(sample.facts.lasting.values()),
                kinds=sorted(sample.facts.lasting),
                fix="set a ttl in every process that writes under this prefix; what is left of those that had none "
                "stays until it is deleted, or given an EXPIRE",
            )

    def failed(self, sink: str, error: Exception) -> None:
        """A sink raised."""
        self._log.write_seldom(catalog.TELEMETRY_FAILED, store=self._store, sink=sink, error=type(error).__qualname__)

    def _failure(self, measured: Measurement, session: str | None) -> Mapping[str, object]:
        return {
            "store": self._store,
            "session": session,
            "stream_id": measured.stream_id,
            "error": str(measured.error) if measured.error_type != "other" else type(measured.error).__qualname__,
            "error_type": measured.error_type,
        }


def _default_logger() -> Logger:
    if structlog.is_configured():
        configured: Logger = structlog.get_logger("mcp_eventscope")
        return configured
    plain: Logger = structlog.wrap_logger(
        logging.getLogger("mcp_eventscope"),
        processors=[
            structlog.processors.format_exc_info,
            _as_line,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    return plain


def _as_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:  # noqa: ARG001 - a processor's
    """A log event as one line of the standard library's logging: its name, then its fields."""
    return " ".join([str(event.pop("event")), *(f"{name}={value!r}" for name, value in event.items())])
