"""The limits that are promised: memory of a worker, and latency of bystanders, while one client asks for too much.

    python -m benchmarks.limits [--only NAME …] [--small] [--output PATH]

Each part starts a Valkey and a worker on the loopback interface. A bystander, in a process of its own, opens a session
and calls a tool again and again. Exits 1 if a limit is exceeded. Linux only.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from benchmarks import outage, report
from benchmarks.latency import percentiles
from benchmarks.processes import HOST, BenchmarkError, Worker, child, cpu_seconds, resident, valkey, worker
from benchmarks.server import MAX_SESSIONS, PRINCIPALS
from benchmarks.wire import VERSION, Session, encode_request

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "limits.json"
BYSTANDER_MS = 250.0
"""Milliseconds that 99 of 100 calls of a bystander take at most, on two cores that worker, Redis and clients share."""
MIB = 1 << 20
_ID = re.compile(rb"(?m)^id: (\S+)")
_STATUS = re.compile(rb"^HTTP/1\.1 (\d+)")
_RETRY_AFTER = re.compile(rb"(?im)^retry-after: *(\d+)")
_CALL_SECONDS = 0.05
_CALLS = 10
"""Calls of a bystander before the load, and at least during it."""
_SAMPLE_SECONDS = 0.1
_PATIENCE = 120.0
_CROWD = "crowd"
"""The credential of many clients."""


@dataclass(frozen=True)
class Limit:
    """What a part promises."""

    memory: int
    """Mebibytes by which the worker may grow."""
    bystander_ms: float = BYSTANDER_MS


LIMITS = {
    "streams": Limit(64),
    "resumes": Limit(64),
    "reconnects": Limit(256, 10_000.0),
    "results": Limit(256),
    "slow_readers": Limit(128),
    "max_sessions": Limit(64),
    "outage": Limit(0, outage.LATE_SECONDS * 1000),
}
"""By part. Of `outage`, the latency is that of each message, and memory is bounded by `backlog_bytes`."""
SIZES: dict[str, dict[str, Any]] = {
    "streams": {"streams": 2000},
    "resumes": {"loops": 50, "seconds": 10.0, "events": 1000},
    "reconnects": {"clients": 1500, "events": 20},
    "results": {"results": 500, "size": 5 * MIB, "at_once": 4, "sessions": 4},
    "slow_readers": {"readers": 100, "size": 16 * 1024, "times": 2000, "seconds": 5.0},
    "max_sessions": {"sessions": 1000, "limit": 200},
    "outage": {"seconds": 60.0, "sessions": 50},
}
SMALL: dict[str, dict[str, Any]] = {
    "streams": {"streams": 40},
    "resumes": {"loops": 4, "seconds": 0.5, "events": 50},
    "reconnects": {"clients": 12, "events": 5},
    "results": {"results": 4, "size": MIB, "at_once": 2, "sessions": 1},
    "slow_readers": {"readers": 4, "size": 16 * 1024, "times": 200, "seconds": 0.5},
    "max_sessions": {"sessions": 8, "limit": 5},
}


class Exchange(asyncio.Protocol):
    """One HTTP exchange, whose bytes are counted; only the first ones are kept."""

    _KEPT = 8192

    def __init__(self) -> None:
        self.head = b""
        self.received = 0
        self.tail = b""
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Count the bytes."""
        self.received += len(data)
        if len(self.head) < self._KEPT:
            self.head += data[: self._KEPT]
        self.tail = (self.tail + data)[-256:]
        if b"\r\n\r\n" in self.head:
            self.begun.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self.begun.set()
        self.ended.set()

    @property
    def status(self) -> int:
        """The status of the response; 0: there was none."""
        found = _STATUS.match(self.head)
        return int(found[1]) if found else 0

    def pause(self) -> None:
        """Read no further."""
        if self._transport is not None:
            self._transport.pause_reading()

    def cut(self) -> None:
        """Close the connection immediately."""
        if self._transport is not None:
            self._transport.abort()


