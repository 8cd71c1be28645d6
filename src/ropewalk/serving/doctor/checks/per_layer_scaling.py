"""A set of frequencies for each layer, which `ropewalk.extend` and `save_pretrained` leave in a configuration."""

from __future__ import annotations

from ropewalk import config as configs
from ropewalk.serving.doctor.examined_config import ExaminedConfig
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind


@fault_kind("per-layer-scaling", "suspicious")
def per_layer_scaling(config: ExaminedConfig) -> Faults:
    """The model was saved with a set of frequencies for each layer, which only `ropewalk.load` reads."""
    if config.text.get(configs.PER_LAYER_FIELD) is None:
        return
    path = (*config.text_path, configs.PER_LAYER_FIELD)
    means = "only ropewalk.load reads it: transformers and the engines read the model as it was before"
    question = "Will anything but ropewalk.load read the model?"
    answers = (Answer("no: leave it"), Answer("yes, without the scaling", {path: None}))
    yield Fault(path, "a set for each layer", means, question=question, answers=answers)
