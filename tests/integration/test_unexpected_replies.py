"""Replies of a form that Redis never sends, as of a proxy: each command reports them, and none ends in a traceback."""

import json
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from mcp_eventscope import RedisEventStore, StoreRejectedError
from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.inspection import Inspector
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.sessions import event_ids
from mcp_eventscope.store.coordination import NewRecord
from support.proxy import Proxy, proxy_in_thread
from support.session_producers import SessionProducer
from support.valkeys import own_valkey
from support.waiting import CEILING

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ALWAYS = 1_000
"""More commands than a run of one sends."""
TTL = 600
REPLIES = {
    "nil": b"_\r\n",
    "integer": b":1\r\n",
    "simple string": b"+OK\r\n",
    "bytes": b"$4\r\n\xff\xfe12\r\n",
    "empty array": b"*0\r\n",
    "array of an integer": b"*1\r\n:1\r\n",
    "array of nils": b"*2\r\n_\r\n_\r\n",
    "array of texts": b"*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "array of arrays": b"*2\r\n*0\r\n*1\r\n:1\r\n",
}
TEXTS = {"nil", "simple string", "bytes"}
ARRAYS = {"empty array", "array of texts"}
DOCTOR = ("doctor",)
SHOW = ("sessions", "show", "s")
COMMANDS: tuple[tuple[tuple[str, ...], str, set[str]], ...] = (
    (DOCTOR, "PING", set()),
    (DOCTOR, "TIME", set()),
    (DOCTOR, "INFO", set()),
    (DOCTOR, "EVAL", {"empty array"}),
    (DOCTOR, "EVALSHA", set()),
    (DOCTOR, "PUBLISH", {"integer"}),
    (DOCTOR, "SUBSCRIBE", {"nil", "empty array"}),  # As if no message had arrived.
    (DOCTOR, "GET", TEXTS),
    (("workers",), "SCAN", set()),
    (("workers",), "PTTL", {"integer"}),
    (("workers",), "XLEN", {"integer"}),
    (("sessions", "list"), "TIME", set()),
    (("sessions", "list"), "HMGET", set()),
    (("sessions", "list"), "HKEYS", ARRAYS),
    (("sessions", "list"), "HSTRLEN", {"integer"}),
    (("sessions", "list"), "HGET", TEXTS),
    (("sessions", "list"), "HGETALL", ARRAYS),
    (SHOW, "LRANGE", ARRAYS),
    (SHOW, "LINDEX", TEXTS),
    (SHOW, "LLEN", {"integer"}),
    (SHOW, "MEMORY", {"integer", "nil"}),
    (SHOW, "EXISTS", {"integer"}),
    (("why", "{cursor}"), "EVALSHA", set()),
    (("why", "{unknown}"), "HEXISTS", {*REPLIES}),  # redis-py takes any reply for yes or no.
    (("tail", "s", "--from-start", "--seconds", "0"), "EVALSHA", set()),
)
"""Commands of the command line with one that each sends, and the replies that have the form of those of Redis."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """A proxy before a Valkey of these tests alone."""
    with own_valkey() as server, proxy_in_thread(server.socket) as running:
        yield running


def _url(proxy: Proxy) -> str:
    """A URL with the protocol of the replies, whose client waits however busy the machine is."""
    return f"{proxy.url}?protocol=3&socket_timeout={CEILING}&socket_connect_timeout={CEILING}"


@pytest.fixture
async def cursors(proxy: Proxy) -> AsyncIterator[dict[str, str]]:
    """The event ids of a stored run of the session `s`, and of a run that nothing knows."""
    async with connect(_url(proxy)) as client:
        store = RedisEventStore(client, ttl=TTL)
        await store.coordinator.record(NewRecord("s", "", "{}", "srv"), ttl=TTL)
        producer = SessionProducer(store, "s", 1)
        await producer.append(None)
        await producer.outcomes()
        await store.flush()
    known = event_ids.join(producer.ids[0], producer.stream)
    yield {"cursor": known, "unknown": "1-1-0000000000001.7"}
    proxy.clear()


@pytest.mark.parametrize(("arguments", "command", "valid"), COMMANDS)
async def test_command_line_reports_unexpected_replies(  # noqa: PLR0913, PLR0917 - fixtures
    proxy: Proxy,
    capsys: pytest.CaptureFixture[str],
    cursors: dict[str, str],
    arguments: tuple[str, ...],
    command: str,
    valid: set[str],
) -> None:
    """With the name of the command and the fix; `doctor` continues with its other checks."""
    given = [each.format_map(cursors) for each in arguments]
    for name, reply in REPLIES.items():
        fault = proxy.answer_bytes(command, reply, times=ALWAYS)
        code = await anyio.to_thread.run_sync(main, [*given, "--redis-url", _url(proxy), "--json"])
        proxy.clear()
        printed = capsys.readouterr().out
        assert fault.happened, name
        assert "Traceback" not in printed, (name, printed)
        assert "was closed" not in printed, (name, printed)
        if name in valid:
            continue
        sent = "MEMORY USAGE" if command == "MEMORY" else command
        assert f"it answered {sent} with an unexpected reply; if it is a proxy" in printed, (name, printed)
        if arguments == DOCTOR and command != "PING":
            checks = [each["check"] for each in json.loads(printed)["findings"]]
            assert {"latency", "permissions", "ttl", "server_name", "sdk"} <= set(checks), name
        else:
            assert code == Exit.UNREACHABLE, (name, printed)


@pytest.mark.parametrize(
    ("command", "valid"),
    [
        ("GET", TEXTS),
        ("INFO", set[str]()),
        ("DBSIZE", {"integer"}),
        ("EVALSHA", set[str]()),
    ],
)
async def test_statistics_report_unexpected_replies(proxy: Proxy, command: str, valid: set[str]) -> None:
    """As an error of the poll, which the next one may not have."""
    async with connect(_url(proxy)) as client:
        poller = RedisEventStore(client, ttl=TTL).redis_stats_poller()
        for name in REPLIES.keys() - valid:
            assert await poller.poll(30.0) is not None
            if command == "GET":  # It is sent by a poller that does not have the turn yet.
                proxy.answer_bytes("SET", b"_\r\n")
            proxy.answer_bytes(command, REPLIES[name], times=ALWAYS)
            with pytest.raises(StoreRejectedError, match=f"it answered {command} with an unexpected reply"):
                await poller.poll(30.0)
            proxy.clear()
        await poller.leave()


async def test_followers_that_redis_does_not_count_are_unknown(proxy: Proxy) -> None:
    """As where the permission is missing."""
    async with connect(_url(proxy)) as client:
        inspector = Inspector(client, Keys("mcp:"))
        assert await inspector.following("s", ["1"]) == {"1": 0}
        for name in REPLIES.keys() - {"empty array"}:
            proxy.answer_bytes("PUBSUB", REPLIES[name], times=ALWAYS)
            assert await inspector.following("s", ["1"]) == {"1": None}, name
            proxy.clear()


async def test_reply_that_is_not_in_the_protocol_names_the_fix(
    proxy: Proxy, capsys: pytest.CaptureFixture[str], cursors: dict[str, str]
) -> None:
    """As of a port that is not that of Redis."""
    del cursors
    proxy.answer_bytes("SCAN", b"?15\r\n", times=ALWAYS)
    assert await anyio.to_thread.run_sync(main, ["workers", "--redis-url", _url(proxy), "--json"]) == Exit.UNREACHABLE
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert message.endswith(
        "its reply is not in the protocol of Redis; correct its host and port, or the proxy, in the URL"
    )
