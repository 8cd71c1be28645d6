"""Names, places and types of fields: what is written twice, misspelled, or not what readers expect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from ropewalk import config as configs
from ropewalk.config.model import BASE_OF
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling, from_rope_dict
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.doctor.base import Fault, Subject, Written, as_number, each_rope, kind, number

_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
_OPTIONS = {  # of each method, in a rope dict
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "attn_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
        "short_mscale", "long_mscale",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor"},
}  # fmt: skip
_BESIDE_ALPHA = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}  # Hunyuan writes them, and reads alpha alone
_OF_THE_MODEL = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "interleaved",
    "finetuned", "llama_4_scaling_beta", "max_position_embeddings", "original_max_position_embeddings",
    "extrapolation_factor", "apply_yarn_scaling", "fope_init_factor", "fope_sep_head", "num_inv_freq",
}  # fmt: skip
_ANOTHER_NAME = {
    "scaling_factor": "factor", "scale": "factor", "rope_factor": "factor", "base": "rope_theta", "theta": "rope_theta",
    "original_length": "original_max_position_embeddings",
    "original_context_length": "original_max_position_embeddings",
    "original_max_positions": "original_max_position_embeddings",
}  # fmt: skip
_NUMBERS = (
    "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor",
    "high_freq_factor", "rope_theta", "partial_rotary_factor", "alpha",
)  # fmt: skip
_MAIN = ("rope_scaling", "rope_parameters")


@kind("not-an-object", "wrong")
def not_an_object(subject: Subject) -> Iterator[Fault]:
    """`rope_scaling` or `rope_parameters` that is no object."""
    for name in _MAIN:
        value = subject.text.get(name)
        if value and not isinstance(value, dict):
            yield Fault(subject.at(name), value, "readers refuse it", {subject.at(name): _parsed(value)})


@kind("not-a-number", "wrong")
def not_a_number(subject: Subject) -> Iterator[Fault]:
    """A number written as text, or not finite, or beyond all use."""
    places = [(subject.at(name), subject.text.get(name)) for name in ("rope_theta", "partial_rotary_factor")]
    places += [(rope.at(name), rope.values.get(name)) for rope in subject.ropes for name in _NUMBERS]
    for path, value in places:
        if value is not None and number(value) is None:
            guess = as_number(value)
            means = "some readers refuse it; others fail where they first compute with it"
            yield Fault(path, value, means, {path: guess})


@kind("type-contradicts", "wrong")
@each_rope()
def type_contradicts(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`type` and `rope_type` that name different methods."""
    new, old = rope.values.get("rope_type"), rope.values.get("type")
    if not new or not old or Written(rope.path, "", {"type": old}).method == rope.method:
        return
    means = f"transformers takes rope_type, {new}; readers of the older field take type, {old}"
    actual = subject.with_({rope.at("rope_type"): old}).model_config
    yield Fault(rope.at("type"), old, means, {rope.at("type"): new}, actual)


