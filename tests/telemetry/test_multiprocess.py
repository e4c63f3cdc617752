"""Multiprocess mode: merged files of several processes, gauges of dead ones, misconfiguration.

prometheus_client selects the mode when it is imported, so these tests run in separate processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from mcp_eventscope import metrics_app

BEGINNING = """
import os, re, signal, sys, time
from pathlib import Path
from fakeredis import FakeAsyncRedis
from prometheus_client import CollectorRegistry, Gauge
from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.store.messages import MessageType
from mcp_eventscope.telemetry.exposition import multiprocess
from mcp_eventscope.telemetry.measurements import StoreMeasurement
from mcp_eventscope.telemetry.exposition.rendering import Exposition

WHERE = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
registry = CollectorRegistry()

def instrument(registry=registry, name="default"):
    store = InstrumentedEventStore(RedisEventStore(FakeAsyncRedis(), ttl=60), registry=registry, name=name)
    return store._sinks.meters[0]

def scrape(query=""):
    return Exposition(registry).render(accept="", encoding="", query=query).body.decode()

def shows(line):
    return line in scrape().splitlines()

def gauges(name, store="default"):
    found = re.findall(rf'^eventscope_{name}{{pid="(\\d+)",store="{store}"}} (.*)$', scrape(), re.M)
    return {pid: float(value) for pid, value in found}

def followed():
    return gauges("streams_followed")
"""


def run(directory: Path | str, program: str) -> None:
    """Run a program in multiprocess mode; an assertion fails it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEGINNING + program],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_registries_share_what_is_counted(tmp_path: Path) -> None:
    """Two registries of a process share one file: no count is lost, and each scrape is complete."""
    run(
        tmp_path,
        """
one, two = instrument(), instrument(CollectorRegistry())
one.orphaned(); two.orphaned(); one.orphaned()
instrument(CollectorRegistry(), "other").orphaned()
assert shows('eventscope_requests_orphaned_total{store="default"} 3.0')
assert shows('eventscope_requests_orphaned_total{store="other"} 1.0')
assert shows('eventscope_ttl_seconds{store="default"} 60.0')
some = scrape("name[]=eventscope_requests_orphaned_total").splitlines()
assert sum(not line.startswith("#") for line in some) == 2, some
assert "eventscope_redis_keys{" not in scrape()
""",
    )


def test_killed_process_takes_its_gauges_and_leaves_its_sums(tmp_path: Path) -> None:
    """A forked process counts separately; killed, its gauges disappear, those of others and all sums remain."""
    run(
        tmp_path,
        """
sink = instrument()
other = Gauge("others", "Of the application.", registry=registry, multiprocess_mode="liveall")
other.set(1)
sink.following(); sink.orphaned()
Path(WHERE, "gauge_liveall_1.db").write_bytes(Path(WHERE, f"gauge_liveall_{os.getpid()}.db").read_bytes())
ready, write_end = os.pipe()
child = os.fork()
if child == 0:
    sink.following(); sink.following(); sink.orphaned(); other.set(2)
    os.write(write_end, b"x")
    time.sleep(60)
os.read(ready, 1)
assert Path(WHERE, f"eventscope-{child}.alive").exists()
assert followed() == {"1": 1, str(os.getpid()): 1, str(child): 2}, scrape()
assert f'others{{pid="{child}"}} 2.0' in scrape()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
# Pid 1 holds no lock: it is not ours to judge.
assert followed() == {"1": 1, str(os.getpid()): 1}, scrape()
assert shows('eventscope_requests_orphaned_total{store="default"} 2.0')
assert f'others{{pid="{child}"}}' not in scrape()
assert f'others{{pid="{os.getpid()}"}} 1.0' in scrape()
assert not Path(WHERE, f"eventscope-{child}.alive").exists()
""",
    )


def test_gauges_show_which_worker_is_degraded(tmp_path: Path) -> None:
    """A scrape of several workers has a series for each, with its pid, that an alert can aggregate."""
    run(
        tmp_path,
        """
from mcp_eventscope.store.events import FailureReason, StoreDegraded
from mcp_eventscope.store.results import BacklogStatus
sink = instrument()
sink.waiting(BacklogStatus(events=0, payload_bytes=0))
ready, write_end = os.pipe()
child = os.fork()
if child == 0:
    sink.record(StoreDegraded(reason=FailureReason.CONNECTION))
    os.write(write_end, b"x")
    time.sleep(60)
os.read(ready, 1)
assert gauges("degraded") == {str(os.getpid()): 0, str(child): 1}, scrape()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
assert gauges("degraded") == {str(os.getpid()): 0}, scrape()
""",
    )


