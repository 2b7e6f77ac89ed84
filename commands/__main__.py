"""The entry point of the command line: builds each command's session from the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import click

import config
from app import make_services, make_upstream
from commands.cache_group import cache_group
from commands.check import check
from commands.console import Commands, logging_to_stderr
from commands.keys import keys
from commands.links import links, warm
from commands.session import Door, Session
from commands.sign import sign
from config import Settings
from upstream.client import Upstream


@click.group(cls=Commands)
def cli() -> None:
    """Commands of Prompt Image Proxy, for its administrator.

    Run them in the folder of the service and as its user: they read the same settings.
    """


for _command in (sign, warm, links, cache_group, keys, check):
    cli.add_command(_command)


@contextmanager
def open_session(settings: Settings) -> Iterator[Session]:
    """Build the parts of a session, and close them in the end."""
    with logging_to_stderr(settings), closing(make_services(settings)) as services:
        yield Session(
            settings, services.access, services.cache, services.pipeline, services.upstream
        )


def connect(settings: Settings) -> Upstream:
    return make_upstream(settings.network)


if __name__ == "__main__":
    cli(obj=Door(config.load, open_session, connect))
