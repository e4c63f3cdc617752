"""Errors of the Redis client become store errors, with an address and without credentials."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest
import redis.exceptions
from redis import asyncio as aioredis

from mcp_eventscope.errors import StoreError, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.circuit_breaker import CircuitBreaker
from mcp_eventscope.redis.client import (
    address_of,
    call,
    client_for,
    connect,
    failure_reason,
    failure_text,
    is_refusal,
    map_redis_errors,
)
from mcp_eventscope.redis.observers import Observers
from mcp_eventscope.store.events import FailureReason, StoreDegraded, StoreEvent, StoreRecovered

pytestmark = pytest.mark.anyio

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "",
        PASSWORD,
        f"http://:{PASSWORD}@localhost",
        f"redis:/:{PASSWORD}@localhost",
        f"redis://:{PASSWORD}@localhost:port",
        f"redis://:{PASSWORD}@[::1",
        f"redis://:{PASSWORD}@localhost:99999999999",
        f"redis://:{PASSWORD}@localhost?socket_timeout=abc",
        f"valkey://:{PASSWORD}@localhost",
        f"redis+cluster://:{PASSWORD}@localhost,localhost:port",
        "redis://",
        "redis+cluster://",
    ],
)
def test_connect_with_invalid_url_does_not_repeat_it(url: str) -> None:
    """The error leaves out the URL, which may contain a password."""
    with pytest.raises(ValueError, match="write redis://host:6379/0") as caught:
        client_for(url)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "mistake"),
    [
        (f"http://:{PASSWORD}@db", "begin with redis://, rediss:// or unix://, got http://; "),
        (f"valkey://:{PASSWORD}@db", "begin with redis://, rediss:// or unix://, got valkey://; "),
        (f"redis:/:{PASSWORD}@db", "begin with redis://, rediss:// or unix://, got no scheme; "),
        (f"redis://:{PASSWORD}@db/mydb", "end in the number of a database, got something else; "),
        (f"redis://:{PASSWORD}@db/1/2", "end in the number of a database, got something else; "),
        (f"redis://:{PASSWORD}@db/-1", "end in the number of a database, got something else; "),
        (f"redis://:{PASSWORD}@db:port/0", "have a port between 1 and 65535, got another one; "),
        (f"redis://:{PASSWORD}@db:0/0", "have a port between 1 and 65535, got another one; "),
        (f"redis://:{PASSWORD}@db:65536/0", "have a port between 1 and 65535, got another one; "),
        (f"redis://:{PASSWORD}/0", "have a port between 1 and 65535, got another one; "),
        (f"redis://:{PASSWORD}@/0", "have a host, got none; "),
        (f"redis://:{PASSWORD}@:6379/0", "have a host, got none; "),
        (f"redis://:{PASSWORD}@[::1/0", "have a valid host, got brackets that do not match; "),
        (f"redis://:6/{PASSWORD}@db/0", "have no / ? or # in the user name and password, got one; "),
        (f"redis://user:6?{PASSWORD}@db/0", "have no / ? or # in the user name and password, got one; "),
        (f"redis://user:6?@{PASSWORD}/0", "have no / ? or # in the user name and password, got one; "),
        (f"redis://user:a\t{PASSWORD}@db/0", "have no tab or line break, got one; "),
        (f"redis://user:[{PASSWORD}@db/0", "have a valid host, got brackets that do not match; "),
        (f"redis://db/0#{PASSWORD}", "have no / ? or # in the user name and password, got one; "),
        ("unix://", "have the path of a socket, got none; "),
        (f"unix://:{PASSWORD}@/", "have the path of a socket, got none; "),
        ("unix://run/valkey.sock", "have three slashes before a socket's path, got two; "),
        (f"redis://:{PASSWORD}@db?sockettimeout=1", "have only options that redis-py supports, got another one or an "),
        (f"redis://:{PASSWORD}@db?db=x", "have only options that redis-py supports, got another one or an "),
        (f"redis+cluster://:{PASSWORD}@db,:6380", "have a host, got none; "),
        (f"redis+cluster://:{PASSWORD}@db,db:port", "have a port between 1 and 65535, got another one; "),
        (f"redis+cluster://:{PASSWORD}@db/1", "have no database in a URL of Redis Cluster, got one; "),
        (f"redis+cluster://:{PASSWORD}@db?db=1", "have no database in a URL of Redis Cluster, got one; "),
        (f"redis+cluster://:{PASSWORD}@db?x=1", "have only options that redis-py supports, got another one or an "),
        (
            f"redis+cluster://:{PASSWORD}@db?retry_on_timeout=1",
            "have only options that redis-py supports for a cluster",
        ),
        (f'"redis://:{PASSWORD}@db"', "begin with redis://, rediss:// or unix://, got a quotation mark; "),
        (f" redis://:{PASSWORD}@db", "begin with redis://, rediss:// or unix://, got a space; "),
        (f"REDIS://:{PASSWORD}@db", "begin with redis://, rediss:// or unix://, got REDIS://; "),
        (
            f"redis+sentinel://:{PASSWORD}@db/main",
            "begin with redis://, rediss:// or unix://, got redis+sentinel://; pass redis= to EventScope",
        ),
        (f"unix+cluster://:{PASSWORD}@db", "begin with redis://, rediss:// or unix://, got unix+cluster://; "),
    ],
)
def test_connect_with_invalid_url_names_the_mistake(url: str, mistake: str) -> None:
    """redis-py would use localhost or database 0 instead of most of these parts."""
    with pytest.raises(ValueError, match=f"^redis_url must {re.escape(mistake)}") as caught:
        client_for(url)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "database"),
    [("redis://db/", 0), ("redis://[::1]:1/15", 15), ("redis://db?db=7", 7), ("unix:///a.sock?db=2", 2)],
)
def test_connect_with_valid_url_uses_its_database(url: str, database: int) -> None:
    """The number of the database may be left out, or be an option."""
    assert connect(url).connection_pool.connection_kwargs.get("db", 0) == database


def test_client_for_the_url_of_a_cluster_knows_its_nodes_and_options() -> None:
    """All nodes have one user, TLS and options; a node without a port has the default."""
    client = client_for(f"rediss+cluster://me:{PASSWORD}@a,b:7001,[::1]:7002/?max_connections=9&socket_timeout=3")
    assert isinstance(client, aioredis.RedisCluster)
    assert set(client.nodes_manager.startup_nodes) == {"a:6379", "b:7001", "::1:7002"}
    options = client.get_connection_kwargs()
    assert (options["username"], options["password"]) == ("me", PASSWORD)
    assert (options["socket_timeout"], options["max_connections"]) == (3, 9)
    assert options["connection_class"] is aioredis.SSLConnection
    assert not isinstance(client_for("redis://db"), aioredis.RedisCluster)


@pytest.mark.parametrize(
    ("scheme", "raised", "hint"),
    [
        ("rediss", redis.exceptions.TimeoutError("Timeout connecting to server"), "has no TLS, write redis:// in"),
        ("redis", redis.exceptions.ConnectionError("Connection closed by server."), "has TLS, write rediss:// in"),
        (
            "redis",
            redis.exceptions.AuthenticationError("Authentication required."),
            "requires a password; add user:password@",
        ),
        ("redis", redis.exceptions.AuthenticationError("invalid username-password pair"), "; correct them in the URL"),
        (
            "redis",
            redis.exceptions.TimeoutError("Timeout connecting to server"),
            "no answer in time; check its host and port",
        ),
        ("rediss", redis.exceptions.ConnectionError("Connection closed by server."), "closed by server$"),
        (
            "rediss",
            redis.exceptions.TimeoutError("Timeout reading from db:1"),
            "no answer in time; check its host and port",
        ),
        (
            "redis",
            redis.exceptions.MovedError("1 db:2"),
            r"a node of Redis Cluster; write redis\+cluster:// in the URL",
        ),
        ("redis", redis.exceptions.ConnectionError("Connection reset by peer"), "has TLS, write rediss:// in the URL"),
        ("rediss", redis.exceptions.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "pass the file of its CA in"),
        (
            "rediss",
            redis.exceptions.ConnectionError("[SSL: WRONG_VERSION_NUMBER]"),
            "has no TLS, write redis:// in the",
        ),
        ("redis", redis.exceptions.ResponseError("DB index is out of range"), "write a lower number at the end of the"),
        ("redis", redis.exceptions.ReadOnlyError("You can't write"), "use the URL of the primary"),
        ("redis", redis.exceptions.NoPermissionError("no permissions"), "grant it to the user in the URL"),
        (
            "redis",
            redis.exceptions.RedisClusterException("Cluster mode is not enabled on this node"),
            "write redis:// in the URL",
        ),
    ],
)
async def test_error_of_a_wrong_url_names_the_fix(scheme: str, raised: Exception, hint: str) -> None:
    """Each symptom of a wrong URL has the change that ends it, and only where it may be wrong."""
    client = connect(f"{scheme}://:{PASSWORD}@db:1")
    with pytest.raises(StoreError, match=rf"^could not reach Redis at db:1: .*{hint}") as caught:  # noqa: SIM117
        with map_redis_errors("reach", client):
            raise raised
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (f"redis://user:{PASSWORD}@db.example:6380/3", "db.example:6380"),
        (f"rediss://:{PASSWORD}@db.example", "db.example:6379"),
        (f"unix://user:{PASSWORD}@/run/valkey.sock", "/run/valkey.sock"),
        ("redis://localhost", "localhost:6379"),
    ],
)
def test_address_of_url_has_no_credential(url: str, address: str) -> None:
    """A client's address in messages is its host and port, or its socket."""
    assert address_of(connect(url)) == address


