"""The conformance suite finds faulty stores, and its documented example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mcp_eventscope.testing
from mcp_eventscope.testing import EventStoreConformance, SharedStoreConformance, SharedSubscriptionBusConformance

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
TESTS = Path(__file__).parents[1]

FOUND_BY = {
    "TestWithoutNulls": [
        "test_message_is_kept[params null]",
        "test_any_message_is_kept",
    ],
    "TestWithDefaults": [
        "test_message_is_kept[params unset]",
        "test_any_message_is_kept",
    ],
    "TestParsing": [
        "test_extreme_message_is_kept[5000 digits]",
        "test_extreme_message_is_kept[nested as deep as the SDK writes]",
    ],
    "TestReversed": [
        "test_replay_is_what_followed_in_order",
        "test_long_streams_are_replayed_whole",
    ],
    "TestInclusive": [
        "test_replay_is_what_followed_in_order",
        "test_any_conversation",
    ],
    "TestOneStream": [
        "test_streams_are_replayed_apart",
        "test_replay_names_the_stream",
        "test_any_conversation",
    ],
    "TestConsuming": [
        "test_replay_takes_nothing_away",
    ],
    "TestNumbered": [
        "test_ids_that_were_never_given_out",
        "test_any_text_as_id",
    ],
    "TestSwallowing": [
        "test_callback_that_raises_ends_the_replay",
    ],
    "TestLosing": [
        "test_concurrent_writers",
    ],
    "TestPriming": [
        "test_priming_events_are_cursors",
        "test_ids_can_be_written_to_a_stream",
    ],
    "TestShortened": [
        "test_stream_names_are_not_patterns",
    ],
    "TestSharedViews": [
        "test_sessions_with_hostile_names",
        "test_sessions_of_any_names",
        "test_sessions_that_number_their_requests_alike",
    ],
}
"""Which tests fail on which faulty store."""


SESSION_FAULTS_FOUND_BY = {
    "TestUnshared": [
        "test_replay_is_what_followed_in_order",
        "test_other_store_reads_a_part_of_it_before_it_is_settled",
        "test_follow_of_the_standalone_stream_across_stores",
        "test_every_accepted_event_has_one_outcome",
    ],
    "TestReusedNames": [
        "test_ids_are_unique_over_sessions_and_streams",
        "test_reused_request_ids_never_meet",
        "test_any_conversation",
    ],
    "TestReversed": [
        "test_replay_is_what_followed_in_order",
        "test_concurrent_appends_keep_their_order",
    ],
    "TestSilent": [
        "test_events_beyond_the_bounds_are_reported_lost",
    ],
    "TestOpenEnded": [
        "test_nothing_is_accepted_after_the_response",
    ],
    "TestUntyped": [
        "test_request_id_that_is_reused_while_it_runs",
    ],
    "TestUnfenced": [
        "test_request_of_a_dead_worker_is_answered_once",
    ],
    "TestWithoutNulls": [
        "test_message_is_kept[params null]",
        "test_any_message_is_kept",
    ],
    "TestRepeating": [
        "test_every_accepted_event_has_one_outcome",
        "test_outage_is_not_noticed",
    ],
    "TestOneLargePayload": [
        "test_payload_around_the_boundary_is_kept[4097]",
    ],
}
"""The same for session stores."""

BUS_FAULTS_FOUND_BY = {
    "TestUnshared": [
        "test_event_of_another_worker_arrives[tools]",
        "test_events_of_both_workers_arrive_at_both",
    ],
    "TestForgetful": ["test_event_of_an_outage_arrives_afterwards"],
    "TestRaising": ["test_event_of_an_outage_arrives_afterwards"],
    "TestWaiting": ["test_event_of_an_outage_arrives_afterwards"],
    "TestDeduplicating": ["test_change_after_a_signal_is_signalled_again"],
    "TestBounded": ["test_burst_of_another_worker_arrives"],
    "TestLate": ["test_listener_receives_the_changes_after_its_subscription"],
    "TestAscii": [
        "test_event_of_another_worker_arrives[resource beyond ASCII]",
        "test_event_of_another_worker_arrives[resource with a lone surrogate]",
    ],
    "TestTruncating": [
        "test_event_reaches_every_listener[resource with a long URI]",
        "test_event_of_another_worker_arrives[resource with a long URI]",
    ],
    "TestReversed": ["test_events_keep_their_order"],
    "TestReplaying": ["test_event_without_listeners_is_accepted"],
    "TestKeyed": ["test_listener_may_subscribe_twice"],
    "TestStrict": ["test_unsubscribed_listener_receives_nothing"],
    "TestUncaught": ["test_listener_that_raises_is_isolated"],
    "TestIterating": ["test_listeners_may_change_during_delivery"],
    "TestGreedy": ["test_burst_does_not_overflow_a_stream"],
    "TestCancellable": [
        "test_cancelled_publisher_has_published",
        "test_cancelled_publisher_reaches_other_workers",
    ],
}
"""The same for buses."""

TASK_FAULTS_FOUND_BY = {
    "TestLazy": ["test_created_task_is_found_immediately"],
    "TestCounting": ["test_task_ids_are_unguessable"],
    "TestUntraced": ["test_trace_context_is_kept"],
    "TestRaising": ["test_unknown_id_is_not_found[0]"],
    "TestOpen": ["test_task_of_another_owner_is_unknown"],
    "TestNameless": ["test_task_without_owner_is_found_without_one_only"],
    "TestKeeping": ["test_discarded_task_is_unknown"],
    "TestSilent": ["test_progress_is_visible_after_sync"],
    "TestShuffled": ["test_sync_keeps_runs_apart"],
    "TestWithoutNulls": ["test_any_result_is_kept"],
    "TestShortened": ["test_error_is_kept"],
    "TestTruncating": ["test_too_large_result_fails_the_task"],
    "TestReopening": ["test_final_status_never_changes[completed-failed]"],
    "TestRacing": ["test_one_of_many_concurrent_ends_stands"],
    "TestExpiring": ["test_ttl_counts_from_the_end"],
    "TestForgetful": ["test_first_read_of_an_end_is_reported_once"],
    "TestConsuming": ["test_cancellation_reaches_the_run", "test_answers_are_returned_until_they_are_received"],
    "TestImpatient": ["test_cancellation_reaches_the_run"],
    "TestAllOrNothing": ["test_input_is_requested_and_answered"],
    "TestLastAnswer": ["test_first_answer_stands"],
    "TestInsisting": ["test_answered_request_is_not_asked_again"],
    "TestClinging": ["test_request_that_the_tool_has_given_up_is_withdrawn"],
    "TestUnfenced": ["test_task_of_a_dead_process_fails_once"],
    "TestCondemning": ["test_end_of_a_dead_process_stands"],
    "TestMortal": ["test_lost_record_is_created_again"],
}
"""The same for task stores."""


STATE_FAULTS_FOUND_BY = {
    "TestSharedKeysOfTheSDK": [
        "test_repeated_answer_takes_effect_once",
        "test_concurrent_answers_take_effect_once",
        "test_other_answer_is_refused",
        "test_repeated_answer_gets_the_same_next_question",
    ],
    "TestEphemeralKeysOfTheSDK": [
        "test_answer_on_another_worker_takes_effect",
    ],
    "TestReadable": [
        "test_state_on_the_wire_is_not_readable",
        "test_changed_state_is_refused",
    ],
    "TestSealedInside": [
        "test_answer_on_the_same_worker_takes_effect",
    ],
    "TestUnbound": [
        "test_state_of_another_request_is_refused[arguments]",
        "test_state_of_another_request_is_refused[tool]",
        "test_state_of_another_request_is_refused[method]",
    ],
    "TestImpersonal": [
        "test_state_of_another_principal_is_refused[alice-bob]",
        "test_state_of_another_principal_is_refused[alice-None]",
        "test_state_of_another_principal_is_refused[None-bob]",
        "test_recorded_result_is_for_its_principal_only",
    ],
    "TestCommon": [
        "test_state_of_another_service_is_refused",
    ],
    "TestTalkative": [
        "test_refusals_on_the_wire_are_alike",
    ],
    "TestIntrusive": [
        "test_requests_without_state_pass",
    ],
    "TestLocal": [
        "test_repeated_answer_takes_effect_once",
        "test_concurrent_answers_take_effect_once",
        "test_other_answer_during_the_first_use_is_refused",
    ],
    "TestImpatient": [
        "test_concurrent_answers_take_effect_once",
    ],
    "TestLiteral": [
        "test_members_in_another_order_are_the_same_answer",
    ],
    "TestIndifferent": [
        "test_other_answer_is_refused",
        "test_other_answer_during_the_first_use_is_refused",
    ],
    "TestOneForAll": [
        "test_two_questions_have_answers_of_their_own",
    ],
    "TestForgivingErrors": [
        "test_repeated_answer_gets_the_recorded_error",
        "test_repeated_answer_gets_an_error_after_an_exception",
    ],
    "TestForgivingCancellation": [
        "test_answer_whose_first_use_was_cancelled_is_not_run_again",
    ],
    "TestLeaking": [
        "test_repeated_answer_gets_an_error_after_an_exception",
    ],
    "TestResealing": [
        "test_repeated_answer_gets_the_same_next_question",
    ],
    "TestServingAnyone": [
        "test_recorded_result_is_for_its_principal_only",
    ],
    "TestStateless": [
        "test_question_without_state_is_answered_once",
    ],
}
"""The same for request states, and for policies of the SDK, which lack single use."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stores", "found_by"),
    [
        ("faulty_stores.py", FOUND_BY),
        ("faulty_session_stores.py", SESSION_FAULTS_FOUND_BY),
        ("faulty_subscription_buses.py", BUS_FAULTS_FOUND_BY),
        ("faulty_request_states.py", STATE_FAULTS_FOUND_BY),
        ("faulty_task_stores.py", TASK_FAULTS_FOUND_BY),
    ],
    ids=["stores", "session stores", "buses", "request states", "task stores"],
)
def test_suite_on_a_faulty_store_fails_the_tests_of_its_fault(stores: str, found_by: dict[str, list[str]]) -> None:
    """A store with a fault fails the tests that concern it."""
    faulty = Path(__file__).with_name(stores)
    tests = {f"{suite}::{test}" for suite, found in found_by.items() for test in found}
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", PROJECT, "--rootdir", PROJECT.parent, "-p", "support.any_failure"),
            *("-p", "no:cacheprovider", "--tb=no", "--no-header", "-q", "-rpEfs"),
            *(f"{faulty}::{test}" for test in sorted(tests)),
        ],
        cwd=PROJECT.parent,
        env=os.environ | {"PYTHONPATH": str(TESTS)},  # Plugins are imported before pytest extends the path.
        capture_output=True,
        text=True,
        check=False,
    )
    failed = {line.split(f"{stores}::")[1].split(" - ")[0] for line in re.findall("FAILED .*", run.stdout)}
    assert failed == tests, run.stdout + run.stderr


def test_suite_of_buses_has_a_fault_for_each_check() -> None:
    """No check of a bus passes whatever the bus does."""
    checks = {name for name in dir(SharedSubscriptionBusConformance) if name.startswith("test_")}
    found = {test.partition("[")[0] for tests in BUS_FAULTS_FOUND_BY.values() for test in tests}
    assert found == checks


def test_suite_example_of_the_documentation_runs() -> None:
    """The example that readers start from runs as it stands."""
    (example,) = re.findall(r"```python\n(import contextlib.*?)```", mcp_eventscope.testing.__doc__ or "", re.DOTALL)
    namespace: dict[str, type] = {}
    exec(compile(example, "example", "exec"), namespace)  # noqa: S102 - it is ours
    assert issubclass(namespace["TestMyStore"], EventStoreConformance)
    assert issubclass(namespace["TestMyStoreOfSeveralProcesses"], SharedStoreConformance)
