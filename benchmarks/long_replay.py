"""The replay of a very long stream: speed, memory, and slow calls in Redis.

    python -m benchmarks.long_replay [--events N]

It starts a Valkey of its own on the loopback interface, where a million events take about 300 MB. Linux only.
"""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass

from redis import asyncio as aioredis

from benchmarks.processes import resident, valkey
from mcp_eventscope import RedisEventStore
from mcp_eventscope.redis.client import connect
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.messages import EventMessage

SESSION, STREAM, TTL = "long", "1", 600
SLOW_MICROSECONDS = 5000
"""A call that keeps Redis busy for longer is slow."""
_FILL_AT_ONCE = 10_000
_LOOK_EVERY = 5_000
_RUN = "0123456789ab1"
"""The run of a worker that does not exist."""
# Writes what `commit.lua` would, without the time to send the events.
_FILL = """
local first, count, time, payload = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
for number = first, first + count - 1 do
  redis.call('RPUSH', KEYS[1], string.format('%.0f', number) .. ' ' .. time .. '\\n' .. payload)
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
"""


@dataclass(frozen=True)
class Replay:
    """The cost of a replay."""

    events: int
    delivered: int
    seconds: float
    grown_bytes: int
    """The largest growth of the process."""
    calls: int
    slow_calls: int
    slowest_ms: float
    """Of the slow calls."""


async def fill(client: aioredis.Redis, prefix: str, events: int) -> str:
    """Make a stream of so many events. Returns the id of the first one."""
    keys = Keys(prefix).for_session(SESSION)
    now = time.time_ns() // 1000
    payload = '{"jsonrpc":"2.0","method":"note","params":{"text":"a message as long as many"}}'
    for done in range(0, events, _FILL_AT_ONCE):
        count = min(_FILL_AT_ONCE, events - done)
        await client.eval(_FILL, 1, keys.run(STREAM, _RUN), *map(str, (done + 1, count, now, payload, TTL)))
    return f"{now}-1-{_RUN}"


async def measure(events: int) -> Replay:
    """Replay a stream of so many events, all but its first."""
    async with valkey() as url, connect(url) as client:
        cursor = await fill(client, "mcp:", events)
        await client.config_set("slowlog-log-slower-than", SLOW_MICROSECONDS)
        await client.config_set("slowlog-max-len", 100_000)
        await client.config_resetstat()
        await client.slowlog_reset()
        part = RedisEventStore(client, ttl=TTL).for_session(SESSION)
        delivered, before = 0, resident(os.getpid())
        most = before

        async def count(_: EventMessage) -> None:
            nonlocal delivered, most
            delivered += 1
            if delivered % _LOOK_EVERY == 0:
                most = max(most, resident(os.getpid()))

        began = time.monotonic()
        await part.replay(cursor, count, stream_id=STREAM)
        seconds = time.monotonic() - began
        slow = [call["duration"] for call in await client.slowlog_get(-1)]
        stats = await client.info("commandstats")
        calls = sum(stats.get(name, {"calls": 0})["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval"))
        return Replay(events, delivered, seconds, most - before, calls, len(slow), max(slow, default=0) / 1000)


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_replay", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="the number of events of the stream")
    replay = asyncio.run(measure(parser.parse_args().events))
    print(f"{replay.delivered:,} events in {replay.seconds:.1f} s: {replay.delivered / replay.seconds:,.0f} per second")
    print(f"the process grew by {replay.grown_bytes / 1e6:.1f} MB at most")
    print(
        f"{replay.calls} calls, {replay.slow_calls} over {SLOW_MICROSECONDS / 1000:g} ms (≤ {replay.slowest_ms:g} ms)"
    )
    return 0 if replay.delivered == replay.events - 1 else 1


if __name__ == "__main__":
    sys.exit(main())
