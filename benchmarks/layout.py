"""Redis CPU and memory per event, compared with an earlier layout."""

from pathlib import Path
from typing import Any

from redis import asyncio as aioredis

from benchmarks import memory
from benchmarks.competitors import PREFIX, TTL, session_id
from benchmarks.contestant import Ask
from benchmarks.load import NOTIFICATION, RESPONSE
from mcp_eventscope.store.messages import JSONRPCMessage

BASELINE_COMMIT = "85fd5d3"
BASELINE_BYTES = {"2": 408, "22": 463, "200": 527}
"""Bytes per event of that layout, for comparison; the run measures them again."""
_SCRIPT = Path(__file__).with_name(f"layout_{BASELINE_COMMIT}.lua")


async def measure(client: aioredis.Redis, ask: Ask, *, lengths: list[int], **order: Any) -> dict[str, Any]:
    """Store streams of each length on an empty server, with the script of the earlier layout and with ours.

    The earlier layout runs before and after ours, and its processor time is the mean of both, since on a busy machine a
    command costs up to twice as much.

    Args:
        client: Of the server.
        ask: The process that stores.
        lengths: Events of a stream, the priming event included.
        **order: How many events, sessions and writers.

    Returns:
        For each length, of ours and of the earlier layout: bytes and microseconds of the server per event.
    """
    results: dict[str, Any] = {}
    for length in lengths:
        # The first run loads scripts and grows buffers.
        await ask("streams", length=length, **(order | {"count": 2 * length * order["writers"]}))
        before = await _measured(client, _earlier(client, length=length, **order))
        ours = await _measured(client, ask("streams", length=length, **order))
        after = await _measured(client, _earlier(client, length=length, **order))
        results[str(length)] = {
            "ours": ours,
            "earlier": {key: round((before[key] + after[key]) / 2, 3) for key in before},
        }
    return results


async def server_seconds(client: Any) -> float:
    """The processor time that the server has used."""
    found = await client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


async def _measured(client: aioredis.Redis, storing: Any) -> dict[str, float]:
    await client.flushall()
    await client.config_resetstat()
    used = await memory.used(client)
    cpu = await server_seconds(client)
    events = (await storing)["events"]
    cpu = await server_seconds(client) - cpu
    commands = await client.info("commandstats")
    used = await memory.used(client) - used
    return {
        "bytes": round(used / events, 2),
        "cpu_us": round(cpu / events * 1e6, 3),
        "commands": round(sum(each["calls"] for each in commands.values()) / events, 3),
    }


async def _earlier(client: aioredis.Redis, *, length: int, count: int, sessions: int, writers: int) -> dict[str, int]:
    """Write the earlier layout as its store did: one script call carries the next event of every writer."""
    script = client.register_script(_SCRIPT.read_text("ascii"))
    parts = [f"{PREFIX}{{{session_id()}}}:" for _ in range(sessions)]
    messages = [_json(None), *[_json(NOTIFICATION)] * (length - 2), _json(RESPONSE)]
    number, last, streams = 0, 0, count // length
    for start in range(0, streams, writers):
        for place, payload in enumerate(messages):
            keys: list[str] = []
            args: list[str | int] = [TTL, "5b28fa22540f4797"]
            for stream in range(start, min(start + writers, streams)):
                prefix, name = parts[stream % sessions], str(stream // sessions)
                number += 1
                keys += [f"{prefix}counter", f"{prefix}running"]
                role = "final" if place == length - 1 else "part"
                args += [prefix, "1", number, last, 1, name, payload, role]
            reply: bytes = await script(keys, args)
            last = int(reply.partition(b"\n")[0])
    return {"events": streams * length}


def _json(message: JSONRPCMessage | None) -> str:
    return "" if message is None else message.model_dump_json(by_alias=True, exclude_unset=True)
