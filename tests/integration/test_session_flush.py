"""`flush` stores everything that is pending while Redis answers, however much that is."""

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.store.events import EventsLost, StoreEvent
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.testing import Collected
from support.messages import answer, note

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("leaks")]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 200])
async def test_flush_of_a_long_run_stores_everything(redis_client: aioredis.Redis, key_prefix: str, count: int) -> None:
    """A run takes several commits, one after the other; `flush` returns after the last one."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    facts: list[StoreEvent] = []
    store.observe(facts.append)
    part = store.for_session("s")
    part.begin("1", 1)
    first = (await part.append("1", None)).event_id
    ids = [(await part.append("1", note(number))).event_id for number in range(count)]
    ids.append((await part.append("1", answer())).event_id)
    assert await store.flush(5) == 0
    assert not store.backlog.events
    assert not [fact for fact in facts if isinstance(fact, EventsLost)]
    stored = Collected()
    reader = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60).for_session("s")
    assert (await reader.replay(first, stored, stream_id="1")).completed
    assert stored.ids == ids


async def test_flush_of_many_runs_stores_everything(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """More runs than a batch holds, in several sessions and on standalone streams, are stored."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    cursors = []
    for number in range(30):
        part = store.for_session(f"s{number % 3}")
        part.begin(str(number), number)
        cursors.append((part.session_id, str(number), (await part.append(str(number), None)).event_id))
        for each in range(40):
            await part.append(str(number), note(each))
        await part.append(GET_STREAM_KEY, note(number))
    assert await store.flush(10) == 0
    reader = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    for session, stream, cursor in cursors:
        assert (await reader.for_session(session).replay(cursor, Collected(), stream_id=stream)).delivered == 40


async def test_append_after_flush_continues_the_run(redis_client: aioredis.Redis, key_prefix: str) -> None:
    """An open request continues with the next number."""
    store = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60)
    part = store.for_session("s")
    part.begin("1", 1)
    first = (await part.append("1", None)).event_id
    for number in range(3):
        await part.append("1", note(number))
        assert await store.flush(5) == 0
    reader = RedisEventStore(redis_client, key_prefix=key_prefix, ttl=60).for_session("s")
    assert (await reader.replay(first, Collected(), stream_id="1")).delivered == 3
