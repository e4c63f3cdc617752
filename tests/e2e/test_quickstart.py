"""The README's quickstart, as a newcomer runs it: a file, and uvicorn."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from prometheus_client.parser import text_string_to_metric_families

from support.servers import free_port, healthy
from support.waiting import CEILING, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def port() -> int:
    """A free port."""
    return free_port()


@pytest.fixture
def server(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`uvicorn quickstart:app`, without a Redis."""
    environment = {name: value for name, value in os.environ.items() if name != "EVENTSCOPE_REDIS_URL"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "quickstart:app", "--port", str(port)],
            cwd=EXAMPLES,
            env=environment,
            stdout=log,
            stderr=log,
        )
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(CEILING) in {0, -signal.SIGTERM}
    assert b"event_store.embedded" in (tmp_path / "log").read_bytes()


class Seen:
    """The progress that a client has received."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        """Record it."""
        assert (total, message) == (1, None)
        self.numbers.append(progress)


async def test_quickstart_serves_a_tool_and_its_metrics(server: subprocess.Popen[bytes], port: int) -> None:
    """It is healthy, its tool answers the SDK's client, and the metrics count the call."""
    url = f"http://127.0.0.1:{port}"

    def serves() -> bool:
        assert server.poll() is None
        return healthy(url)

    await until(serves)
    seen = Seen()
    async with Client(f"{url}/mcp", mode="legacy") as client:
        result = await client.call_tool("count", {"to": 1}, progress_callback=seen)
    assert seen.numbers == [1]
    assert result.structured_content == {"result": "counted to 1"}
    metrics = text_string_to_metric_families(httpx2.get(f"{url}/metrics").text)
    (stored,) = (metric for metric in metrics if metric.name == "eventscope_events_stored")
    kinds = {sample.labels["message_type"]: sample.value for sample in stored.samples if sample.name.endswith("_total")}
    assert kinds["notification"] == 1, "the progress"
    assert kinds["response"] >= 2, "to initialize, and to the call"
