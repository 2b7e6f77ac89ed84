"""The command line, through Flask's own: `flask --app app sign|warm|cache|keys …`."""

from __future__ import annotations

import click

from access import Access
from cache import Cache
from commands.cache_group import cache_group
from commands.keys import keys_command
from commands.sign import sign_command
from commands.warm import warm_command
from config import Settings
from pipeline import Pipeline


def register(
    cli: click.Group, settings: Settings, access: Access, cache: Cache, pipeline: Pipeline
) -> None:
    """Add the commands to the app's own."""
    cli.add_command(sign_command(settings, access))
    cli.add_command(warm_command(settings, access, cache, pipeline))
    cli.add_command(cache_group(settings, cache))
    cli.add_command(keys_command(settings, access, cache, pipeline))
