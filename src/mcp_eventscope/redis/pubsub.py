"""The Redis subscriptions of a process, on one connection."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeAlias

from redis import asyncio as aioredis
from redis.asyncio.client import PubSub
from redis.exceptions import NoPermissionError, RedisError

from mcp_eventscope.cancellation import cancel_task, is_cancelling
from mcp_eventscope.redis.client import AnyRedis

Listener: TypeAlias = Callable[[bytes | None], None]
"""Called with a published message, or with None when messages may have been lost."""

RECONNECT_SECONDS = 0.2
REFUSED_SECONDS = 60.0
"""Seconds until a subscription is retried that Redis refused: the user lacks the permission, and followers poll."""
CHANNELS_AT_ONCE = 1000
"""Maximum number of channels in one command: after a restart of Redis all channels are subscribed to again."""


class Subscriptions:
    """Subscriptions of a process, on one connection: opened with the first, closed with the last.

    Messages may be lost when the connection breaks. After reconnecting, every listener is called with None. On Redis
    Cluster there are no subscriptions: listeners rely on polling, which they need in any case.
    """

    def __init__(self, redis: AnyRedis) -> None:
        self._redis = redis
        self._listeners: dict[str, set[Listener]] = {}
        self._subscribed: dict[str, bool] = {}
        """The subscribed channels, and whether Redis has confirmed each."""
        self._received = False
        """Whether anything was received since the last probe."""
        self._probing = False
        self._touched: set[str] = set()
        """Channels whose listeners have changed since the subscriptions were last adjusted."""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, channel: str, listener: Listener) -> None:
        """Call the listener for each message of the channel, once the subscription is made."""
        self._listeners.setdefault(channel, set()).add(listener)
        self._touch(channel)
        if self._task is None and isinstance(self._redis, aioredis.Redis):
            self._task = asyncio.create_task(self._run(self._redis), name="eventscope-subscriptions")

    def unsubscribe(self, channel: str, listener: Listener) -> None:
        """Remove the listener."""
        listeners = self._listeners.get(channel, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(channel, None)
        self._touch(channel)

    def probe(self) -> bool:
        """Return whether anything was received since the last probe, and send a PING.

        A connection whose peer has disappeared is silent, and takes long to break.
        """
        received, self._received = self._received, False
        self._probing = True
        self._changed.set()
        return received

    def confirmed(self, channel: str) -> bool:
        """Whether Redis has confirmed the subscription: nothing is missed while the connection answers."""
        return self._subscribed.get(channel, False)

    def _touch(self, channel: str) -> None:
        self._touched.add(channel)
        self._changed.set()

    async def _run(self, redis: aioredis.Redis) -> None:
        try:
            while self._listeners and not is_cancelling():
                pubsub = redis.pubsub()
                self._subscribed.clear()
                self._touched = set(self._listeners)
                try:
                    await self._serve(pubsub)
                except Exception as error:  # noqa: BLE001 - all followers of the process depend on this loop
                    await asyncio.sleep(REFUSED_SECONDS if isinstance(error, NoPermissionError) else RECONNECT_SECONDS)
                finally:
                    with contextlib.suppress(RedisError, OSError):
                        await pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            self._task = None

    async def _serve(self, pubsub: PubSub) -> None:
        """Maintain the subscriptions until there are no listeners or the connection breaks."""
        reading: asyncio.Task[None] | None = None
        try:
            while self._listeners:
                self._changed.clear()
                await self._adjust(pubsub)
                if self._probing and self._subscribed:
                    self._probing = False
                    await pubsub.ping()
                if is_cancelling():
                    return
                if reading is None:
                    reading = asyncio.create_task(self._read(pubsub), name="eventscope-subscriptions-read")
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if reading.done():
                    reading.result()
                    return
        finally:
            if reading is not None:
                await cancel_task(reading)

    async def _adjust(self, pubsub: PubSub) -> None:
        """Subscribe to the channels with listeners only. Checks the changed channels, as there are many others."""
        touched, self._touched = self._touched, set()
        added = [channel for channel in touched if channel in self._listeners and channel not in self._subscribed]
        removed = [channel for channel in touched if channel not in self._listeners and channel in self._subscribed]
        # Before the confirmations, which may arrive while this still awaits.
        self._subscribed.update(dict.fromkeys(added, False))
        for start in range(0, len(added), CHANNELS_AT_ONCE):
            await pubsub.subscribe(*added[start : start + CHANNELS_AT_ONCE])
        for start in range(0, len(removed), CHANNELS_AT_ONCE):
            await pubsub.unsubscribe(*removed[start : start + CHANNELS_AT_ONCE])
        for channel in removed:
            del self._subscribed[channel]

    async def _read(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            self._received = True
            if message is None or message["type"] not in {"message", "subscribe"}:
                continue
            channel, data = message["channel"], message["data"]
            name = channel.decode() if isinstance(channel, bytes) else channel
            content = None
            # A confirmation, the first one or after the client has silently reconnected: messages published before it
            # were missed, so each listener must poll once.
            if message["type"] == "message":
                content = data if isinstance(data, bytes) else str(data).encode()
            elif name in self._subscribed:  # Else a late confirmation, after the last listener was removed.
                self._subscribed[name] = True
            for listener in tuple(self._listeners.get(name, ())):
                listener(content)
