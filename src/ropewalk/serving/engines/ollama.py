from __future__ import annotations

import re
import shlex
from pathlib import Path

from ropewalk.errors import InputError
from ropewalk.files import write_text_atomically
from ropewalk.serving.engines.base import Candidate, Config
from ropewalk.serving.engines.gguf_engine import require_gguf
from ropewalk.serving.engines.llama_cpp import LlamaCpp


class Ollama(LlamaCpp):
    """Ollama, which starts llama.cpp's server for every GGUF file since version 0.30."""

    name = "ollama"
    title = "Ollama"
    version = "0.30"
    sources = (
        "llm/llama_server.go (startLlamaServer)",
        "llm/server.go (num_ctx at most context_length)",
        *LlamaCpp.sources,
    )
    requirements = ()

    def build_command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            raise InputError("out", None, f"a folder, because {self.title} takes a scaling only from the GGUF file")
        folder_name = Path(model).resolve().parent.name.lower()
        name = re.sub(r"[^a-z0-9._-]+", "-", folder_name).strip("-._") or "long"
        return f"{shlex.join(['ollama', 'create', name, '-f', model])} && {shlex.join(['ollama', 'run', name])}"

    def write_checkpoint(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        modelfile = super().write_checkpoint(model, candidate, out, length)
        write_text_atomically(modelfile, f"FROM ./{require_gguf(model).name}\nPARAMETER num_ctx {length}\n")
        return modelfile

    def exported_path(self, model: str, folder: Path) -> Path:
        return folder / "Modelfile"
