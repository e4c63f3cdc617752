"""What arises above the store, in serving it: sessions, requests, and how they are configured. Facts, and no sinks."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Origin(StrEnum):
    """How a session came here."""

    OPENED = "opened"
    """A client opened it."""
    ADOPTED = "adopted"
    """Another worker opened it."""


class SessionEnd(StrEnum):
    """Why a session is no longer served here."""

    DELETED = "deleted"
    """Its client ended it, here."""
    ELSEWHERE = "elsewhere"
    """Its client ended it, on another worker."""
    IDLE = "idle"
    """Nobody asked for anything for too long."""
    FAILED = "failed"
    """It crashed, or its client left while it was being opened."""
    SHUTDOWN = "shutdown"
    """This worker stops. Others may go on with it."""


class Refusal(StrEnum):
    """Why a request got no session."""

    LIMIT = "limit"
    """Too many are open."""
    UNKNOWN = "unknown"
    """There is none of that id, or there is no longer."""
    OWNER = "owner"
    """It is another principal's, who is answered as if there were none."""
    UNAVAILABLE = "unavailable"
    """The store could not be asked."""
    INVALID = "invalid"
    """The request was to open one, and was refused."""


@dataclass(frozen=True, slots=True)
class SessionBegan:
    """A session is served here from now on."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session is no longer served here."""

    reason: SessionEnd


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """A request got no session."""

    reason: Refusal
    session: str | None
    """Of the session that was asked for, a short digest."""


@dataclass(frozen=True, slots=True)
class Requested:
    """An HTTP request came."""

    revision: str
    """One of the catalog's."""


@dataclass(frozen=True, slots=True)
class Inert:
    """Something is on in which nothing can be resumed."""

    mode: str
    fix: str


@dataclass(frozen=True, slots=True)
class TTLShort:
    """Events expire before something ends that may still ask for them."""

    ttl: int
    """Seconds."""
    limit: str
    """The name of the setting that allows a client more time."""
    seconds: float
    """Its value."""
    fix: str


ServingFact: TypeAlias = SessionBegan | SessionEnded | SessionRefused | Requested | Inert | TTLShort
