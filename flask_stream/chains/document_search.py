"""A folder of Markdown and text files, searched by SQLite's full-text index (FTS5).

The index is in memory and is created by the first search. Each search first updates the index for
files that are new, changed or deleted. Links that lead out of the folder are not followed.

All of this runs on a native thread, because file access and SQLite do not cooperate with gevent:
in a greenlet, they would block all streams of the worker.
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

SUFFIXES = {".md", ".markdown", ".txt"}
#: Limits: bytes of a file, files in a folder, characters of a passage, passages in a result.
MAX_BYTES, MAX_FILES, PASSAGE_LENGTH, MAX_HITS = 2_000_000, 5_000, 1_200, 5

#: Modification time, status change time and size. Differs if the file or its mode has changed.
_State = tuple[int, int, int]

_TABLE = """
    CREATE VIRTUAL TABLE passages USING fts5(
        file UNINDEXED, title, body, tokenize='porter unicode61'
    )
"""


class Hit(NamedTuple):
    """A passage: the name of its file, the heading above it, and its text."""

    file: str
    title: str
    passage: str


class _IndexedFile(NamedTuple):
    """A file in the index: its state when it was read, and the rows of its passages."""

    state: _State
    rows: range


class DocumentIndex:
    """The index of one folder. It may be created before a fork, but only searched after it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._thread = NativeThread()
        # Only the native thread uses the following attributes.
        self._connection: sqlite3.Connection | None = None
        self._indexed: dict[Path, _IndexedFile] = {}
        self._rows = 0

    def search(self, query: str) -> list[Hit]:
        """Return the passages that match best; none if the query contains no words.

        Only one search runs at a time. A caller that is interrupted returns at once.
        """
        words = re.findall(r"\w+", query)[:32]
        if not words:
            return []
        # Quoted, because FTS5 would read words such as AND as operators.
        return self._thread.call(self._search, " OR ".join(f'"{word}"' for word in words))

    def _search(self, expression: str) -> list[Hit]:
        if self._connection is None:
            # Another thread closes the connection when the interpreter exits.
            self._connection = sqlite3.connect(":memory:", check_same_thread=False)
            self._connection.execute(_TABLE)
        with self._connection as connection:
            indexed = self._update(connection)
        # Only after the commit: on an error, the index and this dictionary keep their old state.
        self._indexed = indexed
        rows = connection.execute(
            "SELECT file, title, body FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?",
            (expression, MAX_HITS),
        )
        return [Hit(*row) for row in rows]

    def _update(self, connection: sqlite3.Connection) -> dict[Path, _IndexedFile]:
        """Update the index to the folder's current files, and return its new contents."""
        current = dict(self._files())
        kept = {
            path: file for path, file in self._indexed.items() if current.get(path) == file.state
        }
        # By row id: the column `file` is not indexed, so each deletion would scan the table.
        connection.executemany(
            "DELETE FROM passages WHERE rowid = ?",
            [
                (row,)
                for path in self._indexed.keys() - kept.keys()
                for row in self._indexed[path].rows
            ],
        )
        return {
            path: kept.get(path) or _IndexedFile(state, self._read(connection, path))
            for path, state in current.items()
        }

    def _files(self) -> Iterator[tuple[Path, _State]]:
        count = 0
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() not in SUFFIXES:
                continue
            with suppress(OSError):  # deleted meanwhile, or not accessible
                if path.is_file() and path.resolve().is_relative_to(self._folder):
                    stat = path.stat()
                    if stat.st_size <= MAX_BYTES and count < MAX_FILES:
                        count += 1
                        yield path, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)

    def _read(self, connection: sqlite3.Connection, path: Path) -> range:
        """Add the passages of a file and return their rows. An unreadable file has none."""
        # File names are not necessarily valid UTF-8.
        name = os.fsencode(path.relative_to(self._folder)).decode("utf-8", "replace")
        try:
            text = path.read_text("utf-8", errors="replace")
        except OSError as error:
            logger.warning(
                "documents: cannot read %s, which is not searched: %s",
                name,
                error.strerror or error,
            )
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
    """Yield pairs of heading and passage. Passages are cut at blank lines where possible."""
    body: list[str] = []
    length = 0
    for part in re.split(r"\n\s*\n", text):
        heading = re.match(r"#{1,6}\s+(.+)", part.strip())
        if body and (heading or length + len(part) > PASSAGE_LENGTH):
            yield title, "\n\n".join(body)
            body, length = [], 0
        if heading:
            title = heading[1].strip("# \n")
        for begin in range(0, len(part), PASSAGE_LENGTH):
            piece = part[begin : begin + PASSAGE_LENGTH].strip()
            if piece:
                if length and length + len(piece) > PASSAGE_LENGTH:
                    yield title, "\n\n".join(body)
                    body, length = [], 0
                body.append(piece)
                length += len(piece)
    if body:
        yield title, "\n\n".join(body)
