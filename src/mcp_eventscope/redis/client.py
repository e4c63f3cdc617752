"""Redis clients: creation, validation, and the mapping of their errors."""

import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Any, TypeAlias, TypeVar
from urllib.parse import SplitResult, urlsplit

import anyio
import redis
from redis import asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
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

from mcp_eventscope.cancellation import keep_cancellation
from mcp_eventscope.errors import StoreError, StoreRejectedError, StoreUnavailableError, WrongTypeError
from mcp_eventscope.options import given
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.store.events import FailureReason

AnyRedis: TypeAlias = aioredis.Redis | aioredis.RedisCluster
"""The clients that a store accepts, with `decode_responses` either way."""

CONNECT_TIMEOUT = 1.0
"""Connect timeout, in seconds, of a client created by `connect`."""
REPLY_TIMEOUT = 1.0
"""Reply timeout, in seconds, of a client created by `connect`. `?socket_timeout=…` in the URL overrides it."""
ANSWER_TIMEOUT = 5.0
"""Maximum seconds of one operation, with any client: some clients wait forever, or retry for minutes."""
LEAST_CONNECTIONS = 8
"""The connections of a worker: three with blocking reads and a subscription, one with writes, and some for replays."""
SPARE_CONNECTIONS = 4
"""Pool size below which an idle connection is returned immediately."""
LINGER_SECONDS = 1.0
"""Seconds for which an idle connection is kept for the next use, since to take one from the pool and to return it takes
as long as to store an event."""

_CLUSTER = "+cluster"
"""The suffix of the URL schemes for Redis Cluster."""
_CLUSTER_ATTEMPTS = 1
"""Retries of a command to a node that has failed, after its successor was looked up. Commits are idempotent."""
_SCHEMES = ("redis", "rediss", "unix", f"redis{_CLUSTER}", f"rediss{_CLUSTER}")
_CONTROLS = re.compile(r"[\t\r\n]")
_SCHEME = re.compile(r"[a-z][a-z+-]*(?=://)", re.IGNORECASE)
_EXAMPLES = (
    "write redis://host:6379/0, rediss://host:6379/0 for TLS, unix:///path/to.sock, "
    "or redis+cluster://host:6379,host:6379 for Redis Cluster"
)
_SENTINEL = "pass redis= to EventScope, a client by redis.asyncio.sentinel.Sentinel(…).master_for(…)"
_QUOTES = "\"'`\u201c\u2018"
_UNENCODED = "percent-encode / ? # @ [ and ] in the user name and password"


def check_url(option: str, url: object) -> None:
    """Validate the URL of Redis. redis-py would take localhost or database 0 for a part that it does not understand.

    Args:
        option: The name in the error.
        url: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS, or `unix:///path`. For Redis Cluster
            `redis+cluster://[user:password@]host[:port][,host[:port]…]`, or `rediss+cluster://…`, with some of its
            nodes. The query may have options of redis-py.

    Raises:
        TypeError: The URL is not a string.
        ValueError: The URL is none of these. The message names the mistake and omits the URL, because it may contain a
            password.
    """
    if not isinstance(url, str):
        msg = f"{option} must be the URL of Redis, got {given(url)}; {_EXAMPLES}"
        raise TypeError(msg)
    if problem := _problem_of(url):
        msg = f"{option} must {problem} (the URL is not shown here, because it may contain a password)"
        raise ValueError(msg) from None


def _problem_of(url: str) -> str | None:
    """Describe the first mistake in a URL; None if it is valid."""
    if problem := _text_problem(url):
        return problem
    scheme = url.partition("://")[0]
    if scheme.endswith(_CLUSTER):
        return _cluster_problem(url)
    try:
        parts = urlsplit(url)
    except ValueError:
        return (
            f"have a valid host, got brackets that do not match; {_EXAMPLES}, or [::1] as the host for IPv6, "
            f"and {_UNENCODED}"
        )
    if "@" in parts.path or parts.fragment or any("@" in option.partition("=")[0] for option in parts.query.split("&")):
        return f"have no / ? or # in the user name and password, got one; {_EXAMPLES}, and {_UNENCODED}"
    return (_unix_problem if parts.scheme == "unix" else _tcp_problem)(parts) or _option_problem(url)


