"""A web server on this machine that sends ranges of files, and fails when it is told to."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Files:
    """What is served.

    Attributes:
        content: Name -> bytes; a name may be replaced at any time.
        requests: Method, name and range of each request so far.
        fails: Number of a request -> status that it is answered with instead.
        cuts: Numbers of requests that are answered with half of the bytes, and the connection closed.
        has_ranges: Whether parts are sent at all.
        has_marks: Whether it tells an ETag.
    """

    content: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fails: dict[int, int] = field(default_factory=dict)
    cuts: set[int] = field(default_factory=set)
    has_ranges: bool = True
    has_marks: bool = True
    url: str = ""


@contextmanager
def serve_files() -> Iterator[Files]:
    """A running server."""
    files = Files()

    class Handler(_Handler):
        shared = files

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    files.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    shared: Files
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's receipt of its headers

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        asked = self.headers.get("Range", "")
        number = len(self.shared.requests)
        self.shared.requests.append(f"{self.command} {name} {asked}".rstrip())
        if number in self.shared.fails:
            self._send(self.shared.fails[number], b"no", {})
        elif name in self.shared.content:
            self._file(self.shared.content[name], asked, is_cut=number in self.shared.cuts)
        else:
            self._folder(name)

    def _file(self, content: bytes, asked: str, is_cut: bool) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        headers["Accept-Ranges"] = "bytes" if self.shared.has_ranges else "none"
        if self.shared.has_marks:
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if self.headers.get("If-Match") not in (None, headers.get("ETag")):
            self._send(412, b"another", {})
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if found and self.shared.has_ranges:
            start, end = int(found[1]), min(int(found[2]) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self._send(206, content[start:end], headers, is_cut)
        else:
            self._send(200, content, headers, is_cut)

    def _folder(self, name: str) -> None:
        prefix = f"{name.rstrip('/')}/" if name else ""
        inside = sorted({path[len(prefix) :] for path in self.shared.content if path.startswith(prefix)})
        entries = sorted({path.partition("/")[0] + "/" * ("/" in path) for path in inside})
        if not entries:
            self._send(404, b"no such file", {})
        elif not self.path.endswith("/"):
            self._send(301, b"", {"Location": f"{self.path}/"})
        else:
            page = "".join(f'<a href="{entry}">{entry}</a>' for entry in entries)
            self._send(200, page.encode(), {"Content-Type": "text/html"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], is_cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
        self.close_connection = is_cut
