"""A session writer without Redis: the test takes its batches, and replies to them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.clock import EventClock
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.redis.workers.worker_id import WorkerId
from mcp_eventscope.redis.write.runs import PendingEvent, Run, SessionQueue
from mcp_eventscope.redis.write.session_batch import SessionBatch
from mcp_eventscope.redis.write.session_writer import SessionWriter
from mcp_eventscope.sessions.event_ids import stream_name
from mcp_eventscope.store import codec
from mcp_eventscope.store.events import StoreEvent
from mcp_eventscope.store.jsonrpc_errors import not_stored
from mcp_eventscope.store.messages import FINAL, JSONRPCMessage
from mcp_eventscope.store.results import StoreOutcome
from support.waiting import until

CALL_TIMEOUT = 0.05


@dataclass
class WriterRig:
    """A `SessionWriter`, with the test as its sender.

    Args:
        max_bytes: The writer's bound.
        max_events: The writer's bound.
        ttl: Seconds that keys are kept; None: without expiry.
    """

    max_bytes: int = 1 << 20
    max_events: int = 1000
    ttl: int | None = 60
    facts: list[StoreEvent] = field(default_factory=list)
    outcomes: dict[tuple[str, int], StoreOutcome] = field(default_factory=dict)
    """By the run's name and the number."""
    accounts: list[tuple[str, int, int, int, list[int]]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    wakes: int = 0

    def __post_init__(self) -> None:
        observers = Observers()
        observers.subscribe(self.facts.append)
        self.breaker = CircuitBreaker(CALL_TIMEOUT, observers)
        self.clock = EventClock()
        self.writer = SessionWriter(
            WorkerId(),
            self.clock,
            self.ttl,
            self.breaker,
            observers,
            self._wake,
            self,
            lambda request_id, reason: codec.encode(not_stored(request_id, reason)),
            self.max_bytes,
            self.max_events,
        )

    def _wake(self) -> None:
        self.wakes += 1

    def stored(self, run: Run, last: int, size: int, response: int, larges: Sequence[int]) -> None:
        """Record a part that the writer accounts for."""
        self.accounts.append((run.name, last, size, response, list(larges)))

    def account(self, session: SessionQueue) -> None:
        """Record that a session is not served here any more."""
        self.closed.append(session.keys.prefix)

    def session(self, name: str = "s") -> SessionQueue:
        """A session's queue."""
        return self.writer.session(Keys("mcp:").for_session(name))

    def begin(self, session: SessionQueue | None = None, request_id: int | str = 1) -> Run:
        """Open the run of a request."""
        return self.writer.begin(session or self.session(), stream_name(request_id), request_id)

    def accept(self, run: Run, message: JSONRPCMessage | None) -> PendingEvent:
        """Hand the writer an event, and record the outcome."""
        event = self.writer.accept(run, type(message), codec.encode(message), final=isinstance(message, FINAL))
        name = run.name, event.seq
        event.add_done_callback(lambda outcome: self.outcomes.update({name: outcome}))
        return event

    def take(self, parts: int = 16) -> SessionBatch:
        """The next batch."""
        self.writer.flush_now()
        batch = self.writer.take(parts)
        assert batch is not None
        return batch

    def reply(self, batch: SessionBatch, *states: str) -> None:
        """Acknowledge a batch: as committed, unless states are given."""
        ends = [f"k{part.events[-1].seq if part.events else part.run.acknowledged}" for part in batch.parts]
        text = "\n".join([str(self.clock.now()), *(states or ends)])
        batch.acknowledge(text.encode(), 0.001)

    def commit_all(self) -> list[bytes]:
        """Acknowledge batches until nothing is ready. Returns the elements, in order."""
        elements: list[bytes] = []
        self.writer.flush_now()
        while self.writer.ready:
            batch = self.take()
            elements += (event.element() for part in batch.parts for event in part.events)
            self.reply(batch)
            self.writer.flush_now()
        return elements

    async def due(self) -> None:
        """Return when a batch may be taken without a flush."""
        await until(lambda: self.writer.ready)


async def turns(count: int = 3) -> None:
    """Let other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)
