"""Workers that were forked after their server was made are workers of their own."""

import asyncio
import contextlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from support.http_client import Connect, events
from support.servers import HOST, free_port
from support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def leases(url: str) -> set[bytes]:
    """Those of all workers."""
    async with Redis.from_url(url) as redis:
        return {key async for key in redis.scan_iter(match="mcp:{workers}:worker:*")}


async def test_forked_workers_have_leases_and_writers_of_their_own(
    valkey_url: str, connect: Connect, tmp_path: Path
) -> None:
    """Events of the second worker in a session of the first are stored; their parent process is no worker."""
    ports = [free_port(), free_port()]
    others = await leases(valkey_url)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.preloaded", valkey_url, *map(str, ports)),
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        first = connect(f"http://{HOST}:{ports[0]}")

        async def healthy() -> bool:
            assert server.returncode is None
            with contextlib.suppress(httpx2.TransportError):
                return all([(await first.http.get(f"http://{HOST}:{port}/healthz")).is_success for port in ports])
            return False

        await until(healthy)
        assert len(await leases(valkey_url) - others) == 2
        scrape = (await first.http.get(f"http://{HOST}:{ports[0]}/metrics")).text
        assert len(set(re.findall(r'^eventscope_degraded{pid="(\d+)"', scrape, re.MULTILINE))) == 2
        assert str(server.pid) not in re.findall(r'pid="(\d+)"', scrape)
        await first.initialize()
        second = replace(first, url=f"http://{HOST}:{ports[1]}/mcp")
        for number, on in enumerate((first, first, first, second, second)):
            async with on.call(number, "echo", text="x") as response:
                received = [event async for event in events(response)]
            assert all(event.id for event in received), "an event without an id was not stored"
            assert await first.resume(received[0].id) == received[1:]
    finally:
        if server.stdin is not None:
            server.stdin.close()
        await server.wait()
