"""A local preview of the rendered board: the standard library's server, on this machine's loopback address only."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a rendered folder; port 0 picks a free one. Raises ValueError where nothing is rendered, OSError."""
    if not (folder / "index.html").is_file():
        raise ValueError(f"nothing is rendered in {folder}: run 'archbench board' first")
    return ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(folder)))


def serve(folder: Path, port: int) -> None:
    """Serve until interrupted. Raises ValueError, OSError (a port that is taken)."""
    with server(folder, port) as running:
        print(f"http://127.0.0.1:{running.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return
