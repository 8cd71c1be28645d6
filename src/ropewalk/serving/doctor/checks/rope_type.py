"""The key that names the method, `rope_type` or `type`: unknown, missing, or contradictory."""

from __future__ import annotations

from difflib import get_close_matches

from ropewalk.serving.doctor.examined_config import ORIGINAL_LENGTH, ExaminedConfig, RopeDict
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind, for_each_rope_dict
from ropewalk.serving.doctor.rope_type_options import ALL_OPTIONS, ROPE_TYPE_OPTIONS

_MISSPELLING_SIMILARITY = 0.5


@fault_kind("type-contradicts", "wrong")
@for_each_rope_dict()
def type_contradicts(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """`type` and `rope_type` name different methods."""
    new, old = rope_dict.values.get("rope_type"), rope_dict.values.get("type")
    if not new or not old or RopeDict(rope_dict.path, "", {"type": old}).method == rope_dict.method:
        return
    path = rope_dict.path_of("type")
    means = f"transformers uses rope_type, {new}; engines that read the older key use type, {old}"
    actual = config.with_changes({rope_dict.path_of("rope_type"): old}).interpretation
    yield Fault(path, old, means, {path: new}, actual)


@fault_kind("type-unknown", "wrong")
@for_each_rope_dict()
def type_unknown(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """Transformers does not know the rope type."""
    if rope_dict.method in ROPE_TYPE_OPTIONS:
        return
    path = rope_dict.rope_type_path
    similar = get_close_matches(rope_dict.method.lower(), ROPE_TYPE_OPTIONS, n=1, cutoff=_MISSPELLING_SIMILARITY)
    fix = {path: similar[0]} if similar else rope_dict.fix_without_scaling
    yield Fault(path, rope_dict.rope_type, f"transformers knows only {', '.join(ROPE_TYPE_OPTIONS)}", fix)


@fault_kind("type-su", "suspicious")
@for_each_rope_dict("longrope")
def type_su(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """The rope type is `su`, the former name of longrope."""
    if rope_dict.rope_type == "su" and not config.model_type.startswith("phi"):
        path = rope_dict.rope_type_path
        yield Fault(path, "su", "only the classes of Phi-3 accept this name", {path: "longrope"})


@fault_kind("type-missing", "wrong")
@for_each_rope_dict("default")
def type_missing(config: ExaminedConfig, rope_dict: RopeDict) -> Faults:
    """The rope dict has options of a scaling, but no rope type, so nothing is scaled."""
    options = set(rope_dict.values) & ALL_OPTIONS - {ORIGINAL_LENGTH}
    if rope_dict.values.get("rope_type") or rope_dict.values.get("type") or not options:
        return
    path = rope_dict.path_of("rope_type")
    means = "without rope_type the method is default, which scales nothing"
    yield Fault(path, None, means, {path: _likely_method(rope_dict, options)})


def _likely_method(rope_dict: RopeDict, options: set[str]) -> str:
    """Return the method that alone has one of these options; otherwise yarn if there is an original length."""
    for method in ("llama3", "longrope", "yarn", "dynamic"):
        others = set().union(*(ROPE_TYPE_OPTIONS[other] for other in ROPE_TYPE_OPTIONS if other != method))
        if options & ROPE_TYPE_OPTIONS[method] - others:
            return method
    return "yarn" if ORIGINAL_LENGTH in rope_dict.values else "linear"
