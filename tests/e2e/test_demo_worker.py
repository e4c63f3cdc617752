"""The demonstration's workers: the reason of a failed start, and none outlives the demonstration."""

import asyncio
import signal
import sys

import pytest

from mcp_eventscope.demo import worker as module
from mcp_eventscope.demo.waiting import DemoError, within
from mcp_eventscope.demo.worker import Worker

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


async def deaf_worker() -> tuple[Worker, asyncio.subprocess.Process]:
    """A worker whose process does not end when it is asked to."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DEAF, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    worker = Worker("redis://127.0.0.1:1", "mcp-demo-test:")
    worker._process = process
    return worker, process


def test_worker_that_ignores_signals_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not end in time is ended."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)

    async def test() -> None:
        worker, process = await deaf_worker()
        await worker.stop()
        assert process.returncode == -signal.SIGKILL

    asyncio.run(test())


def test_killed_worker_log_names_the_signal() -> None:
    """The verdict hears of a kill only when it was one."""

    async def test() -> None:
        worker, process = await deaf_worker()
        assert worker.alive
        assert await worker.kill() == signal.SIGKILL
        assert not worker.alive
        worker._process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        await worker.wait()
        assert await worker.kill() == 0
        assert await Worker("redis://127.0.0.1:1", "mcp-demo-test:").kill() == 0
        assert process.returncode == -signal.SIGKILL

    asyncio.run(test())


def test_signal_during_shutdown_leaves_no_worker() -> None:
    """A Ctrl-C that comes while workers are being stopped does not leave them behind."""

    async def test() -> None:
        worker, process = await deaf_worker()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)  # It has sent the signal, and waits.
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert process.returncode == -signal.SIGKILL

    asyncio.run(test())


@pytest.mark.slow
def test_worker_that_does_not_start_reports_its_log() -> None:
    """The message has its status, and its log."""

    async def test() -> None:
        with pytest.raises(
            DemoError, match=r"ended with status \d+\n(?s:.*)EVENTSCOPE_REDIS_URL must begin with redis://"
        ):
            async with Worker("nonsense://", "mcp-demo-test:").running():
                pytest.fail("it started")

    asyncio.run(test())


def test_wait_that_fails_names_its_condition() -> None:
    """A bound that is reached is a message; a timeout of the block's own is not ours."""

    async def test() -> None:
        with pytest.raises(DemoError, match=r"^timed out after 0\.01 seconds waiting for rain$"):
            async with within(0.01, "rain"):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            async with within(10, "rain"):
                raise TimeoutError

    asyncio.run(test())