def test_process_that_only_imports_the_application_is_no_worker(tmp_path: Path) -> None:
    """The parent of workers has no gauges per worker, which alerts count, until it uses one of its stores."""
    run(
        tmp_path,
        """
import asyncio, logging
import mcp.types

logging.disable()  # Warnings about the use of the store.

def using(use):
    store = InstrumentedEventStore(RedisEventStore(FakeAsyncRedis(), ttl=60), registry=registry)
    ready, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(use(store))
        os.write(write_end, b"x")
        time.sleep(60)
    assert os.read(ready, 1)
    assert gauges("degraded") == followed() == {str(child): 0}, scrape()
    assert shows('eventscope_ttl_seconds{store="default"} 60.0')
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert gauges("degraded") == {}, scrape()

async def stores(store):
    await store.store_event("s", mcp.types.JSONRPCNotification(jsonrpc="2.0", method="m"))

async def replays(store):
    async def send(event):
        raise AssertionError
    await store.replay_events_after("0-0", send)

async def starts(store):
    from mcp_eventscope.telemetry.logs import Log
    store.started(Log(None))

for use in (stores, replays, starts):
    using(use)
assert not list(WHERE.glob("gauge_liveall_*"))
instrument(name="other").following()
assert gauges("degraded", "other") == gauges("degraded") == {str(os.getpid()): 0}, scrape()
instrument(name="third")
assert gauges("degraded", "third") == {str(os.getpid()): 0}, scrape()
""",
    )


def test_gauges_that_a_dead_process_left_to_a_forked_child_are_removed(tmp_path: Path) -> None:
    """A child with the pid of a dead worker, which no scrape has removed yet, has no gauges until it is a worker."""
    run(
        tmp_path,
        """
sink = instrument()
sink.following()
gauge = Path(WHERE, f"gauge_liveall_{os.getpid()}.db").read_bytes()
latest = os.getpid()
while True:
    dead = range(latest + 1, latest + 200)  # Pids are given out in order.
    for pid in dead:
        if not Path("/proc", str(pid)).exists():
            Path(WHERE, f"gauge_liveall_{pid}.db").write_bytes(gauge)
            Path(WHERE, f"eventscope-{pid}.alive").touch()
    ready, write_end = os.pipe()
    latest = os.fork()
    if latest == 0:
        os.write(write_end, b"x")
        time.sleep(60)
    assert os.read(ready, 1)
    found = followed()
    os.kill(latest, signal.SIGKILL)
    os.waitpid(latest, 0)
    assert found == {str(os.getpid()): 1}, found
    if latest in dead:
        break
""",
    )


def test_files_of_dead_processes_are_merged(tmp_path: Path) -> None:
    """A server that replaces its workers all the time keeps a bounded number of files, and every count."""
    run(
        tmp_path,
        """
sink = instrument()
sink.orphaned()
for number in range(1, 4):
    child = os.fork()
    if child == 0:
        for _ in range(number):
            sink.orphaned()
            sink.appended(StoreMeasurement(0.002, "error", None, None, MessageType.RESPONSE, None))
        os._exit(0)
    os.waitpid(child, 0)
    files = {path.name for path in WHERE.glob("*.db")}
    assert f"counter_{child}.db" in files
    scrape()
    assert not list(WHERE.glob(f"*_{child}.db"))
    total = 1 + sum(range(number + 1))
    assert shows(f'eventscope_requests_orphaned_total{{store="default"}} {total}.0'), scrape()
    count = f'eventscope_store_duration_seconds_count{{outcome="error",store="default"}} {total - 1}.0'
    assert shows(count), scrape()
    assert shows(count.replace("_count{", '_bucket{le="0.0025",')), scrape()
archives = sorted(path.name for path in WHERE.glob("*eventscope-*.db"))
assert archives == ["counter_eventscope-3.db", "histogram_eventscope-3.db"], archives
assert not [path for path in WHERE.glob("*.new")]
""",
    )


