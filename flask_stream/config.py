"""The settings, in one table. docs/settings.md is generated from it.

Each setting is `STREAM_<NAME>` in Flask's config. It is `FLASK_STREAM_<NAME>` in the environment if
the app calls `app.config.from_prefixed_env()`, as `create_app` does. An argument of
`FlaskStream(app, name=value)` overrides both. An invalid value raises a ConfigError at start, which
names the setting.
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

#: A value that is a text in the config, and may also be a function in the constructor.
Named = str | Callable[..., Any]


#: The highest value of a setting by default: ten years, in seconds.
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
    # Secrets are left out of the repr, so that they do not appear in logs and tracebacks.
    metadata = {"help": help, "least": least, "most": most, "form": form}
    return field(default=default, repr=not secret, metadata=metadata)


#: A pattern for paths, and how an error message describes it.
_PATH = (r"(/[A-Za-z0-9._~-]+)*", "a path that begins with / and does not end with one")

#: New names of settings that were renamed.
_RENAMED = {"cache": "model_folder"}


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked settings of one service. Times are in seconds."""

    store: str = _setting(
        "sqlite:///runs.db",
        "Where runs are stored. `sqlite:///file`: a file, relative to Flask's instance folder, for "
        "any number of workers on one machine. `redis://host`, `rediss://host`, `unix://socket`: "
        "Redis 6.2 or later, or Valkey, for several machines. `memory://`: for one process, lost "
        "when it ends.",
        secret=True,
    )
    model: str | None = _setting(
        None,
        "The model of the built-in chains, as `provider:name`: `openai:gpt-4o-mini`, "
        "`anthropic:claude-sonnet-4-5`, `ollama:llama3.2`, `vllm:<name>`, `local:smollm2`, "
        "`local:/path/to/any.gguf`, or your own function as `module:function`. Not set: "
        "`openai:gpt-4o-mini` if `OPENAI_API_KEY` or `OPENAI_BASE_URL` is set, else the embedded "
        "`local:smollm2`.",
    )
    fallback_model: str | None = _setting(
        None, "The model to call if `STREAM_MODEL` fails before its first token."
    )
    base_url: str | None = _setting(
        None,
        "The base URL of an `openai:`, `ollama:` or `vllm:` model, if it differs from the "
        "provider's default. A fallback model of another provider does not use it.",
    )
    system_prompt: str = _setting(
        "You are a helpful assistant.", "The system prompt of the built-in `chat`."
    )
    temperature: float | None = _setting(
        None,
        "The model's temperature. Not set: 0.2 for a local model, else the provider's default.",
        least=0,
    )
    max_tokens: int | None = _setting(1024, "Most tokens of a model's answer.", least=1)
    history_tokens: int | None = _setting(
        None,
        "About how many tokens of earlier turns to send with a question. Not set: 1024 for "
        "`chat` on the embedded model, else 8000.",
        least=0,
    )
    model_retries: int = _setting(
        2, "How often to retry a call of the model that fails before its first token.", least=0
    )
    documents: str | None = _setting(
        None, "Folder of Markdown and text files that the built-in `agent` can search."
    )
    max_document: int = _setting(400_000, "Most characters of a document for `summary`.", least=1)
    max_pages: int = _setting(200, "Most pages of a PDF for `summary`.", least=1)
    summary_tokens: int = _setting(
        1500, "About how many tokens `summary` reads at once.", least=100
    )
    summary_parallel: int = _setting(
        0,
        "How many parts `summary` reads at the same time. 0: one for a local model, else four.",
        least=0,
    )
    checkpoints: str = _setting(
        "sqlite:///checkpoints.db",
        "Where to store the state of graphs that were compiled without a checkpointer: "
        "`sqlite:///file`, `postgres://…`, `redis://…`, `memory://`, or empty to store none.",
        secret=True,
    )
    max_question: int = _setting(
        8000, "Most characters of a question, or of all texts of an input together.", least=1
    )
    max_body: int = _setting(1_048_576, "Most bytes of a request's body.", least=1)
    max_upload: int = _setting(20_000_000, "Most bytes of a request with a document.", least=1)
    body_timeout: float = _setting(30, "How long a request's body may take.", least=0.1)
    origins: str = _setting(
        "",
        "Origins of other sites whose pages may start and read runs, separated by spaces, such as "
        "`https://example.org`. Empty: only the app's own pages. `*`: all sites, for chains added "
        "with `public=True`.",
    )
    frame_ancestors: str = _setting(
        "", "Origins whose pages may show the chat page in a frame, separated by spaces."
    )
    auth: Named = _setting(  # noqa: RUF009 - this is a dataclass field
        "session",
        "How a request is identified. `session`: an anonymous signed cookie. `jwt`: a bearer "
        "token. Or, given to the constructor, a function of the request that returns a user's id "
        "or None.",
    )
    session_age: float = _setting(
        2_592_000, "How long a session cookie is valid. Default: 30 days.", least=60
    )
    jwt_issuer: str | None = _setting(
        None, "The tokens' `iss`. `jwt` needs this and the next two settings."
    )
    jwt_audience: str | None = _setting(None, "The tokens' `aud`.")
    jwt_algorithm: str | None = _setting(
        None, "The only accepted algorithm: `RS256`, `ES256`, `HS256`, …."
    )
    jwt_key: str | None = _setting(None, "The secret, or the public key as PEM.", secret=True)
    jwt_jwks: str | None = _setting(None, "URL of a JSON Web Key Set, to use instead of a key.")
    recheck: float = _setting(
        15,
        "How often the server checks that the reader of an open stream is still signed in.",
        least=0.1,
    )
    api_keys: str = _setting(
        "",
        "Sites whose servers may start runs and request tickets, as `name:hash`, separated by "
        "spaces. `flask stream key <name>` creates a key and its hash.",
        secret=True,
    )
    ticket_age: float = _setting(60, "How long a ticket can start its run.", least=1)
    proxies: int = _setting(
        0,
        "The number of proxies in front of the app, whose `X-Forwarded-*` headers are trusted.",
        least=0,
        most=10,
    )
    start_limit: str = _setting(
        "",
        "Starts per principal, such as `30/minute; 500/day` (extra `limits`). The built-in service "
        "has `30/minute`.",
    )
    address_limit: str = _setting(
        "", "Starts per address, in the same form. The built-in service has `120/minute`."
    )
    daily_tokens: int = _setting(0, "Tokens per principal and day (UTC). 0: no limit.", least=0)
    max_runs: int = _setting(10, "Live runs per principal. 0: no limit.", least=0)
    max_runs_per_address: int = _setting(
        50, "Live runs per address of callers without a cookie or token. 0: no limit.", least=0
    )
    max_streams: int = _setting(
        50, "Open streams per principal, in each worker. 0: no limit.", least=0
    )
    max_streams_per_address: int = _setting(
        500, "Open streams per address in each worker. 0: no limit.", least=0
    )
    max_streams_per_worker: int = _setting(
        0,
        "Open streams of a worker. 0: gunicorn's `worker_connections`, less some for other "
        "requests.",
        least=0,
    )
    heartbeat: float = _setting(10, "How often to send a comment on a silent stream.", least=0.1)
    reconnect: float = _setting(1, "How long a browser waits before it reconnects.", least=0)
    write_timeout: float = _setting(
        30, "How long a client may take to accept data.", least=0.1, most=86_400
    )
    first_token_timeout: float = _setting(120, "Longest time until a run's first event.", least=0.1)
    silence_timeout: float = _setting(120, "Longest time between two events of a run.", least=0.1)
    run_timeout: float = _setting(1800, "Longest time of a whole run.", least=0.1)
    lease: float = _setting(
        15, "Time after which the runs of a dead worker have ended as `worker_lost`.", least=1
    )
    keep: float = _setting(604_800, "How long to keep a run. Default: one week.", least=1)
    model_folder: str | None = _setting(
        None, "Folder for the embedded model. Not set: `flask_stream` in the user's cache folder."
    )
    local_url: str | None = _setting(
        None, "URL of the embedded model's server. Set by the gunicorn master that started it."
    )
    local_key: str | None = _setting(
        None, "API key of that server. Set in the same way.", secret=True
    )
    url_prefix: str = _setting(
        "",
        "Prefix of all routes, including static files and Socket.IO, such as `/ai`. "
        "Empty: the root.",
        form=_PATH,
    )
    openapi: str = _setting(
        "/stream/openapi.json",
        "Path of the OpenAPI document, below the prefix. `create_app` uses `/openapi.json`. Empty: "
        "none.",
        form=_PATH,
    )
    page: bool = _setting(False, "Whether to serve the chat page at `/`. `create_app` does.")
    title: str = _setting("flask_stream", "The page's title.")

    @classmethod
    def load(cls, config: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
        """Return the settings from Flask's config and the constructor's arguments.

        Raises ConfigError for an unknown name or an invalid value.
        """
        values: dict[str, Any] = {}
        known = {setting.name for setting in fields(cls)}
        for key, value in config.items():
            if key.startswith(PREFIX):
                values[key.removeprefix(PREFIX).lower()] = value
        values |= {name.lower(): value for name, value in given.items()}
        for name in values.keys() - known:
            similar = difflib.get_close_matches(_RENAMED.get(name, name), known, n=1)
            hint = f": did you mean {PREFIX}{similar[0].upper()}?" if similar else ""
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
        raise ConfigError(setting, "is empty")
    if callable(value) and len(kinds) > 1 and types.NoneType not in kinds:
        return value
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(setting, f"is {value!r}, but must be {_DESCRIPTIONS[kind]}")
    form = metadata["form"]
    if form is not None and re.fullmatch(form[0], value) is None:
        raise ConfigError(setting, f"is {value!r}, but must be {form[1]}")
    least, most = metadata["least"], metadata["most"]
    if least is not None and not value >= least:
        raise ConfigError(setting, f"is {value!r}, but must be at least {least:g}")
    if least is not None and not value <= most:
        raise ConfigError(setting, f"is {value!r}, but must be at most {most:g}")
    return value


_DESCRIPTIONS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def table() -> str:
    """Return the settings as the Markdown table of docs/settings.md."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in fields(Settings):
        default = "" if setting.default in (None, "") else f"`{setting.default}`"
        name, help = PREFIX + setting.name.upper(), setting.metadata["help"]
        rows.append(f"| `{name}` | {default} | {help} |")
    return "\n".join(rows)
