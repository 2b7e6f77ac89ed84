"""Faults in documents: keys in any spelling and URLs that do not open, each with a reason."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.document_faults import BROKEN, DocumentFault, Examiner
from commands.documents import FoundUrl

BASE = "https://pics.example.org"
KEY = "a-long+secret of_钥匙&co"


def find_faults(text: str, keys: list[str]) -> list[tuple[int, DocumentFault]]:
    """Return what is wrong with a document whose URLs open if they have credentials."""

    def why_closed(found: FoundUrl) -> str | None:
        return None if found.credentials else "closed"

    examined = Examiner(why_closed, keys, BASE).examine(text)
    return [(line, one) for line, one in examined if isinstance(one, DocumentFault)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{BASE}/prompt/a?key=k&width=5000", "The parameter width must be"),
        (f"{BASE}/prompt/a?key=k&key=x", "The parameter key is given twice."),
        (f"{BASE}/prompt/a b?key=k", "the URL ends at ' ', which must be percent-encoded"),
        (f"{BASE}/other?key=k.", "the URL does not begin with"),
        ("https://other.example/prompt/a?key=k", "the URL does not begin with"),
        (f"{BASE}/prompt/a?q=a-key=k", "closed"),
        (f"{BASE}/prompt/a?sig=s&q=a-key=k", "the key is not a parameter of its own"),
        (f"{BASE}/prompt/a?key=k", "its key was not replaced"),
        (f"{BASE}/prompt/a?key=k&#38width=9", "the URL does not name a picture"),
        ("![](/prompt/a?key=k)", "the key is not part of a URL"),
        (f"{BASE}/prompt/a?sig=s\nkey=k", "the key is not part of a URL"),
        ('curl -H "Authorization: bearer  k"', "the key is not part of a URL"),
    ],
)
def test_key_that_is_left_has_a_reason(text: str, reason: str) -> None:
    [(line, left)] = find_faults(f"{BASE}/prompt/a?key=kx k\n{text}", ["k"])
    assert line == 2 + text.count("\n")
    assert left.reason.startswith(reason)


@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False))
def test_key_is_found_in_any_spelling(random: Random) -> None:
    def percent_encoded(letter: str) -> str:
        if letter not in " +&" and random.random() < 0.5:
            return letter
        return "".join(random.choice(("%{:02x}", "%{:02X}")).format(b) for b in letter.encode())

    def referenced(letter: str) -> str:
        forms = ("{0}", "{0}", "&#{1};", "&#0{1};", "&#x{1:x};", "&#X{1:X};")
        return random.choice(forms).format(letter, ord(letter))

    encoded = "".join(map(percent_encoded, f"key={KEY}"))
    written = "".join(map(referenced, encoded))
    text = f"\n{BASE}/prompt/a?width=9&amp;{written}\n"
    assert [line for line, _ in find_faults(text, ["k", KEY])] == [2]


@pytest.mark.parametrize(
    "text",
    [
        f'OPENAI_API_KEY="{KEY}"',
        f"{BASE}/prompt/a?key=a-long%2Bsecret%20of\\_钥匙%26co",
        "https://proxy.example/?u=https%3A%2F%2Fx%2Fprompt%2Fa%3Fkey%3Dk",
        f"{BASE}/prompt/a?key=a-long%2Bsecret+of_%E9%92%A5%E5%8C%99%26co",
        "".join(f"{letter}\0" for letter in "?key=k"),
        json.dumps(f"OPENAI_API_KEY={KEY}"),
        r'<script>u = "/prompt/a?width=9\x26key\u003dk"</script>',
    ],
)
def test_key_is_found_wherever_it_stands(text: str) -> None:
    assert len(find_faults(text, ["k", KEY])) == 1


def test_short_key_is_an_ordinary_word_elsewhere() -> None:
    text = f"k is a letter; {BASE}/prompt/k?style=k&turkey=k key=k2 Bearer k-2"
    assert find_faults(text, ["k"]) == [(1, DocumentFault("closed", BROKEN))]
