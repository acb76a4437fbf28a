"""A model hub on this machine: the few endpoints `huggingface_hub` asks when it fetches a repository."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def stand_in_hub(
    repository: str, folder: Path, *, fault: str | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as the one repository of a hub; yield its address and the list of paths asked for so far.

    `fault` is what every request is answered with: "gated", "down", or "cut" (files end before their time).
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(has_body=True)

        def do_HEAD(self) -> None:
            self.answer(has_body=False)

        def log_message(self, format: str, *values: object) -> None:
            pass

        def answer(self, *, has_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            if fault == "down":
                return self.send(500, b"", {}, has_body)
            if fault == "gated":
                return self.send(403, b"", {"X-Error-Code": "GatedRepo"}, has_body)
            if repository not in path:
                return self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, has_body)
            if match := re.fullmatch(rf"/api/models/{repository}/(revision|tree)/([^/]+)", path):
                if match[2] not in ("main", COMMIT):
                    return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, has_body)
                described = self.revision() if match[1] == "revision" else self.tree()
                return self.send(
                    200, json.dumps(described).encode(), {"Content-Type": "application/json"}, has_body
                )
            if match := re.fullmatch(rf"/{repository}/resolve/[^/]+/(.+)", path):
                content = (folder / match[1]).read_bytes()
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                return self.send(200, content, headers, has_body)
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, has_body)

        def revision(self) -> dict[str, object]:
            names = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": names}

        def tree(self) -> list[dict[str, object]]:
            return [
                {
                    "type": "file",
                    "path": str(path.relative_to(folder)),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]

        def send(self, status: int, body: bytes, headers: dict[str, str], has_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if has_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
