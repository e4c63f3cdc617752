"""A batch: events that go to Redis in one command; and where batches come from."""

from abc import ABC, abstractmethod
from typing import Protocol

BATCH_BYTES = 128 * 1024
"""Payload bytes after which a batch is closed; a larger event goes alone, and only its transfer delays the others."""


class Batch(ABC):
    """One command to Redis. It is idempotent: it may be sent again, whether or not Redis has executed it."""

    __slots__ = ("broken", "events", "payload_bytes", "sent")

    def __init__(self) -> None:
        self.events = 0
        self.payload_bytes = 0
        self.sent = 0.0
        """When it was last sent, by the loop's clock."""
        self.broken = 0
        """How often the connection broke while nothing else was in flight."""

    @abstractmethod
    def packed(self, *, as_eval: bool) -> list[bytes]:
        """The command as bytes for the wire.

        Args:
            as_eval: Send the script's text, since Redis does not know its digest.
        """

    @abstractmethod
    def arguments(self, *, as_eval: bool) -> list[str | bytes]:
        """The command as the arguments that a client's `execute_command` takes. Arguments as in `packed`."""

    @abstractmethod
    def acknowledge(self, reply: bytes, seconds: float) -> None:
        """Take Redis's reply.

        Args:
            reply: The return value of the script.
            seconds: Time between sending and the reply.

        Raises:
            ValueError: This is no reply to this batch.
        """

    @abstractmethod
    def refuse(self, error: str) -> bool:
        """Take Redis's refusal, which a repetition would meet again: isolate the event that causes it.

        Args:
            error: Redis's reply, or how the connection ended each time.

        Returns:
            Whether something else is to be tried; False: the same batch has to be tried again, later.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Return the events to their source: the batch will not be sent again, since the store is being closed."""


class BatchSource(Protocol):
    """Where a sender's batches come from."""

    @property
    def ready(self) -> bool:
        """Whether `take` would return a batch."""
        ...

    def take(self, parts: int) -> Batch | None:
        """The next batch, with at most so many keys' parts; None when nothing is ready."""
        ...


class Probe(Batch):
    """A `PING`: whether Redis answers, and in time."""

    __slots__ = ()

    def packed(self, *, as_eval: bool) -> list[bytes]:
        """The command as bytes for the wire."""
        return [b"*1\r\n$4\r\nPING\r\n"]

    def arguments(self, *, as_eval: bool) -> list[str | bytes]:
        """The command as arguments."""
        return ["PING"]

    def acknowledge(self, reply: bytes, seconds: float) -> None:
        """Do nothing: that there was a reply is all."""

    def refuse(self, error: str) -> bool:
        """Do nothing: a `PING` is tried again."""
        return False

    def abandon(self) -> None:
        """Do nothing."""
