"""Where a command signs and draws: with the settings in this folder, or on a server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import update_wrapper
from typing import Any, TypeVar

import click

from commands.local_service import LocalService
from commands.remote_service import RemoteService
from commands.session import Door, errors_as_sentences
from settings.parsers import url_without_query

R = TypeVar("R")
AnyService = LocalService | RemoteService


def with_service(command: Callable[..., R]) -> Callable[..., R]:
    """Pass the service as the first argument, and add the option --server."""

    @click.option(
        "--server",
        metavar="URL",
        callback=_server,
        help="A service elsewhere, which draws and signs. The access key is PROXY_ACCESS_KEY"
        " in the environment or .env; without it, you are asked.",
    )
    @click.pass_obj
    def run(door: Door, /, server: str | None, **arguments: Any) -> R:
        with errors_as_sentences():
            if server is None:
                with door.open(door.settings()) as session:
                    return command(LocalService(session), **arguments)
            settings = door.client_settings()
            with closing(door.connect(settings)) as upstream:
                service = RemoteService(server, upstream, settings.access_key)
                return command(service, **arguments)

    return update_wrapper(run, command)


def _server(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    try:
        return text and url_without_query(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
