"""Command-line commands: `flask --app … stream key <name>`."""

from __future__ import annotations

import click

from ..security.keys import digest, is_site, new_api_key


@click.command("key")
@click.argument("name")
def make_key(name: str) -> None:
    """Make an API key for the site NAME, and print it with its hash."""
    if not is_site(name):
        raise click.BadParameter("a name is of a-z, 0-9, '.', '-' and '_'", param_hint="NAME")
    key = new_api_key()
    click.echo(f"The key, for the site's server:  {key}")
    click.echo(f"For STREAM_API_KEYS, kept here:  {name}:{digest(key)}")
