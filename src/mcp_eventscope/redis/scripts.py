"""The Lua scripts, one typed function each."""

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import NoScriptError

from mcp_eventscope.redis.keys import Keys


class Client(Protocol):
    """What is asked of a client: `redis.asyncio.Redis`, or its cluster counterpart."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]:
        """Send one command and return its reply."""
        ...


class Script:
    """One Lua script, called by its digest; Redis is sent the text only when it does not know it."""

    def __init__(self, filename: str) -> None:
        text = resources.files(__package__).joinpath("lua", filename).read_text("utf-8")
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def call(self, *, whole: bool) -> tuple[bytes, bytes]:
        """The command and its first argument: by digest, or with the whole text, which also loads it."""
        return (b"EVAL", self._text.encode()) if whole else (b"EVALSHA", self._sha.encode())

    async def __call__(self, client: Client, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run the script and return its reply, text as bytes whatever the client's `decode_responses`.

        Replies are never decoded by the client: one row that is not UTF-8 would fail the whole reply. Nor is text
        encoded by it: its `encoding` is the application's, and another client of the same store may have another.
        """
        sent = [len(keys), *(text.encode() if isinstance(text, str) else text for text in (*keys, *args))]
        try:
            return await client.execute_command("EVALSHA", self._sha, *sent, NEVER_DECODE=True)
        except NoScriptError:
            # EVAL also loads it: after a restart or SCRIPT FLUSH one call pays, not every worker's start.
            return await client.execute_command("EVAL", self._text, *sent, NEVER_DECODE=True)


_record = Script("record.lua")
_touch = Script("touch.lua")
_end = Script("end.lua")


async def record(client: Client, keys: Keys, ttl: int, owner: str, handshake: str) -> str:
    """Record a session, unless it is another's or has ended.

    Args:
        client: Where to.
        keys: The session's prefix, as keys.
        ttl: Seconds until the record expires.
        owner: Whose session it is.
        handshake: What another worker needs to serve it.

    Returns:
        `live`; or `other` or `ended`, and nothing was changed.
    """
    state: bytes = await _record(client, [keys.session], [ttl, owner, handshake])
    return state.decode("ascii")


def queue_record(pipeline: Client, keys: Keys, ttl: int, owner: str, handshake: str) -> None:
    """Queue a `record` on a pipeline. Redis must know the script; arguments as in `record`."""
    _, sha = _record.call(whole=False)
    arguments = [1, keys.session.encode(), ttl, owner.encode(), handshake.encode()]
    pipeline.execute_command("EVALSHA", sha, *arguments)


async def touch(client: Client, keys: Keys, ttl: int, owner: str) -> tuple[str, str]:
    """Renew a session's record, for its owner, and read it; one that is not there is not made.

    Args:
        client: Where from.
        keys: The session's prefix, as keys.
        ttl: Seconds until the record expires.
        owner: Who asks.

    Returns:
        `live`, `ended`, `other` (somebody else's) or `absent`; and the handshake, when it is live.
    """
    state, handshake = await _touch(client, [keys.session], [ttl, owner])
    return state.decode("ascii"), handshake.decode("utf-8", "replace")


async def end(client: Client, keys: Keys, ttl: int) -> None:
    """End a session for all workers.

    Args:
        client: Where to.
        keys: The session's prefix, as keys.
        ttl: Seconds for which it is remembered that it has ended.
    """
    await _end(client, [keys.session], [ttl])


_survey = Script("survey.lua")


@dataclass(frozen=True, slots=True)
class Survey:
    """What `survey.lua` says of some keys."""

    cursor: str
    keys: int
    weighed: int
    bytes: int
    lasting: dict[str, int]
    """Keys without TTL, by what they are."""


async def survey(client: Client, cursor: str, prefix: str, pattern: str, *, keys: int, events: int) -> Survey:  # noqa: PLR0913 - the script's arguments
    """Look at some of the keys of a database. Not for a cluster: it names no keys.

    Args:
        client: Where.
        cursor: "0", or `Survey.cursor` of the call before.
        prefix: The prefix of the store.
        pattern: The same, as a pattern.
        keys: How many keys to look at, about.
        events: How many events to weigh, at most.

    Returns:
        What is there.
    """
    cursor_then, found, weighed, size, *lasting = await _survey(client, [], [cursor, prefix, pattern, keys, events])
    return Survey(
        cursor=cursor_then.decode("ascii"),
        keys=found,
        weighed=weighed,
        bytes=size,
        lasting={
            kind.decode("ascii", "replace"): number for kind, number in zip(lasting[::2], lasting[1::2], strict=True)
        },
    )
