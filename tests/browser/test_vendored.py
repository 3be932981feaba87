"""The libraries in the page are what their npm packages ship, and their licences are beside them."""

from __future__ import annotations

import json
import re

import pytest
from browser.vendored import FOLDER, NpmUnavailable, fetch_files

MANIFEST = json.loads((FOLDER / "package.json").read_text())


def test_every_file_is_named_and_every_package_has_its_licence() -> None:
    names = {path.name for path in FOLDER.iterdir()} - {"package.json", "README.md"}
    assert names == set(MANIFEST["files"])
    packages = {source.partition("/")[0] for source in MANIFEST["files"].values()}
    assert packages == set(MANIFEST["dependencies"])
    assert {f"{package}.LICENSE" for package in packages} <= names


@pytest.mark.parametrize(("name", "banner"), [("marked.esm.js", "marked v{}"), ("purify.es.mjs", "DOMPurify {}")])
def test_files_that_say_their_version_say_the_right_one(name: str, banner: str) -> None:
    package = MANIFEST["files"][name].partition("/")[0]
    assert banner.format(MANIFEST["dependencies"][package]) in (FOLDER / name).read_text()[:400]


def test_versions_are_exact() -> None:
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in MANIFEST["dependencies"].values())


def test_files_are_those_of_their_packages() -> None:
    try:
        published = fetch_files()
    except NpmUnavailable as error:
        pytest.skip(f"npm does not reach its registry: {error}")
    assert {name: (FOLDER / name).read_bytes() for name in MANIFEST["files"]} == published
