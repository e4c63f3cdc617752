"""One subscription connection for a process: who wants to be called when something is published."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeAlias

from redis import asyncio as aioredis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from mcp_eventscope.cancellation import cancel_task, is_cancelling
from mcp_eventscope.redis.client import AnyRedis

Listener: TypeAlias = Callable[[bytes | None], None]
"""Called with what was published, or with None after messages may have been lost."""

RECONNECT_SECONDS = 0.2
CHANNELS_AT_ONCE = 1000
"""Channels in one command: after a restart of Redis all of them are subscribed to again."""


class Subscriptions:
    """Subscriptions of a process, on one connection, which is opened with the first and closed with the last.

    A message may be lost, with the connection; every listener is told so when it is back. On Redis Cluster nothing is
    subscribed to: who listens has to look for himself now and then, as he has to anyway.
    """

    def __init__(self, redis: AnyRedis) -> None:
        self._redis = redis
        self._listeners: dict[str, set[Listener]] = {}
        self._subscribed: dict[str, bool] = {}
        """What was subscribed to, and whether Redis has confirmed it."""
        self._on_message = False
        """Whether anything has come since the last probe."""
        self._probing = False
        self._touched: set[str] = set()
        """The channels that somebody began or ceased to listen to since the subscriptions were last adjusted."""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, channel: str, listener: Listener) -> None:
        """Call the listener for each message of the channel, soon."""
        self._listeners.setdefault(channel, set()).add(listener)
        self._touch(channel)
        if self._task is None and isinstance(self._redis, aioredis.Redis):
            self._task = asyncio.create_task(self._run(self._redis), name="eventscope-subscriptions")

    def unsubscribe(self, channel: str, listener: Listener) -> None:
        """Do not call the listener again."""
        listeners = self._listeners.get(channel, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(channel, None)
        self._touch(channel)

    def probe(self) -> bool:
        """Whether the subscription connection has been heard of since it was last probed; Redis is asked to answer.

        A connection whose other end is gone says nothing, and does not break for a long time.
        """
        heard, self._on_message = self._on_message, False
        self._probing = True
        self._changed.set()
        return heard

    def confirmed(self, channel: str) -> bool:
        """Whether Redis has confirmed the subscription, so that nothing is missed while the connection answers."""
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
                except Exception:  # noqa: BLE001 - whatever it is: all followers of the process listen here
                    await asyncio.sleep(RECONNECT_SECONDS)
                finally:
                    with contextlib.suppress(RedisError, OSError):
                        await pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            self._task = None

    async def _serve(self, pubsub: PubSub) -> None:
        """Keep the subscriptions and pass messages on, until nobody listens or the connection breaks."""
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
        """Subscribe to what is listened to, and to nothing else. Only what was touched is looked at: there are many."""
        touched, self._touched = self._touched, set()
        more = [channel for channel in touched if channel in self._listeners and channel not in self._subscribed]
        less = [channel for channel in touched if channel not in self._listeners and channel in self._subscribed]
        # Before they are confirmed, which may be while this still waits.
        self._subscribed.update(dict.fromkeys(more, False))
        for start in range(0, len(more), CHANNELS_AT_ONCE):
            await pubsub.subscribe(*more[start : start + CHANNELS_AT_ONCE])
        for start in range(0, len(less), CHANNELS_AT_ONCE):
            await pubsub.unsubscribe(*less[start : start + CHANNELS_AT_ONCE])
        for channel in less:
            del self._subscribed[channel]

    async def _read(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            self._on_message = True
            if message is None or message["type"] not in {"message", "subscribe"}:
                continue
            channel, data = message["channel"], message["data"]
            name = channel.decode() if isinstance(channel, bytes) else channel
            content = None
            # A subscription that is confirmed, for the first time or after the client has silently reconnected: until
            # now nothing was heard of the channel, so each listener has to look for itself once.
            if message["type"] == "message":
                content = data if isinstance(data, bytes) else str(data).encode()
            elif name in self._subscribed:  # else it is late: there is nobody left, and it is no longer subscribed to
                self._subscribed[name] = True
            for listener in tuple(self._listeners.get(name, ())):
                listener(content)
