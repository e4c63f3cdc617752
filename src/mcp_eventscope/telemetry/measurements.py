"""One measurement of one operation: what every sink is given."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import anyio

from mcp_eventscope.errors import StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.sampling import Sample
from mcp_eventscope.store.messages import EventCallback, EventMessage, MessageKind
from mcp_eventscope.store.results import AppendResult, FollowResult, ReplayResult

_CLIENT_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What the SDK's callback raises when the connection it writes to is closed."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known of every operation. `outcome` is one of the catalog's for that operation."""

    seconds: float
    outcome: str
    stream_id: str | None
    error: BaseException | None

    @property
    def error_type(self) -> str | None:
        """The closed name of the error, for labels; None unless it failed (a client that left is no failure)."""
        if self.outcome != "error":
            return None
        if isinstance(self.error, StoreUnavailableError):
            return "unavailable"
        return "rejected" if isinstance(self.error, StoreRejectedError) else "other"


@dataclass(frozen=True, slots=True)
class StoreMeasurement(Measurement):
    """One event was stored, or not."""

    kind: MessageKind
    appended: AppendResult | None


@dataclass(frozen=True, slots=True)
class ReplayMeasurement(Measurement):
    """One replay ended. `delivered` counts also when it ended by raising, and there are no facts."""

    delivered: int
    facts: ReplayResult | None
    ttl: int | None = None
    """Seconds that an event is kept; None: for ever, or unknown."""
    first_event: float | None = None
    """Seconds until the first event was delivered; None when none was."""
    sending: float = 0.0
    """Seconds of it that the client's callback took."""

    @property
    def ttl_ratio(self) -> float | None:
        """The age of the event that the client had last, as a part of the TTL; None where either is not known."""
        if not self.ttl or self.facts is None or self.facts.age is None:
            return None
        return self.facts.age / self.ttl


@dataclass(frozen=True, slots=True)
class FollowMeasurement(Measurement):
    """A stream is no longer followed. `delivered` as in a replay."""

    delivered: int
    facts: FollowResult | None


@dataclass(frozen=True, slots=True)
class SampleMeasurement(Measurement):
    """Redis was sampled, or not. There are no facts when it failed, or was another worker's turn."""

    facts: Sample | None


def store_outcome(appended: AppendResult) -> str:
    """How a store ended that raised nothing."""
    if appended.deferred:
        return "deferred"
    return "refused" if appended.refused else "ok"


def replay_outcome(facts: ReplayResult) -> str:
    """How a replay ended that raised nothing."""
    if facts.miss is not None:
        return "missed"
    if facts.gap or facts.corrupt:
        return "gap"
    return "resumed" if facts.delivered else "caught_up"


def outcome_of(error: BaseException | None) -> str:
    """How an operation ended that raised."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "client_gone" if isinstance(error, _CLIENT_GONE) else "error"


class Counted:
    """A callback that counts what it delivered, for a replay that ends by raising has no facts."""

    __slots__ = ("_send", "_tell", "delivered")

    def __init__(self, send: EventCallback, tell: Callable[[], None] | None = None) -> None:
        self._send = send
        self._tell = tell
        self.delivered = 0

    async def __call__(self, event: EventMessage) -> None:
        """Pass on, and count."""
        await self._send(event)
        self.delivered += 1
        if self._tell is not None:
            self._tell()


class Timed:
    """A callback, and how long it takes: what of a replay is the client's time, and not the store's.

    It counts, too, as `Counted` does: one detour for each event of a replay is enough.
    """

    __slots__ = ("_began", "_send", "delivered", "first", "seconds")

    def __init__(self, send: EventCallback) -> None:
        self._send = send
        self._began = perf_counter()
        self.first: float | None = None
        """Seconds between now and the first event's delivery; None until then."""
        self.seconds = 0.0
        """Within the callback, until now, whatever it raised."""
        self.delivered = 0

    async def __call__(self, event: EventMessage) -> None:
        """Pass on."""
        before = perf_counter()
        try:
            await self._send(event)
        finally:
            after = perf_counter()
            self.seconds += after - before
        self.delivered += 1
        if self.first is None:
            self.first = after - self._began