@kind("type-unknown", "wrong")
@each_rope()
def type_unknown(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A rope type that transformers does not know."""
    if rope.method in _TYPES:
        return
    key = "rope_type" if rope.values.get("rope_type") else "type"
    near = get_close_matches(rope.method.lower(), _TYPES, n=1, cutoff=0.5)
    means = f"transformers knows {', '.join(_TYPES)}"
    yield Fault(rope.at(key), rope.said, means, {rope.at(key): near[0]} if near else rope.unscaled)


@kind("type-su", "suspicious")
@each_rope("longrope")
def type_su(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`su`, the first name of longrope."""
    if rope.said == "su" and not subject.model_type.startswith("phi"):
        key = "rope_type" if rope.values.get("rope_type") else "type"
        yield Fault(rope.at(key), "su", "only the classes of Phi-3 know it by this name", {rope.at(key): "longrope"})


@kind("type-missing", "wrong")
@each_rope("default")
def type_missing(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Options of a scaling without its type: nothing is scaled."""
    given = set(rope.values) & set().union(*_OPTIONS.values()) - {"original_max_position_embeddings"}
    if rope.values.get("rope_type") or rope.values.get("type") or not given:
        return
    guess = next((name for name in ("llama3", "longrope", "yarn", "dynamic") if _only_of(name) & given), None)
    guess = guess or ("yarn" if "original_max_position_embeddings" in rope.values else "linear")
    means = "without rope_type it is read as default, which scales nothing"
    yield Fault(rope.at("rope_type"), None, means, {rope.at("rope_type"): guess})


@kind("key-misspelled", "wrong")
@each_rope(*_TYPES)
def key_misspelled(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A key that is another one misspelled, or that one's name elsewhere."""
    for key, expected in _strange(rope):
        if expected is not None:
            means = f"nobody reads it; {expected} is what they look for"
            yield Fault(
                rope.at(key), rope.values[key], means, {rope.at(key): None, rope.at(expected): rope.values[key]}
            )


@kind("key-ignored", "suspicious")
@each_rope(*_TYPES)
def key_ignored(subject: Subject, rope: Written) -> Iterator[Fault]:
    """A key of another method, or of none."""
    if rope.method == "default" and not (rope.values.get("rope_type") or rope.values.get("type")):
        return
    for key, expected in _strange(rope):
        if expected is None and rope.values[key] is not None:
            means = f"{rope.method} does not read it"
            yield Fault(rope.at(key), rope.values[key], means, {rope.at(key): None})


@kind("scaling-twice", "wrong")
def scaling_twice(subject: Subject) -> Iterator[Fault]:
    """`rope_scaling` and `rope_parameters` that say different things."""
    if not all(isinstance(subject.text.get(name), dict) for name in _MAIN):
        return
    old, new = (subject.with_({subject.at(other): None}).model_config for other in reversed(_MAIN))
    if subject.text["rope_scaling"] and subject.text["rope_parameters"] and _ropes(old) != _ropes(new):
        means = (
            "transformers 5 takes rope_scaling where both stand; engines that know the new field take rope_parameters"
        )
        path = subject.at("rope_scaling")
        yield Fault(path, subject.text["rope_scaling"], means, {path: None}, old)


@kind("base-twice", "wrong")
@each_rope()
def base_twice(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Two different bases, beside the rope dict and in it."""
    outside, inside = number(subject.text.get("rope_theta")), number(rope.values.get("rope_theta"))
    if rope.layers == configs.ALL_LAYERS and outside and inside and outside != inside:
        means = f"transformers 5 takes {inside:g}, in the dict; readers of transformers 4's fields take {outside:g}"
        actual = subject.with_({rope.at("rope_theta"): outside}).model_config
        yield Fault(subject.at("rope_theta"), outside, means, {subject.at("rope_theta"): inside}, actual)


@kind("base-missing", "suspicious")
def base_missing(subject: Subject) -> Iterator[Fault]:
    """No rope_theta where readers' defaults differ, or where nobody knows the default."""
    names = ("rope_theta", "rotary_emb_base", "rope_base", "global_rope_theta")
    if any(subject.text.get(name) is not None for name in names):
        return
    if not subject.ropes or any(rope.values.get("rope_theta") is not None for rope in subject.ropes):
        return
    model_config, fix = subject.model_config, {}
    if isinstance(model_config, InputError):
        return
    own = model_config.ropes[model_config.main].rope.base
    if subject.whole is not subject.config or subject.model_type in BASE_OF:
        if own == 10_000:
            return  # what everybody takes
        means, fix = "readers that do not know the architecture's default take 10,000", {subject.at("rope_theta"): own}
    elif any(rope.values for rope in subject.ropes):
        means = "the architecture's default is not known: readers take 10,000, and its makers know if that is right"
    else:
        return
    actual = subject.with_({subject.at("rope_theta"): 10_000.0}).model_config
    yield Fault(subject.at("rope_theta"), None, means, fix, actual)


@kind("base-impossible", "wrong")
def base_impossible(subject: Subject) -> Iterator[Fault]:
    """A rope_theta of 1 or less."""
    places = [(subject.at("rope_theta"), subject.text.get("rope_theta"))]
    places += [(rope.at("rope_theta"), rope.values.get("rope_theta")) for rope in subject.ropes]
    for path, value in places:
        base = number(value)
        if base is not None and base <= 1:
            own = next(subject.published.readings) if subject.published else None
            fix = {path: own.ropes[own.main].rope.base} if own else {}
            yield Fault(path, value, "every pair would turn as fast as the first, or faster", fix)


@kind("partial-twice", "wrong")
@each_rope()
def partial_twice(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Two different partial_rotary_factor, beside the rope dict and in it."""
    name = "partial_rotary_factor"
    outside, inside = number(subject.text.get(name)), number(rope.values.get(name))
    if rope.layers == configs.ALL_LAYERS and outside and inside and outside != inside:
        means = f"transformers 5 turns {inside:g} of each head, readers of the older field {outside:g}"
        yield Fault(subject.at(name), outside, means, {subject.at(name): inside})


@kind("partial-impossible", "wrong")
def partial_impossible(subject: Subject) -> Iterator[Fault]:
    """A partial_rotary_factor that is not above 0 and at most 1."""
    name = "partial_rotary_factor"
    for path, value in [(subject.at(name), subject.text.get(name))] + [
        (rope.at(name), rope.values.get(name)) for rope in subject.ropes
    ]:
        part = number(value)
        if part is not None and not 0 < part <= 1:
            guess = part / 100 if 1 < part <= 100 else 1.0
            yield Fault(path, value, "it is a share of the head", {path: guess})


@kind("proportional-whole", "suspicious")
@each_rope("proportional")
def proportional_whole(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Proportional without partial_rotary_factor: every pair turns."""
    name = "partial_rotary_factor"
    if rope.values.get(name) is None and subject.text.get(name) is None:
        means = "p is then 1, and nothing is left out; Gemma 4 writes 0.25"
        yield Fault(rope.at(name), None, means, {rope.at("rope_type"): "default"})


@kind("dim-odd", "wrong")
def dim_odd(subject: Subject) -> Iterator[Fault]:
    """An odd number of rotary dimensions, which makes no pairs."""
    model_config = subject.model_config
    if isinstance(model_config, InputError) and model_config.field == "dim" and not _rounded_head(subject):
        name = next((name for name in ("qk_rope_head_dim", "rotary_dim", "head_dim") if subject.text.get(name)), None)
        value = subject.text.get(name or "")
        fix = {subject.at(name): value - 1} if name and isinstance(value, int) and value > 2 and value % 2 else {}
        yield Fault(subject.at(name or "hidden_size"), value, str(model_config), fix)


@kind("head-dim-broken", "suspicious")
def head_dim_broken(subject: Subject) -> Iterator[Fault]:
    """`hidden_size` that the number of heads does not divide, without head_dim."""
    head = _rounded_head(subject)
    if head is None:
        return
    shares = f"{subject.text['hidden_size']:,} / {subject.text['num_attention_heads']}"
    if isinstance(subject.model_config, InputError):
        means = f"{shares} heads is rounded down to {head}, of which no pairs can be made: its makers know head_dim"
        yield Fault(subject.at("head_dim"), None, means)
    else:
        means = f"{shares} heads is rounded down to {head}; some readers round otherwise"
        yield Fault(subject.at("head_dim"), None, means, {subject.at("head_dim"): head})


@kind("truncate-not-bool", "wrong")
@each_rope("yarn")
def truncate_not_bool(subject: Subject, rope: Written) -> Iterator[Fault]:
    """`truncate` that is no true or false."""
    value = rope.values.get("truncate")
    if value is None or isinstance(value, bool):
        return
    expected = str(value).strip().lower() not in ("false", "0", "no", "0.0", "")
    means = (
        f"transformers asks only whether it is empty: {value!r} {'cuts' if value else 'does not cut'} to whole pairs"
    )
    actual = subject.with_({rope.at("truncate"): bool(value)}).model_config
    yield Fault(rope.at("truncate"), value, means, {rope.at("truncate"): expected}, actual)


@kind("phi3-yarn", "wrong")
@each_rope("yarn")
def phi3_yarn(subject: Subject, rope: Written) -> Iterator[Fault]:
    """Yarn on a Phi-3, whose class takes it for longrope."""
    model_config = subject.model_config
    if subject.model_type != "phi3" or isinstance(model_config, InputError):
        return
    layer = model_config.ropes[model_config.main]
    said = Scaling.rope_parameters(layer.scaling, layer.rope) if isinstance(layer.scaling, YaRN) else None
    if said is not None:
        means = "Phi3Config renames it to longrope and then refuses it; the same frequencies can be written as lists"
        yield Fault(rope.at("type"), rope.said, means, {rope.path: said})


def _rounded_head(subject: Subject) -> int | None:
    """hidden_size over the number of heads, where that is rounded down and nothing else says how large a head is."""
    hidden, heads = subject.text.get("hidden_size"), subject.text.get("num_attention_heads")
    given = any(subject.text.get(name) for name in ("head_dim", "qk_rope_head_dim", "kv_channels"))
    if given or not isinstance(hidden, int) or not isinstance(heads, int):
        return None
    return hidden // heads if 0 < heads < hidden and hidden % heads else None


def _ropes(model_config: Any) -> Any:
    return None if isinstance(model_config, InputError) else model_config.ropes


def _only_of(method: str) -> set[str]:
    return _OPTIONS[method] - set().union(*(own for name, own in _OPTIONS.items() if name != method))


def _strange(rope: Written) -> Iterator[tuple[str, str | None]]:
    """Keys that the method does not read, and what they are misspelled for."""
    own = _OPTIONS[rope.method] | _OF_THE_MODEL
    methods = set().union(*_OPTIONS.values())
    for key, value in rope.values.items():
        if key in own or isinstance(value, dict) or (key in _BESIDE_ALPHA and rope.values.get("alpha") is not None):
            continue
        near = [] if key in methods else get_close_matches(key, own, n=1, cutoff=0.8)
        expected = _ANOTHER_NAME.get(key, near[0] if near else None)
        yield key, expected if expected in own and rope.values.get(expected or "") is None else None


def _parsed(value: object) -> dict[str, Any] | None:
    try:
        said = json.loads(value) if isinstance(value, str) else None
        return said if isinstance(said, dict) and from_rope_dict(said, strict=False) else None
    except (ValueError, RecursionError):
        return None
