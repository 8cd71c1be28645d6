"""What the page is about: a model, a target length, and the scalings to compare."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.errors import InputError, UnsupportedModelError, check_length
from ropewalk.planning import Plan, plan
from ropewalk.positions import parse_scaling
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import NTK
from ropewalk.scaling.yarn import DynamicYaRN, YaRN

_MIN_LONGEST_RATIO = 16  # the slider for the length ends at this multiple of L, or at the target if it is longer
_MAX_STOPS = 64  # of that slider
_STEPS = (0.25, 0.5, 1, 2, 5)  # between stops, in multiples of L; then these times powers of 10
_MIN_FACTOR = 2.0  # of the scalings to compare for a model that needs none


@dataclass(frozen=True)
class Subject:
    """A model with everything that the parts of the page share.

    Attributes:
        name: the model as the user named it.
        path: the file or folder with its configuration.
        model_config: its configuration, parsed.
        original_length: tokens it was trained on, L.
        target: tokens to read.
        plan: the plan for the target; None if there is none.
        plan_error: why there is no plan; "" if there is one.
        scalings: the scalings to compare; the first one is no scaling.
        yarn: the YaRN that the texts explain: the requested one, or one with the factor that the target needs.
    """

    name: str
    path: Path
    model_config: ModelConfig
    original_length: int
    target: int
    plan: Plan | None
    plan_error: str
    scalings: tuple[Scaling, ...]
    yarn: YaRN

    @property
    def layer(self) -> LayerRope:
        """The rotary embedding of the layers that attend to the whole text."""
        return self.model_config.main_layer

    @property
    def labels(self) -> list[str]:
        """The specs of the scalings, without the numbers in the lists of LongRoPE."""
        return [re.sub(r"\[[^]]*]", "[…]", str(scaling)) for scaling in self.scalings]

    @property
    def stops(self) -> list[int]:
        """The lengths that the slider stops at, in tokens: multiples of L from L to 16 L or beyond the target."""
        longest = max(_MIN_LONGEST_RATIO, math.ceil(self.target / self.original_length))
        steps = (step * 10**power for power in range(10) for step in _STEPS)
        step = next(step for step in steps if (longest - 1) / step < _MAX_STOPS)
        count = math.ceil((longest - 1) / step)
        return [round(self.original_length * (1 + index * step)) for index in range(count + 1)]


@contextmanager
def open_subject(model: str, target: int, scalings: Sequence[str]) -> Iterator[Subject]:
    """Yield the subject of a page. Its path exists within the block only.

    Args:
        model: a hub id, a folder, a config.json, a .gguf file or a built-in name.
        target: tokens to read.
        scalings: specs of the scalings to compare with no scaling; by default the model's own one, the plan for the
            target and the common methods at the same factor.

    Raises InputError for a model that cannot be read or has no original length, and for a scaling that is wrong;
    UnsupportedModelError for a model that no scaling extends.
    """
    check_length("target", target)
    requested = [parse_scaling(spec, "which the page shows") for spec in scalings]
    with _local_path(model) as path:
        model_config = configs.read(path)
        layer = model_config.main_layer
        original = layer.scaling.resolve_original_length(layer.rope)
        try:
            planned, error = plan(str(path), target), ""
        except UnsupportedModelError:
            raise
        except InputError as refused:  # the configuration cannot express the scaling, which can be explained anyway
            planned, error = None, str(refused)
        chosen = planned.scaling if planned else layer.scaling
        factor = max(chosen.extension_factor(layer.rope, target), math.ceil(target / original))
        yarn = YaRN(factor=max(factor, _MIN_FACTOR))
        if layer.rope.original_length != original:
            yarn = replace(yarn, original_length=original)
        yarn = next((scaling for scaling in (*requested, chosen) if isinstance(scaling, YaRN)), yarn)
        compared = requested or _choose_scalings(layer, chosen, yarn)
        unique = {str(scaling): scaling for scaling in (NoScaling(), *compared)}
        yield Subject(model, path, model_config, original, target, planned, error, tuple(unique.values()), yarn)


def _choose_scalings(layer: LayerRope, chosen: Scaling, yarn: YaRN) -> list[Scaling]:
    """Return the model's own scaling, the chosen one, and the common methods at the same factor."""
    linear, ntk = Linear(factor=yarn.factor), NTK(factor=yarn.factor)
    return [layer.scaling, linear, ntk, chosen, yarn, DynamicYaRN(original_length=yarn.original_length)]


@contextmanager
def _local_path(model: str) -> Iterator[Path]:
    """Yield the path of a model; the configuration of a hub id is fetched once, into a folder of the same name."""
    path = configs.locate(model)
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        config = configs.fetch_hub_config(model)
        path = Path(folder, *model.split("/"))
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield path
