"""The entry point of the command line. It hands `make_services` to the commands."""

from __future__ import annotations

import click

from app import make_services
from commands.cache_group import cache_group, keys
from commands.check import check
from commands.console import Commands
from commands.links import links, warm
from commands.sign import sign


@click.group(cls=Commands)
def cli() -> None:
    """Commands of Prompt Image Proxy, for its administrator.

    Run them in the folder of the service and as its user: they read the same settings.
    """


for _command in (sign, warm, links, cache_group, keys, check):
    cli.add_command(_command)

if __name__ == "__main__":
    cli(obj=make_services)
