"""The users of docs/redis.md may do all that a worker and the command line do, and nothing else."""

from collections.abc import Iterable, Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
import redis

from mcp_eventscope import RedisEventStore
from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from mcp_eventscope.console.observer import Observer
from mcp_eventscope.redis.acl import CLUSTER, CONSOLE, STATISTICS, operator_rules, worker_rules
from mcp_eventscope.redis.client import AnyRedis, client_for, connect
from mcp_eventscope.redis.inspection import Inspector
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.self_test import Capabilities, Capability
from mcp_eventscope.store.coordination import NewRecord
from mcp_eventscope.telemetry.tracing import session_hash
from support.messages import note
from support.scope_pair import scope_pair, scope_story
from support.servers import HOST, cluster_of_one
from support.store_stories import eviction_story, expiry_story, root_story
from support.valkeys import OwnValkey, own_valkey
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
PASSWORD = "hunter2"
PREFIX = "mcp:"
PATIENT = f"?socket_timeout={CEILING}&socket_connect_timeout={CEILING}"
ADMINISTRATION = {"acl|log", "acl|setuser", "client|setinfo", "config|resetstat", "flushall", "hello", "script|flush"}
"""The commands of the test itself, and those that any user may run."""
PARTLY_NAMED = {"acl", "client", "cluster", "config", "script"}
"""Before 7.0 statistics and log leave out the second words of commands; each connection begins with a CLIENT."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """A Valkey whose users a test may change."""
    with own_valkey() as own:
        yield own


def url_of(server: OwnValkey, rules: str) -> str:
    """Create the user of these rules alone; returns the URL, with a database."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "mcp", "reset", "on", f">{PASSWORD}", *rules.split())
        admin.execute_command("ACL", "LOG", "RESET")
        admin.flushall()
        admin.script_flush()
        admin.config_resetstat()
    return f"redis://mcp:{PASSWORD}@{HOST}:{server.port}/1{PATIENT}"


def refused(server: OwnValkey) -> set[str]:
    """What Redis has refused since the last call, by its log."""
    with server.client() as admin:
        entries = admin.acl_log()
        admin.execute_command("ACL", "LOG", "RESET")
    return {f"{entry['reason']} {entry['object']}" for entry in entries} - {"command client"}


def used(server: OwnValkey) -> set[str]:
    """The commands that Redis has run since the user was created, in scripts, too."""
    with server.client() as admin:
        found = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
        admin.config_resetstat()
    named = {"memory|usage" if name == "memory" else name for name in found}
    return named - ADMINISTRATION - PARTLY_NAMED


def allowed(rules: str) -> set[str]:
    """The commands of rules."""
    return {rule[1:] for rule in rules.split() if rule.startswith("+")}


class Untested:
    """A self-test that finds nothing missing, and sends no command."""

    async def run(self) -> Capabilities:
        """Return the result."""
        return Capabilities({Capability.SCRIPTS: True}, (), PREFIX, "")