def _text_problem(url: str) -> str | None:
    if not url.strip():
        return f"be a URL, got {url!r}; leave it out, or {_EXAMPLES}"
    if _CONTROLS.search(url.strip()):  # urlsplit would drop them silently.
        return f"have no tab or line break, got one; {_EXAMPLES}, and percent-encode it"
    scheme = _SCHEME.match(url)
    if scheme is None or scheme[0] not in _SCHEMES:
        got, fix = "no scheme", _EXAMPLES
        if scheme is not None:
            got = f"{scheme[0]}://"
            fix = _SENTINEL if "sentinel" in scheme[0].lower() else fix
        elif url[0] in _QUOTES:
            got, fix = "a quotation mark", "write the URL without quotation marks, which belong to the shell"
        elif url[0].isspace():
            got, fix = "a space", "remove it"
        return f"begin with redis://, rediss:// or unix://, got {got}; {fix}"
    return None


def _cluster_problem(url: str) -> str | None:
    nodes = _nodes_of(url)
    for node in nodes:
        if problem := _problem_of(node):
            return problem
    if parse_url(nodes[0]).get("db"):
        return f"have no database in a URL of Redis Cluster, got one; {_EXAMPLES}"
    try:
        _connect_cluster(url)
    except TypeError:
        return f"have only options that redis-py supports for a cluster, got another one; {_EXAMPLES}"
    return None


def _nodes_of(url: str) -> list[str]:
    """The URLs of the nodes that the URL of a cluster names."""
    scheme, _, rest = url.partition("://")
    authority, found, tail = re.fullmatch(r"([^/?#]*)([/?#]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    user, at, hosts = authority.rpartition("@")
    return [f"{scheme.removesuffix(_CLUSTER)}://{user}{at}{host}{found}{tail}" for host in hosts.split(",")]


def _unix_problem(parts: SplitResult) -> str | None:
    if parts.hostname is not None:
        return f"have three slashes before a socket's path, got two; {_EXAMPLES}"
    if parts.path in {"", "/"}:
        return f"have the path of a socket, got none; {_EXAMPLES}"
    return None


def _tcp_problem(parts: SplitResult) -> str | None:
    try:
        # A password with a slash, which ends the host, looks like a port.
        valid = parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        return f"have a port between 1 and 65535, got another one; {_EXAMPLES}, and {_UNENCODED}"
    if not parts.hostname:
        return f"have a host, got none; {_EXAMPLES}, and {_UNENCODED}"
    if not re.fullmatch(r"/?|/[0-9]{1,9}", parts.path):
        return f"end in the number of a database, got something else; {_EXAMPLES}"
    return None


def _option_problem(url: str) -> str | None:
    try:
        pool = aioredis.ConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)  # Only this validates the URL's options.
    except (ValueError, TypeError, AttributeError, RedisError):
        return f"have only options that redis-py supports, got another one or an invalid value; {_EXAMPLES}"
    if pool.max_connections < LEAST_CONNECTIONS:
        return f"allow at least {LEAST_CONNECTIONS} connections (max_connections), got fewer; leave it out for 50"
    for option in ("socket_timeout", "socket_connect_timeout"):
        if (seconds := pool.connection_kwargs.get(option)) is not None and not 0 < float(seconds) < inf:
            return f"have a positive {option}, got another one; leave it out for the default"
    return None


def client_for(url: str) -> AnyRedis:
    """Create a client for the URL of a server or a cluster; it connects when it is first used.

    Args:
        url: As in `check_url`.

    Returns:
        The client, which the caller must close. That of a server is as in `connect`. That of a cluster repeats a
        command once, at the successor of a node that has failed, and serves the other slots when some have no node.

    Raises:
        TypeError: The URL is not a string.
        ValueError: The URL is invalid.
    """
    check_url("redis_url", url)
    return _connect_cluster(url) if url.partition("://")[0].endswith(_CLUSTER) else connect(url)


