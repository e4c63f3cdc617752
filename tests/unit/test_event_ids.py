"""Event ids on the wire, and the names of streams in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_eventscope.sessions import event_ids
from mcp_eventscope.store.messages import GET_STREAM_KEY

EVENT_IDS = st.text(min_size=1, max_size=30)
REQUEST_IDS = st.text(max_size=300) | st.integers() | st.just(GET_STREAM_KEY)


@given(EVENT_IDS, REQUEST_IDS)
def test_split_of_joined_id_returns_its_parts(event_id: str, request_id: int | str) -> None:
    """An id on the wire returns the event id and the stream's name, whatever both are."""
    name = event_ids.stream_name(request_id)
    assert event_ids.split(event_ids.join(event_id, name)) == (event_id, name)


@given(EVENT_IDS, REQUEST_IDS)
def test_join_returns_visible_ascii(event_id: str, request_id: int | str) -> None:
    """An id needs no quoting in a header or a line of SSE, and no name exceeds the bound."""
    name = event_ids.stream_name(request_id)
    assert 0 < len(name) <= event_ids.MAX_NAME
    wire_id = event_ids.join(event_id, name)
    assert all("!" <= character <= "~" for character in wire_id)


@given(st.lists(REQUEST_IDS, min_size=2, max_size=2, unique=True))
def test_stream_names_of_two_requests_differ(request_ids: list[int | str]) -> None:
    """Two requests never share a stream, nor does one share the standalone stream."""
    assert event_ids.stream_name(request_ids[0]) != event_ids.stream_name(request_ids[1])
    assert GET_STREAM_KEY not in map(event_ids.stream_name, request_ids)


@given(REQUEST_IDS)
def test_request_id_of_a_stream_name_keeps_its_type(request_id: int | str) -> None:
    """A name returns the JSON value of the id, unless it had to be hashed."""
    name = event_ids.stream_name(request_id)
    found = event_ids.request_id_of(name)
    assert name.startswith("!") if found is None else (found == request_id and type(found) is type(request_id))


@given(st.text(max_size=60) | st.text("0123456789.%2EFx!_~-", max_size=60))
def test_split_accepts_one_spelling_only(text: str) -> None:
    """An accepted text is exactly the one that would be written."""
    parts = event_ids.split(text)
    assert parts is None or event_ids.join(*parts) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1",
        "1.",
        ".1",
        "1.!!",
        "1.a!",
        "!.1",
        " 1.1",
        "1.1 ",
        "1.1\n",
        "1.\x001",
        "1 .1",
        "%.1",
        "%3.1",
        "%31.1",
        "%zz.1",
        "%2e.1",
        "%ff.1",
        "%C0%AE.1",
        "é.1",
        "1.é",
        "1/1",
        "-",
        "1:1",
        "{1}",
        "1" * event_ids.MAX_ID + ".1",
        "1." + "1" * (event_ids.MAX_ID - 1),
        "x" * 10_000,
    ],
)
def test_split_of_hostile_id_returns_none(text: str) -> None:
    """A text that `join` does not write is no id."""
    assert event_ids.split(text) is None


@pytest.mark.parametrize(
    ("request_id", "name"),
    [(1, "1"), (0, "0"), (-5, "-5"), ("1", "~1"), ("abc-DEF_~.", "~abc-DEF_~."), ("", "~"), ("!", "~%21")],
)
def test_stream_name_of_an_ordinary_id_is_readable(request_id: int | str, name: str) -> None:
    """Ordinary ids stay readable in keys and on the wire; strings differ from numbers."""
    assert event_ids.stream_name(request_id) == name
    assert event_ids.split(event_ids.join("1", name)) == ("1", name)


@pytest.mark.parametrize("name", [GET_STREAM_KEY, "!abc", "01", "+1", "1.0", "x"])
def test_request_id_of_another_name_is_none(name: str) -> None:
    """A name that no request id has returns none."""
    assert event_ids.request_id_of(name) is None


def test_split_divides_at_the_first_dot() -> None:
    """An event id has no dot on the wire; a stream may have many."""
    assert event_ids.split(event_ids.join("1.2", "3.4")) == ("1.2", "3.4")
    assert event_ids.join("1.2", "3.4") == "1%2E2.3.4"
