"""The options of `http_app()` as environment variables `EVENTSCOPE_*`."""

import difflib
import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mcp_eventscope.options import Number, check_flag
from mcp_eventscope.redis import limits
from mcp_eventscope.redis.client import check_url
from mcp_eventscope.redis.keys import check_prefix
from mcp_eventscope.request_state.secret import FILE_VARIABLE, VARIABLE
from mcp_eventscope.sessions import settings as sessions
from mcp_eventscope.sessions.manager import DEFAULT_FOLLOW_TIMEOUT
from mcp_eventscope.store.coordination import DEFAULT_WORKER_LEASE
from mcp_eventscope.telemetry.exposition.endpoints import LOOPBACK, PORT, check_host
from mcp_eventscope.telemetry.exposition.rendering import check_token
from mcp_eventscope.telemetry.redis_stats import INTERVAL

PREFIX = "EVENTSCOPE_"
URL_VARIABLE = f"{PREFIX}REDIS_URL"
"""The environment variable with the Redis URL, used without a store and a URL."""
REQUEST_STATE_VARIABLES: Mapping[str, str] = {
    VARIABLE: "secrets of `RedisRequestState`, each of at least 32 bytes, newest first, separated by commas or spaces",
    FILE_VARIABLE: "the path of a file with these secrets, instead of the variable",
}
"""The variables that `RedisRequestState` reads, with a description of the valid values."""
DEFAULT_PREFIX = "mcp:"
"""The prefix of every key in Redis."""
DEFAULT_TTL = 3600
"""Seconds that events are kept: twice the SDK's session idle timeout."""
SIMILAR = 0.85
"""The similarity from which a name counts as mistyped: one wrong, missing or swapped character, or two in ten."""
NEVER = "none"
"""The text that stands for None in the environment, where None has a meaning of its own."""


LEAST_CONSOLE_TOKEN = 16
"""Characters of the shortest `console_token`: it is reachable wherever the server is, and could be guessed."""
_GENERATE = 'generate one: python -c "import secrets; print(secrets.token_urlsafe())"'


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return self.name


UNSET: Final = Unset.UNSET
"""The default of an option whose None has a meaning of its own: use the environment variable, else the default."""


def check_console_token(option: str, token: object) -> None:
    """Validate the token of the console.

    Args:
        option: The name in the error.
        token: The value.

    Raises:
        TypeError: It is not a string.
        ValueError: It is not a valid bearer token, or too short. The message omits it.
    """
    check_token(option, token, _GENERATE)
    if len(str(token)) < LEAST_CONSOLE_TOKEN:
        msg = f"{option} must have at least {LEAST_CONSOLE_TOKEN} characters, got {len(str(token))}; {_GENERATE}"
        raise ValueError(msg)


def _or_none(value: object) -> object:
    return None if isinstance(value, str) and value.lower() == NEVER else value


class Settings(BaseSettings):
    """The options that both `http_app()` and the environment accept, with their defaults."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    redis_url: str | None = Field(None, repr=False)
    """None: an embedded Valkey."""
    key_prefix: str = DEFAULT_PREFIX
    name: str | None = None
    """None: the MCP server's own name."""
    ttl: Annotated[int | None, BeforeValidator(_or_none)] = DEFAULT_TTL
    store_timeout: float = limits.STORE_TIMEOUT
    backlog_bytes: int = limits.BACKLOG_BYTES
    backlog_events: int = limits.BACKLOG_EVENTS
    max_session_bytes: int = limits.MAX_SESSION_BYTES
    follow_timeout: float = DEFAULT_FOLLOW_TIMEOUT
    worker_lease: float = DEFAULT_WORKER_LEASE
    shutdown_timeout: float = 0.0
    metrics_port: int | None = None
    metrics_host: str | None = None
    """None: 127.0.0.1."""
    metrics_token: str | None = Field(None, repr=False)
    redis_stats_interval: float | None = None
    console: bool = False
    console_token: str | None = Field(None, repr=False)
    console_payloads: bool = False

    @field_validator("*")
    @classmethod
    def _validated(cls, value: object, info: ValidationInfo) -> object:
        check(info.field_name or "", value, variable(info.field_name or ""))
        return value


