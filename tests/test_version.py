"""The version has one place, and the changelog agrees with it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import openai_local

CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"


def test_the_changelogs_latest_version_is_the_packages() -> None:
    heads = re.findall(r"^## \[(.+?)\]( - \d{4}-\d{2}-\d{2})?$", CHANGELOG.read_text(), re.M)
    assert heads[0][0] == "Unreleased"
    assert heads[1] == (openai_local.__version__, heads[1][1])
    assert heads[1][1], "a released version has its date"


def test_the_installed_package_has_this_version() -> None:
    assert version("openai-local") == openai_local.__version__