def test_address_of_client_made_without_url_has_no_credential() -> None:
    """Clients made by hand are named alike."""
    assert address_of(aioredis.Redis(host="db", port=1, username="user", password=PASSWORD)) == "db:1"
    assert address_of(aioredis.Redis(unix_socket_path="/a.sock", password=PASSWORD)) == "/a.sock"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (redis.exceptions.TimeoutError("late"), StoreUnavailableError),
        (TimeoutError(), StoreUnavailableError),
        (redis.exceptions.ConnectionError("refused"), StoreUnavailableError),
        (redis.exceptions.BusyLoadingError("loading"), StoreUnavailableError),
        (redis.exceptions.MaxConnectionsError("too many"), StoreUnavailableError),
        (ConnectionResetError("reset"), StoreUnavailableError),
        (redis.exceptions.RedisError("other"), StoreUnavailableError),
        (redis.exceptions.ResponseError("WRONGTYPE"), StoreRejectedError),
        (redis.exceptions.ReadOnlyError("READONLY"), StoreRejectedError),
        (redis.exceptions.OutOfMemoryError("OOM"), StoreRejectedError),
        (redis.exceptions.NoPermissionError("NOPERM"), StoreRejectedError),
        (redis.exceptions.AuthenticationError(f"bad {PASSWORD}"), StoreRejectedError),
        (redis.exceptions.AuthenticationWrongNumberOfArgsError("ERR"), StoreRejectedError),
    ],
)
async def test_redis_error_is_mapped_to_a_store_error(raised: Exception, expected: type[StoreError]) -> None:
    """Each error of the client becomes one of two of ours, with operation and address and no credential."""
    client = aioredis.Redis(host="db", password=PASSWORD)
    with pytest.raises(expected, match="could not reach Redis at db:6379") as caught, map_redis_errors("reach", client):
        raise raised
    assert caught.value.__cause__ is raised
    assert PASSWORD not in str(caught.value)


