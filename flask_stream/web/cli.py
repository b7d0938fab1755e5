"""Command-line commands: `flask --app … stream key <name>`."""

from __future__ import annotations

import click

from ..security.keys import digest, is_site, new_api_key


@click.command("key")
@click.argument("name")
def make_key(name: str) -> None:
    """Create an API key for the site NAME and print the key and its hash."""
    if not is_site(name):
        raise click.BadParameter("use only a-z, 0-9, '.', '-' and '_'", param_hint="NAME")
    key = new_api_key()
    click.echo(f"Key, for the site's server:  {key}")
    click.echo(f"For STREAM_API_KEYS:          {name}:{digest(key)}")