def test_sessions_sum_over_live_processes_and_build_info_does_not(tmp_path: Path) -> None:
    """Sessions are summed over live processes; build info is 1, once."""
    run(
        tmp_path,
        """
from mcp_eventscope.telemetry.facts import Origin, SessionBegan
sink = instrument()
began = SessionBegan(Origin.OPENED)
sink.serving.record(began)
ready, write_end = os.pipe()
child = os.fork()
if child == 0:
    sink.serving.record(began); sink.serving.record(began)
    instrument(CollectorRegistry(), "other")
    os.write(write_end, b"x")
    time.sleep(60)
os.read(ready, 1)
assert gauges("sessions_active") == {str(os.getpid()): 1, str(child): 2}, scrape()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
assert gauges("sessions_active") == {str(os.getpid()): 1}, scrape()
assert shows('eventscope_sessions_started_total{origin="opened",store="default"} 3.0'), scrape()
(info,) = [line for line in scrape().splitlines() if line.startswith("eventscope_build_info{")]
assert info.endswith(" 1.0") and 'redis="' in info, info
""",
    )


def test_gauges_of_a_dead_process_with_the_same_pid_are_reset(tmp_path: Path) -> None:
    """With a reused pid, gauges start at 0, and counters continue."""
    run(
        tmp_path,
        """
def left(kind, count):
    from prometheus_client.mmap_dict import MmapedDict, mmap_key
    suffix = "" if kind == "gauge_liveall" else "_total"
    name = "eventscope_requests_orphaned" if suffix else "eventscope_streams_followed"
    help = next(m.help for m in multiprocess_catalog.METRICS if m.name == name + suffix)
    file = MmapedDict(str(WHERE / f"{kind}_{os.getpid()}.db"))
    file.write_value(mmap_key(name, name + suffix, ["store"], ["default"], help), count, 0.0)
    file.close()

from mcp_eventscope.telemetry import catalog as multiprocess_catalog
left("gauge_liveall", 5.0); left("counter", 7.0)
Path(WHERE, f"eventscope-{os.getpid()}.alive").touch()
sink = instrument()
assert followed() == {str(os.getpid()): 0}, scrape()
sink.following(); sink.orphaned()
assert shows('eventscope_requests_orphaned_total{store="default"} 8.0'), scrape()
instrument(CollectorRegistry())
assert followed() == {str(os.getpid()): 1}, scrape()
""",
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A new, empty file and a damaged file hide no others."""
    (tmp_path / "counter_2.db").write_bytes(b"")
    (tmp_path / "counter_3.db").write_bytes(b"\xff" * 4096)
    (tmp_path / "histogram_4.db").write_bytes(b"\x40\0\0\0" + b"\x10\0\0\0" * 1024)
    run(tmp_path, "instrument().orphaned(); assert shows('eventscope_requests_orphaned_total{store=\"default\"} 1.0')")


@pytest.mark.parametrize("directory", ["missing", "file"])
def test_missing_directory_is_refused_with_the_remedy(tmp_path: Path, directory: str) -> None:
    """A missing directory is refused, with the remedy."""
    (tmp_path / "file").touch()
    run(
        tmp_path / directory,
        """
for attempt in (instrument, lambda: Exposition(registry)):
    try:
        attempt()
    except ValueError as error:
        assert "PROMETHEUS_MULTIPROC_DIR must name an existing, writable directory" in str(error), error
    else:
        raise AssertionError
""",
    )


def test_variable_set_after_the_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set after the import is refused: a scrape would show one worker only."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="before prometheus_client is imported"):
        metrics_app(CollectorRegistry())


def test_buffered_observations_reach_the_scrape_of_another_process(tmp_path: Path) -> None:
    """Buffered observations reach the files within one iteration of the event loop, and at the end."""
    run(
        tmp_path,
        """
import asyncio
from prometheus_client.multiprocess import MultiProcessCollector

def written():
    reading = CollectorRegistry()
    MultiProcessCollector(reading, str(WHERE))
    return reading.get_sample_value("eventscope_payload_stored_bytes_total", {"store": "default"})

async def main():
    sink = instrument()
    for _ in range(3):
        sink.stored(0.001, type(None), 5, (1, 2))
    assert written() == 0
    await asyncio.sleep(0)
    assert written() == 15
    sink.stored(0.001, type(None), 5)
    assert shows('eventscope_payload_stored_bytes_total{store="default"} 20.0')
    sink.stored(0.001, type(None), 5)

asyncio.run(main())
assert written() == 25
""",
    )
