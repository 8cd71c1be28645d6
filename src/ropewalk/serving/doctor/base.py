"""What is examined, what a finding is, and the registry of the checks.

A check looks at the raw configuration, as engines do, and not at what `config` makes of it, which repairs some faults
and refuses others. It yields a `Fault` for each place where it finds its kind of fault.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.gguf import from_fields
from ropewalk.config.published import PublishedModel, find_published_model
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.serving.engines.folder_engine import meaning

Severity = Literal["wrong", "suspicious"]
Path = tuple[str, ...]  # the keys down to a field; the first is TOKENIZER for a field of that file
TOKENIZER = "tokenizer_config.json"
POSITION = 65_536  # where two rotations are compared, if the configuration reads that far

_METHODS = {"su": "longrope", "deepseek_yarn": "yarn", "mrope": "default"}  # other names for the same
_IMAGES = {"efficientloftr"}  # whose pairs turn by places in an image without saying so by the type `axial`
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length")


@dataclass(frozen=True)
class Fault:
    """What a check yields.

    Attributes:
        path: the field.
        found: what stands there.
        means: what follows from it, one sentence.
        fix: exact values to write, None to take a field away; empty where only the model's makers know them.
        actual, meant: how it is read and how it should be, where that is not how transformers reads it before and
            after the fix.
    """

    path: Path
    found: Any
    means: str
    fix: Mapping[Path, Any] = field(default_factory=dict)
    actual: ModelConfig | InputError | None = None
    expected: ModelConfig | InputError | None = None


@dataclass(frozen=True)
class Finding:
    """A fault, its kind, and what it does to the rotation.

    Attributes:
        kind, severity: of the check.
        field, found, means, fix: of the fault; fields are written with dots.
        position: tokens; where the next two are taken, None where the fault leaves the rotation as it is meant.
        cosine: between what is turned as it stands and as it is meant; None where one of them cannot be read.
        scores: what attention scores are multiplied by as it stands (attention factor squared, times softmax factor),
            over what is meant.
    """

    kind: str
    severity: Severity
    field: str
    found: Any
    means: str
    fix: Mapping[str, Any]
    position: int | None = None
    cosine: float | None = None
    scores: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Written:
    """One rope dict as it stands, of all layers or of one layer type."""

    path: Path
    layers: str
    values: Mapping[str, Any]

    @property
    def said(self) -> Any:
        """The method as it is written."""
        return self.values.get("rope_type") or self.values.get("type") or "default"

    @property
    def method(self) -> str:
        """The method by its usual name."""
        return _METHODS.get(str(self.said), str(self.said))

    @property
    def factor(self) -> float | None:
        """The factor, where it is a number of at least 1."""
        factor = number(self.values.get("factor"))
        return factor if factor is not None and factor >= 1 else None

    @property
    def unscaled(self) -> dict[Path, Any]:
        """The fix that takes its scaling away and leaves what is the model's."""
        scaling = configs.OF_A_SCALING - {"rope_theta"} | {"original_max_position_embeddings"}
        own = {key: value for key, value in self.values.items() if key not in scaling}
        if not own and self.layers == configs.ALL_LAYERS:
            return {self.path: None}
        return {self.path: {**own, "rope_type": "default"}}

    def at(self, key: str) -> Path:
        """The path of one of its keys."""
        return (*self.path, key)


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        config: the whole config.json, or the metadata of a GGUF file.
        divisors: the tensors of a GGUF file that divide the frequencies; None for a config.json.
        tokenizer: the tokenizer_config.json beside it.
        name: what it was found under, which may be that of a known model.
        target: tokens that shall be read, where that was said.
        engine: that shall read it, where one was named.
    """

    config: Mapping[str, Any]
    divisors: Mapping[str, tuple[float, ...]] | None = None
    tokenizer: Mapping[str, Any] | None = None
    name: str = ""
    target: int | None = None
    engine: str = ""

    @functools.cached_property
    def part(self) -> Path:
        """The keys down to the part that describes the text decoder."""
        keys: list[str] = []
        part = self.config
        while True:
            key = configs.inner_part(part)
            if key is None:
                return tuple(keys)
            keys.append(key)
            part = part[key]

    @functools.cached_property
    def text(self) -> Mapping[str, Any]:
        """The part that describes the text decoder."""
        part = self.config
        for key in self.part:
            part = part[key]
        return part

    def at(self, *keys: str) -> Path:
        """The path of a field of the text part."""
        return (*self.part, *keys)

    @functools.cached_property
    def ropes(self) -> tuple[Written, ...]:
        """The rope dicts: `rope_parameters`, or else `rope_scaling`; an empty one where there is none."""
        name = "rope_parameters" if self.text.get("rope_parameters") else "rope_scaling"
        said = self.text.get(name)
        if not isinstance(said, Mapping):
            return () if said else (Written(self.at(name), configs.ALL_LAYERS, {}),)
        nested = [Written(self.at(name, key), key, value) for key, value in said.items() if isinstance(value, Mapping)]
        return tuple(nested) or (Written(self.at(name), configs.ALL_LAYERS, said),)

    @property
    def model_type(self) -> str:
        return str(self.text.get("model_type", ""))

    @property
    def length_field(self) -> str:
        """The field that declares the length."""
        return next((name for name in _LENGTHS if self.text.get(name) not in (None, 0)), _LENGTHS[0])

    @property
    def declared(self) -> int | None:
        """The length that the configuration declares, tokens."""
        return whole(self.text.get(self.length_field))

    @property
    def of_images(self) -> bool:
        """Whether its pairs turn by the place in an image."""
        return self.model_type in _IMAGES or any(rope.method == "axial" for rope in self.ropes)

    def original(self, rope: Written) -> int | None:
        """The original length, where it is written. Beside the rope dict it counts before the one in it."""
        name = "original_max_position_embeddings"
        return whole(self.text.get(name)) or whole(rope.values.get(name))

    @functools.cached_property
    def whole(self) -> Mapping[str, Any]:
        """The configuration with what it leaves to the defaults of its architecture, as it is read."""
        return configs.completed(self.config) if self.divisors is None else self.config

    @functools.cached_property
    def model_config(self) -> ModelConfig | InputError:
        """What it is read as, or why it cannot be."""
        try:
            return meaning(self.whole) if self.divisors is None else from_fields(self.config, self.divisors)
        except InputError as error:
            return error

    @functools.cached_property
    def published(self) -> PublishedModel | None:
        """The known model that it is by its name, or by saying just the same."""
        return find_published_model(self.name) or self.as_published

    @functools.cached_property
    def as_published(self) -> PublishedModel | None:
        """The known model whose makers publish just this."""
        try:
            return find_published_model(model_config=configs.from_dict(self.config)) if self.divisors is None else None
        except InputError:
            return None

    def with_(self, changes: Mapping[Path, Any]) -> Subject:
        """The same with fields written anew, or taken away for None."""
        files = {"config": copy.deepcopy(dict(self.config)), TOKENIZER: dict(self.tokenizer or {})}
        for path, value in changes.items():
            place: Any = files[TOKENIZER] if path[0] == TOKENIZER else files["config"]
            keys = path[1:] if path[0] == TOKENIZER else path
            for key in keys[:-1]:
                if not isinstance(place.get(key), dict):
                    place[key] = {}
                place = place[key]
            if value is None:
                place.pop(keys[-1], None)
            else:
                place[keys[-1]] = value
        return dataclasses.replace(
            self, config=files["config"], tokenizer=None if self.tokenizer is None else files[TOKENIZER]
        )


Check = Callable[[Subject], Iterator[Fault]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault, and the check that finds it.

    `of`: what it examines, "config" for a config.json, "gguf" for a GGUF file, "any" for both.
    """

    name: str
    severity: Severity
    of: Literal["config", "gguf", "any"]
    check: Check

    @property
    def about(self) -> str:
        """What it finds: the check's docstring."""
        return (self.check.__doc__ or "").rstrip(".")

    def faults(self, subject: Subject) -> Iterator[Fault]:
        """What the check finds; nothing where it is not for such a file."""
        if self.of in ("any", "config" if subject.divisors is None else "gguf"):
            yield from self.check(subject)


