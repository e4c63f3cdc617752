"""redis-py's own OpenTelemetry metrics beside ours: nothing is counted twice."""

import json
import subprocess
import sys
from pathlib import Path

from support.waiting import CEILING

ROOT = Path(__file__).parents[2]
# In a separate process, since redis-py is configured once per process.
PROGRAM = """
import asyncio, json, sys
from mcp.types import JSONRPCNotification
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from redis.observability import OTelConfig, get_observability_instance

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.redis.client import connect

reader, registry = InMemoryMetricReader(), CollectorRegistry()
metrics.set_meter_provider(MeterProvider(metric_readers=[reader], shutdown_on_exit=False))
get_observability_instance().init(OTelConfig())

async def main():
    async with connect(sys.argv[1]) as client:
        store = InstrumentedEventStore(RedisEventStore(client, key_prefix=sys.argv[2], ttl=60), registry=registry)
        part = store
        first = (await part.append("1", None)).event_id
        for _ in range(3):
            await part.append("1", JSONRPCNotification(jsonrpc="2.0", method="note"))
        async def take(event):
            pass
        await part.replay(first, take, stream_id="1")
        await store.flush(1)
    collected = reader.get_metrics_data()
    names = [m.name for r in collected.resource_metrics for s in r.scope_metrics for m in s.metrics]
    value = registry.get_sample_value
    stored = value("eventscope_events_stored_total", {"store": "default", "message_type": "notification"})
    resumed = value("eventscope_replay_duration_seconds_count", {"store": "default", "outcome": "resumed"})
    print(json.dumps({"names": names, "stored": stored, "resumed": resumed}))

asyncio.run(main())
"""


def test_metrics_of_redis_py_and_ours_have_different_names(valkey_url: str, key_prefix: str) -> None:
    """Ours are unchanged, and those of redis-py have other names."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, valkey_url, key_prefix],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert (printed["stored"], printed["resumed"]) == (3, 1)
    assert printed["names"]
    assert not [name for name in printed["names"] if "eventscope" in name]
