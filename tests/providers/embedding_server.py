"""A server with OpenAI's and Bedrock's interfaces for embeddings, which can be told to misbehave; on this machine."""

import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np

WIDTH = 48


def embedding(text):
    """Return the embedding of a text: a random direction for each word, added up."""
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") for word in text.lower().split()]
    return sum(np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds)


class EmbeddingServer(ThreadingHTTPServer):
    """Answers until it is closed.

    Attributes:
        requests: The bodies of all that were answered with embeddings.
        asked: The same of all requests, with their headers.
        faults: What the next requests get instead of an answer: (status, headers, body), or "drop".
        most: Texts that it takes at once.
        key: What it asks for.
        pause: Seconds that each answer takes; one is made after the other.
        change: Changes an answer before it is sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests, self.asked, self.faults = [], [], []
        self.most, self.key, self.pause, self.change = 2048, "", 0.0, lambda answer: answer
        self.lock, self.turn = threading.Lock(), threading.Lock()

    @property
    def texts(self):
        return [text for body in self.requests for text in body["input"]]


@contextmanager
def serving():
    server = EmbeddingServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((body, dict(self.headers)))
            fault = server.faults.pop(0) if server.faults else None
        if fault == "drop":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")  # and no more
            self.close_connection = True
            return
        if fault:
            self._send(*fault)
        elif self.path.startswith("/model/"):
            model = unquote(self.path.split("/")[2])
            with server.lock:
                server.requests.append(body | {"model": model})
            self._send(200, {"x-amzn-bedrock-input-token-count": "7"}, json.dumps(_bedrock_answer(body)))
        elif server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            self._error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        elif self.path != "/v1/embeddings" or not body["model"].startswith("toy"):
            self._error(404, f"The model `{body['model']}` does not exist")
        elif len(body["input"]) > server.most:
            self._error(422, f"batch size {len(body['input'])} > maximum allowed batch size {server.most}")
        else:
            with server.turn:
                time.sleep(server.pause)
                self._send(200, {}, json.dumps(server.change(_answer(body))))
                server.requests.append(body)

    def _error(self, status, message):
        self._send(status, {}, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}))

    def _send(self, status, headers, body):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def _bedrock_answer(body):
    if "inputText" in body:  # Titan
        return {"embedding": embedding(body["inputText"]).tolist(), "inputTextTokenCount": 3}
    rows = [embedding(text).tolist() for text in body["texts"]]
    return {"embeddings": {"float": rows} if "embedding_types" in body else rows, "texts": body["texts"]}


def _answer(body):
    """Return the answer, the last text first, as a server may."""
    width = body.get("dimensions", WIDTH)
    rows = [embedding(text)[:width].tolist() for text in body["input"]]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    tokens = sum(len(text.split()) for text in body["input"])
    return {"object": "list", "model": body["model"], "data": data[::-1], "usage": {"total_tokens": tokens}}
