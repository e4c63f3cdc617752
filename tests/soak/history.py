"""The history of a run: flat observations, one JSON line each."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class What(StrEnum):
    """The kinds of observations."""

    BEGIN = "begin"
    END = "end"
    """The run came to its end: a call without an outcome is a hang from here on."""
    LAG = "lag"
    """The event loop of the clients was late, by `number` milliseconds."""

    WORKER_KILLED = "worker_killed"
    WORKER_BACK = "worker_back"
    WORKER_FROZEN = "worker_frozen"
    WORKER_THAWED = "worker_thawed"
    WORKER_DIED = "worker_died"
    """A worker ended although the rig did not kill it."""
    REDIS_KILLED = "redis_killed"
    """Redis was killed; `kind` is `empty` or `saved`, which is how it starts again."""
    REDIS_BACK = "redis_back"
    REDIS_FLUSHED = "redis_flushed"
    """FLUSHALL: Redis is empty, and its connections stay."""
    REDIS_CUTTING = "redis_cutting"
    """The connections between workers and Redis are reset, again and again, until `redis_mended`."""
    REDIS_MENDED = "redis_mended"
    REDIS_FROZEN = "redis_frozen"
    REDIS_THAWED = "redis_thawed"
    REDIS_SLOW = "redis_slow"
    REDIS_FAST = "redis_fast"

    CLIENTS_CUT = "clients_cut"
    """All clients lost their streams at the same moment, `number` of them."""

    OPENED = "opened"
    """A client has a session: the one that it calls `session`, on a worker."""
    ENDED = "ended"
    """The client is about to end its session."""
    CALL = "call"
    """A client is about to send a request, which promises `number` notifications."""
    REFUSED = "refused"
    """A request got no stream: `kind` is `status` (with `code`), `connection` or `unanswered`."""
    BEGAN = "began"
    """A response with status 200 arrived; `id` is the cursor that the client sent."""
    EVENT = "event"
    CUT = "cut"
    """The client left the connection, as scheduled."""
    CLOSED = "closed"
    """The server ended the stream in good order."""
    BROKEN = "broken"
    """The connection broke, and the client did not do it."""
    PASSED_ON = "passed_on"
    """The SDK's client passed notification `number` of the stream to the application."""
    DONE = "done"
    """The client is through with a stream; `kind` is an `Outcome`."""


class Kind(StrEnum):
    """The kinds of events on a stream."""

    PRIMING = "priming"
    NOTIFICATION = "notification"
    RESULT = "result"
    ERROR = "error"
    FOREIGN = "foreign"
    """A message that this stream was not promised."""


class Outcome(StrEnum):
    """How a stream ended for the client."""

    RESULT = "result"
    ERROR = "error"
    GAVE_UP = "gave_up"
    """Neither a result nor an error came in time."""
    NO_CURSOR = "no_cursor"
    """The stream had begun, and the client had nothing to resume from."""
    REFUSED = "refused"
    """The server answered with a status that no client retries."""
    ABANDONED = "abandoned"
    """The SDK's client ended the call with an error of its own: it retries no POST, and a resume once."""
    UNANSWERED = "unanswered"
    """The connection of the POST broke before the response began."""
    STOPPED = "stopped"
    """The client stopped listening on a standalone stream."""


class Operation(StrEnum):
    """The requests of a client."""

    POST = "post"
    RESUME = "resume"
    LISTEN = "listen"
    NOTIFY = "notify"
    DELETE = "delete"


INITIALIZE = "initialize"
"""The `kind` of a call that opens a session."""
SDK = "sdk"
"""The `note` of a call that the SDK's client makes."""
LIST = "list"
"""The `kind` of a call that lists the tools."""
PUBLISH = "publish"
"""The `kind` of a call whose tool publishes a number on the standalone stream."""
STANDALONE = "standalone"
"""The name of the standalone stream."""


@dataclass(frozen=True)
class Observation:
    """One line of the history. Of one client, a stream is named by its session and its name."""

    at: float
    """Seconds since the run began."""
    what: What
    client: int = -1
    session: str = ""
    stream: str = ""
    connection: int = -1
    worker: int = -1
    operation: str = ""
    kind: str = ""
    id: str = ""
    number: int = 0
    code: int = 0
    request: str = ""
    """The id of a request, or of the request that a response answers, as JSON."""
    published: int = 0
    """The number that a call publishes on the standalone stream."""
    note: str = ""

    def to_json(self) -> str:
        """Return the line, without the fields that have their default."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        return json.dumps({name: value for name, value in values.items() if value != defaults[name]})

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read one line."""
        values: dict[str, Any] = json.loads(line)
        return cls(**values | {"what": What(values["what"])})


def load(path: Path) -> list[Observation]:
    """Read a history."""
    with path.open(encoding="utf-8") as lines:
        return [Observation.from_json(line) for line in lines]


class Recorder:
    """Keeps the history in memory, and writes it to a file line by line.

    Args:
        path: The file; an older one is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.history: list[Observation] = []
        self._file = path.open("w", encoding="utf-8", buffering=1 << 20)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def now(self) -> float:
        """Seconds since the recorder was made."""
        return time.monotonic() - self._began

    def note(self, what: What, **values: Any) -> Observation:
        """Record one observation."""
        observation = Observation(round(self.now, 4), what, **values)
        self.history.append(observation)
        self._file.write(f"{observation.to_json()}\n")
        return observation


def by_stream(history: Iterable[Observation]) -> dict[tuple[int, str, str], list[Observation]]:
    """Group the observations of clients by stream, in order."""
    found: dict[tuple[int, str, str], list[Observation]] = {}
    for observation in history:
        if observation.stream:
            key = (observation.client, observation.session, observation.stream)
            found.setdefault(key, []).append(observation)
    return found
