"""A server that is down is asked seldom, and used again as soon as it answers."""

import logging
from collections.abc import Callable
from contextlib import suppress

import pytest

from storage.gate import PAUSE_SECONDS, Down, Gate

from .states import Clock

log = logging.getLogger("prompt_image_proxy.tests")


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(log, "The server", "used", clock)


def ask(gate: Gate, fault: str = "", meanwhile: Callable[[], object] = lambda: None) -> bool:
    """Ask a server that fails with `fault`, if any; return whether it was asked."""
    was_asked = False
    with suppress(Down), gate.ask():
        was_asked = True
        meanwhile()
        if fault:
            raise Down(fault)
    return was_asked


def test_down_server_is_asked_once_in_a_while(gate: Gate, clock: Clock) -> None:
    ask(gate, "broken")
    assert gate.reason == "broken"
    assert ask(gate, "still broken"), "a short accident costs other callers nothing"
    for _ in range(3):
        assert not ask(gate)
        clock.now += PAUSE_SECONDS
        assert ask(gate, "still broken")
    clock.now += PAUSE_SECONDS
    assert [ask(gate) for _ in range(3)] == [True] * 3
    assert gate.reason is None


def test_request_waits_for_a_hanging_server_once(gate: Gate, clock: Clock) -> None:
    def hang() -> None:
        clock.now += 5.0

    assert ask(gate, "hangs", meanwhile=hang)
    assert not ask(gate)
    clock.now += PAUSE_SECONDS
    assert ask(gate)


def test_others_fail_while_one_probes(gate: Gate, clock: Clock) -> None:
    ask(gate, "broken")
    with gate.ask() as is_probe:
        assert is_probe
        clock.now += 60.0
        with pytest.raises(Down, match="broken"), gate.ask():
            pass
    with gate.ask() as is_probe:
        assert not is_probe


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_any_other_error_is_an_answer(gate: Gate, error: type[BaseException]) -> None:
    ask(gate, "broken")
    with pytest.raises(error), gate.ask():
        raise error
    assert gate.reason is None


def test_failure_from_before_the_last_success_is_old(gate: Gate, clock: Clock) -> None:
    def answer() -> None:
        clock.now += 1
        ask(gate)

    ask(gate, "timed out", meanwhile=answer)
    assert gate.reason is None
    ask(gate, "timed out")
    assert gate.reason == "timed out"


def test_outage_is_logged_once(gate: Gate, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        ask(gate, "broken")
        clock.now += PAUSE_SECONDS
    gate.note("refused")
    clock.now += PAUSE_SECONDS
    ask(gate)
    ask(gate)
    lines = ["The server cannot be used: broken", "The server can be used again"]
    assert [record.message for record in caplog.records] == lines
