"""A folder of Markdown and text files, searched by SQLite's full-text index (FTS5).

The index is in memory, made when it is first asked, and looks at each question which files are
new, changed or gone. Links that lead out of the folder are not followed.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KINDS = {".md", ".markdown", ".txt"}
#: Bytes of a file, files of a folder, characters of a passage, passages of an answer.
LARGEST, MOST, PASSAGE, HITS = 2_000_000, 5_000, 1_200, 5


class Hit(NamedTuple):
    """A passage: where it is from, under which heading, and its text."""

    file: str
    title: str
    passage: str


class Index:
    """The files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._lock = threading.Lock()
        self._seen: dict[Path, tuple[float, int]] = {}
        self._connection: sqlite3.Connection | None = None

    def search(self, query: str) -> list[Hit]:
        """The passages that fit the words best; none for a query without any word."""
        words = re.findall(r"\w+", query)[:32]
        if not words:
            return []
        # Quoted, so that no word of the query is one of FTS5's own.
        wanted = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            rows = self._refreshed().execute(
                "SELECT file, title, body FROM passages WHERE passages MATCH ? "
                "ORDER BY rank LIMIT ?",
                (wanted, HITS),
            )
            return [Hit(*row) for row in rows]

    def _refreshed(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(":memory:", check_same_thread=False)
            self._connection.execute(
                "CREATE VIRTUAL TABLE passages USING fts5(file UNINDEXED, title, body, "
                "tokenize='porter unicode61')"
            )
        there = dict(self._files())
        for path in self._seen.keys() - there.keys():
            self._forget(path)
        for path, state in there.items():
            if self._seen.get(path) != state:
                self._forget(path)
                self._read(path)
                self._seen[path] = state
        return self._connection

    def _files(self) -> Iterator[tuple[Path, tuple[float, int]]]:
        count = 0
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() not in KINDS or not path.is_file():
                continue
            if not path.resolve().is_relative_to(self._folder):
                continue
            state = path.stat()
            if state.st_size <= LARGEST and count < MOST:
                count += 1
                yield path, (state.st_mtime, state.st_size)

    def _forget(self, path: Path) -> None:
        assert self._connection is not None
        self._seen.pop(path, None)
        self._connection.execute("DELETE FROM passages WHERE file = ?", (self._name(path),))

    def _read(self, path: Path) -> None:
        assert self._connection is not None
        text = path.read_text("utf-8", errors="replace")
        self._connection.executemany(
            "INSERT INTO passages (file, title, body) VALUES (?, ?, ?)",
            [(self._name(path), title, body) for title, body in passages(text, path.stem)],
        )

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()


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
