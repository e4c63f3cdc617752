"""`tail`: prints the events of a session as workers store them."""

import time
from datetime import UTC, datetime

import anyio
import pydantic_core

from mcp_eventscope.cli.connection import NotFoundError, Target, opened, settings_of
from mcp_eventscope.cli.output import Exit, print_json, print_lines
from mcp_eventscope.redis.inspection import event_facts
from mcp_eventscope.redis.read.elements import Row
from mcp_eventscope.redis.write.runs import worker_of
from mcp_eventscope.settings import Settings
from mcp_eventscope.store.messages import GET_STREAM_KEY, StreamId

__all__ = ["run", "settings_of"]

POLL_SECONDS = 0.25
"""Seconds between polls. A subscription would change how workers batch the session's events."""


async def run(  # noqa: PLR0913 - the options of the command
    settings: Settings,
    session: str,
    *,
    from_start: bool,
    payloads: bool,
    seconds: float | None,
    max_keys: int,
    as_json: bool,
) -> Exit:
    """Print events until the session ends, or the time is over."""
    until = None if seconds is None else time.monotonic() + seconds
    async with opened(settings) as target:
        session_id = await target.resolve(session, max_keys)
        if (await target.inspector.session(session_id)).state == "absent" and not await target.inspector.runs(
            session_id
        ):
            msg = "session must be one under this prefix, got none; run mcp-eventscope sessions list"
            raise NotFoundError(msg)
        (positions,) = await target.inspector.positions([session_id])
        if from_start:
            positions = dict.fromkeys(positions, 0)
        while True:
            # Read before the events: those of a session that ends are deleted with it.
            state = (await target.inspector.session(session_id)).state
            await _print_new(target, session_id, positions, payloads=payloads, as_json=as_json)
            if state != "live":
                if not as_json:
                    print_lines([f"the session has {'ended' if state == 'ended' else 'no record any more'}"])
                return Exit.OK
            if until is not None and time.monotonic() >= until:
                return Exit.OK
            await anyio.sleep(POLL_SECONDS)


async def _print_new(
    target: Target, session_id: str, positions: dict[tuple[StreamId, str], int], *, payloads: bool, as_json: bool
) -> None:
    """Print the events after the positions, run by run, and advance these."""
    (current,) = await target.inspector.positions([session_id])
    for (stream, run), last in current.items():
        while (position := positions.get((stream, run), 0)) < last:
            rows = await target.inspector.events(session_id, stream, run, position)
            if not rows:
                break  # They have expired or were evicted meanwhile.
            for row in rows:
                _print_row(stream, run, row, payloads=payloads, as_json=as_json)
            positions[stream, run] = rows[-1][0]


def _print_row(stream: StreamId, run: str, row: Row, *, payloads: bool, as_json: bool) -> None:
    facts = event_facts(row)
    number, kind, method, payload = facts.number, facts.type, facts.method, facts.payload
    size = len(payload or b"")
    name = "standalone" if stream == GET_STREAM_KEY else stream
    if as_json:
        content = {"payload": _content(payload)} if payloads else {}
        print_json(
            "tail",
            time=facts.time,
            stream=name,
            run=run,
            worker=worker_of(run),
            number=number,
            type=kind,
            method=method,
            bytes=size,
            **content,
        )
        return
    when = datetime.fromtimestamp(facts.time, UTC).strftime("%H:%M:%S.%f")[:-3]
    text = f"{when}  {name}  {worker_of(run)}  #{number}  {kind}{f' {method}' if method else ''}  {size} B"
    print_lines([f"{text}  {(payload or b'').decode('utf-8', 'replace')}" if payloads else text])


def _content(payload: bytes | None) -> object:
    if not payload:
        return None
    try:
        return pydantic_core.from_json(payload)
    except ValueError:
        return payload.decode("utf-8", "replace")
