"""An independent reader and writer of the layout of mcp-persist 0.1.1.

```
{prefix}counter              STRING  INCR gives the ids
{prefix}event:{event_id}     HASH    stream_id, payload
{prefix}stream:{stream_id}   ZSET    event ids, scored by id
```
"""

from mcp.types import JSONRPCMessage, jsonrpc_message_adapter
from redis import asyncio as aioredis


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def write(
    client: aioredis.Redis, prefix: str, stream: str, message: JSONRPCMessage | None, *, ttl: int | None = None
) -> str:
    """Store one event, key by key."""
    event_id = str(await client.incr(f"{prefix}counter"))
    payload = "" if message is None else message.model_dump_json(by_alias=True, exclude_none=True)
    await client.hset(f"{prefix}event:{event_id}", mapping={"stream_id": stream, "payload": payload})
    await client.zadd(f"{prefix}stream:{stream}", {event_id: int(event_id)})
    if ttl is not None:
        for name in (f"event:{event_id}", f"stream:{stream}", "counter"):
            await client.expire(prefix + name, ttl)
    return event_id


async def read(
    client: aioredis.Redis, prefix: str, last_event_id: str
) -> tuple[str | None, list[tuple[str, JSONRPCMessage]]]:
    """The stream of an event, and the ids and messages that follow it there."""
    stream = await client.hget(f"{prefix}event:{last_event_id}", "stream_id")
    if stream is None:
        return None, []
    found = []
    for member in await client.zrangebyscore(f"{prefix}stream:{_text(stream)}", int(last_event_id) + 1, "+inf"):
        payload = await client.hget(f"{prefix}event:{_text(member)}", "payload")
        if payload:
            found.append((_text(member), jsonrpc_message_adapter.validate_json(_text(payload))))
    return _text(stream), found
