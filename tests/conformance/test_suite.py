"""That the suite finds what it is there to find, and that its example can be run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mcp_eventscope.testing
from mcp_eventscope.testing import EventStoreConformance, SharedStoreConformance

FAULTY = Path(__file__).with_name("faulty_stores.py")
PROJECT = Path(__file__).parents[2] / "pyproject.toml"

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


@pytest.mark.slow
def test_faults_are_found(tmp_path: Path) -> None:
    """A store with a fault fails the tests that are about it."""
    tests = {f"{suite}::{test}" for suite, found_by in FOUND_BY.items() for test in found_by}
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", PROJECT, "--rootdir", PROJECT.parent),
            *("-p", "no:cacheprovider", "--tb=no", "--no-header", "-q", "-rpEfs"),
            *(f"{FAULTY}::{test}" for test in sorted(tests)),
        ],
        cwd=tmp_path,  # what Hypothesis remembers of these failures is nothing to try on other stores
        capture_output=True,
        text=True,
        check=False,
    )
    failed = {line.split("faulty_stores.py::")[1].split(" - ")[0] for line in re.findall("FAILED .*", run.stdout)}
    assert failed == tests, run.stdout + run.stderr


def test_example_of_the_documentation() -> None:
    """The example that people start from can be run as it stands."""
    (example,) = re.findall(r"```python\n(import contextlib.*?)```", mcp_eventscope.testing.__doc__ or "", re.DOTALL)
    namespace: dict[str, type] = {}
    exec(compile(example, "example", "exec"), namespace)  # noqa: S102 - it is ours
    assert issubclass(namespace["TestMyStore"], EventStoreConformance)
    assert issubclass(namespace["TestMyStoreOfSeveralProcesses"], SharedStoreConformance)