def connect(url: str) -> aioredis.Redis:
    """Create a client for the URL of one server; it connects when it is first used.

    The client does not retry: an append whose reply was lost may have succeeded, and a retry would store the event
    twice. A caller that finds all connections in use waits for one.

    Args:
        url: As in `check_url`.

    Returns:
        The client, which the caller must close.

    Raises:
        TypeError: The URL is not a string.
        ValueError: The URL is invalid.
    """
    check_url("redis_url", url)
    pool = aioredis.BlockingConnectionPool.from_url(
        url,
        timeout=REPLY_TIMEOUT,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=REPLY_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,  # Otherwise each connection sends CLIENT SETINFO, which needs a permission.
    )
    return aioredis.Redis.from_pool(pool)


def correct_cluster_client(client: AnyRedis) -> AnyRedis:
    """Correct two faults of redis-py's client of Redis Cluster in how it learns the nodes.

    * After a reply that lists no slots it would raise an `IndexError`, and forget the nodes that it can ask again.
    * Before 8.1, slots lead to new objects of nodes that it knows already. Their connections would stay open when it
      learns the nodes again, and when it is closed.

    Args:
        client: The client, which is changed if it is one of a cluster.

    Returns:
        The client.
    """
    if not isinstance(client, aioredis.RedisCluster) or "initialize" in vars(client):
        return client
    initialize, nodes = client.initialize, client.nodes_manager

    async def ask(*args: Any, **options: Any) -> aioredis.RedisCluster:
        asked, slots = dict(nodes.startup_nodes), nodes.slots_cache
        try:
            found = await initialize(*args, **options)
        except IndexError as error:
            nodes.startup_nodes = asked
            msg = "no node serves a slot"
            raise RedisClusterException(msg) from error
        if nodes.slots_cache is not slots:
            for each in {id(each): each for each in nodes.slots_cache.values()}.values():
                each[:] = [nodes.nodes_cache.get(node.name, node) for node in each]
        return found

    client.initialize = ask  # type: ignore[method-assign]
    return client


def _connect_cluster(url: str) -> AnyRedis:
    """Create a client of Redis Cluster.

    Raises:
        TypeError: The URL has an option that this client does not have.
    """
    nodes = [parse_url(node) for node in _nodes_of(url)]
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": REPLY_TIMEOUT,
        **{name: value for name, value in nodes[0].items() if name not in {"host", "port", "db", "connection_class"}},
    }
    client = aioredis.RedisCluster(
        startup_nodes=[ClusterNode(node.get("host", "localhost"), node.get("port", 6379)) for node in nodes],
        ssl=url.partition("://")[0].startswith("rediss"),
        retry=Retry(NoBackoff(), _CLUSTER_ATTEMPTS),
        driver_info=None,
        require_full_coverage=False,
        reinitialize_steps=0,  # Otherwise each few moved slots close all connections, with commands in flight.
        **options,
    )
    return correct_cluster_client(client)


def require_async(client: object) -> None:
    """Refuse a client that is not an asyncio client of redis-py.

    Raises:
        TypeError: The client has another type; the message names the right one.
    """
    if isinstance(client, aioredis.Redis | aioredis.RedisCluster):
        return
    if isinstance(client, redis.Redis | redis.RedisCluster):
        msg = (
            "redis must be an asyncio client, got a synchronous one, which would block the event loop; "
            "use redis.asyncio.Redis with the same arguments"
        )
    else:
        msg = (
            f"redis must be a redis.asyncio.Redis or RedisCluster, got {type(client).__name__}; "
            'pass redis.asyncio.Redis.from_url("redis://host:6379/0"), for example'
        )
    raise TypeError(msg)


def has_spare_connections(client: AnyRedis) -> bool:
    """Whether a client's pool is large enough for connections to be kept out of it while they are idle."""
    pool = getattr(client, "connection_pool", None)
    return bool(getattr(pool, "max_connections", 0) >= SPARE_CONNECTIONS)


