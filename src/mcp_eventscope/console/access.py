"""Decides which requests may see the console: those of this host, or those with a token."""

import base64
import binascii
import hmac
import ipaddress
import re
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

REALM = "mcp-eventscope console"
_FORWARDING = re.compile(
    r"x-forwarded(-.*)?|forwarded|via|x-real-ip|x-client-ip|x-original-(for|host)|x-envoy-.*|cf-.*|true-client-ip|"
    r"x-cluster-client-ip|fly-client-ip|fastly-client-ip|x-azure-clientip|x-appengine-user-ip"
)
"""Headers that a proxy adds: the peer is then the proxy, not the client."""
_PORT = re.compile(r":[0-9]{1,5}$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request may not see the console."""

    status: int
    """401: a token is missing or wrong. 403: no token would help."""
    error: str


class Access:
    """The rules of access.

    With a token, a request must carry it: as a bearer token, or as the password of Basic authentication, for which
    browsers ask. A page on another origin, also after DNS rebinding, has neither.

    Without one, the peer must be on this host, no proxy may have forwarded the request, and its `Host` must name this
    host, which that of a page after DNS rebinding does not. That is for a port of the console's own: to the port of an
    application a proxy on the same host may forward without such headers, and with any `Host`.

    Args:
        token: The token; None: requests of this host need none, and others are refused.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def refusal(self, scope: Scope) -> Refused | None:
        """Why a request is refused; None if it is admitted.

        Args:
            scope: Its ASGI scope.
        """
        headers = Headers(scope=scope)
        if headers.get("sec-fetch-site") in {"cross-site", "same-site"} and headers.get("sec-fetch-mode") != "navigate":
            return Refused(403, "the console answers no requests of pages on other origins")
        if self._token is not None:
            given = [_secret(value) for value in headers.getlist("authorization")]
            if len(given) == 1 and hmac.compare_digest(given[0], self._token):
                return None
            return Refused(401, "the console needs its token, as a bearer token or as the password of any user")
        return _without_token(scope, headers)


def _without_token(scope: Scope, headers: Headers) -> Refused | None:
    """Why a request without a token is refused; None if it comes from this host, to a name of this host."""
    if not _loopback(scope.get("client")):
        return Refused(403, "without a token the console answers this host only")
    if any(_FORWARDING.fullmatch(name) for name in headers):
        return Refused(403, "without a token the console answers no forwarded requests; give it one")
    if not _names_this_host(headers.getlist("host")):
        return Refused(403, "without a token the console answers at localhost and 127.0.0.1 only")
    return None


def _secret(authorization: str) -> bytes:
    """The token in a header `Authorization`; empty without one."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("utf-8", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _loopback(client: object) -> bool:
    """Whether a peer is on this host. The peer of a Unix socket is unknown, and mostly a proxy."""
    if not isinstance(client, tuple | list) or not client:
        return False
    return _is_loopback(str(client[0]))


def _names_this_host(hosts: list[str]) -> bool:
    if len(hosts) != 1:
        return False
    name = _PORT.sub("", hosts[0]).lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name.removeprefix("[").removesuffix("]"))


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return parsed.is_loopback or (mapped is not None and mapped.is_loopback)
