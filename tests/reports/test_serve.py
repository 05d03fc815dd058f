"""The preview: what it serves, what it never serves, and that a page reloads when the board changed."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from archbench.reports import serve as preview
from archbench.reports.site import MARKER, render
from archbench.reports.watch import changes, fingerprint
from results_builder import cell, note, run, small, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Preview:
    """A rendered board behind a running server."""

    def __init__(self, folder: Path) -> None:
        self.results, self.site = small(folder / "results"), folder / "site"
        render(self.results, self.site)
        self.server = preview.server(self.site, 0)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def get(self, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Preview]:
    made = Preview(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_pages_are_served_and_the_files_stay_as_they_are(board: Preview) -> None:
    before = {p: p.read_bytes() for p in board.site.rglob("*") if p.is_file()}
    for path in ("/", "/index.html", "/track/attention.html?x=1", "/status.html"):
        status, body = board.get(path)
        assert status == 200, path
        assert b"<h1" in body
        assert preview.CHANGED.encode() in body
    assert board.get("/status.html", method="HEAD") == (200, b"")
    assert {p: p.read_bytes() for p in board.site.rglob("*") if p.is_file()} == before
    assert all(preview.CHANGED.encode() not in content for content in before.values())


@pytest.mark.parametrize(
    "path",
    ["/track/", "/track", "/nothing.html", f"/{MARKER}", "/../results/secret", "/%2e%2e/secret", "/..%2fsecret",
     "//etc/passwd", "/link.html", "/away/secret", "/pipe.html", "/a%00b", "/" + "x" * 5000, "/track/..%5c..%5csecret",
     "index.html"],
)  # fmt: skip
def test_nothing_else_is_served(path: str, board: Preview) -> None:
    (board.site.parent / "secret").write_text("secret")
    (board.site / "link.html").symlink_to(board.site.parent / "secret")
    (board.site / "away").symlink_to(board.site.parent)
    os.mkfifo(board.site / "pipe.html")
    status, body = board.get(path)
    assert status in (400, 404)
    assert b"secret" not in body


def test_the_server_listens_on_the_loopback_address_and_answers_to_no_other_name(board: Preview) -> None:
    assert board.server.server_address[0] == "127.0.0.1"
    assert board.get("/", host=f"localhost:{board.port}")[0] == 200
    assert board.get("/", host="evil.example")[0] == 403
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", board.port), timeout=2)


def test_the_policy_gains_the_script_and_the_connection_and_nothing_else() -> None:
    policy = b"default-src &#39;none&#39;; script-src &#39;sha256-none&#39;"
    page = b'<meta http-equiv="Content-Security-Policy" content="' + policy + b'"><body></body>'
    served = preview.with_reload(page, "abc").decode()
    assert "default-src &#x27;none&#x27;; script-src &#x27;sha256-none&#x27; &#x27;sha256-" in served
    assert '; connect-src &#x27;self&#x27;">' in served
    assert "unsafe" not in served
    assert preview.with_reload(b"no body", "abc") == b"no body"


def test_a_page_that_waits_hears_of_the_next_render(board: Preview, monkeypatch: pytest.MonkeyPatch) -> None:
    now = preview.state(board.site)
    monkeypatch.setattr(preview, "PATIENCE_S", 0.3)
    assert board.get(f"{preview.CHANGED}?since={now}")[0] == 204
    render(board.results, board.site)
    assert board.get(f"{preview.CHANGED}?since={now}")[0] == 204, "a render that changed nothing reloads nothing"
    write(board.results, [run(identity="20260202T030405Z-bbbbbb"), note(), cell("base"), cell("newcomer", 0.4)])
    render(board.results, board.site)
    assert board.get(f"{preview.CHANGED}?since={now}")[0] == 200


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_reloads_the_page_and_no_policy_is_broken(board: Preview) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{board.port}/track/attention.html")
        assert page.get_by_text("newcomer").count() == 0
        records = [run(identity="20260202T030405Z-bbbbbb", started="2026-02-02T03:04:05+00:00"), note(), cell("base")]
        write(board.results, [*records, cell("newcomer", 0.4)])
        render(board.results, board.site)
        page.get_by_text("newcomer").first.wait_for(state="attached", timeout=15_000)
        browser.close()
    assert [text for text in said if "Security Policy" in text] == []


def test_changes_are_seen_and_nothing_else_is_a_change(tmp_path: Path) -> None:
    results = small(tmp_path / "results")
    stop = threading.Event()
    seen = changes(results, stop, pause_s=0.01)
    next(seen)
    before = fingerprint(results)
    (results / "new.json").write_text("{}")
    assert fingerprint(results) != before
    next(seen)
    (results / "new.json").unlink()
    assert fingerprint(results) == before
    next(seen)
    stop.set()
    assert list(seen) == []


def test_nothing_rendered_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="archbench board"):
        preview.server(tmp_path, 0)
