"""Room for requests that wait."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from storage.waiting import NoPlace, Places


def test_one_key_takes_at_most_half_of_the_places() -> None:
    places = Places(5)
    with ExitStack() as waiting:
        for key in ("popular", "popular", "a", "b", "c"):
            waiting.enter_context(places.take(key))
        assert places.taken == 5
        for key in ("popular", "d"):
            with pytest.raises(NoPlace), places.take(key):
                pass
    assert places.taken == 0
    with places.take("popular"), pytest.raises(ValueError), places.take("popular"):
        raise ValueError
    assert places.taken == 0


def test_single_place_can_be_taken() -> None:
    places = Places(1)
    with places.take("a"), pytest.raises(NoPlace), places.take("b"):
        pass
