"""Damage to what Redis stores: values that resemble those of the layout, and what must never get out."""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from support.stores import patient_client

MARKER = "s3cret-of-the-payload"
"""Part of each payload: neither an error nor a log may contain it."""
RUN = "0123456789ab1"
"""The name of a run of no worker."""


def examples(few: int) -> settings:
    """So many examples in an ordinary run, and those of the profile in `make fuzz`."""
    profile = settings()
    return settings(profile, max_examples=few) if profile.max_examples <= 100 else profile


# -- values ----------------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [
        b"0",
        b"1",
        b"2",
        b"3",
        b"7",
        b"-1",
        b"+1",
        b"007",
        b"1e5",
        b"nan",
        b"inf",
        b"0x1",
        b"1.5",
        b"1_0",
        b"",
        b"x",
        b"9" * 15,
        b"9" * 16,
        b"9" * 17,
        b"9" * 18,
        b"9" * 19,
        b"9" * 309,
        b"9" * 5000,
        b"-" + b"9" * 400,
    ]
) | st.integers(0, 2**64).map(lambda number: b"%d" % number)
JSON_TEXTS = st.sampled_from(
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[1]",
        b"7",
        b'"7"',
        b"true",
        b"1e999",
        b"NaN",
        b"[" * 5000,
        b'{"a":' * 2000,
        b'"\\ud800"',
        b"\xff\xfe",
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":null,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"a":"' + MARKER.encode() + b'"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"' + MARKER.encode() + b'"}}',
        b'{"jsonrpc":"2.0","method":"' + MARKER.encode() + b'","params":[]}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}\n3 1\n{}',
    ]
)
RUBBISH = st.binary(max_size=40)
_MARKS = st.sampled_from(
    [
        b"f",
        b"l",
        b"l1/evicted",
        b"l-5/",
        b"l" + b"-9" * 300,
        b"g",
        b"g5000",
        b"g-1",
        b"g" + b"9" * 400,
        b"t",
        b"t0",
        b"?",
        b"t00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
        b"",
        b"\xff",
    ]
)
ELEMENTS = RUBBISH | st.builds(
    lambda number, time, marks, payload: b" ".join([number, time, *marks]) + b"\n" + payload,
    NUMBERS,
    NUMBERS,
    st.lists(_MARKS, max_size=3),
    JSON_TEXTS | RUBBISH,
)
ENTRIES = (
    RUBBISH
    | st.builds(
        lambda kind, words: b" ".join([kind, *words]),
        st.sampled_from([b"r", b"s", b"a", b"x", b""]),
        st.lists(NUMBERS | JSON_TEXTS, max_size=3),
    )
    | st.builds(lambda last: b"s " + last, NUMBERS)
    | st.builds(lambda stream, request: b"r " + stream + b" " + request, NUMBERS, JSON_TEXTS)
    | st.builds(lambda time, error: b"a " + time + b" " + error, NUMBERS, JSON_TEXTS)
)
FIELDS = st.sampled_from(
    [
        RUN.encode(),
        b"x y",
        b"",
        b"\xff",
        b"total",
        b"ended",
        b"owner",
        b"server",
        b"handshake",
        b"since",
        b"standalone",
        b"worker:" + b"0" * 12,
        b"worker:\xff",
        b"run",
        b"status",
        b"ttl",
        b"beat",
        b"error",
        b"r:k",
        b"a:k",
        b"asked",
        b"epoch",
        b"calls",
        b"current",
        b"restoring:x",
        b"0" * 64,
        b"zz" * 32,
        b"outcome",
        b"answer",
        b"cancel",
        b"seen",
    ]
)
VALUES = ELEMENTS | ENTRIES | NUMBERS | JSON_TEXTS | st.builds(lambda text: b"1 " + text, JSON_TEXTS)