def is_cluster(client: AnyRedis) -> bool:
    """Whether a client's keys are on several nodes, any of which may fail alone."""
    return isinstance(client, aioredis.RedisCluster)


def node_of(client: AnyRedis, key: str) -> str:
    """The name of the node of a cluster that serves a key, by the client's map; "" if none is known."""
    if not isinstance(client, aioredis.RedisCluster):
        return ""
    try:
        node = client.get_node_from_key(key)
    except (RedisError, RedisClusterException):
        return ""
    return node.name if node is not None else ""


def require_one_slot(client: AnyRedis, prefix: str) -> None:
    """Refuse keys that a cluster would refuse permanently, since the backlog would retry them forever.

    Raises:
        StoreRejectedError: The client is a cluster client, and the keys under the prefix are not in one slot.
    """
    if isinstance(client, aioredis.RedisCluster) and "{" not in prefix:
        msg = (
            f"key_prefix must put the keys of a root store in one slot of Redis Cluster, got {prefix!r}; "
            'use a hash tag such as "{mcp}:", or the store of a session (for_session)'
        )
        raise StoreRejectedError(msg)


def address_of(client: AnyRedis) -> str:
    """The server address without credentials: `host:port`, a socket's path, or a Sentinel's service."""
    if isinstance(client, aioredis.RedisCluster):
        nodes = client.get_nodes() or client.nodes_manager.startup_nodes.values()  # The latter before it connects.
        return ", ".join(f"{node.host}:{node.port}" for node in nodes) or "a Redis Cluster"
    if isinstance(client.connection_pool, SentinelConnectionPool):  # The Sentinels decide the address.
        return f"the master {client.connection_pool.service_name!r} of Sentinel"
    arguments = client.connection_pool.connection_kwargs
    if path := arguments.get("path"):
        return str(path)
    return f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}"


def kind_of(client: AnyRedis) -> str:
    """The kind of Redis that a client uses."""
    if isinstance(client, aioredis.RedisCluster):
        return "Redis Cluster"
    return "Redis behind Sentinel" if isinstance(client.connection_pool, SentinelConnectionPool) else "Redis"


T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


async def call(operation: str, client: AnyRedis, breaker: CircuitBreaker, function: Callable[[], Awaitable[T]]) -> T:
    """Call Redis, and repeat the call once if a pooled connection was stale. `function` must be idempotent.

    Args:
        operation: As in `map_redis_errors`.
        client: The client.
        breaker: Records the final failure, if any.
        function: Makes the call.

    Raises:
        StoreUnavailableError: Redis was not reached, or did not answer in time.
        StoreRejectedError: Redis answered with an error.
    """
    repeated = False
    while True:
        try:
            with map_redis_errors(operation, client):
                return await function()
        except StoreUnavailableError as error:
            cause = error.__cause__ or error
            reason = failure_reason(cause)
            # Judged now: the call may have begun in an outage that is over.
            closed = breaker.reason is None and not repeated
            if closed and reason is FailureReason.CONNECTION and isinstance(client, aioredis.Redis):
                repeated = True
                await _close_idle(client.connection_pool)
                continue
            if not breaker.unreachable:
                breaker.record_failure(reason, failure_text(cause, client))
            raise


async def _close_idle(pool: aioredis.ConnectionPool) -> None:
    """Close the idle connections of a pool, with no pause in which a caller could take one of them.

    `pool.disconnect` has such a pause: it waits for the end of a connection before it marks the connection as closed.
    """
    for connection in tuple(pool._available_connections):
        await connection.disconnect(nowait=True)


