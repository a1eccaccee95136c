"""A stand-in for the Hugging Face Hub: the few answers that `datasets.load_dataset` needs, on this machine alone."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

MAIN, V1 = "a" * 40, "b" * 40
REVISIONS = {"main": MAIN, MAIN: MAIN, "v1": V1, V1: V1}


class HubServer(ThreadingHTTPServer):
    """Serves data sets, and errors, until it is closed.

    Args:
        repositories: Files of each repository, by commit: {"shop/pairs": {MAIN: {"train.csv": b"…"}}}. A commit that a
            repository lacks is an unknown revision.
        errors: Status and X-Error-Code of every answer about a repository: {"shop/secret": (401, "RepoNotFound")}.
        file_errors: The same for repositories of which only the files are denied.
    """

    def __init__(self, repositories, errors, file_errors):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories, self.errors, self.file_errors = repositories, errors, file_errors
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/").split("/")
        name, (action, revision, *rest) = "/".join(path[1:3]), [*path[3:], "", ""][: max(2, len(path) - 3)]
        status, code = self.server.errors.get(name, (404, "RepoNotFound"))
        if name in self.server.file_errors and action == "resolve":
            status, code = self.server.file_errors[name]
        elif name in self.server.repositories:
            commit = REVISIONS.get(revision or "main")
            files = self.server.repositories[name].get(commit)
            if files is not None:
                return self._answer(name, commit, files, action, "/".join(rest))
            status, code = 404, "RevisionNotFound"
        return self._send(status, b"{}", **{"X-Error-Code": code})

    do_HEAD = do_POST = do_GET

    def _answer(self, name, commit, files, action, path):
        about = {file: {"type": "file", "path": file, "size": len(held), "oid": file} for file, held in files.items()}
        if action == "resolve" and path in files:
            mark = hashlib.sha1(files[path]).hexdigest()
            self._send(200, files[path], **{"X-Repo-Commit": commit, "ETag": f'"{mark}"'})
        elif action == "resolve" or (action == "tree" and path):
            self._send(404, b"{}", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif action == "tree":
            self._send(200, json.dumps(list(about.values())).encode())
        elif action == "paths-info":
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            self._send(200, json.dumps([about[file] for file in asked if file in about]).encode())
        else:
            self._send(200, json.dumps({"id": name, "sha": commit, "siblings": [], "tags": []}).encode())

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
