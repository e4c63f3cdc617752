"""Clients: which ones are accepted, what they are called in messages, and how their errors are told."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

import anyio
import redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mcp_eventscope.errors import StoreError, StoreRejectedError, StoreUnavailableError, WrongTypeError
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.store.events import FailureReason

AnyRedis: TypeAlias = aioredis.Redis | aioredis.RedisCluster
"""The clients that a store accepts, with `decode_responses` either way."""

CONNECT_TIMEOUT = 1.0
"""Seconds to reach Redis, for a client made by `connect`."""
REPLY_TIMEOUT = 1.0
"""Seconds to wait for a reply, for a client made by `connect`: each message of a session waits so long while Redis is
frozen. `?socket_timeout=…` in the URL says otherwise."""
ANSWER_TIMEOUT = 5.0
"""Seconds for an operation, by any client: with some, one that gets no reply never ends, or is tried for minutes."""

_SCHEMES = ("redis", "rediss", "unix")


def connect(url: str) -> aioredis.Redis:
    """A client for a URL; it connects when it is first used.

    It does not retry: an append whose reply was lost may have been done, and a second one would store it twice. Who
    finds all connections in use waits for one.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, or `unix://path`.

    Returns:
        The client; whoever called closes it.

    Raises:
        ValueError: The URL is none of these. The message does not repeat it, for it may hold a password.
    """
    try:
        # Without both slashes everything is a path, and the client would quietly go to localhost.
        if urlsplit(url).scheme not in _SCHEMES or "://" not in url:
            raise ValueError  # noqa: TRY301 - told once, below
        pool = aioredis.BlockingConnectionPool.from_url(
            url,
            timeout=REPLY_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=REPLY_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        pool.connection_class(**pool.connection_kwargs)  # Made and dropped: only this looks at the options of the URL.
    except (ValueError, TypeError, AttributeError, RedisError):
        msg = (
            "the Redis URL cannot be read (it is not repeated here, since it may hold a password); "
            "write redis://host:6379/0, rediss://… for TLS, or unix:///path/to.sock, "
            "percent-encode special characters in the password, and add only options that redis-py knows"
        )
        raise ValueError(msg) from None
    return aioredis.Redis.from_pool(pool)


def require_async(client: object) -> None:
    """Refuse what is not an asyncio client of redis-py.

    Raises:
        TypeError: It is not; the message says what to use.
    """
    if isinstance(client, aioredis.Redis | aioredis.RedisCluster):
        return
    if isinstance(client, redis.Redis | redis.RedisCluster):
        msg = (
            "RedisEventStore needs an asyncio client, and this one is synchronous: it would block the event loop. "
            "Use redis.asyncio.Redis with the same arguments"
        )
    else:
        msg = f"RedisEventStore needs a redis.asyncio.Redis (or RedisCluster), not {type(client).__name__}"
    raise TypeError(msg)


def require_one_slot(client: AnyRedis, prefix: str) -> None:
    """Refuse keys that a cluster would refuse for ever, and a backlog would keep.

    Raises:
        StoreRejectedError: The client is a cluster's, and the keys under the prefix are not in one slot.
    """
    if isinstance(client, aioredis.RedisCluster) and "{" not in prefix:
        msg = (
            f"the keys of a root store under {prefix!r} are not in one slot of Redis Cluster: "
            'give it a key_prefix with a hash tag, such as "{mcp}:", or use the parts of sessions (`for_session`)'
        )
        raise StoreRejectedError(msg)


def address_of(client: AnyRedis) -> str:
    """Where a client connects to: `host:port`, a socket's path, a Sentinel's service. Never a user name or password."""
    if isinstance(client, aioredis.RedisCluster):
        return ", ".join(f"{node.host}:{node.port}" for node in client.get_nodes()) or "a Redis Cluster"
    if isinstance(client.connection_pool, SentinelConnectionPool):  # Its address is whatever the Sentinels say.
        return f"the master {client.connection_pool.service_name!r} of Sentinel"
    arguments = client.connection_pool.connection_kwargs
    if path := arguments.get("path"):
        return str(path)
    return f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}"


T = TypeVar("T")


async def call(operation: str, client: AnyRedis, breaker: CircuitBreaker, function: Callable[[], Awaitable[T]]) -> T:
    """Call Redis, a second time if the connection was a stale one of the pool: for what may be done twice.

    Args:
        operation: As in `map_redis_errors`.
        client: The client.
        breaker: Records the failure, if there is one in the end.
        function: Makes the call.

    Raises:
        StoreUnavailableError: Redis was not reached, or did not reply in time.
        StoreRejectedError: Redis replied with an error.
    """
    stale = breaker.reason is None
    while True:
        try:
            with map_redis_errors(operation, client):
                return await function()
        except StoreUnavailableError as error:
            cause = error.__cause__ or error
            reason = failure_reason(cause)
            if stale and reason is FailureReason.CONNECTION and isinstance(client, aioredis.Redis):
                stale = False
                await client.connection_pool.disconnect(inuse_connections=False)
                continue
            if not breaker.unreachable:
                breaker.record_failure(reason, failure_text(cause, client))
            raise


@contextmanager
def map_redis_errors(operation: str, client: AnyRedis) -> Iterator[None]:
    """Bound an operation in time, and turn the client's errors into ours: with the place, without what was sent.

    Args:
        operation: What was done, for the message: "append to", "read from", …
        client: Whose errors.

    Raises:
        StoreUnavailableError: Redis was not reached, or did not answer in time.
        StoreRejectedError: Redis answered with an error.
    """
    try:
        with anyio.fail_after(ANSWER_TIMEOUT):
            yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise _store_error(error, f"could not {operation} Redis at {address_of(client)}") from error


TRANSIENT_CODES = frozenset({"BUSY", "MISCONF", "NOREPLICAS", "UNKILLABLE"})
"""Error replies without a class of their own that say nothing of the command: the same one may succeed later."""


def is_refusal(error: BaseException) -> bool:
    """Whether Redis has refused a command for what it is, so that it would refuse it again."""
    # redis-py has subclasses for LOADING, READONLY, OOM, TRYAGAIN, CLUSTERDOWN, NOPERM and the like, and none for ERR.
    return type(error) is ResponseError and str(error).partition(" ")[0] not in TRANSIENT_CODES


def failure_text(error: BaseException, client: AnyRedis) -> str:
    """A failure in words, for logs: with the address, without what was sent."""
    if isinstance(error, RedisTimeoutError | TimeoutError):
        text = "no reply in time"
    elif isinstance(error, ResponseError):
        # An unknown command is answered with the arguments that it was called with, the payload among them.
        text = f"replied {str(error).partition(', with args')[0]}"
    elif isinstance(error, RedisError | RedisClusterException | OSError) and str(error):
        text = str(error)
    else:
        text = "the connection was closed"
    return f"Redis at {address_of(client)}: {text}"


def failure_reason(error: BaseException) -> FailureReason:
    """What an error of the client's, or of Redis, means for those who wait to write."""
    if isinstance(error, RedisConnectionError) and isinstance(error.__cause__, RedisError):
        error = error.__cause__
    for kinds, reason in _FAILURE_REASONS:
        if isinstance(error, kinds):
            return reason
    if isinstance(error, RedisConnectionError):
        # What a blocking pool says that is exhausted.
        return FailureReason.POOL if str(error).startswith("No connection available") else FailureReason.CONNECTION
    if isinstance(error, ResponseError):
        code = str(error).partition(" ")[0]
        return FailureReason.BUSY if code == "BUSY" else FailureReason.OTHER
    return FailureReason.CONNECTION if isinstance(error, OSError) else FailureReason.OTHER


