"""Warnings at start about settings with which clients lose events, with the remedy."""

from collections.abc import Callable

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server.lowlevel.server import Server

from mcp_eventscope import RedisEventStore, ResumableSessionManager
from support.memory_store import MemoryEventStore
from telemetry.conftest import Scope

Warn = Callable[..., list[dict[str, object]]]


@pytest.fixture
def warn(scope: Scope, redis: FakeAsyncRedis) -> Warn:
    """Make a manager, and return its warnings about the TTL."""

    def make(ttl: int | None, **settings: object) -> list[dict[str, object]]:
        app: Server[object] = Server("s")
        store = scope.instrument(RedisEventStore(redis, ttl=ttl))
        ResumableSessionManager(app, store, logger=scope.log, **settings)  # type: ignore[arg-type]
        return scope.log.named("event_store.ttl_short")

    return make


def test_defaults_of_http_app_cause_no_warning(warn: Warn) -> None:
    """The defaults of `http_app()` cause no warning."""
    assert warn(3600) == []
    assert len(warn(3599)) == 1


def test_shorter_than_twice_the_idle_timeout(warn: Warn, scope: Scope) -> None:
    """A warning if a session can outlive its events."""
    (entry,) = warn(600, session_idle_timeout=400.5)
    assert entry == {
        "event": "event_store.ttl_short",
        "level": "warning",
        "store": "default",
        "ttl_seconds": 600,
        "setting": "session_idle_timeout",
        "setting_seconds": 400.5,
        "fix": "set ttl=801 or more, or session_idle_timeout=300 or less",
    }
    assert scope.log.entries == [entry]


@pytest.mark.parametrize(("limit", "advice"), [(300.0, "set ttl= to more than 300, or "), (float("inf"), "set ")])
def test_shorter_than_the_follow_limit(warn: Warn, limit: float, advice: str) -> None:
    """A warning if a stream is followed for longer than its events are kept."""
    (entry,) = warn(200, session_idle_timeout=None, follow_timeout=limit)
    assert (entry["setting"], entry["setting_seconds"]) == ("follow_timeout", limit)
    assert entry["fix"] == f"{advice}follow_timeout=200 or less"


def test_each_setting_has_its_own_warning(warn: Warn) -> None:
    """Each setting has its own warning."""
    assert [entry["setting"] for entry in warn(60)] == ["session_idle_timeout", "follow_timeout"]


def test_short_ttl_without_sessions_causes_no_warning(warn: Warn, scope: Scope) -> None:
    """No such warning without a TTL, without sessions, or with a store whose TTL is unknown."""
    assert warn(None) == []
    assert len(scope.log.named("event_store.ttl_missing")) == 1
    assert warn(1, stateless=True) == []
    app: Server[object] = Server("s")
    ResumableSessionManager(app, scope.instrument(MemoryEventStore(), "other"), logger=scope.log)
    assert scope.log.named("event_store.ttl_short") == []
