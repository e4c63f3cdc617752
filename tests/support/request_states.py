"""Request states of several workers in this process, on one Redis."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore, RedisRequestState
from mcp_eventscope.request_state.facts import RequestStateFact, StateRefusal, StateRefused
from mcp_eventscope.testing.request_state import Tool, Worker, principal_of
from support.stores import PATIENCE

SECRET = "0123456789abcdef" * 4
F = TypeVar("F")


@dataclass
class StateWorker:
    """One worker: its request state, the facts that it has emitted, and a client of its tool."""

    state: RedisRequestState
    tool: Tool
    facts: list[RequestStateFact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state.observe(self.facts.append)
        self.worker = Worker(self.state, self.tool)
        self.ask, self.answer = self.worker.ask, self.worker.answer

    def of(self, kind: type[F]) -> list[F]:
        """The facts of one kind."""
        return [fact for fact in self.facts if isinstance(fact, kind)]

    @property
    def refusals(self) -> list[StateRefusal]:
        """The reasons of its refusals."""
        return [fact.reason for fact in self.of(StateRefused)]


def state_worker(client: aioredis.Redis, key_prefix: str, tool: Tool, **options: object) -> StateWorker:
    """A worker whose request state does not run yet."""
    timeout = float(str(options.pop("store_timeout", PATIENCE)))
    backend = RedisEventStore(client, key_prefix=key_prefix, store_timeout=timeout).backend
    return StateWorker(RedisRequestState(backend, bind_principal=principal_of, **options), tool)  # type: ignore[arg-type]


@asynccontextmanager
async def state_workers(
    client: aioredis.Redis, key_prefix: str, tool: Tool, number: int = 2, **options: object
) -> AsyncIterator[list[StateWorker]]:
    """Running workers that share a tool."""
    workers = [state_worker(client, key_prefix, tool, **options) for _ in range(number)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            await stack.enter_async_context(worker.state.running())
        yield workers
