"""Settings: every fault named, all at once, and no secret told."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

import config
from config import LlmSettings, Settings, SettingsError

from .conftest import ROOT

URL = "https://api.example.com/v1"
KEY = "the-access-key"
LEAST = {"BACKEND_API_URLS": URL, "PROXY_ACCESS_KEY": KEY}
HOSTING = {"IMAGE_HOSTING_ENABLED": "true"}
LLM = {
    "LLM_OPTIMIZATION_ENABLED": "true",
    "DE_NSFW_ENABLED": "true",
    "LLM_OPTIMIZATION_API_URL": "https://llm.example.com",
}
NOBODY = 65534


def read(**values: str) -> Settings:
    return config.parse({**LEAST, **values})


def faults_of(values: Mapping[str, str]) -> list[str]:
    """Return the faults of `values`; fail where there is none."""
    with pytest.raises(SettingsError) as caught:
        config.parse(values)
    return caught.value.faults


def llm_of(**values: str) -> LlmSettings:
    found = read(**{**LLM, **values}).llm
    assert found
    return found


# --- faults -------------------------------------------------------------------------------------

INTEGERS = {
    "BLOCKED_RETRY_ATTEMPTS": (0, 100),
    "PORT": (1, 65535),
    "WORKERS": (1, 256),
    "THREADS": (17, 4096),
    "CACHE_MAX_BYTES": (0, 10**18 - 1),
    "NGINX_CACHE_SECONDS": (0, 31536000),
    "MAX_IMAGE_BYTES": (1, 2**31),
    "MAX_PROMPT_LENGTH": (1, 1_000_000),
    "DE_NSFW_MAX_ATTEMPTS": (1, 20),
}
SECONDS = {
    "BLOCKED_TTL": ("0", "315360000"),
    "BACKEND_TIMEOUT": ("0.1", "86400"),
    "LLM_TIMEOUT": ("0.1", "86400"),
    "UPLOAD_TIMEOUT": ("0.1", "86400"),
    "GENERATION_DEADLINE": ("0.1", "86400"),
}
SWITCHES = (
    "LLM_OPTIMIZATION_ENABLED",
    "DE_NSFW_ENABLED",
    "IMAGE_HOSTING_ENABLED",
    "POLLINATIONS_ENABLED",
    "ERROR_IMAGES",
)
HEADERS = (
    "CACHE_CONTROL",
    "AUTH_TOKEN",
    "LLM_OPTIMIZATION_TOKEN",
    "IMAGE_HOSTING_KEY",
    "POLLINATIONS_TOKEN",
)
URLS = (
    "BACKEND_API_URLS",
    "LLM_OPTIMIZATION_API_URL",
    "IMAGE_HOSTING_URL",
    "POLLINATIONS_URL",
    "PUBLIC_URL",
)
MAPS = ("BACKEND_WEIGHTS", "TOKEN_MAP", "MODEL_MAP")


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "text", ["abc", "1.5", "1_000", "１２", "٣", "0x1", "+5", "1 0", "--1", "9" * 400]
)
def test_what_is_no_integer_is_a_fault(name: str, text: str) -> None:
    low, high = INTEGERS[name]
    sentence = f"{name}: {text!r} is not usable; write an integer from {low} to {high}"
    assert faults_of({**LEAST, name: text}) == [sentence]


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_out_of_range_is_a_fault(name: str) -> None:
    low, high = INTEGERS[name]
    for number in (low - 1, high + 1):
        sentence = f"{name}: '{number}' is not usable; write an integer from {low} to {high}"
        assert faults_of({**LEAST, name: str(number)}) == [sentence]
    for number in (low, high):
        settings = read(**{**LLM, name: f" {number} "})
        found = settings.llm if name == "DE_NSFW_MAX_ATTEMPTS" else settings
        attribute = "safety_attempts" if found is settings.llm else name.lower()
        assert getattr(found, attribute) == number


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "text", ["abc", "-1", "1e3", "1_0", ".5", "5.", "inf", "nan", "٣", "10s", "9" * 400]
)
def test_what_is_no_time_is_a_fault(name: str, text: str) -> None:
    low, high = SECONDS[name]
    sentence = f"{name}: {text!r} is not usable; write seconds, from {low} to {high}"
    assert faults_of({**LEAST, name: text}) == [sentence]


@pytest.mark.parametrize("name", SECONDS)
def test_a_time_out_of_range_is_a_fault(name: str) -> None:
    low, high = SECONDS[name]
    assert faults_of({**LEAST, name: f"{high}.1"})[0].endswith(f"from {low} to {high}")
    if low != "0":
        assert faults_of({**LEAST, name: "0.09"})[0].startswith(f"{name}: '0.09' is not usable")
    assert getattr(read(**{name: high}), name.lower()) == float(high)
    assert getattr(read(**{name: low}), name.lower()) == float(low)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("text", ["maybe", "2", "tru", "truefalse"])
def test_what_is_neither_true_nor_false_is_a_fault(name: str, text: str) -> None:
    sentence = f"{name}: {text!r} is neither true nor false; write true or false"
    assert faults_of({**LEAST, name: text}) == [sentence]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("text", ["schlüssel", "a\nb", "a\x7fb", "令牌"])
def test_what_no_header_can_carry_is_a_fault(name: str, text: str) -> None:
    sentence = f"{name}: holds what no HTTP header can carry; write printable ASCII only"
    assert faults_of({**LEAST, name: text}) == [sentence]


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("api.example.com/v1", "'api.example.com' … has no http:// or https:// and host"),
        ("localhost:8000", "'localhost' … has no http:// or https:// and host"),
        ("ftp://api.example.com", "'ftp://api.example.com' … has no http:// or https:// and host"),
        ("https:///v1", "'https://' … has no http:// or https:// and host"),
        ("https://host:0/v1", "'https://host' … has no http:// or https:// and host"),
        ("https://host:99999/v1", "'https://host' … is not a URL"),
        ("https://host:port/v1", "'https://host' … is not a URL"),
        ("https://[::1/v1", "'https://[' … is not a URL"),
        ("https://a b/v1", "'https://a' … holds white space"),
        ("https://host/a\tb", "'https://host' … holds white space"),
    ],
)
def test_what_is_no_url_is_a_fault(name: str, text: str, what: str) -> None:
    sentence = f"{name}: {what}; write https://host/path"
    assert faults_of({**LEAST, name: text}) == [sentence]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (
            {"BACKEND_API_URLS": " "},
            "BACKEND_API_URLS: is not set; write one or more URLs with commas between them",
        ),
        (
            {"BACKEND_API_URLS": " , ,"},
            "BACKEND_API_URLS: names no backend; write one or more URLs with commas between them",
        ),
        (
            {"BACKEND_API_URLS": f"{URL},b.example.com"},
            "BACKEND_API_URLS: 'b.example.com' … has no http:// or https:// and host; "
            "write https://host/path",
        ),
        (
            {"PROXY_ACCESS_KEY": ""},
            "PROXY_ACCESS_KEY: is not set; write a long random text, which clients send as ?key=",
        ),
        (
            {"SIGNING_KEY": "new, ,old"},
            "SIGNING_KEY: holds an empty key; write one or more with commas between them",
        ),
        (
            {"HOST": "http://0.0.0.0"},
            "HOST: 'http://0.0.0.0' is not an address; write one such as 0.0.0.0 or ::",
        ),
        (
            {"HOST": "[::1]"},
            "HOST: '[::1]' is not an address; write one such as 0.0.0.0 or ::",
        ),
        (
            {"LOG_LEVEL": "verbose"},
            "LOG_LEVEL: 'verbose' is not known; write one of DEBUG, INFO, WARNING, ERROR",
        ),
        (
            {"IMAGE_HOSTING_PROVIDER": "imgur"},
            "IMAGE_HOSTING_PROVIDER: 'imgur' is not known; "
            "write one of smms, picgo, cloudflare_imgbed",
        ),
        (
            HOSTING,
            "IMAGE_HOSTING_PROVIDER: is not set; write one of smms, picgo, cloudflare_imgbed",
        ),
        (
            {**HOSTING, "IMAGE_HOSTING_PROVIDER": "smms"},
            "IMAGE_HOSTING_KEY: is not set; smms needs it: write its API key",
        ),
        (
            {
                **HOSTING,
                "IMAGE_HOSTING_PROVIDER": "picgo",
                "IMAGE_HOSTING_URL": "https://host",
            },
            "IMAGE_HOSTING_KEY: is not set; picgo needs it: write its API key",
        ),
        (
            {**HOSTING, "IMAGE_HOSTING_PROVIDER": "picgo", "IMAGE_HOSTING_KEY": "k"},
            "IMAGE_HOSTING_URL: is not set; picgo needs it: write https://host",
        ),
        (
            {**HOSTING, "IMAGE_HOSTING_PROVIDER": "cloudflare_imgbed"},
            "IMAGE_HOSTING_URL: is not set; cloudflare_imgbed needs it: write https://host",
        ),
        (
            {"LLM_OPTIMIZATION_ENABLED": "true"},
            "LLM_OPTIMIZATION_API_URL: is not set; "
            "LLM_OPTIMIZATION_ENABLED needs it: write https://host/v1",
        ),
        (
            {"DE_NSFW_ENABLED": "true"},
            "LLM_OPTIMIZATION_API_URL: is not set; DE_NSFW_ENABLED needs it: write https://host/v1",
        ),
        (
            {**LLM, "LLM_OPTIMIZATION_TEMPLATE": "Improve it."},
            "LLM_OPTIMIZATION_TEMPLATE: has no {ORIGINAL_PROMPT}; "
            "write it where the prompt belongs",
        ),
        (
            {**LLM, "DE_NSFW_TEMPLATE": "{PROMPT}"},
            "DE_NSFW_TEMPLATE: has no {ORIGINAL_PROMPT}; write it where the prompt belongs",
        ),
        (
            {"BACKEND_WEIGHTS": f'{{"{URL}": 0}}'},
            "BACKEND_WEIGHTS: drains every backend; leave one above 0",
        ),
    ],
)
def test_fault_names_the_variable_and_what_to_write(values: dict[str, str], fault: str) -> None:
    assert faults_of({**LEAST, **values}) == [fault]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", 'is not JSON at character 2; write {"https://backend/v1": …}'),
        ("url=3", 'is not JSON at character 1; write {"https://backend/v1": …}'),
        ("[" * 100_000, 'is not JSON; write {"https://backend/v1": …}'),
        ("[1]", 'is JSON but not an object; write {"https://backend/v1": …}'),
        ("3", 'is JSON but not an object; write {"https://backend/v1": …}'),
        ("null", 'is JSON but not an object; write {"https://backend/v1": …}'),
        ('{"api.example.com": 1}', 'has a key that is no URL; write {"https://backend/v1": …}'),
        (
            '{"https://user:word@other.example.com/v1?key=word": 1}',
            "'https://other.example.com/v1': is not a backend; "
            "write a URL that BACKEND_API_URLS holds",
        ),
    ],
)
def test_what_is_no_map_of_backends_is_a_fault(name: str, text: str, fault: str) -> None:
    assert faults_of({**LEAST, name: text}) == [f"{name}: {fault}"]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("BACKEND_WEIGHTS", '"2"', "is not a number; write a number from 0 to 1000000"),
        ("BACKEND_WEIGHTS", "true", "is not a number; write a number from 0 to 1000000"),
        ("BACKEND_WEIGHTS", "null", "is not a number; write a number from 0 to 1000000"),
        ("BACKEND_WEIGHTS", "-1", "-1 is not usable; write a number from 0 to 1000000"),
        ("BACKEND_WEIGHTS", "NaN", "nan is not usable; write a number from 0 to 1000000"),
        ("BACKEND_WEIGHTS", "1e999", "inf is not usable; write a number from 0 to 1000000"),
        (
            "BACKEND_WEIGHTS",
            "1" + "0" * 400,
            f"1{'0' * 400} is not usable; write a number from 0 to 1000000",
        ),
        ("TOKEN_MAP", "1", "is not a token; write a text in quotes"),
        ("TOKEN_MAP", '" "', "is not a token; write a text in quotes"),
        ("TOKEN_MAP", "null", "is not a token; write a text in quotes"),
        (
            "TOKEN_MAP",
            '"schlüssel"',
            "holds what no HTTP header can carry; write printable ASCII only",
        ),
        ("MODEL_MAP", '"m"', 'is not a map of models; write {"model": "mapped model"}'),
        ("MODEL_MAP", '{"m": 1}', 'is not a map of models; write {"model": "mapped model"}'),
    ],
)
def test_bad_value_in_a_map_is_a_fault(name: str, value: str, fault: str) -> None:
    values = {**LEAST, name: f'{{"{URL}": {value}}}'}
    assert faults_of(values) == [f"{name}: '{URL}': {fault}"]


def test_every_bad_entry_of_a_map_is_named() -> None:
    other = "https://b.example.com"
    weights = json.dumps({URL: -1, other: "x", "https://c": 1})
    found = faults_of({**LEAST, "BACKEND_API_URLS": f"{URL},{other}", "BACKEND_WEIGHTS": weights})
    assert [fault.split(";")[0] for fault in found] == [
        f"BACKEND_WEIGHTS: '{URL}': -1 is not usable",
        f"BACKEND_WEIGHTS: '{other}': is not a number",
        "BACKEND_WEIGHTS: 'https://c': is not a backend",
    ]


def test_every_fault_is_told_at_once() -> None:
    bad = {
        **dict.fromkeys([*INTEGERS, *SECONDS, *SWITCHES], "?"),
        **dict.fromkeys(HEADERS, "ü"),
        **dict.fromkeys(URLS, "?"),
        **dict.fromkeys(MAPS, "?"),
        "LOG_LEVEL": "?",
        "HOST": "?",
        "IMAGE_HOSTING_PROVIDER": "?",
        "CACHE_DIR": __file__,
    }
    with pytest.raises(SettingsError) as caught:
        config.parse(bad)
    # The access key is not set at all.
    assert {fault.split(":")[0] for fault in caught.value.faults} == {*bad, "PROXY_ACCESS_KEY"}
    count = len(bad) + 1
    head, *lines = str(caught.value).split("\n")
    assert head == f"Prompt Image Proxy cannot start: {count} faults in its settings."
    assert lines == [f"  {fault}" for fault in caught.value.faults]


def test_single_fault_is_counted_in_the_singular() -> None:
    assert str(SettingsError(["PORT: no"])) == (
        "Prompt Image Proxy cannot start: 1 fault in its settings.\n  PORT: no"
    )


def test_faults_of_what_is_switched_off_are_told_too() -> None:
    found = faults_of({**LEAST, "IMAGE_HOSTING_KEY": "ü", "LLM_OPTIMIZATION_API_URL": "x"})
    assert [fault.split(":")[0] for fault in found] == [
        "LLM_OPTIMIZATION_API_URL",
        "IMAGE_HOSTING_KEY",
    ]


# --- the folder of the cache --------------------------------------------------------------------


def test_cache_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = f"CACHE_DIR: {str(tmp_path / 'file')!r} is not a folder; write the path of one"
    assert faults_of({**LEAST, "CACHE_DIR": str(tmp_path / "file")}) == [told]
    assert faults_of({**LEAST, "CACHE_DIR": str(tmp_path / "file" / "below")}) == [told]


def test_cache_folder_that_no_system_can_name_is_a_fault() -> None:
    found = faults_of({**LEAST, "CACHE_DIR": "x" * 5000})
    assert found == ["CACHE_DIR: cannot be used (File name too long); write the path of a folder"]


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be somebody else than root, whom no permission stops."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_cache_folder_that_cannot_be_made_is_a_fault() -> None:
    with unprivileged():
        found = faults_of({**LEAST, "CACHE_DIR": "/not-to-be-made/cache"})
    told = "CACHE_DIR: '/' is not ours to write to; write the path of a folder that is"
    assert found == [told]


def test_cache_folder_need_not_exist_yet(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert read(CACHE_DIR=str(folder)).cache_dir == folder
    assert not folder.parent.exists()


# --- values -------------------------------------------------------------------------------------


def test_two_variables_are_enough_and_the_rest_has_its_defaults() -> None:
    assert read() == Settings(
        backends=(config.BackendSettings(URL, 1.0, None, {}),),
        access_key=KEY,
        admin_token=None,
        blocked_retry_attempts=2,
        host="127.0.0.1",
        port=8080,
        workers=len(os.sched_getaffinity(0)),
        threads=128,
        cache_dir=Path.cwd() / "image_file_cache",
        cache_max_bytes=10737418240,
        cache_control="public, max-age=31536000, immutable",
        blocked_ttl=86400.0,
        nginx_cache_seconds=10,
        backend_timeout=120.0,
        llm_timeout=30.0,
        upload_timeout=30.0,
        generation_deadline=180.0,
        max_image_bytes=33554432,
        max_prompt_length=4000,
        llm=None,
        hosting=None,
        pollinations=config.PollinationsSettings(
            "https://image.pollinations.ai/prompt", None, None
        ),
        signing_keys=(),
        public_url=None,
        error_images=True,
        log_level="INFO",
    )


def test_blank_value_means_not_set() -> None:
    asked = asked_for({**LEAST, **LLM, **HOSTING})
    assert read(**dict.fromkeys(asked - LEAST.keys(), " \t")) == read()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        read().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "TRUE", "1", "yes", "On")),
        *((text, False) for text in ("false", "False", "0", "no", "OFF")),
    ],
)
def test_switch_is_read_as_people_write_it(text: str, value: bool) -> None:
    assert bool(read(POLLINATIONS_ENABLED=text).pollinations) is value


def test_choice_is_read_in_any_case() -> None:
    assert read(LOG_LEVEL="debug").log_level == "DEBUG"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "fe80::1%eth0", "proxy-1.example.com"])
def test_host_is_an_address_or_a_name(host: str) -> None:
    assert read(HOST=host).host == host


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("https://a.example.com/", "https://a.example.com"),
        ("https://a.example.com/v1///", "https://a.example.com/v1"),
        ("HTTP://a.example.com:8000/v1", "http://a.example.com:8000/v1"),
        ("https://a/openai/?api-version=1", "https://a/openai?api-version=1"),
        ("https://a/v1#part", "https://a/v1"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1"),
        ("https://user:word@a/v1", "https://user:word@a/v1"),
    ],
)
def test_url_is_kept_without_trailing_slash_and_fragment(written: str, read_as: str) -> None:
    assert [backend.url for backend in read(BACKEND_API_URLS=written).backends] == [read_as]


def test_backend_named_twice_is_one_backend() -> None:
    found = read(BACKEND_API_URLS="https://b/v1, https://a/v1/ ,,https://b/v1/,https://a/v1")
    assert [backend.url for backend in found.backends] == ["https://b/v1", "https://a/v1"]


def test_maps_reach_their_backends_whatever_the_trailing_slash() -> None:
    found = read(
        BACKEND_API_URLS="https://a/v1/,https://b/v1,https://c/v1?x=1",
        AUTH_TOKEN="for-all",
        BACKEND_WEIGHTS='{"https://a/v1": 0.25, " https://b/v1/ ": 0, "https://c/v1/?x=1": 3}',
        TOKEN_MAP='{"https://b/v1//": " for-b "}',
        MODEL_MAP='{"https://a/v1/": {"dall-e-3": "flux"}}',
    )
    assert [(b.url, b.weight, b.token, b.models) for b in found.backends] == [
        ("https://a/v1", 0.25, "for-all", {"dall-e-3": "flux"}),
        ("https://b/v1", 0.0, "for-b", {}),
        ("https://c/v1?x=1", 3.0, "for-all", {}),
    ]


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "https://image.pollinations.ai/prompt"),
        ({"POLLINATIONS_TOKEN": "t"}, "https://gen.pollinations.ai/image"),
        ({"POLLINATIONS_URL": "http://own/image/"}, "http://own/image"),
        ({"POLLINATIONS_URL": "http://own", "POLLINATIONS_TOKEN": "t"}, "http://own"),
    ],
)
def test_pollinations_host_follows_the_token(values: dict[str, str], url: str) -> None:
    found = read(**values).pollinations
    assert found
    assert (found.url, found.token) == (url, values.get("POLLINATIONS_TOKEN"))


def test_smms_is_at_its_successor_unless_told_otherwise() -> None:
    values = {**HOSTING, "IMAGE_HOSTING_PROVIDER": "SMMS", "IMAGE_HOSTING_KEY": "k"}
    default = config.HostingSettings("smms", "https://s.ee/api/v1/file/upload", "k", None)
    assert read(**values).hosting == default
    own = read(**values, IMAGE_HOSTING_URL="https://own/").hosting
    assert own == config.HostingSettings("smms", "https://own", "k", None)


def test_several_signing_keys_are_read_in_order() -> None:
    assert read(SIGNING_KEY=" new , old").signing_keys == ("new", "old")
    assert read(PUBLIC_URL="https://pics.example.org/").public_url == "https://pics.example.org"


def test_imgbed_needs_only_its_url() -> None:
    values = {**HOSTING, "IMAGE_HOSTING_PROVIDER": "cloudflare_imgbed"}
    found = read(**values, IMAGE_HOSTING_URL="https://bed", IMAGE_HOSTING_AUTH_CODE="#1%").hosting
    assert found == config.HostingSettings("cloudflare_imgbed", "https://bed", None, "#1%")


# --- templates ----------------------------------------------------------------------------------


def test_default_templates_are_those_in_the_prompts_folder() -> None:
    found = llm_of()
    assert found.optimize_template == (ROOT / "prompts" / "optimize.txt").read_text("utf-8")
    assert found.safety_template == (ROOT / "prompts" / "safety.txt").read_text("utf-8")
    assert found.optimize_template != found.safety_template


def test_template_is_read_only_for_what_is_switched_on() -> None:
    only_safety = llm_of(LLM_OPTIMIZATION_ENABLED="false", LLM_OPTIMIZATION_TEMPLATE="unused")
    assert only_safety.optimize_template is None
    assert only_safety.safety_template
    assert llm_of(DE_NSFW_ENABLED="false").safety_template is None


def test_inline_template_has_newlines_for_backslash_n() -> None:
    found = llm_of(DE_NSFW_TEMPLATE="Safe:\\n\\n{ORIGINAL_PROMPT}\\n")
    assert found.safety_template == "Safe:\n\n{ORIGINAL_PROMPT}\n"


def test_template_file_goes_before_the_inline_one(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Besser:\n{ORIGINAL_PROMPT}\\n", "utf-8")
    found = llm_of(
        LLM_OPTIMIZATION_TEMPLATE_FILE=str(tmp_path / "t.txt"),
        LLM_OPTIMIZATION_TEMPLATE="inline {ORIGINAL_PROMPT}",
    )
    # In a file a backslash is a backslash.
    assert found.optimize_template == "Besser:\n{ORIGINAL_PROMPT}\\n"


@pytest.mark.parametrize("name", ["LLM_OPTIMIZATION_TEMPLATE_FILE", "DE_NSFW_TEMPLATE_FILE"])
def test_unusable_template_file_is_a_fault(name: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff{ORIGINAL_PROMPT}")
    (tmp_path / "empty").touch()
    end = "write the path of a text file"
    for path, fault in {
        "none": f"cannot be read (No such file or directory); {end}",
        ".": f"cannot be read (Is a directory); {end}",
        "binary": f"cannot be read (it is not a text in UTF-8); {end}",
        "empty": "has no {ORIGINAL_PROMPT}; write it where the prompt belongs",
    }.items():
        values = {**LEAST, **LLM, name: str(tmp_path / path)}
        assert faults_of(values) == [f"{name}: {fault}"]


# --- .env and the environment -------------------------------------------------------------------


@pytest.fixture
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the `.env` of a folder to start in, and forget this shell's settings."""
    monkeypatch.chdir(tmp_path)
    for name in asked_for({**LEAST, **LLM, **HOSTING}):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".env"
    path.write_text(f"BACKEND_API_URLS={URL}\nPROXY_ACCESS_KEY={KEY}\nPORT=1000\nTHREADS=20\n")
    return path