STORE_OPTIONS = ("redis_url", "key_prefix", "ttl", *(name for name in limits.NUMBERS if name != "ttl"))
"""The options of a store that `http_app()` creates."""
NUMBERS: Mapping[str, Number] = {
    **limits.NUMBERS,
    **sessions.NUMBERS,
    "metrics_port": PORT,
    "redis_stats_interval": INTERVAL,
}
"""The types and ranges of the numeric options."""
TEXTS: Mapping[str, tuple[Callable[[str, object], None], str]] = {
    "redis_url": (check_url, "the URL of Redis"),
    "key_prefix": (check_prefix, "the prefix of every key in Redis"),
    "name": (sessions.check_name, "the name of the server; the MCP server's own name if unset"),
    "metrics_host": (check_host, f"an address; {LOOPBACK} if unset"),
    "metrics_token": (check_token, "a bearer token"),
    "console_token": (check_console_token, f"a bearer token of at least {LEAST_CONSOLE_TOKEN} characters"),
}
"""The checks of the options that are texts, each with a description of the valid values."""
FLAGS = ("console", "console_payloads")
"""The options that are on or off."""


def variable(option: str) -> str:
    """The environment variable of an option."""
    return f"{PREFIX}{option.upper()}"


def check(option: str, value: object, name: str | None = None) -> None:
    """Validate the value of an option. None is valid where it is the default.

    Args:
        option: The option.
        value: Its value.
        name: The name in the error; None: that of the option.

    Raises:
        TypeError: It has another type.
        ValueError: It is out of range.
    """
    if value is None and Settings.model_fields[option].default is None:
        return
    if option in FLAGS:
        check_flag(name or option, value)
        return
    validate = NUMBERS[option].check if option in NUMBERS else TEXTS[option][0]
    validate(name or option, value)


def load(arguments: Mapping[str, object]) -> Settings:
    """Combine arguments, which have priority, with the environment.

    Args:
        arguments: Options by name. None and `UNSET` mean that an option is not given, except for the `ttl` None.

    Returns:
        The options; those that are given nowhere have their defaults.

    Raises:
        TypeError: An argument has another type.
        ValueError: An argument or a variable is invalid. The error names it.
    """
    chosen: dict[str, Any] = {
        option: value
        for option, value in arguments.items()
        if value is not UNSET and (value is not None or option == "ttl")
    }
    for option, value in chosen.items():
        check(option, value)
    try:
        return Settings(**chosen)
    except ValidationError as error:
        raise ValueError(_message(error)) from None


def mistyped() -> dict[str, str]:
    """The environment variables that resemble those of options, each with the one that was probably meant.

    Others with the prefix are left alone: Kubernetes sets `EVENTSCOPE_…_SERVICE_HOST` for a service of such a name.
    """
    known = {variable(option) for option in Settings.model_fields} | {*REQUEST_STATE_VARIABLES}
    unknown = (name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    meant = {name: difflib.get_close_matches(name.upper(), known, n=1, cutoff=SIMILAR) for name in unknown}
    return {name: found[0] for name, found in meant.items() if found}


def _message(error: ValidationError) -> str:
    """The first error, with the name of its variable. It must be one, since the arguments were checked."""
    first = error.errors(include_url=False)[0]
    if (cause := first.get("ctx", {}).get("error")) is not None:
        return str(cause)
    option = str(first["loc"][0])
    if option in FLAGS:
        return f"{variable(option)} must be true or false, got another text; unset it for the default"
    number = NUMBERS[option]
    otherwise = f" or {NEVER} ({number.none})" if number.none else ""
    return f"{variable(option)} must be {number.expected()}{otherwise}, got another text; unset it for the default"
