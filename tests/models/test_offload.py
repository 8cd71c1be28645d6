"""Models whose weights accelerate keeps on another device or on disk."""

import copy

import pytest
import torch
from tests.helpers.architectures import build
from tests.helpers.cached_text import CONTINUOUS, LONG, SCALING, STEPPED, TEXT, continue_text, generate, read_text

import ropewalk as rw
from ropewalk.models.key_state import get_key_state

accelerate = pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
]


def offload(model, how, folder):
    """Move all weights away; each module loads its own when it is called."""
    if how == "disk":
        return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("policy", [STEPPED, CONTINUOUS])
@pytest.mark.parametrize("how", ["disk", "cpu"])
@pytest.mark.parametrize("extended_first", [False, True], ids=["offloaded first", "extended first"])
def test_an_offloaded_model_reads_as_the_model_in_memory(how, policy, extended_first, tmp_path):
    model, expected = build("llama"), rw.extend(build("llama"), SCALING, policy=policy)
    if extended_first:
        model = offload(rw.extend(model, SCALING, policy=policy), how, tmp_path)
    else:
        model = rw.extend(offload(model, how, tmp_path), SCALING, policy=policy)
    assert model.get_input_embeddings().weight.device.type == "meta"
    logits, cache = read_text(model, LONG, 20, 13, 1, 62)
    assert get_key_state(cache).rotations > 0
    assert torch.equal(logits, read_text(expected, LONG, 20, 13, 1, 62)[0])
    sequences = [generate(each, TEXT[:, :28], 10).sequences for each in (model, expected)]
    assert torch.equal(*sequences)


def test_caches_of_offloaded_models_are_told_apart(tmp_path):
    models = [rw.extend(offload(build("llama"), "disk", tmp_path / name), SCALING) for name in ("one", "other")]
    _, cache = read_text(models[0], TEXT[:, :20])
    continue_text(models[0], TEXT[:, 20:21], copy.deepcopy(cache))
    with pytest.raises(RuntimeError, match="20 tokens of another model"):
        continue_text(models[1], TEXT[:, 20:21], cache)
