"""Settings: every fault is reported with its variable, all at once, and no secret is shown."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

import config
from config import Settings, SettingsError
from settings import parsers, reader
from settings.buckets import ObjectSettings
from settings.dotenv import Dotenv
from settings.keys import KeySettings
from settings.network import NetworkSettings
from settings.proxies import Proxy
from settings.servers import BackendSettings, HostingSettings, LlmSettings, PollinationsSettings

from .conftest import ROOT

URL = "https://api.example.com/v1"
KEY = "the-access-key"
LEAST = {"BACKEND_API_URLS": URL, "PROXY_ACCESS_KEY": KEY}
HOSTING = {"IMAGE_HOSTING_ENABLED": "true"}
S3_KEYS = {"S3_ACCESS_KEY_ID": "id", "S3_SECRET_ACCESS_KEY": "k"}
LLM = {
    "LLM_OPTIMIZATION_ENABLED": "true",
    "DE_NSFW_ENABLED": "true",
    "LLM_OPTIMIZATION_API_URL": "https://llm.example.com",
}


def read(**values: str) -> Settings:
    return config.parse({**LEAST, **values})


def read_llm(**values: str) -> LlmSettings:
    found = read(**LLM | values).llm
    assert found
    return found


def hosted_by(provider: str, **more: str) -> dict[str, str]:
    """Return HOSTING with a provider, and with settings without `IMAGE_HOSTING_` before them."""
    more = {f"IMAGE_HOSTING_{name}": value for name, value in more.items()}
    return {**HOSTING, "IMAGE_HOSTING_PROVIDER": provider, **more}


def faults(values: Mapping[str, str]) -> list[str]:
    """Return the faults of `values`, of which there is at least one."""
    with pytest.raises(SettingsError) as caught:
        config.parse(values)
    assert str(caught.value) == "\n  ".join(["Invalid settings:", *caught.value.faults])
    return caught.value.faults


def assert_fault(values: Mapping[str, str], variable: str, *reasons: str) -> None:
    (fault,) = faults({**LEAST, **values})
    name, _, sentence = fault.partition(": ")
    assert name == variable
    assert all(reason in sentence for reason in reasons), fault


# --- faults

RANGES = {
    "BLOCKED_RETRY_ATTEMPTS": ("0", "100"),
    "PORT": ("1", "65535"),
    "WORKERS": ("1", "256"),
    "THREADS": ("17", "4096"),
    "DRAWINGS": ("1", "1024"),
    "DRAWINGS_PER_DAY": ("0", "1000000000"),
    "CACHE_MAX_BYTES": ("0", str(10**18 - 1)),
    "NGINX_CACHE_SECONDS": ("0", "31536000"),
    "MAX_IMAGE_BYTES": ("1", str(2**31)),
    "MAX_PROMPT_LENGTH": ("1", "1000000"),
    "BLOCKED_TTL": ("0", "315360000"),
    **dict.fromkeys(("BACKEND_TIMEOUT", "LLM_TIMEOUT", "UPLOAD_TIMEOUT"), ("0.1", "86400")),
    "ANSWER_WITHIN": ("0.1", "86400"),
    "GENERATION_DEADLINE": ("0.1", "86400"),
    "PICTURE_QUALITY": ("1", "100"),
    "PICTURE_MAX_BYTES": ("1000", str(2**31)),
}


@pytest.mark.parametrize("name", RANGES)
def test_number_out_of_range_is_a_fault(name: str) -> None:
    low, high = RANGES[name]
    for text in (low, high, f" {high} "):
        assert getattr(read(**{name: text}), name.lower()) == json.loads(text)
    above = f"{high}.1" if "." in low else str(int(high) + 1)
    below = "0.09" if "." in low else str(int(low) - 1)
    for text in (above, below):
        assert_fault({name: text}, name, repr(text), f"from {low} to {high}")


def test_rounds_of_rewriting_are_bounded_too() -> None:
    assert read_llm(DE_NSFW_MAX_ATTEMPTS="20").safety_attempts == 20
    assert_fault({"DE_NSFW_MAX_ATTEMPTS": "21"}, "DE_NSFW_MAX_ATTEMPTS", "from 1 to 20")


NO_NUMBERS = ["abc", "1_000", "１２", "٣", "0x1", "+5", "1 0", "--1", "1e3", "nan", "9" * 400]


@pytest.mark.parametrize(
    ("name", "advice", "texts"),
    [
        ("PORT", "write an integer", [*NO_NUMBERS, "1.5"]),
        ("LLM_TIMEOUT", "write seconds", [*NO_NUMBERS, ".5", "5.", "10s"]),
    ],
)
def test_number_is_written_in_ascii_digits(name: str, advice: str, texts: list[str]) -> None:
    for text in texts:
        assert_fault({name: text}, name, repr(text), advice)


SWITCHES = (
    *("LLM_OPTIMIZATION_ENABLED", "DE_NSFW_ENABLED", "IMAGE_HOSTING_ENABLED"),
    *("POLLINATIONS_ENABLED", "ERROR_IMAGES", "METRICS"),
)
HEADERS = (
    *("CACHE_CONTROL", "AUTH_TOKEN", "LLM_OPTIMIZATION_TOKEN", "IMAGE_HOSTING_KEY"),
    *("POLLINATIONS_TOKEN", "S3_REGION", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"),
)
URLS = (
    *("BACKEND_API_URLS", "LLM_OPTIMIZATION_API_URL", "IMAGE_HOSTING_URL", "POLLINATIONS_URL"),
    "S3_ENDPOINT_URL",
)
MAPS = ("BACKEND_WEIGHTS", "TOKEN_MAP", "MODEL_MAP", "BACKEND_PARAMS", "BACKEND_PROXIES")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# For each variable, texts that it rejects.
REJECTED = {
    **dict.fromkeys(SWITCHES, ("maybe", "2", "truefalse")),
    **dict.fromkeys(HEADERS, ("schlüssel", "a\nb", "a\x7fb")),
    **dict.fromkeys(URLS, ("api.example.com/v1", "ftp://a")),
    **dict.fromkeys(MAPS, ("{", "[1]")),
    "LOG_LEVEL": ("verbose",),
    "HOST": ("http://0.0.0.0", "[::1]", "a b"),
    "IMAGE_HOSTING_PROVIDER": ("imgur",),
    "SIGNING_KEY": ("new, ,old",),
    "MODELS": ("a,,b", "a b", "a" * 101, "модель"),
    "CACHE_DIR": (__file__,),
    "PUBLIC_URL": ("pics.example.org", "ftp://a", "https://a/?b=1"),
    "PICTURE_NETWORKS": ("10.0.0.0/8,", "10.0.0.1/8", "lan", "10.0.0.0/33"),
    "CA_BUNDLE": ("/no/such/file", "/", __file__),
    "DATABASE_URL": ("mysql://host/db", "postgresql+psycopg://host/db", "host", "postgresql://a b"),
    "STORAGE_URL": (
        "bucket",
        "https://bucket",
        "s3://",
        "s3://b?x=1",
        "s3://b/a/../c",
        "s3://b//c",
    ),
    "PICTURE_FORMAT": ("gif", "avif"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_invalid_text_is_a_fault_of_its_variable(name: str) -> None:
    for text in REJECTED[name]:
        assert_fault({name: text}, name, "; ")


def test_all_faults_are_reported_together() -> None:
    bad = dict.fromkeys(RANGES, "?") | {name: texts[0] for name, texts in REJECTED.items()}
    # PROXY_ACCESS_KEY is missing.
    assert {fault.split(":")[0] for fault in faults(bad)} == {*bad, "PROXY_ACCESS_KEY"}


@pytest.mark.parametrize(
    ("text", "start", "reason"),
    [
        ("api.example.com/v1", "api.example.com…", "does not begin with http:// or https://"),
        ("localhost:8000", "localhost…", "does not begin with http:// or https://"),
        ("ftp://api.example.com", "ftp://api.example.com…", "does not begin with http:// or"),
        ("https:///v1", "https://…", "is not a valid URL"),
        ("https://host:0/v1", "https://host…", "is not a valid URL"),
        ("https://host:99999/v1", "https://host…", "is not a valid URL"),
        ("https://host:port/v1", "https://host…", "is not a valid URL"),
        ("https://[::1/v1", "https://[…", "is not a valid URL"),
        ("https://a b/v1", "https://a…", "contains white space"),
        ("https://host/a\tb", "https://host…", "contains white space"),
        (f"{URL},b.example.com", "b.example.com…", "does not begin with http:// or https://"),
    ],
)
def test_invalid_url_is_a_fault(text: str, start: str, reason: str) -> None:
    assert_fault({"BACKEND_API_URLS": text}, "BACKEND_API_URLS", repr(start), reason)


@pytest.mark.parametrize(
    ("values", "variable", "reason"),
    [
        ({"BACKEND_API_URLS": " "}, "BACKEND_API_URLS", "is not set"),
        ({"BACKEND_API_URLS": " , ,"}, "BACKEND_API_URLS", "names no backend"),
        ({"BACKEND_API_URLS": f"{URL}; https://b"}, "BACKEND_API_URLS", "by semicolons"),
        ({"PROXY_ACCESS_KEY": ""}, "PROXY_ACCESS_KEY", "is not set"),
        ({"BACKEND_WEIGHTS": f'{{"{URL}": 0}}'}, "BACKEND_WEIGHTS", "drains every backend"),
        ({"LLM_OPTIMIZATION_ENABLED": "1"}, "LLM_OPTIMIZATION_API_URL", "LLM_OPTIMIZATION_ENABLED"),
        ({"DE_NSFW_ENABLED": "1"}, "LLM_OPTIMIZATION_API_URL", "DE_NSFW_ENABLED needs it"),
        (HOSTING, "IMAGE_HOSTING_PROVIDER", "smms, picgo, cloudflare_imgbed"),
        (hosted_by("smms"), "IMAGE_HOSTING_KEY", "smms needs it"),
        (hosted_by("picgo", URL="https://host"), "IMAGE_HOSTING_KEY", "picgo needs it"),
        (hosted_by("picgo", KEY="k"), "IMAGE_HOSTING_URL", "picgo needs it"),
        (hosted_by("cloudflare_imgbed"), "IMAGE_HOSTING_URL", "cloudflare_imgbed needs it"),
        ({"DATABASE_URL": "postgresql://host"}, "STORAGE_URL", "DATABASE_URL needs it"),
        (S3_KEYS | {"STORAGE_URL": "s3://bucket"}, "DATABASE_URL", "STORAGE_URL needs it"),
        (S3_KEYS | hosted_by("s3", PUBLIC_URL="https://a"), "IMAGE_HOSTING_URL", "s3 needs it"),
        (S3_KEYS | hosted_by("s3", URL="s3://bucket"), "IMAGE_HOSTING_PUBLIC_URL", "s3 needs it"),
        *(
            (LLM | {name: "Improve {PROMPT}."}, name, "does not contain {ORIGINAL_PROMPT}")
            for name in ("LLM_OPTIMIZATION_TEMPLATE", "DE_NSFW_TEMPLATE")
        ),
    ],
)
def test_missing_setting_is_a_fault(values: dict[str, str], variable: str, reason: str) -> None:
    assert_fault(values, variable, reason)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON at character 2"),
        ("url=3", "is not JSON at character 1"),
        ("[" * 100_000, "is not JSON;"),
        ("[1]", "not an object"),
        ("null", "not an object"),
        ('{"api.example.com": 1}', "has a key that is not a URL"),
        ('{"https://user:word@b/v1?key=word": 1}', "'https://b/v1': is not a backend"),
    ],
)
def test_map_is_a_json_object_by_backend(name: str, text: str, reason: str) -> None:
    assert_fault({name: text}, name, reason)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        *(("BACKEND_WEIGHTS", value, "is not a number") for value in ('"2"', "true", "null")),
        ("BACKEND_WEIGHTS", "-1", "-1 is not usable"),
        ("BACKEND_WEIGHTS", "NaN", "nan is not usable"),
        ("BACKEND_WEIGHTS", "1e999", "inf is not usable"),
        ("BACKEND_WEIGHTS", "1" + "0" * 400, "is not usable"),
        *(("TOKEN_MAP", value, "is not a token") for value in ("1", '" "', "null")),
        ("TOKEN_MAP", '"schlüssel"', "printable ASCII"),
        ("MODEL_MAP", '"m"', "does not map model names"),
        ("MODEL_MAP", '{"m": 1}', "does not map model names"),
        *(
            ("BACKEND_PARAMS", value, "is not an object of objects")
            for value in ("1", "[]", '{"*": 1}', '{"*": {}, "m": null}')
        ),
        ("BACKEND_PARAMS", '{"*": {}, "m": {"prompt": "x"}}', "has the field 'prompt'"),
        ("BACKEND_PARAMS", '{"*": {"n": null}}', "has the field 'n'"),
        ("BACKEND_PARAMS", '{"*": {"model": 1}}', "has a model that is not a name"),
        ("BACKEND_PARAMS", '{"*": {"a": [NaN]}}', "has a value that JSON cannot hold"),
        ("BACKEND_PROXIES", "1", "is not a proxy"),
        ("BACKEND_PROXIES", '"ftp://secret@host"', "a proxy is http://, socks5:// or socks5h://"),
    ],
)
def test_invalid_value_in_a_map_is_a_fault(name: str, value: str, reason: str) -> None:
    assert_fault({name: f'{{"{URL}": {value}}}'}, name, repr(URL), reason)


def test_cache_has_room_for_the_largest_picture() -> None:
    values = {"CACHE_MAX_BYTES": "999", "MAX_IMAGE_BYTES": "1000"}
    assert_fault(values, "CACHE_MAX_BYTES", "999 is below MAX_IMAGE_BYTES (1000)")
    assert read(CACHE_MAX_BYTES="1000", MAX_IMAGE_BYTES="1000").cache_max_bytes == 1000


def test_every_invalid_entry_of_a_map_is_a_fault() -> None:
    weights = json.dumps({URL: -1, "https://b": "x", "https://c": 1})
    values = {"BACKEND_API_URLS": f"{URL},https://b", "BACKEND_WEIGHTS": weights}
    urls = [fault.split("'")[1] for fault in faults({**LEAST, **values})]
    assert urls == [URL, "https://b", "https://c"]


# --- the cache folder


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Run as somebody other than root, whom no permission stops."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_cache_folder_has_to_be_a_writable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in {
        "file": f"{str(tmp_path / 'file')!r} is not a folder",
        "file/below": f"{str(tmp_path / 'file')!r} is not a folder",
        "x" * 5000: "File name too long",
    }.items():
        assert_fault({"CACHE_DIR": str(tmp_path / path)}, "CACHE_DIR", reason)
    with unprivileged():
        assert_fault({"CACHE_DIR": "/new/cache"}, "CACHE_DIR", "'/' is not writable")


def test_default_cache_folder_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read().cache_dir == tmp_path / "image_file_cache"
    (tmp_path / "image_file_cache").touch()
    assert_fault({}, "CACHE_DIR", "is not a folder")


def test_cache_folder_need_not_exist(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert read(CACHE_DIR=str(folder)).cache_dir == folder
    assert not folder.parent.exists()


# --- values


def test_two_variables_are_enough() -> None:
    assert read() == Settings(
        backends=(BackendSettings(URL, 1.0, None, {}),),
        models=(),
        access_key=KEY,
        signing_keys=(),
        cache_dir=Path.cwd() / "image_file_cache",
        llm=None,
        hosting=None,
        pollinations=PollinationsSettings("https://image.pollinations.ai/prompt", None, None),
        network=NetworkSettings(None, {}, "", {}, ()),
        storage=None,
    )
    assert (read().threads, read().workers) == (512, config._usable_cores())


def test_workers_follow_the_cores_where_affinity_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert config._usable_cores() == 7


def test_blank_value_means_not_set() -> None:
    names = variables_read({**LEAST, **LLM, **HOSTING})
    assert read(**dict.fromkeys(names - LEAST.keys(), " \t")) == read()


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        read().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        *(("ERROR_IMAGES", text, True) for text in ("true", "TRUE", "1", "yes", "On")),
        *(("ERROR_IMAGES", text, False) for text in ("false", "False", "0", "no", "OFF")),
        ("LOG_LEVEL", "debug", "DEBUG"),
        *(("HOST", text, text) for text in ("0.0.0.0", "::", "fe80::1%eth0", "a-1.example.com")),
        ("PUBLIC_URL", "https://pics.example.org/", "https://pics.example.org"),
        ("PUBLIC_URL", "https://a.example.com/v1///", "https://a.example.com/v1"),
        ("PUBLIC_URL", "HTTP://a.example.com:8000/v1", "http://a.example.com:8000/v1"),
        ("PUBLIC_URL", "https://a/v1#part", "https://a/v1"),
        ("PUBLIC_URL", "http://[::1]:9/v1", "http://[::1]:9/v1"),
        ("PUBLIC_URL", "https://user:word@a/v1", "https://user:word@a/v1"),
    ],
)
def test_value_is_normalised(variable: str, text: str, value: object) -> None:
    assert getattr(read(**{variable: text}), variable.lower()) == value


def test_signing_keys_are_read_in_order() -> None:
    assert read(SIGNING_KEY=" new , old").signing_keys == ("new", "old")


def test_backend_listed_twice_is_one_backend() -> None:
    found = read(BACKEND_API_URLS="https://b/v1, https://a/v1/ ,,https://b/v1/,https://a/v1")
    assert [backend.url for backend in found.backends] == ["https://b/v1", "https://a/v1"]


def test_models_are_listed_once_or_those_of_every_model_map() -> None:
    maps = '{"https://a": {"x": "1", "y": "2"}, "https://b": {"z": "3", "x": "4"}}'
    values = {"BACKEND_API_URLS": "https://a,https://b", "MODEL_MAP": maps}
    assert read(**values).models == ("x", "y", "z")
    assert read(**values, MODELS="vendor/flux:1, x,vendor/flux:1").models == ("vendor/flux:1", "x")


def test_maps_find_their_backends_with_or_without_a_trailing_slash() -> None:
    found = read(
        BACKEND_API_URLS="https://a/v1/,https://b/v1,https://c/v1?x=1",
        AUTH_TOKEN="for-all",
        BACKEND_WEIGHTS='{"https://a/v1": 0.25, " https://b/v1/ ": 0, "https://c/v1/?x=1": 3}',
        TOKEN_MAP='{"https://b/v1//": " for-b "}',
        MODEL_MAP='{"https://a/v1/": {"dall-e-3": "flux"}}',
        BACKEND_PARAMS='{"https://c/v1/?x=1": {"*": {"watermark": false}}}',
    )
    assert found.backends == (
        BackendSettings("https://a/v1", 0.25, "for-all", {"dall-e-3": "flux"}, {}),
        BackendSettings("https://b/v1", 0.0, "for-b", {}, {}),
        BackendSettings("https://c/v1?x=1", 3.0, "for-all", {}, {"*": {"watermark": False}}),
    )


@pytest.mark.parametrize(
    "values",
    [
        {"AUTH_TOKEN": "t"},
        {"MODEL_MAP": f'{{"{URL}": {{"a": "b"}}}}'},
        {"BACKEND_PARAMS": f'{{"{URL}": {{"*": {{"moderation": "low"}}}}}}'},
        LLM,
    ],
)
def test_fingerprint_depends_on_what_may_undo_a_refusal(values: dict[str, str]) -> None:
    assert read(**values).fingerprint != read().fingerprint
    assert read(**values, PORT="1").fingerprint == read(**values).fingerprint


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "https://image.pollinations.ai/prompt"),
        ({"POLLINATIONS_TOKEN": "t"}, "https://gen.pollinations.ai/image"),
        ({"POLLINATIONS_URL": "http://own/image/"}, "http://own/image"),
        ({"POLLINATIONS_URL": "http://own", "POLLINATIONS_TOKEN": "t"}, "http://own"),
    ],
)
def test_pollinations_host_depends_on_the_token(values: dict[str, str], url: str) -> None:
    token = values.get("POLLINATIONS_TOKEN")
    assert read(**values).pollinations == PollinationsSettings(url, token, None)


def test_smms_has_a_default_url() -> None:
    default = HostingSettings("smms", "https://s.ee/api/v1/file/upload", "k", None)
    assert read(**hosted_by("SMMS", KEY="k")).hosting == default
    own = read(**hosted_by("SMMS", KEY="k", URL="https://own/")).hosting
    assert own == replace(default, url="https://own")


def test_imgbed_needs_only_its_url() -> None:
    found = read(**hosted_by("cloudflare_imgbed", URL="https://bed", AUTH_CODE="#1%")).hosting
    assert found == HostingSettings("cloudflare_imgbed", "https://bed", None, "#1%")


def test_bucket_as_image_host_needs_its_url_its_public_url_and_a_key() -> None:
    urls = {"URL": "s3://bucket/some/prefix/", "PUBLIC_URL": "https://img.example/pics/"}
    found = read(**S3_KEYS, **hosted_by("s3", **urls)).hosting
    bucket = ObjectSettings("s3://bucket/some/prefix", None, None, "id", "k")
    assert found == HostingSettings("s3", "", None, None, "https://img.example/pics", bucket)
    assert_fault(
        S3_KEYS | hosted_by("s3", **urls | {"URL": "gs://bucket"}), "IMAGE_HOSTING_URL", ""
    )
    off = hosted_by("s3") | {"IMAGE_HOSTING_ENABLED": "false"}
    assert read(**off).hosting is None


@pytest.mark.parametrize("name", S3_KEYS)
@pytest.mark.parametrize(
    "use",
    [
        {"DATABASE_URL": "postgresql://host/db", "STORAGE_URL": "s3://bucket"},
        hosted_by("s3", URL="s3://bucket", PUBLIC_URL="https://img.example"),
    ],
    ids=["storage", "hosting"],
)
def test_bucket_without_its_access_key_is_a_fault(use: dict[str, str], name: str) -> None:
    """The credentials would be looked for at an address of the cloud's own network."""
    assert_fault({**use, **S3_KEYS, name: ""}, name, "needs it")
    elsewhere = {"DATABASE_URL": "postgresql://host/db", "STORAGE_URL": "az://container/prefix"}
    assert read(**elsewhere).storage == ObjectSettings("az://container/prefix")


