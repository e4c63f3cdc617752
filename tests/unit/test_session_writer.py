"""The writer of sessions, with the test in the place of the sender: which batches, and what becomes of each event."""

import pytest
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.types import StoreOutcome, Trouble
from support.messages import note
from support.writers import WriterRig

pytestmark = pytest.mark.anyio


async def test_event_that_overflow_drops_as_it_is_accepted_is_reported_lost() -> None:
    """A caller that asks afterwards is answered, too."""
    rig = WriterRig(max_events=1)
    rig.breaker.record_failure(Trouble.CONNECTION, "refused")
    run = rig.begin()
    rig.accept(run, note(1))
    event = rig.accept(run, note(2))
    assert await event.acknowledged() is StoreOutcome.LOST
    assert rig.outcomes[run.name, 2] is StoreOutcome.LOST


async def test_flush_stores_a_run_that_needs_several_commits(fake_client: aioredis.Redis) -> None:
    """Only some events of a run fit in one commit: the flush goes on with the others, and does not drop them."""
    store = RedisEventStore(fake_client, ttl=60)
    part = store.for_session("s")
    part.begin("1", 1)
    appended = [await part.append("1", note(number)) for number in range(70)]
    outcomes = [one.pending.acknowledged() for one in appended if one.pending is not None]
    assert await store.flush(10) == 0
    assert {outcome.result() for outcome in outcomes} == {StoreOutcome.STORED}
    assert len(outcomes) == 70
