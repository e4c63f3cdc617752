"""The registry of sessions: an ended session stays ended while Redis does not know it yet."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest

from mcp_eventscope import StoreUnavailableError
from mcp_eventscope.sessions.registry import SessionRegistry
from mcp_eventscope.store.coordination import MessageKind, NewRecord, SessionRecord, WorkerMessage, session_digest

pytestmark = pytest.mark.anyio


class SlowCoordinator:
    """Redis still has the record of the session; its end cannot be written until `reachable`."""

    uncertain = False
    due = 0
    reachable = False
    recording: anyio.Event | None = None

    def __init__(self) -> None:
        self.state = "live"

    @contextmanager
    def best_effort(self) -> Iterator[None]:
        """Suppress failures."""
        with suppress(StoreUnavailableError):
            yield

    async def read(self, session_id: str, *, owner: str, server: str, ttl: int) -> SessionRecord:
        """Read the record."""
        del session_id, owner, server, ttl
        return SessionRecord(self.state)

    async def end(self, session_id: str, *, ttl: int) -> None:
        """Write the end."""
        del session_id, ttl
        if not self.reachable:
            raise StoreUnavailableError
        self.state = "ended"

    async def record(self, record: NewRecord, *, ttl: int) -> str:
        """Record a session, once the test lets it."""
        del record, ttl
        if self.recording is not None:
            await self.recording.wait()
        return "live"

    async def wait_for_record(self, task: "asyncio.Task[None]") -> None:
        """Wait."""
        await task

    def republish(self) -> None:
        """Count the repetitions that are due."""
        self.due += 1

    async def record_all(self, records: Any, *, ttl: int) -> list[str]:
        """Write no records."""
        del records, ttl
        return []


async def test_registry_read_after_an_end_that_was_not_written_is_ended() -> None:
    """A session that was deleted while Redis was slow is not adopted again, here, and ends once Redis takes it."""
    coordinator = SlowCoordinator()
    registry = SessionRegistry(coordinator, ttl=60)  # type: ignore[arg-type]
    await registry.end("s")
    assert (coordinator.state, coordinator.due) == ("live", 1)
    assert (await registry.read("s", owner="", server="")).state == "ended"
    coordinator.reachable = True
    await registry.republish([])
    assert coordinator.state == "ended"
    assert (await registry.read("s", owner="", server="")).state == "ended"


async def test_registry_renews_a_record_that_was_not_just_written() -> None:
    """Its first request, immediately after the session was opened, causes no call of Redis."""
    coordinator = SlowCoordinator()
    registry = SessionRegistry(coordinator, ttl=60)  # type: ignore[arg-type]
    await registry.add(NewRecord("s", "", "{}"))
    assert not registry.due("s")
    registry.remove("s")
    registry.remember(NewRecord("s", "", "{}"))
    assert registry.due("s")
    assert not registry.due("s")


async def test_registry_keeps_nothing_of_a_session_removed_while_it_was_recorded() -> None:
    """A late reply adds nothing for a session that has ended here."""
    coordinator = SlowCoordinator()
    registry = SessionRegistry(coordinator, ttl=60)  # type: ignore[arg-type]
    coordinator.recording = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.add, NewRecord("s", "", "{}"))
        await anyio.wait_all_tasks_blocked()
        assert not registry.due("s"), "the response to initialize is stored meanwhile"
        registry.remove("s")
        coordinator.recording.set()
    assert not registry._renewed


@pytest.mark.parametrize(
    ("owner", "server", "found"),
    [("alice", "calc", True), ("bob", "calc", False), ("alice", "mail", False), ("alice", "", False)],
)
def test_registry_learned_record_is_that_of_its_owner_and_server(owner: str, server: str, *, found: bool) -> None:
    """For others it is unknown, so that an outage discloses no sessions."""
    registry = SessionRegistry(SlowCoordinator(), ttl=60)  # type: ignore[arg-type]
    content = json.dumps(["alice", "calc", "{}"])
    registry._learn(WorkerMessage(MessageKind.BEGAN, session_digest("s"), content))
    registry._learn(WorkerMessage(MessageKind.BEGAN, session_digest("t"), '["alice", "{}"]'))
    record = registry.learned("s", owner=owner, server=server)
    assert (record is not None) == found
    assert record is None or (record.state, record.handshake) == ("live", "{}")
    assert registry.learned("t", owner="alice", server="") is None, "damaged"
