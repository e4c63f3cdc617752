"""The Lua scripts, one typed function each."""

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import NoScriptError

from mcp_eventscope.redis.client import UnexpectedReplyError, parsing
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.store.coordination import NewRecord, SessionRecord


class Client(Protocol):
    """The client interface that scripts need: `redis.asyncio.Redis` or its cluster counterpart."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """Send one command and return its reply."""
        ...


class Script:
    """One Lua script, called by its digest. The text is sent only when Redis does not know it."""

    def __init__(self, filename: str) -> None:
        text = resources.files(__package__).joinpath("lua", filename).read_text("utf-8")
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, *, as_eval: bool) -> tuple[bytes, bytes]:
        """Return the command with the digest or with the text, which also loads the script."""
        return (b"EVAL", self._text.encode()) if as_eval else (b"EVALSHA", self._sha.encode())

    async def __call__(self, client: Client, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run the script and return its reply as bytes, regardless of the client's `decode_responses`.

        The client decodes no replies: a single row that is not UTF-8 would fail the whole reply. It encodes no
        arguments either: another client of the same store may have another `encoding`.
        """
        sent = [len(keys), *(text.encode() if isinstance(text, str) else text for text in (*keys, *args))]
        try:
            return await client.execute_command("EVALSHA", self._sha, *sent, NEVER_DECODE=True)
        except NoScriptError:
            # EVAL also loads it: after a restart or SCRIPT FLUSH one call pays for it, not the start of every worker.
            return await client.execute_command("EVAL", self._text, *sent, NEVER_DECODE=True)


SERVING = "worker:"
"""The prefix of those fields of a session's record that name the workers that serve the session."""

_record = Script("record.lua")
_touch = Script("touch.lua")
_end = Script("end.lua")
_claim = Script("claim.lua")
_serving = Script("serving.lua")
_DELETED_AT_ONCE = 512
"""Keys of an ended session that are deleted in one step, which takes Redis less than a millisecond."""


async def record(client: Client, root: Keys, new: NewRecord, ttl: int, worker: str) -> str:
    """Record a session, unless it belongs to another owner or server, or has ended.

    Args:
        client: The client.
        root: The keys of the root store.
        new: The session.
        ttl: Seconds until the record expires.
        worker: The name of this worker, which serves the session.

    Returns:
        `live`; or `other` or `ended`, in which case nothing was changed.
    """
    keys = [root.for_session(new.session_id).session]
    state: bytes = await _record(client, keys, [ttl, new.owner, new.server, new.handshake, SERVING + worker])
    return state.decode("ascii")


def queue_record(pipeline: Client, root: Keys, new: NewRecord, ttl: int, worker: str) -> None:
    """Queue a `record` on a pipeline; its reply is bytes. Redis must know the script. Arguments as in `record`."""
    _, sha = _record.call(as_eval=False)
    key = root.for_session(new.session_id).session
    texts = [text.encode() for text in (new.owner, new.server, new.handshake, SERVING + worker)]
    pipeline.execute_command("EVALSHA", sha, 1, key.encode(), ttl, *texts, NEVER_DECODE=True)


async def touch(client: Client, root: Keys, sessions: Sequence[NewRecord], ttl: int, worker: str) -> list[str]:
    """Renew sessions' records on behalf of their owners. A missing record is not created.

    Args:
        client: The client.
        root: The keys of the root store.
        sessions: The sessions, with the callers' owners and servers. Their handshakes are not used. On a cluster, one.
        ttl: Seconds until the records expire.
        worker: The name of this worker, which serves the sessions.

    Returns:
        The state of each session; see `SessionRecord`.
    """
    reply = await _touch(client, _records_of(root, sessions), [ttl, "", SERVING + worker, *_claims_of(sessions)])
    return [state.decode("ascii") for state in reply[::2]]


