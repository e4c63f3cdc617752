"""`forecast`: the memory that events will use, against the memory that Redis may use."""

import time
from dataclasses import dataclass

import anyio

from mcp_eventscope.cli.connection import Target, opened, options_of, settings_of, walking
from mcp_eventscope.cli.output import Exit, print_json, print_lines, print_table, progress, size
from mcp_eventscope.errors import EventscopeError

WEIGHED = 400
"""Runs that are weighed at most, which determine the bytes per event."""
WEIGHED_PER_SCRIPT = 8
SAFE = 0.75
"""The part of maxmemory that events may use: fragmentation and the buffers of connections need the rest."""


class NotMeasurableError(EventscopeError):
    """There is nothing to measure; the message names the option to give instead."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The values of the options; None: measured, or from the environment."""

    rate: float | None = None
    event_bytes: float | None = None
    ttl: int | None = None
    maxmemory: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of a forecast."""

    rate: float
    """Events per second."""
    event_bytes: float
    """Bytes of Redis per event."""
    ttl: int | None
    """Seconds; None: no expiry."""
    maxmemory: int
    """Bytes; 0: unlimited."""
    sampled: int = 0
    """Sessions whose events were counted."""


async def run(  # noqa: PLR0913 - the options of the command
    redis_url: str | None,
    key_prefix: str | None,
    given: Assumptions,
    *,
    seconds: float,
    sample: int,
    max_keys: int,
    as_json: bool,
) -> Exit:
    """Print the forecast."""
    if given.rate is not None and given.event_bytes is not None and given.maxmemory is not None:
        ttl = given.ttl or options_of(redis_url, key_prefix).ttl
        measured = Measured(given.rate, given.event_bytes, ttl, given.maxmemory)
    else:
        async with opened(settings_of(redis_url, key_prefix)) as target:
            measured = await _measure(target, given, seconds=seconds, sample=sample, max_keys=max_keys)
    need = None if measured.ttl is None else measured.rate * measured.event_bytes * measured.ttl
    part = None if need is None or not measured.maxmemory else need / measured.maxmemory
    fits = part is not None and part <= SAFE
    if as_json:
        print_json(
            "forecast",
            fits=fits,
            bytes=need,
            part_of_maxmemory=part,
            rate=measured.rate,
            event_bytes=measured.event_bytes,
            ttl=measured.ttl,
            maxmemory=measured.maxmemory,
            sampled_sessions=measured.sampled,
            seconds=seconds if measured.sampled else None,
        )
    else:
        _print(measured, need, part, fits=fits)
    return Exit.OK if fits else Exit.FAILED


def _print(measured: Measured, need: float | None, part: float | None, *, fits: bool) -> None:
    if need is None:
        sentence = "Without a TTL events fill any memory: set ttl= (EVENTSCOPE_TTL)."
    elif part is None:
        sentence = f"Events will use {size(need)}, and Redis has no maxmemory: set it above {size(need / SAFE)}."
    elif fits:
        sentence = f"Fits: events will use {size(need)}, {part:.0%} of maxmemory."
    else:
        sentence = (
            f"Does not fit: events will use {size(need)}, {part:.0%} of maxmemory (at most {SAFE:.0%} is safe). Raise "
            f"maxmemory above {size(need / SAFE)}, or lower the TTL."
        )
    print_lines([sentence])
    measured_from = (
        f" ({measured.sampled} {'session' if measured.sampled == 1 else 'sessions'} sampled)"
        if measured.sampled
        else ""
    )
    print_table(
        ("", ""),
        [
            ("rate", f"{measured.rate:.1f} events/s{measured_from}"),
            ("bytes per event", f"{measured.event_bytes:.0f}"),
            ("TTL", "none" if measured.ttl is None else f"{measured.ttl} s"),
            ("maxmemory", size(measured.maxmemory) if measured.maxmemory else "unlimited"),
        ],
    )


async def _measure(target: Target, given: Assumptions, *, seconds: float, sample: int, max_keys: int) -> Measured:
    maxmemory = given.maxmemory
    if maxmemory is None:
        limits = [each.info.get("maxmemory") for each in await target.inspector.servers()]
        if None in limits:
            msg = "maxmemory must be readable by INFO, got none; give --maxmemory"
            raise NotMeasurableError(msg)
        maxmemory = sum(int(each or 0) for each in limits) if all(limits) else 0
    event_bytes = given.event_bytes if given.event_bytes is not None else await _weigh(target, max_keys)
    rate, sampled = given.rate, 0
    if rate is None:
        rate, sampled = await _rate(target, seconds=seconds, sample=sample, max_keys=max_keys)
    return Measured(
        rate,
        event_bytes,
        given.ttl or target.settings.ttl,
        maxmemory,
        sampled,
    )


async def _weigh(target: Target, max_keys: int) -> float:
    """The average bytes per event of some of the stored ones."""
    weighed = total = 0
    with walking("weighing events", max_keys) as walk:
        async for seen in target.inspector.survey(walk, events=WEIGHED_PER_SCRIPT):
            weighed, total = weighed + seen.weighed, total + seen.bytes
            if weighed >= WEIGHED:
                break
    if not weighed:
        msg = "event bytes must be measured on stored events, got none under the prefix; give --event-bytes"
        raise NotMeasurableError(msg)
    return total / weighed


async def _rate(target: Target, *, seconds: float, sample: int, max_keys: int) -> tuple[float, int]:
    """The events per second of all live sessions, from a sample of them, and the size of the sample.

    Sessions that begin during the measurement are not counted.
    """
    with walking("finding sessions", max_keys) as walk:
        page = await target.inspector.sessions(walk, limit=max_keys, ended=False)
    ids = [each.session_id for each in page.sessions]
    if not ids:
        msg = "the rate must be measured on live sessions, got none under the prefix; give --rate"
        raise NotMeasurableError(msg)
    sampled = ids[:: max(1, len(ids) // sample)][:sample]
    before = await target.inspector.positions(sampled)
    began = time.monotonic()
    with progress("counting events") as shown:
        while (left := seconds - (time.monotonic() - began)) > 0:
            shown.update(f"{left:.0f} s left")
            await anyio.sleep(min(1.0, left))
    after = await target.inspector.positions(sampled)
    took = time.monotonic() - began
    events = sum(
        max(0, last - earlier.get(run, 0))
        for earlier, later in zip(before, after, strict=True)
        for run, last in later.items()
    )
    if not events:
        msg = f"the rate must be measured while events are stored, got none in {took:.0f} s; give --rate"
        raise NotMeasurableError(msg)
    return events / took * len(ids) / len(sampled), len(sampled)
