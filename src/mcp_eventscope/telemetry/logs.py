"""Log events, for structlog or the standard library."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from mcp_eventscope.options import check_logger
from mcp_eventscope.process import PROCESS
from mcp_eventscope.redis.self_test import Capabilities, Capability
from mcp_eventscope.store.events import (
    DropReason,
    EventsLost,
    ForeignElementsRemoved,
    LossReason,
    MessagesDropped,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
)
from mcp_eventscope.store.results import BacklogStatus, FollowResult, Gap, Miss, ReplayResult
from mcp_eventscope.telemetry import catalog, declarations
from mcp_eventscope.telemetry.facts import (
    LifespanMissing,
    PrefixShared,
    Refusal,
    ResumptionDisabled,
    ServingFact,
    SessionRefused,
    Started,
    TTLShort,
)
from mcp_eventscope.telemetry.measurements import (
    FollowMeasurement,
    Measurement,
    RedisStatsMeasurement,
    ReplayMeasurement,
)
from mcp_eventscope.telemetry.tracing import trace_ids

REPEAT_SECONDS = 10.0
"""Seconds within which an event of a store is logged once. The next entry counts the suppressed ones."""

_DIMENSIONS = ("reason", "sink", "operation")
"""Fields that distinguish events of one name: each combination of values is suppressed separately."""

_IDS_SHOWN = 5

_DROPPED_FIXES: Mapping[DropReason, str] = {
    DropReason.EXPIRED: "make Redis reachable, and keep workers responsive: messages between workers are retried for "
    "up to a minute",
    DropReason.OVERFLOW: "make Redis reachable, and keep workers responsive: until then messages between workers are "
    "kept in memory, at most 16 MiB; otherwise a client sends too many",
    DropReason.REFUSED: "allow HKEYS, HGET, XLEN and XADD, keep other programs from writing under the key prefix, and "
    "raise the limit of the service on the size of a command",
    DropReason.MALFORMED: "keep other programs from writing under the key prefix",
    DropReason.LOST: "set appendonly yes, use a failover that keeps acknowledged writes, and keep other programs from "
    "writing under the key prefix",
    DropReason.TOO_LARGE: "none: clients of MCP send small notifications",
}
_FIXES: Mapping[LossReason, str] = {
    LossReason.OVERFLOW: "the outage outlasted the backlog: end it, or raise backlog_bytes= and "
    "backlog_events= of RedisEventStore",
    LossReason.REJECTED: "Redis refused the event: it is too large for Redis or a proxy, or its key has another type; "
    "use a separate key_prefix= for this store",
    LossReason.ROLLBACK: "Redis lost acknowledged events: set appendonly yes, and use a failover that keeps "
    "acknowledged writes",
    LossReason.SESSION_LIMIT: "a session exceeded max_session_bytes=: raise it, lower ttl=, or send smaller messages",
    LossReason.SHUTDOWN: "stop processes only while Redis is reachable: this one ended with pending events",
}


_INCOMPLETE_FIXES: Mapping[str, str] = {
    Miss.MALFORMED: "none: the client sent an id that no server of this version has sent",
    Miss.UNKNOWN: "none if clients invent ids; otherwise Redis has lost its data: set appendonly yes",
    Miss.EXPIRED: "raise ttl=: the client was disconnected for longer than events are kept",
    Gap.TRIMMED: "raise ttl=: the client was disconnected for longer than events are kept",
    Gap.EVICTED: "raise max_session_bytes=, lower ttl=, or send smaller messages",
    Gap.OVERFLOW: "end outages of Redis sooner, or raise backlog_bytes= and backlog_events= of RedisEventStore",
    Gap.REJECTED: "send smaller messages, and use a separate key_prefix= for this store",
    Gap.ROLLBACK: "set appendonly yes, and use a failover that keeps acknowledged writes",
    Gap.STORE_LOST: "set maxmemory-policy noeviction and appendonly yes, and delete no keys of this prefix",
}
_CORRUPT_FIX = "keep other programs from writing under the key prefix"
_REFUSALS: Mapping[Refusal, str] = {
    Refusal.LIMIT: "raise max_sessions=, lower session_idle_timeout=, or run more workers",
    Refusal.NOT_OWNER: "none if the client changed its credential; otherwise a client tries session ids of others",
    Refusal.OTHER_SERVER: "give each server its own key_prefix=, and all workers of one server the same name=",
    Refusal.RESUMES: "find the client that resumes in a loop; let it wait for the retry: of the server",
    Refusal.UNAVAILABLE: "restore Redis: see event_store.degraded and /healthz for the reason",
}
"""The refusals that are logged, with the remedy. Unknown session ids are normal, and are not logged."""


class Logger(Protocol):
    """The interface of a logger: that of structlog."""

    def info(self, event: str, **fields: Any) -> Any:
        """Log at level info."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Log at level warning."""

    def error(self, event: str, **fields: Any) -> Any:
        """Log at level error."""


