"""The Lua scripts of the store in Redis. Each script is described in its own file."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files


class Script:
    """A Lua script, read from the file `redis_<name>.lua`."""

    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath(f"redis_{name}.lua").read_text("ascii")
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


CREATE, APPEND, READ, CANCEL = map(Script, ("create", "append", "read", "cancel"))
RENEW, TAKE_OVER, PURGE = map(Script, ("renew", "take_over", "purge"))
BRANCH, NEWEST = map(Script, ("branch", "newest"))
CONVERSATIONS, RUNS = map(Script, ("conversations", "runs"))
RENAME_CONVERSATION, DELETE_CONVERSATION = map(
    Script, ("rename_conversation", "delete_conversation")
)
COUNT, CLAIM, RELEASE_CLAIM = map(Script, ("count", "claim", "release_claim"))
