"""The arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

from config import Settings
from picture import BadRequest, ImageRequest

FILES = click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
WIDTH = click.option("--width", help="Pixels, 1 to 4096.")
HEIGHT = click.option("--height", help="Pixels, 1 to 4096.")
MODEL = click.option("--model", help="The backend's model.")
SEED = click.option("--seed", help="An integer of at most 18 digits, 42 by default.")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def read_text(file: Path) -> str:
    """Return a file's text; bytes that are not UTF-8 survive writing it back."""
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}.") from error


def read_request(
    prompt: str, settings: Settings, parameters: dict[str, str | None]
) -> ImageRequest:
    """Return the picture that a command's arguments name."""
    try:
        return ImageRequest.from_text(
            prompt, max_prompt_length=settings.max_prompt_length, **parameters
        )
    except BadRequest as error:
        raise click.ClickException(str(error)) from error


def age(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Return the seconds of an age such as 30d, for click's `callback`."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and len(number) <= 6 and unit in _UNITS):
        raise click.BadParameter("write a number and s, m, h, d or w, such as 30d")
    return float(int(number) * _UNITS[unit])
