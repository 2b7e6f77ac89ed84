"""`check`: report every fault of the settings and of the cache that they describe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from commands.asking import ask_all
from commands.console import built, load_settings, say
from config import Settings, SettingsError
from storage.choose import Unusable, check_parts, connections

# A digest of the file without its comments, so that an installed file may be adapted.
_EDITION = re.compile(r"(?m)^# Edition ([0-9a-f]{8})\b")
_DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ROOT = Path("/")
# Where the documents install each file, below the root directory.
INSTALLED = {
    "prompt-image-proxy.service": "etc/systemd/system/prompt-image-proxy.service",
    "prompt-image-proxy-backup.service": "etc/systemd/system/prompt-image-proxy-backup.service",
    "prompt-image-proxy-backup.timer": "etc/systemd/system/prompt-image-proxy-backup.timer",
    "nginx.conf": "etc/nginx/conf.d/prompt-image-proxy.conf",
    "nginx-tls.conf": "etc/nginx/prompt-image-proxy/tls.conf",
    "Caddyfile": "etc/caddy/Caddyfile",
    "apache.conf": "etc/apache2/sites-available/00-prompt-image-proxy.conf",
    "haproxy.cfg": "etc/haproxy/haproxy.cfg",
    "varnish.vcl": "etc/varnish/prompt-image-proxy.vcl",
    "traefik.yaml": "etc/traefik/traefik.yaml",
    "traefik-pictures.yaml": "etc/traefik/pictures.yaml",
}


def outdated_files(root: Path) -> Iterator[str]:
    """Say, for each installed file of another edition than deploy/ has, what to do.

    Files that are not installed, not readable, for something else (as Debian's own Caddyfile), or
    not in deploy/ (as in the Docker image) are left out.
    """
    for name, place in INSTALLED.items():
        installed = root / place
        with suppress(OSError):
            paths = installed, _DEPLOY / name
            text, shipped = (path.read_text("utf-8", "replace") for path in paths)
            is_ours = "prompt image proxy" in text.lower()
            if is_ours and _EDITION.findall(text) != _EDITION.findall(shipped):
                yield (
                    f"{installed} is of another version than this code: compare it with"
                    f" deploy/{name}, as docs/upgrading.md describes"
                )


# The settings by which the cache is opened. If one of these is wrong, opening it proves nothing.
_OF_THE_CACHE = re.compile(r"CACHE_DIR|DATABASE_URL|STORAGE_URL|S3_|CA_BUNDLE|\w+_PROXY", re.I)


@click.command(short_help="Check the settings, the cache, and on request the backends.")
@click.option("--settings", "only_settings", is_flag=True, help="Check the settings alone.")
@click.option("--backends", "asks", is_flag=True, help="Ask the backends, the LLM, PUBLIC_URL.")
@click.option("--draw", "draws", is_flag=True, help="Have each backend draw: it costs.")
def check(only_settings: bool, asks: bool, draws: bool) -> None:
    """Check the settings, and that the cache, the database and the bucket can be used.

    Reports all faults together, with a remedy for each, and exits 1 if there are any. Warns of
    installed files of systemd and nginx that belong to another version. With --backends, each
    backend and the LLM is asked once, for its models or an empty prompt, which draws nothing; and
    the service through PUBLIC_URL.
    """
    for warning in outdated_files(ROOT):
        click.echo(f"Warning: {warning}.", err=True)
    faults = []
    try:
        settings: Settings | None = load_settings()
    except SettingsError as error:
        faults = [str(error)]
        settings = None if any(map(_OF_THE_CACHE.match, error.faults)) else error.settings
    if settings and not only_settings:
        try:
            check_parts(settings, connections(settings))
        except Unusable as error:
            faults.append(str(error))
    if faults:
        raise click.ClickException("\n".join(faults))
    click.echo(f"The settings are valid{'' if only_settings else ', and the cache can be used'}.")
    if settings and (asks or draws):
        has_faults = False
        with built(settings) as services:
            for line, remedy in ask_all(services, draws=draws):
                say(f"{line}\n  {remedy}" if remedy else line)
                has_faults |= bool(remedy)
        sys.exit(1 if has_faults else 0)
