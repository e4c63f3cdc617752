"""Every option of the public constructors is checked with its type and range at construction."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from math import inf, nan
from typing import Any

import pytest
import structlog
from fakeredis import FakeAsyncRedis
from fastmcp import FastMCP
from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.trace import NoOpTracer, NoOpTracerProvider
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from mcp_eventscope import (
    EventScope,
    InstrumentedEventStore,
    RedisEventStore,
    ResumableSessionManager,
    http_app,
    settings,
)
from mcp_eventscope.settings import FLAGS, NUMBERS, PREFIX, STORE_OPTIONS, Settings, variable
from mcp_eventscope.telemetry.exposition.endpoints import LOOPBACK, MetricsPort
from mcp_eventscope.telemetry.exposition.rendering import Exposition
from mcp_eventscope.telemetry.logs import Log
from support.logs import Recorder

SECRET = "hunter2"


class FormatOnlyLogger(Recorder):
    """A logger whose methods accept no fields."""

    def warning(self, event: str, *args: object) -> None:  # type: ignore[override]
        """Log."""


def store() -> RedisEventStore:
    """A store whose client is never connected."""
    return RedisEventStore(FakeAsyncRedis(), ttl=60)


def make_store(**options: Any) -> object:
    """Make a Redis store."""
    return RedisEventStore(**{"redis": FakeAsyncRedis(), **options})


def make_decorator(**options: Any) -> object:
    """Make a decorator."""
    return InstrumentedEventStore(**{"store": store(), "registry": CollectorRegistry(), **options})


def make_scope(**options: Any) -> object:
    """Make a scope."""
    given: dict[str, Any] = {"name": "s", "registry": CollectorRegistry(), **options}
    if "redis_url" not in given:
        given.setdefault("redis", FakeAsyncRedis())
    return EventScope(**given)


def make_manager(**options: Any) -> object:
    """Make a session manager."""
    return ResumableSessionManager(**{"app": Server("s"), **options})


def make_port(**options: Any) -> object:
    """Make a metrics port."""
    given = {"exposition": Exposition(CollectorRegistry()), "host": LOOPBACK, "port": 9464, "log": Log(), **options}
    return MetricsPort(**given)


def make_app(**options: Any) -> object:
    """Make an application."""
    given: dict[str, Any] = {"mcp": MCPServer("s"), "registry": CollectorRegistry(), **options}
    if not {"event_store", "scope", *STORE_OPTIONS} & given.keys():
        given["event_store"] = store()
    if "metrics_host" in given:
        given["metrics_port"] = 9464
    return http_app(**given)


Cases = dict[str, tuple[list[object], list[object]]]
"""By option: values of wrong types, and values out of range."""

SECONDS: tuple[list[object], list[object]] = (["10", True, [10], 10j], [-1, nan, -inf])
WHOLE: tuple[list[object], list[object]] = (["10", 10.0, True, nan, inf], [0, -1])
FLAG: list[object] = ["true", 1, [True]]
LOGGERS: list[object] = ["x", 5, print, structlog.BoundLogger, FormatOnlyLogger()]
STORE: Cases = {
    "ttl": ([*WHOLE[0]], [*WHOLE[1], 10**12]),
    "store_timeout": (SECONDS[0], [*SECONDS[1], 0, inf]),
    "backlog_bytes": WHOLE,
    "backlog_events": WHOLE,
    "max_session_bytes": (WHOLE[0], [*WHOLE[1], 1000]),
}
TELEMETRY: Cases = {
    "registry": (["x", 5, CollectorRegistry, False], []),
    "tracer_provider": (["x", NoOpTracer(), NoOpTracerProvider, False], []),
    "meter_provider": (["x", NoOpMeter("m"), NoOpMeterProvider, 0], []),
    "logger": (LOGGERS, []),
}
TIMEOUTS: Cases = {
    "follow_timeout": (SECONDS[0], [*SECONDS[1], 0]),
    "worker_lease": (SECONDS[0], [*SECONDS[1], 0.5, inf]),
    "shutdown_timeout": (SECONDS[0], [*SECONDS[1], inf]),
}
PREFIXES: tuple[list[object], list[object]] = ([b"mcp:", 5], ["", " ", "{", "\udcff:"])
URLS: tuple[list[object], list[object]] = ([5, b"redis://h", True], ["", "redis://h/abc", "unix://"])
NAMES: tuple[list[object], list[object]] = ([5, b"x"], ["", " ", "\udcff"])
EVENT_STORES: list[object] = [5, "redis://h", RedisEventStore, FakeAsyncRedis()]
MAKERS: dict[str, tuple[Callable[..., object], Callable[..., object], Cases]] = {
    "RedisEventStore": (
        make_store,
        RedisEventStore,
        {"redis": ([None, "redis://h", FakeAsyncRedis], []), "key_prefix": PREFIXES, **STORE},
    ),
    "InstrumentedEventStore": (
        make_decorator,
        InstrumentedEventStore,
        {"store": ([None, *EVENT_STORES], []), "name": NAMES, **TELEMETRY},
    ),
    "ResumableSessionManager": (
        make_manager,
        ResumableSessionManager,
        {
            "app": ([None, MCPServer("s"), FastMCP("f"), FastMCP("f")._mcp_server], []),
            "event_store": (EVENT_STORES, []),
            **TIMEOUTS,
            "name": NAMES,
            "logger": (LOGGERS, []),
        },
    ),
    "EventScope": (
        make_scope,
        EventScope,
        {
            "name": NAMES,
            "redis": (["redis://h", FakeAsyncRedis], []),
            "redis_url": URLS,
            "key_prefix": PREFIXES,
            "worker_lease": TIMEOUTS["worker_lease"],
            **STORE,
            **TELEMETRY,
        },
    ),
    "MetricsPort": (
        make_port,
        MetricsPort,
        {"host": ([5, b"::"], ["", " "]), "port": (WHOLE[0], [*WHOLE[1], 65536])},
    ),
    "http_app": (
        make_app,
        http_app,
        {
            "mcp": ([None, "mcp", Starlette(), MCPServer, FastMCP("f")._mcp_server], []),
            "event_store": (EVENT_STORES, []),
            "scope": ([5, "orders", EventScope, FakeAsyncRedis()], []),
            "redis_url": URLS,
            "key_prefix": PREFIXES,
            "name": NAMES,
            **STORE,
            **TIMEOUTS,
            "metrics_port": (WHOLE[0], [*WHOLE[1], 65536]),
            "metrics_host": ([5, b"::"], ["", " ", "not a host"]),
            "metrics_token": ([5, b"x"], ["", "a b", f"{SECRET}\n"]),
            "redis_stats_interval": (SECONDS[0], [*SECONDS[1], 0, inf]),
            "console": (FLAG, []),
            "console_token": ([5, b"x"], ["", "a b", SECRET, f"{SECRET}\n"]),
            "console_payloads": (FLAG, []),
            **TELEMETRY,
        },
    ),
}
SDKS_OWN = set(inspect.signature(ResumableSessionManager.__mro__[1]).parameters)
UNCHECKED = {"exposition", "log", "retry", "options"}
"""What only `http_app` gives to a `MetricsPort`, and the framework's keywords."""
VALUES = [
    pytest.param(make, option, value, error, id=f"{name}-{option}-{str(value)[:20]}-{type(value).__name__}")
    for name, (make, _, cases) in MAKERS.items()
    for option, values in cases.items()
    for error, of_kind in zip((TypeError, ValueError), values, strict=True)
    for value in of_kind
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("name", MAKERS)
def test_every_option_of_a_constructor_has_cases(name: str) -> None:
    """A new option needs a check, and a case here."""
    _, function, cases = MAKERS[name]
    options = set(inspect.signature(function).parameters) - UNCHECKED
    assert set(cases) == options - (SDKS_OWN - {"app", "event_store"} if name == "ResumableSessionManager" else set())


@pytest.mark.parametrize(("make", "option", "value", "error"), VALUES)
def test_option_with_an_invalid_value_is_refused(
    make: Callable[..., object], option: str, value: object, error: type[Exception]
) -> None:
    """The error names the option, the value's type or number, and the fix."""
    named = f"metrics_{option}" if make is make_port else option
    with pytest.raises(error, match=rf"^{named} must .*got .*; ") as caught:
        make(**{option: value})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_option_with_its_default_is_accepted(name: str) -> None:
    """The defaults are within their ranges, and None is accepted wherever it is the default."""
    make, function, cases = MAKERS[name]
    parameters = inspect.signature(function).parameters
    needed = {"redis_url", "name"} if name == "EventScope" else {"redis_url"}
    for option in cases.keys() - needed:
        if (default := parameters[option].default) is not inspect.Parameter.empty:
            make(**{option: default})


@pytest.mark.parametrize("value", [None, Recorder(), structlog.get_logger(), structlog.stdlib.get_logger("x")])
def test_logger_with_fields_is_accepted(value: object) -> None:
    """Loggers of structlog, configured or not, and objects like them are accepted."""
    make_decorator(logger=value)


def test_url_as_event_store_is_refused_with_the_right_option() -> None:
    """A positional URL is the mistake of a new user."""
    with pytest.raises(TypeError, match=r"event_store must be .*got str; pass the URL of Redis .* as redis_url="):
        http_app(MCPServer("s"), f"redis://:{SECRET}@h")  # type: ignore[arg-type]  # what is tested


def test_scope_with_a_client_and_a_url_is_refused() -> None:
    """Only one of them can be used."""
    with pytest.raises(ValueError, match="redis_url must be omitted with redis, got both; pass one of them"):
        make_scope(redis=FakeAsyncRedis(), redis_url="redis://h")


def test_scope_with_an_event_store_is_refused() -> None:
    """A scope has a store."""
    with pytest.raises(ValueError, match="event_store or scope, not both"):
        make_app(event_store=store(), scope=make_scope())


@pytest.mark.parametrize("option", [*STORE_OPTIONS, "name", "worker_lease", "tracer_provider", "meter_provider"])
def test_scope_with_an_option_of_a_scope_is_refused(option: str) -> None:
    """The options of the scope that is given are its own."""
    values: dict[str, object] = {
        "redis_url": "redis://h",
        "name": "s",
        "tracer_provider": NoOpTracerProvider(),
        "meter_provider": NoOpMeterProvider(),
    }
    value = values[option] if option in values else Settings.model_fields[option].default
    with pytest.raises(ValueError, match=f"{option} must be omitted with a scope, got both; pass them to EventScope"):
        http_app(MCPServer("s"), scope=make_scope(), **{option: value})  # type: ignore[arg-type]  # one of each type


@pytest.mark.parametrize("option", STORE_OPTIONS)
def test_event_store_with_an_option_of_a_store_is_refused(option: str) -> None:
    """The options of a store are those of the one that is created; the default value is no exception."""
    value = "redis://h" if option == "redis_url" else Settings.model_fields[option].default
    with pytest.raises(ValueError, match=rf"event_store or {option}, not both"):
        make_app(event_store=store(), **{option: value})


@pytest.mark.parametrize(("server", "option"), [(MCPServer, "streamable_http_path"), (FastMCP, "path")])
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/metrics", "already serves /metrics"),
        ("/metrics/", "already serves /metrics"),
        ("/healthz", "already serves /healthz"),
        ("mcp", "must begin with a slash, got 'mcp'; write \"/mcp\""),
        ("", "must not be empty"),
    ],
)
def test_path_that_cannot_be_served_is_refused(
    server: Callable[[str], object], option: str, path: str, error: str
) -> None:
    """A path of ours, with a slash at the end or without, would answer some of the server's requests."""
    with pytest.raises(ValueError, match=error):
        make_app(mcp=server("s"), **{option: path})


