"""Parsers of settings: text in; a value out, or what is wrong and what to write."""

import datetime
import json
import math
import os
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from settings import maps, table
from settings import parsers as p
from settings.maps import KeySettings, named_keys

Parse = Callable[[Any], Any]

MAP = '{"https://backend/v1": …}'

NETWORKS = ip_network("192.168.1.0/24"), ip_network("::1")
URLS = p.listed(p.base_url)
DATED = '{"a": {"key": "b", "per_day": 0, "expires": "2027-01-31"}}'
PARSED: list[tuple[Parse, dict[str, Any]]] = [
    (p.integer(-1, 65535), {"-1": -1, "0": 0, "65535": 65535}),
    (p.seconds(0.1), {"0.1": 0.1, "86400": 86400.0}),
    (p.boolean, dict.fromkeys(("true", "TRUE", "1", "yes", "On"), True)),
    (p.boolean, dict.fromkeys(("false", "False", "0", "no", "OFF"), False)),
    (p.one_of("DEBUG", "INFO"), {"debug": "DEBUG"}),
    (p.host, {text: text for text in ("0.0.0.0", "::", "fe80::1%eth0", "a-1.example.com")}),
    (p.url_without_query, {"https://a.example.com/v1///": "https://a.example.com/v1"}),
    (p.url_without_query, {"HTTP://a.example:80/v1#part": "http://a.example:80/v1"}),
    (p.url_without_query, {"http://user:word@[::1]:9/v1": "http://user:word@[::1]:9/v1"}),
    (p.base_url, {"https://c/v1/?x=1": "https://c/v1?x=1"}),
    (URLS, {"https://b/v, https://a ,,https://b/v/,": ("https://b/v", "https://a")}),
    (p.listed(str), {"new , old": ("new", "old")}),
    (p.listed(p.model), {"vendor/flux:1, x,vendor/flux:1": ("vendor/flux:1", "x")}),
    (p.bucket_url, {url: url.rstrip("/") for url in ("s3://ab/c/d/", "gs://ab", "az://ab/c")}),
    (p.hosting_url, {"s3://bucket/": "s3://bucket", "https://bed/": "https://bed"}),
    (p.database_url, {url: url for url in ("postgresql://h", "postgres://u@one,two:5433/db?a=b")}),
    (p.listed(p.network), {"192.168.1.0/24, ::1": NETWORKS}),
    (p.absolute_path, {"/a/b": Path("/a/b"), "a": Path.cwd() / "a"}),
    (named_keys, {'{"手机": {"key": " k "}}': (KeySettings("手机", "k"),)}),
    (named_keys, {DATED: (KeySettings("a", "b", 0, datetime.date(2027, 1, 31)),)}),
]


@pytest.mark.parametrize(("parse", "values"), PARSED)
def test_text_becomes_a_value(parse: Parse, values: dict[str, Any]) -> None:
    for text, value in values.items():
        assert parse(text) == value


NO_NUMBERS = ("abc", "1_000", "１２", "٣", "0x1", "+5", "1 0", "--1", "1e3", "nan", "9" * 400)
NO_URL = "does not begin with http:// or https://"


NO_BUCKET = "is not the URL of a bucket"


def named(field: str, *values: Any) -> tuple[str, ...]:
    """Return ACCESS_KEYS with one key, once for each of these values of a field."""
    return tuple(json.dumps({"a": {"key": "k", field: value}}) for value in values)


