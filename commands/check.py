"""`check`: whether the service could start with its settings, and what is wrong if not."""

from __future__ import annotations

import click

from commands.session import Door, owner_fault
from storage.checks import connections, find_faults


@click.command()
@click.option("--settings", "only_settings", is_flag=True, help="Check the settings alone.")
@click.pass_obj
def check(door: Door, only_settings: bool) -> None:
    """Check the settings, and that the cache, the database and the bucket can be used.

    Says everything that is wrong, with what to write, and exits 1 if anything is.
    """
    settings = door.settings()
    if only_settings:
        click.echo("The settings are valid.")
        return
    fault = owner_fault(settings.cache_dir)
    faults = [fault] if fault else find_faults(settings, connections(settings))
    if faults:
        raise click.ClickException("\n  ".join(["The cache cannot be used:", *faults]))
    click.echo("The settings are valid, and the cache can be used.")
