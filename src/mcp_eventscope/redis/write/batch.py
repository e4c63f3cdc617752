"""Batches, which carry events to Redis in one command, and their sources."""

from abc import ABC, abstractmethod
from typing import Protocol

from mcp_eventscope.redis.limits import PROBE_SECONDS

BATCH_BYTES = 128 * 1024
"""Payload bytes after which a batch is closed. A larger event is sent alone, so only its transfer delays others."""


class Batch(ABC):
    """One idempotent command to Redis, which may be resent even if Redis has executed it."""

    __slots__ = ("broken", "events", "payload_bytes", "sent")

    def __init__(self) -> None:
        self.events = 0
        self.payload_bytes = 0
        self.sent = 0.0
        """When the batch was last sent, on the loop's clock."""
        self.broken = 0
        """How often the connection broke while this large batch was in flight."""

    @abstractmethod
    def packed(self, *, as_eval: bool) -> list[bytes]:
        """Encode the command as bytes for the wire.

        Args:
            as_eval: Whether to send the script's text, because Redis does not know its digest.
        """

    @abstractmethod
    def arguments(self, *, as_eval: bool) -> list[str | bytes]:
        """Encode the command as arguments for a client's `execute_command`. Arguments as in `packed`."""

    @abstractmethod
    def acknowledge(self, reply: bytes, seconds: float) -> None:
        """Handle Redis's reply.

        Args:
            reply: The return value of the script.
            seconds: Seconds between sending and the reply.

        Raises:
            ValueError: The reply does not belong to this batch.
        """

    @abstractmethod
    def refuse(self, error: str) -> bool:
        """Handle a permanent refusal by isolating the event that causes it.

        Args:
            error: Redis's reply, or the error of the broken connections.

        Returns:
            Whether the batch was replaced; False: the same batch must be retried later.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Return the events to their source when the store is closed."""


class BatchSource(Protocol):
    """A source of a sender's batches."""

    @property
    def ready(self) -> bool:
        """Whether `take` would return a batch."""
        ...

    def take(self, parts: int) -> Batch | None:
        """Take the next batch, with at most `parts` parts; None if nothing is ready."""
        ...


class Probe(Batch):
    """A small write, which checks whether Redis accepts writes, and answers in time.

    A full Redis, a replica, and one that refuses this user's keys all answer a `PING`.

    Args:
        key: The key, which expires within a minute.
        seconds: Seconds after which a node of Redis Cluster has failed.
    """

    __slots__ = ("_arguments", "key", "seconds")

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__()
        self.key = key
        self.seconds = seconds
        self._arguments = self.write(key)

    @staticmethod
    def write(key: str) -> list[str | bytes]:
        """The arguments of the write of a key."""
        return ["SET", key, "", "EX", str(PROBE_SECONDS)]

    def packed(self, *, as_eval: bool) -> list[bytes]:
        """Encode the command as bytes for the wire."""
        texts = [each.encode() if isinstance(each, str) else each for each in self._arguments]
        return [b"*%d\r\n" % len(texts), *(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)]

    def arguments(self, *, as_eval: bool) -> list[str | bytes]:
        """Encode the command as arguments."""
        return self._arguments

    def acknowledge(self, reply: bytes, seconds: float) -> None:
        """Do nothing: any reply is sufficient."""

    def refuse(self, error: str) -> bool:
        """Do nothing: the write is retried."""
        return False

    def abandon(self) -> None:
        """Do nothing."""
