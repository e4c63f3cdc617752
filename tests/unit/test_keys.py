import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from mcp_eventscope.redis.keys import EVENT_ID, Keys

SESSIONS = st.text(min_size=1, max_size=30)
RUN = "0123456789ab1"


@pytest.mark.parametrize("prefix", ["mcp:", "a", "{tag}:", "app:{tag}:mcp:", "{a}{b}", "émile:", "a%b:"])
def test_prefix_is_what_keys_begin_with(prefix: str) -> None:
    """A prefix within the rules is taken as it is."""
    keys = Keys(prefix)
    assert keys.counter == f"{prefix}counter"
    assert keys.event("7") == f"{prefix}event:7"
    assert keys.stream("a:b") == f"{prefix}stream:a:b"


@pytest.mark.parametrize("prefix", ["{", "}", "{}", "{}:", "}{", "a{b:", "a}b:", "{{a}}", "{a}}", "{a{b}:", "{a}{}:"])
def test_prefix_with_misplaced_braces(prefix: str) -> None:
    """Braces that are no whole hash tag are refused, and it is said why."""
    with pytest.raises(ValueError, match="whole hash tag"):
        Keys(prefix)


@pytest.mark.parametrize("prefix", ["a b:", " ", "mcp:\n", "\0", "\t", "a\x7f", "a\rb"])
def test_prefix_with_spaces_and_controls(prefix: str) -> None:
    """Spaces and control characters, which a configuration file may leave at an end, are refused."""
    with pytest.raises(ValueError, match="spaces or control characters"):
        Keys(prefix)


def test_empty_prefix() -> None:
    """An empty prefix is refused, and an example is given."""
    with pytest.raises(ValueError, match='Use "mcp:"'):
        Keys("")


@pytest.mark.parametrize("prefix", [None, b"mcp:", 1, ["mcp:"]])
def test_prefix_that_is_no_string(prefix: object) -> None:
    """Anything but a string is a `TypeError` that names what was given."""
    with pytest.raises(TypeError, match=type(prefix).__name__):
        Keys(prefix)  # type: ignore[arg-type]  # what is tested


@given(st.lists(SESSIONS, min_size=2, max_size=2, unique=True))
def test_sessions_share_no_key(sessions: list[str]) -> None:
    """No key of one session begins as those of another, whatever they are called."""
    one, other = (Keys("mcp:").for_session(session) for session in sessions)
    assert not one.prefix.startswith(other.prefix)
    assert not other.prefix.startswith(one.prefix)


@given(SESSIONS, st.text(max_size=30))
def test_session_lives_in_one_slot(session: str, stream: str) -> None:
    """All keys of a session are in one slot of a Redis Cluster, so that one script may touch them."""
    keys = Keys("mcp:").for_session(session)
    names = [keys.run(stream, RUN), keys.large(stream, RUN, 1), keys.requests, keys.session, keys.stream(stream)]
    assert len({key_slot(name.encode()) for name in names}) == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_runs_share_no_key(stream: str, other: str) -> None:
    """Neither with another run, nor with another stream, whatever it is called, nor with a large payload."""
    keys = Keys("mcp:").for_session("s")
    names = [keys.run(each, run) for each in {stream, other} for run in (RUN, f"{RUN}0")]
    names += [keys.large(each, RUN, number) for each in {stream, other} for number in (1, 11)]
    assert len(set(names)) == len(names)
    # The channel that wakes the followers of a stream is what is left of the key without the run.
    assert keys.run(stream, RUN) == f"{keys.stream(stream)}:{RUN}"


def test_session_without_id() -> None:
    """An empty session id is refused in terms of the session, not of the prefix it would make."""
    with pytest.raises(ValueError, match="session's id"):
        Keys("mcp:").for_session("")


@pytest.mark.parametrize("text", ["", "0", "01", "-1", "+1", "1.0", "1e3", "\u0661", "1\n", " 1", "1" * 19, "x"])
def test_texts_that_are_no_event_id(text: str) -> None:
    """An event id has one spelling only."""
    assert EVENT_ID.fullmatch(text) is None


@pytest.mark.parametrize("text", ["1", "10", "9" * 18])
def test_event_ids(text: str) -> None:
    """Decimal numbers of up to 18 digits are event ids."""
    assert EVENT_ID.fullmatch(text)
