"""Random schedules for `Generations` and `Marks`: late writes are refused, and each mark is reported once.

The store and the network are simulated; the state under test is the library's. Tests on a real server: test_late_writes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count

import pytest

from agentic.backends.redis.generations import Generations
from agentic.backends.redis.marks import Marks

SCHEDULES = 400
STEPS = 150
AGENTS = {"a": b"one", "b": b"one", "c": b"one", "d": b"one", "e": b"two"}
"""Agents with the families of their keys."""


@dataclass(eq=False)
class Call:
    """A pending call on one agent, as the registry object sees it."""

    caller: int
    agent: str
    number: int
    generation: int = 0


@dataclass(eq=False)
class Message:
    """A call's message on the network; `reply` is None until the store has processed it."""

    call: Call
    generation: int
    reply: int | None = None


@dataclass
class Schedule:
    """Registry objects that write to a store through a network that delays, reorders and loses messages.

    Several objects with one name stand for a registry object opened in forked processes.
    """

    generations: list[Generations]
    rng: random.Random
    highest: dict[bytes, int] = field(default_factory=lambda: defaultdict(int))
    messages: list[Message] = field(default_factory=list)
    under_way: dict[tuple[int, str], Call] = field(default_factory=dict)
    acknowledged: dict[tuple[int, str], int] = field(default_factory=lambda: defaultdict(int))
    ended: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """For each family, the number of the last call sent when the object was closed."""
    numbers: count[int] = field(default_factory=lambda: count(1))

    def issue(self) -> None:
        caller, agent = self.rng.randrange(len(self.generations)), self.rng.choice(list(AGENTS))
        if (caller, agent) not in self.under_way:
            call = self.under_way[caller, agent] = Call(caller, agent, next(self.numbers))
            self.send(call)

    def send(self, call: Call) -> None:
        call.generation = self.generations[call.caller].current
        self.messages.append(Message(call, call.generation))

    def deliver(self) -> None:
        """Deliver a random message to the store."""
        waiting = [message for message in self.messages if message.reply is None]
        if not waiting:
            return
        message = self.rng.choice(waiting)
        family = AGENTS[message.call.agent]
        if self.highest[family] > message.generation:
            message.reply = self.highest[family]
            return
        self.highest[family] = message.generation
        message.reply = 0
        call, key = message.call, (message.call.caller, message.call.agent)
        assert call.number > self.acknowledged[key], f"{call} took effect after a later one was acknowledged"
        assert call.number > self.ended.get((call.caller, family), 0), f"{call} took effect after the end"

    def answer(self) -> None:
        """Deliver a random reply to its caller, if it still waits."""
        answered = [message for message in self.messages if message.reply is not None]
        if not answered:
            return
        message = self.rng.choice(answered)
        self.messages.remove(message)
        call, key, family = message.call, (message.call.caller, message.call.agent), AGENTS[message.call.agent]
        if self.under_way.get(key) is not call or call.generation != message.generation:
            return
        if message.reply:
            self.generations[call.caller].refused(message.reply)
            self.send(call)
            return
        self.generations[call.caller].applied(family, call.generation)
        self.acknowledged[key] = call.number
        del self.under_way[key]

    def give_up(self) -> None:
        """Let a random caller time out: its message may arrive before, later or never."""
        if self.under_way:
            key = self.rng.choice(list(self.under_way))
            call = self.under_way.pop(key)
            self.generations[call.caller].lost(AGENTS[call.agent], call.generation)

    def lose(self) -> None:
        if self.messages:
            self.messages.remove(self.rng.choice(self.messages))

    def close(self) -> None:
        """Close an object: abandon its calls and settle its writes in the store."""
        caller = self.rng.randrange(len(self.generations))
        for key in [key for key in self.under_way if key[0] == caller]:
            call = self.under_way.pop(key)
            self.generations[caller].lost(AGENTS[call.agent], call.generation)
        for family in list(self.generations[caller].unsettled):
            generation = max(self.generations[caller].current, self.highest[family])
            self.generations[caller].refused(generation)
            self.highest[family] = generation
            self.generations[caller].applied(family, generation)
        for family in AGENTS.values():
            self.ended[caller, family] = next(self.numbers)
        assert self.generations[caller].unsettled == {}

    def run(self) -> None:
        steps = [self.issue] * 6 + [self.deliver] * 4 + [self.answer] * 3 + [self.give_up] * 3 + [self.lose, self.close]
        for _ in range(STEPS):
            self.rng.choice(steps)()
        # Without further failures, every call gets its reply, however often it was refused.
        while self.under_way:
            pending = {id(message.call) for message in self.messages}
            for call in self.under_way.values():
                if id(call) not in pending:
                    self.send(call)
            for _ in range(len(self.messages)):
                self.deliver()
                self.answer()


@pytest.mark.parametrize("objects", [1, 2])
def test_a_write_never_takes_effect_after_a_later_one_was_acknowledged(objects: int) -> None:
    for seed in range(SCHEDULES):
        Schedule([Generations() for _ in range(objects)], random.Random(seed)).run()


def test_each_object_has_a_name_of_its_own() -> None:
    assert len({Generations().writer for _ in range(100)}) == 100


def test_a_marked_agent_is_reported_once_whatever_replies_are_lost() -> None:
    for seed in range(SCHEDULES):
        rng, marks = random.Random(seed), Marks()
        kept: dict[bytes, tuple[str, list[str]]] = {}
        marked: list[str] = []
        told: list[str] = []
        for number in range(STEPS):
            family = rng.choice([b"one", b"two"])
            if family in marks.unsettled():
                marks.found(family, *kept.get(family, ("", [])))
            token = marks.sent(family)
            ids = [f"{number}.{index}" for index in range(rng.randrange(3))]
            if arrives := rng.random() < 0.7:
                marked += ids
                if ids:
                    kept[family] = token, ids
            if arrives and rng.random() < 0.5:
                marks.answered(family, ids)
            if rng.random() < 0.5:
                told += marks.take()
        for family in marks.unsettled():
            marks.found(family, *kept.get(family, ("", [])))
        assert marks.unsettled() == []
        assert sorted(told + marks.take()) == sorted(marked)
        assert marks.take() == []
