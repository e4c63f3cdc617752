"""The registry of sessions: an ended session stays ended while Redis does not know it yet."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from mcp_eventscope import StoreUnavailableError
from mcp_eventscope.sessions.registry import SessionRegistry
from mcp_eventscope.store.coordination import SessionRecord

pytestmark = pytest.mark.anyio


class SlowCoordinator:
    """Redis still has the record of the session; its end cannot be written until `reachable`."""

    uncertain = False
    reachable = False

    def __init__(self) -> None:
        self.state = "live"

    @contextmanager
    def best_effort(self) -> Iterator[None]:
        """Suppress failures."""
        with suppress(StoreUnavailableError):
            yield

    async def touch(self, session_id: str, *, owner: str, ttl: int) -> SessionRecord:
        """Read the record."""
        del session_id, owner, ttl
        return SessionRecord(self.state)

    async def end(self, session_id: str, *, ttl: int) -> None:
        """Write the end."""
        del session_id, ttl
        if not self.reachable:
            raise StoreUnavailableError
        self.state = "ended"

    async def record_all(self, records: Any, *, ttl: int) -> None:
        """Write no records."""


async def test_registry_renew_after_an_end_that_was_not_written_is_ended() -> None:
    """A session that was deleted while Redis was slow is not adopted again, here, and ends once Redis takes it."""
    coordinator = SlowCoordinator()
    registry = SessionRegistry(coordinator, ttl=60)  # type: ignore[arg-type]
    await registry.end("s")
    assert coordinator.state == "live"
    assert (await registry.renew("s", owner="")).state == "ended"
    coordinator.reachable = True
    await registry.republish({})
    assert coordinator.state == "ended"
    assert (await registry.renew("s", owner="")).state == "ended"
