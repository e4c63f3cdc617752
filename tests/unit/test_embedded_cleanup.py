"""The embedded Valkey leaves nothing behind."""

import asyncio
from pathlib import Path

import pytest

from mcp_eventscope.embedded import EmbeddedValkey

pytestmark = pytest.mark.anyio


def directory_of(valkey: EmbeddedValkey) -> Path:
    """Where its socket is."""
    return Path(valkey.url.removeprefix("unix://")).parent


async def test_embedded_valkey_never_started_has_no_directory() -> None:
    """An embedded Valkey makes its directory when it starts."""
    assert not directory_of(EmbeddedValkey()).exists()


async def test_embedded_valkey_directory_is_private_and_deleted() -> None:
    """Only this user can reach the socket, and the directory is deleted with the server."""
    valkey = EmbeddedValkey()
    async with valkey.running():
        assert directory_of(valkey).stat().st_mode & 0o777 == 0o700
    assert not directory_of(valkey).exists()


async def test_embedded_valkey_start_that_is_cancelled_leaves_no_server() -> None:
    """A cancelled start leaves neither a process nor a directory."""
    valkey = EmbeddedValkey()

    async def run() -> None:
        async with valkey.running():
            await asyncio.sleep(60)

    task = asyncio.create_task(run())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()  # whatever goes on in a thread
    assert valkey._guardian is None
    assert not directory_of(valkey).exists()
