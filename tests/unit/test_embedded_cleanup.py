"""The embedded Valkey leaves nothing behind."""

import asyncio
from pathlib import Path

import pytest

from mcp_eventscope.embedded import EmbeddedValkey

pytestmark = pytest.mark.anyio


def directory_of(valkey: EmbeddedValkey) -> Path:
    """Where its socket is."""
    return Path(valkey.url.removeprefix("unix://")).parent


async def test_never_started() -> None:
    """One that was never started has made no directory."""
    assert not directory_of(EmbeddedValkey()).exists()


async def test_directory_is_private_and_goes() -> None:
    """Nobody else can reach the socket, and it goes with the server."""
    valkey = EmbeddedValkey()
    async with valkey.running():
        assert directory_of(valkey).stat().st_mode & 0o777 == 0o700
    assert not directory_of(valkey).exists()


async def test_cancelled_while_it_starts() -> None:
    """A start that is cancelled leaves no server running."""
    valkey = EmbeddedValkey()

    async def run() -> None:
        async with valkey.running():
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()  # whatever goes on in a thread
    assert not valkey._server.is_running()
    assert not directory_of(valkey).exists()