async def send(
    port: int, session: Session | None, method: str, message: dict[str, Any] | None = None, cursor: str = ""
) -> Exchange:
    """Send a request; it is not waited for."""
    headers = {
        "mcp-protocol-version": VERSION,
        **(session.headers if session else {}),
        **({"last-event-id": cursor} if cursor else {}),
    }
    transport, exchange = await asyncio.get_running_loop().create_connection(Exchange, HOST, port)
    transport.write(encode_request(port, method, headers, message))
    return exchange


def call(request_id: int, tool: str, **arguments: object) -> dict[str, Any]:
    """A call of a tool that reports progress."""
    params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": request_id}}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


# -- what is watched -------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A worker under load: the growth of its memory, its CPU time, and the latency of a bystander."""

    worker: Worker
    before: int = 0
    most: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def watching(place: Worker) -> AsyncIterator[Watched]:
    """Watch a worker until the block ends; its figures are complete then."""
    async with child("the bystander", "-m", "benchmarks.limits", "--bystander", str(place.port)) as bystander:
        await bystander.receive(_PATIENCE)  # It has made its first calls.
        watched = Watched(place, resident(place.pid))
        sampling = asyncio.create_task(_sample(watched))
        began, used = time.monotonic(), cpu_seconds(place.pid)
        try:
            yield watched
        finally:
            sampling.cancel()
        bystander.end_input()
        watched.figures |= {
            "seconds": round(time.monotonic() - began, 2),
            "worker_cpu_seconds": round(cpu_seconds(place.pid) - used, 2),
            "memory_before_mib": round(watched.before / MIB, 1),
            "memory_growth_mib": round((watched.most - watched.before) / MIB, 1),
            **json.loads(await bystander.receive(_PATIENCE)),
        }


async def _sample(watched: Watched) -> None:
    while True:
        watched.most = max(watched.most, resident(watched.worker.pid))
        await asyncio.sleep(_SAMPLE_SECONDS)


async def bystand(port: int) -> None:
    """Call a tool at intervals, until standard input ends; then print the latencies."""
    session = await Session.open(port, "bystander")
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    milliseconds: list[float] = []
    made = failed = 0
    while not over.done() or len(milliseconds) < _CALLS:
        began = time.perf_counter()
        stream = await session.call(port, 10 + made, "go", sign="bystander")
        await stream.ended.wait()
        milliseconds.append((time.perf_counter() - began) * 1000)
        failed += b'"result"' not in stream.text
        made += 1
        if made == _CALLS:  # Those of a new process, and a worker that has not warmed up.
            milliseconds.clear()
            print("ready", flush=True)
        await asyncio.sleep(_CALL_SECONDS)
    found = {"bystander_calls": made, "bystander_failed": failed, "bystander_ms": percentiles(milliseconds)}
    print(json.dumps(found), flush=True)


# -- the parts -------------------------------------------------------------------------------------------------------


async def streams(place: Worker, *, streams: int) -> dict[str, Any]:
    """GET streams of one session: each new one ends the earlier one, so that one is open in the end."""
    session = await Session.open(place.port)
    async with watching(place) as watched:
        opened = []
        for start in range(0, streams, 50):
            some = [await send(place.port, session, "GET") for _ in range(min(50, streams - start))]
            opened += some
            await asyncio.gather(*(each.begun.wait() for each in some))
        async with asyncio.timeout(_PATIENCE):
            while sum(not each.ended.is_set() for each in opened) > 1:  # noqa: ASYNC110 - there are thousands of events
                await asyncio.sleep(0.05)
        left = sum(not each.ended.is_set() for each in opened)
        for each in opened:
            each.cut()
    return watched.figures | {"statuses": dict(Counter(each.status for each in opened)), "open_in_the_end": left}


