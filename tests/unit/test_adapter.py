"""The adapter gives third-party stores the methods of ours, and isolates sessions on them."""

import anyio
import pytest
from mcp.server.streamable_http import EventCallback, EventId, StreamId
from mcp.types import JSONRPCMessage

from mcp_eventscope import StoreUnavailableError
from mcp_eventscope.store import adapter
from mcp_eventscope.store.adapter import EventStoreAdapter
from mcp_eventscope.store.messages import EventMessage
from mcp_eventscope.store.protocol import ObservableEventStore
from mcp_eventscope.store.results import FollowEnd, Miss, ReplayResult
from mcp_eventscope.testing import Collected, on_the_wire
from support.memory_store import MemoryEventStore
from support.messages import answer, note
from support.waiting import CEILING, until

pytestmark = pytest.mark.anyio


async def test_replay_of_third_party_store_counts_deliveries() -> None:
    """Count the events and bytes that a third-party store replays."""
    store = EventStoreAdapter(MemoryEventStore()).for_session("a")
    first = await store.append("1", None)
    noted = await store.append("1", note(0))
    ended = await store.append("1", answer())
    collected = Collected()
    facts = await store.replay(first.event_id, collected, stream_id="1")
    assert collected.ids == [noted.event_id, ended.event_id]
    assert facts == ReplayResult(
        stream_id="1",
        last_event_id=ended.event_id,
        delivered=2,
        payload_bytes=noted.payload_bytes + ended.payload_bytes,
        completed=True,
    )
    assert noted.payload_bytes == len(on_the_wire(note(0)))
    assert first.payload_bytes == 0


async def test_replay_of_unusable_cursor_returns_the_miss() -> None:
    """An empty id is malformed; an id of no event, another stream or another session is unknown."""
    root = EventStoreAdapter(MemoryEventStore())
    mine, other = root.for_session("a"), root.for_session("b")
    event_id = (await other.append("1", None)).event_id
    await other.append("1", note(0))
    collected = Collected()
    assert await mine.replay("", collected) == ReplayResult(miss=Miss.MALFORMED)
    assert await mine.replay("x", collected) == ReplayResult(miss=Miss.UNKNOWN)
    assert await mine.replay(event_id, collected, stream_id="1") == ReplayResult(miss=Miss.UNKNOWN)
    assert await mine.replay(event_id, collected) == ReplayResult(miss=Miss.UNKNOWN)
    assert await other.replay(event_id, collected, stream_id="2") == ReplayResult(miss=Miss.UNKNOWN)
    assert await root.replay("x", collected) == ReplayResult(miss=Miss.UNKNOWN)
    assert collected.ids == []


async def test_replay_of_a_request_stops_at_its_response() -> None:
    """Events stored after the response are not sent on the request's stream."""
    store = EventStoreAdapter(MemoryEventStore()).for_session("a")
    first = await store.append("1", None)
    for message in (answer(), note(1)):
        await store.append("1", message)
    facts = await store.replay(first.event_id, Collected(), stream_id="1")
    assert (facts.delivered, facts.completed) == (1, True)


async def test_follow_polls_until_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver each later event once, until the response."""
    monkeypatch.setattr(adapter, "POLL_SECONDS", 0.01)
    store = EventStoreAdapter(MemoryEventStore()).for_session("a")
    last = (await store.append("1", None)).event_id
    collected = Collected()
    ids = []

    async def write() -> None:
        for message in (note(0), None, note(1), answer()):
            ids.append((await store.append("1", message)).event_id)
            await anyio.sleep(0.02)

    with anyio.fail_after(CEILING):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            facts = await store.follow("1", last, collected, limit=30)
    del ids[1]
    assert collected.ids == ids
    assert (facts.end, facts.delivered, facts.last_event_id) == (FollowEnd.COMPLETED, 3, ids[-1])


async def test_follow_wakes_for_events_of_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No poll is needed, whichever view of the session stores, and nothing is left of a follower."""
    monkeypatch.setattr(adapter, "POLL_SECONDS", 1000)
    shared = EventStoreAdapter(MemoryEventStore())
    last = (await shared.for_session("a").append("1", None)).event_id
    collected = Collected()
    with anyio.fail_after(CEILING):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: shared.for_session("a").follow("1", last, collected, limit=2000))
            await until(lambda: shared._wakes)
            ids = []
            for message in (note(0), note(1), answer()):
                ids.append((await shared.for_session("a").append("1", message)).event_id)
                await until(lambda: collected.ids == ids)
    assert not shared._wakes