LogObserver: TypeAlias = Callable[[declarations.LogEvent, Mapping[str, object]], None]
"""Takes each log event with its fields. It does not raise."""


class _Observers:
    """The observers of this process."""

    def __init__(self) -> None:
        self.observers: list[LogObserver] = []


@contextmanager
def observed(observer: LogObserver) -> Iterator[None]:
    """Pass the log events of this process to an observer, too, until the block ends.

    Args:
        observer: The observer. Of events that are suppressed it takes the next one that is not, as the log does.
    """
    observers = PROCESS.single(_Observers).observers
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)


class Log:
    """Writes the events of the catalog.

    Args:
        logger: The logger; None: structlog if the application configured it, else the logger `mcp_eventscope` of the
            standard library, since structlog prints to standard output by default, which the stdio transport uses.

    Raises:
        TypeError: `logger` lacks a method, or accepts no fields: one of the standard library, for example.
    """

    def __init__(self, logger: Logger | None = None) -> None:
        if logger is not None:
            check_logger("logger", logger)
        self._given = logger
        self._last: dict[tuple[object, ...], float] = {}
        self._suppressed: dict[tuple[object, ...], int] = {}
        self._unreported: list[Exception] = []
        self._failed: Callable[[Exception], None] = self._unreported.append

    def write(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event at its level in the catalog, with the ids of the current trace."""
        given = {name: value for name, value in fields.items() if value is not None}
        for observer in PROCESS.single(_Observers).observers:
            observer(event, given)
        logger = self._given if self._given is not None else _default_logger()
        getattr(logger, event.level)(event.name, **given, **trace_ids())

    def announce(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event at construction or start, which a failing logger must not prevent."""
        try:
            self.write(event, **fields)
        except Exception as error:  # noqa: BLE001 - the application provides the logger
            self._failed(error)

    def report_failures(self, failed: Callable[[Exception], None]) -> None:
        """Report failed announcements, including earlier ones.

        Args:
            failed: Called with the error. It does not raise.
        """
        unreported, self._unreported = self._unreported, []
        self._failed = failed
        for error in unreported:
            failed(error)

    def write_limited(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event unless it was logged within `REPEAT_SECONDS` (or its own limit); else count it as suppressed.

        Events with another reason, sink or operation are limited separately.
        """
        now, every = time.monotonic(), event.repeat or REPEAT_SECONDS
        kind = (event.name, *(fields.get(name) for name in _DIMENSIONS))
        if now - self._last.get(kind, -every) < every:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._last[kind] = now
        self.write(event, **fields, suppressed=self._suppressed.pop(kind, None))


class LogSink:
    """Logs measurements that need the attention of an operator."""

    def __init__(self, store: str, log: Log) -> None:
        self._store = store
        self._log = log

    def limited(self, event: declarations.LogEvent, **fields: object) -> None:
        """Log an event with the name of the store; see `Log.write_limited`."""
        self._log.write_limited(event, store=self._store, **fields)

    def configured(self, *, ttl_missing: bool) -> None:
        """Log the configuration of a store."""
        if ttl_missing:
            self._log.write(
                catalog.store.TTL_MISSING,
                store=self._store,
                fix="pass ttl= in seconds, longer than clients stay disconnected, for example ttl=3600",
            )

    def sessions_not_isolated(self) -> None:
        """Log the use of a root store through the SDK's interface."""
        self._log.write(
            catalog.store.SESSIONS_NOT_ISOLATED,
            store=self._store,
            fix="serve with mcp_eventscope.http_app() or ResumableSessionManager (mcp 1.30, or 2.2 and later)",
        )

    def stored(self, measured: Measurement, session_hash: str | None) -> None:
        """Log an event that was not stored."""
        if measured.outcome == "error":
            self._log.write_limited(catalog.store.STORE_FAILED, **self._failure(measured, session_hash))

    def record(self, fact: StoreEvent, waiting: BacklogStatus) -> None:
        """Log a background event of the store."""
        match fact:
            case StoreDegraded():
                self._log.write(
                    catalog.store.STORE_DEGRADED, store=self._store, reason=fact.reason.value, error=fact.error
                )
            case StoreRecovered():
                self._log.write(
                    catalog.store.STORE_RECOVERED,
                    store=self._store,
                    reason=fact.reason.value,
                    degraded_seconds=round(fact.seconds, 3),
                    backlog_length=waiting.events,
                )
            case EventsLost():
                self._log.write_limited(
                    catalog.store.EVENTS_LOST,
                    store=self._store,
                    reason=fact.reason.value,
                    events=fact.events,
                    payload_bytes=fact.payload_bytes,
                    fix=_FIXES.get(fact.reason),
                )
            case ForeignElementsRemoved():
                self._log.write_limited(
                    catalog.store.FOREIGN_ELEMENTS_REMOVED, store=self._store, elements=fact.elements, fix=_CORRUPT_FIX
                )
            case MessagesDropped():
                self._log.write_limited(
                    catalog.store.MESSAGES_DROPPED,
                    store=self._store,
                    reason=fact.reason.value,
                    messages=fact.messages,
                    fix=_DROPPED_FIXES[fact.reason],
                )

    def read(self, operation: str, measured: Measurement, session_hash: str | None) -> None:
        """Log a replay, or the following of a stream, that failed or was incomplete."""
        if measured.error_type is not None:
            self._log.write_limited(
                catalog.store.REPLAY_FAILED, operation=operation, **self._failure(measured, session_hash)
            )
        elif isinstance(measured, ReplayMeasurement) and measured.outcome in {"gap", "missed"} and measured.facts:
            self._incomplete(operation, measured.outcome, measured, measured.facts, session_hash)
        elif isinstance(measured, FollowMeasurement) and measured.facts and (measured.gaps or measured.facts.corrupt):
            self._incomplete(operation, "gap", measured, measured.facts, session_hash)
        elif isinstance(measured, ReplayMeasurement) and (measured.ttl_ratio or 0) > catalog.resumes.NEAR_TTL:
            self._log.write_limited(
                catalog.resumes.RESUME_LATE,
                store=self._store,
                session_hash=session_hash,
                stream_id=measured.stream_id,
                age_seconds=round(measured.facts.age, 3) if measured.facts and measured.facts.age else None,
                ttl_seconds=measured.ttl,
                fix="raise ttl=: clients stay disconnected for almost as long as events are kept",
            )

    def _incomplete(
        self,
        operation: str,
        outcome: str,
        measured: ReplayMeasurement | FollowMeasurement,
        facts: ReplayResult | FollowResult,
        session_hash: str | None,
    ) -> None:
        reason = measured.reason
        self._log.write_limited(
            catalog.store.REPLAY_INCOMPLETE,
            store=self._store,
            session_hash=session_hash,
            stream_id=measured.stream_id,
            operation=operation,
            outcome=outcome,
            reason=reason,
            missing_events=facts.missing,
            corrupt_events=len(facts.corrupt),
            event_ids=facts.corrupt[:_IDS_SHOWN] or None,
            fix=_CORRUPT_FIX if reason is None else _INCOMPLETE_FIXES[reason],
        )

    def serving(self, fact: ServingFact, log: Log | None) -> None:
        """Log a fact about sessions and requests, if it needs attention."""
        log = log or self._log
        match fact:
            case SessionRefused() if fact.reason in _REFUSALS:
                log.write_limited(
                    catalog.sessions.SESSION_REFUSED,
                    store=self._store,
                    session_hash=fact.session_hash,
                    reason=fact.reason.value,
                    fix=_REFUSALS[fact.reason],
                )
            case PrefixShared():
                log.write(
                    catalog.sessions.PREFIX_SHARED,
                    store=self._store,
                    server=fact.server,
                    other_server=fact.other_server,
                    fix="give each server its own key_prefix= (EVENTSCOPE_KEY_PREFIX); none if this one was renamed",
                )
            case ResumptionDisabled():
                log.write(catalog.store.RESUMPTION_DISABLED, mode=fact.mode, fix=fact.fix)
            case TTLShort():
                log.write(
                    catalog.sessions.TTL_SHORT,
                    store=self._store,
                    ttl_seconds=fact.ttl,
                    setting=fact.setting,
                    setting_seconds=fact.seconds,
                    fix=fact.fix,
                )
            case Started():
                log.write(
                    catalog.start.STARTED,
                    store=self._store,
                    version=fact.version,
                    kind=fact.kind,
                    address=fact.address,
                    key_prefix=fact.key_prefix,
                    ttl_seconds=fact.ttl,
                    worker=fact.worker,
                )
            case LifespanMissing():
                log.write(catalog.start.LIFESPAN_MISSING, store=self._store, fix=fact.fix)

    def tested(self, found: Capabilities) -> None:
        """Log the result of a self-test of Redis."""
        if not (missing := found.missing):
            capabilities = sorted(each.value for each in found.available)
            self._log.write(catalog.start.REDIS_TESTED, store=self._store, capabilities=capabilities)
            return
        self._log.write(
            catalog.start.REDIS_LIMITED,
            store=self._store,
            missing=sorted(each.value for each in missing),
            commands=list(found.refused) or None,
            fix="; ".join(_capability_fixes(found)),
        )

    def polled(self, poll: RedisStatsMeasurement, ttl: int | None) -> None:
        """Log a failed poll of Redis statistics, or keys without TTL."""
        if poll.outcome == "error":
            self._log.write_limited(
                catalog.redis_stats.REDIS_STATS_FAILED,
                store=self._store,
                error=str(poll.error) if poll.error_type != "other" else type(poll.error).__qualname__,
                error_type=poll.error_type,
            )
        elif ttl is not None and poll.facts is not None and poll.facts.lasting:
            # The types only: key names contain session ids.
            self._log.write_limited(
                catalog.redis_stats.KEYS_WITHOUT_TTL,
                store=self._store,
                keys=sum(poll.facts.lasting.values()),
                key_types=sorted(poll.facts.lasting),
                fix="set ttl= in every process that writes under this prefix; delete the existing keys, or set EXPIRE",
            )

    def failed(self, sink: str, error: Exception) -> None:
        """Log that a sink failed."""
        self._log.write_limited(
            catalog.store.TELEMETRY_FAILED, store=self._store, sink=sink, error=type(error).__qualname__
        )

    def _failure(self, measured: Measurement, session_hash: str | None) -> Mapping[str, object]:
        return {
            "store": self._store,
            "session_hash": session_hash,
            "stream_id": measured.stream_id,
            "error": str(measured.error) if measured.error_type != "other" else type(measured.error).__qualname__,
            "error_type": measured.error_type,
        }


def _capability_fixes(found: Capabilities) -> Iterator[str]:
    """The changes that give Redis the missing capabilities."""
    missing = frozenset(found.missing)
    if Capability.VERSION in missing:
        yield "run Redis 6.2 or later, or Valkey"
        return
    rules = [f"+{command}" for command in found.refused]
    rules += [f"~{found.key_prefix}*"] if Capability.KEYS in missing else []
    rules += [f"&{found.key_prefix}*"] if missing & {Capability.PUBLISH, Capability.SUBSCRIBE} else []
    if rules:
        # Without scripts their commands could not be tested.
        others = "; mcp-eventscope doctor prints the other rights" if Capability.SCRIPTS in missing else ""
        yield f"grant it to the user in the URL: ACL SETUSER USER {' '.join(rules)}{others}"
    if Capability.WRITES in missing:
        yield "connect to the primary: this server is a replica"
    if Capability.NO_EVICTION in missing:
        yield f"set maxmemory-policy noeviction instead of {found.policy}, which deletes events before their TTL"


class _StandardLogger:
    """Writes log events to the standard library's logger `mcp_eventscope`: the name, then the fields, in a line."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("mcp_eventscope")

    def info(self, event: str, **fields: Any) -> None:
        """Log an event at the level info."""
        self._logger.info("%s", _as_line(event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        """Log an event at the level warning."""
        self._logger.warning("%s", _as_line(event, fields))

    def error(self, event: str, **fields: Any) -> None:
        """Log an event at the level error."""
        self._logger.error("%s", _as_line(event, fields))


def _as_line(event: str, fields: Mapping[str, Any]) -> str:
    return " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])


def _default_logger() -> Logger:
    # An application that has configured structlog has imported it. To import it takes as long as a tenth of the SDK.
    structlog: Any = sys.modules.get("structlog")
    if structlog is not None and structlog.is_configured():
        configured: Logger = structlog.get_logger("mcp_eventscope")
        return configured
    return _StandardLogger()
