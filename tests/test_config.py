"""Settings: every fault is reported with its variable, all at once, and no secret is shown."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import config
from config import Settings, SettingsError
from settings import servers
from settings.dotenv import Dotenv
from settings.proxies import NetworkSettings, Proxy
from settings.redaction import RedactingFormatter
from settings.table import NAMES, ROWS, SECRETS, usable_cores

from .conftest import ROOT

URL = "https://api.example.com/v1"
KEY = "the-access-key"
LEAST = {"BACKEND_API_URLS": URL, "PROXY_ACCESS_KEY": KEY}
HOSTING = {"IMAGE_HOSTING_ENABLED": "true"}
DATABASE = {"DATABASE_URL": "postgresql://host/db"}
S3_KEYS = {"S3_ACCESS_KEY_ID": "id", "S3_SECRET_ACCESS_KEY": "k"}
LLM = {
    "LLM_OPTIMIZATION_ENABLED": "true",
    "DE_NSFW_ENABLED": "true",
    "LLM_OPTIMIZATION_API_URL": "https://llm.example.com",
}


def read(**values: str) -> Settings:
    return config.parse({**LEAST, **values})


def read_llm(**values: str) -> servers.LlmSettings:
    found = read(**LLM | values).llm
    assert found
    return found


def of(text: str) -> dict[str, str]:
    """Return settings that are written as `NAME=value`, separated by spaces."""
    return dict(pair.split("=", 1) for pair in text.split())


def hosted_by(provider: str, more: str = "") -> dict[str, str]:
    """Return HOSTING with a provider, and with settings without `IMAGE_HOSTING_` before them."""
    values = {f"IMAGE_HOSTING_{name}": value for name, value in of(more).items()}
    return {**HOSTING, "IMAGE_HOSTING_PROVIDER": provider, **values}


def faults(values: Mapping[str, str]) -> list[str]:
    """Return the faults of `values`, of which there is at least one."""
    with pytest.raises(SettingsError) as caught:
        config.parse(values)
    assert str(caught.value) == "\n  ".join(["Invalid settings:", *caught.value.faults])
    return caught.value.faults


def assert_fault(values: Mapping[str, str], expected: str) -> None:
    """Assert that these settings have one fault: `VARIABLE: `, and words of its sentence."""
    variable, _, reason = expected.partition(": ")
    (fault,) = faults({**LEAST, **values})
    assert fault.startswith(f"{variable}: ")
    assert reason in fault


# --- faults


def test_all_faults_are_reported_together() -> None:
    taken = ("CACHE_DIR", "SIGNING_KEY")  # for which any text will do
    checked = [row for row in ROWS if row.parse is not str and row.name not in taken]
    bad = {row.names[0]: "ftp://\x7f," for row in checked}
    assert len(bad) > 50
    assert [fault.split(":")[0] for fault in faults(bad)] == list(bad)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (of("BACKEND_API_URLS="), "BACKEND_API_URLS: is not set"),
        (of("PROXY_ACCESS_KEY="), "PROXY_ACCESS_KEY: is not set"),
        (of("PROXY_ACCESS_KEY= ACCESS_KEYS={}"), "PROXY_ACCESS_KEY: is not set"),
        (of("PROXY_ACCESS_KEY= ACCESS_KEYS=nonsense"), "ACCESS_KEYS: is not JSON"),
        ({"SIGNING_KEY": "schl\udcfcssel"}, "SIGNING_KEY: is not UTF-8; write it in UTF-8"),
        (of(f'ACCESS_KEYS={{"a":{{"key":"{KEY}"}}}}'), "ACCESS_KEYS: key as 'PROXY_ACCESS_KEY'"),
        (of('ACCESS_KEYS={"a":{"key":"k"},"b":{"key":"k"}}'), "ACCESS_KEYS: 'b' has the same key"),
        # As the documents print them.
        (of("PROXY_ACCESS_KEY=a-long-random-string"), "PROXY_ACCESS_KEY: is the example"),
        (of("ADMIN_TOKEN=another-long-random-string"), "ADMIN_TOKEN: is the example"),
        (of("SIGNING_KEY=my-own,a-third-long-random-string"), "SIGNING_KEY: is the example"),
        ({"ACCESS_KEYS": '{"a": {"key": "long random string"}}'}, "ACCESS_KEYS: is the example"),
        (of(f'BACKEND_WEIGHTS={{"{URL}":0}}'), "BACKEND_WEIGHTS: drains every backend"),
        (of("CACHE_MAX_BYTES=9 MAX_IMAGE_BYTES=10"), "CACHE_MAX_BYTES: is below MAX_IMAGE_BYTES"),
        (of("LLM_OPTIMIZATION_ENABLED=1"), "LLM_OPTIMIZATION_API_URL: ENABLED needs it"),
        (of("DE_NSFW_ENABLED=1"), "LLM_OPTIMIZATION_API_URL: DE_NSFW_ENABLED needs it"),
        *(
            (LLM | {name: "Improve {PROMPT}."}, f"{name}: does not contain {{ORIGINAL_PROMPT}}")
            for name in ("LLM_OPTIMIZATION_TEMPLATE", "DE_NSFW_TEMPLATE")
        ),
        (HOSTING, "IMAGE_HOSTING_PROVIDER: smms, picgo, cloudflare_imgbed"),
        (hosted_by("smms"), "IMAGE_HOSTING_KEY: smms needs it"),
        (hosted_by("picgo", "URL=https://host"), "IMAGE_HOSTING_KEY: picgo needs it"),
        (hosted_by("picgo", "KEY=k"), "IMAGE_HOSTING_URL: picgo needs it"),
        (hosted_by("picgo", "KEY=k URL=s3://bucket"), "IMAGE_HOSTING_URL: does not suit"),
        (hosted_by("cloudflare_imgbed"), "IMAGE_HOSTING_URL: cloudflare_imgbed needs it"),
        (S3_KEYS | hosted_by("s3", "PUBLIC_URL=https://a"), "IMAGE_HOSTING_URL: s3 needs it"),
        (S3_KEYS | hosted_by("s3", "URL=s3://ab"), "IMAGE_HOSTING_PUBLIC_URL: s3 needs it"),
        (
            S3_KEYS | hosted_by("s3", "URL=https://ab PUBLIC_URL=https://a"),
            "IMAGE_HOSTING_URL: does not suit the provider",
        ),
        (DATABASE, "STORAGE_URL: DATABASE_URL needs it"),
        (S3_KEYS | of("STORAGE_URL=s3://bucket"), "DATABASE_URL: STORAGE_URL needs it"),
        # The credentials would be looked for at an address of the cloud's own network.
        *(
            (S3_KEYS | use | {name: ""}, f"{name}: needs it")
            for use in (
                DATABASE | of("STORAGE_URL=s3://bucket"),
                hosted_by("s3", "URL=s3://bucket PUBLIC_URL=https://img.example"),
            )
            for name in S3_KEYS
        ),
        (of("all_proxy=http://host:port"), "all_proxy: is not the URL of a proxy"),
        (of("ADMIN_TOKEN=a ADMIN_TOKEN_FILE=/none"), "ADMIN_TOKEN_FILE: ADMIN_TOKEN is set too"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, str], fault: str) -> None:
    assert_fault(values, fault)


def test_missing_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for variable, text, extra in [
        ("ALL_PROXY", "socks5://host", "socks"),
        ("DATABASE_URL", "postgresql://host/db", "cluster"),
        ("IMAGE_HOSTING_PROVIDER", "s3", "cluster"),
        ("METRICS", "true", "metrics"),
        ("PICTURE_FORMAT", "webp", "formats"),
        ("PICTURE_MAX_BYTES", "5000000", "formats"),
    ]:
        assert (ROOT / f"requirements-{extra}.txt").exists()
        assert_fault({variable: text}, f"{variable}: -r requirements-{extra}.txt")
    assert read(METRICS="no", PICTURE_FORMAT="original") == read()


def test_cache_folder_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image_file_cache").touch()
    for path, reason in {
        "image_file_cache": f"{str(tmp_path / 'image_file_cache')!r} is not a folder",
        "image_file_cache/below": "is not a folder",
        "x" * 5000: "File name too long",
    }.items():
        assert_fault({"CACHE_DIR": str(tmp_path / path)}, f"CACHE_DIR: {reason}")
        values = DATABASE | of(f"STORAGE_URL=gs://bucket CACHE_DIR={tmp_path / path}")
        assert_fault(values, f"CACHE_DIR: {reason}")
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # root may write everywhere
        assert_fault({"CACHE_DIR": "/new/cache"}, "CACHE_DIR: '/' is not writable")
    finally:
        os.seteuid(user)
    monkeypatch.chdir(tmp_path)
    assert_fault({}, "CACHE_DIR: is not a folder")
    assert read(CACHE_DIR="a/b").cache_dir == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()


def test_cache_of_one_machine_is_no_folder_for_copies(tmp_path: Path) -> None:
    values = {**DATABASE, "STORAGE_URL": "gs://bucket", "CACHE_DIR": str(tmp_path)}
    assert read(**values).storage == servers.ObjectSettings("gs://bucket")
    (tmp_path / "index.sqlite3").touch()
    assert_fault(values, "CACHE_DIR: cache import")


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.is_by_backend])
def test_map_is_a_json_object_by_backend(name: str) -> None:
    for text, reason in {
        "{": "is not JSON at character 2",
        "[1]": "not an object",
        '{"api.example.com": 1}': "has a key that is not a URL",
        '{"https://user:word@b/v1?key=word": 1}': "'https://b/v1': is not a backend",
        f'{{"{URL}": true}}': repr(URL),
    }.items():
        assert_fault({name: text}, f"{name}: {reason}")


def test_every_invalid_entry_of_a_map_is_a_fault() -> None:
    headers = {"Host": "a", "X-A": "1\n", "X B": "2", "X-C": "3"}
    entries = {URL: headers, "https://b": "x", "https://c": {"X-A": "1"}}
    values = {"BACKEND_API_URLS": f"{URL},https://b", "BACKEND_HEADERS": json.dumps(entries)}
    urls = [fault.split("'")[1] for fault in faults({**LEAST, **values})]
    assert urls == [URL, URL, URL, "https://b", "https://c"]


# --- values


def test_two_variables_are_enough() -> None:
    found = read()
    assert found.backends == (servers.BackendSettings(URL, 1.0, None, {}, {}),)
    assert (found.access_key, found.signing_keys, found.models) == (KEY, (), ())
    assert found.cache_dir == Path.cwd() / "image_file_cache"
    assert (found.threads, found.workers) == (512, usable_cores())
    assert (found.llm, found.hosting, found.storage) == (None, None, None)
    assert found.network == NetworkSettings()
    assert read(**dict.fromkeys(NAMES - LEAST.keys(), " \t")) == found  # blank means not set


def test_maps_apply_to_their_backends() -> None:
    found = read(
        BACKEND_API_URLS="https://a/v1/,https://b/v1,https://c/v1?x=1",
        AUTH_TOKEN="for-all",
        BACKEND_WEIGHTS='{"https://a/v1": 0.25, " https://b/v1/ ": 0, "https://c/v1/?x=1": 3}',
        TOKEN_MAP='{"https://b/v1//": " for-b "}',
        MODEL_MAP='{"https://a/v1/": {"x": "1", "y": "2"}, "https://b/v1": {"z": "3", "x": "4"}}',
        BACKEND_PARAMS='{"https://c/v1/?x=1": {"*": {"watermark": false}}}',
        BACKEND_HEADERS='{"https://b/v1/": {"X-A": "1"}}',
        BACKEND_CONCURRENCY='{"https://a/v1/": 2}',
    )
    extra = {"*": {"watermark": False}}
    assert found.backends == (
        servers.BackendSettings("https://a/v1", 0.25, "for-all", {"x": "1", "y": "2"}, {}, {}, 2),
        servers.BackendSettings(
            "https://b/v1", 0.0, "for-b", {"z": "3", "x": "4"}, {}, {"X-A": "1"}
        ),
        servers.BackendSettings("https://c/v1?x=1", 3.0, "for-all", {}, extra),
    )
    assert found.models == ("x", "y", "z")
    assert read(MODELS="flux").models == ("flux",)


def test_fingerprint_depends_on_what_may_undo_a_refusal() -> None:
    for values in (
        {"AUTH_TOKEN": "t"},
        {"MODEL_MAP": f'{{"{URL}": {{"a": "b"}}}}'},
        {"BACKEND_PARAMS": f'{{"{URL}": {{"*": {{"moderation": "low"}}}}}}'},
        {"BACKEND_HEADERS": f'{{"{URL}": {{"X-A": "1"}}}}'},
        {"HTTPS_PROXY": "http://user:other@127.0.0.1:1"},
        LLM,
    ):
        assert read(**values).fingerprint != read().fingerprint, values
        less = of(f'PORT=1 BACKEND_WEIGHTS={{"{URL}":2}} BACKEND_CONCURRENCY={{"{URL}":1}}')
        assert read(**less | values).fingerprint == read(**values).fingerprint


def test_named_keys_join_the_shared_one_or_replace_it() -> None:
    named = {"ACCESS_KEYS": '{"blog": {"key": "0123456789abcdef"}}'}
    assert read(**named).all_access_keys == (KEY, "0123456789abcdef")
    alone = config.parse({"BACKEND_API_URLS": URL, **named})
    assert (alone.access_key, alone.warnings) == (None, ())


def test_pollinations_host_depends_on_the_token() -> None:
    for given, url in {
        "": "https://image.pollinations.ai/prompt",
        "POLLINATIONS_TOKEN=t": "https://gen.pollinations.ai/image",
        "POLLINATIONS_URL=http://own/image/ POLLINATIONS_TOKEN=t": "http://own/image",
    }.items():
        values = of(given)
        token = values.get("POLLINATIONS_TOKEN")
        assert read(**values).pollinations == servers.PollinationsSettings(url, token, None)
        assert read(**values, POLLINATIONS_ENABLED="false").pollinations is None


BUCKET = servers.ObjectSettings("s3://bucket/prefix", None, None, "id", "k")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (hosted_by("SMMS", "KEY=k"), ("smms", "https://s.ee/api/v1/file/upload", "k", None)),
        (hosted_by("smms", "KEY=k URL=https://own/"), ("smms", "https://own", "k", None)),
        (
            hosted_by("cloudflare_imgbed", "URL=https://bed AUTH_CODE=#1%"),
            ("cloudflare_imgbed", "https://bed", None, "#1%"),
        ),
        (
            S3_KEYS | hosted_by("s3", "URL=s3://bucket/prefix/ PUBLIC_URL=https://img/pics/"),
            ("s3", "", None, None, "https://img/pics", BUCKET),
        ),
    ],
)
def test_image_hosts_have_their_settings(values: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert read(**values).hosting == servers.HostingSettings(*expected)
    assert read(**DATABASE, **values).storage is None  # hosted pictures need no bucket
    assert read(**values | {"IMAGE_HOSTING_ENABLED": "false"}).hosting is None


def test_machines_share_a_database_and_a_bucket() -> None:
    s3 = {"S3_ENDPOINT_URL": "http://minio:9000/", "S3_REGION": "eu-central-1", **S3_KEYS}
    found = read(**DATABASE, STORAGE_URL="s3://bucket/prefix/", **s3)
    expected = replace(BUCKET, endpoint_url="http://minio:9000", region="eu-central-1")
    assert (found.database_url, found.storage) == ("postgresql://host/db", expected)


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


def test_one_server_has_one_proxy() -> None:
    urls = ("https://user:word@bücher/v1", "https://bücher/v2")
    own = {urls[0]: "http://one", urls[1]: None}
    values = {"BACKEND_API_URLS": ",".join(urls), "BACKEND_PROXIES": json.dumps(own)}
    assert_fault(values, "BACKEND_PROXIES: 'https://bücher/v2' has another proxy")
    values["BACKEND_PROXIES"] = json.dumps({urls[0]: " http://one ", urls[1]: "one"})
    expected = {("https", "xn--bcher-kva", 443): Proxy("http", "one", 80)}
    assert read(**values).network.own_proxies == expected
    values["BACKEND_PROXIES"] = json.dumps({urls[0]: None, urls[1]: ""})
    assert read(**values).network.own_proxies == dict.fromkeys(expected)


def test_first_file_of_certificates_that_is_named_counts(certificates: tuple[Path, Path]) -> None:
    authority = str(certificates[0])
    values: dict[str, str] = {}
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CA_BUNDLE"):
        assert_fault({**values, name: "/no/such/file"}, f"{name}: No such file or directory")
        assert read(**values, **{name: authority}).network.ca_bundle == Path(authority)
        values[name] = "/not/read/where/another/name/goes/first"


# --- templates


def test_template_is_read_only_for_what_is_enabled() -> None:
    both = read_llm(DE_NSFW_MAX_ATTEMPTS="20")
    assert both.optimize_template == (ROOT / "prompts" / "optimize.txt").read_text("utf-8")
    assert both.safety_template == (ROOT / "prompts" / "safety.txt").read_text("utf-8")
    assert both.safety_attempts == 20
    assert read_llm(LLM_PARAMS='{"a": [1], "b": null}').params == {"a": [1], "b": None}
    only_safety = read_llm(LLM_OPTIMIZATION_ENABLED="false", LLM_OPTIMIZATION_TEMPLATE="unused")
    assert only_safety == replace(both, optimize_template=None, safety_attempts=2)
    assert read_llm(DE_NSFW_ENABLED="false").safety_template is None


def test_template_file_overrides_the_inline_template(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Besser:\n{ORIGINAL_PROMPT}\\n", "utf-8")
    inline = {"DE_NSFW_TEMPLATE": "Safe:\\n{ORIGINAL_PROMPT}\\n"}
    assert read_llm(**inline).safety_template == "Safe:\n{ORIGINAL_PROMPT}\n"
    found = read_llm(**inline, DE_NSFW_TEMPLATE_FILE=str(tmp_path / "t.txt"))
    # In a file a backslash is a backslash.
    assert found.safety_template == "Besser:\n{ORIGINAL_PROMPT}\\n"


@pytest.mark.parametrize("name", ["LLM_OPTIMIZATION_TEMPLATE", "PROXY_ACCESS_KEY", "ACCESS_KEYS"])
def test_unusable_file_is_a_fault(name: str, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff{ORIGINAL_PROMPT}")
    (tmp_path / "empty").write_text(" \n")
    for path, reason in {
        "none": "No such file or directory",
        ".": "Is a directory",
        "binary": "not UTF-8",
        "empty": "does not contain" if "TEMPLATE" in name else "names an empty file",
    }.items():
        values = {**LEAST, **LLM, name: "", f"{name}_FILE": str(tmp_path / path)}
        assert_fault(values, f"{name}_FILE: {reason}")


# --- .env and the environment


@pytest.fixture
def dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the `.env` of the current folder, the only source of settings."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".env"
    path.write_text(f"BACKEND_API_URLS={URL}\nPROXY_ACCESS_KEY={KEY}\nPORT=1000\nTHREADS=20\n")
    return path


def test_dotenv_may_contain_json_quotes_dollars_and_comments(dotenv: Path) -> None:
    with dotenv.open("a") as file:
        file.write(f'TOKEN_MAP={{"{URL}": "a$b"}}\n')
        file.write("# a comment\nexport LOG_LEVEL='debug'  # another\n")
        file.write("ADMIN_TOKEN=${PORT}x#y\nWORKERS\n")
    # As editors of Windows write it.
    dotenv.write_bytes(b"\xef\xbb\xbf" + dotenv.read_bytes().replace(b"\n", b"\r\n"))
    found = config.load()
    assert [backend.url for backend in found.backends] == [URL]
    assert (found.backends[0].token, found.log_level) == ("a$b", "DEBUG")
    assert found.admin_token == "${PORT}x#y"  # nothing is expanded


def test_dotenv_explains_what_is_missing(dotenv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dotenv.open("a") as file:
        file.write("PROXY_ACCESS_KEY=\n")
    with pytest.raises(SettingsError) as caught:
        config.load()
    missing, why = caught.value.faults
    assert missing.startswith("PROXY_ACCESS_KEY: is not set")
    assert why == "PROXY_ACCESS_KEY: an empty line further down in .env counts; delete that one"
    dotenv.unlink()
    with pytest.raises(SettingsError) as caught:
        config.load()
    assert caught.value.faults[-1] == f".env: is not in {dotenv.parent}; copy .env.example to it"
    for name, value in LEAST.items():
        monkeypatch.setenv(name, value)
    assert config.load() == read()
    monkeypatch.setenv("BACKEND_API_URLS", "ftp://host")
    with pytest.raises(SettingsError) as caught:
        config.load()
    assert len(caught.value.faults) == 1  # whoever set it elsewhere needs no .env


def test_unreadable_dotenv_is_a_fault(dotenv: Path) -> None:
    dotenv.write_bytes(b"PROXY_ACCESS_KEY=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env: cannot be read \(not UTF-8\)"):
        config.load()
    dotenv.unlink()
    dotenv.mkdir()  # as Docker makes one to mount where there is no file
    with pytest.raises(SettingsError, match=r"\.env: cannot be read \(Is a directory\)"):
        config.load()


def test_environment_overrides_dotenv_in_both_forms_of_a_secret(
    dotenv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dotenv.parent / "secret").write_text("from-file\n")
    with dotenv.open("a") as file:
        file.write("ADMIN_TOKEN_FILE=/no/such/file\n")
    monkeypatch.setenv("PROXY_ACCESS_KEY_FILE", "secret")
    monkeypatch.setenv("ADMIN_TOKEN", "from-environment")
    monkeypatch.setenv("PORT", "2000")
    found = config.load()
    assert (found.access_key, found.admin_token) == ("from-file", "from-environment")
    assert (found.port, found.threads, found.backends[0].url) == (2000, 20, URL)


# --- warnings

STRONG = {"PROXY_ACCESS_KEY": "0123456789abcdef", "SIGNING_KEY": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("values", "dotenv", "warning"),
    [
        ({"AUTH_TOKEN": "none"}, "CACHE_DIR_FILES=x\nCOMPOSE_PROJECT_NAME=x\nhttp_proxy=", None),
        (
            of('PROXY_ACCESS_KEY=demo ACCESS_KEYS={"a":{"key":"b"}} SIGNING_KEY=old'),
            "",
            "PROXY_ACCESS_KEY, ACCESS_KEYS, SIGNING_KEY: under 16 characters",
        ),
        ({"SIGNING_KEY": ""}, "", "SIGNING_KEY: is not set"),
        *(
            ({}, f"{name}=x", f"{name}: is in .env but is not a setting; did you mean {meant}?")
            for name, meant in {
                "BACKEND_API_URL": "BACKEND_API_URLS",
                "ADMIN_TOKEN_FILES": "ADMIN_TOKEN_FILE",
                "port": "PORT",
            }.items()
        ),
        *(
            ({}, f"X='\n'\n{line}\n", "ADMIN_TOKEN: ends before the # in .env")
            for line in ("ADMIN_TOKEN=abc #def", " export ADMIN_TOKEN = a b\t# c")
        ),
        ({}, "LOG_LEVEL=DEBUG\nPORT=1\n\nLOG_LEVEL=\nPORT=2\n", "LOG_LEVEL: an empty line further"),
        ({}, "PORT=\nPORT=2\nLOG_LEVEL=\nLOG_LEVEL=\n", None),
        ({}, "PORT=1\nLOG_LEVEL='DEBUG\n", ".env: line 2 cannot be read"),
        *(
            ({}, f"ADMIN_TOKEN={whole}\n#x", None)
            for whole in ("'abc #def' # a=b #c", '"abc #def"', "abc#def", "#abc", "")
        ),
    ],
)
def test_probable_mistakes_are_warnings(
    values: dict[str, str], dotenv: str, warning: str | None
) -> None:
    found = config.parse({**LEAST, **STRONG, **values}, Dotenv(dotenv)).warnings
    assert len(found) == (warning is not None)
    assert not warning or found[0].startswith(warning)


# --- secrets

PLAIN_SECRETS = (
    "PROXY_ACCESS_KEY ADMIN_TOKEN AUTH_TOKEN LLM_OPTIMIZATION_TOKEN IMAGE_HOSTING_KEY"
    " IMAGE_HOSTING_AUTH_CODE POLLINATIONS_TOKEN S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY"
)
# Every secret, each with a text of its own.
SECRET_VALUES = {
    **{name: f"secret-of-{name}" for name in PLAIN_SECRETS.split()},
    "ACCESS_KEYS": '{"blog": {"key": "secret-of-blog"}, "phone": {"key": "secret-of-phone"}}',
    "SIGNING_KEY": "secret-of-signing, secret-of-old-signing",
    "TOKEN_MAP": '{"https://a/v1": "secret-of-map"}',
    "BACKEND_HEADERS": '{"https://a/v1": {"X-Name": "secret-in-header"}}',
    "BACKEND_PROXIES": '{"https://a/v1": "http://user:secret-of-own-proxy@proxy"}',
    "https_proxy": "http://user:secret-of-proxy-for-all@proxy",
    "ALL_PROXY": "http://secret-as-user-of-proxy@proxy",
    "DATABASE_URL": "postgresql://u:secret-of%2Fdatabase@db/pictures?sslpassword=secret-of-tls",
    "STORAGE_URL": "s3://bucket",
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
    for name in SECRETS:
        # With the byte order mark that Windows editors write.
        (tmp_path / name).write_text(f"\ufeff  {values.pop(name)}\r\n\n", "utf-8")
        values[f"{name}_FILE"] = str(tmp_path / name)
    assert config.parse(values) == config.parse(SECRET_VALUES)


def test_no_secret_is_in_a_repr() -> None:
    text = repr(config.parse(SECRET_VALUES))
    assert "smms" in text
    assert "secret" not in text


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
        {"BACKEND_HEADERS": '{"https://a/v1": "secret"}'},
        {"BACKEND_HEADERS": '{"https://a/v1": {"the secret": "X-Name"}}'},
        {"BACKEND_HEADERS": '{"https://a/v1": {"X-Name": "a\\nsecret: b"}}'},
        {"ACCESS_KEYS": '{"blog": "secret"}'},
        {"ACCESS_KEYS": '{"secret": "blog"}'},
        {"ACCESS_KEYS": '{"blog": {"secret": 50}}'},
        {"ACCESS_KEYS": '{"blog": {"key": "secret", "per_day": "secret", "expires": 1}}'},
        {"ACCESS_KEYS": '{"a": {"key": "secret"}, "b": {"key": "secret"}}'},
        *(
            {"HTTPS_PROXY": url}
            for url in ("https://user:secret@host", "user:secret@host:port", "http://secret@")
        ),
        {"BACKEND_PROXIES": '{"https://a/v1": "http://user:secret@host:port"}'},
        *({"DATABASE_URL": url} for url in ("mysql://u:secret@h", "postgresql://u: secret@h")),
        {"STORAGE_URL": "s3://key:secret@bucket"},
        *({"BACKEND_API_URLS": f"https://user:1{m}secret@host:port"} for m in ("", *"/#?@ ,")),
        *({"BACKEND_API_URLS": f"{start}/secret"} for start in ("https:// host", "h:secret@host")),
        *({"BACKEND_API_URLS": f"{host}/v1?key=secret"} for host in ("https://host:port", "host")),
        {"BACKEND_API_URLS": "ftp://user:secret@host/v1"},
    ],
)
def test_no_secret_is_in_a_fault(values: dict[str, str]) -> None:
    assert "secret" not in " ".join(faults(values))


def logged(settings: Settings, message: str, error: BaseException | None = None) -> str:
    """Return what the redacting formatter makes of a message."""
    fields = {"levelname": "ERROR", "msg": message, "exc_info": error and (None, error, None)}
    formatter = RedactingFormatter(settings.secrets(), "%(levelname)s %(message)s")
    return formatter.format(logging.makeLogRecord(fields))


def test_log_contains_no_secret() -> None:
    texts = sorted({*SECRET_TEXTS, *map(unquote, SECRET_TEXTS)})
    line = logged(config.parse(SECRET_VALUES), " ".join(texts))
    assert line == f"ERROR {' '.join(['***'] * len(texts))}"


@pytest.mark.parametrize(
    ("values", "text", "shown"),
    [
        (
            {"BACKEND_HEADERS": f'{{"{URL}": {{"X-Gateway": "Bearer of-the-gateway"}}}}'},
            "X-Gateway: wrong key of-the-gateway",
            "X-Gateway: wrong key ***",
        ),
        ({"ADMIN_TOKEN": "ä/b c&d#e"}, "/%C3%A4%2Fb%20c%26d%23e and ä/b c&d#e", "/*** and ***"),
        ({}, "/prompt/a?width=5&key=abc&sig=d&seed=1", "/prompt/a?width=5&key=***&sig=***&seed=1"),
        ({}, "/prompt/a?width=5&amp;sig=d b", "/prompt/a?width=5&amp;sig=*** b"),
        ({}, "'http://h/?authCode=g%23'", "'http://h/?authCode=***'"),
        # Stars for a very short one would garble the log.
        ({"ADMIN_TOKEN": "a"}, "a message", "a message"),
    ],
)
def test_log_shows_stars_for_secrets(values: dict[str, str], text: str, shown: str) -> None:
    assert logged(read(**values), text) == f"ERROR {shown}"


def test_log_shows_control_characters_escaped() -> None:
    line = logged(read(), "drew \x1b]0;x\a \x9b2J\r\n\u2028ERROR \u202eforged\u2066 红")
    assert line == r"ERROR drew \x1b]0;x\x07 \x9b2J\r\n\u2028ERROR \u202eforged\u2066 红"


def test_no_exception_forges_a_line_of_the_log() -> None:
    text = logged(read(), "it failed", ValueError(f"\x1b[2J\nERROR forged {KEY}"))
    assert text == "ERROR it failed\n  ValueError: \\x1b[2J\n  ERROR forged ***"
