"""The official client of Socket.IO for browsers, as npm has it."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

NPM = shutil.which("npm")
#: Any of the version that the server's protocol is of.
PACKAGE = "socket.io-client@4"


def fetch(folder: Path) -> Path:
    """Put the client in that folder; where its `socket.io.min.js` is then."""
    assert NPM is not None
    subprocess.run(
        [
            *(NPM, "pack", PACKAGE, "--pack-destination", folder, "--cache", folder / "cache"),
            *("--silent", "--no-update-notifier", "--no-audit", "--no-fund"),
        ],
        cwd=folder,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    (packed,) = folder.glob("socket.io-client-*.tgz")
    with tarfile.open(packed) as package:
        package.extractall(folder, filter="data")
    found = folder / "package" / "dist"
    assert (found / "socket.io.min.js").is_file()
    return found
