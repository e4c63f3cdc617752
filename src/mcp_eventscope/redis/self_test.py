"""A self-test of Redis: scripts, commands, keys, channels, writes, and no eviction."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from redis import asyncio as aioredis
from redis.exceptions import ReadOnlyError, ResponseError

from mcp_eventscope.redis.client import TRANSIENT_CODES, AnyRedis, UnexpectedReplyError, map_redis_errors, parsing
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.masters import info
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.redis.workers.worker_id import WorkerId

_SECONDS = "60"
"""The TTL of the keys, which matters if they cannot be removed."""
_CONFIRMATION_SECONDS = 1.0
"""Maximum seconds until a subscription is confirmed."""
_POSITION = re.compile(r"^@user_script: \d+: -?")
"""The beginning of errors in scripts before Redis 7.0."""
_KEYS = re.compile(r"\bkeys?\b")
"""A part of the errors for a key; HKEYS, in those for a command, is none."""
_REFUSALS = (
    "noperm",
    "acl failure",
    "no permissions",
    "the user executing the script can't",  # Before 7.2.
    "unknown command",
    "unknown redis command",
    "not allowed from",
)
"""Parts of the errors for a command that this user, or this server, does not have."""


_OUTDATED = ("syntax error", "wrong number of arguments", "invalid stream id")
"""Parts of the errors of a server that has the command, and not in the form that is sent."""

_TRANSIENT = TRANSIENT_CODES | {"OOM", "MASTERDOWN"}
"""Codes of errors that concern the state of the server."""


class Capability(StrEnum):
    """Something that the store needs of Redis."""

    VERSION = "version"
    """The forms of the commands: Redis 6.2 or later, or Valkey."""
    SCRIPTS = "scripts"
    """EVAL and EVALSHA."""
    COMMANDS = "commands"
    """The commands that the scripts and the workers use."""
    KEYS = "keys"
    """The keys under the prefix."""
    PUBLISH = "publish"
    """Messages to channels under the prefix."""
    SUBSCRIBE = "subscribe"
    """Subscriptions of channels under the prefix."""
    WRITES = "writes"
    """Writes: the server is no replica."""
    NO_EVICTION = "no_eviction"
    """No key is evicted before it expires."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The result of a self-test."""

    available: Mapping[Capability, bool]
    """Whether Redis has each capability; without those that could not be determined."""
    refused: tuple[str, ...]
    """The refused commands, in lower case, sorted."""
    key_prefix: str
    """The prefix of the store's keys and channels."""
    policy: str
    """The eviction policy of Redis; "" if it is unknown."""

    @property
    def missing(self) -> tuple[Capability, ...]:
        """The capabilities that Redis does not have."""
        return tuple(each for each, has in self.available.items() if not has)


class SelfTest:
    """Tries the operations of a store, on keys and a channel of its own under the prefix.

    Args:
        redis: The client.
        keys: The keys of the root store.
        worker: This process.
    """

    def __init__(self, redis: AnyRedis, keys: Keys, worker: WorkerId) -> None:
        self._redis = redis
        self._prefix = keys.prefix
        self._keys = keys
        self._worker = worker

    async def run(self) -> Capabilities:
        """Try each capability, independently of the others.

        Raises:
            StoreError: Redis was not reached, or did not let the client in.
        """
        run = _Run(self._redis, self._keys.for_session(f"self-test-{self._worker.name}"))
        for step in (run.scripts, run.publish, run.subscribe, run.eviction):
            with map_redis_errors("test", self._redis):
                await step()
        return Capabilities(run.available, tuple(sorted(run.refused)), self._prefix, run.policy)