KINDS: dict[str, Kind] = {}


def kind(name: str, severity: Severity, of: Literal["config", "gguf", "any"] = "config") -> Callable[[Check], Check]:
    """Register a check under a name."""

    def register(check: Check) -> Check:
        KINDS[name] = Kind(name, severity, of, check)
        return check

    return register


def each_rope(*methods: str) -> Callable[[Callable[[Subject, Written], Iterator[Fault]]], Check]:
    """Make a check of one rope dict a check of all that are of these methods; of every one if none is named."""

    def wrap(check: Callable[[Subject, Written], Iterator[Fault]]) -> Check:
        @functools.wraps(check)
        def of_all(subject: Subject) -> Iterator[Fault]:
            for rope in subject.ropes:
                if not methods or rope.method in methods:
                    yield from check(subject, rope)

        return of_all

    return wrap


def number(value: object) -> float | None:
    """The value where it is a finite number of a size that formulas bear."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e12 <= value <= 1e12:
        return None
    return float(value)


def as_number(value: object) -> float | None:
    """The number that a value stands for which is none itself: one written as text."""
    try:
        return None if isinstance(value, bool) else number(float(str(value)))
    except ValueError:
        return None


def whole(value: object) -> int | None:
    """The value where it is a number of tokens."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**53 else None


def finding(subject: Subject, of: Kind, fault: Fault) -> Finding:
    """The finding that a fault is, the rotation as it is and as it is meant compared."""
    actual = subject.model_config if fault.actual is None else fault.actual
    expected = subject.with_(fault.fix).model_config if fault.expected is None else fault.expected
    position, cosine, scores = compared(actual, expected, subject.target)
    fix = {dotted(path): value for path, value in fault.fix.items()}
    return Finding(of.name, of.severity, dotted(fault.path), fault.found, fault.means, fix, position, cosine, scores)


def dotted(path: Path) -> str:
    """A path as people write it."""
    return f"{path[0]}: {'.'.join(path[1:])}" if path[0] == TOKENIZER else ".".join(path)


def compared(
    actual: ModelConfig | InputError, expected: ModelConfig | InputError, target: int | None
) -> tuple[int | None, float | None, float | None]:
    """A position, and there the cosine between two rotations and the ratio of what they multiply scores by.

    Of the layers that see the whole text, if they differ. None each where nothing differs, or nothing can be read.
    """
    if isinstance(actual, InputError) or isinstance(expected, InputError):
        return None, None, None
    position = min(POSITION, target or expected.max_length or POSITION)
    for name in sorted(expected.ropes, key=configs.is_local):
        one, other = (_turned(each.ropes.get(name), position) for each in (actual, expected))
        if one is None or other is None or one.inv_freq.shape != other.inv_freq.shape:
            return None, None, None
        if one != other:
            cosine = float(one.cosine(other, position))
            scores = (one.attention_factor / other.attention_factor) ** 2 * one.softmax_factor / other.softmax_factor
            return position, cosine, scores
    return None, None, None


def _turned(layer: LayerRope | None, length: int) -> Frequencies | None:
    try:
        return configs.layer_frequencies(layer.scaling, layer, length) if layer else None
    except InputError:
        return None
