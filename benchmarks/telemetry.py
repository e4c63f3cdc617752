"""The cost of telemetry per event, with each sink off and on.

    python -m benchmarks.telemetry [--rounds N] [--events N]

Without Redis, whose latency would hide a few microseconds. Figures are CPU time.
"""

import argparse
import asyncio
import gc
import json
import statistics
import time
from contextlib import nullcontext
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry
from redis import asyncio as aioredis

from benchmarks.competitors import TTL, in_a_call, tracer_provider
from benchmarks.load import BYTES, NOTIFICATION
from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.store.messages import EventCallback, EventMessage, EventStore, JSONRPCMessage, StreamId
from mcp_eventscope.store.results import AppendResult, ReplayResult

REPLAYED = 1000
"""Events of a replay."""
CASES = ("bare", "all off", "metrics", "call sampled out", "spans sampled out", "spans recorded", "logs", "all on")
"""In a call that is sampled out no span is started; spans that are sampled out are started one by one."""


class _Instant(RedisEventStore):
    """A store with our interface that returns immediately; its client never connects."""

    def _check_isolated(self) -> None:
        """Do not warn: there are no sessions."""

    async def append(self, stream_id: StreamId, message: JSONRPCMessage | None, traceparent: str = "") -> AppendResult:
        """Store nothing."""
        return AppendResult("1234567890123456", BYTES)

    async def replay(
        self, last_event_id: str, send: EventCallback, *, stream_id: StreamId | None = None
    ) -> ReplayResult:
        """Deliver the same event, many times."""
        for _ in range(REPLAYED):
            await send(_EVENT)
        return ReplayResult(stream_id="1", last_event_id="1234567890123456", delivered=REPLAYED, payload_bytes=BYTES)


_EVENT = EventMessage(NOTIFICATION, "1234567890123456")


class _Silence:
    def info(self, event: str, **fields: Any) -> None:
        """Discard the event."""

    def warning(self, event: str, **fields: Any) -> None:
        """Discard the event."""

    def error(self, event: str, **fields: Any) -> None:
        """Discard the event."""


def _decorated(case: str, provider: TracerProvider | None) -> EventStore:
    store = _Instant(aioredis.Redis(), ttl=TTL)
    if case == "bare":
        return store
    on = case == "all on"
    return InstrumentedEventStore(
        store,
        registry=CollectorRegistry() if on or case == "metrics" else None,
        tracer_provider=provider or NoOpTracerProvider(),
        logger=None if on or case == "logs" else _Silence(),
    )


async def measure(*, events: int, rounds: int) -> dict[str, Any]:
    """All cases in turn, round after round.

    Args:
        events: Appends of a case and round; replays are as many events, in replays of `REPLAYED`.
        rounds: How many.

    Returns:
        Of each case, the median of the rounds, in µs per append and per replayed event, and the rounds.
    """
    providers: dict[str, TracerProvider] = {
        "call sampled out": tracer_provider(recorded=False),
        "spans sampled out": tracer_provider(recorded=False),
        "spans recorded": tracer_provider(recorded=True),
        "all on": tracer_provider(recorded=True),
    }
    stores = {case: _decorated(case, providers.get(case)) for case in CASES}
    measured: dict[str, dict[str, list[float]]] = {case: {"append": [], "replayed": []} for case in CASES}
    for number in range(rounds + 1):
        for case, store in stores.items():
            gc.collect()
            with in_a_call(providers[case]) if case == "call sampled out" else nullcontext():
                append, replayed = await _append(store, events), await _replay(store, max(1, events // REPLAYED))
            if number:  # The first round warms up.
                measured[case]["append"].append(append)
                measured[case]["replayed"].append(replayed)
    for provider in providers.values():
        await asyncio.to_thread(provider.shutdown)
    return {
        case: {
            "append_us": round(statistics.median(values["append"]), 3),
            "replayed_us": round(statistics.median(values["replayed"]), 3),
            "rounds": values,
        }
        for case, values in measured.items()
    }


async def _append(store: EventStore, count: int) -> float:
    # CPU time of this thread. The thread of the exporter competes for the interpreter lock, which shows in the stores
    # per second.
    began = time.thread_time()
    for _ in range(count):
        await store.store_event("1", NOTIFICATION)
    return round((time.thread_time() - began) / count * 1e6, 4)


async def _replay(store: EventStore, count: int) -> float:
    async def send(event: EventMessage) -> None:
        pass

    began = time.thread_time()
    for _ in range(count):
        await store.replay_events_after("1234567890123456", send)
    return round((time.thread_time() - began) / (count * REPLAYED) * 1e6, 4)


def main() -> None:
    """Measure, and print it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=20_000)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(events=options.events, rounds=options.rounds))))


if __name__ == "__main__":
    main()
