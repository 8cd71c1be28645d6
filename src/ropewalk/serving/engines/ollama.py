from __future__ import annotations

import re
import shlex
from pathlib import Path

from ropewalk.errors import InputError
from ropewalk.files import write_whole
from ropewalk.serving.engines.base import Candidate, Config
from ropewalk.serving.engines.llama_cpp import LlamaCpp


class Ollama(LlamaCpp):
    """Ollama, which since 0.30 starts llama.cpp's server for every GGUF file."""

    name = "ollama"
    title = "Ollama"
    version = "0.30"
    sources = (
        "llm/llama_server.go (startLlamaServer)",
        "llm/server.go (num_ctx at most context_length)",
        *LlamaCpp.sources,
    )
    requirements = ()

    def write(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        written = super().write(model, candidate, out, length)
        modelfile = written.with_name("Modelfile")
        write_whole(modelfile, f"FROM ./{written.name}\nPARAMETER num_ctx {length}\n")
        return modelfile

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            raise InputError("out", None, f"a folder: {self.title} reads a scaling from the GGUF file alone")
        name = re.sub(r"[^a-z0-9._-]+", "-", Path(model).resolve().parent.name.lower()).strip("-._") or "long"
        return f"{shlex.join(['ollama', 'create', name, '-f', model])} && {shlex.join(['ollama', 'run', name])}"
