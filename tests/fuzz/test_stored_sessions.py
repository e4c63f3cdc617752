"""Damaged data of a session in Redis: only the documented errors, no harm to other sessions, nothing leaks."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from mcp.types import JSONRPCNotification, JSONRPCResponse
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedEventStore, RedisEventStore, StoreError
from mcp_eventscope.redis.inspection import Inspector, Walk, event_facts
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.read.cursor import parse
from mcp_eventscope.sessions.handshake import params_of
from mcp_eventscope.store.coordination import NewRecord
from mcp_eventscope.store.messages import GET_STREAM_KEY, EventMessage
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.store.results import StoreOutcome
from support.fuzzing import DAMAGES, MARKER, Damage, Leaked, examples, keys_of, own_prefix, payload, run_example
from support.session_producers import run_of
from support.stores import LEASE, PATIENCE, nothing_to_publish

pytestmark = pytest.mark.slow

TTL = 600
HANDSHAKE = '{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}'
FOLLOW_SECONDS = 0.01


def note(number: int, size: int = 0) -> JSONRPCNotification:
    """A notification with the marker in its payload."""
    return JSONRPCNotification(jsonrpc="2.0", method="note", params=payload(number, size))


def response(request_id: int) -> JSONRPCResponse:
    """A response with the marker in its payload."""
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=payload(0))


@dataclass
class Received:
    """Takes events, whose ids must be cursors."""

    numbers: list[Any] = field(default_factory=list)

    async def __call__(self, event: EventMessage) -> None:
        """Take one."""
        assert event.event_id is None or parse(event.event_id) is not None, event.event_id
        message = event.message
        self.numbers.append(
            message.params["n"] if isinstance(message, JSONRPCNotification) and message.params else "end"
        )


@dataclass
class World:
    """Two workers on one prefix, a dead one, and two sessions: one is damaged, the other must not notice."""

    client: aioredis.Redis
    prefix: str
    writer: RedisEventStore
    reader: RedisEventStore
    dead: RedisEventStore
    leaked: Leaked
    cursors: dict[str, list[str]] = field(default_factory=dict)

    async def store(self, session_id: str) -> None:
        """An open request with a large payload, a finished one, one of a dead worker, and standalone messages."""
        session, lost = self.writer.for_session(session_id), self.dead.for_session(session_id)
        await self.writer.coordinator.record(NewRecord(session_id, "", HANDSHAKE, "srv"), ttl=TTL)
        for part, stream, messages in (
            (session, "1", [None, note(1), note(2, 5000), note(3)]),
            (session, "2", [None, note(1), response(2)]),
            (session, GET_STREAM_KEY, [note(1), note(2)]),
            (lost, "3", [None, note(1)]),
        ):
            if stream != GET_STREAM_KEY:
                part.begin(stream, int(stream))
            ids = [(await part.append(stream, message)).event_id for message in messages]
            if session_id == "victim":
                self.cursors[stream] = ids
        assert await self.writer.flush(PATIENCE) == await self.dead.flush(PATIENCE) == 0

    async def damage(self, damages: list[Damage]) -> None:
        """Damage the victim."""
        for each in damages:
            done = await each.apply(self.client, await keys_of(self.client, f"{self.prefix}{{victim}}:*"))
            self.leaked.texts.append(f"damage: {done}".replace(MARKER, ""))

    async def use(self, session: ObservableEventStore) -> None:
        """Do with the victim what clients and workers do."""
        for stream, ids in self.cursors.items():
            for cursor in (ids[0], ids[-1]):
                received = Received()
                after = cursor
                try:
                    after = (await session.replay(cursor, received, stream_id=stream)).last_event_id or cursor
                except StoreError as error:
                    self.leaked.texts.append(str(error))
                assert parse(after) is not None
                await session.follow(stream, after, received, limit=FOLLOW_SECONDS)
        opened = await session.open_standalone()
        assert parse(opened) is not None, opened

    async def coordinate(self) -> None:
        """Do with the victim's record what workers do."""
        workers = self.reader.coordinator
        record = NewRecord("victim", "", HANDSHAKE, "srv")
        try:
            found = await workers.read("victim", owner="", server="srv", ttl=TTL)
            params_of(found.handshake)
            await workers.touch([record, NewRecord("other", "", HANDSHAKE, "srv")], ttl=TTL)
            await workers.record_all([record], ttl=TTL)
        except StoreError as error:
            self.leaked.texts.append(str(error))

    async def inspect(self) -> None:
        """Look at it as the command line and the console do."""
        inspector = Inspector(self.client, Keys(self.prefix))
        try:
            await inspector.sessions(Walk(), limit=10)
            await inspector.session("victim")
            for run in await inspector.runs("victim"):
                rows = await inspector.events("victim", run.stream, run.run, 0)
                assert [event_facts(row).number for row in rows] == [row[0] for row in rows]
            await inspector.positions(["victim", "other"])
            await inspector.activity(["victim", "other"], rows=100, most=10)
        except StoreError as error:
            self.leaked.texts.append(str(error))

    async def check_other(self) -> None:
        """The other session has all of its events, takes more, and its dead request is answered."""
        session = self.writer.for_session("other")
        ids = [await session.append("1", message) for message in (note(4), response(1))]
        outcomes = {await each.pending.acknowledged() for each in ids if each.pending is not None}
        assert outcomes == {StoreOutcome.STORED}
        received = Received()
        run = run_of(ids[0].event_id)
        time = ids[0].event_id.partition("-")[0]
        await self.reader.for_session("other").replay(f"{time}-0-{run}", received, stream_id="1")
        assert received.numbers == [1, 2, 3, 4, "end"]


async def opened(client: aioredis.Redis, stack: AsyncExitStack, leaked: Leaked) -> World:
    """A world under a prefix of its own."""
    prefix = own_prefix(client, stack)
    writer, reader, dead = (
        RedisEventStore(client, key_prefix=prefix, ttl=TTL, store_timeout=PATIENCE) for _ in range(3)
    )
    for store in (writer, reader):
        workers = store.backend.workers
        await stack.enter_async_context(workers.hold_lease(LEASE, lambda _: None, nothing_to_publish))
        stack.push_async_callback(store.flush, 0)
    world = World(client, prefix, writer, reader, dead, leaked)
    await world.store("victim")
    await world.store("other")
    return world


@examples(25)
@given(DAMAGES)
@example([Damage(2, "change", 0, b"", b"a 5")])
def test_damaged_session_raises_documented_errors_and_harms_no_other(valkey_url: str, damages: list[Damage]) -> None:
    """Readers, workers and operators meet any damage of one session; another one on the same workers is complete."""

    async def story(client: aioredis.Redis, stack: AsyncExitStack, leaked: Leaked) -> None:
        world = await opened(client, stack, leaked)
        await world.damage(damages)
        instrumented = InstrumentedEventStore(world.reader, registry=CollectorRegistry(), logger=leaked)
        await world.use(instrumented.for_session("victim"))
        await world.coordinate()
        await world.inspect()
        session = world.writer.for_session("victim")
        session.begin("9", 9)
        for stream, message in (("1", note(4)), ("1", response(1)), (GET_STREAM_KEY, note(3)), ("9", None)):
            await session.append(stream, message)
        await world.use(session)
        await world.check_other()
        try:
            await world.reader.coordinator.end("victim", ttl=TTL)
        except StoreError as error:
            leaked.texts.append(str(error))

    run_example(valkey_url, story)
