"""A scrape: whether it is allowed, and the registry as text, in the format that is asked for. Redis is not asked."""

import gzip
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from mcp_eventscope.telemetry import multiprocess, tally
from mcp_eventscope.telemetry.prometheus import DEFAULT_REGISTRY, Registry

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What a bearer token may be (RFC 6750, section 2.1): anything else cannot be sent in a header as it is."""
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}
_REALM = 'Bearer realm="metrics"'


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Exposition:
    """Answers scrapes, from whichever thread.

    Args:
        registry: What is exposed; None: prometheus_client's global one. In multiprocess mode it is what all processes
            have written into the directory, whatever registry it is in: their files do not say.
        token: What a scrape has to bring as its bearer token; None: nothing.

    Raises:
        TypeError: `token` is no string, or `registry` no registry.
        ValueError: `token` cannot be a bearer token (the message does not repeat it), or multiprocess mode is asked for
            in a way that cannot work.
    """

    def __init__(self, registry: Registry | None = None, token: str | None = None) -> None:
        if registry is None:
            registry = DEFAULT_REGISTRY
        if not isinstance(registry, Registry):
            msg = f"registry must be a prometheus_client.CollectorRegistry, not {type(registry).__name__}"
            raise TypeError(msg)
        if token is not None and not isinstance(token, str):
            msg = f"the token of the metrics must be a string, not {type(token).__name__}"
            raise TypeError(msg)
        if token is not None and not _TOKEN.fullmatch(token):
            msg = (
                "the token of the metrics cannot be sent as a bearer token (it is not repeated here): it must not be "
                "empty, and may have letters, digits and -._~+/ with = at its end. Pass None to ask for no token"
            )
            raise ValueError(msg)
        self._registry = registry
        self._token = None if token is None else token.encode()
        self._directory = multiprocess.directory()

    def refusal(self, authorization: Sequence[str]) -> Answer | None:
        """The answer to a scrape without the token; None when it may be answered.

        Args:
            authorization: Its `Authorization` headers.
        """
        if self._token is None:
            return None
        scheme, _, given = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return None
        challenge = f'{_REALM}, error="invalid_token"' if authorization else _REALM
        return Answer(401, {"WWW-Authenticate": challenge, **PLAIN}, b"the metrics need a bearer token\n")

    def render(self, *, accept: str, encoding: str, query: str) -> Answer:
        """The registry, or all that the processes of the directory say. It takes milliseconds: not for an event loop.

        Args:
            accept: The `Accept` header: OpenMetrics, or the text format.
            encoding: The `Accept-Encoding` header: gzip, or nothing.
            query: The query string; `name[]=…` restricts what is shown, as with prometheus_client.
        """
        names = parse_qs(query).get("name[]")
        source: Collector
        if self._directory is not None:
            tally.flush()  # The others' is a turn of their loops old, at most.
            source = multiprocess.Everybody(self._directory, names)
        else:
            source = self._registry if names is None else self._registry.restricted_registry(names)
        encode, content_type = choose_encoder(accept)
        body = encode(source)
        headers = {"Content-Type": content_type}
        if gzip_accepted(encoding):
            # Fast rather than small: it is sent over a local network, every few seconds.
            return Answer(200, {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, compresslevel=1, mtime=0))
        return Answer(200, headers, body)