class Failing(MemoryEventStore):
    """Fails to read for a set number of times."""

    failures = 0

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Fail, or read."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        return await super().replay_events_after(last_event_id, send_callback)


async def test_follow_when_reads_fail_retries_until_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a failed read, and try again until the limit."""
    monkeypatch.setattr(adapter, "POLL_SECONDS", 0.01)
    failing = Failing()
    store = EventStoreAdapter(failing)
    first = (await store.append("1", None)).event_id
    await store.append("1", answer())
    failing.failures = 3
    facts = await store.follow("1", first, Collected(), limit=30)
    assert (facts.end, facts.delivered, facts.failures) == (FollowEnd.COMPLETED, 1, 3)
    failing.failures = 10**6
    facts = await store.follow("1", first, Collected(), limit=0.05)
    assert (facts.end, facts.delivered) == (FollowEnd.TIMEOUT, 0)
    assert facts.failures > 1


async def test_follow_when_callback_raises_ends() -> None:
    """An exception of the callback is no failure of the store."""
    store = EventStoreAdapter(MemoryEventStore())
    first = (await store.append("1", None)).event_id
    await store.append("1", note(0))

    async def broken(_: EventMessage) -> None:
        raise anyio.BrokenResourceError

    with pytest.raises(anyio.BrokenResourceError):
        await store.follow("1", first, broken, limit=30)


class Anonymous(MemoryEventStore):
    """Replays events without their ids, which the SDK's types allow."""

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Leave the ids out."""

        async def send(event: EventMessage) -> None:
            await send_callback(EventMessage(event.message))

        return await super().replay_events_after(last_event_id, send)


async def test_follow_of_events_without_ids_delivers_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that returns no position is not polled again for delivered events."""
    monkeypatch.setattr(adapter, "POLL_SECONDS", 0.01)
    store = EventStoreAdapter(Anonymous())
    first = (await store.append("1", None)).event_id
    await store.append("1", note(0))
    facts = await store.follow("1", first, Collected(), limit=0.1)
    assert (facts.end, facts.delivered) == (FollowEnd.TIMEOUT, 1)


class Counting(MemoryEventStore):
    """Records the streams of its events."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[StreamId] = []

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Record the stream."""
        self.streams.append(stream_id)
        return await super().store_event(stream_id, message)


async def test_session_stream_names_carry_the_session_id() -> None:
    """A session's streams carry its id and its length; root streams keep their names."""
    counting = Counting()
    store = EventStoreAdapter(counting)
    await store.append("1", None)
    await store.for_session("a:b").append("1", None)
    assert counting.streams == ["1", "3:a:b:1"]
    assert isinstance(store, ObservableEventStore)
    assert (store.address, store.ttl) == ("Counting", None)


@pytest.mark.parametrize("other", [None, object(), {}])
def test_adapter_of_no_event_store_is_a_type_error(other: object) -> None:
    """Anything but an SDK store is a `TypeError` that names its type."""
    with pytest.raises(TypeError, match=type(other).__name__):
        EventStoreAdapter(other)  # type: ignore[arg-type]  # what is tested


class HangingStore(MemoryEventStore):
    """Hangs in every operation."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Hang."""
        await anyio.sleep_forever()
        return await super().store_event(stream_id, message)

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        """Hang."""
        await anyio.sleep_forever()
        return await super().replay_events_after(last_event_id, send_callback)


async def test_store_that_hangs_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is unavailable after a bounded wait, so that no session hangs with it."""
    monkeypatch.setattr(adapter, "ANSWER_TIMEOUT", 0.02)
    store = EventStoreAdapter(HangingStore()).for_session("s")
    with pytest.raises(StoreUnavailableError, match="store on HangingStore: no answer"):
        await store.append("1", None)
    with pytest.raises(StoreUnavailableError, match="replay from HangingStore: no answer"):
        await store.replay("1", Collected(), stream_id="1")
