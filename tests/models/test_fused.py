"""`extend(fuse=True)`: attention that rotates with `rotate` computes what the original functions compute.

Run as a program (python -m tests.models.test_fused), it prints the table of docs/fused.md.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tests.helpers.architectures import (
    FAR_POSITION,
    IDS,
    LENGTH,
    LONG_IDS,
    MULTIMODAL_MODELS,
    TEXT_MODELS,
    TOLERANCE,
    build,
    compute_logits,
    relative_difference,
)
from transformers import DynamicCache
from transformers.models.llama import modeling_llama

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.compat.transformers import cache_for_call
from ropewalk.models.extend import extended, extension_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),  # Llama 4's vision tables, in .to(bfloat16)
]
NOT_FUSIBLE = {"hunyuan_vl": "the two channels of a pair follow different axes of its positions"}
ARCHITECTURES = [*TEXT_MODELS, *MULTIMODAL_MODELS]
DOCS = Path(__file__).parents[2] / "docs" / "fused.md"
YARN = rw.YaRN(factor=4)
# Architectures that differ in the layout of pairs, the form of the tables or the signature of the function.
REPRESENTATIVES = [
    "llama",
    "glm",
    "cohere",
    "phi",
    "gpt_oss",
    "nanochat",
    "gemma4_text",
    "deepseek_v2",
    "deepseek_v3",
    "llama4",
]
ORIGINAL = modeling_llama.apply_rotary_pos_emb


@pytest.fixture
def llama():
    return build("llama")


def scaling_for(model, scaling=rw.YaRN, **parameters):
    model_config = configs.read(model)
    known = model_config.main_layer.rope.original_length
    return scaling(**parameters, **({} if known else {"original_length": LENGTH}))  # RecurrentGemma gives no length


def learned_rotations(model):
    """Return the learned rotations of a fused model, by the name of the function."""
    return dict(pair for module in model.modules() for pair in getattr(type(module), "ropewalk_rotations", ()))


class TestEveryArchitecture:
    @pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NOT_FUSIBLE])
    def test_logits_equal_those_of_the_original_function_and_restore_undoes_it(self, name):
        model = build(name)
        original = compute_logits(model)
        scaling = scaling_for(model, factor=4)
        rw.extend(model, scaling)
        near, far = compute_logits(model), compute_logits(model, FAR_POSITION)
        config = model.config.to_dict()
        assert not learned_rotations(model)
        rw.extend(model, scaling, fuse=True)
        assert learned_rotations(model)
        assert relative_difference(compute_logits(model), near) < TOLERANCE
        assert relative_difference(compute_logits(model, FAR_POSITION), far) < TOLERANCE
        assert model.config.to_dict() == config
        assert torch.equal(compute_logits(rw.restore(model)), original)
        assert not learned_rotations(model)

    @pytest.mark.parametrize("name", NOT_FUSIBLE)
    def test_a_rotation_that_rotate_cannot_compute_is_refused(self, name):
        model = build(name)
        before = compute_logits(model)
        with pytest.raises(rw.InputError, match="fuse: got 'apply_rotary_pos_emb of transformers") as error:
            rw.extend(model, YARN, fuse=True)
        assert "\n" not in str(error.value)
        assert extension_of(model) is None
        assert torch.equal(compute_logits(model), before)

    def test_the_docs_contain_the_table(self):
        assert markdown_table() in DOCS.read_text(), f"python -m tests.models.test_fused prints the table for {DOCS}"


class TestInHalfPrecision:
    def test_keys_are_rounded_once(self, llama):
        llama.to(torch.bfloat16)
        written = []
        llama.model.layers[0].self_attn.k_proj.register_forward_hook(lambda *call: written.append(call[-1]))
        error = {}
        for fuse in (False, True):
            rw.extend(llama, YARN, fuse=fuse)
            cache = DynamicCache(config=llama.config)
            llama(input_ids=IDS, **cache_for_call(llama, cache), position_ids=self.positions())
            exact = self.by_hand(written[-1])
            error[fuse] = (cache.layers[0].keys.double() - exact).abs() / (exact.abs() + 1e-4)
        half_a_unit = torch.finfo(torch.bfloat16).eps / 2
        assert error[True].max() <= 1.01 * half_a_unit
        assert error[False].max() > 2 * half_a_unit  # the tables, the products and the sum are rounded

    @pytest.mark.parametrize("name", REPRESENTATIVES)
    def test_logits_are_as_accurate_as_without_fusing(self, name):
        model = build(name)
        scaling = scaling_for(model, factor=4)
        exact = compute_logits(rw.extend(model, scaling))
        model = rw.restore(model).to(torch.bfloat16)
        error = {fuse: compute_logits(rw.extend(model, scaling, fuse=fuse)) - exact for fuse in (False, True)}
        # Nearly all of the error comes from other roundings, which differ at random.
        assert error[True].pow(2).mean().sqrt() < 1.15 * error[False].pow(2).mean().sqrt()

    @staticmethod
    def positions():
        return torch.arange(5000, 5000 + IDS.shape[1]).expand(IDS.shape)

    def by_hand(self, k):
        """RoFormer eq. 34 in float64, half layout, on keys of 16 channels."""
        frequencies = YARN.frequencies(rw.Rope(16, 10_000.0, LENGTH))
        angle = self.positions()[:, None, :, None].double() * torch.tensor(frequencies.inv_freq)
        a, b = k.unflatten(-1, (-1, 16)).transpose(1, 2).double().chunk(2, dim=-1)
        rotated = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
        return rotated * frequencies.attention_factor


class TestWithACache:
    @pytest.mark.parametrize("name", REPRESENTATIVES)
    def test_generates_the_same_tokens(self, name):
        model = build(name)
        scaling = scaling_for(model, factor=4)
        options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
        plain = rw.extend(model, scaling).generate(IDS, **options)
        assert torch.equal(rw.extend(model, scaling, fuse=True).generate(IDS, **options), plain)

    @pytest.mark.parametrize("name", REPRESENTATIVES)
    @pytest.mark.parametrize("policy", ["stepped:margin=1", "continuous:every=1,margin=1.25"])
    def test_a_dynamic_scaling_reads_the_same_through_a_cache(self, name, policy):
        model = build(name)
        read = {}
        for fuse in (False, True):
            rw.extend(model, scaling_for(model, rw.DynamicYaRN), policy=policy, fuse=fuse)
            cache, parts = DynamicCache(config=model.config.get_text_config()), []
            for ids in LONG_IDS.split(12, dim=1):
                with torch.no_grad():
                    parts.append(model(input_ids=ids, **cache_for_call(model, cache)).logits)
            read[fuse] = torch.cat(parts, dim=1)
        assert relative_difference(read[True], read[False]) < 2 * TOLERANCE


class TestTheModel:
    def test_other_models_and_their_source_are_not_touched(self, llama):
        names = dict(vars(modeling_llama))
        other = rw.extend(copy.deepcopy(llama), YARN)
        expected = compute_logits(other)
        rw.extend(llama, YARN, fuse=True)
        fused = compute_logits(llama)
        for _ in range(2):
            assert torch.equal(compute_logits(other), expected)
            assert torch.equal(compute_logits(llama), fused)
        assert dict(vars(modeling_llama)) == names
        assert {type(layer.self_attn) for layer in other.model.layers} == {modeling_llama.LlamaAttention}
        assert all(isinstance(layer.self_attn, modeling_llama.LlamaAttention) for layer in llama.model.layers)

    def test_the_original_function_is_no_longer_called(self, monkeypatch, llama):
        calls = []

        def counted(q, k, cos, sin, unsqueeze_dim=1):
            calls.append(cos.dtype)
            return ORIGINAL(q, k, cos, sin, unsqueeze_dim)

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", counted)
        rw.extend(llama.to(torch.bfloat16), "none", fuse=True)
        calls.clear()
        compute_logits(llama)
        assert not calls
        compute_logits(rw.restore(llama))
        assert calls == [torch.bfloat16] * 2

    def test_other_scalings_replace_it_and_blocks_restore_it(self, llama):
        fused = compute_logits(rw.extend(llama, YARN, fuse=True))
        with extended(llama, rw.NTK(factor=2)):
            assert not learned_rotations(llama)
        assert torch.equal(compute_logits(llama), fused)
        with pytest.raises(rw.InputError):
            rw.extend(llama, "nonsense")
        assert torch.equal(compute_logits(llama), fused)
        rw.extend(llama, YARN)
        assert not learned_rotations(llama)
        with extended(llama, YARN, fuse=True):
            assert torch.equal(compute_logits(llama), fused)
        assert not learned_rotations(llama)

    @pytest.mark.parametrize("name", ["llama", "glm_moe_dsa"])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_are_fused(self, name, copied):
        model = build(name)
        plain = compute_logits(model)
        fused = compute_logits(rw.extend(model, YARN, fuse=True))
        twin = copied(model)
        rw.restore(model)
        assert learned_rotations(twin)
        assert torch.equal(compute_logits(twin), fused)
        assert torch.equal(compute_logits(rw.restore(twin)), plain)

    def test_a_saved_model_loads_with_the_scaling(self, llama, tmp_path):
        fused = compute_logits(rw.extend(llama, YARN, fuse=True))
        llama.save_pretrained(tmp_path)
        assert relative_difference(compute_logits(type(llama).from_pretrained(tmp_path).eval()), fused) < TOLERANCE

    def test_works_under_hooks_of_accelerate(self, llama):
        hooks = pytest.importorskip("accelerate.hooks")
        plain = compute_logits(llama)
        expected = compute_logits(rw.extend(copy.deepcopy(llama), YARN, fuse=True))
        for layer in llama.model.layers:
            hooks.add_hook_to_module(layer.self_attn, hooks.AlignDevicesHook(execution_device="cpu"))
        assert torch.equal(compute_logits(rw.extend(llama, YARN, fuse=True)), expected)
        assert torch.equal(compute_logits(rw.restore(llama)), plain)

    @pytest.mark.parametrize("of", ["self_attn", "rotary_emb"])
    @pytest.mark.parametrize("at_first", [False, True])
    def test_hooks_of_accelerate_can_be_added_and_removed(self, llama, of, at_first):
        """They change, between `extend` and `restore`, the attributes in which a module keeps its forward."""
        hooks = pytest.importorskip("accelerate.hooks")
        plain = compute_logits(llama)
        expected = compute_logits(rw.extend(copy.deepcopy(llama), YARN, fuse=True))
        modules = [module for name, module in llama.named_modules() if name.endswith(of)]

        def toggle(there):
            for module in modules:
                hooks.add_hook_to_module(module, hooks.ModelHook()) if there else hooks.remove_hook_from_module(module)

        toggle(at_first)
        rw.extend(llama, YARN, fuse=True)
        toggle(not at_first)
        assert torch.equal(compute_logits(llama), expected)
        assert torch.equal(compute_logits(rw.restore(llama)), plain)
        toggle(False)
        assert torch.equal(compute_logits(llama), plain)
        assert all(type(module).__module__.startswith("transformers") for module in modules)
        assert not any(hasattr(module, "ropewalk") for module in modules)

    @pytest.mark.parametrize("what", ["eager_attention_forward", "method"])
    def test_functions_replaced_by_the_user_are_called(self, monkeypatch, what):
        """This holds too if another model of the same class was fused before."""
        rw.extend(build("llama"), YARN, fuse=True)
        model, calls = build("llama"), []
        model.set_attn_implementation("eager")
        where, name = (modeling_llama.LlamaAttention, "forward") if what == "method" else (modeling_llama, what)
        original = getattr(where, name)

        @functools.wraps(original)
        def counted(*args, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        monkeypatch.setattr(where, name, counted)
        rw.extend(model, YARN, fuse=True)
        compute_logits(model)
        assert len(calls) == 2

    def test_a_replaced_forward_is_refused(self, llama):
        attention = llama.model.layers[1].self_attn
        attention.forward = functools.partial(type(attention).forward, attention)
        with pytest.raises(rw.InputError, match=r"fuse: .*no other library has replaced"):
            rw.extend(llama, YARN, fuse=True)
        assert not learned_rotations(llama)


class TestTraining:
    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("name", ["llama", "deepseek_v3", "llama4"])
    def test_gradients_equal_those_of_the_original_function(self, name, checkpointing):
        model = build(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        gradients = {}
        for fuse in (False, True):
            rw.extend(model, scaling_for(model, factor=4), fuse=fuse)
            model.zero_grad()
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            gradients[fuse] = {
                path: weight.grad for path, weight in model.named_parameters() if weight.grad is not None
            }
        assert gradients[True].keys() == gradients[False].keys()
        for path, grad in gradients[False].items():
            assert torch.allclose(gradients[True][path], grad, rtol=1e-4, atol=1e-5 * grad.abs().max()), path


class TestCompiled:
    def test_without_graph_breaks(self, llama):
        torch.compiler.reset()
        expected = compute_logits(rw.extend(llama, YARN, fuse=True))
        compiled = torch.compile(llama, fullgraph=True, backend="aot_eager")
        assert relative_difference(compute_logits(compiled), expected) < TOLERANCE

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("deepseek_v2", {"num_hidden_layers": 1}),
            ("gemma4_text", {"num_hidden_layers": 1, "layer_types": ["full_attention"]}),
            ("glm_moe_dsa", {"num_hidden_layers": 1}),
        ],
    )
    def test_with_no_more_graph_breaks_than_without_fusing(self, name, changes):
        model = build(name, **changes)
        breaks = {}
        for fuse in (False, True):
            torch.compiler.reset()
            rw.extend(model, YARN, fuse=fuse)
            breaks[fuse] = torch._dynamo.explain(compute_logits)(model).graph_break_count
        assert breaks[True] <= breaks[False]


def markdown_table() -> str:
    """Return the learned rotations of every architecture as a Markdown table."""
    architectures_of_row = defaultdict(list)
    for name in ARCHITECTURES:
        model, rows = build(name), set()
        try:
            with extended(model, scaling_for(model, factor=4), fuse=True):
                rows = {table_row(function, rotation) for function, rotation in learned_rotations(model).items()}
        except rw.InputError:
            rows = {("refused", NOT_FUSIBLE[name], "")}
        for row in rows:
            architectures_of_row[row].append(name)

    def refused_last_then_most_frequent(item):
        row, names = item
        return row[0] == "refused", -len(names), row

    lines = ["| Function | Rotation | Its table | | Architectures |", "| --- | --- | --- | --- | --- |"]
    for row, names in sorted(architectures_of_row.items(), key=refused_last_then_most_frequent):
        lines.append(f"| {' | '.join(row)} | {len(names)} | {', '.join(sorted(names))} |")
    return "\n".join(lines)


def table_row(name, rotation):
    """Return function, rotation and table layout as in docs/fused.md."""
    parts = ["half layout" if rotation.layout == "half" else "interleaved layout"]
    if rotation.inverse:
        parts.append("opposite angles")
    if rotation.rotates_last:
        parts.append("last channels of a head")
    if rotation.returns_half_layout:
        parts.append("returned in half layout")
    layouts = {"compact": "one channel per pair", "half": "the pairs twice", "interleaved": "each pair twice"}
    table_layout = layouts[rotation.table_layout] if len(rotation.tables) == 2 else "complex"
    return f"`{name}({', '.join(rotation.inputs)}, ...)`", ", ".join(parts), table_layout


if __name__ == "__main__":
    print(markdown_table())