async def test_unknown_command_error_leaves_out_the_payload() -> None:
    """Redis repeats the arguments of an unknown command; the message leaves them out."""
    answer = "unknown command 'EVALSHA', with args beginning with: 'f3a' '1' 'mcp:counter' '{\"secret\":1}'"
    with (
        pytest.raises(StoreRejectedError, match="it answered unknown command 'EVALSHA'") as caught,
        map_redis_errors("append to", aioredis.Redis()),
    ):
        raise redis.exceptions.ResponseError(answer)
    assert "secret" not in str(caught.value)


async def test_error_of_another_library_passes_unchanged() -> None:
    """An error that is not the client's passes unchanged."""
    with pytest.raises(ZeroDivisionError), map_redis_errors("reach", aioredis.Redis()):
        raise ZeroDivisionError


REFUSALS = [
    (redis.exceptions.ResponseError("ERR max request size exceeded"), True),
    (redis.exceptions.ResponseError("WRONGTYPE Operation against a key"), True),
    (redis.exceptions.ResponseError("unknown command 'EVALSHA'"), True),
    (redis.exceptions.ResponseError("BUSY Redis is busy running a script"), False),
    (redis.exceptions.ResponseError("MISCONF Redis is configured to save"), False),
    (redis.exceptions.ResponseError("NOREPLICAS Not enough good replicas"), False),
    (redis.exceptions.ResponseError("UNKILLABLE Sorry"), False),
    (redis.exceptions.BusyLoadingError("LOADING"), False),
    (redis.exceptions.ReadOnlyError("READONLY"), False),
    (redis.exceptions.OutOfMemoryError("OOM"), False),
    (redis.exceptions.NoScriptError("NOSCRIPT"), False),
    (redis.exceptions.NoPermissionError("NOPERM"), False),
    (redis.exceptions.TryAgainError("TRYAGAIN"), False),
    (redis.exceptions.ClusterDownError("CLUSTERDOWN"), False),
    (redis.exceptions.ConnectionError("ERR no reply"), False),
    (redis.exceptions.TimeoutError("ERR late"), False),
    (OSError("ERR"), False),
]


