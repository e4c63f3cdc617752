"""Catalog, sinks and documentation agree."""

import re
from collections.abc import Mapping
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from mcp.server.streamable_http import REQUEST_CANCELLED
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.types import INTERNAL_ERROR, INVALID_PARAMS
from mcp_types import methods
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, KNOWN_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

import mcp_eventscope
from mcp_eventscope import (
    InMemoryTaskStore,
    InstrumentedRequestState,
    InstrumentedSubscriptionBus,
    RedisEventStore,
    RedisRequestState,
)
from mcp_eventscope.redis.self_test import Capability
from mcp_eventscope.request_state import instrumented as request_state
from mcp_eventscope.request_state.facts import AnswerEnd, KeySource, StateRefusal
from mcp_eventscope.store.events import DropReason, FailureReason, LossReason
from mcp_eventscope.store.jsonrpc_errors import EVENTS_GONE, REQUEST_ORPHANED
from mcp_eventscope.store.messages import MessageType
from mcp_eventscope.store.results import FollowEnd, Gap, Miss
from mcp_eventscope.subscriptions import instrumented as subscriptions
from mcp_eventscope.subscriptions.facts import GapReason, PublishFailure, SignalPath
from mcp_eventscope.tasks.facts import TaskOperation, TaskOperationOutcome, TaskOutcome
from mcp_eventscope.telemetry import catalog, declarations, facts, logs
from support.binaries import promtool_problems
from telemetry.conftest import Scope


def exposed(registry: CollectorRegistry) -> dict[str, Metric]:
    """The exposed metrics, by name."""
    return {metric.name + ("_total" if metric.type == "counter" else ""): metric for metric in registry.collect()}