def test_setting_that_two_parts_need_is_reported_once() -> None:
    use = {"DATABASE_URL": "postgresql://host/db", "STORAGE_URL": "s3://bucket"}
    use |= hosted_by("s3", URL="s3://bucket", PUBLIC_URL="https://img.example")
    assert_fault({**use, **S3_KEYS, "S3_ENDPOINT_URL": "minio:9000"}, "S3_ENDPOINT_URL", "http://")


# --- the network


def test_proxies_are_read_as_curl_reads_them() -> None:
    found = read(
        https_proxy="small.example:1",
        HTTPS_PROXY="http://capital.example:2",
        http_proxy=" ",
        HTTP_PROXY="http://us%65r:p%40ss@capital.example",
        ALL_PROXY="socks5h://[::1]",
        no_proxy="lan",
        NO_PROXY="*",
    ).network
    assert found.proxies == {
        "https": Proxy("http", "small.example", 1),
        "http": Proxy("http", "capital.example", 80, "user", "p@ss"),
        "all": Proxy("socks5h", "::1", 1080),
    }
    assert found.no_proxy == "lan"


def test_backend_may_have_a_proxy_of_its_own_or_none() -> None:
    urls = ("https://a/v1", "https://b/v1", "https://c/v1", "https://d/v1")
    own = {"https://a/v1/": "http://proxy:1", "https://b/v1": None, "https://c/v1": ""}
    found = read(BACKEND_API_URLS=",".join(urls), BACKEND_PROXIES=json.dumps(own))
    expected = {urls[0]: Proxy("http", "proxy", 1), urls[1]: None, urls[2]: None}
    assert found.network.backend_proxies == expected


