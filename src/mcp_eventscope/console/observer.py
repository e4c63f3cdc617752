"""Reads the facts that the console shows.

A read is bounded, and there is at most one a second, however many viewers there are.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import anyio

from mcp_eventscope.cancellation import cancel_task
from mcp_eventscope.console.problems import Condition, Problems
from mcp_eventscope.errors import EventscopeError, StoreError, StoreUnavailableError
from mcp_eventscope.redis.inspection import (
    ActivityFacts,
    Crawl,
    Inspector,
    RunFacts,
    ServerFacts,
    SessionFacts,
    WorkerFacts,
    event_facts,
)
from mcp_eventscope.sdk_versions import VERSION
from mcp_eventscope.store.messages import GET_STREAM_KEY
from mcp_eventscope.store.results import BacklogStatus
from mcp_eventscope.telemetry import logs
from mcp_eventscope.telemetry.tracing import session_hash

INTERVAL = 1.0
"""Seconds between reads, which all viewers share."""
MAX_INTERVAL = 5.0
"""Maximum seconds between reads, however long they take."""
PAUSE = 4
"""The pause after a read, as a multiple of its duration: reading takes at most a fifth of the time."""
READ_TIMEOUT = 1.0
"""Seconds for which a request waits for a read. Then it is answered with the previous facts and their age."""
SCANNED_PER_READ = 5_000
"""Approximate number of keys that one read examines, in steps of less than a millisecond; the next read continues."""
MAX_SESSIONS = 5_000
"""Maximum number of tracked sessions."""
READ_SESSIONS = 120
"""Maximum number of sessions that one read refreshes: those that are shown, then those that were read longest ago."""
SHOWN = 60
"""Maximum number of sessions that are shown: those with running requests, then the youngest."""
RECENT_ROWS = 8
"""Maximum number of rows of a shown session's index that one read examines."""
MAX_RUNS = 8
"""Maximum number of a shown session's runs that one read examines: those of running requests, then the most recent."""
DETAIL_ROWS = 200
"""The same number of rows for a session that is shown in detail."""
DETAIL_RUNS = 100
"""Maximum number of runs of a session that is shown in detail."""
MAX_DETAIL_VIEWS = 8
"""Maximum number of sessions shown in detail at a time, to all viewers together."""
RATE_READS = 5
"""Reads over which the rate of a session is averaged."""
EVENT_READS = 2
"""Maximum number of chunks of events that are read concurrently."""
HISTORY = 300
"""Number of reads whose rates are kept: the plots of a new page begin with them."""
NEAR_BOUND = 0.9
"""The fraction of a limit from which it counts as almost reached."""
_TEXT = 200
"""Maximum number of characters of a client's text that are shown."""


class LocalWorker(Protocol):
    """The worker in whose process the console runs."""

    @property
    def worker(self) -> str:
        """Its name."""
        ...

    @property
    def backlog(self) -> BacklogStatus:
        """Its pending events."""
        ...


@dataclass(frozen=True, slots=True)
class _Facts:
    """The facts of one read."""

    time: float
    """When they were read, in seconds since 1970."""
    clock: float
    """The same time by Redis's clock."""
    latency: float
    """Seconds of a round trip."""
    servers: Sequence[ServerFacts]
    workers: Sequence[WorkerFacts]
    sessions: Sequence[SessionFacts]
    """The sessions that are shown."""
    activity: Mapping[str, ActivityFacts]
    """Their activity, by session."""
    rates: Mapping[str, float]
    """Events per second, by session; absent until the session was read twice."""
    known: int
    """Number of sessions that are known."""
    truncated: bool
    """Whether there are more sessions than can be tracked."""
    complete: bool
    """Whether a walk has covered the whole database."""


