"""A local preview of the rendered board, on this machine's loopback address only, that reloads when the board changes.

Nothing is written: the few lines of script that wait for a change are added to the pages as they are sent, together
with their hash in the page's own Content-Security-Policy. Hidden files, links and listings are not served.
"""

from __future__ import annotations

import base64
import hashlib
import html
import mimetypes
import re
import sys
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from archbench.reports.site import MARKER

CHANGED = "/__changed"
PATIENCE_S = 20.0
POLL_S = 0.25
HOSTS = ("127.0.0.1", "localhost")
_SCRIPT = """
(async () => {
  let pause = 0;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    try {
      const answer = await fetch("%s?since=%s");
      if (answer.status === 200) return location.reload();
      pause = 0;
    } catch { pause = 2000; }
  }
})();
"""
_POLICY = re.compile(rb'(<meta http-equiv="Content-Security-Policy" content=")([^"]*)(")')


def state(site: Path) -> str:
    """What tells one render from the next: a digest of what the renderer remembers. Empty while it swaps folders."""
    try:
        return hashlib.sha256((site / MARKER).read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return ""


def with_reload(page: bytes, now: str) -> bytes:
    """A page that reloads itself when the board is not in state ``now`` any more."""
    script = (_SCRIPT % (CHANGED, now)).encode()
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()

    def allow(found: re.Match[bytes]) -> bytes:
        policy = _allow(html.unescape(found[2].decode()), "script-src", f"'sha256-{digest}'")
        return found[1] + html.escape(_allow(policy, "connect-src", "'self'")).encode() + found[3]

    head, tag, tail = page.rpartition(b"</body>")
    if not tag:
        return page
    return _POLICY.sub(allow, head, count=1) + b"<script>" + script + b"</script>" + tag + tail


def _allow(policy: str, directive: str, source: str) -> str:
    parts = [part.strip() for part in policy.split(";") if part.strip()]
    for i, part in enumerate(parts):
        if part.split()[0] == directive:
            known = [word for word in part.split()[1:] if word != "'none'"]
            parts[i] = " ".join([directive, *known, source])
            break
    else:
        parts.append(f"{directive} {source}")
    return "; ".join(parts)


class _Handler(BaseHTTPRequestHandler):
    server_version = "archbench"

    def __init__(self, *arguments: object, site: Path) -> None:
        self._site = site
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        # Another site can point its name at this address; its pages then carry that name here.
        if (self.headers.get("Host") or "").partition(":")[0] not in HOSTS:
            return self._answer(HTTPStatus.FORBIDDEN)
        url = urlsplit(self.path)
        if url.path == CHANGED:
            return self._wait(parse_qs(url.query).get("since", [""])[0])
        path = self._file(unquote(url.path))
        if path is None:
            return self._answer(HTTPStatus.NOT_FOUND)
        now = state(self._site)
        try:
            body = path.read_bytes()
        except OSError:
            return self._answer(HTTPStatus.NOT_FOUND)
        if path.suffix == ".html":
            body = with_reload(body, now)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return self._answer(HTTPStatus.OK, body, f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)

    do_HEAD = do_GET

    def _file(self, path: str) -> Path | None:
        """The file a path names: inside the site, not hidden, and on no link."""
        names = [name for name in path.split("/") if name]
        if path.endswith("/"):
            names.append("index.html")
        if not path.startswith("/") or any(name.startswith(".") or "\\" in name or "\0" in name for name in names):
            return None
        target = self._site
        try:
            for name in names:
                target = target / name
                if target.is_symlink():
                    return None
            return target if target.is_file() else None
        except OSError:  # a name that is too long
            return None

    def _wait(self, since: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if state(self._site) not in ("", since):
                return self._answer(HTTPStatus.OK)
            time.sleep(POLL_S)
        return self._answer(HTTPStatus.NO_CONTENT)

    def _answer(self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status is not HTTPStatus.NO_CONTENT:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status is not HTTPStatus.NO_CONTENT:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet: a preview is looked at, not operated."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a page that waits for a change does not hold up Ctrl-C

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that left in the middle of an answer is no error; anything else is shown as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a rendered folder; port 0 picks a free one. Raises ValueError where nothing is rendered, OSError."""
    if not (folder / "index.html").is_file():
        raise ValueError(f"nothing is rendered in {folder}: run 'archbench board' first")
    return _Server(("127.0.0.1", port), partial(_Handler, site=folder))


def serve(folder: Path, port: int) -> None:
    """Serve until interrupted. Raises ValueError, OSError (a port that is taken)."""
    with server(folder, port) as running:
        print(f"http://127.0.0.1:{running.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return