class _Run:
    """One self-test in progress."""

    def __init__(self, redis: AnyRedis, keys: Keys) -> None:
        self._redis = redis
        self._channel = keys.stream("self-test")
        self._names = [f"{keys.prefix}{kind}" for kind in ("string", "hash", "list", "sorted-set", "stream")]
        self.available: dict[Capability, bool] = {}
        self.refused: set[str] = set()
        self.policy = ""

    async def scripts(self) -> None:
        """Try EVAL, which also loads the script, then EVALSHA; and the commands within it."""
        cleaning = [("EXPIRE", self._names[0], _SECONDS), ("UNLINK", *self._names), ("DEL", *self._names)]
        failed = await self._script(cleaning, as_eval=True)
        if failed is None:
            return
        if len(failed) < len(cleaning):  # Else keys could neither expire nor be removed.
            tried = await self._script(_tries(self._names), as_eval=False)
            failed.update(tried or {})
        self.available.setdefault(Capability.SCRIPTS, True)
        errors = failed.items()
        for _, error in errors:
            if error.partition(" ")[0] in _TRANSIENT:
                raise ResponseError(error)  # The test proves nothing now.
        self.available[Capability.WRITES] = not any(error.startswith("READONLY") for _, error in errors)
        self.available[Capability.VERSION] = not any(_has(error, _OUTDATED) for _, error in errors)
        refused = {name for name, error in errors if _is_refusal(error)}
        if refused and all(_KEYS.search(failed[name]) for name in refused):  # A server may check keys in scripts only.
            self.available[Capability.KEYS] = False
            return
        self.available.setdefault(Capability.KEYS, True)
        self.available[Capability.COMMANDS] = not refused
        self.refused |= {name.lower() for name in refused}

    async def _script(self, tries: Sequence[Sequence[str]], *, as_eval: bool) -> dict[str, str] | None:
        """Run a script that tries commands; return the failures by command, or None if it was not run."""
        command, script = _script.call(as_eval=as_eval)
        words = [word for each in tries for word in (str(len(each)), *each)]
        sent = [text.encode() for text in (*self._names, *words)]
        try:
            reply = await self._redis.execute_command(
                command.decode(), script, len(self._names), *sent, NEVER_DECODE=True
            )
        except ReadOnlyError:  # Before 7.0 the script itself is refused on a replica.
            self.available[Capability.WRITES] = False
            return None
        except ResponseError as error:
            if not _is_refusal(str(error)):
                raise
            if _KEYS.search(str(error)):
                self.available[Capability.KEYS] = False
            else:
                self.available[Capability.SCRIPTS] = False
                self.refused.add(command.decode().lower())
            return None
        with parsing(command.decode()):
            texts = [_POSITION.sub("", text.decode("utf-8", "replace")) for text in reply]
            failed = dict(zip(texts[::2], texts[1::2], strict=True))
        if not failed.keys() <= {each[0] for each in tries}:
            raise UnexpectedReplyError(command.decode())
        return failed

    async def publish(self) -> None:
        """Publish a message that no worker receives."""
        # redis-py 7 has no such method for a cluster.
        reply = self._redis.execute_command("PUBLISH", self._channel, "")
        await self._try(Capability.PUBLISH, reply, "publish", lambda receivers: isinstance(receivers, int))

    async def subscribe(self) -> None:
        """Subscribe, as followers do; on Redis Cluster they poll instead."""
        if not isinstance(self._redis, aioredis.Redis):
            return
        async with self._redis.pubsub() as pubsub:
            for command, send in (
                ("subscribe", partial(pubsub.subscribe, self._channel)),
                ("ping", pubsub.ping),
                ("unsubscribe", partial(pubsub.unsubscribe, self._channel)),
            ):
                if self.available.get(Capability.SUBSCRIBE, True):
                    await send()
                    reply = _confirmation(pubsub, command)
                    # redis-py misreads the reply to PING with `decode_responses`.
                    expected = {None, command}.__contains__ if command != "ping" else lambda _: True
                    await self._try(Capability.SUBSCRIBE, reply, command, expected)

    async def _try(
        self, capability: Capability, reply: Awaitable[object], command: str, expected: Callable[[object], bool]
    ) -> None:
        """Record whether Redis allows a command on a channel."""
        try:
            received = await reply
        except UnexpectedReplyError:
            raise
        except ResponseError as error:
            if not _is_refusal(str(error)):
                raise
            self.available[capability] = False
            if "channel" not in str(error):
                self.refused.add(command)
            return
        if not expected(received):
            raise UnexpectedReplyError(command.upper())
        if received is not None:
            self.available[capability] = True

    async def eviction(self) -> None:
        """Read the eviction policy, which is of no consequence without a memory limit."""
        if not isinstance(self._redis, aioredis.Redis):
            return
        try:
            memory = await info(self._redis, None, "memory")
        except ResponseError:  # The policy stays unknown.
            return
        self.policy = str(memory.get("maxmemory_policy", ""))
        if self.policy and "maxmemory" in memory:
            self.available[Capability.NO_EVICTION] = self.policy == "noeviction" or memory["maxmemory"] == 0


