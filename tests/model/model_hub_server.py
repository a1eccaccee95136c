"""A stand-in for the Hugging Face Hub: what `snapshot_download` asks about models, on this machine alone."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class ModelHubServer(ThreadingHTTPServer):
    """Serves models, and errors, until it is closed.

    Args:
        models: Files of each model: {"shop/base": {"config.json": b"…"}}.
        errors: Status and headers of every answer about a model: {"shop/secret": (401, {"X-Error-Code": "…"})}.
        file_errors: The same for models of which only the files are denied.
    """

    def __init__(self, models, errors, file_errors):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.models, self.errors, self.file_errors = models, errors, file_errors
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/models/").split("/")
        name, action, path = "/".join(parts[:2]), (parts[2:] or ["info"])[0], "/".join(parts[4:])
        files = self.server.models.get(name, {})
        denied = self.server.errors.get(name) or (action == "resolve" and self.server.file_errors.get(name))
        if denied:
            self._send(denied[0], b"{}", **denied[1])
        elif name not in self.server.models:
            self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif action == "resolve" and path in files:
            mark = hashlib.sha1(files[path]).hexdigest()
            self._send(200, files[path], **{"X-Repo-Commit": COMMIT, "ETag": f'"{mark}"'})
        elif action == "tree":
            listed = [{"type": "file", "path": file, "size": len(held), "oid": file} for file, held in files.items()]
            self._send(200, json.dumps(listed).encode())
        else:
            siblings = [{"rfilename": file} for file in files]
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings, "tags": []}).encode())

    do_HEAD = do_GET

    def _send(self, status, body, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