async def resumes(place: Worker, *, loops: int, seconds: float, events: int) -> dict[str, Any]:
    """Loops that resume finished streams of a session from their beginning, each its own one, without a pause."""
    session = await Session.open(place.port)
    cursors: list[str] = []
    for number in range(loops):
        stream = await send(place.port, session, "POST", call(number, "flood", times=events, size=200))
        await stream.ended.wait()
        found = _ID.search(stream.head)
        if found is None:
            msg = f"the call was answered {stream.head[:200]!r}"
            raise BenchmarkError(msg)
        cursors.append(found[1].decode())
    statuses: Counter[int] = Counter()

    async def loop(cursor: str, until: float) -> None:
        while time.monotonic() < until:
            resumed = await send(place.port, session, "GET", cursor=cursor)
            async with asyncio.timeout(_PATIENCE):
                await resumed.ended.wait()
            statuses[resumed.status] += 1

    async with watching(place) as watched:
        until = time.monotonic() + seconds
        await asyncio.gather(*(loop(cursor, until) for cursor in cursors))
    return watched.figures | {"statuses": dict(statuses), "resumes_per_second": round(statuses.total() / seconds, 1)}


async def reconnects(place: Worker, *, clients: int, events: int) -> dict[str, Any]:
    """Clients with one credential, each with a session and a finished call of its own, that all resume concurrently."""
    cursors: list[tuple[Session, str]] = []

    async def prepare() -> None:
        session = await Session.open(place.port, _CROWD)
        stream = await session.call(place.port, 1, "flood", times=events, size=200)
        await stream.ended.wait()
        found = _ID.search(stream.text)
        if found is None:
            msg = f"the call was answered {stream.text[:200]!r}"
            raise BenchmarkError(msg)
        cursors.append((session, found[1].decode()))

    while len(cursors) < clients:
        await asyncio.gather(*(prepare() for _ in range(min(10, clients - len(cursors)))))
    statuses: Counter[int] = Counter()
    attempts: Counter[int] = Counter()
    answered: list[float] = []
    complete: list[float] = []
    began = 0.0

    async def resume(session: Session, cursor: str) -> None:
        for made in range(1, 100):
            resumed = await send(place.port, session, "GET", cursor=cursor)
            await resumed.begun.wait()
            statuses[resumed.status] += 1
            if resumed.status == HTTPStatus.OK:
                answered.append(time.monotonic() - began)
                await resumed.ended.wait()
                complete.append(time.monotonic() - began)
                attempts[made] += b'"result"' in resumed.tail
                return
            wait = _RETRY_AFTER.search(resumed.head)
            await asyncio.sleep(int(wait[1]) if wait else 1)

    async with watching(place) as watched, asyncio.timeout(_PATIENCE):
        began = time.monotonic()
        await asyncio.gather(*(resume(session, cursor) for session, cursor in cursors))
    return watched.figures | {
        "statuses": dict(statuses),
        "results": clients,
        "complete": attempts.total(),
        "attempts": {str(made): clients for made, clients in sorted(attempts.items())},
        "answered_ms": percentiles([each * 1000 for each in answered]),
        "complete_ms": percentiles([each * 1000 for each in complete]),
        "last_complete_seconds": round(max(complete), 2),
    }


async def results(place: Worker, *, results: int, size: int, at_once: int, sessions: int) -> dict[str, Any]:
    """Large results, several at a time."""
    opened = [await Session.open(place.port) for _ in range(sessions)]
    numbers = iter(range(1, results + 1))
    complete = 0

    async def one() -> None:
        nonlocal complete
        for number in numbers:
            exchange = await send(place.port, opened[number % sessions], "POST", call(number, "large", size=size))
            async with asyncio.timeout(_PATIENCE):
                await exchange.ended.wait()
            complete += exchange.received > size

    async with watching(place) as watched:
        await asyncio.gather(*(one() for _ in range(at_once)))
    return watched.figures | {"results": results, "complete": complete, "mib_each": size // MIB}


async def slow_readers(place: Worker, *, readers: int, size: int, times: int, seconds: float) -> dict[str, Any]:
    """Clients that begin to read the stream of a call that sends as fast as it can, and then stop reading."""
    sessions = [await Session.open(place.port) for _ in range(readers)]
    async with watching(place) as watched:
        stalled = []
        for session in sessions:
            exchange = await send(place.port, session, "POST", call(1, "flood", times=times, size=size))
            await exchange.begun.wait()
            exchange.pause()
            stalled.append(exchange)
        await asyncio.sleep(seconds)
        for exchange in stalled:
            exchange.cut()
    return watched.figures | {"readers": readers, "mib_each": round(size * times / MIB, 1)}


async def max_sessions(place: Worker, *, sessions: int, limit: int) -> dict[str, Any]:
    """More sessions than are allowed: the others are refused, and the open ones go on."""
    params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "0"}}
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    async with watching(place) as watched:
        statuses: Counter[int] = Counter()
        for _ in range(sessions):
            exchange = await send(place.port, None, "POST", message)
            await exchange.ended.wait()
            statuses[exchange.status] += 1
    return watched.figures | {"statuses": dict(statuses), "limit": limit}