@pytest.mark.parametrize(("error", "refused"), REFUSALS, ids=lambda value: str(value)[:30])
def test_refusal_concerns_the_command_only(error: Exception, *, refused: bool) -> None:
    """A refusal would meet the same command again; a server or connection state is none."""
    assert is_refusal(error) is refused


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (redis.exceptions.TimeoutError("Timeout reading from db"), "no reply in time"),
        (TimeoutError(), "no reply in time"),
        (redis.exceptions.ResponseError("OOM command not allowed"), "replied OOM command not allowed"),
        (
            redis.exceptions.ResponseError("unknown command 'X', with args beginning with: 'secret'"),
            "replied unknown command 'X'",
        ),
        (redis.exceptions.ConnectionError("Error 111 connecting to db:6379."), "Error 111 connecting to db:6379."),
        (redis.exceptions.ConnectionError(), "the connection was closed"),
        (ConnectionResetError(), "the connection was closed"),
        (AttributeError("'NoneType' object has no attribute 'writelines'"), "the connection was closed"),
    ],
)
def test_failure_text_names_the_address(error: Exception, text: str) -> None:
    """The text describes the failure and its place, without the command or the client's internals."""
    assert failure_text(error, aioredis.Redis(host="db", password=PASSWORD)) == f"Redis at db:6379: {text}"


async def ended_and(cancel: Callable[[], object], error: Exception | None) -> str:
    """Wait as redis-py does for a reply or an error, and be cancelled in the turn of the loop in which it arrives."""
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[str] = loop.create_future()
    loop.call_soon(*((reply.set_result, "reply") if error is None else (reply.set_exception, error)))
    loop.call_soon(cancel)
    return await asyncio.wait_for(reply, 60)


