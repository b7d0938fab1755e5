"""A folder of Markdown and text files, searched by SQLite's full-text index (FTS5).

The index is in memory, made when it is first asked, and looks at each question which files are
new, changed or gone. Links that lead out of the folder are not followed. All of that is done on
a thread of its own: files and SQLite are waited for without gevent's knowledge, and no stream of
the worker would move meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..concurrency.native_thread import NativeThread

logger = logging.getLogger(__name__)

KINDS = {".md", ".markdown", ".txt"}
#: Bytes of a file, files of a folder, characters of a passage, passages of an answer.
LARGEST, MOST, PASSAGE, HITS = 2_000_000, 5_000, 1_200, 5

#: What is another when a file, or who may read it, has changed: two times, and the bytes.
_State = tuple[int, int, int]

_TABLE = """
    CREATE VIRTUAL TABLE passages USING fts5(
        file UNINDEXED, title, body, tokenize='porter unicode61'
    )
"""


class Hit(NamedTuple):
    """A passage: where it is from, under which heading, and its text."""

    file: str
    title: str
    passage: str


class _Known(NamedTuple):
    """A file in the index: its state when it was read, and the rows that its passages are."""

    state: _State
    rows: range


class DocumentIndex:
    """The files of one folder. It may be made before a fork, and is asked after it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._thread = NativeThread()
        # From here on: the thread's own.
        self._connection: sqlite3.Connection | None = None
        self._known: dict[Path, _Known] = {}
        self._rows = 0

    def search(self, query: str) -> list[Hit]:
        """The passages that fit the words best; none for a query without any word.

        Searches wait for each other. A caller that is interrupted leaves at once.
        """
        words = re.findall(r"\w+", query)[:32]
        if not words:
            return []
        # Quoted, so that no word of the query is one of FTS5's own.
        return self._thread.call(self._search, " OR ".join(f'"{word}"' for word in words))

    def _search(self, wanted: str) -> list[Hit]:
        if self._connection is None:
            # Closed on another thread when the interpreter goes.
            self._connection = sqlite3.connect(":memory:", check_same_thread=False)
            self._connection.execute(_TABLE)
        with self._connection as connection:
            known = self._refreshed(connection)
        self._known = known
        rows = connection.execute(
            "SELECT file, title, body FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?",
            (wanted, HITS),
        )
        return [Hit(*row) for row in rows]

    def _refreshed(self, connection: sqlite3.Connection) -> dict[Path, _Known]:
        """What there is in the index once it is as the folder is now."""
        there = dict(self._files())
        kept = {path: one for path, one in self._known.items() if there.get(path) == one.state}
        # By their numbers: a file's name has no index, so each would be a look at everything.
        connection.executemany(
            "DELETE FROM passages WHERE rowid = ?",
            [(row,) for path in self._known.keys() - kept.keys() for row in self._known[path].rows],
        )
        return {
            path: kept.get(path) or _Known(state, self._read(connection, path))
            for path, state in there.items()
        }

    def _files(self) -> Iterator[tuple[Path, _State]]:
        count = 0
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() not in KINDS:
                continue
            with suppress(OSError):  # it has gone meanwhile, or may not be seen
                if path.is_file() and path.resolve().is_relative_to(self._folder):
                    stat = path.stat()
                    if stat.st_size <= LARGEST and count < MOST:
                        count += 1
                        yield path, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)

    def _read(self, connection: sqlite3.Connection, path: Path) -> range:
        """Add the file's passages; their rows. None of a file that cannot be read."""
        # A name need not be text in UTF-8.
        name = os.fsencode(path.relative_to(self._folder)).decode("utf-8", "replace")
        try:
            text = path.read_text("utf-8", errors="replace")
        except OSError as error:
            logger.warning("documents: %s is not searched: %s", name, error.strerror or error)
            return range(0)
        found = list(passages(text, Path(name).stem))
        rows = range(self._rows, self._rows + len(found))
        self._rows = rows.stop
        connection.executemany(
            "INSERT INTO passages (rowid, file, title, body) VALUES (?, ?, ?, ?)",
            [(row, name, title, body) for row, (title, body) in zip(rows, found, strict=True)],
        )
        return rows


def passages(text: str, title: str) -> Iterator[tuple[str, str]]:
    """A text's passages with the heading that each stands under; cut at blank lines."""
    body: list[str] = []
    length = 0
    for part in re.split(r"\n\s*\n", text):
        heading = re.match(r"#{1,6}\s+(.+)", part.strip())
        if body and (heading or length + len(part) > PASSAGE):
            yield title, "\n\n".join(body)
            body, length = [], 0
        if heading:
            title = heading[1].strip("# \n")
        for begin in range(0, len(part), PASSAGE):
            piece = part[begin : begin + PASSAGE].strip()
            if piece:
                if length and length + len(piece) > PASSAGE:
                    yield title, "\n\n".join(body)
                    body, length = [], 0
                body.append(piece)
                length += len(piece)
    if body:
        yield title, "\n\n".join(body)
