"""The interface of a serving engine, and how to add one.

To add an engine, add one file to this folder with one subclass of `FolderEngine` (for engines that load config.json)
or of `GgufEngine` (for engines that load a GGUF file). The registry finds it by its `name`. The subclass defines

- the class variables that `Engine` lists;
- `_interpret`, the core of every engine: the frequencies that the engine computes from a configuration, as found in
  its source code. `sources` cites the files, `version` the version that was read;
- `argv`, the command line that starts the engine (folder engines only);
- `to_rope_dict`, if the engine has keys or methods that transformers does not have.

Everything else follows from the interpretation. `encode` writes candidate configurations until the engine interprets
one of them as the requested scaling. `ropewalk doctor` compares the engine's interpretation with the one that the
model was trained with (`trained_config.py`). `ropewalk verify` checks the interpretation against the running engine.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ropewalk.config import LayerRope, ModelConfig
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling

# The dict of a config.json; for a GGUF file a dict with its `fields` (metadata) and `divisors` (tensors).
Config = Mapping[str, Any]


class EngineConfigError(InputError):
    """An engine does not accept a configuration, or would serve it wrongly.

    Attributes:
        engine: title of the engine.
        key: the field of the configuration that is at fault.
    """

    def __init__(self, engine: str, key: str, value: object, expected: str) -> None:
        super().__init__(f"{engine}: {key}", value, expected)
        self.engine = engine
        self.key = key


@dataclass(frozen=True)
class Candidate:
    """One configuration that may encode a scaling for an engine.

    Attributes:
        encoded_as: the method or field that stands in for the scaling, such as "rope_theta", "yarn" or
            "longrope lists"; "" if the engine has the method itself.
        config: the complete configuration.
        changes: the fields of `config` that differ from the model's configuration; None removes a field.
        merged_config: the configuration that results when the engine merges `changes` from its command line into
            the model's configuration; None for engines that do not merge.
    """

    encoded_as: str
    config: Config
    changes: Config
    merged_config: Config | None = None


class Engine(ABC):
    """A serving engine.

    Class variables:
        name: the name on the command line, as in `--engine vllm`.
        title: the engine's own spelling of its name, for messages.
        version: the version or commit whose source was read.
        sources: the files of that version that determine how it interprets a configuration.
        checkpoint_format: what the engine loads: a "folder" with config.json, or a "gguf" file.
        requirements: the packages that `make engines` installs; empty if the tests cannot run this engine.
        has_plugin: whether `make engines` also installs ropewalk there, which has a plugin for this engine.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    checkpoint_format: ClassVar[Literal["folder", "gguf"]]
    requirements: ClassVar[tuple[str, ...]] = ()
    has_plugin: ClassVar[bool] = False

    @abstractmethod
    def load_config(self, model: str) -> tuple[Config, ModelConfig]:
        """Load a model's configuration in the format of this engine, and interpret it as the model was trained.

        `model`: a folder, a .gguf file, a built-in name, or a hub id. Raises InputError if it cannot be read.
        """

    def interpret(self, config: Config, length: int) -> ModelConfig:
        """Return the frequencies that the engine computes from a configuration.

        Args:
            config: the configuration, in the format of this engine.
            length: tokens that the engine is started to serve. Some engines choose frequencies by it.

        Returns a ModelConfig whose `max_length` is the length that the engine serves by default. Raises
        EngineConfigError if the engine would refuse the configuration, crash on it, or read past its tables.
        """
        try:
            self._check_loads(config)
            return self._interpret(config, length)
        except InputError as error:
            raise EngineConfigError(self.title, error.field, error.value, error.expected) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise EngineConfigError(self.title, "configuration", found, "values of the documented types") from None

    def _check_loads(self, config: Config) -> None:  # noqa: B027  an engine without such checks needs no override
        """Raise InputError if the engine refuses to load the configuration, whatever frequencies it has."""

    @abstractmethod
    def _interpret(self, config: Config, length: int) -> ModelConfig:
        """Implement `interpret`. Raise InputError for a field that the engine refuses.

        `interpret` turns it, and every error that malformed values cause, into an EngineConfigError.
        """

    def explain(self, config: Config) -> str:
        """Return what the engine's code for this architecture leaves out of a configuration, as one clause; or ""."""
        return ""

    @abstractmethod
    def candidates(
        self, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
    ) -> Iterator[Candidate]:
        """Yield configurations that may encode a scaling, the most readable one first.

        A candidate may be wrong: `encode` uses the first one that the engine interprets as the scaling.

        Args:
            config: the model's configuration, in the format of this engine.
            model_config: the same configuration as the model was trained.
            scaling: the scaling of the layers that attend to the whole text.
            length: tokens to serve.
        """

    def describe_dynamic(self, config: Config) -> str:
        """Return how the engine follows the length of a text under a dynamic scaling, as a sentence for the user.

        `config`: a configuration whose scaling the engine interprets as dynamic.
        """
        return "the frequencies follow the length of the text, but cached keys keep their old rotation"

    @abstractmethod
    def write_checkpoint(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        """Write a checkpoint with the candidate's configuration and the model's weights, unchanged.

        Args:
            model: as for `load_config`.
            candidate: the configuration to write.
            out: an empty folder.
            length: tokens to serve.

        Returns the path to start the engine with. Raises InputError for a model that this engine cannot load.
        """

    def exported_path(self, model: str, folder: Path) -> Path:
        """Return the path in the folder of an export with which the engine is started: by default the folder itself."""
        return folder

    @abstractmethod
    def build_command(self, model: str, length: int, changes: Config | None = None) -> str:
        """Return the shell command that starts the engine for texts of `length` tokens.

        Args:
            model: a path that `write_checkpoint` returned, or, with `changes`, the original model.
            length: tokens to serve.
            changes: the candidate's changes, to pass as command-line options; empty for the model as it is.

        Raises InputError if the engine cannot take the changes on its command line.
        """


def map_scalings(model_config: ModelConfig, interpret_layer: Callable[[LayerRope], Scaling]) -> ModelConfig:
    """Return the configuration with the scaling that `interpret_layer` returns for each layer type."""
    ropes = {
        layer_type: dataclasses.replace(layer, scaling=interpret_layer(layer))
        for layer_type, layer in model_config.ropes.items()
    }
    return dataclasses.replace(model_config, ropes=ropes)


def with_main_scaling(model_config: ModelConfig, scaling: Scaling) -> ModelConfig:
    """Return the configuration with another scaling for the layers that attend to the whole text."""
    main_layer = model_config.main_layer
    return map_scalings(model_config, lambda layer: scaling if layer is main_layer else layer.scaling)