def test_exposed_metrics_are_the_declared_ones(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Exactly the declared metrics are exposed from the start, as declared."""
    store = RedisEventStore(redis, ttl=60)
    scope.instrument(store)
    InstrumentedRequestState(RedisRequestState(store.backend), registry=scope.registry)
    shown = exposed(scope.registry)
    assert set(shown) == {metric.name for metric in catalog.METRICS}
    for metric in catalog.METRICS:
        assert shown[metric.name].type == metric.type
        assert shown[metric.name].documentation == metric.help


def test_every_child_is_there_before_anything_happens(scope: Scope, redis: FakeAsyncRedis) -> None:
    """Every child is exposed at 0, so that alerts see the first increase; unknown values are absent, not 0."""
    store = RedisEventStore(redis, ttl=60)
    scope.instrument(store)
    InstrumentedSubscriptionBus(InMemorySubscriptionBus(), registry=scope.registry)
    InstrumentedRequestState(RedisRequestState(store.backend), registry=scope.registry)
    scope.instrument_tasks(InMemoryTaskStore())
    shown = exposed(scope.registry)
    absent = (catalog.start.REDIS_CAPABILITY, catalog.request_state.KEY_AGE)
    for metric in catalog.METRICS:
        expected = 0 if metric.polled or metric in absent else 1
        for label in metric.labels:
            expected *= len(label.values or ("default",))
        if metric.on_demand:  # Of this one, the children that must not begin with their first observation.
            expected = {
                catalog.sessions.OPERATION_DURATION: len(catalog.sessions.TOOL_CALL_ERRORS),
                catalog.tasks.OPERATION_DURATION: len(catalog.tasks.TASK_OPERATION.values or ()),
            }[metric]
        suffix = "_count" if metric.type is declarations.MetricType.HISTOGRAM else ""
        found = [sample for sample in shown[metric.name].samples if sample.name == metric.name + suffix]
        assert len(found) == expected, metric.name
        for sample in found:
            assert set(sample.labels) == {label.name for label in metric.labels}


def test_names_keep_the_conventions() -> None:
    """Names follow the Prometheus naming guide, or a convention; each metric has help; labels are closed sets."""
    for metric in catalog.METRICS:
        assert metric.name.startswith("eventscope_") != bool(metric.convention)
        assert (metric.type is declarations.MetricType.COUNTER) == metric.name.endswith("_total")
        assert not re.search(r"_(ms|milliseconds|kb|minutes)(_|$)", metric.name)
        assert metric.help.endswith(".") or ":" in metric.help
        assert metric.labels[0] is declarations.STORE
        assert all(label.values for label in metric.labels[1:]) or metric is catalog.sessions.BUILD_INFO
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.type is declarations.MetricType.HISTOGRAM)
        assert bool(metric.multiprocess_mode) == (metric.type is declarations.MetricType.GAUGE), (
            f"{metric.name}: what of workers?"
        )
    names = [each.name for each in catalog.METRICS]
    names += [each.name for each in catalog.SPANS]
    names += [each.name for each in catalog.LOG_EVENTS]
    assert len(set(names)) == len(names)


ENUMERATIONS: dict[str, type[StrEnum]] = {
    "store.MESSAGE_TYPE": MessageType,
    "store.MISS_REASON": Miss,
    "store.GAP_REASON": Gap,
    "store.FAILURE_REASON": FailureReason,
    "store.DROP_REASON": DropReason,
    "store.LOSS_REASON": LossReason,
    "sessions.ORIGIN": facts.Origin,
    "sessions.SESSION_END_REASON": facts.SessionEnd,
    "sessions.REFUSAL_REASON": facts.Refusal,
    "start.CAPABILITY": Capability,
    "subscriptions.SIGNAL_PATH": SignalPath,
    "subscriptions.GAP_REASON": GapReason,
    "subscriptions.PUBLISH_FAILURE": PublishFailure,
    "request_state.KEY_SOURCE": KeySource,
    "request_state.STATE_REFUSAL_REASON": StateRefusal,
    "request_state.ANSWER_OUTCOME": AnswerEnd,
    "tasks.TASK_OUTCOME": TaskOutcome,
    "tasks.TASK_OPERATION": TaskOperation,
    "tasks.TASK_OPERATION_OUTCOME": TaskOperationOutcome,
}
"""The enumeration with the values of each label, if there is one."""
OTHER_VALUES = {
    "store.STORE_OUTCOME": "named by the decorator",
    "store.REPLAY_OUTCOME": "named by the decorator",
    "store.FOLLOW_OUTCOME": "FollowEnd, and outcomes that the decorator names",
    "store.OPERATION": "the operations of a store",
    "store.ERROR_TYPE": "the classes of StoreError",
    "store.SINK": "the names of the sinks",
    "redis_stats.REDIS_STATS_OUTCOME": "named by the decorator",
    "sessions.PROTOCOL_VERSION": "those of the SDK",
    "sessions.NEGOTIATED_VERSION": "those of the SDK",
    "sessions.METHOD": "those of the SDK",
    "sessions.OPERATION_ERROR_TYPE": "JSON-RPC error codes",
    "sessions.SESSION_ERROR_TYPE": "absent, or that a session failed",
    "tasks.TASK_STATUS": "those of TaskStatus before the end of a task",
}
"""The labels without an enumeration, each with the source of its values."""


def labels() -> dict[str, declarations.Label]:
    """The closed sets of the catalog, by module and name."""
    modules = {name: value for name, value in vars(catalog).items() if isinstance(value, ModuleType)}
    found = {f"{module}.{name}": value for module, part in modules.items() for name, value in vars(part).items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, declarations.Label) and value.values is not None
    }


def test_label_has_an_enumeration_or_a_source() -> None:
    """Each label is in one of the two tables above, which therefore show where its values are defined."""
    assert labels().keys() ^ (ENUMERATIONS.keys() | OTHER_VALUES.keys()) == set()


@pytest.mark.parametrize("name", ENUMERATIONS)
def test_label_values_are_those_of_the_enumerations(name: str) -> None:
    """The values of a label are those of its enumeration."""
    assert set(labels()[name].values or ()) == {member.value for member in ENUMERATIONS[name]}


FIXES: dict[str, tuple[Mapping[Any, str], tuple[type[StrEnum], ...]]] = {
    "lost": (logs._FIXES, (LossReason,)),
    "dropped": (logs._DROPPED_FIXES, (DropReason,)),
    "incomplete": (logs._INCOMPLETE_FIXES, (Miss, Gap)),
    "gap": (subscriptions._GAP_FIXES, (GapReason,)),
    "unpublished": (subscriptions._FAILURE_FIXES, (PublishFailure,)),
    "refused": (request_state._FIXES, (StateRefusal,)),
}


@pytest.mark.parametrize("name", FIXES)
def test_reason_in_a_log_event_has_a_fix(name: str) -> None:
    """Each reason that is logged has the fix that is logged with it."""
    fixes, enums = FIXES[name]
    assert {member for enum in enums for member in enum} - fixes.keys() == set()


def test_metric_bound_without_a_label_names_it() -> None:
    """A label that was added to a metric, and not to the place that binds it, is in the error."""
    with pytest.raises(
        ValueError, match=r"eventscope_errors_total must .* \(store, operation, error_type\), got 1 values"
    ):
        catalog.store.ERRORS.label_values("default")


def test_every_end_of_following_is_an_outcome() -> None:
    """Every end of following is an outcome."""
    assert {end.value for end in FollowEnd} <= set(catalog.store.FOLLOW_OUTCOME.values or ())


def test_revisions_are_those_of_the_sdk() -> None:
    """Every protocol version of the SDK has a label value, and those that cannot resume are listed."""
    revisions = set(catalog.sessions.PROTOCOL_VERSION.values or ())
    assert revisions == {*KNOWN_PROTOCOL_VERSIONS, "none", "other"}
    assert set(catalog.sessions.NEVER_RESUMES) == {*MODERN_PROTOCOL_VERSIONS, "other"}


def test_operations_are_those_of_the_sdk() -> None:
    """The methods are those that the SDK accepts in a session, and tasks; the error codes include those it sends."""
    accepted = {method for method, version in methods.CLIENT_REQUESTS if version in HANDSHAKE_PROTOCOL_VERSIONS}
    declared = {method for method in catalog.sessions.METHOD.values or () if not method.startswith("tasks/")}
    assert declared == accepted | {catalog.sessions.OTHER}
    codes = {str(code) for code in (REQUEST_ORPHANED, EVENTS_GONE, REQUEST_CANCELLED, INVALID_PARAMS, INTERNAL_ERROR)}
    assert codes <= set(catalog.sessions.OPERATION_ERROR_TYPE.values or ())
    assert set(catalog.sessions.TOOL_CALL_ERRORS) <= set(catalog.sessions.OPERATION_ERROR_TYPE.values or ())
    assert set(catalog.sessions.NEGOTIATED_VERSION.values or ()) == set(HANDSHAKE_PROTOCOL_VERSIONS)


def test_dimension_in_all_signals_has_one_name() -> None:
    """A span attribute is `eventscope.` and the name of a label or a log field; `error.type` is conventional."""
    labels = {label.name for metric in catalog.METRICS for label in metric.labels}
    fields = {field for event in catalog.LOG_EVENTS for field in event.fields} | {"event_id"}
    for span in catalog.SPANS:
        namespaced = {name for name in span.attributes if name.startswith("eventscope.")}
        assert set(span.attributes) - namespaced == {catalog.store.ERROR_TYPE.attribute}
        assert {name.removeprefix("eventscope.") for name in namespaced} <= labels | fields


def test_near_the_ttl_is_a_bucket() -> None:
    """The threshold of late resumes is a bucket bound of the histogram."""
    assert catalog.resumes.NEAR_TTL in catalog.resumes.RATIOS


def test_every_declared_signal_is_in_the_catalog() -> None:
    """Each constant of a module is in the tuple of its kind, without which nothing would know of it."""
    joined = {*catalog.METRICS, *catalog.SPANS, *catalog.LOG_EVENTS}
    kinds = (declarations.Metric, declarations.Span, declarations.LogEvent)
    constants = {
        f"{module}.{name}": value
        for module, part in vars(catalog).items()
        if isinstance(part, ModuleType)
        for name, value in vars(part).items()
        if isinstance(value, kinds)
    }
    assert {name for name, value in constants.items() if value not in joined} == set()


def test_every_log_event_is_written_somewhere() -> None:
    """Every declared log event is written by some module."""
    package = Path(mcp_eventscope.__file__).parent
    folder = package / "telemetry" / "catalog"
    names = ["catalog" if path.stem == "__init__" else f"catalog.{path.stem}" for path in folder.glob("*.py")]
    catalogs = {name: import_module(f"mcp_eventscope.telemetry.{name}") for name in names}
    written = "".join(path.read_text("utf-8") for path in package.rglob("*.py") if path.parent != folder)
    constants = {
        f"{module}.{name}"
        for module, declared in catalogs.items()
        for name, value in vars(declared).items()
        if isinstance(value, declarations.LogEvent)
    }
    assert {name for name in constants if name not in written} == set()


def test_promtool_has_no_complaints(scope: Scope, redis: FakeAsyncRedis) -> None:
    """`promtool check metrics` accepts the text format."""
    scope.instrument(RedisEventStore(redis, ttl=60))
    assert not promtool_problems(generate_latest(scope.registry))
