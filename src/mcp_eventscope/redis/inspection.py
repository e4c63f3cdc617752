"""Facts about workers and sessions, read from Redis without changing anything.

For an operator's tools. Walks use SCAN in small steps, and reads are pipelines of bounded size, so Redis serves its
workers in between. No key is created, renewed or removed.
"""

import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pydantic_core
from redis.exceptions import ResponseError

from mcp_eventscope.errors import CorruptEventError, StoreRejectedError
from mcp_eventscope.redis import run_entry
from mcp_eventscope.redis.client import AnyRedis, UnexpectedReplyError, map_redis_errors, parsing
from mcp_eventscope.redis.keys import Keys, pattern_of
from mcp_eventscope.redis.masters import Master, info, masters
from mcp_eventscope.redis.read.elements import Row, read_run
from mcp_eventscope.redis.read.run_reader import CHUNK_BYTES, FIRST_EVENTS
from mcp_eventscope.redis.scripts import SERVING, Survey, survey
from mcp_eventscope.redis.stats import SCANNED_PER_SCRIPT
from mcp_eventscope.redis.write.runs import is_run, worker_of
from mcp_eventscope.store import codec
from mcp_eventscope.store.messages import (
    GET_STREAM_KEY,
    JSONRPCNotification,
    JSONRPCRequest,
    RequestId,
    StreamId,
    type_of,
)

SCANNED_AT_ONCE = 1000
"""Keys that one SCAN examines: it blocks Redis for less than a millisecond."""
MAX_KEYS = 1_000_000
"""Keys that one walk examines by default."""
READ_AT_ONCE = 100
"""Sessions or runs that one pipeline reads."""
INDEX_ROWS = 1000
"""Maximum number of rows of a session's index that are read: the newest."""
RECENT_ROWS = 128
"""The same, for readers that poll."""
HANDSHAKE_BYTES = 64 << 10
"""Maximum size in bytes of a handshake that is read: a client may send several megabytes."""

_SECONDS = 1_000_000
_BYTE = 255
_WORKER = re.compile(r"[0-9a-f]{12}", re.ASCII)
_HEADER = re.compile(rb"([0-9]{1,16}) ([0-9]{1,18})( f)?")


@dataclass(slots=True)
class Walk:
    """The bounds and the progress of walks through the database."""

    max_keys: int = MAX_KEYS
    """Approximate maximum number of keys that each walk examines."""
    on_step: Callable[[int], None] | None = None
    """Called after each step with the keys that were examined so far."""
    scanned: int = 0
    """Keys that were examined, by all walks."""
    truncated: bool = False
    """Whether a walk ended at `max_keys`, so that keys were left out."""

    def step(self, keys: int) -> None:
        """Count examined keys."""
        self.scanned += keys
        if self.on_step is not None:
            self.on_step(self.scanned)


