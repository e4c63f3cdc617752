"""Use the installed package: import, command line, and one store and replay on an embedded server.

Run in a clean environment with `python -I tests/packages/use.py`, which sees nothing but the installed packages.
"""

import asyncio
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mcp_eventscope
from mcp_eventscope import RedisEventStore
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.redis.client import connect

VERSION = importlib.metadata.version("mcp-eventscope")


def check_files() -> None:
    """The imported package is the installed one, and has its data."""
    package = Path(mcp_eventscope.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not in {sys.prefix}"
    assert (package / "py.typed").is_file()
    assert list((package / "dashboards" / "grafana").glob("*.json"))
    assert list((package / "dashboards" / "prometheus").glob("*.y*ml"))
    for name in mcp_eventscope.__all__:
        assert getattr(mcp_eventscope, name).__module__.startswith("mcp_eventscope"), name
    top = {str(file).partition("/")[0] for file in importlib.metadata.files("mcp-eventscope") or ()}
    assert top <= {"mcp_eventscope", f"mcp_eventscope-{VERSION}.dist-info", ".."}, top


def command(*arguments: str) -> str:
    """The output of the command line."""
    program = Path(sys.executable).with_name("mcp-eventscope")
    return subprocess.run([program, *arguments], capture_output=True, check=True, text=True, timeout=60).stdout


async def store_and_replay() -> list[Any]:
    """The messages that a second store replays after the first event."""
    server = EmbeddedValkey()
    async with server.running(), connect(server.url) as client, connect(server.url) as other:
        store = RedisEventStore(client, ttl=60)
        session = store.for_session("s")
        session.begin("1", 1)
        ids = [(await session.append("1", message)).event_id for message in (None, *_messages())]
        assert await store.flush(10) == 0
        replayed: list[Any] = []

        async def take(event: Any) -> None:
            message = event.message
            replayed.append(json.loads(message.model_dump_json(by_alias=True, exclude_unset=True)))

        result = await RedisEventStore(other, ttl=60).for_session("s").replay(ids[0], take, stream_id="1")
        assert (result.delivered, result.completed) == (2, True), result
    return replayed


def _messages() -> tuple[Any, Any]:
    from mcp.types import JSONRPCNotification, JSONRPCResponse  # noqa: PLC0415 - beside its only use

    return (
        JSONRPCNotification(jsonrpc="2.0", method="note", params={"n": 1}),
        JSONRPCResponse(jsonrpc="2.0", id=1, result={"done": True}),
    )


def main() -> None:
    """Check everything, and print a line."""
    check_files()
    assert VERSION in command("--version"), command("--version")
    assert "sessions" in command("--help")
    assert [each.get("method", "result") for each in asyncio.run(store_and_replay())] == ["note", "result"]
    versions = {name: importlib.metadata.version(name) for name in ("mcp", "redis", "pydantic")}
    print(f"mcp-eventscope {VERSION} works on Python {sys.version.split()[0]} with {versions}")  # noqa: T201


if __name__ == "__main__":
    main()