async def read(client: Client, root: Keys, session: NewRecord, ttl: int, worker: str) -> SessionRecord:
    """Renew and read the record of a session that this worker serves from now on; arguments as in `touch`."""
    reply = await _touch(client, _records_of(root, [session]), [ttl, "1", SERVING + worker, *_claims_of([session])])
    state, handshake = reply
    return SessionRecord(state.decode("ascii"), handshake.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Serving:
    """The workers that a session's record names.

    `state` is `live`, `ended`, `absent`, or `other`: the key of the record has another type.
    """

    state: str
    age: int
    """Microseconds since the record was written first, or again after Redis had lost it."""
    workers: frozenset[str]


async def serving(client: Client, root: Keys, session_ids: Sequence[str]) -> list[Serving]:
    """Read which workers serve sessions.

    Args:
        client: The client.
        root: The keys of the root store.
        session_ids: The sessions. On a cluster, one.
    """
    records = [root.for_session(each).session for each in session_ids]
    return [
        Serving(state.decode("ascii"), age, frozenset(name.decode("utf-8", "replace") for name in names))
        for state, age, *names in await _serving(client, records, [SERVING])
    ]


def _records_of(root: Keys, sessions: Sequence[NewRecord]) -> list[str]:
    return [root.for_session(each.session_id).session for each in sessions]


def _claims_of(sessions: Sequence[NewRecord]) -> list[str]:
    return [text for each in sessions for text in (each.owner, each.server)]


async def claim(client: Client, root: Keys, server: str, ttl: int) -> str:
    """Name the server that uses a prefix, unless another one does.

    Args:
        client: The client.
        root: The keys of the root store.
        server: The name of the server.
        ttl: Seconds until the name expires.

    Returns:
        The name of the server that uses the prefix.
    """
    found: bytes = await _claim(client, [root.server], [ttl, server])
    return found.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Remains:
    """The keys of an ended session that Redis still has."""

    rows: int = -1
    """How many rows `deleting` has."""
    next: tuple[bytes, ...] = ()
    """The first of them."""

    def names(self, prefix: str) -> list[str]:
        """The keys that the rows name."""
        names = dict.fromkeys(row.partition(b" ")[2] for row in self.next)
        return [prefix + name.decode("utf-8", "replace") for name in names]


async def end(client: Client, keys: Keys, ttl: int, remains: Remains | None = None) -> Remains:
    """End a session for all workers, and delete some of its keys.

    Args:
        client: The client.
        keys: The session's keys.
        ttl: Seconds for which Redis remembers the end.
        remains: The result of the last call; None: this is the first one.

    Returns:
        The keys that are left. Call again until `Remains.next` is empty.
    """
    last = remains or Remains()
    names = [keys.session, keys.requests, keys.sizes, keys.index, keys.deleting, *last.names(keys.prefix)]
    rows, *first = await _end(client, names, [ttl, len(last.next), last.rows, _DELETED_AT_ONCE])
    return Remains(rows, tuple(first))


_survey = Script("survey.lua")


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of one `survey.lua` call."""

    cursor: str
    keys: int
    weighed: int
    bytes: int
    lasting: dict[str, int]
    """Keys without TTL, by kind."""


async def survey(client: Client, cursor: str, prefix: str, pattern: str, *, keys: int, events: int) -> Survey:  # noqa: PLR0913 - the script's arguments
    """Examine a part of the keys of a database. Not for a cluster, because it declares no keys.

    Args:
        client: The client.
        cursor: "0", or `Survey.cursor` of the previous call.
        prefix: The prefix of the store.
        pattern: The prefix as a SCAN pattern.
        keys: The approximate number of keys to examine.
        events: Maximum number of events to weigh.

    Returns:
        The keys and events found.
    """
    reply = await _survey(client, [], [cursor, prefix, pattern, keys, events])
    if not isinstance(reply, list):
        raise UnexpectedReplyError(command="EVALSHA")
    with parsing("EVALSHA"):
        next_cursor, found, weighed, size, *lasting = reply
        return Survey(
            cursor=str(int(next_cursor)),
            keys=int(found),
            weighed=int(weighed),
            bytes=int(size),
            lasting={
                kind.decode("ascii", "replace"): int(number)
                for kind, number in zip(lasting[::2], lasting[1::2], strict=True)
            },
        )