@dataclass(slots=True)
class Crawl:
    """A walk in parts, each of which continues where the previous one ended.

    After the last part it starts over.
    """

    most: int
    """Maximum number of names that are kept."""
    rounds: int = 0
    """Complete walks."""
    truncated: bool = False
    """Whether names were left out."""
    _nodes: deque[str | None] = field(default_factory=deque)
    """The masters of a cluster that this round has yet to scan, the current one first."""
    _cursor: str = "0"
    _found: dict[str, None] = field(default_factory=dict)
    _before: dict[str, None] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names that the current round or the last complete one has found."""
        return list((self._before | self._found).keys())[: self.most]

    def restart(self) -> None:
        """Begin the round again, since the masters may have changed; the names of the last complete one are kept."""
        self._nodes.clear()
        self._cursor = "0"
        self._found = {}

    def _add(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self._found) < self.most or name in self._found:
                self._found[name] = None
            else:
                self.truncated = True

    def _end_round(self) -> None:
        self.truncated = self.truncated and len(self._found) >= self.most
        self._before, self._found = self._found, {}
        self.rounds += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A Redis server, as it describes itself."""

    node: str
    """The name of the master of a cluster; empty otherwise."""
    kind: str
    """`valkey`, `redis`, or the name that the server gives."""
    version: str
    info: Mapping[str, Any]
    """Its INFO; empty where it could not be read."""
    problem: str = ""
    """Why it could not be read, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """A worker: a process that serves sessions."""

    name: str
    alive: bool
    """Whether its lease lives. A dead worker is listed while its inbox or its sessions name it."""
    lease_seconds: float | None
    """Seconds until its lease expires unless it is renewed; None without a lease."""
    inbox: int
    """Unread messages from other workers."""
    sessions: int
    """Live sessions whose record names it."""
    requests: int
    """Requests that it runs, or ran when it died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """The events of one request, or of one worker on a session's standalone stream."""

    stream: StreamId
    run: str
    worker: str
    state: str
    """`running`: without a response yet. `completed`: ends with the response. `answered`: an error was stored in place
    of a dead worker. `standalone`: it has no end. `unclaimed`: neither a response nor an entry of a running request."""
    request_id: RequestId | None
    """The id of a running request, with its JSON type."""
    first: int
    """The number of the first retained event; 0 without any."""
    last: int
    """The number of the last event; 0 without any."""
    retained: int
    """Elements in Redis."""
    memory: int | None
    """Bytes that these use, without payloads above 4 KiB, which have keys of their own; None if unknown."""
    last_time: float | None
    """When the last event was accepted, in seconds since 1970."""
    expires_in: float | None
    """Seconds until the events expire; None without events, or without a TTL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """A session."""

    session_id: str
    state: str
    """`live`, `ended`, or `absent`: without a record, which has expired or was lost."""
    server: str
    """The name of the server that it belongs to."""
    audience: str
    """The audience of the token with which it was opened; empty without one."""
    authenticated: bool
    """Whether it belongs to a principal."""
    age: float | None
    """Seconds since its record was written; None if unknown."""
    expires_in: float | None
    """Seconds until its record expires unless a request renews it; None without a TTL."""
    workers: tuple[str, ...]
    """The workers that serve it."""
    running: int
    """Requests without a response."""
    running_on: Mapping[str, int]
    """The same, by worker."""
    accounted_bytes: int
    """Bytes of its events, as its workers account for them; the newest are not yet included."""
    client: str
    """The client's name and version, from its `initialize` request: untrusted. Empty if unknown."""
    protocol_version: str
    """The revision that the client asked for: untrusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityFacts:
    """The recent activity of a session: of its open runs, and of those in the last rows of its index."""

    last_time: float | None
    """When the last of their events was accepted, in seconds since 1970; None without any."""
    numbers: Mapping[str, int]
    """The number of the last event, by run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFacts:
    """A retained event."""

    number: int
    time: float
    """When it was accepted, in seconds since 1970."""
    type: str
    """The type of its message; `lost` for numbers whose events are not retained, `corrupt` for an unreadable one."""
    method: str
    """The method of a notification or request: untrusted. Empty otherwise."""
    payload: bytes | None
    """The message as JSON: untrusted, and it may be confidential. None where it is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """The sessions that a walk found."""

    sessions: tuple[SessionFacts, ...]
    truncated: bool
    """Whether there may be more: the walk ended at its limit of keys or of sessions."""


@dataclass(frozen=True, slots=True)
class _Entries:
    """The entries of a session's `requests`, by run."""

    entries: Mapping[str, bytes]

    @property
    def running(self) -> list[str]:
        return [run for run, entry in self.entries.items() if run_entry.is_open(entry)]