async def _confirmation(pubsub: Any, command: str) -> object:
    """The type of the next message of a subscription; None without one in time."""
    try:
        message = await pubsub.get_message(timeout=_CONFIRMATION_SECONDS)
    except (LookupError, TypeError) as error:
        # The client checks no reply before it reads its parts.
        if not pubsub.connection.is_connected:
            raise
        raise UnexpectedReplyError(command.upper()) from error
    return None if message is None else message["type"]


def _is_refusal(error: str) -> bool:
    return _has(error, _REFUSALS)


def _has(error: str, parts: Sequence[str]) -> bool:
    text = error.lower()
    return any(part in text for part in parts)


_script = Script("self_test.lua")


def _tries(names: Sequence[str]) -> list[Sequence[str]]:
    """The commands of the scripts and of the workers, in an order in which all succeed and no key remains.

    Args:
        names: The names of a string, a hash, a list, a sorted set and a stream.
    """
    string, hashed, listed, sorted_set, stream = names
    return [
        ("TIME",),
        ("SET", string, "1", "EX", _SECONDS, "GET"),
        *((read, string) for read in ("GET", "MGET", "EXISTS", "PERSIST", "TTL")),
        ("PEXPIRE", string, f"{_SECONDS}000"),
        ("PTTL", string),
        ("HSET", hashed, "a", "1"),
        ("EXPIRE", hashed, _SECONDS),
        ("HSETNX", hashed, "b", "1"),
        ("HINCRBY", hashed, "b", "1"),
        *((read, hashed, "a") for read in ("HGET", "HMGET", "HEXISTS", "HDEL")),
        ("HGETALL", hashed),
        ("HKEYS", hashed),
        ("RPUSH", listed, "a"),
        ("RPUSHX", listed, "b"),
        ("EXPIRE", listed, _SECONDS),
        ("RENAME", listed, listed),
        ("LLEN", listed),
        ("LINDEX", listed, "0"),
        ("LRANGE", listed, "0", "-1"),
        ("LSET", listed, "0", "c"),
        ("LTRIM", listed, "0", "-1"),
        ("LPOP", listed),
        ("LREM", listed, "1", "b"),
        ("ZADD", sorted_set, "1", "a"),
        ("EXPIRE", sorted_set, _SECONDS),
        ("ZSCORE", sorted_set, "a"),
        ("ZRANGE", sorted_set, "0", "0"),
        ("ZREVRANGE", sorted_set, "0", "0"),
        ("ZRANGEBYSCORE", sorted_set, "-inf", "+inf"),
        ("ZREVRANGEBYSCORE", sorted_set, "+inf", "-inf"),
        ("ZREM", sorted_set, "a"),
        ("XADD", stream, "*", "a", "1"),
        ("XLEN", stream),
        ("EXPIRE", stream, _SECONDS),
        ("XADD", stream, "NOMKSTREAM", "*", "a", "1"),
        ("XRANGE", stream, "(0-0", "+"),
        ("XREVRANGE", stream, "+", "-"),
        ("XREAD", "STREAMS", stream, "0"),
        ("XTRIM", stream, "MINID", "1-0"),
        ("UNLINK", *names),
        ("DEL", *names),
    ]


def commands() -> frozenset[str]:
    """The names of the commands that are tried within a script."""
    return frozenset(each[0] for each in _tries(["", "", "", "", ""]))