@contextmanager
def map_redis_errors(operation: str, client: AnyRedis) -> Iterator[None]:
    """Limit an operation in time and map the client's errors to ours.

    The messages contain the address of Redis, and nothing that was sent to it.

    Args:
        operation: The operation in the message: "append to", "read from", …
        client: The client.

    Raises:
        StoreUnavailableError: Redis was not reached, or did not answer in time.
        StoreRejectedError: Redis answered with an error.
    """
    try:
        with keep_cancellation(), anyio.fail_after(ANSWER_TIMEOUT):
            yield
    except (RedisError, RedisClusterException, OSError) as error:
        failed = f"could not {operation} Redis at {address_of(client)}"
        raise _store_error(error, failed, tls=_uses_tls(client)) from error
    except _MISREAD as error:
        if _module_of(error) in _REPLY_PARSERS:
            unexpected = UnexpectedReplyError(command="a command")
            failed = f"could not {operation} Redis at {address_of(client)}"
            raise _store_error(unexpected, failed, tls=False) from error
        if not raised_by_closed_connection(error):
            raise
        closed = RedisConnectionError("the connection was closed during the call")
        closed.__cause__ = error
        msg = f"could not {operation} Redis at {address_of(client)}: the connection was closed during the call"
        raise StoreUnavailableError(msg) from closed


_MISREAD = (AttributeError, LookupError, TypeError, ValueError)
"""The errors of code that reads a reply of another form than it expects."""
_REPLY_PARSERS = ("redis._parsers.helpers", "redis._parsers.response_callbacks")
"""The modules of redis-py that convert replies."""


class UnexpectedReplyError(ResponseError):
    """Redis answered a command with a reply of another form.

    Args:
        command: The command.
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"{command} with an unexpected reply")


@contextmanager
def parsing(command: str) -> Iterator[None]:
    """Convert the errors of code that reads a reply of another form, such as that of a proxy.

    Args:
        command: The command in the message.

    Raises:
        UnexpectedReplyError: The reply has another form.
    """
    try:
        yield
    except _MISREAD as error:
        if raised_by_closed_connection(error):
            raise
        raise UnexpectedReplyError(command) from error


def raised_by_closed_connection(error: BaseException) -> bool:
    """Whether an error is one that a connection causes that was closed while a call used it.

    redis-py raises it if another task has closed the connection, and asyncio in Python 3.12, and 3.13 up to 3.13.5, if
    the server has.
    """
    if not isinstance(error, AttributeError | TypeError):
        return False
    module = _module_of(error)
    return (module.startswith("redis.") and module not in _REPLY_PARSERS) or module == "asyncio.selector_events"


def _module_of(error: BaseException) -> str:
    """The name of the module that raised an error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return "" if frame is None else str(frame.tb_frame.f_globals.get("__name__", ""))


TRANSIENT_CODES = frozenset({"BUSY", "MISCONF", "NOREPLICAS", "UNKILLABLE"})
"""Error codes, without an exception class in redis-py, after which the same command may succeed later."""


def is_refusal(error: BaseException) -> bool:
    """Whether Redis refused the command itself, and would refuse it again."""
    error = _cause_of(error)
    # redis-py has subclasses for LOADING, READONLY, OOM, TRYAGAIN, CLUSTERDOWN, NOPERM and the like, and none for ERR.
    return type(error) is ResponseError and str(error).partition(" ")[0] not in TRANSIENT_CODES


def is_permanent(error: StoreError) -> bool:
    """Whether Redis would refuse the same call again. It would not after READONLY, OOM or CLUSTERDOWN, for example."""
    cause = error.__cause__
    return cause is not None and (is_refusal(cause) or failure_reason(cause) is FailureReason.AUTH)


def failure_text(error: BaseException, client: AnyRedis) -> str:
    """Describe a failure for logs: with the address, without arguments of the command."""
    error = _cause_of(error)
    if isinstance(error, RedisTimeoutError | TimeoutError):
        text = "no reply in time"
    elif isinstance(error, ResponseError):
        # The error for an unknown command repeats its arguments, the payload among them.
        text = f"replied {str(error).partition(', with args')[0]}"
        text += f"; {_NO_HELLO}" if "HELLO" in text else ""
    elif isinstance(error, RedisError | RedisClusterException | OSError) and str(error):
        text = str(error)
    else:
        text = "the connection was closed"
    return f"Redis at {address_of(client)}: {text}"