async def test_worker_uses_each_of_its_rights_and_no_other(server: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a worker does, without its self-test, which tries each command."""
    rules = worker_rules(PREFIX)
    url = url_of(server, rules)
    with monkeypatch.context() as patch:
        patch.setattr(RedisEventStore, "self_test", lambda _: Untested())
        async with scope_pair(url, PREFIX) as (a, b):
            await scope_story(a, b)
            async with connect(url) as client:
                await root_story(client, PREFIX)
                await eviction_story(client, PREFIX)
                await expiry_story(client, PREFIX)
            await outage_story(server, url)
    found = used(server)
    assert found == allowed(rules), (found - allowed(rules), allowed(rules) - found)
    assert refused(server) == set()
    async with connect(url) as client:
        assert (await RedisEventStore(client, ttl=60).self_test().run()).missing == ()
    assert used(server) >= {"info"}
    assert refused(server) == set()


async def outage_story(server: OwnValkey, url: str) -> None:
    """Store an event while Redis does not answer, which the worker probes until it does."""
    async with connect(f"{url.partition('?')[0]}?socket_timeout=0.2") as client:
        store = RedisEventStore(client, key_prefix=PREFIX, ttl=60, store_timeout=0.1)
        session = store.for_session("outage")
        session.begin("1", 1)
        await session.append("1", None)
        await store.flush()
        server.freeze()
        await session.append("1", note(1))
        await until(lambda: store.backlog.failure is not None)
        server.thaw()
        await until(lambda: store.backlog.failure is None and not store.backlog.events)


async def test_worker_with_statistics_needs_their_rights_in_addition(server: OwnValkey) -> None:
    """Those of `redis_stats_interval`."""
    rules = worker_rules(PREFIX, statistics=True)
    url = url_of(server, rules)
    async with connect(url) as client:
        store = RedisEventStore(client, ttl=60)
        await store.append("1", None)
        session = store.for_session("s")
        session.begin("1", 1)
        await session.append("1", None)
        await store.flush()
        with server.client() as admin:
            admin.config_resetstat()
        stats = await store.redis_stats_poller().poll(1)
        assert stats is not None
        assert (stats.db_keys, stats.event_bytes is not None) == (stats.keys, True)
    assert used(server) >= set(STATISTICS)
    assert refused(server) == set()


async def test_worker_with_console_needs_its_rights_in_addition(server: OwnValkey) -> None:
    """All that the page reads about one session."""
    url = url_of(server, worker_rules(PREFIX, console=True))
    async with connect(url) as client:
        await some_sessions(client)
        with server.client() as admin:
            admin.config_resetstat()
        observer = Observer(Inspector(client, Keys(PREFIX)), address="", max_session_bytes=1)
        facts = await observer.overview()
        assert facts["redis"]["reachable"], facts["redis"]["error"]
        found = await observer.session(session_hash("one") or "")
        assert found is not None
        (stream,) = [each for each in found["streams"] if each["stream"]]
        assert (stream["following"], stream["memory"] is not None) == (0, True)
        assert await observer.events(session_hash("one") or "", stream["key"], stream["run"], 0, payloads=True)
    named = {"pubsub|numsub" if name == "pubsub" else name for name in used(server)}
    assert named >= set(CONSOLE)
    assert refused(server) == set()


async def test_worker_without_any_of_its_rights_names_it_at_start(server: OwnValkey) -> None:
    """By its self-test. Without INFO it works, with less knowledge of Redis; without SELECT it cannot connect."""
    url = url_of(server, worker_rules(PREFIX))
    unnamed = set()
    async with connect(url) as client:
        for right in sorted(allowed(worker_rules(PREFIX)) - {"info", "select"}):
            with server.client() as admin:
                admin.execute_command("ACL", "SETUSER", "mcp", f"-{right}")
                found = await RedisEventStore(client, ttl=60).self_test().run()
                admin.execute_command("ACL", "SETUSER", "mcp", f"+{right}")
            if found.refused != (right,):
                unnamed.add(right)
    assert unnamed == set()


# -- the command line -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", [True, False], ids=["", "reading"])
async def test_command_line_uses_each_right_of_an_operator_and_no_other(
    server: OwnValkey, capsys: pytest.CaptureFixture[str], *, end: bool
) -> None:
    """Each command that reads Redis, and the end of a session; `doctor` without the permissions of workers."""
    rules = operator_rules(PREFIX, end=end)
    url = url_of(server, rules)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", "nopass", *worker_rules(PREFIX).split())
    async with connect(url.replace(f"mcp:{PASSWORD}", "worker:any")) as client:
        cursor = await some_sessions(client)
    with server.client() as admin:
        admin.config_resetstat()
    for command, code in commands_of(cursor).items():
        if command.startswith("sessions end") and not end:
            continue
        arguments = [*command.split(), "--redis-url", url]
        result = await anyio.to_thread.run_sync(main, arguments)
        assert result in {code, *((Exit.OK, Exit.FAILED) if code is None else ())}, (command, capsys.readouterr())
        assert refused(server) == set(), command
    printed = capsys.readouterr()
    assert "+" not in printed.out.replace("redis+cluster", ""), "a command reports no right that it lacks"
    found = used(server)
    # The command that ends a session reads its inbox if the end takes that long.
    reading = {"xread", "xrange", "xtrim"}
    assert found | reading == allowed(rules) | reading, found ^ allowed(rules)


async def some_sessions(client: AnyRedis) -> str:
    """Sessions as their worker leaves them; returns an event id of the first one."""
    store = RedisEventStore(client, key_prefix=PREFIX, ttl=600)
    for name in ("one", "two"):
        session = store.for_session(name)
        await store.coordinator.record(NewRecord(name, "o", '{"clientInfo":{"name":"c","version":"1"}}'), ttl=600)
        await session.open_standalone()
        session.begin("1", 1)
        first = await session.append("1", None)
        await session.append("1", note(1, "x" * 10_000))
    await store.flush()
    return f"{first.event_id}.1"


def commands_of(cursor: str) -> dict[str, Exit | None]:
    """The commands that use Redis, with their exit codes: no worker is alive. `doctor` may find Redis slow."""
    return {
        "workers": Exit.FAILED,
        "sessions list --all": Exit.OK,
        "sessions show one": Exit.OK,
        f"sessions show {session_hash('two')}": Exit.OK,
        "tail one --from-start --payloads --seconds 0": Exit.OK,
        f"why {cursor}": Exit.FAILED,
        f"why 1-1-{'a' * 12}1.1": Exit.FAILED,
        "forecast --rate 5 --maxmemory 10000000": Exit.OK,
        "doctor --no-writes": None,
        "sessions end one --yes": Exit.OK,
    }


def test_rules_of_the_page_are_those_that_are_tested() -> None:
    """The page has the command lines, and the rights that some do not need."""
    for line in (
        f"ACL SETUSER mcp on >PASSWORD {worker_rules(PREFIX)}",
        f"ACL SETUSER mcp {granted(STATISTICS)}",
        f"ACL SETUSER mcp {granted(CONSOLE)}",
        f"ACL SETUSER mcp-operator on >PASSWORD {operator_rules(PREFIX)}",
    ):
        assert f"\n{line}\n" in PAGE, line
    ending = allowed(operator_rules(PREFIX)) - allowed(operator_rules(PREFIX, end=False))
    assert f"`{granted(ending)}`" in PAGE
    assert f"`{granted(CLUSTER)}`" in PAGE


def granted(commands: Iterable[str]) -> str:
    """The rules for commands."""
    return " ".join(f"+{name}" for name in sorted(commands))


# -- a cluster --------------------------------------------------------------------------------------------------------


async def test_users_of_a_cluster_need_its_nodes_in_addition() -> None:
    """A worker, and each command of an operator."""
    with cluster_of_one() as port, redis.Redis(port=port) as admin:
        for name, rules in (
            ("worker", worker_rules(PREFIX, cluster=True)),
            ("operator", operator_rules(PREFIX, cluster=True)),
        ):
            admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules.split())
        urls = {name: f"redis+cluster://{name}:{PASSWORD}@{HOST}:{port}{PATIENT}" for name in ("worker", "operator")}
        async with scope_pair(urls["worker"], PREFIX) as (a, b):
            await scope_story(a, b)
        assert [(each["username"], each["context"], each["object"]) for each in admin.acl_log()] == []
        async with aclosing(client_for(urls["worker"])) as client:
            cursor = await some_sessions(client)
        for command in commands_of(cursor):
            await anyio.to_thread.run_sync(main, [*command.split(), "--redis-url", urls["operator"]])
        assert [(each["username"], each["context"], each["object"]) for each in admin.acl_log()] == []