# A parser, what is wrong, and texts or values of which that is true.
REJECTED: list[tuple[Parse, str, tuple[Any, ...]]] = [
    (p.integer(17, 99), "write an integer from 17 to 99", ("16", "100", "1.5", *NO_NUMBERS)),
    (p.seconds(0.1), "from 0.1 to 86400", ("0.09", "86400.1", ".5", "5.", "10s", *NO_NUMBERS)),
    (p.boolean, "write true or false", ("maybe", "2", "truefalse")),
    (p.one_of("a", "b"), "write one of a, b", ("c",)),
    (p.host, "is not an address", ("http://0.0.0.0", "[::1]", "a b")),
    (p.header_value, "write printable ASCII only", ("schlüssel", "a\nb", "a\x7fb")),
    (p.base_url, f"'api.example.com…' {NO_URL}", ("api.example.com/v1",)),
    (p.base_url, f"'ftp://a…' {NO_URL}", ("ftp://a/b",)),
    (p.base_url, f"'localhost…' {NO_URL}", ("localhost:8000",)),
    (p.base_url, "'https://…' is not a valid URL", ("https:///v1",)),
    (p.base_url, "'https://[…' is not a valid URL", ("https://[::1/v1",)),
    (p.base_url, "'https://host…' is not a valid URL", ("https://host:0", "https://host:99999/v1")),
    (p.base_url, "'https://a…' contains white space", ("https://u:password@a/v1 https://b",)),
    (p.base_url, "is not a valid URL", ("https://*.a.com", "https://ａpi.com", "https://日本_語")),
    (p.base_url, "is not a valid URL", ("https://u:密码@host/v1", "https://[::1]x/v1")),
    (p.base_url, "contains white space", ("https://a b/v1", "https://host/a\tb")),
    (URLS, "names nothing", (", ,",)),
    (URLS, "'https://a;…' separates URLs by ';' instead of ','", ("https://a; https://b",)),
    (URLS, "separates URLs by '，' instead of ','", ("https://a/v1，https://b/v1",)),
    (URLS, f"'b.example.com…' {NO_URL}", ("https://a,b.example.com",)),
    (p.url_without_query, "has a query", ("https://a/?b=1",)),
    (p.hosting_url, NO_URL, ("gs://bucket", "bed")),
    (p.bucket_url, NO_BUCKET, ("bucket", "https://bucket", "s3://", "s3://b?x=1")),
    (p.bucket_url, NO_BUCKET, ("s3://b/a/../c", "s3://b//c", "s3://k:s@b")),
    (p.database_url, "is not the URL of a PostgreSQL database", ("mysql://h/d", "host")),
    (p.database_url, "%2F for /", ("postgres://u:p#x@h/d", "postgres://u:p/x@h", "postgres://[@h")),
    (p.database_url, "PostgreSQL database", ("postgresql+x://h", "postgresql://a b")),
    (p.listed(p.model), "has a name that no URL can contain", ("a b", "a" * 101, "модель")),
    (p.listed(p.network), "is not a network", ("10.0.0.1/8", "lan", "10.0.0.0/33")),
    (p.certificates, "cannot be read (No such file or directory)", ("/no/such/file",)),
    (p.certificates, "contains no certificate", (__file__,)),
    (p.json_object, f"is not JSON at character 2; write {MAP}", ("{",)),
    (p.json_object, "at character 2 ('“' is not ASCII);", ('{“https://a”: "b"}',)),
    (p.json_object, "is not JSON;", ("[" * 100_000, '{"a": [NaN]}', '{"a": 1e999}')),
    (p.json_object, "not an object", ("[1]", "null")),
    (maps.llm_parameters, 'write {"enable_thinking": false}', ("{", "[]")),
    (maps.llm_parameters, "which no setting replaces", ('{"messages": []}',)),
    (maps.llm_parameters, "a model that is not a name", ('{"model": 5}',)),
    (named_keys, "not an object; write", ("[]", '{"blog": "k"}')),
    (named_keys, "besides key, per_day and expires", named("perday", 5)),
    (named_keys, "'a': has no key", (*named("key", None, " ", 5), '{"a": {}}')),
    (named_keys, "'a': per_day is not usable", named("per_day", -1, 1.5, "5", True, 10**9 + 1)),
    (named_keys, "'a': expires is not a day", named("expires", "2027-02-30", 2027, "soon")),
    *(
        (named_keys, "has an unusable name", (json.dumps({name: {"key": "k"}}),))
        for name in ("", " a", "a:b", "x" * 41, "PROXY_ACCESS_KEY", "a\nb")
    ),
    # Of JSON, for a backend.
    (maps.number(0, 9, float), "is not usable", ("2", True, None, -1, math.nan, 10**400)),
    (maps.token, "is not a token", (1, " ", None)),
    (maps.token, "printable ASCII", ("schlüssel",)),
    (maps.model_names, "does not map model names", ("m", {"m": 1})),
    (maps.parameters, "is not an object of objects", (1, [], {"*": {}, "m": None})),
    (maps.parameters, "has the field 'prompt'", ({"*": {}, "m": {"prompt": "x"}},)),
    (maps.parameters, "has the field 'n'", ({"*": {"n": None}},)),
    (maps.parameters, "has the field 'messages'", ({"*": {"messages": []}},)),
    (maps.parameters, "has a model that is not a name", ({"*": {"model": 1}},)),
    (maps.headers, "is not an object of headers", ("X-A: 1", ["X-A"], {})),
    (maps.headers, "a name that no header can have", ({"": "1"}, {"X A": "1"}, {"X\n": "1"})),
    (maps.headers, "has the header 'host'", ({"X-A": "1", "host": "1"},)),
    (maps.headers, "has the header 'Content-Length'", ({"Content-Length": "1"},)),
    (maps.headers, "has the header 'Transfer-Encoding'", ({"Transfer-Encoding": "1"},)),
    (maps.headers, "has a header without a value", ({"X-A": 1}, {"X-A": " "})),
    (maps.headers, "printable ASCII", ({"X-A": "1\r\nX-B: 2"}, {"X-A": "1\n"}, {"X-A": "é"})),
    (maps.number(1, 1000), "is not usable", ("2", 1.5, True, None, 0, -1, 1001)),
    (maps.proxy_or_none, "is not a proxy", (1,)),
    (maps.proxy_or_none, "is not the URL of a proxy", ("ftp://a:21", "http://", "host:port")),
]


@pytest.mark.parametrize(("parse", "reason", "values"), REJECTED)
def test_invalid_value_has_a_reason(parse: Parse, reason: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError) as caught:
            parse(value)
        assert reason in str(caught.value), value
        assert "; " in str(caught.value)


def test_printable_url_has_no_credentials() -> None:
    url = "https://user:word@a.example.com:8/v1?key=word#word"
    assert p.printable_url(url) == "https://a.example.com:8/v1"


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert table.usable_cores() == 7