# -- the environment --------------------------------------------------------------------------------------------------


def load(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], **arguments: object) -> object:
    """The settings of an environment and arguments."""
    for option, text in environment.items():
        monkeypatch.setenv(variable(option), text)
    return settings.load(arguments)


def texts() -> Iterator[tuple[str, str]]:
    """Invalid texts of each variable."""
    for option in Settings.model_fields:
        yield option, ""
        if option in NUMBERS:
            yield from ((option, text) for text in ("abc", "-1", "nan", SECRET))
        if option in FLAGS:
            yield from ((option, text) for text in ("abc", "2", SECRET))
    yield from (
        ("redis_url", f"redis://:{SECRET}@h/abc"),
        ("metrics_token", f"{SECRET} x"),
        ("console_token", f"{SECRET} x"),
        ("ttl", "0"),
    )


@pytest.mark.parametrize(("option", "text"), list(texts()))
def test_variable_with_an_invalid_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, option: str, text: str
) -> None:
    """The error names the variable, and never repeats a secret."""
    with pytest.raises(ValueError, match=rf"^{variable(option)} must .*got .*; ") as caught:
        load(monkeypatch, {option: text})
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


VALID: dict[str, tuple[str, object]] = {
    "redis_url": ("redis://h/1", "redis://h/1"),
    "key_prefix": ("shop:", "shop:"),
    "name": ("shop", "shop"),
    "ttl": ("60", 60),
    "store_timeout": ("0.5", 0.5),
    "backlog_bytes": ("1000", 1000),
    "backlog_events": ("1000", 1000),
    "max_session_bytes": ("2000000", 2_000_000),
    "follow_timeout": ("inf", inf),
    "worker_lease": ("5", 5.0),
    "shutdown_timeout": ("0", 0.0),
    "metrics_port": ("9464", 9464),
    "metrics_host": ("::", "::"),
    "metrics_token": ("none", "none"),
    "redis_stats_interval": ("15", 15.0),
    "console": ("true", True),
    "console_token": ("0123456789abcdef", "0123456789abcdef"),
    "console_payloads": ("1", True),
}


