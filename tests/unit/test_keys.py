"""The names of keys, and the prefixes they accept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from mcp_eventscope.redis.keys import EVENT_ID, Keys

SESSIONS = st.text(min_size=1, max_size=30)
RUN = "0123456789ab1"


@pytest.mark.parametrize("prefix", ["mcp:", "a", "{tag}:", "app:{tag}:mcp:", "{a}{b}", "émile:", "a%b:"])
def test_keys_with_valid_prefix_begin_with_it(prefix: str) -> None:
    """A valid prefix is used as it is."""
    keys = Keys(prefix)
    assert keys.counter == f"{prefix}counter"
    assert keys.event("7") == f"{prefix}event:7"
    assert keys.stream("a:b") == f"{prefix}stream:a:b"


@pytest.mark.parametrize("prefix", ["{", "}", "{}", "{}:", "}{", "a{b:", "a}b:", "{{a}}", "{a}}", "{a{b}:", "{a}{}:"])
def test_keys_with_misplaced_braces_are_refused(prefix: str) -> None:
    """Braces that form no whole hash tag are refused with the reason."""
    with pytest.raises(ValueError, match="complete hash tag"):
        Keys(prefix)


@pytest.mark.parametrize("prefix", ["a b:", " ", "mcp:\n", "\0", "\t", "a\x7f", "a\rb"])
def test_keys_with_spaces_or_controls_are_refused(prefix: str) -> None:
    """Spaces and control characters, as a configuration file may add, are refused."""
    with pytest.raises(ValueError, match="spaces or control characters"):
        Keys(prefix)


def test_keys_with_empty_prefix_are_refused() -> None:
    """An empty prefix is refused with an example."""
    with pytest.raises(ValueError, match="use for example 'mcp:'"):
        Keys("")


@pytest.mark.parametrize("prefix", [None, b"mcp:", 1, ["mcp:"]])
def test_keys_with_prefix_that_is_no_string_are_refused(prefix: object) -> None:
    """Anything but a string is a `TypeError` that names its type."""
    with pytest.raises(TypeError, match=type(prefix).__name__):
        Keys(prefix)  # type: ignore[arg-type]  # what is tested


@given(st.lists(SESSIONS, min_size=2, max_size=2, unique=True))
def test_keys_of_two_sessions_never_overlap(sessions: list[str]) -> None:
    """No key of one session begins like those of another session."""
    one, other = (Keys("mcp:").for_session(session) for session in sessions)
    assert not one.prefix.startswith(other.prefix)
    assert not other.prefix.startswith(one.prefix)


@given(SESSIONS, st.text(max_size=30))
def test_keys_of_a_session_are_in_one_slot(session: str, stream: str) -> None:
    """All keys of a session are in one slot of a Redis Cluster, so that one script may use them."""
    keys = Keys("mcp:").for_session(session)
    names = [keys.run(stream, RUN), keys.large(stream, RUN, 1), keys.requests, keys.session, keys.stream(stream)]
    assert len({key_slot(name.encode()) for name in names}) == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_keys_of_runs_and_large_payloads_are_distinct(stream: str, other: str) -> None:
    """No two runs, streams or large payloads share a key, whatever their names."""
    keys = Keys("mcp:").for_session("s")
    names = [keys.run(each, run) for each in {stream, other} for run in (RUN, f"{RUN}0")]
    names += [keys.large(each, RUN, number) for each in {stream, other} for number in (1, 11)]
    assert len(set(names)) == len(names)
    # The channel that wakes a stream's followers is the key without the run.
    assert keys.run(stream, RUN) == f"{keys.stream(stream)}:{RUN}"


def test_keys_of_a_session_without_id_are_refused() -> None:
    """The error names the session's id, not the prefix it would make."""
    with pytest.raises(ValueError, match="session_id must not be empty"):
        Keys("mcp:").for_session("")


@pytest.mark.parametrize("text", ["", "0", "01", "-1", "+1", "1.0", "1e3", "\u0661", "1\n", " 1", "1" * 19, "x"])
def test_event_id_of_another_spelling_is_refused(text: str) -> None:
    """An event id has one spelling only."""
    assert EVENT_ID.fullmatch(text) is None


@pytest.mark.parametrize("text", ["1", "10", "9" * 18])
def test_event_id_of_up_to_18_digits_is_accepted(text: str) -> None:
    """Decimal numbers of up to 18 digits are event ids."""
    assert EVENT_ID.fullmatch(text)
