"""A server of the OpenAI completions API on this machine, with answers that a test chooses."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class GreedyModel:
    """Answers requests with the greedy continuation of a model.

    Attributes:
        requests: the requests so far.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.requests = model, tokenizer, []
        self._lock = threading.Lock()

    def __call__(self, request):
        with self._lock, torch.inference_mode():
            self.requests.append(request)
            prompt = torch.tensor([request["prompt"]])
            mask = torch.ones_like(prompt)
            out = self.model.generate(
                prompt, attention_mask=mask, max_new_tokens=request["max_tokens"], do_sample=False, pad_token_id=0
            )
        text = self.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
        return 200, {"choices": [{"text": text}]}


@contextmanager
def run_server(answer, models=("tiny",), log=None):
    """Run a server within the block, and yield its base URL.

    Args:
        answer: returns (status, content) or (status, content, headers) for the body of a request; content is bytes, or
            anything that JSON has.
        models: names that the server lists, or a function of the path that returns what `answer` returns.
        log: list that gets (path, headers) of every request.
    """
    list_models = models if callable(models) else lambda _: (200, {"data": [{"id": name} for name in models]})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._record()
            self._send(*list_models(self.path))

        def do_POST(self):
            self._record()
            self._send(*answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def _record(self):
            if log is not None:
                log.append((self.path, dict(self.headers)))

        def _send(self, status, content, headers=()):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has read enough
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
