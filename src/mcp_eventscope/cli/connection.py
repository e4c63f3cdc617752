"""The connection to Redis that commands share, from options and the environment."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import click

from mcp_eventscope.cli.output import progress
from mcp_eventscope.errors import EventscopeError
from mcp_eventscope.options import check_text
from mcp_eventscope.redis.client import AnyRedis, address_of, client_for
from mcp_eventscope.redis.inspection import Inspector, Walk
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.redis.store import RedisEventStore
from mcp_eventscope.settings import URL_VARIABLE, Settings, load
from mcp_eventscope.telemetry.tracing import session_hash

_HASH = re.compile(r"[0-9a-f]{12}", re.ASCII)


class NotFoundError(EventscopeError):
    """There is no such session."""


@dataclass(frozen=True, slots=True)
class Target:
    """A prefix on a Redis."""

    redis: AnyRedis
    keys: Keys
    inspector: Inspector
    store: RedisEventStore
    settings: Settings

    @property
    def address(self) -> str:
        """The address of Redis, without credentials."""
        return address_of(self.redis)

    async def resolve(self, session: str, max_keys: int) -> str:
        """The id of a session that is given by its id, or by its hash in logs and spans.

        Args:
            session: The id or the hash.
            max_keys: Keys that the search for a hash examines at most.

        Raises:
            NotFoundError: No session has the hash, or the text cannot be an id.
            StoreError: Redis could not be read.
        """
        try:
            check_text("session", session, "its hash in logs", "run mcp-eventscope sessions list")
        except ValueError as error:
            raise NotFoundError(str(error)) from None
        if not _HASH.fullmatch(session) or (await self.inspector.session(session)).state != "absent":
            return session
        with walking("searching the session", max_keys) as walk:
            page = await self.inspector.sessions(walk, limit=max_keys)
        found = next((each.session_id for each in page.sessions if session_hash(each.session_id) == session), None)
        if found is None:
            msg = (
                "session must be the id of a session or its hash in logs, got neither; run mcp-eventscope sessions list"
            )
            raise NotFoundError(msg)
        return found


def options_of(redis_url: str | None, key_prefix: str | None, name: str | None = None) -> Settings:
    """The options of `http_app()` with the environment, as a server reads them.

    Raises:
        UsageError: An option or a variable is invalid.
    """
    try:
        return load({"redis_url": redis_url, "key_prefix": key_prefix, "name": name})
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def settings_of(redis_url: str | None, key_prefix: str | None, name: str | None = None) -> Settings:
    """As `options_of`, with a URL of Redis.

    Raises:
        UsageError: An option or a variable is invalid, or no URL is given.
    """
    settings = options_of(redis_url, key_prefix, name)
    if settings.redis_url is None:
        msg = (
            f"--redis-url must be given, such as redis://localhost:6379/0, got none; or set {URL_VARIABLE}, "
            "which no process list shows"
        )
        raise click.UsageError(msg)
    return settings


@contextmanager
def walking(label: str, max_keys: int) -> Iterator[Walk]:
    """The bounds of a walk that shows its progress until the block ends."""
    with progress(label) as shown:
        yield Walk(max_keys, lambda keys: shown.update(f"{keys} keys"))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Target]:
    """Connect until the block ends; nothing is sent yet."""
    # Entering the client of a cluster would connect, with errors of redis-py.
    async with aclosing(client_for(settings.redis_url or "")) as redis:
        keys = Keys(settings.key_prefix)
        store = RedisEventStore(redis, key_prefix=settings.key_prefix, ttl=settings.ttl)
        yield Target(redis, keys, Inspector(redis, keys), store, settings)
