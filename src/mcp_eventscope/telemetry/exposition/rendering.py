"""Scrapes: authorization, and the registry as text in the accepted format. No request reaches Redis."""

import gzip
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from mcp_eventscope.telemetry.exposition import multiprocess
from mcp_eventscope.telemetry.metrics import observations
from mcp_eventscope.telemetry.metrics.prometheus import DEFAULT_REGISTRY, Registry, check_registry

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""The syntax of bearer tokens (RFC 6750, section 2.1)."""
PLAIN: Mapping[str, str] = {"Content-Type": "text/plain; charset=utf-8"}
_REALM = 'Bearer realm="metrics"'


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_token(option: str, token: object, otherwise: str = "leave it out to require no token") -> None:
    """Validate a bearer token.

    Args:
        option: The name in the error.
        token: The value.
        otherwise: The remedy in the error.

    Raises:
        TypeError: It is not a string.
        ValueError: It is not a valid bearer token. The message omits it.
    """
    if not isinstance(token, str):
        msg = f"{option} must be a string, got {type(token).__name__}; {otherwise}"
        raise TypeError(msg)
    if not _TOKEN.fullmatch(token):
        msg = (
            f"{option} must be a bearer token of letters, digits and -._~+/ with = at its end only, got "
            f"{'another text, which is not shown here' if token else 'an empty one'}; {otherwise}"
        )
        raise ValueError(msg)


class Exposition:
    """Answers scrapes; thread-safe.

    Args:
        registry: The exposed registry; None: the global one of prometheus_client. In multiprocess mode, the metrics in
            the files of all processes, which do not name a registry.
        token: The required bearer token; None: none.

    Raises:
        TypeError: `token` is no string, or `registry` no registry.
        ValueError: `token` is no valid bearer token (the message omits it), or multiprocess mode is misconfigured.
    """

    def __init__(self, registry: Registry | None = None, token: str | None = None) -> None:
        if registry is None:
            registry = DEFAULT_REGISTRY
        check_registry("registry", registry)
        if token is not None:
            check_token("token", token)
        self._registry = registry
        self._token = None if token is None else token.encode()
        self._directory = multiprocess.directory()

    def refusal(self, authorization: Sequence[str]) -> Answer | None:
        """The response to a scrape without the token; None if it is authorized.

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
        """The registry, or the metrics of all processes of the directory, as text. Blocks for milliseconds.

        Args:
            accept: The `Accept` header, which selects OpenMetrics or the text format.
            encoding: The `Accept-Encoding` header, which selects gzip.
            query: The query string; `name[]=…` selects metrics, as in prometheus_client.
        """
        names = parse_qs(query).get("name[]")
        source: Collector
        if self._directory is not None:
            observations.flush()  # Those of other processes are at most one iteration of their event loop old.
            source = multiprocess.AllProcessesCollector(self._directory, names)
        else:
            source = self._registry if names is None else self._registry.restricted_registry(names)
        encode, content_type = choose_encoder(accept)
        body = encode(source)
        headers = {"Content-Type": content_type}
        if gzip_accepted(encoding):
            # Fast rather than small: scrapes are frequent, and networks local.
            return Answer(200, {**headers, "Content-Encoding": "gzip"}, gzip.compress(body, compresslevel=1, mtime=0))
        return Answer(200, headers, body)