def test_one_server_has_one_proxy() -> None:
    values = {
        "BACKEND_API_URLS": "https://user:word@a/v1,https://a/v2",
        "BACKEND_PROXIES": '{"https://user:word@a/v1": "http://one", "https://a/v2": null}',
    }
    assert_fault(values, "BACKEND_PROXIES", "'https://a' has two proxies")


@pytest.mark.parametrize("name", [*PROXIES, *map(str.lower, PROXIES)])
def test_invalid_proxy_is_a_fault(name: str) -> None:
    assert_fault({name: "https://host"}, name, "a proxy is http://, socks5:// or socks5h://")
    assert_fault({name: "http://host:port"}, name, "the host or the port of a proxy is invalid")


@pytest.mark.parametrize(
    ("variable", "text", "extra"),
    [
        ("ALL_PROXY", "socks5://host", "socks"),
        ("DATABASE_URL", "postgresql://host/db", "cluster"),
        ("IMAGE_HOSTING_PROVIDER", "s3", "cluster"),
        ("METRICS", "true", "metrics"),
        ("PICTURE_FORMAT", "webp", "formats"),
        ("PICTURE_MAX_BYTES", "5000000", "formats"),
    ],
)
def test_missing_package_is_a_fault(
    variable: str, text: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (ROOT / f"requirements-{extra}.txt").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_fault({variable: text}, variable, f"pip install -r requirements-{extra}.txt")
    assert read(METRICS="false", PICTURE_FORMAT="original") == read()


def test_certificates_are_those_of_the_first_file_that_is_named(
    certificates: tuple[Path, Path],
) -> None:
    authority = str(certificates[0])
    values: dict[str, str] = {}
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CA_BUNDLE"):
        assert_fault({**values, name: "/no/such/file"}, name, "No such file or directory")
        values[name] = authority
        assert read(**values).network.ca_bundle == Path(authority)
        values[name] = "/not/read/where/another/name/goes/first"


def test_networks_of_pictures_are_a_list() -> None:
    found = read(PICTURE_NETWORKS="192.168.1.0/24, fd00::/8 ,10.0.0.7").network.picture_networks
    assert [str(network) for network in found] == ["192.168.1.0/24", "fd00::/8", "10.0.0.7/32"]


# --- several machines


def test_machines_share_a_database_and_a_bucket() -> None:
    found = read(
        DATABASE_URL="postgres://user@one,two:5433/pictures?target_session_attrs=read-write",
        STORAGE_URL="s3://bucket/some/prefix/",
        S3_ENDPOINT_URL="http://minio:9000/",
        S3_REGION="eu-central-1",
        **S3_KEYS,
    )
    assert found.database_url
    assert found.database_url.startswith("postgres://user@one,two:5433/")
    assert found.storage == ObjectSettings(
        "s3://bucket/some/prefix", "http://minio:9000", "eu-central-1", "id", "k"
    )
    assert "user" not in found.secrets()


def test_hosted_pictures_need_no_bucket() -> None:
    database = {"DATABASE_URL": "postgresql://host/pictures"}
    assert read(**database, **hosted_by("smms", KEY="k")).storage is None


def test_cache_of_a_single_machine_is_no_folder_for_copies(tmp_path: Path) -> None:
    values = {"DATABASE_URL": "postgresql://host/pictures", "STORAGE_URL": "gs://bucket"}
    assert read(**values, CACHE_DIR=str(tmp_path)).storage
    (tmp_path / "index.sqlite3").touch()
    assert_fault({**values, "CACHE_DIR": str(tmp_path)}, "CACHE_DIR", "cache import")


# --- templates


def test_template_is_read_only_for_what_is_enabled() -> None:
    both = read_llm()
    assert both.optimize_template == (ROOT / "prompts" / "optimize.txt").read_text("utf-8")
    assert both.safety_template == (ROOT / "prompts" / "safety.txt").read_text("utf-8")
    only_safety = read_llm(LLM_OPTIMIZATION_ENABLED="false", LLM_OPTIMIZATION_TEMPLATE="unused")
    assert only_safety == replace(both, optimize_template=None)
    assert read_llm(DE_NSFW_ENABLED="false").safety_template is None


def test_template_file_overrides_the_inline_template(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Besser:\n{ORIGINAL_PROMPT}\\n", "utf-8")
    inline = {"DE_NSFW_TEMPLATE": "Safe:\\n{ORIGINAL_PROMPT}\\n"}
    assert read_llm(**inline).safety_template == "Safe:\n{ORIGINAL_PROMPT}\n"
    found = read_llm(**inline, DE_NSFW_TEMPLATE_FILE=str(tmp_path / "t.txt"))
    # In a file a backslash is a backslash.
    assert found.safety_template == "Besser:\n{ORIGINAL_PROMPT}\\n"


@pytest.mark.parametrize("name", ["LLM_OPTIMIZATION_TEMPLATE", *config.SECRETS])
def test_unusable_file_is_a_fault(name: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff{ORIGINAL_PROMPT}")
    (tmp_path / "empty").write_text(" \n")
    for path, reason in {
        "none": "No such file or directory",
        ".": "Is a directory",
        "binary": "not UTF-8",
        "empty": "does not contain" if "TEMPLATE" in name else "names an empty file",
    }.items():
        values = LEAST | LLM | {f"{name}_FILE": str(tmp_path / path)}
        values.pop(name, None)
        (fault,) = faults(values)
        assert fault.startswith(f"{name}_FILE: ")
        assert reason in fault


# --- .env and the environment


@pytest.fixture
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the `.env` of the current folder, the only source of settings."""
    monkeypatch.chdir(tmp_path)
    for name in variables_read({**LEAST, **LLM, **HOSTING}):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".env"
    path.write_text(f"BACKEND_API_URLS={URL}\nPROXY_ACCESS_KEY={KEY}\nPORT=1000\nTHREADS=20\n")
    return path


def test_environment_overrides_dotenv(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "2000")
    found = config.load()
    assert (found.port, found.threads, found.access_key) == (2000, 20, KEY)


def test_dotenv_is_optional(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv.unlink()
    for name, value in LEAST.items():
        monkeypatch.setenv(name, value)
    assert config.load() == read()


def test_dotenv_may_contain_json_quotes_dollars_and_comments(dotenv: Path) -> None:
    with dotenv.open("a") as file:
        file.write(f'TOKEN_MAP={{"{URL}": "a$b"}}\n')
        file.write("# a comment\nexport LOG_LEVEL='debug'  # another\n")
        file.write("ADMIN_TOKEN=${PORT}x#y\nWORKERS\n")
    found = config.load()
    assert (found.backends[0].token, found.log_level) == ("a$b", "DEBUG")
    # Nothing is expanded: a token may contain a dollar sign.
    assert found.admin_token == "${PORT}x#y"


def test_dotenv_may_have_a_byte_order_mark_and_windows_line_ends(dotenv: Path) -> None:
    dotenv.write_bytes(b"\xef\xbb\xbf" + dotenv.read_bytes().replace(b"\n", b"\r\n"))
    assert (config.load().backends[0].url, config.load().access_key) == (URL, KEY)


def test_unreadable_dotenv_is_a_fault(dotenv: Path) -> None:
    dotenv.write_bytes(b"PROXY_ACCESS_KEY=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env: cannot be read \(not UTF-8\)"):
        config.load()
    dotenv.unlink()
    dotenv.mkdir()  # as Docker makes one to mount where there is no file
    with pytest.raises(SettingsError, match=r"\.env: cannot be read \(Is a directory\)"):
        config.load()


def test_secret_in_the_environment_overrides_both_forms_in_dotenv(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dotenv.parent / "secret").write_text("from-file\n")
    with dotenv.open("a") as file:
        file.write("ADMIN_TOKEN_FILE=/no/such/file\n")
    monkeypatch.setenv("PROXY_ACCESS_KEY_FILE", "secret")
    monkeypatch.setenv("ADMIN_TOKEN", "from-environment")
    found = config.load()
    assert (found.access_key, found.admin_token) == ("from-file", "from-environment")


# --- access keys


def test_named_keys_have_limits_of_their_own() -> None:
    text = '{"blog": {"key": " k1 ", "per_day": 0, "expires": "2027-01-31"}, "手机": {"key": "k2"}}'
    found = read(ACCESS_KEYS=text, DRAWINGS_PER_DAY="5")
    blog = KeySettings("blog", "k1", 0, datetime.date(2027, 1, 31))
    assert found.access_keys == (blog, KeySettings("手机", "k2"))
    assert (found.all_access_keys, found.drawings_per_day) == ((KEY, "k1", "k2"), 5)


def test_named_keys_may_replace_the_shared_one() -> None:
    text = '{"blog": {"key": "0123456789abcdef"}}'
    found = config.parse({"BACKEND_API_URLS": URL, "ACCESS_KEYS": text})
    assert (found.access_key, found.warnings) == (None, ())
    (fault,) = faults({"BACKEND_API_URLS": URL, "ACCESS_KEYS": "{}"})
    assert fault.startswith("PROXY_ACCESS_KEY: is not set")
    (fault,) = faults({"BACKEND_API_URLS": URL, "ACCESS_KEYS": "nonsense"})
    assert fault.startswith("ACCESS_KEYS: is not JSON")


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("[]", ["not an object", "per_day"]),
        ('{"blog": "k"}', ["not an object", "per_day"]),
        ('{"blog": {"key": "k", "perday": 5}}', ["besides key, per_day and expires"]),
        ('{"blog": {"per_day": 5}}', ["'blog'", "has no key"]),
        ('{"blog": {"key": " "}}', ["'blog'", "has no key"]),
        ('{"blog": {"key": 5}}', ["'blog'", "has no key"]),
        *(
            (f'{{"blog": {{"key": "k", "per_day": {wrong}}}}}', ["'blog'", "per_day"])
            for wrong in ("-1", "1.5", '"5"', "true", "1000000001")
        ),
        *(
            (f'{{"blog": {{"key": "k", "expires": {wrong}}}}}', ["'blog'", "expires"])
            for wrong in ('"2027-02-30"', '"20270131"', '"2027-W04-7"', "2027", '"soon"')
        ),
        ('{"a": {"key": "k"}, "b": {"key": "k"}}', ["'b'", "'a'", "same key"]),
        (f'{{"a": {{"key": "{KEY}"}}}}', ["'a'", "'PROXY_ACCESS_KEY'", "same key"]),
        *(
            (f'{{"{name}": {{"key": "k"}}}}', ["unusable name"])
            for name in ("", " a", "a:b", "x" * 41, "PROXY_ACCESS_KEY", r"a\nb")
        ),
    ],
)
def test_faulty_access_key_is_named_with_the_reason(text: str, reasons: list[str]) -> None:
    assert_fault({"ACCESS_KEYS": text}, "ACCESS_KEYS", *reasons)


# --- warnings

STRONG = {"PROXY_ACCESS_KEY": "0123456789abcdef", "SIGNING_KEY": "0123456789abcdef"}


def warnings_of(values: Mapping[str, str], dotenv: str = "") -> list[str]:
    values = {**LEAST, **STRONG, **values}
    return list(config.parse(values, Dotenv(dotenv)).warnings)


def test_long_keys_cause_no_warning() -> None:
    example = FILLED + re.sub("(?m)^#([A-Z0-9_]+=)", r"\1", EXAMPLE)
    assert warnings_of({"AUTH_TOKEN": "none"}, f"{example}COMPOSE_PROJECT_NAME=x") == []


def test_short_secrets_cause_one_warning() -> None:
    named = '{"blog": {"key": "short"}}'
    short = {"PROXY_ACCESS_KEY": "demo", "SIGNING_KEY": "0123456789abcdef,old"}
    (warning,) = warnings_of({**short, "ACCESS_KEYS": named})
    assert warning.startswith("PROXY_ACCESS_KEY, ACCESS_KEYS, SIGNING_KEY: under 16 characters")


def test_missing_signing_key_causes_a_warning() -> None:
    (warning,) = warnings_of({"SIGNING_KEY": ""})
    assert warning.startswith("SIGNING_KEY: is not set")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("POLLINATIONS_ENABLE", "POLLINATIONS_ENABLED"),
        ("BACKEND_API_URL", "BACKEND_API_URLS"),
        ("DE_NSFW_TEMPLATES", "DE_NSFW_TEMPLATE"),
        ("ADMIN_TOKEN_FILES", "ADMIN_TOKEN_FILE"),
        ("port", "PORT"),
    ],
)
def test_misspelt_name_in_dotenv_causes_a_warning(name: str, meant: str) -> None:
    (warning,) = warnings_of({}, f"{name}=x")
    assert warning == f"{name}: is in .env but is not a setting; did you mean {meant}?"


@pytest.mark.parametrize("line", ["ADMIN_TOKEN=abc #def", " export ADMIN_TOKEN = a b\t# c"])
def test_secret_that_is_cut_by_a_comment_causes_a_warning(line: str) -> None:
    (warning,) = warnings_of({}, f"X='\n'\n{line}\n")
    assert warning.startswith("ADMIN_TOKEN: ends before the # in .env")
    for whole in ("'abc #def'", '"abc #def"', "abc#def", "#abc", ""):
        assert warnings_of({}, f"ADMIN_TOKEN={whole}\n#x") == []


# --- secrets

# Every secret, each with a text of its own.
SECRET_VALUES = {
    "PROXY_ACCESS_KEY": "secret-of-proxy",
    "ACCESS_KEYS": '{"blog": {"key": "secret-of-blog"}, "phone": {"key": "secret-of-phone"}}',
    "ADMIN_TOKEN": "secret-of-admin",
    "SIGNING_KEY": "secret-of-signing, secret-of-old-signing",
    "AUTH_TOKEN": "secret-of-auth",
    "TOKEN_MAP": '{"https://a/v1": "secret-of-map"}',
    "IMAGE_HOSTING_KEY": "secret-of-hosting",
    "IMAGE_HOSTING_AUTH_CODE": "secret-of-code",
    "LLM_OPTIMIZATION_TOKEN": "secret-of-llm",
    "POLLINATIONS_TOKEN": "secret-of-pollinations",
    "BACKEND_PROXIES": '{"https://a/v1": "http://user:secret-of-own-proxy@proxy"}',
    "https_proxy": "http://user:secret-of-proxy-for-all@proxy",
    "ALL_PROXY": "http://secret-as-user-of-proxy@proxy",
    "DATABASE_URL": "postgresql://u:secret-of%2Fdatabase@db/pictures?sslpassword=secret-of-tls",
    "STORAGE_URL": "s3://bucket",
    "S3_ACCESS_KEY_ID": "secret-as-key-id",
    "S3_SECRET_ACCESS_KEY": "secret-of-bucket",
    "BACKEND_API_URLS": "https://a/v1,https://user:secret-in-url@b/v1,https://secret-as-user@c",
    "LLM_OPTIMIZATION_API_URL": "https://u:secret-in-llm-url@llm",
    "IMAGE_HOSTING_URL": "https://u:secret-in%2Dhosting-url@host",
    "POLLINATIONS_URL": "https://u:secret-in-pollinations-url@p",
    "IMAGE_HOSTING_PROVIDER": "smms",
    **HOSTING,
    "LLM_OPTIMIZATION_ENABLED": "true",
}
SECRET_TEXTS = set(re.findall(r"secret-[\w%-]+", " ".join(SECRET_VALUES.values())))


def test_every_secret_can_be_read_from_a_file(tmp_path: Path) -> None:
    values = dict(SECRET_VALUES)
    for name in config.SECRETS:
        # With the byte order mark that Windows editors write.
        (tmp_path / name).write_text(f"\ufeff  {values.pop(name)}\r\n\n", "utf-8")
        values[f"{name}_FILE"] = str(tmp_path / name)
    assert config.parse(values) == config.parse(SECRET_VALUES)


def test_secret_set_twice_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    values = {"ADMIN_TOKEN": "a", "ADMIN_TOKEN_FILE": str(tmp_path / "secret")}
    assert_fault(values, "ADMIN_TOKEN_FILE", "ADMIN_TOKEN is set too")


def test_settings_know_their_secrets() -> None:
    found = config.parse(SECRET_VALUES).secrets()
    assert set(found) == SECRET_TEXTS | {"secret-in-hosting-url", "secret-of/database"}
    assert list(found) == sorted(found, key=len, reverse=True)


def test_no_secret_is_in_a_repr() -> None:
    settings = config.parse(SECRET_VALUES)
    parts = (settings, *settings.backends, settings.llm, settings.hosting, settings.pollinations)
    assert "smms" in repr(settings)
    assert "s3://bucket" in repr(settings)
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
        {"ACCESS_KEYS": '{"blog": "secret"}'},
        {"ACCESS_KEYS": '{"secret": "blog"}'},
        {"ACCESS_KEYS": '{"blog": {"secret": 50}}'},
        {"ACCESS_KEYS": '{"blog": {"key": "secret", "per_day": "secret", "expires": 1}}'},
        {"ACCESS_KEYS": '{"a": {"key": "secret"}, "b": {"key": "secret"}}'},
        *(
            {name: url}
            for name in PROXIES
            for url in ("https://user:secret@host", "user:secret@host:port", "http://secret@")
        ),
        {"BACKEND_PROXIES": '{"https://a/v1": "http://user:secret@host:port"}'},
        *({"DATABASE_URL": url} for url in ("mysql://u:secret@h", "postgresql://u: secret@h")),
        {"STORAGE_URL": "s3://key:secret@bucket"},
        *(
            {"BACKEND_API_URLS": url}
            for url in (
                *("https://user:1secret@host:port", "https://user:1sec/secret@host"),
                *("https://user:1sec#secret@host", "https://user:1sec?secret@host"),
                *("https://user:1sec@secret@host:port", "https://user:1 secret@host"),
                *("https://user:secret,1@host", "https://user:1,secret@host:port"),
                *("user:secret@host/v1", "ftp://user:secret@host/v1"),
                *("https://host:port/v1?key=secret", "host/v1?key=secret", "https:// host/secret"),
            )
        ),
    ],
)
def test_no_secret_is_in_a_fault(values: dict[str, str]) -> None:
    assert "secret" not in " ".join(faults(values))


def test_printable_url_has_no_credentials() -> None:
    url = "https://user:word@a.example.com:8/v1?key=word#word"
    assert parsers.printable_url(url) == "https://a.example.com:8/v1"


def logged(settings: Settings, message: str, *args: Any, **more: Any) -> str:
    """Return what the redacting formatter makes of a message."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(config.RedactingFormatter(settings, "%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(message, *args, **more)
    return stream.getvalue()


def test_log_contains_no_secret() -> None:
    settings = config.parse(SECRET_VALUES)
    line = logged(settings, "a %s b", " ".join(sorted(SECRET_TEXTS)))
    assert line == f"ERROR a {' '.join(['***'] * len(SECRET_TEXTS))} b\n"


def test_log_contains_no_percent_encoded_secret() -> None:
    settings = read(PROXY_ACCESS_KEY="ä/b c&d#e")
    line = logged(settings, "/%%C3%%A4%%2Fb%%20c%%26d%%23e and %s", "ä/b c&d#e")
    assert line == "ERROR /*** and ***\n"


def test_log_contains_no_credential_of_a_url() -> None:
    line = logged(read(), "GET /prompt/a?width=5&key=abc&sig=def&seed=1 'http://h/?authCode=g%%23'")
    assert line == "ERROR GET /prompt/a?width=5&key=***&sig=***&seed=1 'http://h/?authCode=***'\n"


def test_log_contains_no_secret_in_a_traceback() -> None:
    settings = read(ADMIN_TOKEN="token-of-admin")
    try:
        raise ValueError("bad token-of-admin at /?key=any")
    except ValueError:
        text = logged(settings, "it failed", exc_info=True)
    assert "Traceback" in text
    assert text.endswith("ValueError: bad *** at /?key=***\n")


def test_very_short_secret_does_not_garble_the_log() -> None:
    assert logged(read(ADMIN_TOKEN="a"), "a message") == "ERROR a message\n"


# --- .env.example

EXAMPLE = (ROOT / ".env.example").read_text("utf-8")
FILLED = re.sub("(?m)^(BACKEND_API_URLS|PROXY_ACCESS_KEY)=$", lambda m: m[0] + LEAST[m[1]], EXAMPLE)


def variables_read(values: Mapping[str, str]) -> set[str]:
    """Return the name of every variable that parsing `values` looks at."""
    names = set()

    class Recorder(reader.Reader):
        def is_set(self, name: str) -> bool:
            names.add(name)
            return super().is_set(name)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SettingsError):
        patch.setattr(config, "Reader", Recorder)
        config.parse(values)
    return names


def test_example_lists_every_setting_and_no_other() -> None:
    names = variables_read({**LEAST, **LLM, **HOSTING})
    listed = re.findall(r"(?m)^#?([A-Z0-9_]+)=", EXAMPLE)
    other_names = {f"{name}_FILE" for name in config.SECRETS}
    other_names |= {name for name in names if name.islower()}
    other_names |= {"REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}
    assert sorted(listed) == sorted(names - other_names)


def parsed(text: str) -> Settings:
    found = dotenv_values(stream=StringIO(text), interpolate=False)
    return config.parse({name: value or "" for name, value in found.items()})


def test_example_works_with_two_lines_filled_in() -> None:
    assert re.findall(r"(?m)^[^#\n].*", EXAMPLE) == ["BACKEND_API_URLS=", "PROXY_ACCESS_KEY="]
    assert parsed(FILLED) == read()


def test_example_shows_the_real_defaults() -> None:
    assert parsed(re.sub(r"(?m)^#([A-Z0-9_]+=)", r"\1", FILLED)) == read()
    # Each alone too, with everything enabled.
    on = LLM | hosted_by("smms", KEY="k")
    for name, value in re.findall(r"(?m)^#([A-Z0-9_]+)=(.+)$", EXAMPLE):
        if name not in on:
            assert read(**on, **{name: value}) == read(**on), name


def test_example_explains_each_setting_on_the_line_above() -> None:
    lines = EXAMPLE.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?[A-Z0-9_]+=", line):
            above = lines[number - 1]
            assert re.match(r"# [A-Z]", above), line
            assert line.startswith("#") == ("Default: " in above), line
            is_secret = re.sub(r"^#|=.*", "", line) in config.SECRETS
            assert is_secret == above.startswith("# Secret. "), line
