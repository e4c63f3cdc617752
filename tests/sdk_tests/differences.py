"""Tests of the SDK that the parts of this package are expected to fail, each with the reason."""

from dataclasses import dataclass
from enum import Enum


class Parts(Enum):
    """The parts that take the SDK's place."""

    SDK = "sdk"
    """None: the SDK alone, whose tests must all pass."""
    MANAGER = "manager"
    """The session manager, with the event stores of the tests."""
    REDIS = "redis"
    """The session manager, on a `RedisEventStore` in every test."""


@dataclass(frozen=True)
class Difference:
    """Tests with the same expected difference.

    Attributes:
        reason: Why they fail.
        parts: With which parts.
        tests: Their ids, without parameters where all of them fail, or a file all of whose tests do.
        hangs: Whether they wait for ever, so that they are not run.
    """

    reason: str
    parts: tuple[Parts, ...]
    tests: tuple[str, ...]
    hangs: bool = False


BOTH = (Parts.MANAGER, Parts.REDIS)
MODERN = "tests/interaction/transports/test_hosting_http_modern.py::"
HTTP = "tests/interaction/transports/test_hosting_http.py::"
HOSTING = "tests/interaction/transports/test_hosting_resume.py::"
MANAGER = "tests/server/test_streamable_http_manager.py::"
DIFFERENCES = (
    Difference(
        "Event ids name the session's stream, so that a cursor of another session is refused: 5.1, not 5.",
        BOTH,
        (
            HOSTING + "test_a_post_sse_stream_begins_with_a_priming_event_and_stamps_every_event",
            HOSTING + "test_get_with_last_event_id_replays_only_that_streams_missed_events",
            HOSTING + "test_a_pre_2025_11_25_reconnect_replays_without_minting_a_priming_event",
            HOSTING + "test_a_captured_resumption_token_replays_missed_messages_on_a_new_connection",
        ),
    ),
    Difference(
        "An unknown Last-Event-ID is answered 400, as the SDK's own requirement asks; the SDK sends an empty stream.",
        BOTH,
        (HOSTING + "test_an_unknown_last_event_id_yields_an_empty_replay_stream",),
    ),
    Difference(
        "Outside of run() the manager answers 503, and names the missing lifespan, instead of raising.",
        BOTH,
        (
            MANAGER + "test_handle_request_without_run_raises_error",
            "tests/docs_src/test_asgi.py::test_a_request_before_the_session_manager_runs_is_rejected",
        ),
    ),
    Difference(
        "The session manager runs on asyncio only, and these tests on trio.",
        BOTH,
        (
            "tests/interaction/auth/test_login_time.py",
            MODERN + "test_modern_client_raises_the_header_mismatch_when_the_re_list_outlasts_the_read_timeout",
            MODERN + "test_modern_client_bounds_the_whole_re_list_by_the_client_default_read_timeout",
        ),
    ),
    Difference(
        "An idle session that a worker has dropped is continued until its record in Redis expires (whole seconds).",
        (Parts.REDIS,),
        (
            MANAGER + "test_idle_session_is_reaped",
            MANAGER + "test_request_in_flight_holds_the_session_open",
            MANAGER + "test_open_event_stream_holds_the_session_open",
            MANAGER + "test_request_completing_under_an_open_event_stream_does_not_start_the_countdown",
        ),
    ),
    Difference(
        "The test watches the transport that the SDK's manager creates, in whose place ours serves the session.",
        (Parts.REDIS,),
        (
            MANAGER + "test_opening_request_that_fails_leaves_no_session",
            MANAGER + "test_opening_request_that_is_cancelled_leaves_no_session",
            MANAGER + "test_opening_request_whose_session_task_cannot_start_leaves_no_session",
            MANAGER + "test_refused_opening_request_leaves_no_session",
        ),
    ),
    Difference(
        "A second stream for standalone messages takes over from the first, instead of being refused with 409.",
        (Parts.REDIS,),
        ("tests/shared/test_streamable_http.py::test_get_sse_stream",),
    ),
    Difference(
        "As before: the second stream is open, and the test waits for the end of its body.",
        (Parts.REDIS,),
        (HTTP + "test_a_second_standalone_get_stream_on_the_same_session_returns_409",),
        hangs=True,
    ),
    Difference(
        "The standalone stream has event ids, too: as the session ends, the SDK's client tries to resume that stream.",
        (Parts.REDIS,),
        (
            "tests/interaction/transports/test_client_transport_http.py::test_a_completed_post_stream_is_not_reconnected",
        ),
    ),
    Difference(
        "Every server has an event store here, so that a response begins with a priming event, and has two events.",
        (Parts.REDIS,),
        ("tests/interaction/auth/test_bearer.py::test_a_token_issued_for_this_resource_is_served",),
    ),
    Difference(
        "The test reads the memory of its own store, in whose place there is Redis.",
        (Parts.REDIS,),
        (
            HOSTING + "test_the_priming_row_is_stored_before_any_handler_output_for_that_stream",
            "tests/shared/test_streamable_http.py::test_initialize_with_unknown_protocol_version_gets_no_priming_event",
        ),
    ),
)