def test_environment_wins_over_dotenv(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "2000")
    found = config.load()
    assert (found.port, found.threads, found.access_key) == (2000, 20, KEY)


def test_no_dotenv_is_no_fault(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv.unlink()
    for name, value in LEAST.items():
        monkeypatch.setenv(name, value)
    assert config.load() == read()


def test_dotenv_holds_json_quotes_dollars_and_comments(dotenv: Path) -> None:
    with dotenv.open("a") as file:
        file.write(f'TOKEN_MAP={{"{URL}": "a$b"}}\n')
        file.write("# a comment\nexport LOG_LEVEL='debug'  # another\n")
        file.write("ADMIN_TOKEN=${PORT}x#y\nWORKERS\n")
    found = config.load()
    assert found.backends[0].token == "a$b"
    assert found.log_level == "DEBUG"
    # Nothing is put in for a variable: a token may hold a dollar sign.
    assert found.admin_token == "${PORT}x#y"


def test_dotenv_of_a_windows_editor_is_read(dotenv: Path) -> None:
    dotenv.write_bytes(b"\xef\xbb\xbf" + dotenv.read_bytes().replace(b"\n", b"\r\n"))
    assert (config.load().backends[0].url, config.load().access_key) == (URL, KEY)


def test_unreadable_dotenv_is_a_fault(dotenv: Path) -> None:
    dotenv.write_bytes(b"PROXY_ACCESS_KEY=\xff\xfe")
    with pytest.raises(SettingsError) as caught:
        config.load()
    told = ".env: cannot be read (it is not a text in UTF-8); write a text file"
    assert caught.value.faults == [told]


def test_secret_file_of_the_environment_replaces_the_secret_in_dotenv(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dotenv.parent / "secret").write_text("from-file\n")
    monkeypatch.setenv("PROXY_ACCESS_KEY_FILE", "secret")
    assert config.load().access_key == "from-file"


def test_secret_of_the_environment_replaces_the_secret_file_in_dotenv(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dotenv.open("a") as file:
        file.write("ADMIN_TOKEN_FILE=/no/such/file\n")
    monkeypatch.setenv("ADMIN_TOKEN", "from-environment")
    assert config.load().admin_token == "from-environment"


# --- secrets ------------------------------------------------------------------------------------

# Everything that is secret, each as a text that stands nowhere else.
SECRET_VALUES = {
    "PROXY_ACCESS_KEY": "secret-of-proxy",
    "ADMIN_TOKEN": "secret-of-admin",
    "SIGNING_KEY": "secret-of-signing, secret-of-old-signing",
    "AUTH_TOKEN": "secret-of-auth",
    "TOKEN_MAP": '{"https://a/v1": "secret-of-map"}',
    "IMAGE_HOSTING_KEY": "secret-of-hosting",
    "IMAGE_HOSTING_AUTH_CODE": "secret-of-code",
    "LLM_OPTIMIZATION_TOKEN": "secret-of-llm",
    "POLLINATIONS_TOKEN": "secret-of-pollinations",
    "BACKEND_API_URLS": "https://a/v1,https://user:secret-in-url@b/v1,https://secret-as-user@c",
    "LLM_OPTIMIZATION_API_URL": "https://u:secret-in-llm-url@llm",
    "IMAGE_HOSTING_URL": "https://u:secret-in%2Dhosting-url@host",
    "POLLINATIONS_URL": "https://u:secret-in-pollinations-url@p",
    "IMAGE_HOSTING_PROVIDER": "smms",
    **HOSTING,
    "LLM_OPTIMIZATION_ENABLED": "true",
}
SECRET_TEXTS = set(re.findall(r"secret-[\w%-]+", " ".join(SECRET_VALUES.values())))


def test_every_secret_can_come_from_a_file(tmp_path: Path) -> None:
    values = dict(SECRET_VALUES)
    for name in config.SECRETS:
        (tmp_path / name).write_text(f"  {values.pop(name)}\n\n", "utf-8")
        values[f"{name}_FILE"] = str(tmp_path / name)
    assert config.parse(values) == config.parse(SECRET_VALUES)


def test_mark_at_the_beginning_of_a_secret_file_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbfkey\r\n")
    found = config.parse({"BACKEND_API_URLS": URL, "PROXY_ACCESS_KEY_FILE": str(tmp_path / "key")})
    assert found.access_key == "key"


@pytest.mark.parametrize("name", config.SECRETS)
def test_unusable_secret_file_is_a_fault(name: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").touch()
    (tmp_path / "blank").write_text(" \n")
    end = "write the path of a text file"
    for path, fault in {
        "none": f"cannot be read (No such file or directory); {end}",
        ".": f"cannot be read (Is a directory); {end}",
        "binary": f"cannot be read (it is not a text in UTF-8); {end}",
        "empty": "names an empty file; put the secret into it",
        "blank": "names an empty file; put the secret into it",
    }.items():
        values = {**LEAST, f"{name}_FILE": str(tmp_path / path)}
        values.pop(name, None)
        assert faults_of(values) == [f"{name}_FILE: {fault}"]


@pytest.mark.parametrize("name", config.SECRETS)
def test_secret_given_twice_is_a_fault(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    value = SECRET_VALUES[name].replace("https://a/v1", URL)
    values = {**LEAST, name: value, f"{name}_FILE": str(tmp_path / "secret")}
    assert faults_of(values) == [f"{name}_FILE: {name} is set too; write one of the two"]


def test_settings_know_every_secret_they_hold() -> None:
    found = config.parse(SECRET_VALUES).secrets()
    assert set(found) == SECRET_TEXTS | {"secret-in-hosting-url"}
    assert list(found) == sorted(found, key=len, reverse=True)


def test_no_secret_is_in_a_repr() -> None:
    settings = config.parse(SECRET_VALUES)
    parts = (settings, *settings.backends, settings.llm, settings.hosting, settings.pollinations)
    assert "smms" in repr(settings)
    assert "secret" not in " ".join(map(repr, parts))


@pytest.mark.parametrize(
    "values",
    [
        {**SECRET_VALUES, "PORT": "x"},
        {name: f"sëcret {value}" for name, value in SECRET_VALUES.items()},
        {"TOKEN_MAP": '{"https://a/v1": "secret'},
        {"TOKEN_MAP": '{"secret": "https://a/v1"}'},
        {"TOKEN_MAP": '{"https://a/v1": ["secret"]}'},
        {"TOKEN_MAP": '{"https://user:secret@a/v1?key=secret": "secret"}'},
        {"TOKEN_MAP": '"secret"'},
        *(
            {"BACKEND_API_URLS": url}
            for url in (
                "https://user:1secret@host:port",
                "https://user:1sec/secret@host",
                "https://user:1sec#secret@host",
                "https://user:1sec?secret@host",
                "https://user:1sec@secret@host:port",
                "https://user:1 secret@host",
                "https://user:secret,1@host",
                "https://user:1,secret@host:port",
                "user:secret@host/v1",
                "ftp://user:secret@host/v1",
                "https://host:port/v1?key=secret",
                "host/v1?key=secret",
                "https:// host/secret",
            )
        ),
    ],
)
def test_no_secret_is_in_a_fault(values: dict[str, str]) -> None:
    faults = faults_of(values)
    assert faults
    assert "secret" not in " ".join(faults)


def logged(settings: Settings, message: str, *args: Any, **more: Any) -> str:
    """Return what a log with the redacting formatter holds after one message."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(config.RedactingFormatter(settings, "%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(message, *args, **more)
    return stream.getvalue()


def test_log_holds_no_secret_of_the_settings() -> None:
    settings = config.parse(SECRET_VALUES)
    line = logged(settings, "a %s b", " ".join(sorted(SECRET_TEXTS)))
    assert line == f"ERROR a {' '.join(['***'] * len(SECRET_TEXTS))} b\n"


def test_log_holds_no_secret_as_a_url_writes_it() -> None:
    settings = read(PROXY_ACCESS_KEY="ä/b c&d#e")
    line = logged(settings, "/%%C3%%A4%%2Fb%%20c%%26d%%23e and %s", "ä/b c&d#e")
    assert line == "ERROR /*** and ***\n"


def test_log_holds_no_credential_of_a_url() -> None:
    line = logged(read(), "GET /prompt/a?width=5&key=abc&sig=def&seed=1 'http://h/?authCode=g%%23'")
    assert line == "ERROR GET /prompt/a?width=5&key=***&sig=***&seed=1 'http://h/?authCode=***'\n"


def test_log_holds_no_secret_in_a_traceback() -> None:
    settings = read(ADMIN_TOKEN="token-of-admin")
    try:
        raise ValueError("bad token-of-admin at /?key=any")
    except ValueError:
        text = logged(settings, "it failed", exc_info=True)
    assert "Traceback" in text
    assert text.endswith("ValueError: bad *** at /?key=***\n")


def test_very_short_secret_does_not_garble_the_log() -> None:
    assert logged(read(ADMIN_TOKEN="a"), "a message") == "ERROR a message\n"


# --- .env.example -------------------------------------------------------------------------------

EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
FILLED = re.sub("(?m)^(BACKEND_API_URLS|PROXY_ACCESS_KEY)=$", lambda m: m[0] + LEAST[m[1]], EXAMPLE)


def asked_for(values: Mapping[str, str]) -> set[str]:
    """Return the name of every variable that parsing `values` looks at."""
    asked = set()

    class Reader(config._Reader):
        def is_set(self, name: str) -> bool:
            asked.add(name)
            return super().is_set(name)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SettingsError):
        patch.setattr(config, "_Reader", Reader)
        config.parse(values)
    return asked


def test_example_lists_every_setting_and_no_other() -> None:
    asked = asked_for({**LEAST, **LLM, **HOSTING}) - {f"{name}_FILE" for name in config.SECRETS}
    listed = re.findall(r"(?m)^#?([A-Z_]+)=", EXAMPLE)
    assert sorted(listed) == sorted(asked)


def parsed(text: str) -> Settings:
    found = dotenv_values(stream=StringIO(text), interpolate=False)
    return config.parse({name: value or "" for name, value in found.items()})


def test_example_becomes_a_working_env_with_two_lines_filled_in() -> None:
    assert re.findall(r"(?m)^[^#\n].*", EXAMPLE) == ["BACKEND_API_URLS=", "PROXY_ACCESS_KEY="]
    assert parsed(FILLED) == read()


def test_example_shows_the_real_defaults() -> None:
    assert parsed(re.sub(r"(?m)^#([A-Z_]+=)", r"\1", FILLED)) == read()
    # Each by itself too, with everything switched on.
    on = {**LLM, **HOSTING, "IMAGE_HOSTING_PROVIDER": "smms", "IMAGE_HOSTING_KEY": "k"}
    for name, value in re.findall(r"(?m)^#([A-Z_]+)=(.+)$", EXAMPLE):
        if name not in on:
            assert read(**on, **{name: value}) == read(**on), name


def test_example_explains_each_setting_on_the_line_above() -> None:
    lines = EXAMPLE.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?[A-Z_]+=", line):
            above = lines[number - 1]
            assert re.match(r"# [A-Z]", above), line
            assert line.startswith("#") == ("Default: " in above), line
            is_secret = re.sub(r"^#|=.*", "", line) in config.SECRETS
            assert is_secret == above.startswith("# Secret. "), line


# --- gunicorn -----------------------------------------------------------------------------------


def test_gunicorn_prints_all_faults_and_no_traceback(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PORT": "http",
            "BACKEND_API_URLS": "nowhere",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode not in (0, -1)
    assert run.stdout == ""
    assert run.stderr == (
        "Prompt Image Proxy cannot start: 3 faults in its settings.\n"
        "  BACKEND_API_URLS: 'nowhere' … has no http:// or https:// and host; "
        "write https://host/path\n"
        "  PROXY_ACCESS_KEY: is not set; write a long random text, which clients send as ?key=\n"
        "  PORT: 'http' is not usable; write an integer from 1 to 65535\n"
    )
