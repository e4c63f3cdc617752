"""The soak's schedule depends on its seed alone, and its history survives the file."""

from pathlib import Path

from soak.history import Kind, Observation, Recorder, What, load
from soak.schedule import CALM, NETWORK_FAULTS, REDIS_FAULTS, WORKER_FAULTS, ClientPlan, incidents


def test_schedule_of_the_same_seed_is_the_same() -> None:
    """Faults, calls and cuts depend on the seed alone."""

    def drawn(seed: int) -> list[object]:
        plan = ClientPlan(seed, client=3, workers=4)
        calls = [plan.call(number, listens=True) for number in range(20)]
        return [*incidents(seed, 120, 4), *calls, *(plan.link("3.1", "call-1", number) for number in range(20))]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_schedule_has_each_fault_once_before_any_repeats() -> None:
    """In two minutes each fault happens, one at a time in each track, and the end is calm."""
    for seed in range(20):
        for track, faults in zip(incidents(seed, 120, 4), (REDIS_FAULTS, WORKER_FAULTS, NETWORK_FAULTS), strict=True):
            assert {incident.fault for incident in track} == set(faults)
            assert {incident.fault for incident in track[: len(faults)]} == set(faults)
            ends = [incident.at + incident.lead + incident.seconds for incident in track]
            assert all(end < incident.at for end, incident in zip(ends, track[1:], strict=False))
            assert ends[-1] <= 120 - CALM


def test_schedule_leaves_the_last_connection_of_a_call_uncut() -> None:
    """After some cuts a connection is left to its end, so that each call ends."""
    plan = ClientPlan(1, client=3, workers=4)
    last = [plan.link("3.1", f"call-{number}", 5) for number in range(100)]
    assert {(link.after_events, link.after_seconds) for link in last} == {(None, None)}


def test_history_is_loaded_as_recorded(tmp_path: Path) -> None:
    """Each observation is read back from the file."""
    path = tmp_path / "soak" / "1.jsonl"
    with Recorder(path) as recorder:
        recorder.note(What.BEGIN, number=1)
        recorder.note(What.EVENT, client=0, worker=0, kind=Kind.NOTIFICATION, number=4, note='a "line"\n')
    assert load(path) == recorder.history
    assert load(path)[1] == Observation(
        recorder.history[1].at, What.EVENT, client=0, worker=0, kind="notification", number=4, note='a "line"\n'
    )
