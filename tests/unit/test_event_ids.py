import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_eventscope.sessions import event_ids
from mcp_eventscope.store.messages import GET_STREAM_KEY

EVENT_IDS = st.text(min_size=1, max_size=30)
REQUEST_IDS = st.text(max_size=300) | st.integers() | st.just(GET_STREAM_KEY)


@given(EVENT_IDS, REQUEST_IDS)
def test_split_is_the_inverse_of_join(event_id: str, request_id: int | str) -> None:
    """An id on the wire gives back the event id and the stream's name, whatever both are."""
    name = event_ids.stream_name(request_id)
    assert event_ids.split(event_ids.join(event_id, name)) == (event_id, name)


@given(EVENT_IDS, REQUEST_IDS)
def test_ids_are_visible_ascii(event_id: str, request_id: int | str) -> None:
    """Nothing on the wire needs quoting, in a header or a line of SSE, and no name is longer than the bound."""
    name = event_ids.stream_name(request_id)
    assert 0 < len(name) <= event_ids.MAX_NAME
    wire_id = event_ids.join(event_id, name)
    assert all("!" <= character <= "~" for character in wire_id)


@given(st.lists(REQUEST_IDS, min_size=2, max_size=2, unique=True))
def test_requests_have_streams_of_their_own(request_ids: list[int | str]) -> None:
    """Two requests never share a stream, nor does one share the standalone stream."""
    assert event_ids.stream_name(request_ids[0]) != event_ids.stream_name(request_ids[1])
    assert GET_STREAM_KEY not in map(event_ids.stream_name, request_ids)


@given(REQUEST_IDS)
def test_name_gives_back_the_request_id_with_its_type(request_id: int | str) -> None:
    """A name says which JSON value the id was, unless it had to be hashed."""
    name = event_ids.stream_name(request_id)
    found = event_ids.request_id_of(name)
    assert name.startswith("!") if found is None else (found == request_id and type(found) is type(request_id))


@given(st.text(max_size=60) | st.text("0123456789.%2EFx!_~-", max_size=60))
def test_an_id_has_one_spelling(text: str) -> None:
    """Whatever is accepted is exactly what would be written: one event, one cursor."""
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
        "1" * 2048 + ".1",
        "1." + "1" * 2047,
        "x" * 10_000,
    ],
)
def test_hostile_ids(text: str) -> None:
    """What `join` does not write is no id."""
    assert event_ids.split(text) is None


@pytest.mark.parametrize(
    ("request_id", "name"),
    [(1, "1"), (0, "0"), (-5, "-5"), ("1", "~1"), ("abc-DEF_~.", "~abc-DEF_~."), ("", "~"), ("!", "~%21")],
)
def test_usual_names_stay_readable(request_id: int | str, name: str) -> None:
    """The streams of ordinary clients keep their ids in keys and on the wire; a string is told from a number."""
    assert event_ids.stream_name(request_id) == name
    assert event_ids.split(event_ids.join("1", name)) == ("1", name)


@pytest.mark.parametrize("name", [GET_STREAM_KEY, "!abc", "01", "+1", "1.0", "x"])
def test_name_of_no_request(name: str) -> None:
    """A name that no request id has gives back none."""
    assert event_ids.request_id_of(name) is None


def test_dots_in_a_stream() -> None:
    """The first dot divides: an event id has none on the wire, a stream may have many."""
    assert event_ids.split(event_ids.join("1.2", "3.4")) == ("1.2", "3.4")
    assert event_ids.join("1.2", "3.4") == "1%2E2.3.4"
