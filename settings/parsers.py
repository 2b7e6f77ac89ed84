"""Parsers of single settings: text in, value out.

An invalid text raises ValueError; each of its arguments is a sentence in two halves: what is
wrong; what to write. The reader puts the variable's name in front. No sentence quotes what may be
a secret.
"""

import importlib.util
import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
N = TypeVar("N", int, float)

# By the end of the name of the file that installs them: requirements-cluster.txt.
_PACKAGES = {
    "cluster": ("psycopg", "psycopg_pool", "obstore"),
    "formats": ("PIL",),
    "metrics": ("prometheus_client",),
    "socks": ("socks",),
}


def check_extra(name: str) -> None:
    """Raise ValueError, with the command to run, if a package of an extra is not installed."""
    for package in _PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            command = f".venv/bin/pip install -c constraints.txt -r requirements-{name}.txt"
            docker = f"build the Docker image with EXTRAS={name}"
            raise ValueError(f"needs packages that are not installed; run {command}, or {docker}")


# A model's name, as requests write it. `def` stands for no model in cache keys.
MODEL = r"(?!def\Z)[A-Za-z0-9._:/@+-]{1,100}"

# Image hosts, and the settings that each needs, without IMAGE_HOSTING_: what to write.
HOSTING_PROVIDERS = {
    "smms": {"KEY": "its API key"},
    "picgo": {"KEY": "its API key", "URL": "https://host"},
    "cloudflare_imgbed": {"URL": "https://host"},
    "s3": {"URL": "s3://bucket/prefix", "PUBLIC_URL": "https://images.example.com"},
}

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def matching(pattern: str, fault: str) -> Callable[[str], str]:
    """Return a parser of texts that match as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(fault)
        return text

    return parse


model = matching(MODEL, "has a name that no URL can contain; write names such as gpt-image-2")
host = matching(
    r"[A-Za-z0-9_.:%-]+", "is not an address; write one such as 127.0.0.1, 0.0.0.0 or ::"
)
header_value = matching(
    "[ -~]*", "contains characters that HTTP headers cannot; write printable ASCII only"
)
database_url = matching(
    r"postgres(ql)?://([^\s\x00-\x1f\x7f/?#@[\]]*@)?[^\s\x00-\x1f\x7f?#@]*"
    r"(\?[^\s\x00-\x1f\x7f#]*)?",
    "is not the URL of a PostgreSQL database; write postgresql://user:password@host/database,"
    " with %20 for a space, and in the password %2F for /, %3F for ?, %23 for #, %40 for @",
)


def _number(
    pattern: str, kind: Callable[[str], N], low: N, high: N, what: str
) -> Callable[[str], N]:
    def parse(text: str) -> N:
        if not re.fullmatch(pattern, text) or not low <= kind(text) <= high:
            raise ValueError(f"{text!r} is not usable; write {what} from {low} to {high}")
        return kind(text)

    return parse


def integer(low: int, high: int) -> Callable[[str], int]:
    # int() alone would accept '１２', '1_000' and ' 5 '.
    return _number("-?[0-9]{1,18}", int, low, high, "an integer")


def seconds(low: float, high: float = 86400) -> Callable[[str], float]:
    # At most a day for a time-out: above 24 days a socket raises OverflowError.
    return _number(r"[0-9]{1,9}(\.[0-9]{1,6})?", float, low, high, "seconds,")


def boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false; write true or false")


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"{text!r} is unknown; write one of {', '.join(choices)}")

    return parse


# A host in ASCII or with letters of other scripts, but no full-width ones.
_NETLOC = re.compile(
    r"(?:[^@]*@)?(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_][A-Za-z0-9._-]*|[^\W_！-～](?:[^\W_！-～]|[.-])*)"
    r"(?::[0-9]*)?"
)


def base_url(text: str) -> str:
    """Return the URL without fragment and trailing slash. A query stays: Azure needs one."""
    if problem := _url_problem(text):
        raise ValueError(f"{_printable_start(text) + '…'!r} {problem}; write https://host/path")
    parts = urlsplit(text)
    return parts._replace(path=parts.path.rstrip("/"), fragment="").geturl()


def url_without_query(text: str) -> str:
    url = base_url(text)
    if "?" in url:
        raise ValueError("has a query, to which no path can be appended; write https://host/path")
    return url


def _url_problem(text: str) -> str | None:
    if not re.match(r"https?://", text, re.IGNORECASE):
        return "does not begin with http:// or https://"
    if found := re.search(r"([;；，、])\s*https?://", text, re.IGNORECASE):
        return f"separates URLs by {found[1]!r} instead of ','"
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        return "contains white space"
    try:
        parts = urlsplit(text)
        # requests takes neither other hosts than these nor other passwords.
        is_valid = bool((parts.hostname or "").encode("idna") and _NETLOC.fullmatch(parts.netloc))
        is_valid = is_valid and parts.port != 0
        parts.netloc.rpartition("@")[0].encode("latin-1")
    except ValueError:
        is_valid = False
    return None if is_valid else "is not a valid URL"


def _printable_start(text: str) -> str:
    """Return scheme and host of an invalid URL: a password may be anywhere else in it."""
    scheme = found[0] if (found := re.match(r"\w*://", text)) else ""
    rest = text.removeprefix(scheme).rpartition("@")[2]
    return scheme + re.split(r"[/:?#\s]", rest, maxsplit=1)[0]


def url_host(host: str) -> str:
    """Return the host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def printable_url(url: str) -> str:
    """Return the URL without what may be secret in it: user, password, query and fragment."""
    return re.sub(r"//[^/?#]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])


def bucket_url(text: str) -> str:
    """Return the URL of a bucket and a prefix, without a trailing slash."""
    url = text.rstrip("/")
    is_url = re.fullmatch(
        r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]+(/[\w.=!*'()+-]+)*", url, re.ASCII
    )
    if not is_url or {".", ".."} & set(url.split("/")):
        # Not quoted: someone may have put credentials into it.
        forms = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        raise ValueError(f"is not the URL of a bucket; write {forms}")
    return url


def hosting_provider(text: str) -> str:
    provider = one_of(*HOSTING_PROVIDERS)(text)
    if provider == "s3":
        check_extra("cluster")
    return provider


def hosting_url(text: str) -> str:
    return bucket_url(text) if text.startswith("s3://") else base_url(text)


def listed(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Return a parser of comma-separated values, each once."""

    def parse_all(text: str) -> tuple[T, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not any(parts):
            raise ValueError("names nothing; write one or more, separated by commas")
        return tuple(dict.fromkeys(parse(part) for part in parts if part))

    return parse_all


def certificates(text: str) -> Path:
    """Return the absolute path of a file with certificates of authorities."""
    path = Path(text).absolute()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError("contains no certificate; write the path of a PEM file") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); write a file's path") from None
    return path


def network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a network; write one such as 192.168.1.0/24") from None


def text_file(path: str | Path) -> str:
    """Return the contents of a file. Raises ValueError."""
    try:
        # -sig: Windows editors write a byte order mark.
        return Path(path).read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        advice = "write the path of a text file that the service's user may read"
        raise ValueError(f"cannot be read ({reason}); {advice}") from None


def absolute_path(text: str) -> Path:
    return Path(text).absolute()


def check_folder(path: Path) -> None:
    """Raise ValueError unless the folder is writable, or can be created."""
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        raise ValueError(f"cannot be used ({error.strerror}); write a folder's path") from None
    if not nearest.is_dir():
        raise ValueError(f"{str(nearest)!r} is not a folder; write a folder's path")
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"{str(nearest)!r} is not writable; write the path of a writable folder")


def json_object(text: str, example: str = '{"https://backend/v1": …}') -> dict[str, Any]:
    # The text may hold tokens: the sentence says where it is wrong, and quotes nothing.
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # loads accepts NaN, and reads 1e999 as infinity
    except (ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            wrong = text[error.pos : error.pos + 1]
            hint = "" if wrong.isascii() else f" ({wrong!r} is not ASCII)"
            where = f" at character {error.pos + 1}{hint}"
        raise ValueError(f"is not JSON{where}; write {example}") from None
    if not isinstance(value, dict):
        raise ValueError(f"is JSON but not an object; write {example}")
    return value


def each(entries: Mapping[str, Any], parse: Callable[[str, Any], T]) -> list[T]:
    """Return what `parse` makes of each name and value; reports the faults of all together."""
    found, faults = [], list[str]()
    for name, value in entries.items():
        try:
            found.append(parse(name, value))
        except ValueError as error:
            faults += error.args
    if faults:
        raise ValueError(*faults)
    return found


def is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip()) and is_unicode(value)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON can carry half of a surrogate pair."""
    return not re.search("[\ud800-\udfff]", text)
