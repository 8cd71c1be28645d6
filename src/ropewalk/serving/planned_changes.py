"""The changes of a model's files that a plan needs, checked before anyone sees them."""

from __future__ import annotations

import dataclasses

from ropewalk.config import LayerRope
from ropewalk.errors import InputError
from ropewalk.planning import Plan
from ropewalk.serving.doctor import ExaminedConfig, Finding, examine
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.checkpoint_folder import locate_gguf
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import without_unused_fields

# Findings that follow from the length that a model was trained on, not from the plan: with very short texts even the
# fastest pair makes fewer rotations than beta_fast.
_UNAVOIDABLE_KINDS = {"beta-impossible"}


def find_planned_changes(model: str, planned: Plan) -> Config:
    """Return the fields with which a model has the planned scaling: of config.json, or of its GGUF file.

    Fields of config.json are nested as they are in the file, under `text_config` for a multimodal model. None removes a
    field. They are checked twice: transformers (llama.cpp for a GGUF file) must compute the planned frequencies from
    them for every layer type, and the doctor must find nothing that it did not find before, and nothing wrong.

    Args:
        model: a folder, a .gguf file, a built-in name, or a hub id.
        planned: the plan of this model; a plan that changes nothing has no changes.

    Raises UnsupportedScalingError if no fields give the planned frequencies, and InputError if the doctor finds faults.
    """
    if not planned.needed:
        return {}
    is_gguf = locate_gguf(model) is not None
    engine = find_engine("llama.cpp" if is_gguf else "transformers")
    config, model_config = engine.load_config(model)
    rope = model_config.main_layer.rope
    length = max(planned.target, planned.max_position_embeddings, round(planned.scaling.scaled_length(rope)))
    scaling = without_unused_fields(LayerRope(rope, planned.scaling), model_config.model_type)
    candidate = encode(engine, config, model_config, scaling, length)
    before = ExaminedConfig.from_model(model, planned.target, engine.name)
    if is_gguf:
        after = dataclasses.replace(before, config=candidate.config["fields"], divisors=candidate.config["divisors"])
    else:
        after = dataclasses.replace(before, config=candidate.config)
    _check_findings(examine(before).findings, examine(after).findings)
    return candidate.changes


def _check_findings(before: tuple[Finding, ...], after: tuple[Finding, ...]) -> None:
    """Raise InputError with the first finding that a change causes, or that is wrong."""
    known = {(finding.kind, finding.field) for finding in before}
    for finding in after:
        if finding.kind in _UNAVOIDABLE_KINDS:
            continue
        if finding.severity == "wrong" or (finding.kind, finding.field) not in known:
            raise InputError(finding.field, finding.found, f"a configuration without {finding.kind} ({finding.means})")
