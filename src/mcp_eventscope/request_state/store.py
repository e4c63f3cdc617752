"""Request states with keys and answers that all workers share through Redis."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from mcp.server.context import ServerMiddleware, ServerRequestContext
from mcp.server.request_state import RequestStateSecurity, authenticated_principal

from mcp_eventscope.cancellation import LoopLock, cancel_task
from mcp_eventscope.errors import StoreError
from mcp_eventscope.options import Number, check_type
from mcp_eventscope.redis.backend import RedisBackend
from mcp_eventscope.redis.scripts import Script
from mcp_eventscope.request_state import installation, outcomes
from mcp_eventscope.request_state.answers import RESTORE_SECONDS, RedisAnswers
from mcp_eventscope.request_state.facts import (
    AnswersLost,
    KeysChanged,
    KeySource,
    RequestStateFact,
    StateRefusal,
    StateRefused,
)
from mcp_eventscope.request_state.middleware import RequestStateMiddleware
from mcp_eventscope.request_state.protocol import Answer
from mcp_eventscope.request_state.ring import KeyRing, StateKey
from mcp_eventscope.request_state.secret import secrets_of
from mcp_eventscope.store.events import StoreDegraded, StoreEvent, StoreRecovered

_state_keys = Script("state_keys.lua")

DEFAULT_TTL = 600.0
"""Seconds for which a state is valid, as in the SDK."""
DEFAULT_ROTATION = 86_400.0
DEFAULT_WAIT = 20.0
REFRESH_SECONDS = 2.0
"""Seconds between refreshes of the keys."""
_REFRESH_PAUSE = 0.25
"""Minimum seconds between refreshes, however many unknown keys arrive."""
_SKEW_SECONDS = 60.0
"""Seconds by which the SDK accepts states of the future: their answers are kept for longer."""
_RECOVERY_SECONDS = 1.0
"""Seconds after an outage in which other workers share their keys, and write answers again that Redis has lost."""
_FLUSH_SECONDS = 1.0
_KEY_BYTES = 32
_MICROSECONDS = 1_000_000
_DAY = 86_400

NUMBERS: Mapping[str, Number] = {
    "ttl": Number("seconds", 1, 30 * _DAY),
    "rotation": Number("seconds", 60, 365 * _DAY),
    "wait_timeout": Number("seconds", 0, 3600),
}
"""The types and ranges of the numeric options of `RedisRequestState`."""


class RedisRequestState:
    """Request states that any worker opens, and answers that take effect once.

    The states of multi-round-trip requests (protocol revision 2026-07-28, SEP-2322) are sealed by the SDK's AES-GCM
    codec. The keys are derived from secrets of the operator; without them, they are generated and shared in Redis,
    where every reader can forge states.

    The first use of an answer is recorded in Redis with its outcome. The same answer, repeated after a lost response,
    receives that outcome; another answer to the same state is refused.

    Args:
        backend: The Redis that all workers share: `RedisEventStore(redis).backend`.
        keys: Secrets of at least 32 bytes, newest first: the first one seals, all open. None: those of
            `EVENTSCOPE_REQUEST_STATE_KEYS` or `EVENTSCOPE_REQUEST_STATE_KEYS_FILE`, else keys generated in Redis.
        ttl: Seconds for which a state is valid.
        rotation: Seconds after which a generated key is replaced. States that are sealed with it stay valid.
        wait_timeout: Maximum seconds that an answer waits for a Redis that is unreachable, or for the outcome of its
            first use. Beyond it the answer is refused with an error that asks the client to repeat it.
        bind_principal: As in `RequestStateSecurity`.
        audience: The name of the service, the same in all of its processes; None: the name of the server.

    Raises:
        TypeError: A secret is neither bytes nor a string, or a number has another type.
        ValueError: A secret is too short, a variable is invalid, or a number is out of range.
    """

    def __init__(  # noqa: PLR0913 - the options of an operator
        self,
        backend: RedisBackend,
        *,
        keys: Sequence[bytes | str] | None = None,
        ttl: float = DEFAULT_TTL,
        rotation: float = DEFAULT_ROTATION,
        wait_timeout: float = DEFAULT_WAIT,
        bind_principal: Callable[[ServerRequestContext[Any, Any]], str | None] | None = authenticated_principal,
        audience: str | None = None,
    ) -> None:
        check_type("backend", backend, RedisBackend, "a RedisBackend", "pass RedisEventStore(redis).backend")
        for name, value in (("ttl", ttl), ("rotation", rotation), ("wait_timeout", wait_timeout)):
            NUMBERS[name].check(name, value)
        if audience is not None:
            installation.check_audience("audience", audience)
        self._backend = backend
        self._rotation = rotation
        self._wait_timeout = wait_timeout
        self._audience = audience
        self._callbacks: list[Callable[[RequestStateFact], None]] = []
        self._ring = KeyRing(backend.clock, self._emit)
        self._security = RequestStateSecurity(
            codec=self._ring, ttl=ttl, bind_principal=bind_principal, audience=audience
        )
        self._lifetime = ttl + _SKEW_SECONDS
        self._answers = RedisAnswers(backend, self, self._lifetime, wait_timeout, self._emit)
        first, *others = secrets_of(keys) or (b"",)
        self._secret = bool(first)
        if first:
            self._ring.replace(StateKey(first, None, KeySource.SECRET), others)
        self._generated: dict[bytes, tuple[int, int]] = {}
        """The generated keys with their creation and last use, in microseconds on Redis's clock."""
        self.epoch_key = backend.keys.state_epoch if first else backend.keys.state_keys
        self.epoch = ("", 0)
        self._confirmed = False
        self._uncertain_until = 0.0
        """Until then other workers may not have noticed that Redis has lost data."""
        self._restored_at = 0.0
        """When the last announcement of a worker that writes answers again ends, unless it announces more."""
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._started = self._finished = 0
        """The number of refreshes that have begun, and the number of the last one that succeeded."""
        self._entries = 0
        self._changing = LoopLock()
        """Held while it starts or stops."""
        self._running: AsyncExitStack | None = None
        backend.observers.subscribe(self._on_event)

    @property
    def security(self) -> RequestStateSecurity:
        """The policy alone, for `MCPServer(request_state_security=…)`: shared keys, without single use.

        `install` includes it.
        """
        return self._security

    @property
    def audience(self) -> str | None:
        """The name of the service; None: the name of the server in which it is installed."""
        return self._audience

    def install(self, server: object) -> None:
        """Protect the request states of a server: replace its `RequestStateBoundary`, and run with its lifespan.

        Args:
            server: An `MCPServer`, a low-level `Server`, or a `FastMCP`.

        Raises:
            TypeError: It is none of these.
            ValueError: It has no name, or one that differs between processes, and `audience` is not given.
        """
        installation.install(self, server)

    def middleware(self, audience: str) -> ServerMiddleware[Any]:
        """Create the middleware; see `RequestState.middleware`."""
        return RequestStateMiddleware(self._security, audience, self, self._emit)

    def observe(self, callback: Callable[[RequestStateFact], None]) -> None:
        """Register a callback for facts; see `RequestState.observe`."""
        self._callbacks.append(callback)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the keys, and keep them current until the context is left. A server that has it installed enters it.

        While Redis is unreachable, a generated key of this process seals. It is shared as soon as Redis is reachable.
        Entries may overlap: the first one starts, and the last one stops.
        """
        self._entries += 1
        changing = self._changing()
        try:
            async with changing:
                if self._running is None:
                    self._wake, self._changed = asyncio.Event(), asyncio.Event()
                    workers, running = self._backend.workers, AsyncExitStack()
                    async with running:
                        await running.enter_async_context(
                            workers.hold_lease(workers.lease, lambda _: None, self._republish)
                        )
                        await running.enter_async_context(self._refreshing())
                        self._running = running.pop_all()
            yield
        finally:
            self._entries -= 1
            with anyio.CancelScope(shield=True):
                async with changing:
                    if not self._entries and self._running is not None:
                        running, self._running = self._running, None
                        await running.aclose()

    @asynccontextmanager
    async def _refreshing(self) -> AsyncIterator[None]:
        with anyio.move_on_after(self._backend.breaker.call_timeout), contextlib.suppress(StoreError):
            await self._refresh()
        if self._secret:
            self._emit(KeysChanged(KeySource.SECRET, rotated=False))
        elif self._ring.sealing is None:
            self._ring.replace(StateKey(_fresh(), self._backend.clock.now(), KeySource.PROCESS), ())
            self._emit(KeysChanged(KeySource.PROCESS, rotated=False))
        task = asyncio.create_task(self._refresh_loop(), name="eventscope-request-state")
        try:
            yield
        finally:
            await cancel_task(task)
            with anyio.move_on_after(_FLUSH_SECONDS, shield=True), contextlib.suppress(StoreError):
                await self._refresh()  # Reports the last use of its key.
                await self._answers.flush()

    # -- what the middleware needs ------------------------------------------------------------------------------------

    def require_running(self) -> None:
        """Refuse states that only this process would open; see `Answers.require_running`."""
        if self._running is None:
            self._emit(StateRefused(StateRefusal.NOT_RUNNING))
            raise outcomes.unavailable(StateRefusal.NOT_RUNNING)

    async def prepare(self, token: str) -> None:
        """Learn the key of a token; see `Answers.prepare`."""
        self.require_running()
        if self._secret:
            return
        # Another worker has made the key. After an outage it may not have shared it yet.
        until, certain = time.monotonic() + self._wait_timeout, False
        while not certain and not self._ring.knows(token):
            if not await self._refreshed(until):
                self._emit(StateRefused(StateRefusal.UNAVAILABLE))
                raise outcomes.unavailable(StateRefusal.UNAVAILABLE)
            certain = time.monotonic() >= self._uncertain_until

    async def claim(self, state: str, answer: str) -> Answer | bytes:
        """Claim an answer; see `Answers.claim`."""
        return await self._answers.claim(state, answer)

    async def confirm(self, until: float) -> bool:
        """Wait until Redis is reachable and its data is confirmed; see `Keeper.confirm`."""
        while True:
            now = time.monotonic()
            if not self._confirmed or self._backend.breaker.unreachable:
                if not await self._refreshed(until):
                    return False
            elif self._uncertain_until > now:
                if self._uncertain_until > until:
                    return False
                await anyio.sleep(self._uncertain_until - now)
                self.doubt()  # A worker may have announced meanwhile that it writes answers again.
            elif self._restored_at > now:
                await anyio.sleep(_REFRESH_PAUSE)
                self.doubt()
            else:
                return True

    def doubt(self) -> None:
        """Confirm the data again; see `Keeper.doubt`."""
        self._confirmed = False
        self._wake.set()

    async def _refreshed(self, until: float) -> bool:
        """Wait for a refresh that begins from now on. False: none has succeeded until then (monotonic)."""
        number = self._started + 1
        self._wake.set()
        with anyio.move_on_after(max(0.0, until - time.monotonic())):
            while self._finished < number:
                await self._changed.wait()
        return self._finished >= number

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def _refresh_loop(self) -> None:
        while True:
            with anyio.move_on_after(REFRESH_SECONDS if self._confirmed else _REFRESH_PAUSE):
                await self._wake.wait()
            self._wake.clear()
            if not self._backend.breaker.unreachable:
                try:
                    await self._refresh()
                    await self._answers.flush()
                except Exception:  # noqa: BLE001 - it must not end; the circuit breaker reports failures of Redis
                    self._confirmed = False
            await anyio.sleep(_REFRESH_PAUSE)

    async def _refresh(self) -> None:
        """Exchange the generated keys with Redis, and check whether it has lost data.

        Raises:
            StoreError: It failed.
        """
        self._started += 1
        number = self._started
        kept = round(self._lifetime * _MICROSECONDS)
        lifetime = round(self._rotation * _MICROSECONDS)
        milliseconds = round((self._rotation + 2 * self._lifetime) * 1000) + _DAY * 1000
        fresh = "" if self._secret else _fresh().hex()
        announced = (self._answers.announcement, round(RESTORE_SECONDS * 1000))
        args = [kept, lifetime, fresh, secrets.token_hex(8), milliseconds, *self.epoch, *announced, *self._reported()]
        reply: list[bytes] = await self._backend.call(
            "share the keys of request states with", lambda: _state_keys(self._backend.redis, [self.epoch_key], args)
        )
        now, epoch, calls, lost, others_restore, current, *rows = reply
        self._backend.clock.synchronize(int(now))
        if not self._secret:
            self._take(current, rows)
        found = epoch.decode("ascii", "replace")
        self._restored_at = time.monotonic() + int(others_restore) / 1000 if int(others_restore) else 0.0
        if lost == b"1":
            self._emit(AnswersLost(await self._answers.restore()))
            self._uncertain_until = time.monotonic() + 2 * REFRESH_SECONDS  # The others do the same.
            self.epoch = (found, int(calls))
        else:  # A claim may have learnt a later number meanwhile.
            self.epoch = max(self.epoch, (found, int(calls)), key=lambda known: known[1])
        self._confirmed = True
        self._finished = number
        self._changed.set()
        self._changed = asyncio.Event()

    def _reported(self) -> list[str | int]:
        """The generated keys that this worker knows, its sealing key first, with creation and age of their last use."""
        key, now = self._ring.sealing, self._backend.clock.now()
        if self._secret or key is None:
            return []
        known = dict(self._generated)
        created, used = known.pop(key.secret, (key.created or now, key.created or now))
        known = {key.secret: (created, max(used, self._ring.used_at or 0)), **known}
        return [
            text for secret, (created, used) in known.items() for text in (secret.hex(), created, max(0, now - used))
        ]

    def _take(self, current: bytes, rows: Sequence[bytes]) -> None:
        """Take the keys over that Redis has returned."""
        self._generated = {
            bytes.fromhex(secret.decode("ascii")): (int(created), int(used))
            for secret, created, used in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
        }
        secret = bytes.fromhex(current.decode("ascii"))
        before = self._ring.sealing
        sealing = StateKey(secret, self._generated[secret][0], KeySource.REDIS)
        self._ring.replace(sealing, [each for each in self._generated if each != secret])
        if before is None or before.source is not KeySource.REDIS or before.secret != secret:
            self._emit(KeysChanged(KeySource.REDIS, rotated=before is not None and before.source is KeySource.REDIS))

    async def _republish(self) -> None:
        await self._answers.restore()

    def _on_event(self, fact: StoreEvent) -> None:
        if isinstance(fact, StoreDegraded | StoreRecovered):
            self.doubt()
        if isinstance(fact, StoreRecovered):
            self._uncertain_until = max(self._uncertain_until, time.monotonic() + _RECOVERY_SECONDS)

    def _emit(self, fact: RequestStateFact) -> None:
        for callback in self._callbacks:
            with contextlib.suppress(Exception):
                callback(fact)


def _fresh() -> bytes:
    return secrets.token_bytes(_KEY_BYTES)
