"""The files of the chat page: its own only, nothing from elsewhere, and a policy that holds it to that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ingress.bench import Bench, error_of

UI = Path(__file__).parents[2] / "deployments" / "ingress" / "ui"
OWN = sorted(path.relative_to(UI).as_posix() for path in UI.glob("*.*"))
SCRIPTS = [name for name in OWN if name.endswith(".js")]


def imports_of(name: str) -> set[str]:
    found = re.findall(r'^import (?:.+? from )?"\./([^"]+)";$', (UI / name).read_text(), re.MULTILINE)
    return set(found)


async def test_every_file_is_served_as_what_it_is(bench: Bench) -> None:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in UI.iterdir():
        reply = await bench.client.get(f"/ui/{path.name}")
        assert (reply.status_code, reply.content) == (200, path.read_bytes())
        assert reply.headers["content-type"].partition(";")[0] == kinds[path.suffix]
        assert reply.headers["x-content-type-options"] == "nosniff"


async def test_a_file_that_the_browser_has_is_not_sent_again(bench: Bench) -> None:
    for path in ("/", "/ui/app.js"):
        first = await bench.client.get(path)
        again = await bench.client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
        assert (await bench.client.get(path, headers={"If-None-Match": '"other"'})).content == first.content
    other = await bench.client.get("/ui/style.css")
    assert other.headers["etag"] != first.headers["etag"]


async def test_the_policy_is_strict(bench: Bench) -> None:
    for path in ("/", "/ui/app.js", "/ui/icon.svg"):
        policy = (await bench.client.get(path)).headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert "script-src 'self'" in policy
        assert "style-src 'self'" in policy
        assert "trusted-types retina-markdown" in policy
        assert not re.search(r"unsafe|https?:|data:|\*", " ".join(policy))


@pytest.mark.parametrize("name", OWN)
def test_nothing_is_from_elsewhere_or_made_of_strings(name: str) -> None:
    text = (UI / name).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text)
    if name != "markdown.js":
        assert not re.search(r"DOMParser|trustedTypes|createContextualFragment|setHTML|srcdoc", text)
    if name == "index.html":
        assert not re.search(r"style=|<script>|\son[a-z]+=", text)


@pytest.mark.parametrize("name", OWN)
def test_files_begin_with_what_they_are_for(name: str) -> None:
    first = (UI / name).read_text().splitlines()[0]
    assert re.match(r"(// |/\* |<!-- )[A-Z].{20,}", first), first


def test_scripts_are_loaded_at_once() -> None:
    """The page names all modules, so that none waits until another one has asked for it."""
    page = (UI / "index.html").read_text()
    preloaded = re.findall(r'<link rel="modulepreload" href="ui/([^"]+)" />', page)
    imported = set().union(*(imports_of(name) for name in SCRIPTS))
    assert sorted(preloaded) == sorted(imported)
    assert set(SCRIPTS) - {"app.js", "theme.js"} <= imported


def test_the_page_refers_to_its_own_elements() -> None:
    page = (UI / "index.html").read_text()
    ids = re.findall(r'\bid="(\w+)"', page)
    assert len(ids) == len(set(ids))
    scripts = "".join((UI / name).read_text() for name in SCRIPTS)
    used = set(re.findall(r'byId\("(\w+)"\)', scripts))
    for names in re.findall(r"= \[([^\]]+)\]\.map\(byId\)", scripts):
        used |= set(re.findall(r'"(\w+)"', names))
    assert used <= set(ids)
    assert set(re.findall(r'(?:for|aria-labelledby|aria-describedby|popovertarget)="(\w+)"', page)) <= set(ids)


async def test_other_files_are_not_served(bench: Bench) -> None:
    for name in ("other.js", "..%2Fapp.py", "%2Fetc%2Fpasswd", "markdown", "vendor/app.js", ""):
        error_of(await bench.client.get(f"/ui/{name}"), 404, "not_found")
