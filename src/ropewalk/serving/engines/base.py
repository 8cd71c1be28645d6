"""What a serving engine is here: a way of reading a configuration.

Every engine reads a configuration in its own manner. An `Engine` says what it makes of one, as a `ModelConfig`, from a
reading of its source that `sources` cites. All else follows: to export a scaling is to find the writing that the
engine reads as that scaling (express.py); to examine a configuration is to compare two readings; and `verify` holds the
reading against the real engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ropewalk.config import ModelConfig
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling

Config = Mapping[str, Any]  # a config.json; of a GGUF file its `fields` and `divisors`
MARK = "ropewalk.json"  # stands in a folder that export wrote, and says what for


@dataclass(frozen=True)
class Candidate:
    """One way to write a scaling.

    Attributes:
        through: what it is written as, where the engine has no name for it; "" for the engine's own.
        config: the whole configuration, written so.
        changes: what of it is new, for people, and for engines that take it on the command line.
        merged: what a command makes of the model's own configuration, for engines that merge changes into it.
    """

    through: str
    config: Config
    changes: Config
    merged: Config | None = None


class Engine(ABC):
    """A serving engine.

    Class variables: `name`, of the command line; `title`, as it calls itself; `version`, whose source was read;
    `sources`, the files of that version that say how it reads a configuration; `takes`, what it is given, a
    "folder" or a "gguf" file; `requirements`, the packages with which `make engines` installs it, none where this
    project cannot run it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[str]
    sources: ClassVar[tuple[str, ...]]
    takes: ClassVar[str]
    requirements: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def open(self, model: str) -> tuple[Config, ModelConfig]:
        """The configuration of a model in the form this engine is given, and what it means.

        `model`: a folder, a .gguf file, a built-in name, or a hub id. Raises InputError for one that cannot be read.
        """

    def interpret(self, config: Config, length: int) -> ModelConfig:
        """What the engine makes of a configuration when it is started to serve texts of `length` tokens.

        `max_length` of the result is what it serves unless told more. Raises InputError, in the engine's name, for
        what it would refuse, and for values that it would stumble over.
        """
        try:
            return self._interpret(config, length)
        except InputError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            stumbled = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.title}: configuration", stumbled, "values it computes with") from None

    @abstractmethod
    def _interpret(self, config: Config, length: int) -> ModelConfig:
        """`read`, of values of the types that are expected; an engine's file says it here."""

    @abstractmethod
    def candidates(self, config: Config, scaling: Scaling, length: int) -> Iterator[Candidate]:
        """The ways to write a scaling into a configuration, the best first; `read` decides which of them hold."""

    @abstractmethod
    def write(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        """Write what the engine is given into the empty folder `out`, the weights untouched; the path to give it.

        Raises InputError for a model that this engine cannot be given.
        """

    @abstractmethod
    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        """The command that starts it on that path or hub id, for texts of `length` tokens.

        `changes`: to be passed on the command line, in place of a folder that was written. Raises InputError where
        the engine takes none there.
        """