class Inspector:
    """Reads facts about workers and sessions.

    Args:
        redis: The client.
        keys: The keys of the root store.
    """

    def __init__(self, redis: AnyRedis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def servers(self) -> list[ServerFacts]:
        """Read the descriptions of the server, or of each master of a cluster.

        Raises:
            StoreError: Redis could not be read.
        """
        return [await self._server(node) for node in await self._masters()]

    async def _server(self, node: str | None) -> ServerFacts:
        facts: Mapping[str, Any] = {}
        problem = ""
        try:
            with map_redis_errors("read from", self._redis):
                facts = await info(self._redis, node)
        except StoreRejectedError as error:
            problem = str(error)
        kind = str(facts.get("server_name") or ("dragonfly" if "dragonfly_version" in facts else "redis"))
        version = facts.get(f"{kind}_version") or facts.get("redis_version") or ""
        return ServerFacts(node=node or "", kind=kind, version=str(version), info=facts, problem=problem)

    async def _masters(self) -> list[str | None]:
        with map_redis_errors("read from", self._redis):
            return await masters(self._redis)

    async def ping(self) -> None:
        """Make a round trip; on a cluster, to one of its masters.

        Raises:
            StoreError: Redis did not answer.
        """
        node, *_ = await self._masters()
        with map_redis_errors("reach", self._redis):
            if await Master(self._redis, node).execute_command("PING") is not True:
                raise UnexpectedReplyError(command="PING")

    async def clock(self) -> int:
        """Return Redis's time in microseconds since 1970; on a cluster, that of one of its masters.

        Raises:
            StoreError: Redis could not be read.
        """
        node, *_ = await self._masters()
        with map_redis_errors("read from", self._redis), parsing("TIME"):
            seconds, microseconds = await Master(self._redis, node).execute_command("TIME")
            if max(seconds, microseconds) <= _BYTE:  # redis-py takes the bytes of a text for both numbers.
                raise UnexpectedReplyError(command="TIME")
        return int(seconds) * _SECONDS + int(microseconds)

    async def scan(self, pattern: str, walk: Walk) -> AsyncIterator[list[str]]:
        """Walk the keys of the database that match a pattern, in steps of about `SCANNED_AT_ONCE` keys.

        Args:
            pattern: The pattern.
            walk: The bounds of the walk.

        Yields:
            The names of the keys of each step, each key at least once.

        Raises:
            StoreError: Redis could not be read.
        """
        left = walk.max_keys
        for node in await self._masters():
            cursor = "0"
            while True:
                cursor, keys = await self._scan(node, cursor, pattern)
                left -= SCANNED_AT_ONCE
                walk.step(SCANNED_AT_ONCE)
                yield keys
                if cursor == "0":
                    break
                if left <= 0:
                    walk.truncated = True
                    return

    async def _scan(self, node: str | None, cursor: str, pattern: str) -> tuple[str, list[str]]:
        """Make one step of a walk; return the next cursor, and the keys that match."""
        with map_redis_errors("read from", self._redis), parsing("SCAN"):
            reply = await Master(self._redis, node).execute_command(
                "SCAN", cursor, "MATCH", pattern, "COUNT", SCANNED_AT_ONCE, NEVER_DECODE=True
            )
            return _cursor(reply[0]), [key.decode("utf-8", "replace") for key in reply[1]]

    async def _crawl(
        self, crawl: Crawl, pattern: str, names: Callable[[list[str]], Iterable[str]], max_keys: int
    ) -> None:
        """Make the next part of a walk, at most to the end of its round."""
        for _ in range(0, max_keys, SCANNED_AT_ONCE):
            if not crawl._nodes:
                crawl._nodes.extend(await self._masters())
            try:
                cursor, keys = await self._scan(crawl._nodes[0], crawl._cursor, pattern)
            except Exception:
                crawl.restart()
                raise
            crawl._cursor = cursor
            crawl._add(names(keys))
            if cursor == "0":
                crawl._nodes.popleft()
                if not crawl._nodes:
                    crawl._end_round()
                    return

    async def crawl_sessions(self, crawl: Crawl, *, max_keys: int) -> None:
        """Look for sessions in the next part of the database.

        Args:
            crawl: Keeps the position, and the ids of the sessions.
            max_keys: Approximate maximum number of keys that are examined.

        Raises:
            StoreError: Redis could not be read.
        """
        suffix = ":session"
        await self._crawl(crawl, self._session_pattern(suffix), lambda keys: self._ids_of(keys, suffix), max_keys)

    async def crawl_workers(self, crawl: Crawl, *, max_keys: int) -> None:
        """Look for workers in the next part of the database, by their leases. Arguments as in `crawl_sessions`.

        Raises:
            StoreError: Redis could not be read.
        """
        prefix = self._keys.worker("")
        await self._crawl(
            crawl, f"{pattern_of(prefix)}*", lambda keys: [key.removeprefix(prefix) for key in keys], max_keys
        )

    async def survey(self, walk: Walk, *, events: int = 0) -> AsyncIterator[Survey]:
        """Examine the keys under the prefix, in steps that block Redis for about half a millisecond.

        Args:
            walk: The bounds of the walk.
            events: Maximum number of runs that one step weighs.

        Yields:
            The result of each step.

        Raises:
            StoreError: Redis could not be read.
        """
        left, pattern = walk.max_keys, f"{pattern_of(self._keys.prefix)}*"
        for node in await self._masters():
            master, cursor = Master(self._redis, node), "0"
            while True:
                with map_redis_errors("scan", self._redis):
                    seen = await survey(
                        master, cursor, self._keys.prefix, pattern, keys=SCANNED_PER_SCRIPT, events=events
                    )
                cursor = seen.cursor
                left -= SCANNED_PER_SCRIPT
                walk.step(SCANNED_PER_SCRIPT)
                yield seen
                if cursor == "0":
                    break
                if left <= 0:
                    walk.truncated = True
                    return

    # -- workers ------------------------------------------------------------------------------------------------------

    async def workers(self, walk: Walk) -> list[WorkerFacts]:
        """Read the workers, with the sessions that they serve and the requests that they run.

        Args:
            walk: The bounds of the walks.

        Raises:
            StoreError: Redis could not be read.
        """
        sessions: Counter[str] = Counter()
        requests: Counter[str] = Counter()
        seen: set[str] = set()  # A walk may find a key twice.
        async for ids in self._session_ids(walk):
            new = [each for each in ids if each not in seen]
            seen.update(new)
            for facts in await self.read_sessions(new):
                if facts.state == "live":
                    sessions.update(facts.workers)
                requests.update(facts.running_on)
        names = {*sessions, *requests}
        for prefix in (self._keys.worker(""), self._keys.inbox("")):
            async for keys in self.scan(f"{pattern_of(prefix)}*", walk):
                names |= {key.removeprefix(prefix) for key in keys}
        return await self.read_workers(names, sessions, requests)

    async def read_workers(
        self, names: Iterable[str], sessions: Mapping[str, int], requests: Mapping[str, int]
    ) -> list[WorkerFacts]:
        """Read the leases and inboxes of workers.

        Args:
            names: Their names. A name of another form is skipped.
            sessions: The sessions of each worker.
            requests: The running requests of each worker.

        Raises:
            StoreError: Redis could not be read.
        """
        ordered = sorted(name for name in set(names) if _WORKER.fullmatch(name))
        replies = await self._batches(
            command
            for name in ordered
            for command in (("PTTL", self._keys.worker(name)), ("XLEN", self._keys.inbox(name)))
        )
        return [
            WorkerFacts(
                name=name,
                alive=_number(lease) != -2,
                lease_seconds=_seconds(lease),
                inbox=max(0, _number(inbox) - 1),  # One entry always remains: it has been read, or is no message.
                sessions=sessions.get(name, 0),
                requests=requests.get(name, 0),
            )
            for name, lease, inbox in zip(ordered, replies[::2], replies[1::2], strict=True)
        ]

    async def alive(self, workers: Iterable[str]) -> dict[str, bool]:
        """Whether each worker has a lease.

        Raises:
            StoreError: Redis could not be read.
        """
        names = sorted(set(workers))
        replies = await self._batches(("EXISTS", self._keys.worker(name)) for name in names)
        return {name: reply == 1 for name, reply in zip(names, replies, strict=True)}

    async def server_name(self) -> str | None:
        """The name of the server that uses the prefix; None if none has claimed it.

        Raises:
            StoreError: Redis could not be read.
        """
        (name,) = await self._batches([("GET", self._keys.server)])
        return _text(name) if isinstance(name, bytes) else None

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def sessions(self, walk: Walk, *, limit: int, ended: bool = True, server: str | None = None) -> SessionPage:
        """Read sessions that have a record, in no particular order.

        Args:
            walk: The bounds of the walk.
            limit: Maximum number of sessions.
            ended: Whether to include sessions that have ended. Their server is unknown.
            server: Only sessions of the server with this name; None: of all.

        Raises:
            StoreError: Redis could not be read.
        """
        found: dict[str, SessionFacts] = {}
        async for ids in self._session_ids(walk):
            for facts in await self.read_sessions([each for each in ids if each not in found]):
                listed = facts.state == "live" or (ended and facts.state == "ended")
                if listed and server in {None, facts.server}:
                    found[facts.session_id] = facts
            if len(found) > limit:
                break
        truncated = len(found) > limit or walk.truncated
        return SessionPage(sessions=tuple(found.values())[:limit], truncated=truncated)

    async def session(self, session_id: str) -> SessionFacts:
        """Read one session.

        Args:
            session_id: The session; `absent` where it has no record.

        Raises:
            StoreError: Redis could not be read.
        """
        (facts,) = await self.read_sessions([session_id])
        return facts

    async def read_sessions(self, session_ids: Sequence[str]) -> list[SessionFacts]:
        """Read sessions by their ids, those without a record included.

        Args:
            session_ids: The sessions.

        Raises:
            StoreError: Redis could not be read.
        """
        if not session_ids:
            return []
        keys = [self._keys.for_session(each) for each in session_ids]
        # The record without the handshake, which may be large.
        replies = await self._batches(
            command
            for each in keys
            for command in (
                ("HMGET", each.session, "ended", "owner", "server", "since"),
                ("HKEYS", each.session),
                ("HSTRLEN", each.session, "handshake"),
                ("PTTL", each.session),
                ("HGET", each.sizes, "total"),
                ("HGETALL", each.requests),
            )
        )
        rows = [replies[at : at + 6] for at in range(0, len(replies), 6)]
        handshakes = await self._batches(
            ("HGET", each.session, "handshake" if 0 < _number(row[2]) <= HANDSHAKE_BYTES else "")
            for each, row in zip(keys, rows, strict=True)
        )
        now = await self.clock()
        return [
            _session(session_id, row, handshake, now)
            for session_id, row, handshake in zip(session_ids, rows, handshakes, strict=True)
        ]

    async def runs(self, session_id: str, *, rows: int = INDEX_ROWS) -> list[RunFacts]:
        """Read the runs of a session: those of its requests, and one of each worker on its standalone stream.

        Of a session with very many runs, the open ones and the most recent others.

        Args:
            session_id: The session.
            rows: Rows of the session's index that are read at most, the newest.

        Raises:
            StoreError: Redis could not be read.
        """
        (runs,) = named = await self._named([session_id], rows)
        lists = self._lists([session_id], named)
        states = await self._batches(
            command
            for key in lists
            for command in (("LINDEX", key, 0), ("LINDEX", key, -1), ("LLEN", key), ("PTTL", key))
        )
        sizes = await self._batches((("MEMORY USAGE", key) for key in lists), optional=True)
        return [
            _run(stream, run, entry, states[4 * place : 4 * place + 4], sizes[place])
            for place, (run, (stream, entry)) in enumerate(runs.items())
        ]

    async def positions(self, session_ids: Sequence[str]) -> list[dict[tuple[StreamId, str], int]]:
        """Read the last event numbers of sessions, by stream and run.

        Those of open runs, and of the most recent others.

        Args:
            session_ids: The sessions.

        Raises:
            StoreError: Redis could not be read.
        """
        named = await self._named(session_ids, RECENT_ROWS)
        tails = iter(await self._batches(("LINDEX", key, -1) for key in self._lists(session_ids, named)))
        return [{(stream, run): _numbered(next(tails)) for run, (stream, _) in runs.items()} for runs in named]

    async def activity(self, session_ids: Sequence[str], *, rows: int, most: int) -> list[ActivityFacts]:
        """Read the recent activity of sessions.

        Args:
            session_ids: The sessions.
            rows: Rows of each session's index that are read at most, the newest.
            most: Runs of each session that are read at most: the open ones first, then the most recent.

        Raises:
            StoreError: Redis could not be read.
        """
        named = [_latest(runs, most) for runs in await self._named(session_ids, rows)]
        tails = iter(await self._batches(("LINDEX", key, -1) for key in self._lists(session_ids, named)))
        return [_activity({run: next(tails) for run in runs}) for runs in named]

    async def following(self, session_id: str, streams: Iterable[StreamId]) -> dict[StreamId, int | None]:
        """Count the processes that follow each stream of a session by a subscription.

        The worker that runs a request follows it in memory, and is not among them.

        Args:
            session_id: The session.
            streams: The streams.

        Returns:
            The counts; None if Redis refuses to count.

        Raises:
            StoreError: Redis could not be read.
        """
        keys = self._keys.for_session(session_id)
        channels = {keys.stream(stream).encode(): stream for stream in streams}
        counts: dict[StreamId, int | None] = dict.fromkeys(channels.values(), 0)
        if not channels:
            return counts
        for node in await self._masters():
            try:
                with map_redis_errors("read from", self._redis), parsing("PUBSUB NUMSUB"):
                    reply = await Master(self._redis, node).execute_command(
                        "PUBSUB", "NUMSUB", *channels, NEVER_DECODE=True
                    )
                    for channel, count in _pairs(reply):
                        stream = channels[channel]
                        counts[stream] = (counts[stream] or 0) + int(count)
            except StoreRejectedError:
                return dict.fromkeys(counts)
        return counts

    async def events(self, session_id: str, stream: StreamId, run: str, after: int) -> list[Row]:
        """Read a chunk of the events of a run after a number, in ascending order.

        Raises:
            StoreError: Redis could not be read.
        """
        keys = self._keys.for_session(session_id)
        with map_redis_errors("read from", self._redis):
            chunk = await read_run(
                self._redis, keys, stream, run, after, max_events=FIRST_EVENTS, max_bytes=CHUNK_BYTES
            )
        rows = []
        for row in chunk.rows():
            if row[0] > after:  # Another program's element may have any number.
                after = row[0]
                rows.append(row)
        return rows

    async def find_run(self, stream: StreamId, run: str, walk: Walk) -> str | None:
        """Find the session of a run by its events, or else by its entry in a session's `requests`.

        Args:
            stream: The stream.
            run: The run.
            walk: The bounds of the walks.

        Raises:
            StoreError: Redis could not be read.
        """
        suffix = f":stream:{stream}:{run}"
        async for keys in self.scan(self._session_pattern(suffix), walk):
            for session_id in self._ids_of(keys, suffix):
                return session_id
        async for ids in self._session_ids(walk):
            replies = await self._batches(("HEXISTS", self._keys.for_session(each).requests, run) for each in ids)
            for session_id, reply in zip(ids, replies, strict=True):
                if reply == 1:
                    return session_id
        return None

    async def _session_ids(self, walk: Walk) -> AsyncIterator[list[str]]:
        suffix = ":session"
        async for keys in self.scan(self._session_pattern(suffix), walk):
            yield list(dict.fromkeys(self._ids_of(keys, suffix)))

    def _session_pattern(self, suffix: str) -> str:
        return f"{pattern_of(self._keys.prefix)}{{*}}{pattern_of(suffix)}"

    def _ids_of(self, keys: Iterable[str], suffix: str) -> list[str]:
        """The session ids in keys with a suffix. Keys of a longer prefix that begins like this one are skipped."""
        found = []
        for key in keys:
            rest = key.removeprefix(self._keys.prefix).removesuffix(suffix)
            session_id = unquote(rest[1:-1])
            if session_id and self._keys.for_session(session_id).prefix == f"{self._keys.prefix}{rest}:":
                found.append(session_id)
        return found

    async def _named(self, session_ids: Sequence[str], rows: int) -> list[dict[str, tuple[StreamId, bytes | None]]]:
        """Read the streams and entries of runs: of open ones, and of those in the last rows of the index."""
        keys = [self._keys.for_session(each) for each in session_ids]
        replies = await self._batches(
            command for each in keys for command in (("HGETALL", each.requests), ("LRANGE", each.index, -rows, -1))
        )
        return [
            _named_runs(_entries(entries).entries, index if isinstance(index, list) else [])
            for entries, index in zip(replies[::2], replies[1::2], strict=True)
        ]

    def _lists(
        self, session_ids: Sequence[str], named: Sequence[Mapping[str, tuple[StreamId, bytes | None]]]
    ) -> list[str]:
        keys = [self._keys.for_session(each) for each in session_ids]
        return [
            each.run(stream, run) for each, runs in zip(keys, named, strict=True) for run, (stream, _) in runs.items()
        ]

    async def _batches(self, commands: Iterable[tuple[Any, ...]], *, optional: bool = False) -> list[Any]:
        """Run commands in pipelines of bounded size; arguments and replies as in `_pipeline`."""
        replies: list[Any] = []
        pending: list[tuple[Any, ...]] = []
        for command in commands:
            pending.append(command)
            if len(pending) == READ_AT_ONCE:
                replies += await self._pipeline(pending, optional=optional)
                pending = []
        return replies + (await self._pipeline(pending, optional=optional) if pending else [])

    async def _pipeline(self, commands: Sequence[tuple[Any, ...]], *, optional: bool = False) -> list[Any]:
        """Run commands in one round trip.

        Args:
            commands: The commands.
            optional: Whether None replaces the error of a refused command. It always replaces that of a key with the
                type of another program.
        """
        pipeline: Any = self._redis.pipeline(transaction=False)
        for name, *arguments in commands:
            sent = [each.encode() if isinstance(each, str) else each for each in arguments]
            pipeline.execute_command(name, *sent, NEVER_DECODE=True)
        with map_redis_errors("read from", self._redis):
            replies = list(await pipeline.execute(raise_on_error=False))
            for place, reply in enumerate(replies):
                name = str(commands[place][0])
                if isinstance(reply, Exception):
                    if not (isinstance(reply, ResponseError) and (optional or str(reply).startswith("WRONGTYPE"))):
                        raise reply
                    replies[place] = None
                elif not _is_reply_of(name, reply, len(commands[place]) - 2):
                    raise UnexpectedReplyError(name)
        return replies


_TEXTS = frozenset({"GET", "HGET", "LINDEX"})
_LISTS = frozenset({"HKEYS", "LRANGE"})


def _is_reply_of(command: str, reply: object, arguments: int) -> bool:
    """Whether a reply, as redis-py converts it, has the form of those of a command of `Inspector`.

    Args:
        command: The command.
        reply: The reply.
        arguments: The number of its arguments after the key.
    """
    if command == "HGETALL":
        return isinstance(reply, dict) and all(isinstance(each, bytes) for pair in reply.items() for each in pair)
    if command == "HMGET":
        return (
            isinstance(reply, list)
            and len(reply) == arguments
            and all(isinstance(each, bytes | None) for each in reply)
        )
    if command in _LISTS:
        return isinstance(reply, list) and all(isinstance(each, bytes) for each in reply)
    return isinstance(reply, bytes | None if command in _TEXTS else int | None if command == "MEMORY USAGE" else int)


def _session(session_id: str, row: Sequence[Any], handshake: object, now: int) -> SessionFacts:
    fields, names, _, ttl, total, requests = row
    ended, owner, server, since = fields if isinstance(fields, list) else (None, None, None, None)
    client, version = _client_of(handshake)
    name, _, audience = _text(server or b"").partition("\n")
    started = int(since) if isinstance(since, bytes) and since.isdigit() else None
    workers = [_text(name) for name in names] if isinstance(names, list) else []
    running = _entries(requests).running
    return SessionFacts(
        session_id=session_id,
        state="ended" if ended is not None else "absent" if owner is None else "live",
        server=name,
        audience=audience,
        authenticated=bool(owner),
        age=None if started is None else max(0, now - started) / _SECONDS,
        expires_in=_seconds(ttl),
        workers=tuple(sorted(name.removeprefix(SERVING) for name in workers if name.startswith(SERVING))),
        running=len(running),
        running_on=Counter(worker_of(run) for run in running),
        accounted_bytes=int(total) if isinstance(total, bytes) and total.isdigit() else 0,
        client=client,
        protocol_version=version,
    )


def _client_of(handshake: object) -> tuple[str, str]:
    """The client's name and revision; empty where the handshake is absent or has another form."""
    if not isinstance(handshake, bytes):
        return "", ""
    try:
        members = pydantic_core.from_json(handshake)
        info = members.get("clientInfo") or {}
        return f"{info.get('name', '')} {info.get('version', '')}".strip()[:200], str(
            members.get("protocolVersion", "")
        )[:40]
    except (ValueError, AttributeError):
        return "", ""


def _entries(reply: object) -> _Entries:
    if not isinstance(reply, dict):
        return _Entries({})
    return _Entries({_text(run): entry for run, entry in reply.items()})


def _named_runs(entries: Mapping[str, bytes], index: Sequence[bytes]) -> dict[str, tuple[StreamId, bytes | None]]:
    """The streams and entries of a session's runs, from its index and its `requests`."""
    found: dict[str, tuple[StreamId, bytes | None]] = {}
    for row in index:
        kind, _, rest = _text(row.partition(b" ")[2]).partition(":")
        stream, _, run = rest.rpartition(":")
        if kind == "stream" and is_run(run):
            found[run] = stream, entries.get(run)
    for run, entry in entries.items():
        if run not in found and is_run(run):
            if run_entry.is_open(entry):
                found[run] = _text(entry.split(b" ", 2)[1]), entry
            elif entry.startswith(b"s "):
                found[run] = GET_STREAM_KEY, entry
    return found


def _run(stream: StreamId, run: str, entry: bytes | None, states: Sequence[Any], memory: Any) -> RunFacts:
    head, tail, length, ttl = states
    first, last = (_HEADER.match(each) if isinstance(each, bytes) else None for each in (head, tail))
    is_open = entry is not None and run_entry.is_open(entry)
    if stream == GET_STREAM_KEY:
        state = "standalone"
    elif run_entry.answer_of(entry) is not None:
        state = "answered"
    elif last is not None and last[3]:
        state = "completed"
    else:
        state = "running" if is_open else "unclaimed"
    return RunFacts(
        stream=stream,
        run=run,
        worker=worker_of(run),
        state=state,
        request_id=run_entry.stored_request_id_of(entry) if is_open and entry is not None else None,
        first=int(first[1]) if first else 0,
        last=int(last[1]) if last else 0,
        retained=_number(length),
        memory=memory if isinstance(memory, int) else None,
        last_time=int(last[2]) / _SECONDS if last else None,
        expires_in=_seconds(ttl),
    )


def _latest(runs: dict[str, tuple[StreamId, bytes | None]], most: int) -> dict[str, tuple[StreamId, bytes | None]]:
    """The open runs, then the last ones of the mapping, which are the most recent."""

    def finished(run: tuple[str, tuple[StreamId, bytes | None]]) -> bool:
        _, (_, entry) = run
        return entry is None or not run_entry.is_open(entry)

    newest = [*runs.items()][::-1]
    return dict(sorted(newest, key=finished)[:most])


def _activity(tails: Mapping[str, object]) -> ActivityFacts:
    found = {run: _HEADER.match(tail) for run, tail in tails.items() if isinstance(tail, bytes)}
    numbers = {run: int(header[1]) for run, header in found.items() if header}
    times = [int(header[2]) for header in found.values() if header]
    return ActivityFacts(last_time=max(times) / _SECONDS if times else None, numbers=numbers)


def event_facts(row: Row) -> EventFacts:
    """Describe a row of `Inspector.events`."""
    number, clock, first, _, payload = row
    kind, method = _kind_of(first, number, payload)
    return EventFacts(number=number, time=clock / _SECONDS, type=kind, method=method, payload=payload)


def _kind_of(first: int, number: int, payload: bytes | None) -> tuple[str, str]:
    """The type of an event, and the method of a notification or request."""
    if payload is None or first < number:
        return "lost", ""
    if not payload:
        return "priming", ""
    try:
        message = codec.decode(payload)
    except CorruptEventError:
        return "corrupt", ""
    method = message.method if isinstance(message, JSONRPCNotification | JSONRPCRequest) else ""
    return type_of(message).value, method


def _pairs(reply: Any) -> Iterable[tuple[bytes, int]]:
    """The pairs of a reply: redis-py returns those of `PUBSUB NUMSUB` as a list of pairs, and RESP3 as a mapping."""
    if isinstance(reply, Mapping):
        return reply.items()
    flat = [each for part in reply for each in (part if isinstance(part, list | tuple) else (part,))]
    return zip(flat[::2], flat[1::2], strict=True)


def _cursor(cursor: object) -> str:
    """The cursor in a reply of SCAN. A cluster client returns it together with the name of the node."""
    if isinstance(cursor, dict):
        (cursor,) = cursor.values()
    return cursor.decode("ascii") if isinstance(cursor, bytes) else str(cursor)


def _numbered(element: object) -> int:
    """The number of an element; 0 without one."""
    found = _HEADER.match(element) if isinstance(element, bytes) else None
    return int(found[1]) if found else 0


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _number(reply: object) -> int:
    """A reply that is a number; 0 for an error, such as that of a key of another type."""
    return reply if isinstance(reply, int) else 0


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int) and milliseconds >= 0 else None
