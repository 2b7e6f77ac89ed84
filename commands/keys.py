"""`keys`: the access keys by name, and what they have drawn today."""

from __future__ import annotations

import json
from typing import Any

import click

from access import Access
from cache import Cache
from commands.arguments import AS_JSON, announce, cache_errors
from config import Settings
from pipeline import Pipeline


def keys_command(
    settings: Settings, access: Access, cache: Cache, pipeline: Pipeline
) -> click.Command:
    @click.command("keys")
    @AS_JSON
    def keys(as_json: bool) -> None:
        """List the access keys by name, with their drawings since midnight UTC."""
        announce(settings, cache)
        with cache_errors():
            found = access.usage(pipeline.cache.state)
        if as_json:
            click.echo(json.dumps(found))
            return
        width = max(len(key["name"]) for key in found)
        for key in found:
            click.echo(f"{key['name']:<{width}}  {_describe(key)}")

    return keys


def _describe(key: dict[str, Any]) -> str:
    limit = ", no limit" if key["per_day"] is None else f" of {key['per_day']}"
    expires = f", valid until {key['expires']}" if key["expires"] else ""
    return f"{key['drawings']} drawn today{limit}{expires}"
