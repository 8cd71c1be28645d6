"""What to serve instead of a dynamic scaling, on an engine that does not scale each request by its own length.

alternative = find_alternative("MODEL", "dynamic-yarn", "sglang", 32_768)
alternative.scaling, alternative.servers  # the static scaling that covers this length, and how to start two servers
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ropewalk.config import ModelConfig
from ropewalk.errors import InputError, UnsupportedScalingError
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import DynamicYaRN
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import Config, Engine
from ropewalk.serving.engines.encode import encode, find_nearest_supported
from ropewalk.serving.engines.vllm import REQUEST_FACTORS
from ropewalk.serving.export import choose_length, describe_replaced_scaling

# Perplexity of SmolLM2-135M-Instruct on the first 8,192 tokens of Python's help texts, as many as it was trained to
# read. Sources: benchmarks/results/demo/curve.json, and for factor 4 benchmarks/results/short_text/curve.json.
MEASURED_MODEL, MEASURED_LENGTH = "SmolLM2-135M", 8192
MEASURED_ON = "bfloat16, two cores of an Intel Xeon, 2026-11-21"
MEASURED_PERPLEXITY = {
    "none": 10.30,
    "linear:factor=2": 30.78,
    "ntk:factor=2": 10.78,
    "ntk-by-parts:factor=2": 10.77,
    "yarn:factor=2": 10.66,
    "yarn:factor=4": 11.95,
}


@dataclass(frozen=True)
class Server:
    """One server, and the shell commands that write its checkpoint, if it needs one, and start it.

    Attributes:
        scaling: spec of its scaling.
        length: tokens that it serves.
        commands: in order.
    """

    scaling: str
    length: int
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Alternative:
    """A static scaling for all requests, or two servers with a router in front.

    Attributes:
        engine: title and version of the engine.
        scaling: spec of the static scaling that covers the length to serve.
        measured: perplexity of the short texts of SmolLM2-135M under static scalings of this method, by spec.
        measure: the command that measures the cost on the user's own model.
        route_at: tokens of a prompt and its max_tokens up to which a router sends a request to the first server.
        servers: the model without a scaling, and under the static scaling. The second one alone serves all.
        warning: what is wrong with the first server if the model was trained with a scaling; "" if it has none.
        follows_requests: how each request can get its own scaling elsewhere, as a sentence.
    """

    engine: str
    scaling: str
    measured: dict[str, float]
    measure: str
    route_at: int
    servers: tuple[Server, Server]
    warning: str
    follows_requests: str

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON."""
        return asdict(self)


def find_alternative(model: str, scaling: str | Scaling, engine: str, length: int | None = None) -> Alternative | None:
    """Return what to serve instead of a dynamic scaling. The arguments are those of `export_model`.

    None for a static scaling, for an engine that gives each request its own factor, for a length that needs no scaling,
    and for a model or a method that no static scaling of this engine comes near. Raises InputError for a model that
    cannot be read.
    """
    chosen_engine, expected = find_engine(engine), parse(scaling)
    # The short list of LongRoPE is what a model was trained with, so no scaling at all would be wrong for short texts.
    if not expected.is_dynamic or isinstance(expected, LongRoPE):
        return None
    config, model_config = chosen_engine.load_config(model)
    rope = model_config.main_layer.rope
    tokens, original = choose_length(length, expected, model_config), expected.resolve_original_length(rope)
    # power-ntk and log-ntk raise every frequency, so no static method of an engine resembles them.
    slows_down = expected.frequencies(rope, tokens).inv_freq[-1] < rope.inv_freq[-1]
    if not slows_down or _has_request_factors(chosen_engine, config, model_config, expected, tokens):
        return None
    static = find_nearest_supported(chosen_engine, config, model_config, expected, tokens)
    if static is None or isinstance(static, NoScaling):
        return None
    return Alternative(
        engine=f"{chosen_engine.title} {chosen_engine.version}",
        scaling=str(static),
        measured={spec: value for spec, value in MEASURED_PERPLEXITY.items() if parse(spec).name == static.name},
        measure=_measure_command(model, static, original),
        route_at=original,
        servers=(
            _describe_server(chosen_engine, model, config, model_config, NoScaling(), original),
            _describe_server(chosen_engine, model, config, model_config, static, tokens),
        ),
        warning=describe_replaced_scaling(expected, model_config),
        follows_requests=_describe_request_scaling(chosen_engine, expected),
    )


def _has_request_factors(
    engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
) -> bool:
    try:
        return encode(engine, config, model_config, scaling, length).encoded_as == REQUEST_FACTORS
    except UnsupportedScalingError:
        return False


def _measure_command(model: str, static: Scaling, original_length: int) -> str:
    """Return the command that compares the scaling with none on short texts."""
    lengths = ",".join(str(max(1, original_length // divisor)) for divisor in (4, 2, 1))
    argv = ["ropewalk", "curve", model, "--scaling", "none", "--scaling", str(static), "--lengths", lengths]
    return shlex.join([*argv, "--text", "FILE", "--out", "DIR"])


def _describe_server(
    engine: Engine, model: str, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
) -> Server:
    """Return a server of the model under a scaling, from a folder only if the engine cannot do without one."""
    is_as_trained = scaling == model_config.main_layer.scaling
    changes = {} if is_as_trained else encode(engine, config, model_config, scaling, length).changes
    try:
        commands: tuple[str, ...] = (engine.build_command(model, length, changes),)
    except InputError as error:
        if error.field != "out":
            raise
        path = Path(model)
        name = path.parent.name if path.name == "config.json" else path.name.removesuffix(".gguf")
        folder = f"{name}-{length}"
        options = ["--scaling", str(scaling), "--engine", engine.name, "--length", str(length), "--out", folder]
        export = shlex.join(["ropewalk", "export", model, *options])
        commands = (export, engine.build_command(str(engine.exported_path(model, Path(folder))), length))
    return Server(str(scaling), length, commands)


def _describe_request_scaling(engine: Engine, scaling: Scaling) -> str:
    if engine.name == "transformers":
        return f'In Python, rw.extend(model, "{scaling}") follows each text, with cached keys that follow it, too.'
    if not engine.has_plugin:
        return "vLLM with ropewalk's plugin gives each request its own factor: --scaling dynamic-yarn --engine vllm"
    if isinstance(scaling, DynamicYaRN):
        return ""
    return f"{engine.title} with ropewalk's plugin gives each request its own factor: --scaling dynamic-yarn"
