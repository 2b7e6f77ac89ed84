"""What one drawing knows: read in one call, and written through."""

from __future__ import annotations

import pytest

from llm import Rewritten
from storage import State
from storage.memory import Memory

from .states import Clock

WANTED = [(Rewritten, "a"), (Rewritten, "b")]


def prompts(memory: Memory) -> list[str | None]:
    found = [memory.get(kind, key) for kind, key in WANTED]
    return [recalled.note.prompt if recalled else None for recalled in found]


def test_note_grows_older_and_ends_without_a_call(state: State, clock: Clock) -> None:
    state.remember(Rewritten("x"), "a", 60)
    clock.now += 10
    memory = Memory(state, WANTED, clock)
    memory.remember(Rewritten("y"), "b", 60)
    clock.now += 20
    read, written = memory.get(Rewritten, "a"), memory.get(Rewritten, "b")
    assert read
    assert written
    assert (read.age, read.left) == pytest.approx((30, 30))
    assert (written.age, written.left) == pytest.approx((20, 40))
    clock.now += 30
    assert prompts(memory) == [None, "y"]
    clock.now += 10
    assert prompts(memory) == [None, None]


def test_refreshed_memory_knows_what_others_wrote(state: State, clock: Clock) -> None:
    memory = Memory(state, WANTED, clock)
    memory.remember(Rewritten("mine"), "a", 60)
    state.remember(Rewritten("theirs"), "a", 60)
    assert prompts(memory) == ["mine", None]
    memory.refresh()
    assert prompts(memory) == ["theirs", None]


def test_note_that_was_not_expected_is_one_more_call(state: State, clock: Clock) -> None:
    memory = Memory(state, [], clock)
    state.remember(Rewritten("x"), "late", 60)
    assert memory.get(Rewritten, "late") is None
    assert memory.recall(Rewritten, "late") == Rewritten("x")
    assert memory.recall(Rewritten, "never") is None
