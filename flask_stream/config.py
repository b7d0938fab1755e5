"""The settings: one table, from which the checks and the README's list are made.

Each is `STREAM_<NAME>` in Flask's config, hence `FLASK_STREAM_<NAME>` in the environment when
the app calls `app.config.from_prefixed_env()`, as `create_app` does. What is given to
`FlaskStream(app, name=value)` goes before both. A value that cannot work is a `ConfigError` at
start, which names the setting.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from .errors import ConfigError

PREFIX = "STREAM_"

#: What is named by a text in the environment, and may be given as it is to the constructor.
Named = str | Callable[..., Any]


#: The longest time that is one: ten years, in seconds. Infinity is no time.
LONGEST = 315_360_000


def _setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float = LONGEST,
    form: tuple[str, str] | None = None,
    secret: bool = False,
) -> Any:
    # What is secret is not in the settings' repr, where a log or a trace could show it.
    metadata = {"help": help, "least": least, "most": most, "form": form}
    return field(default=default, repr=not secret, metadata=metadata)


#: A path below which routes are, or of one: a pattern, and how an error describes it.
_PATH = (r"(/[A-Za-z0-9._~-]+)*", "a path that begins with / and does not end with one")

#: Settings that had another name.
_RENAMED = {"cache": "model_folder"}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one service, checked. Times are in seconds."""

    store: str = _setting(
        "sqlite:///runs.db",
        "Where logs are kept. `sqlite:///file`: a file, by default in Flask's instance folder, for "
        "any number of workers on one machine. `redis://host`, `rediss://host`, `unix://socket`: "
        "Redis from 6.2 on, or Valkey, for many machines. `memory://`: one process, gone with it.",
        secret=True,
    )
    model: str | None = _setting(
        None,
        "Which model the built-in chains use, as `provider:name`: `openai:gpt-4o-mini`, "
        "`anthropic:claude-sonnet-4-5`, `ollama:llama3.2`, `vllm:<name>`, `local:smollm2`, "
        "`local:/path/to/any.gguf`, or a function of your own as `module:function`. Not set: "
        "`openai:gpt-4o-mini` when there is an `OPENAI_API_KEY` or `OPENAI_BASE_URL`, else the "
        "embedded `local:smollm2`.",
    )
    fallback_model: str | None = _setting(
        None, "The model that is asked when the first fails before its first token."
    )
    base_url: str | None = _setting(
        None,
        "Where `STREAM_MODEL` is, if it is an `openai:`, `ollama:` or `vllm:` model and not at its "
        "usual address. For that provider alone: a fallback of another is at its own usual "
        "address, or at `OPENAI_BASE_URL`.",
    )
    system_prompt: str = _setting(
        "You are a helpful assistant.", "What the built-in `chat` tells its model first."
    )
    temperature: float | None = _setting(
        None,
        "The model's temperature. Not set: 0.2 for a local model, else the provider's.",
        least=0,
    )
    max_tokens: int | None = _setting(1024, "Tokens that the model may answer with.", least=1)
    history_tokens: int | None = _setting(
        None,
        "Tokens of earlier turns, about, that a question brings along. Not set: 1024 for the "
        "embedded model's `chat`, else 8000.",
        least=0,
    )
    model_retries: int = _setting(
        2, "Times that a call of the model is tried again before its first token.", least=0
    )
    documents: str | None = _setting(
        None, "Folder of Markdown and text files that the built-in `agent` may search."
    )
    max_document: int = _setting(
        400_000, "Characters that a document for `summary` may have.", least=1
    )
    max_pages: int = _setting(200, "Pages that a PDF for `summary` may have.", least=1)
    summary_tokens: int = _setting(
        1500, "Tokens, about, of each piece that `summary` reads at once.", least=100
    )
    summary_parallel: int = _setting(
        0,
        "Pieces that `summary` reads at the same time. 0: one for a local model, else four.",
        least=0,
    )
    checkpoints: str = _setting(
        "sqlite:///checkpoints.db",
        "Where graphs that were compiled without a checkpointer keep their state: "
        "`sqlite:///file`, `postgres://…`, `redis://…`, `memory://`, or nothing for nowhere.",
        secret=True,
    )
    max_question: int = _setting(
        8000, "Characters that a question may have, or all texts of an input together.", least=1
    )
    max_body: int = _setting(1_048_576, "Bytes that a request's body may have.", least=1)
    max_upload: int = _setting(
        20_000_000, "Bytes that a request with a document may have.", least=1
    )
    body_timeout: float = _setting(30, "That a request's body may take to come.", least=0.1)
    origins: str = _setting(
        "",
        "Origins of other sites whose pages may start and read runs, separated by spaces, "
        "such as `https://example.org`. Empty: only this site's own pages. `*`: any site's, for "
        "chains added with `public=True`.",
    )
    frame_ancestors: str = _setting(
        "", "Origins whose pages may show the chat page in a frame, separated by spaces."
    )
    auth: Named = _setting(  # noqa: RUF009 - a field, as all of them
        "session",
        "Who asks: `session`, an anonymous signed cookie; `jwt`, a bearer token; or, given to "
        "the constructor, a function of the request that returns a user's id or None.",
    )
    session_age: float = _setting(2_592_000, "That a session's cookie is good: 30 days.", least=60)
    jwt_issuer: str | None = _setting(None, "The tokens' `iss`. Needed for `jwt`, as the next two.")
    jwt_audience: str | None = _setting(None, "The tokens' `aud`.")
    jwt_algorithm: str | None = _setting(None, "The one algorithm: `RS256`, `ES256`, `HS256`, ….")
    jwt_key: str | None = _setting(None, "The secret, or the public key as PEM.", secret=True)
    jwt_jwks: str | None = _setting(None, "Or the URL where public keys are published.")
    recheck: float = _setting(
        15,
        "After which an open stream's reader is looked at again: is that one still signed in?",
        least=0.1,
    )
    api_keys: str = _setting(
        "",
        "Sites whose servers may ask and have tickets made, as `name:hash`, separated by spaces. "
        "`flask stream key <name>` makes a key and its hash.",
        secret=True,
    )
    ticket_age: float = _setting(60, "Within which a ticket starts its run.", least=1)
    proxies: int = _setting(
        0, "Proxies in front, whose `X-Forwarded-*` are believed.", least=0, most=10
    )
    start_limit: str = _setting(
        "",
        "Starts per principal, such as `30/minute; 500/day` (extra `limits`). The service has "
        "`30/minute`.",
    )
    address_limit: str = _setting("", "Starts per address, likewise. The service has `120/minute`.")
    daily_tokens: int = _setting(0, "Tokens per principal and day (UTC); 0 for any.", least=0)
    max_runs: int = _setting(10, "Live runs per principal; 0 for any.", least=0)
    max_runs_per_address: int = _setting(
        50, "Live runs of one address that sends neither cookie nor token; 0 for any.", least=0
    )
    max_streams: int = _setting(
        50, "Open streams per principal, in each worker; 0 for any.", least=0
    )
    max_streams_per_address: int = _setting(
        500, "Open streams per address, in each worker; 0 for any.", least=0
    )
    max_streams_per_worker: int = _setting(
        0,
        "Open streams of a worker. 0: gunicorn's `worker_connections`, less some for others.",
        least=0,
    )
    heartbeat: float = _setting(10, "Between comments to a silent stream.", least=0.1)
    reconnect: float = _setting(1, "After which a browser reconnects a lost stream.", least=0)
    write_timeout: float = _setting(
        30, "That a client may take to accept what is written to it.", least=0.1, most=86_400
    )
    first_token_timeout: float = _setting(120, "To a run's first event.", least=0.1)
    silence_timeout: float = _setting(120, "Between two events of a run.", least=0.1)
    run_timeout: float = _setting(1800, "For a whole run.", least=0.1)
    lease: float = _setting(15, "Within which a dead worker's runs end as `worker_lost`.", least=1)
    keep: float = _setting(604_800, "After which a run that is over is removed: a week.", least=1)
    model_folder: str | None = _setting(
        None, "Folder for the embedded model. Not set: `flask_stream` in the user's cache folder."
    )
    local_url: str | None = _setting(
        None, "URL of the embedded model's server; set by the gunicorn master that started it."
    )
    local_key: str | None = _setting(None, "Its key; set likewise.", secret=True)
    url_prefix: str = _setting(
        "",
        "Path that every route is below, static files and Socket.IO included, such as `/ai`. "
        "Empty: the root.",
        form=_PATH,
    )
    openapi: str = _setting(
        "/stream/openapi.json",
        "Path of the OpenAPI description, below the prefix; `create_app` has `/openapi.json`. "
        "Empty: none.",
        form=_PATH,
    )
    page: bool = _setting(False, "Whether to serve the chat page at `/`; `create_app` does.")
    title: str = _setting("flask_stream", "The page's title.")

    @classmethod
    def load(cls, config: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
        """Read the settings from Flask's config and from what the constructor was given.

        Raises ConfigError for a name that is no setting, and for a value that cannot be one.
        """
        values: dict[str, Any] = {}
        known = {setting.name for setting in fields(cls)}
        for key, value in config.items():
            if key.startswith(PREFIX):
                values[key.removeprefix(PREFIX).lower()] = value
        values |= {name.lower(): value for name, value in given.items()}
        for name in values.keys() - known:
            near = difflib.get_close_matches(_RENAMED.get(name, name), known, n=1)
            hint = f": did you mean {PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigError(PREFIX + name.upper(), f"is not a setting{hint}")
        hints = get_type_hints(cls)
        return cls(
            **{
                setting.name: _checked(
                    setting.name, values[setting.name], hints[setting.name], setting.metadata
                )
                for setting in fields(cls)
                if setting.name in values
            }
        )


def _checked(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    setting = PREFIX + name.upper()
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None or value == "":
        if types.NoneType in kinds:
            return None
        if str in kinds and value == "":
            return value
        raise ConfigError(setting, "has no value")
    if callable(value) and len(kinds) > 1 and types.NoneType not in kinds:
        return value
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(setting, f"is {value!r}, and should be {_WORDS[kind]}")
    form = metadata["form"]
    if form is not None and re.fullmatch(form[0], value) is None:
        raise ConfigError(setting, f"is {value!r}, and should be {form[1]}")
    least, most = metadata["least"], metadata["most"]
    if least is not None and not value >= least:
        raise ConfigError(setting, f"is {value!r}, and should be at least {least:g}")
    if least is not None and not value <= most:
        raise ConfigError(setting, f"is {value!r}, and should be at most {most:g}")
    return value


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def table() -> str:
    """The settings as a Markdown table, as the README shows it."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in fields(Settings):
        default = "" if setting.default in (None, "") else f"`{setting.default}`"
        name, help = PREFIX + setting.name.upper(), setting.metadata["help"]
        rows.append(f"| `{name}` | {default} | {help} |")
    return "\n".join(rows)