@pytest.mark.parametrize("option", Settings.model_fields)
def test_argument_has_priority_over_its_variable(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """A variable sets the option; an argument wins, whatever the variable has; None is left out."""
    text, value = VALID[option]
    assert getattr(load(monkeypatch, {option: text}), option) == value
    assert getattr(load(monkeypatch, {}, **({} if option == "ttl" else {option: None})), option) == value
    assert getattr(load(monkeypatch, {option: ""}, **{option: value}), option) == value


def test_ttl_of_none_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """None means no expiry, as an argument and in the environment."""
    assert getattr(load(monkeypatch, {"ttl": "60"}, ttl=None), "ttl", 0) is None
    assert getattr(load(monkeypatch, {"ttl": "None"}), "ttl", 0) is None


def test_http_app_applies_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store, the manager and the metrics have the settings of the environment."""
    registry, made = CollectorRegistry(), MCPServer("s")
    for option, text in (("redis_url", "redis://db:1/2"), ("ttl", "77"), ("worker_lease", "5"), ("metrics_token", "t")):
        monkeypatch.setenv(variable(option), text)
    http_app(made, registry=registry)
    assert registry.get_sample_value("eventscope_ttl_seconds", {"store": "s"}) == 77
    manager = made.session_manager
    assert isinstance(manager, ResumableSessionManager)
    assert manager._worker_lease == 5
    assert manager._store is not None
    assert manager._store.address == "db:1"


def test_http_app_passes_every_option_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option of the created store is forgotten on the way."""
    made: dict[str, object] = {}

    def recorded(_: object, **options: object) -> RedisEventStore:
        made.update(options)
        return store()

    monkeypatch.setattr("mcp_eventscope.scope.RedisEventStore", recorded)
    given = {option: VALID[option][1] for option in STORE_OPTIONS}
    http_app(MCPServer("s"), registry=CollectorRegistry(), **given)  # type: ignore[arg-type]  # one of each type
    assert made == {option: value for option, value in given.items() if option != "redis_url"}


@pytest.mark.parametrize(
    ("wrong", "meant"), [("TLL", "ttl"), ("WORKER_LEASES", "worker_lease"), ("REDISURL", "redis_url")]
)
def test_mistyped_variable_is_logged_with_the_right_one(
    monkeypatch: pytest.MonkeyPatch, wrong: str, meant: str
) -> None:
    """It has no effect, which its author would notice late. Its value may be a secret."""
    monkeypatch.setenv(f"{PREFIX}{wrong}", SECRET)
    log = Recorder()
    make_app(logger=log)
    (entry,) = log.named("event_store.setting_unknown")
    assert entry["variable"] == f"{PREFIX}{wrong}"
    assert entry["fix"] == f"rename it to {variable(meant)}, or unset it"
    assert SECRET not in str(log.entries)


@pytest.mark.parametrize("name", ["TTL", "REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP", "COLOUR"])
def test_other_variable_of_the_prefix_is_not_logged(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kubernetes sets such variables for a service called eventscope-redis."""
    monkeypatch.setenv(f"{PREFIX}{name}", "5")
    log = Recorder()
    make_app(logger=log)
    assert not log.named("event_store.setting_unknown")


@pytest.mark.parametrize(
    ("wrong", "meant"), [("ttll", "ttl"), ("redis_ulr", "redis_url"), ("stateless_htpp", "stateless_http")]
)
@pytest.mark.parametrize("server", [MCPServer, FastMCP])
def test_mistyped_option_is_refused_with_the_right_one(server: Callable[[str], object], wrong: str, meant: str) -> None:
    """The error of the framework would name a function that the user did not call."""
    with pytest.raises(TypeError, match=rf"{wrong} must be an option of http_app\(\) .*; write {meant}="):
        make_app(mcp=server("s"), **{wrong: 5})


@pytest.mark.parametrize(
    ("option", "fix"),
    [("auth", r"pass it to MCPServer\(auth=…\)"), ("middleware", "leave it out"), ("frobnicate", "leave it out")],
)
def test_option_of_another_function_is_refused_with_its_place(option: str, fix: str) -> None:
    """It may be an option of the server's constructor, of another framework, or of none."""
    with pytest.raises(
        TypeError, match=rf"{option} must be an option of .* or of MCPServer.streamable_http_app\(\).*{fix}"
    ):
        make_app(**{option: []})


def test_settings_repr_has_no_secret() -> None:
    """It appears in tracebacks and debuggers."""
    secrets = {"redis_url": f"redis://:{SECRET}@h", "metrics_token": SECRET, "console_token": SECRET * 4}
    assert SECRET not in repr(settings.load(secrets))


def test_scope_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers without a name would serve the sessions of each other. The environment may have it."""
    with pytest.raises(ValueError, match='name must be the name of the server, such as "orders", got none'):
        EventScope(redis=FakeAsyncRedis(), registry=CollectorRegistry())
    monkeypatch.setenv(f"{PREFIX}NAME", "orders")
    assert EventScope(redis=FakeAsyncRedis(), registry=CollectorRegistry()).name == "orders"


def test_server_with_parts_of_another_scope_is_refused() -> None:
    """Its parts would not run."""
    scope = make_scope()
    assert isinstance(scope, EventScope)
    mcp: MCPServer[Any] = MCPServer("s", **scope.server_options(tasks={"t"}))
    with pytest.raises(ValueError, match="whose parts the server has, got none; pass scope=scope"):
        make_app(mcp=mcp)
    with pytest.raises(ValueError, match="whose parts the server has, got another one"):
        http_app(mcp, scope=make_scope())  # type: ignore[arg-type]  # made untyped
    http_app(mcp, scope=scope)
    with pytest.raises(ValueError, match=r"one server and one http_app\(\), got a second one"):
        http_app(MCPServer("s"), scope=scope)


@pytest.mark.parametrize("part", ["subscriptions", "request_state", "tasks"])
def test_part_of_a_scope_that_is_in_use_is_refused(part: str) -> None:
    """It would not run."""
    scope = make_scope()
    assert isinstance(scope, EventScope)
    http_app(MCPServer("s"), scope=scope)
    with pytest.raises(RuntimeError, match=rf"{part} must be used before http_app"):
        _ = scope.tasks({"t"}) if part == "tasks" else getattr(scope, part)
