"""Text for a log or a terminal: without secrets, and without control characters."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

from settings.maps import KeySettings
from settings.proxies import Proxy

# C0 and C1 controls, which command a terminal; Unicode's line separators, which forge lines; the
# controls that reorder text; and half surrogates, which cannot be printed.
_UNPRINTABLE = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# gunicorn logs what is wrong with a request, and a request line may have 64 KB.
_LONGEST_LINE = 4000


def printable(text: str) -> str:
    r"""Return a text as one line that commands no terminal: an escape character becomes `\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    r"""Return a text whose lines, ended by `\n`, are printable."""
    return "\n".join(map(printable, text.split("\n")))


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without these secrets, and without those in URLs of ours."""
    for secret in secrets:
        # Replacing a shorter one would garble every line, and it protects nothing.
        if len(secret) >= 6:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return re.sub(r"([?&;](?:key|sig|authCode)=)[^&\s'\"]*", r"\1***", text)


class RedactingFormatter(logging.Formatter):
    """Formats log records without these secrets or a URL's, and without control characters.

    A record is one line; those of its traceback are indented, so that no text can forge a record.
    """

    def __init__(self, secrets: Iterable[str], fmt: str | None = None, datefmt: str | None = None):
        super().__init__(fmt, datefmt)
        self.secrets = secrets

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        text = redacted(super().format(record), self.secrets)
        return "\n  ".join(printable(line)[:_LONGEST_LINE] for line in text.split("\n"))


def secrets_in(value: object, *, is_secret: bool) -> Iterator[str]:
    """Yield what a log must not show: texts of a secret, and the password in any URL."""
    match value:
        case str() if "://" in value:
            yield from _url_secrets(value)
        case str() if is_secret:
            yield value
            # An error may quote a header's credentials without their scheme.
            yield from re.findall(r"(?i)^(?:Bearer|Basic|Token|Key) +(\S+)$", value)
        case Mapping():
            # The keys are URLs, or names of headers.
            yield from secrets_in(tuple(value), is_secret=False)
            yield from secrets_in(tuple(value.values()), is_secret=is_secret)
        case tuple():
            for part in value:
                yield from secrets_in(part, is_secret=is_secret)
        case KeySettings():
            yield value.key
        case Proxy():
            yield value.password or value.user


def _url_secrets(url: str) -> Iterator[str]:
    """Yield a URL's passwords, or a user without one, as written and decoded."""
    try:
        user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    except ValueError:  # a lone bracket: where a password ends is anyone's guess
        yield url
        return
    alone = "" if url.startswith("postgres") else user  # a database's user is no secret
    for text in (password or alone, *re.findall(r"[?&](?:ssl)?password=([^&]*)", url)):
        yield from filter(None, (text, unquote(text)))
