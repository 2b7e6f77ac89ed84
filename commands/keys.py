"""`keys`: the access keys by name, and their drawings today."""

from __future__ import annotations

import json
from typing import Any

import click

from commands.console import AS_JSON
from commands.session import with_cache
from pipeline import Services


@click.command(short_help="List the access keys and their drawings of today.")
@AS_JSON
@with_cache
def keys(services: Services, as_json: bool) -> None:
    """List the access keys by name, with their drawings since midnight UTC."""
    found = services.access.usage(services.cache.state)
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max(len(key["name"]) for key in found)
    for key in found:
        click.echo(f"{key['name']:<{width}}  {_describe(key)}")


def _describe(key: dict[str, Any]) -> str:
    limit = ", no limit" if key["per_day"] is None else f" of {key['per_day']}"
    expires = f", valid until {key['expires']}" if key["expires"] else ""
    return f"{key['drawings']} drawn today{limit}{expires}"
