"""A model hub on this machine: it serves folders as repositories, and counts what is asked of it."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Its address, for HF_ENDPOINT, and what was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: Counter[tuple[str, str]] = Counter()
        """(method, file) -> how often, where the file is there."""
        self.url = ""


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """`root/owner/name/file` is at owner/name in the hub, on any branch."""
    hub, lock = Hub(root), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, with_body: bool) -> None:
            repository, _, rest = self.path.strip("/").partition("/resolve/")
            file = hub.root / repository / rest.partition("/")[2]
            if not rest or not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            with lock:
                hub.asked[self.command, file.name] += 1
            body = file.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
