"""Events of the root store in Redis: reads and changes their fields."""

from collections.abc import Mapping
from typing import Any

from redis import asyncio as aioredis

Field = str | bytes
FINAL = b"final"


async def fields_of(client: aioredis.Redis, key: str) -> dict[str, bytes]:
    """The fields of an event; {} when it is not there."""
    any_client: Any = client
    if _bytes(await any_client.type(key)) != b"string":
        return {_bytes(name).decode(): _bytes(value) for name, value in (await any_client.hgetall(key)).items()}
    return fields_in(_bytes(await any_client.get(key)))


def fields_in(text: bytes) -> dict[str, bytes]:
    """The same, of the text of a small event."""
    payload, marks, stream = text.split(b"\n", 2)
    traceparent = marks.removeprefix(FINAL)
    return {
        "stream_id": stream,
        "payload": payload,
        **({"final": b"1"} if marks.startswith(FINAL) else {}),
        **({"traceparent": traceparent} if traceparent else {}),
    }


async def change(client: aioredis.Redis, key: str, **changed: Field | None) -> None:
    """Overwrite fields of an event, or remove them (None); form and TTL stay the same."""
    any_client: Any = client
    if _bytes(await any_client.type(key)) != b"string":
        for name, value in changed.items():
            await (any_client.hdel(key, name) if value is None else any_client.hset(key, name, value))
        return
    fields: Mapping[str, Field | None] = {**await fields_of(client, key), **changed}
    payload, stream = fields["payload"], fields["stream_id"]
    marks = (FINAL if fields.get("final") else b"") + _bytes(fields.get("traceparent") or b"")
    lines = [payload, marks if None not in {payload, stream} else None, stream]
    await any_client.set(key, b"\n".join(_bytes(line) for line in lines if line is not None), keepttl=True)


def _bytes(value: Field) -> bytes:
    return value.encode() if isinstance(value, str) else value