class _Count:
    """The events of a session, counted from one read to the next."""

    def __init__(self) -> None:
        self._last: dict[str, int] | None = None
        """The last number, by run."""
        self._events = 0
        self._read: deque[tuple[float, int]] = deque(maxlen=RATE_READS + 1)
        """The counts of the last reads, with their times."""

    def add(self, now: float, numbers: Mapping[str, int]) -> None:
        """Count the events since the previous read.

        Args:
            now: The time on the monotonic clock.
            numbers: The number of the last event, by run.
        """
        if self._last is not None:
            # A run that is new to a known session has begun since then.
            self._events += sum(max(0, last - self._last.get(run, 0)) for run, last in numbers.items())
        self._read.append((now, self._events))
        # Runs that are left out of one read may be in the next one.
        others = {run: last for run, last in (self._last or {}).items() if run not in numbers}
        self._last = dict(list(others.items())[-MAX_RUNS:]) | dict(numbers)

    @property
    def rate(self) -> float | None:
        """Events per second in the last reads; None after the first one."""
        (begun, before), (now, events) = self._read[0], self._read[-1]
        return (events - before) / (now - begun) if now > begun else None


class Observer:
    """Reads facts while there are viewers, and keeps the last ones.

    Args:
        inspector: Reads Redis.
        address: The address of Redis, without credentials.
        max_session_bytes: The bound of a session, in bytes.
        worker: The worker of this process; None: there is none.
    """

    def __init__(
        self, inspector: Inspector, *, address: str, max_session_bytes: int, worker: LocalWorker | None = None
    ) -> None:
        self._inspector = inspector
        self._address = address
        self._bound = max_session_bytes
        self._worker = worker
        self._version = VERSION
        self.problems = Problems()
        self._reading: asyncio.Task[None] | None = None
        self._ended = -INTERVAL
        """When the last read ended, on the monotonic clock."""
        self._pause = INTERVAL
        """Seconds from then to the next one."""
        self._facts: _Facts | None = None
        self._failed_since: float | None = None
        self._error = ""
        self._refused = False
        """Whether Redis answers, and refuses to be read."""
        self._sessions: dict[str, SessionFacts] = {}
        self._read_at: dict[str, float] = {}
        self._ids: dict[str, str] = {}
        """Session ids by their hashes."""
        self._counts: dict[str, _Count] = {}
        """The counted events, by session."""
        self._history: deque[list[float | None]] = deque(maxlen=HISTORY)
        self._known_sessions = Crawl(MAX_SESSIONS)
        self._known_workers = Crawl(MAX_SESSIONS)
        self._events = asyncio.Semaphore(EVENT_READS)
        self._details: dict[str, tuple[float, asyncio.Task[dict[str, Any]]]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Collect the problems that are logged until the block ends; then cancel unfinished reads."""
        with logs.observed(self.problems.on_log):
            try:
                yield
            finally:
                tasks = [self._reading, *(task for _, task in self._details.values())]
                with anyio.CancelScope(shield=True):
                    for task in tasks:
                        if task is not None:
                            await cancel_task(task)

    # -- the overview -------------------------------------------------------------------------------------------------

    async def overview(self) -> dict[str, Any]:
        """The facts, as JSON. They are at most a second old unless Redis is slow or unreachable."""
        if (self._reading is None or self._reading.done()) and time.monotonic() - self._ended >= self._pause:
            self._reading = asyncio.create_task(self._read(), name="eventscope-console")
        if self._reading is not None:
            # The first read is awaited, since there is nothing to show before it. Each of its calls has a time limit.
            await asyncio.wait([self._reading], timeout=None if self._nothing_known else READ_TIMEOUT)
        return self._document()

    @property
    def _nothing_known(self) -> bool:
        return self._facts is None and self._failed_since is None

    async def _read(self) -> None:
        began = time.monotonic()
        self._pause = INTERVAL
        try:
            self._facts = await self._collect()
        except EventscopeError as error:
            self._failed(str(error), refused=not isinstance(error, StoreUnavailableError))
        except Exception as error:  # noqa: BLE001 - whatever Redis may have replied; the page shows the type
            self._failed(f"the reply could not be understood: {type(error).__name__}", refused=True)
        else:
            self._failed_since, self._error = None, ""
            self._pause = min(max(INTERVAL, PAUSE * (time.monotonic() - began)), MAX_INTERVAL)
        finally:
            self._ended = time.monotonic()
        self._history.append(self._point())
        self.problems.observe(self._conditions())

    def _failed(self, error: str, *, refused: bool) -> None:
        self._error, self._refused = error, refused
        if self._failed_since is None:
            self._failed_since = time.time()

    async def _collect(self) -> _Facts:
        inspector = self._inspector
        started = time.perf_counter()
        await inspector.ping()
        latency = time.perf_counter() - started
        servers = await inspector.servers()
        await inspector.crawl_sessions(self._known_sessions, max_keys=SCANNED_PER_READ)
        await inspector.crawl_workers(self._known_workers, max_keys=SCANNED_PER_READ)
        await self._refresh()
        live = [each for each in self._sessions.values() if each.state == "live"]
        serving = Counter(worker for each in live for worker in each.workers)
        running: Counter[str] = Counter()
        for each in live:
            running.update(each.running_on)
        names = {*self._known_workers.names, *serving, *running}
        found = self._known_sessions.names
        workers = await inspector.read_workers(names, serving, running)
        shown = self._shown()
        activity = await inspector.activity([each.session_id for each in shown], rows=RECENT_ROWS, most=MAX_RUNS)
        by_session = {each.session_id: facts for each, facts in zip(shown, activity, strict=True)}
        return _Facts(
            time=time.time(),
            clock=await inspector.clock() / 1_000_000,
            latency=latency,
            servers=servers,
            # One without a lease is dead, and is shown while sessions name it.
            workers=[each for each in workers if each.alive or each.sessions or each.requests],
            sessions=shown,
            activity=by_session,
            rates=self._rates(by_session),
            known=sum(each not in self._sessions or self._sessions[each].state == "live" for each in found),
            truncated=self._known_sessions.truncated,
            complete=self._known_sessions.rounds > 0,
        )

    async def _refresh(self) -> None:
        """Read sessions again: those that are shown, then those that were read longest ago."""
        known = set(self._known_sessions.names)
        for ended in self._sessions.keys() - known:
            self._forget(ended)
        first = [each.session_id for each in self._shown()]
        others = sorted(known - set(first), key=lambda each: self._read_at.get(each, 0.0))
        chosen = [*first, *others[: READ_SESSIONS - len(first)]]
        now = time.monotonic()
        for facts in await self._inspector.read_sessions(chosen):
            self._sessions[facts.session_id] = facts
            self._read_at[facts.session_id] = now
            self._ids[session_hash(facts.session_id) or ""] = facts.session_id

    def _forget(self, session_id: str) -> None:
        del self._sessions[session_id]
        self._read_at.pop(session_id, None)
        self._counts.pop(session_id, None)
        self._ids.pop(session_hash(session_id) or "", None)

    def _shown(self) -> list[SessionFacts]:
        found = [each for each in self._sessions.values() if each.state == "live"]
        return sorted(found, key=lambda each: (not each.running, each.age if each.age is not None else 0))[:SHOWN]

    def _rates(self, activity: Mapping[str, ActivityFacts]) -> dict[str, float]:
        """Events per second of each session."""
        now, rates = time.monotonic(), {}
        for session_id, found in activity.items():
            count = self._counts.setdefault(session_id, _Count())
            count.add(now, found.numbers)
            if (rate := count.rate) is not None:
                rates[session_id] = rate
        return rates

    def _point(self) -> list[float | None]:
        """One point of the plots: time, events per second, commands per second, latency, memory, sessions, running."""
        facts = self._facts
        if facts is None or self._failed_since is not None:
            return [time.time(), *[None] * 6]
        return [
            facts.time,
            sum(facts.rates.values()) if facts.rates else None,
            _sum(facts.servers, "instantaneous_ops_per_sec"),
            facts.latency,
            _sum(facts.servers, "used_memory"),
            facts.known,
            sum(each.running for each in facts.sessions),
        ]

    def _conditions(self) -> Iterator[Condition]:
        if self._failed_since is not None:
            yield Condition("error", f"redis_{'refuses' if self._refused else 'unreachable'}", {"error": self._error})
        degraded = None if self._worker is None else self._worker.backlog.failure
        if degraded is not None and self._worker is not None:
            yield Condition("error", "store_degraded", {"worker": self._worker.worker, "reason": degraded.value})
        facts = self._facts
        if facts is None:
            return
        yield from self._conditions_of_servers(facts.servers)
        for worker in facts.workers:
            if not worker.alive and worker.requests:
                fix = "restart it unless its supervisor does; its clients receive an error when they resume"
                fields = {"worker": worker.name, "requests": worker.requests, "fix": fix}
                yield Condition("warning", "worker_dead", fields)
        for each in facts.sessions:
            if each.accounted_bytes >= NEAR_BOUND * self._bound:
                fields = {"session": session_hash(each.session_id), "bytes": each.accounted_bytes}
                fix = "raise max_session_bytes=, lower ttl=, or send smaller messages"
                yield Condition("warning", "session_near_bound", fields | {"fix": fix})

    def _conditions_of_servers(self, servers: Iterable[ServerFacts]) -> Iterator[Condition]:
        for server in servers:
            info: Mapping[str, Any] = server.info
            node: dict[str, object] = {"node": server.node} if server.node else {}
            if str(info.get("role", "master")) != "master":
                yield Condition("error", "redis_is_replica", node | {"fix": "connect to the primary"})
            used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
            policy = str(info.get("maxmemory_policy", "noeviction"))
            if policy != "noeviction":
                fields = {"policy": policy[:_TEXT], "fix": "set maxmemory-policy noeviction"}
                yield Condition("warning", "redis_may_evict", node | fields)
            if limit and used is not None and used >= NEAR_BOUND * limit:
                full = {"used": used, "maxmemory": limit, "fix": "raise maxmemory, or lower ttl="}
                yield Condition("warning", "redis_memory_full", node | full)

    def _document(self) -> dict[str, Any]:
        facts, now = self._facts, time.time()
        return {
            "version": self._version,
            "time": now,
            "interval": INTERVAL,
            "worker": self._local(),
            "bound": self._bound,
            "age": None if facts is None else max(0.0, now - facts.time),
            "redis": {
                "address": self._address,
                "reachable": self._failed_since is None,
                "since": self._failed_since,
                "refused": self._refused and self._failed_since is not None,
                "error": self._error,
                "latency": None if facts is None else facts.latency,
                "servers": [] if facts is None else [_server(each) for each in facts.servers],
            },
            "workers": [] if facts is None else [asdict(each) for each in facts.workers],
            "sessions": [] if facts is None else [self._session(each, facts) for each in facts.sessions],
            "known": 0 if facts is None else facts.known,
            "truncated": facts is not None and facts.truncated,
            "complete": facts is not None and facts.complete,
            "history": list(self._history),
            "problems": [asdict(each) for each in self.problems.latest],
        }

    def _local(self) -> dict[str, Any] | None:
        if self._worker is None:
            return None
        backlog = self._worker.backlog
        failure = None if backlog.failure is None else backlog.failure.value
        return {
            "name": self._worker.worker,
            "events": backlog.events,
            "bytes": backlog.payload_bytes,
            "failure": failure,
        }

    def _session(self, facts: SessionFacts, of: _Facts) -> dict[str, Any]:
        """A session for the page: its id, which may be a credential, is replaced by its hash."""
        found = of.activity.get(facts.session_id)
        idle = None
        if found is not None and found.last_time is not None:
            idle = max(0.0, of.clock - found.last_time)
        return {
            "hash": session_hash(facts.session_id),
            "state": facts.state,
            "server": facts.server[:_TEXT],
            "audience": facts.audience[:_TEXT],
            "authenticated": facts.authenticated,
            "age": facts.age,
            "idle": facts.age if idle is None else idle,
            "expires_in": facts.expires_in,
            "workers": list(facts.workers),
            "running": facts.running,
            "running_on": dict(facts.running_on),
            "bytes": facts.accounted_bytes,
            "client": facts.client[:_TEXT],
            "protocol_version": facts.protocol_version,
            "rate": of.rates.get(facts.session_id),
        }

    # -- one session --------------------------------------------------------------------------------------------------

    async def session(self, hashed: str) -> dict[str, Any] | None:
        """The streams of a session, as JSON; None if no known session has the hash.

        Args:
            hashed: The hash of its id.

        Raises:
            StoreError: Redis could not be read.
        """
        session_id = self._ids.get(hashed)
        if session_id is None:
            return None
        now = time.monotonic()
        read, task = self._details.get(hashed, (-INTERVAL, None))
        if task is None or (task.done() and now - read >= INTERVAL):
            self._make_room(now)
            if len(self._details) >= MAX_DETAIL_VIEWS and hashed not in self._details:
                msg = "too many session detail views at once; try again"
                raise StoreError(msg)
            task = asyncio.create_task(self._detail(session_id, hashed), name="eventscope-console-session")
            task.add_done_callback(_retrieve)
            self._details[hashed] = now, task
        return await asyncio.shield(task)

    def _make_room(self, now: float) -> None:
        for hashed, (read, task) in list(self._details.items()):
            if task.done() and now - read >= INTERVAL:
                del self._details[hashed]

    async def _detail(self, session_id: str, hashed: str) -> dict[str, Any]:
        inspector = self._inspector
        (facts,) = await inspector.read_sessions([session_id])
        runs = await inspector.runs(session_id, rows=DETAIL_ROWS)
        shown = sorted(runs, key=_order)[:DETAIL_RUNS]
        following = await inspector.following(session_id, {each.stream for each in shown})
        alive = await inspector.alive([*facts.workers, *(each.worker for each in shown)])
        now = await inspector.clock() / 1_000_000
        return {
            "hash": hashed,
            "state": facts.state,
            "memory": sum(each.memory or 0 for each in runs),
            "workers": {name: alive.get(name, False) for name in facts.workers},
            "truncated": len(runs) > len(shown),
            "streams": [
                _stream(each, now, following=following.get(each.stream), alive=alive.get(each.worker, False))
                for each in shown
            ],
        }

    async def events(
        self, hashed: str, stream: str, run: str, after: int, *, payloads: bool
    ) -> list[dict[str, Any]] | None:
        """Events of a stream, as JSON; None if no known session has the hash.

        Args:
            hashed: The hash of the session's id.
            stream: The stream.
            run: The run.
            after: The number before the first event.
            payloads: Whether to include their contents.

        Raises:
            StoreError: Redis could not be read.
        """
        session_id = self._ids.get(hashed)
        if session_id is None:
            return None
        async with self._events:
            rows = await self._inspector.events(session_id, stream, run, after)
        found = []
        for row in rows:
            facts = event_facts(row)
            shown = {
                "number": facts.number,
                "time": facts.time,
                "type": facts.type,
                "method": facts.method[:_TEXT],
                "bytes": len(facts.payload or b""),
            }
            if payloads:
                shown["payload"] = (facts.payload or b"").decode("utf-8", "replace")
            found.append(shown)
        return found


def _retrieve(task: asyncio.Task[dict[str, Any]]) -> None:
    """Retrieve the exception of a task whose viewer may have disconnected."""
    if not task.cancelled():
        task.exception()


def _order(run: RunFacts) -> tuple[bool, float]:
    """Running requests first, then the most recent events."""
    return run.state not in {"running", "standalone"}, -(run.last_time or 0)


def _stream(facts: RunFacts, now: float, *, following: int | None, alive: bool) -> dict[str, Any]:
    request = facts.request_id
    return {
        "stream": "" if facts.stream == GET_STREAM_KEY else facts.stream,
        "key": facts.stream,
        "run": facts.run,
        "worker": facts.worker,
        "worker_alive": alive,
        "state": facts.state,
        "request_id": request[:_TEXT] if isinstance(request, str) else request,
        "first": facts.first,
        "last": facts.last,
        "retained": facts.retained,
        "memory": facts.memory,
        "idle": None if facts.last_time is None else max(0.0, now - facts.last_time),
        "expires_in": facts.expires_in,
        "following": following,
    }


def _server(facts: ServerFacts) -> dict[str, Any]:
    info = facts.info
    names = {
        "role": "role",
        "memory": "used_memory",
        "maxmemory": "maxmemory",
        "policy": "maxmemory_policy",
        "clients": "connected_clients",
        "commands": "instantaneous_ops_per_sec",
        "evicted": "evicted_keys",
        "uptime": "uptime_in_seconds",
        "aof": "aof_enabled",
        "loading": "loading",
        "replicas": "connected_slaves",
    }
    shown = {name: _shown(info.get(key)) for name, key in names.items()}
    return {"node": facts.node, "kind": facts.kind, "version": facts.version, **shown}


def _shown(value: object) -> object:
    return value if value is None or isinstance(value, int | float) else str(value)[:_TEXT]


def _number(info: Mapping[str, Any], name: str) -> int | None:
    value = info.get(name)
    return value if isinstance(value, int) else None


def _sum(servers: Iterable[ServerFacts], name: str) -> float | None:
    values = [value for each in servers if (value := _number(each.info, name)) is not None]
    return float(sum(values)) if values else None
