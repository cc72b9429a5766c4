"""A short chaos run, and the checker itself: it finds each broken guarantee, and nothing else."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import CUT_OFF, LOSES_DATA, Checker
from tests.chaos.history import Call, History, Note, Seen
from tests.chaos.run import run
from tests.chaos.setting import IDLE_TTL, INTERVAL, STALE_AFTER, TICK, TIMEOUT, TTL

CLAIMS = {
    "a list has each agent once",
    "a removed agent stays removed",
    "an agent is not lost",
    "back within two intervals",
    "no acknowledged update is lost",
    "no earlier start writes",
}


@pytest.mark.parametrize(("store", "seconds"), [("redis", 6), ("sqlite", 2)])
async def test_a_short_run_of_chaos(store: str, seconds: float, tmp_path: Path) -> None:
    verdict = await run(store, 1, seconds, tmp_path)
    assert not verdict.wrong, "\n".join(verdict.wrong[:10])
    assert set(verdict.tried) >= CLAIMS


numbers = itertools.count()


def call(kind: str, start: float, end: float, **facts: Any) -> Call:
    facts = {"id": "a", "outcome": "ok"} | facts
    return Call(who="c", number=next(numbers), kind=kind, start=start, end=end, **facts)


def listed(start: float, end: float, *seen: Seen) -> Call:
    return call("list", start, end, id="", seen=list(seen))


def swept(start: float, end: float, *ids: str) -> Call:
    return call("reap", start, end, id="", reported=list(ids))


def broken(*calls: Call, notes: list[Note] | None = None) -> set[str]:
    """Return the names of the guarantees that the history breaks."""
    ordered = sorted(calls, key=lambda each: each.start)
    return {wrong.partition(":")[0] for wrong in Checker(History(ordered, notes or [])).verdict().wrong}


BORN = call("register", 0, 1, load=0)
SEEN = Seen("a", "available", 0)
OFFLINE = Seen("a", "offline", 0)


def test_a_correct_history_passes() -> None:
    gone = call("deregister", 4, 5)
    again = call("register", 7, 8, load=0)
    assert broken(BORN, listed(2, 3, SEEN), gone, listed(6, 6.5), again, listed(9, 10, SEEN)) == set()


@pytest.mark.parametrize(
    "observation",
    [listed(6, 7, SEEN), call("get", 6, 7, seen=[SEEN]), call("heartbeat", 6, 7), call("update", 6, 7, load=0)],
    ids=lambda observation: observation.kind,
)
def test_a_resurrection_is_found(observation: Call) -> None:
    gone = call("deregister", 4, 5)
    assert "a removed agent stays removed" in broken(BORN, gone, observation)
    assert broken(BORN, call("deregister", 4, 5, outcome="failed"), observation) == set()
    assert broken(BORN, gone, call("register", 5.5, 6.5, load=0), observation) == set()


def test_a_lost_update_is_found() -> None:
    update = call("update", 2, 3, load=7)
    assert broken(BORN, update, listed(4, 5, SEEN)) == {"no acknowledged update is lost"}
    assert broken(BORN, update, listed(4, 5, Seen("a", "busy", 7))) == set()
    assert broken(BORN, call("update", 2, 3, load=7, outcome="failed"), listed(4, 5, SEEN)) == set()
    assert broken(BORN, update, call("register", 3.2, 3.5, load=0), listed(4, 5, SEEN)) == set()


LOST_DATA = Note(who="runner", kind="fault", start=6, end=6.1, text=f"FLUSHALL; {LOSES_DATA}")


def test_a_failed_update_that_takes_effect_after_an_answered_one_is_found() -> None:
    late, second = call("update", 2, 3, load=1, outcome="failed"), call("update", 4, 5, load=2)
    observation = listed(7, 8, Seen("a", "available", 1))
    assert broken(BORN, late, second, observation) == {"no acknowledged update is lost"}
    assert broken(BORN, late, call("update", 2.5, 5, load=2), observation) == set()
    assert broken(BORN, late, call("update", 4, 5, load=2, by="another registry"), observation) == set()
    assert broken(BORN, late, second, observation, notes=[LOST_DATA]) == set()


def test_a_failed_registration_that_takes_effect_after_an_answered_removal_is_found() -> None:
    late, gone = call("register", 2, 3, load=0, outcome="failed"), call("deregister", 4, 5)
    assert broken(BORN, late, gone, listed(6, 7, SEEN)) == {"a removed agent stays removed"}
    assert broken(BORN, late, call("deregister", 4, 5, by="another registry"), listed(6, 7, SEEN)) == set()


def test_an_answer_of_a_server_that_is_cut_off_is_found() -> None:
    cut_off = Note(who="runner", kind=CUT_OFF, start=2, end=5)
    assert broken(BORN, listed(3, 4, SEEN), notes=[cut_off]) == {"a server that is cut off answers nothing"}
    assert broken(BORN, listed(1.5, 4, SEEN), call("get", 3, 4, outcome="failed"), notes=[cut_off]) == set()


def test_a_write_of_an_earlier_start_is_found() -> None:
    def of(start: int, kind: str, begin: float, **facts: Any) -> Call:
        return call(kind, begin, begin + 0.5, id="shared-0", incarnation=start, **facts)

    born = [of(1, "register", 0), of(2, "register", 1)]
    for kind in ("heartbeat", "update", "deregister", "register"):
        late = of(1, kind, 3)
        assert broken(*born, late) == {"no earlier start writes"}
        assert broken(*born, of(1, kind, 3, outcome="replaced")) == set()
        assert broken(*born, of(1, kind, 3 + TTL)) == set()
        assert broken(*born, of(2, "deregister", 2), late) == set()
        assert broken(*born, of(2, "deregister", 2, outcome="failed"), late) == set()
        assert broken(*born, of(2, "deregister", 2, outcome="absent"), late) == {"no earlier start writes"}
        lost = Note(who="runner", kind="fault", start=2, end=2.1, text=f"FLUSHALL; {LOSES_DATA}")
        assert broken(*born, late, notes=[lost]) == set()


def test_a_lost_agent_is_found() -> None:
    assert broken(BORN, listed(2, 3)) == {"an agent is not lost"}
    assert broken(BORN, call("get", 2, 3, outcome="absent")) == {"an agent is not lost"}
    assert broken(BORN, listed(2, 2 + TTL)) == set()
    idle = call("register", 0, 1, load=0, id="c-idle-0")
    assert broken(idle, listed(2, 2 + TTL)) == {"an agent is not lost"}
    assert broken(idle, listed(2, 2 + IDLE_TTL)) == set()
    loss = Note(who="runner", kind="fault", start=1.5, end=1.6, text=f"FLUSHALL; {LOSES_DATA}")
    assert broken(BORN, listed(2, 3), notes=[loss]) == set()


def test_an_agent_twice_in_a_list_is_found() -> None:
    assert broken(BORN, listed(2, 3, SEEN, SEEN)) == {"a list has each agent once"}


def test_a_false_and_an_unreported_offline_are_found() -> None:
    late = 2 + STALE_AFTER
    assert broken(BORN, listed(late, late + 1, OFFLINE)) == {"offline means reported"}
    assert broken(BORN, swept(late, late + 1, "a"), listed(late + 1, late + 2, OFFLINE)) == set()
    failed = call("reap", late, late + 1, id="", outcome="failed")
    assert broken(BORN, failed, listed(late, late + 1, OFFLINE)) == set()
    assert broken(BORN, failed, listed(late, late + 1, OFFLINE), swept(late + 2, late + 3, "a")) == set()
    assert broken(BORN, failed, listed(late, late + 1, OFFLINE), swept(late + 2, late + 3)) == {
        "offline means reported"
    }
    beat = call("heartbeat", late, late + 0.1)
    assert broken(BORN, beat, swept(late + 0.2, late + 0.3, "a")) == {"only the silent are reported"}
    assert "offline means silent" in broken(
        BORN, beat, swept(2, late + 0.3, "a"), listed(late + 0.4, late + 0.5, OFFLINE)
    )


def test_a_duplicate_report_is_found() -> None:
    late = 2 + STALE_AFTER
    first, second = swept(late, late + 1, "a"), swept(late + 2, late + 3, "a")
    assert broken(BORN, first, second) == {"a transition is reported once"}
    assert broken(BORN, first, call("heartbeat", late + 1, math.inf, outcome="open"), second) == set()


def test_a_session_that_is_not_back_is_found() -> None:
    stays = call("register", 0, 1, load=0, id="c-stays-0")
    notes = [Note(who="runner", kind="calm", start=10), Note(who="c", kind="ended", start=20)]
    notes += [Note(who="c", kind="tick", start=TICK * number) for number in range(round(20 / TICK))]
    in_progress = call("heartbeat", 9.9, 10 + TIMEOUT, id="c-stays-0", outcome="failed")

    def beat(start: float) -> Call:
        return call("heartbeat", start, start + 0.1, id="c-stays-0")

    soon, late = 10 + INTERVAL, 10 + 2 * INTERVAL + 2 * TICK
    assert broken(stays, beat(soon), notes=notes) == set()
    assert broken(stays, beat(late), notes=notes) == {"back within two intervals"}
    assert broken(stays, beat(9), beat(late), notes=notes) == {"back within two intervals"}
    assert broken(stays, in_progress, beat(late), notes=notes) == set()
    assert broken(stays, in_progress, beat(late + TIMEOUT), notes=notes) == {"back within two intervals"}
    blocked = [note for note in notes if note.kind != "tick" or not 10 < note.start < late]
    assert broken(stays, beat(late), notes=blocked) == set()


@pytest.mark.parametrize("kind", ["crossed", "left"])
def test_a_noted_problem_is_found(kind: str) -> None:
    assert broken(BORN, notes=[Note(who="c", kind=kind, start=1, text="something")]) == {"c"}
