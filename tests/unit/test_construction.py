"""The options of `RedisEventStore` are checked when it is made."""

import fractions

import fakeredis
import pytest
import redis
from redis import asyncio as aioredis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.limits import MAX_TTL
from mcp_eventscope.store.protocol import ObservableEventStore


def client() -> aioredis.Redis:
    """A client that is never connected."""
    return aioredis.Redis()


@pytest.mark.parametrize("ttl", [0, -1, -3600, MAX_TTL + 1, 2**63])
def test_store_with_ttl_out_of_range_is_refused(ttl: int) -> None:
    """A TTL that Redis would refuse, or that expires immediately, is refused; None is named as the way out."""
    with pytest.raises(ValueError, match=f"ttl must be between 1 and {MAX_TTL} seconds or None.*got {ttl}"):
        RedisEventStore(client(), ttl=ttl)


@pytest.mark.parametrize("ttl", [1.0, 3600.5, "3600", True, False, fractions.Fraction(1), [3600], float("nan")])
def test_store_with_ttl_of_another_type_is_refused(ttl: object) -> None:
    """A TTL that is no integer is a `TypeError` that names the expected type."""
    with pytest.raises(TypeError, match="ttl must be a whole number of seconds or None"):
        RedisEventStore(client(), ttl=ttl)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("ttl", [None, 1, 3600, MAX_TTL])
def test_store_with_ttl_in_range_keeps_it(ttl: int | None) -> None:
    """Any whole number of seconds up to ten years is accepted, and so is None."""
    assert RedisEventStore(client(), ttl=ttl).ttl == ttl


@pytest.mark.parametrize("prefix", ["", "a b", "{", "a}b{"])
def test_store_with_invalid_prefix_is_refused(prefix: str) -> None:
    """An invalid prefix is refused when the store is made, not when it is used."""
    with pytest.raises(ValueError, match="key_prefix"):
        RedisEventStore(client(), key_prefix=prefix)


def test_store_with_prefix_of_another_type_is_refused() -> None:
    """A prefix that is no string is a `TypeError`."""
    with pytest.raises(TypeError, match="key_prefix must be a string"):
        RedisEventStore(client(), key_prefix=b"mcp:")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("synchronous", [redis.Redis, fakeredis.FakeRedis])
def test_store_with_synchronous_client_is_refused(synchronous: type[redis.Redis]) -> None:
    """A synchronous client would block the event loop; the error names the asynchronous one."""
    with pytest.raises(TypeError, match=r"use redis\.asyncio\.Redis"):
        RedisEventStore(synchronous())  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("other", [None, "redis://localhost", object(), 6379])
def test_store_with_no_client_is_refused(other: object) -> None:
    """Anything but a client is a `TypeError` that names its type."""
    with pytest.raises(TypeError, match=f"got {type(other).__name__}"):
        RedisEventStore(other)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), ((1 << 20) - 1, ValueError), (2e6, TypeError)])
def test_store_with_session_limit_out_of_range_is_refused(limit: int, error: type[Exception]) -> None:
    """A session needs at least 1 MiB: its pending events alone may take as much."""
    with pytest.raises(error, match="max_session_bytes must be"):
        RedisEventStore(client(), max_session_bytes=limit)


def test_store_options_can_be_read_back() -> None:
    """The options can be read from the root and from a session's part."""
    store = RedisEventStore(client(), key_prefix="app:", ttl=60)
    part = store.for_session("a/b")
    assert (store.key_prefix, store.ttl, store.session_id) == ("app:", 60, None)
    assert (part.key_prefix, part.ttl, part.session_id) == ("app:{a%2Fb}:", 60, "a/b")
    assert isinstance(part, ObservableEventStore)
