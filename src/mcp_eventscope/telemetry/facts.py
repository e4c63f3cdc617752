"""Facts about sessions, requests and their configuration, as reported by the session manager."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Origin(StrEnum):
    """How this worker came to serve a session."""

    OPENED = "opened"
    """A client opened it."""
    ADOPTED = "adopted"
    """Another worker opened it."""


class SessionEnd(StrEnum):
    """Why a session is no longer served here."""

    DELETED = "deleted"
    """Its client ended it on this worker."""
    OTHER_WORKER = "other_worker"
    """Its client ended it on another worker."""
    IDLE = "idle"
    """It received no request for `session_idle_timeout`."""
    FAILED = "failed"
    """It crashed, or its client disconnected while it was being opened."""
    SHUTDOWN = "shutdown"
    """This worker stops. Other workers can adopt it."""


class Refusal(StrEnum):
    """Why a request was refused before its session served it."""

    LIMIT = "limit"
    """Too many sessions are open."""
    UNKNOWN = "unknown"
    """There is no session with this id, or no longer."""
    NOT_OWNER = "not_owner"
    """It belongs to another principal; the answer is the same as for an unknown session."""
    OTHER_SERVER = "other_server"
    """It belongs to another server under the same prefix; the answer is the same as for an unknown session."""
    UNAVAILABLE = "unavailable"
    """The session store is unavailable."""
    RESUMES = "resumes"
    """Too many resumes of the session are waiting."""
    INVALID = "invalid"
    """The request to open a session was invalid."""


@dataclass(frozen=True, slots=True)
class SessionBegan:
    """This worker started to serve a session."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """This worker no longer serves a session."""

    reason: SessionEnd
    seconds: float
    """Seconds for which this worker served it."""
    protocol_version: str
    """The negotiated version, a value of the catalog's label."""
    idle: float | None = None
    """Seconds for which it had no request; None: it had one."""


@dataclass(frozen=True, slots=True)
class SessionUsed:
    """A session received a request after a pause."""

    idle: float
    """Seconds for which it had no request."""


@dataclass(frozen=True, slots=True)
class SessionsAged:
    """The extremes of the sessions that this worker serves, from time to time."""

    oldest: float
    """Seconds for which the oldest session has been served; 0: there is none."""
    idle: float
    """Seconds for which the session that has been idle for longest had no request; 0: none is idle."""


@dataclass(frozen=True, slots=True)
class OperationEnded:
    """A request within a session has ended, whether or not it was answered by its handler."""

    method: str
    """A value of the catalog's label."""
    seconds: float
    """Seconds from its arrival to its end."""
    error_type: str
    """A value of the catalog's label; "": it succeeded."""


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """A request was refused before its session served it."""

    reason: Refusal
    session_hash: str | None
    """A short digest of the requested session id."""


@dataclass(frozen=True, slots=True)
class ResumeWaited:
    """A resume got its turn among those of its principal, or ended before."""

    seconds: float
    """Seconds for which it waited."""


@dataclass(frozen=True, slots=True)
class Requested:
    """An HTTP request arrived."""

    protocol_version: str
    """A value of the catalog's label."""


@dataclass(frozen=True, slots=True)
class ResumptionDisabled:
    """A mode or a protocol version rules out resumption."""

    mode: str
    fix: str


@dataclass(frozen=True, slots=True)
class TTLShort:
    """Events expire while a client can still resume."""

    ttl: int
    """Seconds."""
    setting: str
    """The setting that allows a client more time."""
    seconds: float
    """Its value."""
    fix: str


@dataclass(frozen=True, slots=True)
class PrefixShared:
    """Another server uses the same Redis and key prefix."""

    server: str
    other_server: str


@dataclass(frozen=True, slots=True)
class Started:
    """An application has started."""

    version: str
    """The version of this package."""
    kind: str
    """The kind of the store: Redis, Redis Cluster, Redis behind Sentinel, or the class of a third-party store."""
    address: str
    """The address of the store, without credentials."""
    ttl: int | None
    """Seconds that events are kept; None: no expiry, or unknown."""
    key_prefix: str | None = None
    """The prefix of its keys; None: unknown."""
    worker: str | None = None
    """The name of this process among the workers of the store; None: it has none."""


@dataclass(frozen=True, slots=True)
class LifespanMissing:
    """A request arrived before the session manager was started."""

    fix: str


ServingFact: TypeAlias = (
    PrefixShared
    | SessionBegan
    | SessionEnded
    | SessionUsed
    | SessionsAged
    | OperationEnded
    | SessionRefused
    | ResumeWaited
    | Requested
    | ResumptionDisabled
    | TTLShort
    | Started
    | LifespanMissing
)
