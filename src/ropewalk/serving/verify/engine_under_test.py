"""The engine that a verification runs: in a subprocess on this machine, or as a server at a URL."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ropewalk.config import get_text_config_dict
from ropewalk.errors import InputError
from ropewalk.files import write_text_atomically
from ropewalk.scaling import Scaling
from ropewalk.scaling.none import NoScaling
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.export import export_model
from ropewalk.serving.verify.checkpoints import convert_gguf_to_float32, link_checkpoint, prepare_checkpoint
from ropewalk.serving.verify.environments import installed_packages
from ropewalk.serving.verify.length_rule import LengthRule
from ropewalk.serving.verify.logprob_client import LogprobClient
from ropewalk.serving.verify.prompts import Prompts
from ropewalk.serving.verify.reference import ReferenceModel
from ropewalk.serving.verify.run_engine import TOP_K, EngineOutput, run_engine
from ropewalk.serving.vllm_plugin.request_factors import find_request_factors

OnProgress = Callable[[str], None]


@dataclass
class EngineUnderTest(ABC):
    """An engine, run with and without a scaling.

    Attributes:
        engine: the engine.
        reference: the model that it should reproduce.
        length: tokens to serve.
        on_progress: called with one line of text after each prompt.
        encoded_as: the method that the export uses in place of the scaling if the engine lacks it; "" otherwise.
    """

    engine: Engine
    reference: ReferenceModel
    length: int
    on_progress: OnProgress
    encoded_as: str = field(default="", init=False)

    @abstractmethod
    def run_scaled(self, scaling: Scaling, prompts: Prompts, rows: list[int]) -> EngineOutput:
        """Run the engine with the scaling; read these rows of its tables if it has any."""

    @abstractmethod
    def run_unscaled(self, prompts: Prompts, positions: list[int]) -> EngineOutput | None:
        """Run the engine without scaling, as the control. None if that is not possible."""

    def find_length_rule(self, scaling: Scaling) -> LengthRule:
        """Return how the engine follows the length of a request if it serves an export of the scaling."""
        if not scaling.is_dynamic:
            return LengthRule(fixed_length=self.length)
        config, model_config = self.engine.load_config(prepare_checkpoint(self.engine, self.reference))
        candidate = encode(self.engine, config, model_config, scaling, self.length)
        if not self.engine.interpret(candidate.config, self.length).main_layer.scaling.is_dynamic:
            return LengthRule(fixed_length=self.length)
        return LengthRule(request_factors=find_request_factors(get_text_config_dict(candidate.config)))


@dataclass(kw_only=True)
class LocalEngine(EngineUnderTest):
    """An engine that runs in a subprocess, on an export of the scaling or on a configuration that the user gave.

    Attributes:
        folder: temporary folder for exports.
        served: folder, config.json or .gguf file to run instead of an export.
        python: path of the Python that has the engine.
    """

    folder: Path
    served: str | None
    python: str

    def run_scaled(self, scaling: Scaling, prompts: Prompts, rows: list[int]) -> EngineOutput:
        if self.served is None:
            checkpoint, self.encoded_as = self._export(scaling, "scaled")
            return self._run_checkpoint(checkpoint, prompts, rows)
        checkpoint = Path(self.served)
        if not checkpoint.exists():
            raise InputError("served", self.served, "an existing folder, config.json or .gguf file")
        if checkpoint.suffix == ".json":
            trained = Path(prepare_checkpoint(self.engine, self.reference))
            checkpoint = link_checkpoint(checkpoint, trained, self.folder / "served")
        return self._run_checkpoint(checkpoint, prompts, rows)

    def run_unscaled(self, prompts: Prompts, positions: list[int]) -> EngineOutput:
        """Run the engine without scaling. The output is kept for the next verification of this engine."""
        key = {
            "engine": self.engine.name, "python": self.python, "packages": installed_packages(self.python),
            "model": self.reference.digest, "length": self.length, "prompts": prompts.in_order, "batch": prompts.batch,
            "positions": positions,
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        file = self.reference.cache_folder / f"control-{digest}.json"
        if not file.exists():
            checkpoint, _ = self._export(NoScaling(), "unscaled")
            output = self._run_checkpoint(checkpoint, prompts, positions)
            write_text_atomically(file, json.dumps(asdict(output)))
        return EngineOutput(**json.loads(file.read_text(encoding="utf-8")))

    def _export(self, scaling: Scaling, name: str) -> tuple[Path, str]:
        """Export the model with a scaling to the subfolder `name`.

        Returns the path to start the engine with, and `encoded_as` of the export.
        """
        model = prepare_checkpoint(self.engine, self.reference)
        export = export_model(model, scaling, self.engine.name, self.folder / name, self.length)
        assert export.path is not None  # it is None only for an export without an output folder
        return Path(export.path), export.encoded_as

    def _run_checkpoint(self, checkpoint: Path, prompts: Prompts, rows: list[int]) -> EngineOutput:
        """Run the engine on a checkpoint in a subprocess; a GGUF file is converted to float32 before."""
        if checkpoint.suffix == ".gguf":
            checkpoint = convert_gguf_to_float32(checkpoint, self.folder / "float32.gguf")
        job = {
            "path": str(checkpoint), "length": self.length, "prompts": prompts.in_order, "top": TOP_K,
            "positions": rows, "batch": prompts.batch,
        }  # fmt: skip
        return run_engine(self.engine, self.python, job, self.on_progress)


@dataclass(kw_only=True)
class RemoteEngine(EngineUnderTest):
    """A running server with the scaling, and optionally a second one without it.

    Attributes:
        client: client of the server with the scaling.
        control_client: client of the server without it.
    """

    client: LogprobClient
    control_client: LogprobClient | None

    def run_scaled(self, scaling: Scaling, prompts: Prompts, rows: list[int]) -> EngineOutput:
        return self.client.run(prompts.in_order, self.on_progress, prompts.batch)

    def run_unscaled(self, prompts: Prompts, positions: list[int]) -> EngineOutput | None:
        if self.control_client is None:
            return None
        return self.control_client.run(prompts.in_order, self.on_progress, prompts.batch)