def failure_reason(error: BaseException) -> FailureReason:
    """Classify an error of the client or of Redis."""
    error = _cause_of(error)
    if isinstance(error, RedisConnectionError) and isinstance(error.__cause__, RedisError):
        error = error.__cause__
    for kinds, reason in _FAILURE_REASONS:
        if isinstance(error, kinds):
            return reason
    if isinstance(error, RedisConnectionError):
        # The error of an exhausted blocking pool.
        return FailureReason.POOL if str(error).startswith("No connection available") else FailureReason.CONNECTION
    if isinstance(error, ResponseError):
        code = str(error).partition(" ")[0]
        return FailureReason.BUSY if code == "BUSY" else FailureReason.OTHER
    if isinstance(error, OSError) or raised_by_closed_connection(error):
        return FailureReason.CONNECTION
    return FailureReason.OTHER


_FAILURE_REASONS: tuple[tuple[tuple[type[BaseException], ...], FailureReason], ...] = (
    ((RedisTimeoutError, TimeoutError), FailureReason.TIMEOUT),
    ((MaxConnectionsError,), FailureReason.POOL),
    ((BusyLoadingError,), FailureReason.LOADING),
    ((ReadOnlyError,), FailureReason.READONLY),
    ((OutOfMemoryError,), FailureReason.OOM),
    ((NoScriptError,), FailureReason.NOSCRIPT),
    ((AuthenticationError, AuthorizationError, NoPermissionError), FailureReason.AUTH),
)


def _cause_of(error: E) -> E | RedisError | OSError:
    """The error that another error wraps; the error itself if it wraps none.

    A cluster client wraps the error of the last node that it tried to connect to. Before Redis 7.0 the error of a
    command within a script begins with the position in the script, where redis-py expects the code.
    """
    if isinstance(error, RedisClusterException) and isinstance(error.__cause__, RedisError | OSError):
        return error.__cause__
    if type(error) is ResponseError and (found := _IN_SCRIPT.match(str(error))):
        kind = _KINDS.get(found[1])
        return kind(found[2]) if kind else ResponseError(f"{found[1]} {found[2]}")
    return error


_IN_SCRIPT = re.compile(r".*@user_script: ?[0-9]+: -?([A-Z]{2,}) (.+)", re.DOTALL)
_KINDS: Mapping[str, type[RedisError]] = {
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "MASTERDOWN": MasterDownError,
}
"""The classes of redis-py for the errors that a command within a script can have."""


def _uses_tls(client: AnyRedis) -> bool:
    if isinstance(client, aioredis.RedisCluster):
        return client.connection_kwargs.get("connection_class") is aioredis.SSLConnection
    pool = getattr(client, "connection_pool", None)
    return issubclass(getattr(pool, "connection_class", object), aioredis.SSLConnection)


_NO_HELLO = "run Redis 6.2 or later, or Valkey; behind a proxy without RESP3 write ?protocol=2 in the URL"
"""The fix for a server without HELLO, the first command of a connection."""
_UNAUTHENTICATED = ("NOAUTH", "Authentication required", "HELLO must be called with the client already authenticated")
"""The beginnings of errors that a client without a password receives."""


