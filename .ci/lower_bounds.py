"""Fail where a lower bound in setup.cfg is not the version that is installed.

Other packages may need a later one. Then nobody can have the version that is declared.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version


def wrong_bounds(package: str) -> list[str]:
    """Return a sentence for each package that is installed, and not in its lowest version."""
    wrong = []
    for requirement in map(Requirement, requires(package) or ()):
        if requirement.name == package:  # an extra of ours
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:  # an extra that these tests do not need
            continue
        lower = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        if lower != [Version(installed)]:
            wrong.append(f"{requirement}: the lowest version that installs is {installed}")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(wrong_bounds("flask-llm-stream")) or None)
