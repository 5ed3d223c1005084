"""A Cloud Storage server on the loopback, with faults: gcp-storage-emulator, made strict.

The emulator keeps objects and checks their checksums.  Added are what it leaves out and leases rest on, the
conditions on generations, and what goes wrong elsewhere: a server that is down, busy, slow, refuses, or
answers nobody though it has done what it was asked to.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import logging
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

server = pytest.importorskip(
    "gcp_storage_emulator.server", reason="needs gcp-storage-emulator (pip install '.[test]')"
)
pytest.importorskip("google.cloud.storage", reason="needs google-cloud-storage (pip install '.[gcs]')")

from gcp_storage_emulator.handlers import buckets  # noqa: E402
from gcp_storage_emulator.storage import Storage  # noqa: E402

for name in ("gcp_storage_emulator", "api.object", "gcp_storage_emulator.server"):
    logging.getLogger(name).addHandler(logging.NullHandler())

# Called with method, path and query before a request is answered: the status to answer with, or None.
Fault = Callable[[str, str, dict[str, str]], int | None]


class BucketServer:
    """The server, running, with an empty bucket.

    Attributes:
      requests: method and path of each, in order.
      fault: what goes wrong; see `Fault`.
      lost: whether requests are carried out and the connection is closed without an answer.
    """

    def __init__(self, bucket: str = "kd-bucket") -> None:
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault = lambda method, path, query: None
        self.lost: Fault = lambda method, path, query: None
        self.storage = Storage(use_memory_fs=True, data_dir="/nowhere")
        self._lock = threading.Lock()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        # What is kept for the next process, all of it at each request, and for undeleting.
        self.storage._write_config_to_file = lambda: None
        buckets.create_bucket(bucket, self.storage)
        self.storage.buckets[bucket]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
        self._server: http.server.ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        """Lets it answer, with the objects that it had."""
        outer = self

        class Handler(server.RequestHandler):  # type: ignore[misc, name-defined]
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1  # an answer in one piece

            def __init__(self, *arguments: Any) -> None:
                super().__init__(outer.storage, *arguments)

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def _answer(self, handle: Callable[[], None]) -> None:
                method, url = self.command, urllib.parse.urlparse(self.path)
                query = dict(urllib.parse.parse_qsl(url.query))
                path = urllib.parse.unquote(url.path)
                outer.requests.append((method, path))
                status = outer.fault(method, path, query)
                connection = self.rfile
                body = connection.read(int(self.headers.get("Content-Length") or 0))
                self.rfile = io.BufferedReader(io.BytesIO(body))  # type: ignore[arg-type]
                with outer._lock:
                    self._count_from_the_end(path)
                    status = status or outer._unmet(method, path, query, body)
                    if status is not None:
                        self._refuse(status)
                    elif outer.lost(method, path, query):
                        answer, self.wfile = self.wfile, io.BytesIO()  # type: ignore[assignment]
                        handle()
                        self.wfile, self.close_connection = answer, True
                    else:
                        handle()
                self.rfile = connection

            def _count_from_the_end(self, path: str) -> None:
                """Of the last bytes of an object, which the emulator does not know how to give."""
                if last := re.fullmatch(r"bytes=-(\d+)", self.headers.get("Range") or ""):
                    held = outer._held(*_object(path))
                    size = int(held["size"]) if held else 0
                    self.headers.replace_header("Range", f"bytes={max(size - int(last[1]), 0)}-")

            def _refuse(self, status: int) -> None:
                message = f'{{"error": {{"code": {status}, "message": "as asked"}}}}'.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(message)))
                self.end_headers()
                self.wfile.write(message)

            def do_GET(self) -> None:
                self._answer(super().do_GET)

            def do_POST(self) -> None:
                self._answer(super().do_POST)

            def do_PUT(self) -> None:
                self._answer(super().do_PUT)

            def do_DELETE(self) -> None:
                self._answer(super().do_DELETE)

        http.server.ThreadingHTTPServer.request_queue_size = 64
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on; the objects stay."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Something goes wrong for as long as the block lasts."""
        before, self.fault = self.fault, fault
        try:
            yield
        finally:
            self.fault = before

    def names(self, bucket: str = "kd-bucket") -> list[str]:
        """The names of all objects."""
        return sorted(self.storage.objects.get(bucket, {}))

    def contents(self, name: str, bucket: str = "kd-bucket") -> bytes:
        """The bytes of an object."""
        contents: bytes = self.storage.get_file(bucket, name)
        return contents

    def _held(self, bucket: str, name: str | None) -> Any:
        return self.storage.objects.get(bucket, {}).get(name)

    def _unmet(self, method: str, path: str, query: dict[str, str], body: bytes) -> int | None:
        """412 if the object is not of the generation that the request is bound to."""
        wanted = query.get("ifGenerationMatch")
        if wanted is None or method == "GET":
            return None
        bucket, name = _object(path)
        name = name or query.get("name")
        if name is None:  # of a multipart upload
            name = re.search(rb'"name": ?"((?:[^"\\]|\\.)*)"', body)[1].decode()  # type: ignore[index]
        held = self._held(bucket, name)
        return None if wanted == (held["generation"] if held else "0") else 412


def _object(path: str) -> tuple[str, str | None]:
    """The bucket and the object that a path of the JSON interface names."""
    found = re.fullmatch(r".*/b/([^/]+)/o(?:/(.+))?", path)
    assert found is not None, path
    return found[1], found[2]


def environment(url: str, cache: object) -> dict[str, str]:
    """What makes a process use the server, whichever library asks; `cache` is for its own files."""
    return {
        "STORAGE_EMULATOR_HOST": url,  # google-cloud-storage, gcsfs
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array_record
        "TENSORSTORE_GCS_HTTP_URL": url,
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which looks for buckets of a kind by gRPC
        "XDG_CACHE_HOME": str(cache),
    }


def refusing_after(count: int) -> Fault:
    """A fault: from some request on nothing is done any more, as for a process that was killed there."""
    left = [count]

    def fault(method: str, path: str, query: dict[str, str]) -> int | None:
        left[0] -= 1
        return 403 if left[0] < 0 else None

    return fault
