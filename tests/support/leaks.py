"""Finds keys that never expire."""

from redis import asyncio as aioredis


class LeakChecker:
    """Finds the keys under a prefix that have no TTL.

    Args:
        client: A client of the server.
        prefix: Of the checked keys.
    """

    def __init__(self, client: aioredis.Redis, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._exempt: list[str] = []

    def exempt(self, *parts: str) -> None:
        """Allow keys that hold one of these texts to live for ever; none given: all keys of the test."""
        self._exempt += parts or [""]

    async def keys(self) -> list[str]:
        """All keys under the prefix."""
        return sorted([_text(key) async for key in self._client.scan_iter(match=f"{self._prefix}*", count=1000)])

    async def leaked(self) -> list[str]:
        """The keys without TTL that were not exempted."""
        keys = [key for key in await self.keys() if not any(part in key for part in self._exempt)]
        async with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.ttl(key)
            return [key for key, ttl in zip(keys, await pipeline.execute(), strict=True) if ttl == -1]

    async def clean(self) -> None:
        """Delete all keys under the prefix, since the server may be shared."""
        if keys := await self.keys():
            await self._client.delete(*keys)


def _text(key: bytes | str) -> str:
    return key if isinstance(key, str) else key.decode("utf-8", "backslashreplace")