async def _outage(*, seconds: float, sessions: int) -> dict[str, Any]:
    verdict = await outage.measure(seconds=seconds, sessions=sessions)
    return {
        "messages": verdict.sent,
        "bystander_ms": verdict.outage_lateness_ms,
        "memory_growth_mib": 0.0,
        "problems": verdict.problems,
    }


PARTS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "streams": streams,
    "resumes": resumes,
    "reconnects": reconnects,
    "results": results,
    "slow_readers": slow_readers,
    "max_sessions": max_sessions,
}


async def measure(sizes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Measure parts one after the other.

    Args:
        sizes: The parts and their sizes; see `SIZES`.

    Returns:
        The figures of each part, with the limits that are exceeded.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, size in sizes.items():
        print(f"measuring: {name} {size}", file=sys.stderr)
        if name == "outage":
            found[name] = await _outage(**size)
        else:
            async with valkey() as url, worker(url, **_environment(name, size)) as place:
                found[name] = await PARTS[name](place, **size)
        found[name]["exceeded"] = exceeded(name, found[name])
    return found


def _environment(name: str, size: dict[str, Any]) -> dict[str, str]:
    """The environment of the worker of a part."""
    principals = {PRINCIPALS: "1"} if name == "reconnects" else {}
    return {MAX_SESSIONS: str(size.get("limit", 10_000)), **principals}


def exceeded(name: str, figures: dict[str, Any]) -> list[str]:
    """The promises that the figures of a part break."""
    limit, broken = LIMITS[name], list(figures.get("problems", []))
    latency = figures["bystander_ms"]["p99"]
    if latency > limit.bystander_ms:
        broken.append(f"p99 of a bystander is {latency:.0f} ms, above {limit.bystander_ms:g}")
    if limit.memory and figures["memory_growth_mib"] > limit.memory:
        broken.append(f"the worker has grown by {figures['memory_growth_mib']} MiB, above {limit.memory}")
    if figures.get("bystander_failed"):
        broken.append(f"{figures['bystander_failed']} calls of a bystander failed")
    if set(figures.get("statuses", {})) - {200, 503}:
        broken.append(f"statuses {figures['statuses']}")
    if figures.get("complete", 0) != figures.get("results", 0):
        broken.append(f"{figures['complete']} of {figures['results']} results are complete")
    if figures.get("open_in_the_end", 0) > 1:
        broken.append(f"{figures['open_in_the_end']} streams of a session are open")
    return broken


async def _main(options: argparse.Namespace) -> int:
    chosen = SMALL if options.small else SIZES
    sizes = {name: size for name, size in chosen.items() if not options.only or name in options.only}
    found = await measure(sizes)
    for name, figures in found.items():
        rest = {key: value for key, value in figures.items() if key != "exceeded"}
        print(f"{name}: {json.dumps(rest)}")
        for problem in figures["exceeded"]:
            print(f"EXCEEDED: {name}: {problem}")
    if options.output is not None:
        figures = {"measured_with": await report.measured_with(), "sizes": sizes, "parts": found}
        options.output.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return int(any(figures["exceeded"] for figures in found.values()))


def main() -> int:
    """Measure and print; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), help="these parts")
    parser.add_argument("--small", action="store_true", help="a run of some seconds that only checks that it works")
    parser.add_argument("--output", type=Path, help=f"the JSON file, such as {DEFAULT_OUTPUT.name} in results/")
    parser.add_argument("--bystander", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bystander is not None:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(bystand(options.bystander))
        return 0
    return asyncio.run(_main(options))


if __name__ == "__main__":
    sys.exit(main())
