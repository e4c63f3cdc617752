"""The users of docs/redis.md may do everything that a server and the command line do, and nothing else is tried."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from prometheus_client import CollectorRegistry

from mcp_eventscope import EventScope, TasksClient, http_app
from mcp_eventscope.cli.main import main
from mcp_eventscope.settings import URL_VARIABLE
from support.serving import serving
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
IGNORED = {"client|setinfo"}
"""redis-py tries it and ignores the refusal, as the page says."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnValkey]:
    """A Valkey with the user of the page."""
    with own_valkey() as own:
        with own.client() as admin:
            (command,) = re.findall(r"^ACL SETUSER .+$", PAGE, re.MULTILINE)
            admin.execute_command(*command.replace("PASSWORD", "hunter2").split())
        yield own


@pytest.fixture
def url(server: OwnValkey) -> str:
    """The URL of the user."""
    return f"redis://mcp:hunter2@127.0.0.1:{server.port}/0"


@asynccontextmanager
async def served(url: str, **options: Any) -> AsyncIterator[tuple[str, CollectorRegistry]]:
    """A server with all parts of a scope: its endpoint, and its metrics."""
    registry = CollectorRegistry()
    scope = EventScope("orders", redis_url=url, registry=registry)
    mcp: MCPServer[Any] = MCPServer("orders", **scope.server_options(tasks={"build"}))

    @mcp.tool()
    async def build(target: str, ctx: Context) -> str:
        """Report, signal a change, and return."""
        await ctx.report_progress(1, 1)
        await ctx.notify_resource_updated("order://1")
        return f"built {target}"

    async with serving(http_app(mcp, scope=scope, **options)) as base:
        yield f"{base}/mcp", registry


def refused(server: OwnValkey) -> set[str]:
    """What Redis has refused, by its log, since the last call."""
    with server.client() as admin:
        entries = admin.acl_log()
        admin.execute_command("ACL", "LOG", "RESET")
    return {str(entry["object"]) for entry in entries} - IGNORED


async def test_user_of_the_page_serves_sessions_tasks_and_signals(server: OwnValkey, url: str) -> None:
    """Nothing that a server with all of its parts does is refused."""
    async with served(url) as (endpoint, _):
        async with Client(endpoint, extensions=[TasksClient()]) as client:
            assert (await client.call_tool("build", {"target": "a"})).structured_content == {"result": "built a"}
        async with Client(endpoint, mode="legacy") as client:
            assert (await client.call_tool("build", {"target": "b"})).structured_content == {"result": "built b"}
    assert refused(server) == set()


async def test_user_with_the_further_commands_serves_statistics_and_the_command_line(
    server: OwnValkey, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that the page names for them are enough."""
    further = sorted(set(re.findall(r"\+[a-z|]+(?=[ `])", PAGE.partition("* **More")[2].partition("\n* ")[0])))
    assert len(further) == 6
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "mcp", *further)
    monkeypatch.setenv(URL_VARIABLE, url)
    async with served(url, redis_stats_interval=0.2) as (endpoint, registry):
        async with Client(endpoint, mode="legacy"):
            await until(lambda: registry.get_sample_value("eventscope_redis_keys", {"store": "orders"}))
            for command in ("workers", "sessions list", "doctor"):
                await anyio.to_thread.run_sync(main, command.split())
        assert "allow +" not in capsys.readouterr().out
    assert refused(server) == set()
