"""The Lua scripts, one typed function each."""

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import NoScriptError

from mcp_eventscope.redis.keys import Keys


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


async def record(  # noqa: PLR0913, PLR0917 - the script's arguments
    client: Client, keys: Keys, ttl: int, owner: str, handshake: str, worker: str
) -> str:
    """Record a session, unless it belongs to another owner or has ended.

    Args:
        client: The client.
        keys: The session's keys.
        ttl: Seconds until the record expires.
        owner: The digest of the session's principal.
        handshake: The `initialize` parameters, with which another worker can serve the session.
        worker: The name of this worker, which serves the session.

    Returns:
        `live`; or `other` or `ended`, in which case nothing was changed.
    """
    state: bytes = await _record(client, [keys.session], [ttl, owner, handshake, SERVING + worker])
    return state.decode("ascii")


def queue_record(  # noqa: PLR0913, PLR0917 - the script's arguments
    pipeline: Client, keys: Keys, ttl: int, owner: str, handshake: str, worker: str
) -> None:
    """Queue a `record` on a pipeline. Redis must know the script; arguments as in `record`."""
    _, sha = _record.call(as_eval=False)
    arguments = [1, keys.session.encode(), ttl, owner.encode(), handshake.encode(), (SERVING + worker).encode()]
    pipeline.execute_command("EVALSHA", sha, *arguments)


async def touch(client: Client, keys: Keys, ttl: int, owner: str, worker: str) -> tuple[str, str]:
    """Renew and read a session's record on behalf of its owner. A missing record is not created.

    Args:
        client: The client.
        keys: The session's keys.
        ttl: Seconds until the record expires.
        owner: The digest of the caller's principal.
        worker: The name of this worker, which serves the session from now on.

    Returns:
        `live`, `ended`, `other` (another owner) or `absent`; and the handshake of a live session.
    """
    state, handshake = await _touch(client, [keys.session], [ttl, owner, SERVING + worker])
    return state.decode("ascii"), handshake.decode("utf-8", "replace")


async def end(client: Client, keys: Keys, ttl: int) -> None:
    """End a session for all workers.

    Args:
        client: The client.
        keys: The session's keys.
        ttl: Seconds for which Redis remembers the end.
    """
    await _end(client, [keys.session], [ttl])


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
    next_cursor, found, weighed, size, *lasting = await _survey(client, [], [cursor, prefix, pattern, keys, events])
    return Survey(
        cursor=next_cursor.decode("ascii"),
        keys=found,
        weighed=weighed,
        bytes=size,
        lasting={
            kind.decode("ascii", "replace"): number for kind, number in zip(lasting[::2], lasting[1::2], strict=True)
        },
    )
