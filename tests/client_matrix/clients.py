"""The clients of the matrix, with their versions; those that do not resume have the reason."""

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
        sdk: The release of the Python SDK that is installed with it; unused on Node.js.
    """

    name: str
    package: str
    revision: str = LEGACY
    not_resuming: str | None = None
    sdk: str = "mcp==2.3.0"

    def __str__(self) -> str:
        """The client in a note."""
        return f"{self.name} ({self.revision})"

    @property
    def on_node(self) -> bool:
        """Whether it runs on Node.js."""
        return "==" not in self.package


NO_RESUMPTION = "streams of 2026-07-28 cannot be resumed, by specification"
FASTMCP = "fastmcp==4.2.3"
PYDANTIC_AI = "pydantic-ai-slim[mcp]==2.68.0"
CLIENTS = (
    Client("typescript_1", "@modelcontextprotocol/sdk"),
    Client("typescript_2", "@modelcontextprotocol/client"),
    # Its call ends with its request timeout, a minute after the cut.
    Client("typescript_2", "@modelcontextprotocol/client", MODERN, not_resuming=NO_RESUMPTION),
    Client("inspector", "@modelcontextprotocol/inspector"),
    Client("mcp_remote", "mcp-remote"),
    Client("fastmcp", FASTMCP),
    Client("fastmcp", FASTMCP, MODERN, not_resuming=NO_RESUMPTION),
    Client("langchain", "langchain-mcp-adapters==0.3.2", sdk="mcp==1.30.0"),
    Client("openai_agents", "openai-agents==0.24.0", MODERN, not_resuming=NO_RESUMPTION),
    Client("pydantic_ai", PYDANTIC_AI),
    Client("pydantic_ai", PYDANTIC_AI, MODERN, not_resuming=NO_RESUMPTION),
    Client("google_adk", "google-adk[mcp]==2.13.0"),
)
