"""The writer of sessions, with the test in the place of the sender: which batches, and what becomes of each event."""

import pytest

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
