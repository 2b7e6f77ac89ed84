"""`check`: report every fault of the settings and of the cache that they describe."""

from __future__ import annotations

import re
import sys

import click

from commands.asking import ask_all
from commands.installed import outdated_files
from commands.output import say
from commands.session import Door
from config import Settings, SettingsError
from storage.checks import Unusable, check_parts, connections

# The settings by which the cache is opened. If one of these is wrong, opening it proves nothing.
_OF_THE_CACHE = re.compile(r"CACHE_DIR|DATABASE_URL|STORAGE_URL|S3_|CA_BUNDLE|\w+_PROXY", re.I)


@click.command(short_help="Check the settings, the cache, and on request the backends.")
@click.option("--settings", "only_settings", is_flag=True, help="Check the settings alone.")
@click.option("--backends", "asks", is_flag=True, help="Ask the backends, the LLM, PUBLIC_URL.")
@click.option("--draw", "draws", is_flag=True, help="Have each backend draw: it costs.")
@click.pass_obj
def check(door: Door, only_settings: bool, asks: bool, draws: bool) -> None:
    """Check the settings, and that the cache, the database and the bucket can be used.

    Reports all faults together, with a remedy for each, and exits 1 if there are any. Warns of
    installed files of systemd and nginx that belong to another version. With --backends, each
    backend and the LLM is asked once, for its models or an empty prompt, which draws nothing; and
    the service through PUBLIC_URL.
    """
    for warning in outdated_files(door.root):
        click.echo(f"Warning: {warning}.", err=True)
    faults = []
    try:
        settings: Settings | None = door.settings()
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
        _ask(door, settings, draws=draws)


def _ask(door: Door, settings: Settings, *, draws: bool) -> None:
    """Print what each server answers; exit 1 if one cannot be used."""
    has_faults = False
    with door.open(settings) as session:
        for finding in ask_all(session, draws=draws):
            say(str(finding))
            has_faults |= bool(finding.remedy)
    if has_faults:
        sys.exit(1)
