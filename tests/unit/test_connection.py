import pytest
import redis.exceptions
from redis import asyncio as aioredis

from mcp_eventscope.errors import StoreError, StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.connection import address_of, connect, told_as

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
    ],
)
def test_url_that_cannot_be_read(url: str) -> None:
    """A bad URL is told without being repeated, for it may hold a password."""
    with pytest.raises(ValueError, match="write redis://host:6379/0") as caught:
        connect(url)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (f"redis://user:{PASSWORD}@db.example:6380/3", "db.example:6380"),
        (f"rediss://:{PASSWORD}@db.example", "db.example:6379"),
        (f"unix://user:{PASSWORD}@/run/valkey.sock", "/run/valkey.sock"),
        ("redis://", "localhost:6379"),
    ],
)
def test_address_has_no_credential(url: str, address: str) -> None:
    """What a client is called in messages is where it connects to, and nothing else."""
    assert address_of(connect(url)) == address


def test_address_of_a_client_made_by_hand() -> None:
    """Clients that were not made from a URL are named alike."""
    assert address_of(aioredis.Redis(host="db", port=1, username="user", password=PASSWORD)) == "db:1"
    assert address_of(aioredis.Redis(unix_socket_path="/a.sock", password=PASSWORD)) == "/a.sock"


@pytest.mark.parametrize(
    ("raised", "told"),
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
async def test_errors_are_told(raised: Exception, told: type[StoreError]) -> None:
    """Each error of the client is one of two of ours, with the operation and the place, and no credential."""
    client = aioredis.Redis(host="db", password=PASSWORD)
    with pytest.raises(told, match="could not reach Redis at db:6379") as caught, told_as("reach", client):
        raise raised
    assert caught.value.__cause__ is raised
    assert PASSWORD not in str(caught.value)


async def test_unknown_command_does_not_repeat_the_payload() -> None:
    """Redis repeats the arguments of a command that was renamed or disabled; the message leaves them out."""
    answer = "unknown command 'EVALSHA', with args beginning with: 'f3a' '1' 'mcp:counter' '{\"secret\":1}'"
    with (
        pytest.raises(StoreRejectedError, match="it answered unknown command 'EVALSHA'") as caught,
        told_as("append to", aioredis.Redis()),
    ):
        raise redis.exceptions.ResponseError(answer)
    assert "secret" not in str(caught.value)


async def test_other_errors_pass() -> None:
    """What is no error of the client is none of ours to tell."""
    with pytest.raises(ZeroDivisionError), told_as("reach", aioredis.Redis()):
        raise ZeroDivisionError