@dataclass(frozen=True)
class Damage:
    """One change to the data of a victim: of a key, by its place among all keys, in sorted order."""

    place: int
    verb: str
    position: int
    field: bytes
    value: bytes

    async def apply(self, client: aioredis.Redis, keys: list[bytes]) -> str:
        """Change the data; returns what was done, for the report of a failure."""
        if not keys:
            return "no key"
        key = keys[self.place % len(keys)]
        kind = (await command(client, "TYPE", key)).decode()
        commands = self._commands(key, kind, await self._present(client, key, kind))
        for each in commands:
            with suppress(ResponseError):  # A worker has replaced the key meanwhile.
                await command(client, *each)
        if commands:
            await command(client, "EXPIRE", key, 60, "NX")
        return f"{kind} {key!r}: {self.verb} {self.position} {self.field[:80]!r} {self.value[:80]!r}"

    async def _present(self, client: aioredis.Redis, key: bytes, kind: str) -> list[bytes]:
        """The fields of a hash, so that one of them is changed."""
        if kind != "hash":
            return []
        return sorted(await command(client, "HKEYS", key))

    def _commands(  # noqa: C901, PLR0911, PLR0912 - a table
        self, key: bytes, kind: str, fields: list[bytes]
    ) -> list[tuple[Any, ...]]:
        match self.verb, kind:
            case "delete", _:
                return [("DEL", key)]
            case "retype", "string":
                return [("DEL", key), ("RPUSH", key, self.value)]
            case "retype", "list":
                return [("DEL", key), ("HSET", key, self.field, self.value)]
            case "retype", _:
                return [("DEL", key), ("SET", key, self.value)]
            case "change", "string":
                return [("SET", key, self.value)]
            case "change", "list":
                return [("LSET", key, -(self.position % 2), self.value)]
            case "change", "hash" if fields:
                return [("HSET", key, fields[self.position % len(fields)], self.value)]
            case "add", "string":
                return [("APPEND", key, self.value)]
            case "add", "list":
                return [("RPUSH" if self.position % 2 else "LPUSH", key, self.value)]
            case "add", "hash":
                return [("HSET", key, self.field, self.value)]
            case "add" | "change", "stream":
                # An id that is the largest possible one, has a part of its own, or is an ordinary one.
                number = (b"*", b"18446744073709551615-18446744073709551615", b"9007199254740993-7")[self.position % 3]
                return [("XADD", key, number, b"m", self.value)]
            case "remove", "list":
                return [("RPOP" if self.position % 2 else "LPOP", key)]
            case "remove", "hash" if fields:
                return [("HDEL", key, fields[self.position % len(fields)])]
            case "remove", "stream":
                return [("XTRIM", key, "MAXLEN", "0")]
        return []


DAMAGES = st.lists(
    st.builds(
        Damage,
        st.integers(0, 200),
        st.sampled_from(["change", "change", "change", "add", "add", "remove", "retype", "delete"]),
        st.integers(0, 20),
        FIELDS,
        VALUES,
    ),
    min_size=1,
    max_size=4,
)


async def command(client: aioredis.Redis, *arguments: Any) -> Any:
    """Send a command; its reply is not decoded."""
    any_client: Any = client
    return await any_client.execute_command(*arguments, NEVER_DECODE=True)


def own_prefix(client: aioredis.Redis, stack: AsyncExitStack) -> str:
    """The key prefix of one example, whose keys are deleted when the stack ends."""
    prefix = f"fuzz-{uuid.uuid4().hex[:12]}:"

    async def clean() -> None:
        if keys := await keys_of(client, f"{prefix}*"):
            await command(client, "DEL", *keys)

    stack.push_async_callback(clean)
    return prefix


async def keys_of(client: aioredis.Redis, pattern: str) -> list[bytes]:
    """The keys that match a pattern, sorted."""
    found, cursor = set(), b"0"
    while True:
        cursor, some = await command(client, "SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        found |= set(some)
        if cursor in {b"0", 0}:
            return sorted(found)


# -- a run of one example --------------------------------------------------------------------------------------------


@dataclass
class Leaked:
    """All text that the library shows: log events, standard logging, and unhandled errors of tasks."""

    texts: list[str] = field(default_factory=list)
    unhandled: list[str] = field(default_factory=list)

    def log(self, event: str, **fields: object) -> None:
        """Take a log event."""
        self.texts.append(f"{event} {fields}")

    info = warning = error = log

    def check(self) -> None:
        """No task has died of an error, and no text contains a payload."""
        assert self.unhandled == []
        assert [text for text in self.texts if MARKER in text] == []


class _Handler(logging.Handler):
    def __init__(self, leaked: Leaked) -> None:
        super().__init__(logging.INFO)
        self._leaked = leaked

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("mcp_eventscope"):
            self._leaked.texts.append(self.format(record))


def run_example(url: str, example: Callable[[aioredis.Redis, AsyncExitStack, Leaked], Awaitable[None]]) -> None:
    """Run an example in an event loop of its own, and check what it has shown."""
    leaked = Leaked()
    handler = _Handler(leaked)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: leaked.unhandled.append(str(context)))
        async with patient_client(url) as client, AsyncExitStack() as stack:
            await example(client, stack, leaked)

    logging.getLogger().addHandler(handler)
    try:
        asyncio.run(run())
    finally:
        logging.getLogger().removeHandler(handler)
    leaked.check()


def payload(number: int, size: int = 0) -> dict[str, Any]:
    """The parameters of a message with a number, and the marker."""
    return {"n": number, "text": MARKER + "x" * size}


def as_row(*parts: object) -> bytes:
    """A message between workers."""
    return json.dumps(parts).encode()
