"""Session stores with one fault each, under the suite. `test_conformance_suite.py` runs this, to fail."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from redis import asyncio as aioredis

from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.write.runs import PendingEvent, Run
from mcp_eventscope.redis.write.session_batch import SessionBatch
from mcp_eventscope.redis.write.session_writer import SessionWriter
from mcp_eventscope.store import codec
from mcp_eventscope.store.messages import JSONRPCMessage
from mcp_eventscope.store.results import StoreOutcome
from mcp_eventscope.testing import OpenSessionStore, SessionRoot, session_store
from support.session_suite import OnFake
from support.stores import living_store

Connected = Callable[[], AbstractAsyncContextManager[aioredis.Redis]]


class Faulty(OnFake):
    """The suite, on stores with the fault that `inject` gives them."""

    @staticmethod
    def inject(patch: pytest.MonkeyPatch) -> None:
        """Put the fault in."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def injected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the fault before a store is opened."""
        type(self).inject(monkeypatch)


class TestUnshared(OnFake):
    """Each store keeps its events for itself, and replays them well."""

    @pytest.fixture(autouse=True)
    def brief(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wait in vain for a short time."""
        monkeypatch.setattr(session_store, "PATIENCE", 2.0)

    @pytest.fixture
    def open_store(self, connected: Connected, key_prefix: str) -> OpenSessionStore:
        """Opens stores that never meet."""
        opened: list[str] = []

        @asynccontextmanager
        async def open_store() -> AsyncIterator[SessionRoot]:
            opened.append(f"{key_prefix}{len(opened)}:")
            async with connected() as client, living_store(client, opened[-1], instrumented=False) as store:
                yield store

        return open_store


def _reuse_names_of_runs(patch: pytest.MonkeyPatch) -> None:
    begin = SessionWriter.begin

    def begin_again(self: SessionWriter, *arguments: Any) -> Run:
        self._counter = 0
        return begin(self, *arguments)

    patch.setattr(SessionWriter, "begin", begin_again)


class TestReusedNames(Faulty):
    """All runs of a process have the same name."""

    inject = staticmethod(_reuse_names_of_runs)


def _reverse_commits(patch: pytest.MonkeyPatch) -> None:
    part = SessionWriter._part

    def reversed_part(self: SessionWriter, *arguments: Any) -> Any:
        taken = part(self, *arguments)
        if taken is not None:
            taken.events.reverse()
        return taken

    patch.setattr(SessionWriter, "_part", reversed_part)


class TestReversed(Faulty):
    """The events of a commit are stored in the wrong order."""

    inject = staticmethod(_reverse_commits)


def _lose_silently(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionWriter, "_report_lost", lambda *_: None)


class TestSilent(Faulty):
    """Events are dropped without a report."""

    inject = staticmethod(_lose_silently)


def _never_close(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionWriter, "_close", staticmethod(lambda _: None))


class TestOpenEnded(Faulty):
    """A response does not end its request."""

    inject = staticmethod(_never_close)


def _forget_types(patch: pytest.MonkeyPatch) -> None:
    begin = SessionWriter.begin

    def begin_untyped(self: SessionWriter, session: Any, stream: str, request_id: Any) -> Run:
        number = isinstance(request_id, str) and request_id.isdecimal()
        return begin(self, session, stream, int(request_id) if number else request_id)

    patch.setattr(SessionWriter, "begin", begin_untyped)


class TestUntyped(Faulty):
    """Request ids lose their JSON type."""

    inject = staticmethod(_forget_types)


def _ignore_the_fence(patch: pytest.MonkeyPatch) -> None:
    acknowledged = SessionWriter.acknowledged

    def unfenced(self: SessionWriter, batch: SessionBatch, clock: int, states: list[str], seconds: float) -> None:
        acknowledged(self, batch, clock, ["k0" if state == "x" else state for state in states], seconds)

    patch.setattr(SessionWriter, "acknowledged", unfenced)


class TestUnfenced(Faulty):
    """A worker does not notice that another one has answered in its place."""

    inject = staticmethod(_ignore_the_fence)


def _drop_nulls(patch: pytest.MonkeyPatch) -> None:
    def encode(message: JSONRPCMessage | None) -> bytes:
        return b"" if message is None else message.model_dump_json(by_alias=True, exclude_none=True).encode()

    patch.setattr(codec, "encode", encode)


class TestWithoutNulls(Faulty):
    """Nulls are dropped."""

    inject = staticmethod(_drop_nulls)


def _report_twice(patch: pytest.MonkeyPatch) -> None:
    settle = PendingEvent.settle

    def settle_twice(self: PendingEvent, outcome: StoreOutcome) -> None:
        callbacks = self._callbacks
        settle(self, outcome)
        for callback in callbacks or ():
            callback(outcome)

    patch.setattr(PendingEvent, "settle", settle_twice)


class TestRepeating(Faulty):
    """The outcome of an event is reported twice."""

    inject = staticmethod(_report_twice)


def _share_a_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Keys, "large", lambda self, stream, run, _: f"{self.prefix}large:{stream}:{run}")


class TestOneLargePayload(Faulty):
    """A run has room for one large payload."""

    inject = staticmethod(_share_a_key)
