"""Measurements of operations, which every sink receives."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import anyio

from mcp_eventscope.errors import StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.stats import RedisStats
from mcp_eventscope.store.messages import EventCallback, EventId, EventMessage, MessageType
from mcp_eventscope.store.results import AppendResult, FollowResult, Gap, ReplayResult

_CLIENT_DISCONNECTED = (anyio.BrokenResourceError, anyio.ClosedResourceError)
"""Errors that the SDK's callback raises when its connection is closed."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The part that all operations share. `outcome` is a value of the catalog's label for that operation."""

    seconds: float
    outcome: str
    stream_id: str | None
    error: BaseException | None

    @property
    def error_type(self) -> str | None:
        """The error type of the catalog; None unless the operation failed. A disconnect is no failure."""
        if self.outcome not in {"error", "unavailable"}:
            return None
        if isinstance(self.error, StoreUnavailableError):
            return "unavailable"
        return "rejected" if isinstance(self.error, StoreRejectedError) else "other"


@dataclass(frozen=True, slots=True)
class StoreMeasurement(Measurement):
    """An attempt to store an event."""

    message_type: MessageType
    appended: AppendResult | None


@dataclass(frozen=True, slots=True)
class ReplayMeasurement(Measurement):
    """A replay. `delivered` is known even if it raised, and there are no facts."""

    delivered: int
    facts: ReplayResult | None
    ttl: int | None = None
    """The TTL in seconds; None: none, or unknown."""
    first_event: float | None = None
    """Seconds until the first event was delivered; None if none was."""
    sending: float = 0.0
    """Seconds spent in the client's callback."""

    @property
    def reason(self) -> str | None:
        """Why not all events were delivered; None: they were, or some are corrupt."""
        if self.facts is None:
            return None
        return self.facts.miss.value if self.facts.miss is not None else _most_frequent(self.facts.gaps)

    @property
    def ttl_ratio(self) -> float | None:
        """The age of the client's last event, divided by the TTL; None if either is unknown."""
        if not self.ttl or self.facts is None or self.facts.age is None:
            return None
        return self.facts.age / self.ttl


@dataclass(frozen=True, slots=True)
class FollowMeasurement(Measurement):
    """The following of a stream. `delivered` as in a replay."""

    delivered: int
    facts: FollowResult | None

    @property
    def gaps(self) -> Mapping[Gap, int]:
        """The number of missing events, by reason."""
        return {} if self.facts is None else self.facts.gaps

    @property
    def reason(self) -> str | None:
        """Why not all events were delivered; None: they were, or some are corrupt."""
        return _most_frequent(self.gaps)


def _most_frequent(gaps: Mapping[Gap, int]) -> str | None:
    return max(gaps, key=lambda gap: gaps[gap]).value if gaps else None


@dataclass(frozen=True, slots=True)
class AnswerMeasurement(Measurement):
    """A request with an answer to a request state."""

    reason: str | None
    """Why it was refused; None: it was not."""


@dataclass(frozen=True, slots=True)
class RedisStatsMeasurement(Measurement):
    """A poll of Redis statistics. There are no facts if it failed, or if another worker polls."""

    facts: RedisStats | None


def store_outcome(appended: AppendResult) -> str:
    """The outcome of a store that did not raise."""
    if appended.deferred:
        return "deferred"
    return "refused" if appended.refused else "ok"


def replay_outcome(facts: ReplayResult | None, error: BaseException | None) -> str:
    """The outcome of a replay, which returned facts or raised an error.

    `unavailable` ends an attempt, not the resume: the replay is repeated, or the client reconnects.
    """
    if facts is None:
        return "unavailable" if isinstance(error, StoreUnavailableError) else outcome_of(error)
    if facts.miss is not None:
        return "missed"
    if facts.gap or facts.corrupt:
        return "gap"
    return "resumed" if facts.delivered else "caught_up"


def outcome_of(error: BaseException | None) -> str:
    """The outcome of an operation that raised."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "client_disconnected" if isinstance(error, _CLIENT_DISCONNECTED) else "error"


class Counted:
    """A callback of a follower that counts deliveries, since one that raises returns no facts.

    Args:
        send: Sends to the client.
        lag: Returns the seconds since another process accepted an event (`ObservableEventStore.lag`).
        delivered: Called after each delivery with the lag at its beginning, which a slow client does not prolong; None:
            unknown, or the event is older than the following.
    """

    __slots__ = ("_began", "_lag", "_on_delivered", "_send", "delivered")

    def __init__(
        self,
        send: EventCallback,
        lag: Callable[[EventId], float | None],
        delivered: Callable[[float | None], None],
    ) -> None:
        self._send = send
        self._lag = lag
        self._on_delivered = delivered
        self._began = perf_counter()
        self.delivered = 0

    async def __call__(self, event: EventMessage) -> None:
        """Forward an event, and count it."""
        lag = None if event.event_id is None else self._lag(event.event_id)
        if lag is not None and lag > perf_counter() - self._began:
            lag = None  # A backlog: the first standalone stream begins at the session's start.
        await self._send(event)
        self.delivered += 1
        self._on_delivered(lag)


class Timed:
    """A callback that measures the time spent in the client, and counts as `Counted` does.

    One wrapper per event of a replay is enough.
    """

    __slots__ = ("_began", "_send", "delivered", "first", "seconds")

    def __init__(self, send: EventCallback) -> None:
        self._send = send
        self._began = perf_counter()
        self.first: float | None = None
        """Seconds from construction to the delivery of the first event; None until then."""
        self.seconds = 0.0
        """Total seconds within the callback, including calls that raised."""
        self.delivered = 0

    async def __call__(self, event: EventMessage) -> None:
        """Forward an event."""
        before = perf_counter()
        try:
            await self._send(event)
        finally:
            after = perf_counter()
            self.seconds += after - before
        self.delivered += 1
        if self.first is None:
            self.first = after - self._began