class TestCall:
    """Calls that may be made twice."""

    @pytest.fixture
    def facts(self) -> list[StoreEvent]:
        """The reported facts."""
        return []

    @pytest.fixture
    def breaker(self, facts: list[StoreEvent]) -> CircuitBreaker:
        """A closed circuit."""
        observers = Observers()
        observers.subscribe(facts.append)
        return CircuitBreaker(0.25, observers)

    async def test_call_on_a_stale_connection_is_retried(
        self, breaker: CircuitBreaker, facts: list[StoreEvent]
    ) -> None:
        """A pooled connection that broke in a restart is replaced, and the call made again."""
        errors: list[Exception] = [redis.exceptions.ConnectionError("closed by server")]
        assert await call("read from", aioredis.Redis(), breaker, failing(errors)) == "reply"
        assert facts == []

    @pytest.mark.parametrize("error", [None, redis.exceptions.ConnectionError("refused")])
    async def test_call_cancelled_as_it_ends_is_cancelled(
        self, breaker: CircuitBreaker, facts: list[StoreEvent], error: Exception | None
    ) -> None:
        """On Python 3.11 `asyncio.wait_for`, which redis-py calls, swallows such a cancellation."""

        async def function() -> str:
            task = asyncio.current_task()
            assert task is not None
            return await ended_and(task.cancel, error)

        calling = asyncio.create_task(call("read from", aioredis.Redis(), breaker, function))
        await asyncio.wait({calling})
        assert calling.cancelled()
        assert facts == []

    @pytest.mark.parametrize("error", [None, redis.exceptions.ResponseError("refused")])
    async def test_call_in_a_scope_cancelled_as_it_ends_ends_with_the_scope(
        self, breaker: CircuitBreaker, error: Exception | None
    ) -> None:
        """The task continues behind the scope."""

        async def calling() -> str:
            with anyio.CancelScope() as scope, suppress(StoreError):
                await call("read from", aioredis.Redis(), breaker, lambda: ended_and(scope.cancel, error))
            await anyio.lowlevel.checkpoint()
            return "behind"

        assert await asyncio.create_task(calling()) == "behind"

    async def test_call_that_outlasts_an_outage_on_a_stale_connection_is_retried(
        self, breaker: CircuitBreaker, facts: list[StoreEvent]
    ) -> None:
        """It began while the circuit was open; its failure is no second outage."""
        breaker.record_failure(FailureReason.CONNECTION, "")
        outcomes = ["broken", "reply"]

        async def function() -> str:
            if (outcome := outcomes.pop(0)) == "broken":
                breaker.record_success(0.001)
                raise redis.exceptions.ConnectionError(outcome)
            return outcome

        assert await call("read from", aioredis.Redis(), breaker, function) == "reply"
        assert [type(fact) for fact in facts] == [StoreDegraded, StoreRecovered]

    async def test_call_that_fails_twice_opens_the_circuit(
        self, breaker: CircuitBreaker, facts: list[StoreEvent]
    ) -> None:
        """The outage is reported once, with its reason and place."""
        errors: list[Exception] = [redis.exceptions.ConnectionError("refused") for _ in range(2)]
        with pytest.raises(StoreUnavailableError, match="could not read from Redis at db:6379: refused"):
            await call("read from", aioredis.Redis(host="db"), breaker, failing(errors))
        assert facts == [StoreDegraded(reason=FailureReason.CONNECTION, error="Redis at db:6379: refused")]

    async def test_call_on_an_open_circuit_is_not_retried(
        self, breaker: CircuitBreaker, facts: list[StoreEvent]
    ) -> None:
        """While Redis is known to be unreachable, a broken connection is expected."""
        breaker.record_failure(FailureReason.TIMEOUT, "")
        errors: list[Exception] = [redis.exceptions.ConnectionError("refused") for _ in range(2)]
        with pytest.raises(StoreUnavailableError):
            await call("read from", aioredis.Redis(), breaker, failing(errors))
        assert len(errors) == 1
        assert breaker.reason is FailureReason.TIMEOUT
        assert len(facts) == 1

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (redis.exceptions.TimeoutError("late"), FailureReason.TIMEOUT),
            (redis.exceptions.BusyLoadingError("LOADING"), FailureReason.LOADING),
        ],
    )
    async def test_call_that_times_out_is_not_retried(
        self, breaker: CircuitBreaker, facts: list[StoreEvent], error: Exception, reason: FailureReason
    ) -> None:
        """The caller has waited already."""
        errors = [error, error]
        with pytest.raises(StoreUnavailableError):
            await call("read from", aioredis.Redis(), breaker, failing(errors))
        assert len(errors) == 1
        assert breaker.reason is reason
        assert len(facts) == 1

    async def test_call_that_redis_rejects_is_not_an_outage(
        self, breaker: CircuitBreaker, facts: list[StoreEvent]
    ) -> None:
        """A rejection is a reply of Redis."""
        with pytest.raises(StoreRejectedError):
            await call("read from", aioredis.Redis(), breaker, failing([redis.exceptions.ResponseError("ERR no")]))
        assert facts == []


def failing(errors: list[Exception]) -> Callable[[], Awaitable[str]]:
    """A call that raises these errors, one after the other, and then succeeds."""

    async def function() -> str:
        if errors:
            raise errors.pop(0)
        return "reply"

    return function


async def test_cluster_that_cannot_be_reached_has_the_error_of_a_node() -> None:
    """The client of a cluster wraps it, and knows no node yet."""
    client = client_for(f"rediss+cluster://:{PASSWORD}@db:1,db:2")
    assert address_of(client) == "db:1, db:2"
    error = redis.exceptions.RedisClusterException("Redis Cluster cannot be connected")
    error.__cause__ = redis.exceptions.TimeoutError("Timeout connecting to server")
    assert failure_reason(error) is FailureReason.TIMEOUT
    with pytest.raises(StoreUnavailableError, match="Redis at db:1, db:2: no answer in time; if this port has no TLS"):  # noqa: SIM117
        with map_redis_errors("reach", client):
            raise error


@pytest.mark.parametrize(
    ("text", "reason", "refusal"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", FailureReason.OOM, False),
        ("READONLY You can't write against a read only replica.", FailureReason.READONLY, False),
        ("MISCONF Redis is configured to save RDB snapshots", FailureReason.OTHER, False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", FailureReason.OTHER, True),
    ],
)
def test_error_in_a_script_of_redis_6_is_that_of_a_command(text: str, reason: FailureReason, *, refusal: bool) -> None:
    """Both forms of Redis 6.2; an event that was taken for refused would be lost."""
    client = connect("redis://db:1")
    for before in ("@user_script: 106: -", "Error running script (call to f_0a): @user_script:1: @user_script: 1: -"):
        error = redis.exceptions.ResponseError(before + text)
        assert (failure_reason(error), is_refusal(error)) == (reason, refusal)
        assert "@user_script" not in failure_text(error, client)
