"""The clients of the matrix, with their versions, and what they are expected not to do, with the reason."""

from dataclasses import dataclass

LEGACY, MODERN = "2025-11-25", "2026-07-28"


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: Its program's, too: `NAME.py`, or `NAME.mjs` where it runs on Node.js.
        package: Its package, as `NAME==VERSION`; from npm the one in `package-lock.json`.
        revision: The protocol's, which its program asks for, or the client chooses.
        not_resuming: Why a call that is cut ends in an error, by design; None: it receives the rest and the result.
    """

    name: str
    package: str
    revision: str = LEGACY
    not_resuming: str | None = None

    def __str__(self) -> str:
        """The client in a note."""
        return f"{self.name} ({self.revision})"

    @property
    def on_node(self) -> bool:
        """Whether it runs on Node.js."""
        return "==" not in self.package


NO_RESUMPTION = "streams of 2026-07-28 cannot be resumed, by specification"
FASTMCP = "fastmcp==4.2.3"
CLIENTS = (
    Client("typescript_1", "@modelcontextprotocol/sdk"),
    Client("typescript_2", "@modelcontextprotocol/client"),
    Client("typescript_2", "@modelcontextprotocol/client", MODERN, not_resuming=NO_RESUMPTION),
    Client("inspector", "@modelcontextprotocol/inspector"),
    Client("mcp_remote", "mcp-remote"),
    Client("fastmcp", FASTMCP),
    Client("fastmcp", FASTMCP, MODERN, not_resuming=NO_RESUMPTION),
    Client("langchain", "langchain-mcp-adapters==0.3.2"),
    Client("openai_agents", "openai-agents==0.24.0", MODERN, not_resuming=NO_RESUMPTION),
)
