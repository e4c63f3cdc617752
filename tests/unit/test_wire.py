import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_eventscope.sessions import wire
from mcp_eventscope.types import GET_STREAM_KEY

EVENT_IDS = st.text(min_size=1, max_size=30)
STREAM_IDS = st.text(max_size=300) | st.integers().map(str) | st.just(GET_STREAM_KEY)


@given(EVENT_IDS, STREAM_IDS)
def test_split_is_the_inverse_of_join(event_id: str, stream_id: str) -> None:
    """An id on the wire gives back the event id and the stream's name, whatever both are."""
    name = wire.stream_name(stream_id)
    assert wire.split(wire.join(event_id, name)) == (event_id, name)


@given(EVENT_IDS, STREAM_IDS)
def test_ids_are_visible_ascii(event_id: str, stream_id: str) -> None:
    """Nothing on the wire needs quoting, in a header or a line of SSE, and no name is longer than the bound."""
    name = wire.stream_name(stream_id)
    assert 0 < len(name) <= wire.MAX_NAME
    wire_id = wire.join(event_id, name)
    assert all("!" <= character <= "~" for character in wire_id)


@given(st.lists(STREAM_IDS, min_size=2, max_size=2, unique=True))
def test_streams_have_names_of_their_own(stream_ids: list[str]) -> None:
    """Two streams never share a name."""
    assert wire.stream_name(stream_ids[0]) != wire.stream_name(stream_ids[1])


@given(st.text(max_size=60) | st.text("0123456789.%2EFx!_~-", max_size=60))
def test_an_id_has_one_spelling(text: str) -> None:
    """Whatever is accepted is exactly what would be written: one event, one cursor."""
    parts = wire.split(text)
    assert parts is None or wire.join(*parts) == text


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
        "1" * 512 + ".1",
        "1." + "1" * 511,
        "x" * 10_000,
    ],
)
def test_hostile_ids(text: str) -> None:
    """What `join` does not write is no id."""
    assert wire.split(text) is None


@pytest.mark.parametrize("stream_id", ["1", "0", "-5", GET_STREAM_KEY, "abc-DEF_~."])
def test_usual_names_stay_readable(stream_id: str) -> None:
    """The streams of ordinary clients keep their names, in keys and on the wire."""
    assert wire.stream_name(stream_id) == stream_id


def test_dots_in_a_stream() -> None:
    """The first dot divides: an event id has none on the wire, a stream may have many."""
    assert wire.split(wire.join("1.2", "3.4")) == ("1.2", "3.4")
    assert wire.join("1.2", "3.4") == "1%2E2.3.4"


def test_stream_without_a_name() -> None:
    """The empty string is a request id like any other, and its stream can be resumed."""
    assert wire.split(wire.join("1", wire.stream_name(""))) == ("1", "!")
    assert wire.stream_name("!") == "%21"
