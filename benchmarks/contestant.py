"""One competitor in a process of its own, undisturbed by other event loops.

Run as a program, it reads one JSON object per line from standard input, and answers each with another one.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.commands import monitored
from benchmarks.competitors import COMPETITORS, TTL, Competitor, Opened, opened, session_id
from benchmarks.latency import percentiles
from benchmarks.load import NOTIFICATION, RESPONSE, Load, write_stream
from benchmarks.processes import BenchmarkError, child
from mcp_eventscope.store.messages import EventMessage

Ask = Callable[..., Awaitable[dict[str, Any]]]
_PATIENCE = 600
_NOTHING = "return {'1234567890123456'}"
_FILL = """
local prefix, stream, ttl, payload = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
for id = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]) do
  local name = string.format('%.0f', id)
  redis.call('ZADD', prefix .. 'stream:' .. stream, name, name)
  redis.call('SET', prefix .. 'event:' .. name, payload .. '\\n\\n' .. stream, 'EX', ttl)
end
"""
"""Events of a session: the documented limit."""
_FILLED_AT_ONCE = 10_000
_FILLED_EVERY = 100
"""Microseconds between them, since ids contain the time."""


@asynccontextmanager
async def contestant(competitor: Competitor, url: str) -> AsyncIterator[Ask]:
    """Start the process of a competitor. Yields a function that sends a request and returns the answer."""
    # Otherwise FastMCP would read the user's settings.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTMCP_")}
    arguments = ("-m", "benchmarks.contestant", competitor.name, url)
    async with child(competitor.name, *arguments, environment=environment) as process:

        async def ask(what: str, **order: Any) -> dict[str, Any]:
            process.send(json.dumps({"what": what, **order}))
            answer: dict[str, Any] = json.loads(await process.receive(_PATIENCE))
            return answer

        yield ask


class _Contestant:
    """The process itself: a method for each request."""

    def __init__(self, competitor: Competitor, url: str, stack: AsyncExitStack) -> None:
        self._competitor = competitor
        self._url = url
        self._stack = stack
        self._replays: dict[str, _Replay] = {}

    async def hello(self) -> dict[str, Any]:
        """Import everything."""
        async with opened(self._competitor, self._url) as store:
            await store.client.ping()
        return {"loop": type(asyncio.get_running_loop()).__module__.partition(".")[0]}

    async def store(self, *, writers: int, sessions: int, count: int, seconds: float) -> dict[str, Any]:
        """Store events concurrently. All connections are closed before the answer."""
        async with opened(self._competitor, self._url) as store:
            load = Load(store, writers=writers, sessions=sessions)
            warmed = await load.run(count=2 * writers, seconds=seconds)
            gc.collect()
            return await load.run(count=count, seconds=seconds) | {"warmed": warmed["stores"]}

    async def fill(self, *, writers: int, sessions: int, count: int) -> dict[str, Any]:
        """Store exactly so many events, without a warm-up."""
        async with opened(self._competitor, self._url) as store:
            load = Load(store, writers=writers, sessions=sessions)
            return await load.run(count=count, seconds=_PATIENCE)

    async def one_writer(self, *, blocks: int, each: int) -> dict[str, Any]:
        """Compare one writer with its own commands sent by hand, and with an empty script."""
        async with opened(self._competitor, self._url) as store:
            client: Any = store.client
            nothing = await client.script_load(_NOTHING)
            warm = Load(store, writers=1, sessions=1)
            await warm.run(count=each, seconds=_PATIENCE)
            total = blocks * each
            async with monitored(self._url) as sent:
                await Load(store, writers=1, sessions=1).run(count=total, seconds=_PATIENCE)
            if len(sent) != total:
                msg = f"{total} stores of one writer were {len(sent)} calls of scripts: they cannot be compared"
                raise BenchmarkError(msg)
            # The commands sent by hand were sent before: delete their results.
            await client.flushall()
            medians: dict[str, list[list[float]]] = {"store": [], "evalsha": [], "nothing": []}
            commands = iter(sent)
            for _ in range(blocks):
                group = [next(commands) for _ in range(each)]
                block = await warm.run(count=each, seconds=_PATIENCE)
                medians["store"].append([block["ms"]["p50"]])
                for name, sha in (("evalsha", None), ("nothing", nothing)):
                    times = []
                    for _, own, keys, *args in group:
                        before = time.perf_counter()
                        await client.evalsha(sha or own.decode(), int(keys), *args)
                        times.append((time.perf_counter() - before) * 1e3)
                    medians[name].append([statistics.median(times)])
        blocks_of = {name: [value for (value,) in values] for name, values in medians.items()}
        return {
            "p50_ms": {name: round(statistics.median(values), 4) for name, values in blocks_of.items()},
            # Block by block, since a busy machine slows neighbouring blocks alike.
            "ratios": {
                name: round(statistics.median(map(_divided, blocks_of["store"], blocks_of[name])), 4)
                for name in ("evalsha", "nothing")
            },
        }

    async def prepare(self, *, events: int) -> dict[str, Any]:
        """Store a stream to replay."""
        session = session_id()
        async with opened(self._competitor, self._url, kept=events + 1) as writing:
            cursor, *_ = await write_stream(writing.scoped(session), "1", [NOTIFICATION] * (events + 1))
        # Another store reads it from Redis, since the writing store may have it in memory.
        store = await self._stack.enter_async_context(opened(self._competitor, self._url, kept=events + 1))
        self._replays["all"] = _Replay(store.scoped(session), cursor, events)
        return {}

    async def streams(self, *, length: int, count: int, sessions: int, writers: int) -> dict[str, Any]:
        """Store so many events in streams of one length, each of which begins with a priming event."""
        async with opened(self._competitor, self._url) as store:
            parts = [store.session() for _ in range(sessions)]
            todo = iter(range(count // length))
            messages = [None, *[NOTIFICATION] * (length - 2), RESPONSE]

            async def write() -> None:
                for number in todo:
                    await write_stream(parts[number % sessions], str(number // sessions), messages)

            await asyncio.gather(*(write() for _ in range(writers)))
        return {"events": count // length * length}

    async def replay(self, *, times: int, seconds: float, warm: float) -> dict[str, Any]:
        """Replay it after a warm-up: a core that was idle is slow for some replays."""
        await self._replays["all"].times(sys.maxsize, warm)
        return percentiles(await self._replays["all"].times(times, seconds))

    async def long(self, *, lengths: list[int], last: int, blocks: int, each: int) -> dict[str, Any]:
        """Replay the last events of a long and of a short stream."""
        async with opened(self._competitor, self._url) as store:
            replays = [await self._filled(store, length, last) for length in lengths]
            for replay in replays:
                await replay.times(each, _PATIENCE)
            medians: list[list[float]] = [[] for _ in replays]
            for _ in range(blocks):
                for values, replay in zip(medians, replays, strict=True):
                    values.append(statistics.median(await replay.times(each, _PATIENCE)))
        return {
            "ms": {
                str(length): round(statistics.median(values), 4)
                for length, values in zip(lengths, medians, strict=True)
            },
            "ratio": round(statistics.median(map(_divided, medians[-1], medians[0])), 4),
        }

    async def _filled(self, store: Opened, length: int, last: int) -> "_Replay":
        session = session_id()
        part: Any = store.scoped(session)
        if hasattr(part, "begin"):
            async with opened(self._competitor, self._url) as writing:
                ids = await write_stream(writing.scoped(session), "1", itertools.repeat(NOTIFICATION, length))
            return _Replay(part, ids[-last - 1], last)
        fill = store.client.register_script(_FILL)
        payload = NOTIFICATION.model_dump_json(by_alias=True, exclude_unset=True)
        older = length - last - 1
        seconds, micros = await store.client.time()
        first = int(seconds) * 1_000_000 + int(micros) - (older + 1) * _FILLED_EVERY
        for done in range(0, older, _FILLED_AT_ONCE):
            begin = first + done * _FILLED_EVERY
            end = first + (min(done + _FILLED_AT_ONCE, older) - 1) * _FILLED_EVERY
            await fill(args=[part.key_prefix, "1", TTL, payload, begin, end, _FILLED_EVERY])
        # The store itself writes the last ones, so that its other state exists, too.
        cursor, *_ = await write_stream(part, "1", [NOTIFICATION] * (last + 1))
        held = await store.client.zcard(f"{part.key_prefix}stream:1")
        if held != length:
            msg = f"a stream of {length} events has {held}: the layout is not what is documented"
            raise BenchmarkError(msg)
        return _Replay(part, cursor, last)


class _Replay:
    """A replay with a known outcome."""

    def __init__(self, store: Any, cursor: str, events: int) -> None:
        self._store = store
        self._names_stream = hasattr(store, "begin")
        self._cursor = cursor
        self._events = events

    async def time(self) -> float:
        """Milliseconds of one replay."""
        got: list[EventMessage] = []

        async def send(event: EventMessage) -> None:
            got.append(event)

        before = time.perf_counter()
        if self._names_stream:
            await self._store.replay(self._cursor, send, stream_id="1")
        else:
            await self._store.replay_events_after(self._cursor, send)
        took = time.perf_counter() - before
        if len(got) != self._events or got[-1].message != NOTIFICATION:
            msg = f"{len(got)} events were replayed instead of {self._events}"
            raise BenchmarkError(msg)
        return took * 1e3

    async def times(self, count: int, seconds: float) -> list[float]:
        """Replay so many times, or until the time is over."""
        deadline = time.monotonic() + seconds
        durations: list[float] = []
        while len(durations) < count and (not durations or time.monotonic() < deadline):
            durations.append(await self.time())
        return durations


def _divided(value: float, by: float) -> float:
    return value / by


async def _main(competitor: Competitor, url: str, answers: Any) -> None:
    async with AsyncExitStack() as stack:
        it = _Contestant(competitor, url, stack)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            answer = await getattr(it, order.pop("what"))(**order)
            print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Serve requests from standard input until it ends."""
    competitor = COMPETITORS[sys.argv[1]]
    # Other output must not look like an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    loop_factory: Any = None
    if competitor.uvloop:
        import uvloop  # noqa: PLC0415 - it need not be installed

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(_main(competitor, sys.argv[2], answers))


if __name__ == "__main__":
    main()
