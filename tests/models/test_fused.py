"""`extend(fuse=True)`: attention that turns by `rotate` gives what the model's own functions give, and is undone.

Run as a program, it prints the table of docs/fused.md.
"""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tests.helpers import architectures as tiny
from torch import nn
from transformers import DynamicCache
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.models.extend import extended, extension_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),
]
REFUSED = {"hunyuan_vl": "the two channels of a pair follow different axes of its positions"}
CATALOGUE = [*tiny.TEXT_MODELS, *tiny.SEEING_MODELS]
DOCS = Path(__file__).parents[2] / "docs" / "fused.md"
YARN = rw.YaRN(factor=4)
# A layout, a form of the tables or a signature each.
KINDS = ["llama", "glm", "cohere", "phi", "gpt_oss", "nanochat", "gemma4_text", "deepseek_v2", "deepseek_v3", "llama4"]
OWN = modeling_llama.apply_rotary_pos_emb


@pytest.fixture
def llama():
    return tiny.build("llama")


def yarn_for(model, scaling=rw.YaRN, **parameters):
    model_config = configs.read(model)
    known = model_config.main_layer.rope.original_length
    return scaling(**parameters, **({} if known else {"original_length": tiny.LENGTH}))  # RecurrentGemma does not say


def rotations(model):
    """What was learned of a model's functions, by name."""
    return dict(pair for module in model.modules() for pair in getattr(type(module), "ropewalk_rotations", ()))


class TestEveryArchitecture:
    @pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in REFUSED])
    def test_gives_the_logits_of_its_own_functions_and_is_undone(self, name):
        model = tiny.build(name)
        as_it_came = tiny.logits(model)
        scaling = yarn_for(model, factor=4)
        rw.extend(model, scaling)
        near, far = tiny.logits(model), tiny.logits(model, tiny.FAR)
        config = model.config.to_dict()
        assert not rotations(model)
        rw.extend(model, scaling, fuse=True)
        assert rotations(model)
        assert tiny.off(tiny.logits(model), near) < tiny.EXACT
        assert tiny.off(tiny.logits(model, tiny.FAR), far) < tiny.EXACT
        assert model.config.to_dict() == config
        assert torch.equal(tiny.logits(rw.restore(model)), as_it_came)
        assert not rotations(model)

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_rotate_does_not_do_is_refused(self, name):
        model = tiny.build(name)
        before = tiny.logits(model)
        with pytest.raises(rw.InputError, match="fuse: got 'apply_rotary_pos_emb of transformers") as error:
            rw.extend(model, YARN, fuse=True)
        assert "\n" not in str(error.value)
        assert extension_of(model) is None
        assert torch.equal(tiny.logits(model), before)

    def test_the_docs_have_the_table(self):
        assert table() in DOCS.read_text(), f"python {Path(__file__).name} prints the table for {DOCS}"


class TestInHalfPrecision:
    def test_keys_are_rounded_once(self, llama):
        llama.to(torch.bfloat16)
        written = []
        llama.model.layers[0].self_attn.k_proj.register_forward_hook(lambda *call: written.append(call[-1]))
        off = {}
        for fuse in (False, True):
            rw.extend(llama, YARN, fuse=fuse)
            cache = DynamicCache(config=llama.config)
            llama(input_ids=tiny.IDS, past_key_values=cache, position_ids=self.positions())
            exact = self.by_hand(written[-1])
            off[fuse] = (cache.layers[0].keys.double() - exact).abs() / (exact.abs() + 1e-4)
        half_a_unit = torch.finfo(torch.bfloat16).eps / 2
        assert off[True].max() <= 1.01 * half_a_unit
        assert off[False].max() > 2 * half_a_unit  # tables, products and sum, each rounded

    @pytest.mark.parametrize("name", KINDS)
    def test_logits_are_as_near_to_those_of_float32(self, name):
        model = tiny.build(name)
        scaling = yarn_for(model, factor=4)
        exact = tiny.logits(rw.extend(model, scaling))
        model = rw.restore(model).to(torch.bfloat16)
        off = {fuse: tiny.logits(rw.extend(model, scaling, fuse=fuse)) - exact for fuse in (False, True)}
        # Nearly all of it is the rounding of everything else, which falls as it will.
        assert off[True].pow(2).mean().sqrt() < 1.15 * off[False].pow(2).mean().sqrt()

    @staticmethod
    def positions():
        return torch.arange(5000, 5000 + tiny.IDS.shape[1]).expand(tiny.IDS.shape)

    def by_hand(self, k):
        """RoFormer eq. 34 in float64, half layout, on keys of 16 channels."""
        frequencies = YARN.frequencies(rw.Rope(16, 10_000.0, tiny.LENGTH))
        angle = self.positions()[:, None, :, None].double() * torch.tensor(frequencies.inv_freq)
        a, b = k.unflatten(-1, (-1, 16)).transpose(1, 2).double().chunk(2, dim=-1)
        turned = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
        return turned * frequencies.attention_factor


