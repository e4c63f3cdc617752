"""The clients of the matrix, with their versions, and what they are expected not to do, with the reason."""

from dataclasses import dataclass
from enum import Enum


class Watching(Enum):
    """How the program of a client learns of a running call."""

    PROGRESS = "progress"
    LOG = "log messages"
    """It has no callback for progress."""
    NOTHING = "nothing"


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: Its program's, too: `NAME.py`, or `NAME.mjs` where it runs on Node.js.
        package: Its package, as `NAME==VERSION`; from npm the one in `package-lock.json`.
        watching: How it shows a running call.
        not_resuming: Why a call that is cut ends in an error, by design; None: it receives the rest and the result.
    """

    name: str
    package: str
    watching: Watching = Watching.PROGRESS
    not_resuming: str | None = None

    @property
    def on_node(self) -> bool:
        """Whether it runs on Node.js."""
        return "==" not in self.package


CLIENTS = (
    Client("typescript_1", "@modelcontextprotocol/sdk"),
    Client("fastmcp", "fastmcp==4.2.3"),
)