def _store_error(error: RedisError | RedisClusterException | OSError, failed: str, *, tls: bool) -> StoreError:
    """Convert an error of the client into a `StoreError`, with the remedy where the URL is likely to be wrong."""
    error = _cause_of(error)
    if isinstance(error, RedisConnectionError) and isinstance(error.__cause__, AuthenticationError | ResponseError):
        error = error.__cause__  # redis-py wraps the errors that Redis sends during the connection handshake.
    if isinstance(error, RedisTimeoutError | TimeoutError):
        fix = "check its host and port, and whether it is blocked (SLOWLOG GET)"
        if tls and "connecting" in str(error):  # A port without TLS takes the handshake for an incomplete command.
            fix = "if this port has no TLS, write redis:// in the URL"
        return StoreUnavailableError(f"{failed}: no answer in time; {fix}")
    if isinstance(error, AuthenticationError):
        if str(error).startswith(_UNAUTHENTICATED):
            return StoreRejectedError(
                f"{failed}: it requires a password; add user:password@ before the host in the URL"
            )
        return StoreRejectedError(f"{failed}: it refused the user name or password; correct them in the URL")
    if isinstance(error, ResponseError):
        # The error for an unknown command repeats its arguments, the payload among them.
        kind = WrongTypeError if str(error).startswith("WRONGTYPE") else StoreRejectedError
        return kind(f"{failed}: {_answer_of(error)}")
    if isinstance(error, RedisConnectionError | OSError):
        return StoreUnavailableError(f"{failed}: {_connection_problem(error, tls=tls)}")
    if isinstance(error, InvalidResponse):
        problem = "its reply is not in the protocol of Redis; correct its host and port, or the proxy, in the URL"
    else:  # For example, an unreachable cluster.
        fix = "write redis:// in the URL" if _NO_CLUSTER in str(error) else "check the nodes: redis-cli --cluster check"
        problem = f"{type(error).__name__}: {error}; {fix}"
    return StoreUnavailableError(f"{failed}: {problem}")


_NO_CLUSTER = "Cluster mode is not enabled"


def _answer_of(error: ResponseError) -> str:
    """Describe an error reply of Redis, with the fix if the URL or the permissions of its user are wrong."""
    if isinstance(error, MovedError):
        return "it is a node of Redis Cluster; write redis+cluster:// in the URL"
    answered = f"it answered {str(error).partition(', with args')[0]}"
    fix = ""
    if isinstance(error, UnexpectedReplyError):
        fix = "if it is a proxy, write the URL of Redis itself"
    elif "HELLO" in answered:
        fix = _NO_HELLO
    elif isinstance(error, NoPermissionError):
        fix = "grant it to the user in the URL (mcp-eventscope doctor prints the ACL of a worker)"
    elif isinstance(error, ReadOnlyError):
        fix = "use the URL of the primary"
    elif isinstance(error, MasterDownError):
        fix = "use the URL of the primary, or set replica-serve-stale-data yes"
    elif "unknown command" in answered:
        fix = "write the URL of Redis 6.2 or later, or Valkey, not of a proxy that refuses commands"
    elif "DB index is out of range" in answered:
        fix = "write a lower number at the end of the URL, such as /0"
    return f"{answered}; {fix}" if fix else answered


def _connection_problem(error: RedisConnectionError | OSError, *, tls: bool) -> str:
    """Describe why a connection failed, with the fix."""
    text = str(error).rstrip(". ")
    causes = (error, error.__cause__, error.__context__)
    fix = ""
    if not tls and ("closed by" in text or "reset by peer" in text):
        fix = "if this port has TLS, write rediss:// in the URL"
    elif "max number of clients" in text:
        fix = "raise maxclients, or close connections of other clients (CLIENT LIST)"
    elif any(isinstance(each, BusyLoadingError) for each in causes):
        fix = "wait until it has loaded its data"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        fix = "pass the file of its CA in the URL (?ssl_ca_certs=…), and a host that the certificate names"
    elif any(each in text for each in _PLAIN_ANSWERS):
        fix = "if this port has no TLS, write redis:// in the URL"
    elif tls and any(isinstance(each, FileNotFoundError | PermissionError | ssl.SSLError) for each in causes):
        fix = "correct the files in the URL: ssl_ca_certs, ssl_certfile and ssl_keyfile"
    elif any(isinstance(each, NotADirectoryError) for each in causes):
        fix = "correct the path in the URL; a database is written ?db=1"
    elif any(isinstance(each, socket.gaierror) for each in causes):
        fix = "correct the host in the URL"
    elif any(isinstance(each, ConnectionRefusedError | FileNotFoundError) for each in causes):
        fix = "start Redis, or correct its address in the URL"
    return f"{text}; {fix}" if fix else text


_PLAIN_ANSWERS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""Errors of a TLS handshake with a port that answers without TLS."""