_FAILURE_REASONS: tuple[tuple[tuple[type[BaseException], ...], FailureReason], ...] = (
    ((RedisTimeoutError, TimeoutError), FailureReason.TIMEOUT),
    ((MaxConnectionsError,), FailureReason.POOL),
    ((BusyLoadingError,), FailureReason.LOADING),
    ((ReadOnlyError,), FailureReason.READONLY),
    ((OutOfMemoryError,), FailureReason.OOM),
    ((NoScriptError,), FailureReason.NOSCRIPT),
    ((AuthenticationError, AuthorizationError, NoPermissionError), FailureReason.AUTH),
)


def _store_error(error: RedisError | RedisClusterException | OSError, failed: str) -> StoreError:
    """Our error for one of the client's."""
    if isinstance(error, RedisConnectionError) and isinstance(error.__cause__, AuthenticationError | ResponseError):
        error = error.__cause__  # What Redis answers while the client connects comes wrapped.
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return StoreUnavailableError(f"{failed}: no answer in time")
    if isinstance(error, AuthenticationError):
        return StoreRejectedError(f"{failed}: it refused the user name or password")
    if isinstance(error, ResponseError):
        # An unknown command is answered with the arguments that it was called with, the payload among them.
        kind = WrongTypeError if str(error).startswith("WRONGTYPE") else StoreRejectedError
        return kind(f"{failed}: it answered {str(error).partition(', with args')[0]}")
    if isinstance(error, RedisConnectionError | OSError):
        return StoreUnavailableError(f"{failed}: {error}")
    # A cluster that is not there, among others.
    return StoreUnavailableError(f"{failed}: {type(error).__name__}: {error}")