class TestWithACache:
    @pytest.mark.parametrize("name", KINDS)
    def test_generates_the_same_tokens(self, name):
        model = tiny.build(name)
        scaling = yarn_for(model, factor=4)
        options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
        plain = rw.extend(model, scaling).generate(tiny.IDS, **options)
        assert torch.equal(rw.extend(model, scaling, fuse=True).generate(tiny.IDS, **options), plain)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("policy", ["stepped:margin=1", "continuous:every=1,margin=1.25"])
    def test_cached_keys_follow_a_dynamic_scaling(self, name, policy):
        model = tiny.build(name)
        read = {}
        for fuse in (False, True):
            rw.extend(model, yarn_for(model, rw.DynamicYaRN), policy=policy, fuse=fuse)
            cache, parts = DynamicCache(config=model.config.get_text_config()), []
            for ids in tiny.LONG_IDS.split(12, dim=1):
                with torch.no_grad():
                    parts.append(model(input_ids=ids, past_key_values=cache).logits)
            read[fuse] = torch.cat(parts, dim=1)
        assert tiny.off(read[True], read[False]) < 2 * tiny.EXACT


class TestTheModel:
    def test_other_models_and_their_source_are_not_touched(self, llama):
        names = dict(vars(modeling_llama))
        other = rw.extend(copy.deepcopy(llama), YARN)
        want = tiny.logits(other)
        rw.extend(llama, YARN, fuse=True)
        fused = tiny.logits(llama)
        for _ in range(2):
            assert torch.equal(tiny.logits(other), want)
            assert torch.equal(tiny.logits(llama), fused)
        assert dict(vars(modeling_llama)) == names
        assert {type(layer.self_attn) for layer in other.model.layers} == {modeling_llama.LlamaAttention}
        assert all(isinstance(layer.self_attn, modeling_llama.LlamaAttention) for layer in llama.model.layers)

    def test_its_own_function_is_called_no_more(self, monkeypatch, llama):
        calls = []

        def counted(q, k, cos, sin, unsqueeze_dim=1):
            calls.append(cos.dtype)
            return OWN(q, k, cos, sin, unsqueeze_dim)

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", counted)
        rw.extend(llama.to(torch.bfloat16), "none", fuse=True)
        calls.clear()
        tiny.logits(llama)
        assert not calls
        tiny.logits(rw.restore(llama))
        assert calls == [torch.bfloat16] * 2

    def test_is_replaced_and_kept_by_blocks(self, llama):
        fused = tiny.logits(rw.extend(llama, YARN, fuse=True))
        with extended(llama, rw.NTK(factor=2)):
            assert not rotations(llama)
        assert torch.equal(tiny.logits(llama), fused)
        with pytest.raises(rw.InputError):
            rw.extend(llama, "nonsense")
        assert torch.equal(tiny.logits(llama), fused)
        rw.extend(llama, YARN)
        assert not rotations(llama)
        with extended(llama, YARN, fuse=True):
            assert torch.equal(tiny.logits(llama), fused)
        assert not rotations(llama)

    @pytest.mark.parametrize("name", ["llama", "glm_moe_dsa"])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_are_fused_too(self, name, copied):
        model = tiny.build(name)
        plain = tiny.logits(model)
        fused = tiny.logits(rw.extend(model, YARN, fuse=True))
        twin = copied(model)
        rw.restore(model)
        assert rotations(twin)
        assert torch.equal(tiny.logits(twin), fused)
        assert torch.equal(tiny.logits(rw.restore(twin)), plain)

    def test_a_saved_model_loads_with_the_scaling(self, llama, tmp_path):
        fused = tiny.logits(rw.extend(llama, YARN, fuse=True))
        llama.save_pretrained(tmp_path)
        assert tiny.off(tiny.logits(type(llama).from_pretrained(tmp_path).eval()), fused) < tiny.EXACT

    def test_under_the_hooks_of_accelerate(self, llama):
        hooks = pytest.importorskip("accelerate.hooks")
        plain = tiny.logits(llama)
        want = tiny.logits(rw.extend(copy.deepcopy(llama), YARN, fuse=True))
        for layer in llama.model.layers:
            hooks.add_hook_to_module(layer.self_attn, hooks.AlignDevicesHook(execution_device="cpu"))
        assert torch.equal(tiny.logits(rw.extend(llama, YARN, fuse=True)), want)
        assert torch.equal(tiny.logits(rw.restore(llama)), plain)

    @pytest.mark.parametrize("of", ["self_attn", "rotary_emb"])
    @pytest.mark.parametrize("at_first", [False, True])
    def test_hooks_of_accelerate_that_come_or_go(self, llama, of, at_first):
        """Between `extend` and `restore`: what the module holds of its own forward is then another thing."""
        hooks = pytest.importorskip("accelerate.hooks")
        plain = tiny.logits(llama)
        want = tiny.logits(rw.extend(copy.deepcopy(llama), YARN, fuse=True))
        modules = [module for name, module in llama.named_modules() if name.endswith(of)]

        def toggle(there):
            for module in modules:
                hooks.add_hook_to_module(module, hooks.ModelHook()) if there else hooks.remove_hook_from_module(module)

        toggle(at_first)
        rw.extend(llama, YARN, fuse=True)
        toggle(not at_first)
        assert torch.equal(tiny.logits(llama), want)
        assert torch.equal(tiny.logits(rw.restore(llama)), plain)
        toggle(False)
        assert torch.equal(tiny.logits(llama), plain)
        assert all(type(module).__module__.startswith("transformers") for module in modules)
        assert not any(hasattr(module, "ropewalk") for module in modules)

    @pytest.mark.parametrize("what", ["eager_attention_forward", "method"])
    def test_what_was_replaced_before_is_seen(self, monkeypatch, what):
        """Also by a model that is fused after another one of its kind."""
        rw.extend(tiny.build("llama"), YARN, fuse=True)
        model, calls = tiny.build("llama"), []
        model.set_attn_implementation("eager")
        where, name = (modeling_llama.LlamaAttention, "forward") if what == "method" else (modeling_llama, what)
        own = getattr(where, name)

        @functools.wraps(own)
        def counted(*args, **kwargs):
            calls.append(1)
            return own(*args, **kwargs)

        monkeypatch.setattr(where, name, counted)
        rw.extend(model, YARN, fuse=True)
        tiny.logits(model)
        assert len(calls) == 2

    def test_a_replaced_forward_is_refused(self, llama):
        attention = llama.model.layers[1].self_attn
        attention.forward = functools.partial(type(attention).forward, attention)
        with pytest.raises(rw.InputError, match=r"fuse: .*no other library has replaced"):
            rw.extend(llama, YARN, fuse=True)
        assert not rotations(llama)


