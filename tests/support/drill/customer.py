"""A client that calls, is cut, and comes back, and notes in the ledger what that must have been for the server."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mcp_eventscope.redis.keys import Keys
from support.chaos import NewToolControl, content_of, on_worker, start_call
from support.drill.ledger import Ledger
from support.http_client import Event, HTTPClient
from support.processes import WorkerProcess
from support.tool_control import ToolControl

GONE = "-32011"
"""What a resume is answered for which nothing is stored any more."""
ORPHANED = "-32010"
"""The answer to a request whose worker has died."""


@dataclass
class Call:
    """One call of the tool `steps`, whose stream was cut."""

    request_id: int
    steering: ToolControl
    events: list[Event]

    @property
    def last(self) -> str:
        """The id of the last event that the client has."""
        return self.events[-1].id

    @property
    def first(self) -> str:
        """The id of the priming event."""
        return self.events[0].id


@dataclass
class Customer:
    """One session."""

    client: HTTPClient
    ledger: Ledger
    steering: NewToolControl
    calls: list[Call] = field(default_factory=list)

    async def arrives(self, worker: WorkerProcess) -> None:
        """Open the session."""
        self.client = on_worker(self.client, worker)
        await self.client.initialize()
        self.ledger.served(worker.url, self.client.session, "opened")
        self.ledger.requests += 2  # and `notifications/initialized`
        self.ledger.stored.update(priming=1, response=1)

    async def calls_and_is_cut(self, worker: WorkerProcess, *steps: str) -> Call:
        """Call the tool, have it report, and lose the stream."""
        self._asks(worker)
        steering, number = self.steering(), len(self.calls) + 1
        received = await start_call(on_worker(self.client, worker), steering, *steps, request_id=number)
        self.ledger.stored.update(priming=1, notification=len(steps))
        self.calls.append(Call(number, steering, received))
        return self.calls[-1]

    async def ends(self, call: Call, *steps: str) -> None:
        """Let the tool report more, and return."""
        if steps:
            await call.steering.step(*steps)
        await call.steering.finish()
        await call.steering.ended()
        self.ledger.stored.update(notification=len(steps), response=1)

    def list_of(self, call: Call) -> str:
        """The key of the list that a call's events are stored in."""
        _, _, run = call.first.partition(".")[0].split("-")
        return Keys("mcp:").for_session(self.client.session).run(call.first.rpartition(".")[2], run)

    async def comes_back(self, worker: WorkerProcess, event_id: str, *, owed: bool = True) -> list[str]:
        """Resume, and read to the end of the stream; returns what came.

        Args:
            worker: Where.
            event_id: From where.
            owed: Whether something is stored by now that the client has not got.
        """
        self._asks(worker)
        received = [content_of(event) for event in await on_worker(self.client, worker).resume(event_id) if event.data]
        if received != [GONE]:
            self.ledger.resumes["resumed" if owed else "caught_up"] += 1
        return received

    async def misses(self, worker: WorkerProcess, event_id: str, reason: str) -> list[str]:
        """Resume from what is not there, or not any more; returns what came."""
        received = await self.comes_back(worker, event_id)
        self.missed(reason)
        return received

    async def fails(self, worker: WorkerProcess, event_id: str) -> None:
        """Resume a stream that Redis refuses to read: an error comes in place of the response."""
        self._asks(worker)
        received = await on_worker(self.client, worker).resume(event_id)
        assert [content_of(event) for event in received if event.data] == [GONE]
        self.ledger.rejected += 1

    async def is_refused(self, worker: WorkerProcess, event_id: str) -> int:
        """Resume from what cannot be an id; returns the status."""
        self._asks(worker)
        async with on_worker(self.client, worker).get(event_id) as response:
            await response.aread()
            self.missed("malformed")
            return response.status_code

    def missed(self, reason: str) -> None:
        """A resume was answered that nothing is stored any more."""
        self.ledger.resumes["missed"] += 1
        self.ledger.misses[reason] += 1

    async def leaves(self, worker: WorkerProcess) -> None:
        """Delete the session: the worker that is asked ends it, and the others that serve it are notified."""
        self._asks(worker)
        assert await on_worker(self.client, worker).delete() == 200
        for url, sessions in self.ledger.serving.items():
            if self.client.session in sessions:
                sessions.discard(self.client.session)
                self.ledger.ended["deleted" if url == worker.url else "other_worker"] += 1

    def _asks(self, worker: WorkerProcess) -> None:
        self.ledger.requests += 1
        self.ledger.served(worker.url, self.client.session)


NewCustomer = Callable[[str], Customer]
"""Makes one, for a job."""
