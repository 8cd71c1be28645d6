"""Servers of the completions API that give odd answers. See tests/helpers/fuzz.py."""

from __future__ import annotations

import json
import random
import socketserver
import threading
import zlib
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from unittest import mock

from tests.helpers.fuzz import Tally
from tests.helpers.fuzz_results import damage_json

MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
CHOICE = {"text": "answer", "index": 0, "finish_reason": "stop"}
LOGPROBS = [
    {"top_logprobs": [{"token_id:5": -0.5, "token_id:7": -1.5}], "tokens": ["token_id:5"]},
    {"content": [{"id": 5, "logprob": -0.5, "top_logprobs": [{"id": 5, "logprob": -0.5}]}]},
    None,
]
LARGE_CONTENTS = [b"x" * 20_000_000, b"[" * 1_000_000, zlib.compress(bytes(30_000_000))]
BROKEN_RESPONSES = [b"", b"HTTP/1.1 200", b"\xff\xfe" * 100, b"HTTP/9.9 abc\r\n\r\n", b'{"choices": []}']
STATUSES = [
    *("200", "20", "abc", "204 No Content", "206 Partial", "301 Moved", "302 Found", "304 Not Modified", "307 Gone"),
    *(
        "400 Bad",
        "401 No",
        "404 Not Found",
        "418 Teapot",
        "429 Too Many",
        "500 Error",
        "503 Busy",
        "599 Odd",
        "999 Odd",
    ),
]
HEADERS = [
    *[("Content-Length", value) for value in ("0", "-1", "1, 2", "many", "99999999999999", "3")],
    *[("Content-Encoding", value) for value in ("gzip", "deflate", "br", "identity", "x")],
    *[("Content-Type", value) for value in ("text/html; charset=utf-16", "application/json; charset=nope", "")],
    *[("Location", value) for value in ("http://127.0.0.1:9/v1", "//x", "http://[bad", "", "\xff", "http://u:p@h/")],
    *[("Retry-After", value) for value in ("1", "-1", "1e999", "nan", "soon", "9" * 400)],
    *[("Retry-After", f"Fri, 31 Dec {year} 23:59:59 GMT") for year in ("9999", "99999", "0000", "1")],
    *[("Transfer-Encoding", "chunked"), ("Set-Cookie", "a=b; domain=x"), ("bad header", ""), ("X", "y" * 70_000)],
]


def fuzz_servers(count, seed):
    from ropewalk import json_requests
    from ropewalk.completions import CompletionsClient
    from ropewalk.evaluate.sample import Sample
    from ropewalk.evaluate.server_text_generator import ServerTextGenerator
    from ropewalk.serving.verify.logprob_client import LogprobClient

    samples = [Sample(index, [1, 2], (), max_new_tokens=2, stop=("x",)) for index in range(2)]
    tokenizer = type("Tokenizer", (), {"__len__": lambda _: 0, "batch_decode": lambda *_: []})()
    reference = SimpleNamespace(vocabulary_size=100, tokenizer=tokenizer)

    def generate(url):
        for _, text in ServerTextGenerator(CompletionsClient(url), None, 2).generate(samples):
            text.encode()  # fails for a lone surrogate

    def read_logprobs(url):
        output = LogprobClient(url, reference).run([[1], [1, 2]], lambda _: None)
        assert all(0 <= token < 100 and logprob <= 0.01 for top in output.top_logprobs for token, logprob in top)

    draw, tally = random.Random(seed), Tally(allow_runtime_errors=True)
    with (
        mock.patch.object(json_requests, "sleep"),
        mock.patch.object(json_requests, "_TIMEOUT", (2.0, 2.0)),
        run_raw_server() as (url, responses),
    ):
        for _ in range(count):
            completion = {"id": "1", "choices": [{**CHOICE, "logprobs": draw.choice(LOGPROBS)}]}
            responses["models"] = draw_response(MODELS, draw, 0.3)
            responses["completions"] = draw_response(completion, draw, 0.8)
            responses["version"] = draw_response({"version": "1.0"}, draw, 0.5)
            tally.run("text", responses, generate, url)
            tally.run("logprobs", responses, read_logprobs, url)
    return tally


def draw_response(document, draw, probability):
    """Return the bytes of an HTTP response with the document, or with this probability those of an odd one."""
    content, status, headers = json.dumps(document).encode(), "200 OK", {}
    if draw.random() < probability:
        if draw.random() < 0.02:
            return draw.choice(BROKEN_RESPONSES)
        content = draw.choice(LARGE_CONTENTS) if draw.random() < 0.03 else damage_json(document, draw)
        status = draw.choice(STATUSES) if draw.random() < 0.3 else status
        headers = dict(draw.choice(HEADERS) for _ in range(draw.choice([0, 0, 1, 2])))
    headers = {"Content-Length": str(len(content)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


@contextmanager
def run_raw_server():
    """Run a server; yield its base URL, and a dict for its raw responses by the last part of the path."""
    responses = {}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with suppress(OSError):  # the client has read enough
                path = self.rfile.readline().split()[1].decode()
                length = 0
                while line := self.rfile.readline().strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                self.rfile.read(length)
                self.wfile.write(responses.get(path.rpartition("/")[2], responses["version"]))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True
        request_queue_size = 100

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1", responses
        finally:
            server.shutdown()