class TestTraining:
    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("name", ["llama", "deepseek_v3", "llama4"])
    def test_gradients_are_those_of_its_own_functions(self, name, checkpointing):
        model = tiny.build(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        found = {}
        for fuse in (False, True):
            rw.extend(model, yarn_for(model, factor=4), fuse=fuse)
            model.zero_grad()
            model(input_ids=tiny.IDS, labels=tiny.IDS, use_cache=False).loss.backward()
            found[fuse] = {path: weight.grad for path, weight in model.named_parameters() if weight.grad is not None}
        assert found[True].keys() == found[False].keys()
        for path, grad in found[False].items():
            assert torch.allclose(found[True][path], grad, rtol=1e-4, atol=1e-5 * grad.abs().max()), path


class TestCompiled:
    def test_without_a_break(self, llama):
        torch.compiler.reset()
        want = tiny.logits(rw.extend(llama, YARN, fuse=True))
        compiled = torch.compile(llama, fullgraph=True, backend="aot_eager")
        assert tiny.off(tiny.logits(compiled), want) < tiny.EXACT

    @pytest.mark.parametrize("name", ["deepseek_v2", "gemma4_text", "glm_moe_dsa"])
    def test_with_no_more_breaks_than_before(self, name):
        model = tiny.build(name)
        breaks = {}
        for fuse in (False, True):
            torch.compiler.reset()
            rw.extend(model, YARN, fuse=fuse)
            breaks[fuse] = torch._dynamo.explain(tiny.logits)(model).graph_break_count
        assert breaks[True] <= breaks[False]


def shifted(q, k, cos, sin, unsqueeze_dim=1):
    q, k = OWN(q, k, cos, sin, unsqueeze_dim)
    return q, k + 1e-3


def by_position(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    return OWN(q, k, cos, sin, unsqueeze_dim)


def in_float32(q, k, cos, sin, unsqueeze_dim=1):
    return OWN(q.float(), k.float(), cos, sin, unsqueeze_dim)


def with_values(q, k, v, cos, sin, unsqueeze_dim=1):
    return (*OWN(q, k, cos, sin, unsqueeze_dim), v)


def backwards_if_told(q, k, cos, sin, unsqueeze_dim=1, backwards=False):
    return OWN(q, k, cos, -sin if backwards else sin, unsqueeze_dim)


def without_tables(q, k, *tables):
    return OWN(q, k, *tables)


class OfTheKernelsPackage(nn.Module):
    def forward(self, q, k, cos, sin, unsqueeze_dim=1):
        return OWN(q, k, cos, sin, unsqueeze_dim)


class TestAsking:
    """Functions in the place of Llama's own."""

    @pytest.mark.parametrize("function", [shifted, by_position, in_float32, with_values, backwards_if_told])
    def test_another_function_is_refused_by_name(self, monkeypatch, llama, function):
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", function)
        with pytest.raises(rw.InputError, match=f"fuse: got 'apply_rotary_pos_emb of {__name__}"):
            rw.extend(llama, YARN, fuse=True)
        assert not rotations(llama)

    def test_a_model_that_calls_none_is_refused(self, monkeypatch, llama):
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", without_tables)
        with pytest.raises(rw.InputError, match="fuse: got 'LlamaModel'"):
            rw.extend(llama, YARN, fuse=True)

    def test_a_function_that_is_a_module_is_understood(self, monkeypatch, llama):
        want = tiny.logits(rw.extend(llama, YARN))
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", OfTheKernelsPackage())
        assert tiny.off(tiny.logits(rw.extend(llama, YARN, fuse=True)), want) < tiny.EXACT

    @pytest.mark.parametrize(("name", "source"), [("llama", modeling_llama), ("glm", modeling_glm)])
    def test_what_was_learned_holds_for_other_shapes(self, name, source):
        dice = torch.Generator().manual_seed(5)
        model = rw.extend(tiny.build(name), YARN, fuse=True)
        rotation, function = rotations(model)["apply_rotary_pos_emb"], source.apply_rotary_pos_emb
        pairs = len(model.model.rotary_emb.inv_freq)
        cos, sin = torch.randn(2, 1, 7, pairs, generator=dice).repeat(1, 1, 1, 2)
        q, k = (torch.randn(4, 7, heads, 2 * pairs, generator=dice) for heads in (8, 1))
        for ours, theirs in zip(rotation(q, k, cos, sin, unsqueeze_dim=-2), function(q, k, cos, sin, 2), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def table() -> str:
    """What was learned of every architecture, in Markdown."""
    found = defaultdict(list)
    for name in CATALOGUE:
        model = tiny.build(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                learned = rotations(rw.extend(model, yarn_for(model, factor=4), fuse=True))
            except rw.InputError:
                learned = {}
        for row in {_row(*each) for each in learned.items()} or {("refused", REFUSED[name], "")}:
            found[row].append(name)
    lines = [
        f"| {' | '.join(row)} | {len(names)} | {', '.join(sorted(names))} |"
        for row, names in sorted(found.items(), key=lambda item: (item[0][0] == "refused", -len(item[1]), item[0]))
    ]
    head = ["| Function | It turns | Its table | | Architectures |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(head + lines)


def _row(name, rotation):
    layout = "in the half layout" if rotation.layout == "half" else "interleaved pairs"
    besides = {
        "backwards": rotation.inverse,
        "the last channels of a head": rotation.rotates_last,
        "and answers in the half layout": rotation.returns_half_layout,
    }
    columns = {"compact": "one channel a pair", "half": "the pairs twice", "interleaved": "each pair twice"}[
        rotation.table_layout
    ]
    if len(rotation.tables) == 1:
        columns = "complex"
    signature = f"`{name}({', '.join(rotation.inputs)}, ...)`"
    return signature, ", ".join([layout, *(word for word, said in besides.items() if said)]), columns


if __name__ == "__main__":
    print(table())
