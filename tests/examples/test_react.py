"""The React component: its types fit, it builds, and it chats in a browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_service import ROOT, fake_service
from needed_programs import require_program

pytestmark = [pytest.mark.node, pytest.mark.browser]

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/react-chat with its packages."""
    npm = require_program("npm")
    folder = tmp_path_factory.mktemp("react") / "react-chat"
    shutil.copytree(ROOT / "examples" / "react-chat", folder, ignore=shutil.ignore_patterns("node_modules", "main.js"))
    run(folder, npm, "ci")
    return folder


@pytest.fixture(scope="module")
def built(project: Path) -> Path:
    run(project, "npm", "run", "build")
    return project / "public"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_service(tmp_path_factory.mktemp("service")) as address:
        yield address


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_types_fit(project: Path) -> None:
    run(project, "npm", "run", "check")


def test_it_chats_about_a_picture(built: Path, url: str, picture: Path) -> None:
    """The built page under the service's own origin, as a proxy would put it there."""
    from playwright.sync_api import Route, expect, sync_playwright

    def serve(route: Route) -> None:
        route.fulfill(path=built / (route.request.url.rpartition("/")[2] or "index.html"))

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_program("chromium", "google-chrome"), args=list(FLAGS)
        )
        page = browser.new_page()
        page.route(f"{url}/example/*", serve)
        page.goto(f"{url}/example/")
        page.get_by_label("Picture").set_input_files(picture)
        page.get_by_label("Question").fill("What do you see?")
        page.get_by_role("button", name="Ask").click()
        answer = page.locator("[data-answer]")
        expect(answer).to_contain_text("What do you see?")
        expect(page.locator("small")).to_contain_text("tokens")
        page.get_by_label("Question").fill("And now?")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("[data-answer]").nth(1)).to_contain_text("And now?")
        expect(page.locator("small").nth(1)).to_contain_text("tokens")
        browser.close()
