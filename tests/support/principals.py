"""Two principals, and the options of servers that know them."""

from typing import Any

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from pydantic import AnyHttpUrl


class Verifier:
    """Accepts the tokens of two principals. After "@" a token has its audience."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token's owner and audience."""
        owner, _, audience = token.partition("@")
        if owner not in {"alice", "bob"}:
            return None
        return AccessToken(
            token=token,
            client_id=owner,
            scopes=["use"],
            subject=owner,
            resource=f"http://{audience}" if audience else None,
        )


def authenticated() -> dict[str, Any]:
    """The options of an `MCPServer` that accepts these tokens."""
    return {
        "token_verifier": Verifier(),
        "auth": AuthSettings(
            issuer_url=AnyHttpUrl("https://issuer.example"),
            resource_server_url=AnyHttpUrl("http://127.0.0.1/mcp"),
            required_scopes=["use"],
            validate_token_resource=False,
        ),
    }
