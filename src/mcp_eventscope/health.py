"""Health endpoints: `/livez` for the process, `/readyz` for traffic, `/healthz` for the store."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mcp_eventscope.errors import EventscopeError
from mcp_eventscope.instrumentation import InstrumentedEventStore
from mcp_eventscope.sessions.manager import ResumableSessionManager

PROBE_TIMEOUT = 2.0
"""Maximum seconds that `/healthz` waits for the store."""
NOT_RUNNING = "session manager not running; if mounted, run this application's lifespan in the outer application"

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
_Body: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of a write to the store."""

    seconds: float
    """The time that the write took."""
    error: str | None
    """Why it failed, with the address of the store and without secrets; None if it succeeded."""


async def probe(store: InstrumentedEventStore) -> Probe:
    """Write to the store, and wait at most `PROBE_TIMEOUT` for its acknowledgement. Nothing is raised."""
    started = time.perf_counter()
    error = None
    try:
        with anyio.fail_after(PROBE_TIMEOUT):
            await store.probe()
    except TimeoutError:
        error = f"no answer from {store.address} within {PROBE_TIMEOUT} seconds"
    except EventscopeError as failure:
        error = str(failure)
    except Exception as failure:  # noqa: BLE001 - of a third-party store; its text may contain a secret
        error = f"{store.address} failed with {type(failure).__name__}"
    return Probe(time.perf_counter() - started, error)


class Health:
    """The health endpoints of an application. They answer without authentication, in JSON.

    `/livez`: 200 as long as the process answers.
        `{"status": "ok"}`

    `/readyz`: 200 while the worker serves sessions, from the start of the application until it is asked to stop.
    It makes no call to the store. An unreachable store is reported, and does not make the worker unready: sessions
    continue from its memory, and every other worker has the same store.
        `{"status": "ready", "store": {"address": "redis:6379", "status": "ok"}}`
        `{"status": "ready", "store": {"address": "redis:6379", "status": "degraded", "reason": "connection"}}`
        503 `{"status": "unavailable", "reason": "draining"}`
        503 `{"status": "unavailable", "reason": "not_running", "error": "session manager not running; …"}`

    `/healthz`: 200 if the store acknowledges a write within two seconds. Concurrent requests share one write.
        `{"status": "ok", "store": {"address": "redis:6379", "latency_ms": 0.412}}`
        503 `{"status": "unavailable", "store": {"address": "redis:6379", "error": "could not write to Redis at …"}}`
        503 `{"status": "unavailable", "reason": "not_running", "error": "session manager not running; …"}`

    `reason` of a degraded store is that of the metric `eventscope_degradations_total`.

    Args:
        store: The store.
        manager: The session manager.
    """

    def __init__(self, store: InstrumentedEventStore, manager: ResumableSessionManager) -> None:
        self._store = store
        self._manager = manager
        self._probe: asyncio.Task[Probe] | None = None
        self.endpoints: Mapping[str, Endpoint] = MappingProxyType(
            {"/livez": self._live, "/readyz": self._ready, "/healthz": self._healthy}
        )
        """The endpoints by path."""

    async def _live(self, _: Request) -> Response:
        return _response({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        if self._manager.draining:
            return _response({"status": "unavailable", "reason": "draining"}, 503)
        if not self._manager.running:
            return _not_running()
        failure = self._store.backlog.failure
        state = {"status": "ok"} if failure is None else {"status": "degraded", "reason": failure.value}
        return _response({"status": "ready", "store": {"address": self._store.address, **state}})

    async def _healthy(self, _: Request) -> Response:
        if not self._manager.running:
            return _not_running()
        probed = await self._shared_probe()
        if probed.error is not None:
            store = {"address": self._store.address, "error": probed.error}
            return _response({"status": "unavailable", "store": store}, 503)
        store_ok = {"address": self._store.address, "latency_ms": round(probed.seconds * 1000, 3)}
        return _response({"status": "ok", "store": store_ok})

    async def _shared_probe(self) -> Probe:
        """Probe the store once for all concurrent requests, which else could use up the store's connections."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(probe(self._store))
        return await asyncio.shield(self._probe)


def _not_running() -> Response:
    return _response({"status": "unavailable", "reason": "not_running", "error": NOT_RUNNING}, 503)


def _response(body: _Body, status: int = 200) -> Response:
    return JSONResponse(body, status, headers={"cache-control": "no-store"})
