"""Frequencies that follow a text: what stands in the KV cache, and what is read with it.

Two references, neither of which turns a cached key. `Heard` gives a model whose frequencies are fixed the very hidden
states that each attention was given, so that it caches the keys that are right. `Replay` is a Llama that keeps its keys
unturned and turns all of them anew at each call.
"""

import copy
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import architectures as tiny
from transformers import DynamicCache, StaticCache

import ropewalk as rw
from ropewalk.models.cache_layout import RotatedChannels
from ropewalk.models.key_state import KeyState, get_key_state, tokens_seen
from ropewalk.models.channel_layout import ChannelLayout
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.scaling.policies import parse_policy

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),
]
LENGTH, EXACT = tiny.LENGTH, tiny.EXACT
KEYS_EXACT = 2 * EXACT  # Llama 4 and nanochat normalize keys after they are turned, with an epsilon of 1e-5
SCALING = rw.DynamicYaRN()
ROPE = rw.Rope(16, 10_000.0, LENGTH)
TEXTS = torch.randint(3, 97, (3, 6 * LENGTH), generator=torch.Generator().manual_seed(3))
TEXT = TEXTS[:1]
SHORT, LONG = TEXT[:, :LENGTH], TEXT[:, : 3 * LENGTH]
HALF_PRECISION = torch.finfo(torch.bfloat16).eps
STEPPED, CONTINUOUS, REQUEST = "stepped:margin=1", "continuous:every=1,margin=1.25", "request:margin=1.25"
POLICIES = [
    STEPPED,
    "stepped:factors=[1.5,3],margin=1.1",
    "continuous:every=1,margin=1",
    "continuous:every=32,margin=1.25",
]
BOTH_KINDS = pytest.mark.parametrize("policy", [STEPPED, CONTINUOUS])  # without a copy of the keys, and with
EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)

# Several ways for pairs to lie, several tables, and caches with more than keys and values.
LAYOUTS = {
    "llama": "halves",
    "glm": "interleaved, part of the head",
    "cohere": "interleaved",
    "phi": "halves, part of the head",
    "gpt_neox": "halves, part of the head",
    "gemma3_text": "two rotary types, one for sliding windows",
    "mistral": "sliding windows alone",
    "gpt_oss": "sliding and full layers under one type",
    "deepseek_v3": "latent: what turns is among the values",
    "glm_moe_dsa": "an indexer with keys of its own",
    "qwen2_vl": "three position axes",
    "nanochat": "turns backwards, and normalizes keys after that",
    "llama4_text": "complex tables, and normalizes keys after that",
    "longcat_flash": "two attentions a layer",
    "lfm3": "convolutions, a sliding and a full layer",
}
NOT_FOLLOWED = {
    "deepseek_v4": "turns its compressed keys by other positions",
    "hunyuan_v1_dense": "normalizes keys by channel after they are turned",
    "hunyuan_v1_moe": "as above",
    "hunyuan_vl": "as above",
    "minimax": "takes a cache of its own only",
    "recurrent_gemma": "reads a single token in another way",
}


@pytest.fixture
def llama():
    return tiny.build("llama")


def extended(policy=STEPPED, name="llama", scaling=SCALING, **options):
    return rw.extend(tiny.build(name), scaling, policy=policy, **options)


def read(model, ids, *sizes, cache=None, **options):
    """The logits of a text that is fed in chunks of these sizes, or whole; and its cache."""
    logits = []
    with torch.no_grad():
        for part in ids.split(list(sizes) or ids.shape[1], dim=1):
            answer = model(part, past_key_values=cache, use_cache=True, **options)
            cache = answer.past_key_values
            logits.append(answer.logits)
    return torch.cat(logits, dim=1), cache


def go_on(model, ids, cache, *sizes):
    return read(model, ids, *sizes, cache=cache)[0]


def generated(model, ids, tokens, **options):
    given = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    return model.generate(
        ids, max_new_tokens=tokens, output_logits=True, output_scores=True, return_dict_in_generate=True, **given
    )


def padded(*rows):
    """Rows of different lengths, filled up at the left, and their mask."""
    longest = max(len(row) for row in rows)
    filled = [torch.cat([row.new_zeros(longest - len(row)), row]) for row in rows]
    masks = [torch.arange(longest) >= longest - len(row) for row in rows]
    return torch.stack(filled), torch.stack(masks).long()


def following(policy, scaling=SCALING):
    """The frequencies of a text that has come to so many tokens."""
    policy = parse_policy(policy)
    return lambda reached: scaling.frequencies(ROPE, policy.scaled_length(reached, LENGTH))


def fixed(length, scaling=SCALING):
    return lambda _: scaling.frequencies(ROPE, length)


class Replay:
    """A tiny Llama that reads one text, keeps its keys unturned, and turns all of them anew at each call; float64."""

    def __init__(self, model, frequencies_at):
        self.model = rw.restore(copy.deepcopy(model)).double()
        self.frequencies_at = frequencies_at
        self.keys = [torch.zeros(1, 2, 0, 16, dtype=torch.float64) for _ in range(2)]
        self.values = list(self.keys)

    @torch.no_grad()
    def __call__(self, ids_T):
        """The logits of more tokens, [T, V]."""
        body, before, new = self.model.model, self.keys[0].shape[2], len(ids_T)
        cos, sin = self.frequencies_at(before + new).cos_sin(np.arange(before + new), "float64")
        cos, sin = (torch.from_numpy(np.concatenate([part, part], axis=-1)) for part in (cos, sin))
        visible = torch.ones(new, before + new, dtype=torch.bool).tril(before)
        x = body.embed_tokens(ids_T)[None]
        for at, layer in enumerate(body.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            query, key, value = (
                project(h).view(1, new, -1, 16).transpose(1, 2)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            self.keys[at] = torch.cat([self.keys[at], key], dim=2)
            self.values[at] = torch.cat([self.values[at], value], dim=2)
            query, key = turned(query, cos[before:], sin[before:]), turned(self.keys[at], cos, sin)
            key, value = key.repeat_interleave(2, dim=1), self.values[at].repeat_interleave(2, dim=1)
            weights = (query @ key.mT / 4).masked_fill(~visible, -torch.inf).softmax(-1)
            x = x + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.lm_head(body.norm(x))[0].float()

    def chunks(self, ids, *sizes):
        """The logits of one row that is fed in chunks."""
        return torch.cat([self(part) for part in ids[0].split(list(sizes))])[None]

    def steps(self, prompt_T, new_T):
        """The logits that each of the new tokens is chosen by, when each is fed on alone."""
        return torch.cat([self(prompt_T)[-1:], *(self(token_1) for token_1 in new_T[:-1].split(1))])

    def crop(self, count):
        self.keys, self.values = ([held[:, :, :count] for held in part] for part in (self.keys, self.values))


def turned(x, cos, sin):
    one, other = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-other, one], dim=-1) * sin


class Heard:
    """What each attention of a model has been given of a text."""

    def __init__(self):
        self.given = {}  # by attention, and which of its calls in a forward it was

    def read(self, model, ids, *sizes, cache=None, at=0):
        """Feed a text that goes on at position `at` in chunks; its cache. Positions are said: Bamba knows no others."""
        for part in ids.split(list(sizes), dim=1):
            positions = torch.arange(at, at + part.shape[1])[None]
            cache = self._forward(model, part, self._hear, past_key_values=cache, position_ids=positions)
            at += part.shape[1]
        return cache

    def from_scratch(self, model, ids):
        """The cache of another model that reads the text at once, with these hidden states at each attention."""
        return self._forward(model, ids, lambda call, _: self.given[call])

    def crop(self, tokens):
        self.given = {call: given[:, :-tokens] for call, given in self.given.items()}

    def _hear(self, call, hidden):
        heard = self.given.get(call)
        self.given[call] = hidden if heard is None else torch.cat([heard, hidden], dim=1)
        return hidden

    @staticmethod
    def _forward(model, ids, answer, **options):
        calls, hooks = {}, []

        def hook(name):
            def before(_, args, kwargs):
                if torch.is_inference_mode_enabled():  # the model is being asked for its channels
                    return None
                call = name, calls.setdefault(name, 0)
                calls[name] += 1
                if args:
                    return (answer(call, args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": answer(call, kwargs["hidden_states"])}

            return before

        for name, module in model.named_modules():
            if type(module).__name__.endswith(("Attention", "MLA")):
                hooks.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
        try:
            with torch.no_grad():
                return model(ids, use_cache=True, **options).past_key_values
        finally:
            for handle in hooks:
                handle.remove()


def off(cache, want):
    """How far apart the attention layers of two caches are, relative to the largest number of each tensor."""
    worst = []
    for layer, other in zip(cache.layers, want.layers, strict=True):
        if isinstance(getattr(other, "keys", None), torch.Tensor):
            for name in ("keys", "values", "indexer_keys"):
                held, right = getattr(layer, name, None), getattr(other, name, None)
                if isinstance(right, torch.Tensor) and right.numel():
                    assert held.shape == right.shape
                    worst.append(float((held.float() - right.float()).abs().max() / right.float().abs().max()))
    assert worst
    return max(worst)


def first_layer(cache):
    """Its keys depend on the tokens and the frequencies, and on nothing that was read before."""
    return SimpleNamespace(layers=cache.layers[:1])


def keys_off(cache, heard, ids, name, scaling=SCALING, length=None, dtype=torch.float32):
    """How far the cache is from what a model with fixed frequencies caches."""
    model = rw.extend(tiny.build(name), scaling, length=length).to(dtype)
    return off(cache, heard.from_scratch(model, ids))


class TestKeys:
    """They are those that a model with the last frequencies caches."""

    @EVERY_POLICY
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_are_as_cached_under_the_last_frequencies(self, name, policy):
        heard = Heard()
        cache = heard.read(extended(policy, name), LONG, 20, 13, 1, 1, 1, 40, 20)
        assert get_key_state(cache).rotations > 0
        made_for = parse_policy(policy).scaled_length(LONG.shape[1], LENGTH)
        assert keys_off(cache, heard, LONG, name, length=made_for) < KEYS_EXACT
        assert keys_off(cache, heard, LONG, name, length=made_for + LENGTH) > 100 * EXACT  # ... and no others

    @pytest.mark.parametrize("scaling", ["dynamic-ntk", "dynamic-ntk-by-parts", "critical-base"])
    def test_whatever_the_scaling(self, scaling):
        heard = Heard()
        cache = heard.read(extended("continuous:every=32,margin=1.25", scaling=scaling), LONG, 50, 46)
        assert keys_off(cache, heard, LONG, "llama", scaling, length=120) < KEYS_EXACT

    @pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "lfm3"])
    def test_a_scaling_for_each_layer_type(self, name):
        kinds = ("sliding_attention", "full_attention") if name == "gemma3_text" else ("all",)
        scalings = dict.fromkeys(kinds, SCALING) if name != "lfm3" else SCALING
        heard = Heard()
        cache = heard.read(extended(CONTINUOUS, name, scalings), LONG, 20, 20, 20, 36)
        assert keys_off(cache, heard, LONG, name, scalings, length=120) < KEYS_EXACT

    def test_two_scalings_that_follow_at_once(self):
        scalings = {"sliding_attention": rw.DynamicNTK(), "full_attention": SCALING}
        for policy, made_for in ((STEPPED, 128), ("continuous:every=32,margin=1.25", 120)):
            heard = Heard()
            cache = heard.read(extended(policy, "gemma3_text", scalings), LONG, 20, 20, 56)
            assert keys_off(cache, heard, LONG, "gemma3_text", scalings, length=made_for) < KEYS_EXACT

    @pytest.mark.parametrize("policy", [STEPPED, "continuous:every=1,margin=1"])
    @pytest.mark.parametrize("name", ["llama", "glm", "deepseek_v3", "gemma3_text"])
    def test_bfloat16_to_its_rounding(self, name, policy):
        heard = Heard()
        cache = heard.read(extended(policy, name).to(torch.bfloat16), LONG, 20, *[1] * 76)
        made_for = parse_policy(policy).scaled_length(LONG.shape[1], LENGTH)
        # the model's own turn rounds four times, and each turn of a cached key, one for each step, once
        bound = 4 * HALF_PRECISION
        assert keys_off(cache, heard, LONG, name, length=made_for, dtype=torch.bfloat16) < bound

    @BOTH_KINDS
    @pytest.mark.parametrize("name", ["llama", "mistral", "deepseek_v32"])
    def test_a_text_that_goes_on_from_an_earlier_place(self, name, policy):
        model, heard, cache = extended(policy, name), Heard(), DynamicCache(config=tiny.build(name).config)
        if name == "mistral":
            cache.activate_past_recording()
        heard.read(model, LONG[:, :70], 30, 10, 30, cache=cache)
        cache.crop(-25)
        heard.crop(25)
        heard.read(model, LONG[:, 45:80], 3, 32, cache=cache, at=45)
        if name == "mistral":
            cache.crop(0)
        made_for = parse_policy(policy).scaled_length(80, LENGTH)
        assert get_key_state(cache).num_tokens == 80
        assert keys_off(cache, heard, LONG[:, :80], name, length=made_for) < KEYS_EXACT

    @pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
    @pytest.mark.parametrize("after", [rw.YaRN(factor=4), SCALING], ids=str)
    def test_a_prefix_under_another_scaling_is_turned(self, name, after):
        heard, model = Heard(), extended(name=name, scaling=rw.YaRN(factor=2))
        prefix = heard.read(model, LONG[:, :40], 40)
        rw.extend(model, after)
        heard.read(model, LONG[:, 40:], 56, cache=prefix, at=40)
        assert get_key_state(prefix).rotations == 1
        assert keys_off(prefix, heard, LONG, name, after, length=128) < KEYS_EXACT


@pytest.mark.parametrize("name", sorted({*tiny.TEXT_MODELS, *tiny.SEEING_MODELS} - NOT_FOLLOWED.keys()))
def test_on_every_architecture(name):
    scaling, ids = rw.DynamicYaRN(original_length=LENGTH), TEXT[:, : 3 * LENGTH // 2]
    heard = Heard()
    cache = heard.read(extended(CONTINUOUS, name, scaling), ids, 20, 16, 1, 11)
    assert keys_off(cache, heard, ids, name, scaling, length=60) < KEYS_EXACT


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_is_not_understood_is_not_followed(name):
    with pytest.warns(UserWarning, match="the cached keys of a .* cannot be rotated"):
        model = extended(name=name, scaling=rw.DynamicYaRN(original_length=LENGTH))
    assert generated(model, TEXT[:, :20], 12).sequences.shape == (1, 32)
    with pytest.raises(
        RuntimeError, match=r'frequencies have changed, but .* cannot be rotated.*; fix .*policy="request"'
    ) as error:
        generated(model, TEXT[:, :20], 20)
    assert "\n" not in str(error.value)


class TestLogits:
    @EVERY_POLICY
    @pytest.mark.parametrize("sizes", [(96,), (33, 63), (20, 13, 1, 1, 61), (31, 1, 1, 31, 32), (1,) * 96], ids=len)
    def test_are_those_of_keys_that_are_turned_anew_at_each_call(self, llama, policy, sizes):
        got, _ = read(extended(policy), LONG, *sizes)
        want = Replay(llama, following(policy)).chunks(LONG, *sizes)
        assert tiny.off(got, want) < EXACT

    cuts = st.sets(st.integers(1, LONG.shape[1] - 1))

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(cuts)
    def test_any_chunks_are_alike_for_a_fixed_length(self, cuts):
        self.same_in_chunks(extended(length=128), cuts, {LONG.shape[1]})

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(cuts)
    def test_any_chunks_are_alike_when_the_steps_fall_on_the_same_tokens(self, cuts):
        self.same_in_chunks(extended(), cuts | {32, 64}, {32, 64, 96})

    @staticmethod
    def same_in_chunks(model, cuts, others):
        sizes, other_sizes = (np.diff([0, *sorted(each | {LONG.shape[1]})]).tolist() for each in (cuts, others))
        assert tiny.off(read(model, LONG, *sizes)[0], read(model, LONG, *other_sizes)[0]) < EXACT

    @pytest.mark.parametrize(
        "scaling", [cls() for cls in rw.scaling.REGISTRY.values() if "ynamic" in cls.__name__], ids=str
    )
    @pytest.mark.parametrize("policy", [*POLICIES, REQUEST])
    def test_nothing_is_turned_within_the_trained_length(self, llama, scaling, policy):
        sizes = 10, 1, 1, 20
        rw.extend(llama, rw.NoScaling())  # whose tables are exact too
        got, cache = read(extended(policy, scaling=scaling), SHORT, *sizes)
        assert torch.equal(got, read(llama, SHORT, *sizes)[0])
        assert get_key_state(cache).rotations == 0

    def test_a_step_turns_once(self):
        _, cache = read(extended(), TEXT, *[1] * TEXT.shape[1])
        assert get_key_state(cache).rotations == 3  # 64, 128 and 256 tokens

    @BOTH_KINDS
    def test_two_texts_at_once(self, policy):
        model, long, short = extended(policy), None, None
        got_long, got_short = [], []
        for at in range(0, 96, 8):
            logits, long = read(model, TEXTS[:1, at : at + 8], cache=long)
            got_long.append(logits)
            if at < 40:
                logits, short = read(model, TEXTS[1:2, at : at + 8], cache=short)
                got_short.append(logits)
        assert torch.equal(torch.cat(got_long, dim=1), read(model, TEXTS[:1, :96], *[8] * 12)[0])
        assert torch.equal(torch.cat(got_short, dim=1), read(model, TEXTS[1:2, :40], *[8] * 5)[0])

    def test_of_a_compiled_model(self):
        torch.compiler.reset()
        llama = tiny.build("llama", num_hidden_layers=1)
        got, _ = read(torch.compile(rw.extend(copy.deepcopy(llama), SCALING), backend="aot_eager"), LONG, 48, 48)
        assert tiny.off(got, Replay(llama, following(STEPPED)).chunks(LONG, 48, 48)) < EXACT


class TestGenerating:
    """`generate` is told nothing."""

    @pytest.fixture
    def assistant(self):
        """It foresees some tokens of the tiny Llama."""
        model = extended(CONTINUOUS)
        dice = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=dice), alpha=0.02)
        return model

    @EVERY_POLICY
    @pytest.mark.parametrize("prompt", [20, 40])
    def test_greedy(self, llama, policy, prompt):
        out = generated(extended(policy), TEXT[:, :prompt], 50)
        self.as_read_alone(out, 0, Replay(llama, following(policy)), TEXT[0, :prompt])

    @EVERY_POLICY
    def test_sampling_several(self, llama, policy):
        torch.manual_seed(0)
        out = generated(extended(policy), TEXT[:, :20], 30, do_sample=True, num_return_sequences=3)
        assert len(out.sequences.unique(dim=0)) == 3
        for row in range(3):
            self.as_read_alone(out, row, Replay(llama, following(policy)), TEXT[0, :20])

    @EVERY_POLICY
    def test_rows_of_different_lengths(self, llama, policy):
        prompts = [TEXTS[row, :length] for row, length in enumerate((5, 28, 45))]
        ids, mask = padded(*prompts)
        out = generated(extended(policy), ids, 40, attention_mask=mask)
        for row, prompt in enumerate(prompts):
            self.as_read_alone(out, row, Replay(llama, following(policy)), prompt)

    def test_beams_that_cross_no_step(self):
        model = extended()
        options = {"num_beams": 3, "num_return_sequences": 3}
        with_cache, without = (generated(model, TEXT[:, :40], 20, use_cache=use, **options) for use in (True, False))
        assert torch.equal(with_cache.sequences, without.sequences)

    @BOTH_KINDS
    def test_beams_across_steps(self, llama, policy):
        prompts = [TEXTS[0, :20], TEXTS[1, :29]]
        ids, mask = padded(*prompts)
        options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
        out = generated(extended(policy), ids, 20, attention_mask=mask, **options)
        assert any(len(set(beams.tolist())) > 1 for beams in out.beam_indices)  # rows were reordered
        for row, sequence in enumerate(out.sequences):
            new_T = sequence[ids.shape[1] :]
            steps = Replay(llama, following(policy)).steps(prompts[row // 3], new_T).log_softmax(-1)
            assert abs(steps.gather(1, new_T[:, None]).sum() - out.sequences_scores[row]) < 1e-4

    @pytest.mark.parametrize("name", ["llama", "mistral"])
    @pytest.mark.parametrize(("policy", "prompt"), [(STEPPED, 36), (REQUEST, 20)])  # no step but by a new request
    def test_assisted(self, assistant, name, policy, prompt):
        model = extended(policy, name)
        want = generated(model, TEXT[:, :prompt], 27).sequences
        out = generated(model, TEXT[:, :prompt], 27, assistant_model=assistant)
        assert torch.equal(out.sequences, want)

    @BOTH_KINDS
    def test_assisted_across_steps(self, assistant, policy):
        model, cache = extended(policy), DynamicCache()
        out = generated(model, TEXT[:, :20], 49, assistant_model=assistant, past_key_values=cache)
        count = tokens_seen(cache)
        read(model, out.sequences[:, count : count + 1], cache=cache)  # whatever the last candidates came to
        made_for = parse_policy(policy).scaled_length(count + 1, LENGTH)
        _, want = read(extended(length=made_for), out.sequences[:, : count + 1])
        assert off(first_layer(cache), first_layer(want)) < EXACT

    @EVERY_POLICY
    def test_several_turns_on_one_cache(self, llama, policy):
        model, replay, cache = extended(policy), Replay(llama, following(policy)), DynamicCache()
        said = TEXT[:, :0]
        for turn in (TEXT[:, :20], TEXT[:, 20:33], TEXT[:, 33:80]):
            read_before = max(said.shape[1] - 1, 0)
            ids = torch.cat([said, turn], dim=1)
            out = generated(model, ids, 15, past_key_values=cache)
            self.as_read_alone(out, 0, replay, ids[0, read_before:])
            said = out.sequences

    def test_a_request_is_fixed_from_its_beginning(self, llama):
        model, cache = extended(REQUEST), DynamicCache()
        out = generated(model, TEXT[:, :20], 40, past_key_values=cache)
        replay = Replay(llama, fixed(75))
        self.as_read_alone(out, 0, replay, TEXT[0, :20])
        assert get_key_state(cache).rotations == 0
        ids = torch.cat([out.sequences, TEXT[:, 60:80]], dim=1)
        out = generated(model, ids, 20, past_key_values=cache)  # a new request turns once
        replay.frequencies_at = fixed(125)
        self.as_read_alone(out, 0, replay, ids[0, 59:])
        assert get_key_state(cache).rotations == 1

    def test_a_request_of_embeddings(self, llama):
        embedded = llama.model.embed_tokens(TEXT[:, :20]).detach()
        out = generated(extended(REQUEST), None, 40, inputs_embeds=embedded)
        self.as_read_alone(out, 0, Replay(llama, fixed(75)), TEXT[0, :20])

    @pytest.mark.parametrize("beams", [1, 2])
    def test_a_request_for_each_row(self, llama, beams):
        prompts = [TEXTS[0, :10], TEXTS[1, :30]]
        ids, mask = padded(*prompts)
        options = {"attention_mask": mask, "num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.0}
        out = generated(extended(REQUEST), ids, 30, **options)
        for row, sequence in enumerate(out.sequences):
            prompt, new_T = prompts[row // beams], sequence[ids.shape[1] :]
            replay = Replay(llama, fixed([50, 75][row // beams]))  # 1.25 x 40 and 60
            if beams == 1:
                self.as_read_alone(out, row, replay, prompt)
            else:
                score = replay.steps(prompt, new_T).log_softmax(-1).gather(1, new_T[:, None]).sum()
                assert abs(score - out.sequences_scores[row]) < 1e-4

    def test_a_request_goes_with_its_row(self, llama):
        ids, mask = padded(TEXTS[0, :10], TEXTS[1, :30])
        model, cache = extended(REQUEST), DynamicCache()
        out = generated(model, ids, 20, attention_mask=mask, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([1]))
        replay = Replay(llama, fixed(63))  # 1.25 x 50
        self.as_read_alone(out, 1, replay, TEXTS[1, :30])
        last = out.sequences[1:, -1:]
        assert tiny.off(go_on(model, last, cache), replay(last[0])) < EXACT
        with pytest.raises(RuntimeError, match="reached 51 tokens, more than the 50"):
            go_on(model, last, cache)

    def test_a_request_takes_a_static_cache(self, llama):
        out = generated(extended(REQUEST), TEXT[:, :20], 30, cache_implementation="static")
        self.as_read_alone(out, 0, Replay(llama, fixed(63)), TEXT[0, :20])

    @staticmethod
    def as_read_alone(out, row, replay, prompt_T):
        new_T = out.sequences[row, -len(out.logits) :]
        got = torch.stack([logits[row] for logits in out.logits])
        assert tiny.off(got, replay.steps(prompt_T, new_T)) < EXACT


@BOTH_KINDS
class TestCaches:
    """Whatever is done to a cache that transformers does to caches."""

    def test_of_every_kind(self, llama, policy):
        model = extended(policy)
        want = Replay(llama, following(policy)).chunks(LONG, 20, 76)
        for cache in (None, DynamicCache(), DynamicCache(config=model.config)):
            assert tiny.off(read(model, LONG, 20, 76, cache=cache)[0], want) < EXACT

    def test_from_a_tuple(self, llama, policy):
        model = extended(policy)
        with torch.no_grad():
            logits, cache = model(LONG[:, :20], use_cache=True, return_dict=False)[:2]
            after, same = model(LONG[:, 20:], past_key_values=cache, return_dict=False)[:2]
        assert same is cache
        want = Replay(llama, following(policy)).chunks(LONG, 20, 76)
        assert tiny.off(torch.cat([logits, after], dim=1), want) < EXACT
        with torch.no_grad():  # the decoder alone
            _, cache = model.model(LONG[:, :20], use_cache=True, return_dict=False)[:2]
        assert tiny.off(go_on(model, LONG[:, 20:], cache), after) < EXACT

    def test_a_copy_goes_on_by_itself(self, llama, policy):
        model = extended(policy)
        _, prefix = read(model, TEXT[:, :40], 20, 20)
        for row in range(3):
            got = go_on(model, TEXTS[row : row + 1, 40:100], copy.deepcopy(prefix), 10, 50)
            replay = Replay(llama, following(policy))
            replay.chunks(TEXT[:, :40], 20, 20)
            assert tiny.off(got, replay.chunks(TEXTS[row : row + 1, 40:100], 10, 50)) < EXACT
        assert get_key_state(prefix).num_tokens == 40

    def test_saved_and_loaded(self, llama, policy):
        model, saved = extended(policy), io.BytesIO()
        _, cache = read(model, LONG[:, :40], 20, 20)
        torch.save(cache, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        assert type(loaded) is type(cache)
        again = pickle.loads(pickle.dumps(cache))
        want = go_on(model, LONG[:, 40:], cache, 26, 30)
        for each in (loaded, again):
            assert torch.equal(go_on(extended(policy), LONG[:, 40:], each, 26, 30), want)

    def test_cropped(self, llama, policy):
        model, replay = extended(policy), Replay(llama, following(policy))
        _, cache = read(model, LONG[:, :70], 20, 20, 30)
        replay.chunks(LONG[:, :70], 20, 20, 30)
        for count, new in ((50, 5), (20, 8), (10, 80)):  # the second and third turn back
            cache.crop(count - tokens_seen(cache))
            replay.crop(count)
            more = TEXTS[1:2, count : count + new]
            assert tiny.off(go_on(model, more, cache), replay(more[0])) < EXACT
            assert get_key_state(cache).num_tokens == count + new

    def test_repeated_for_several_continuations(self, llama, policy):
        model = extended(policy)
        _, cache = read(model, TEXT[:, :40], 20, 20)
        cache.batch_repeat_interleave(3)
        got = go_on(model, TEXTS[:, 40:100], cache, 10, 50)
        for row in range(3):
            replay = Replay(llama, following(policy))
            replay.chunks(TEXT[:, :40], 20, 20)
            assert tiny.off(got[row], replay.chunks(TEXTS[row : row + 1, 40:100], 10, 50)[0]) < EXACT

    @pytest.mark.parametrize(
        ("pick", "kept"),
        [
            (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
            (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
            (lambda cache: cache.batch_select_indices([1]), [1]),
            (lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
            (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        ],
        ids=["indices", "mask", "list", "reordered", "repeated"],
    )
    def test_rows_are_picked(self, llama, policy, pick, kept):
        """Of different lengths, so that each has frequencies of its own."""
        prompts = [TEXTS[row, :length] for row, length in enumerate((12, 40, 70))]
        ids, mask = padded(*prompts)
        model, cache = extended(policy), DynamicCache()
        options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "attention_mask": mask}
        with torch.no_grad():
            for chunk in (slice(0, 50), slice(50, 70)):
                positions = options["position_ids"][:, chunk]
                model(
                    ids[:, chunk], past_key_values=cache, attention_mask=mask[:, : chunk.stop], position_ids=positions
                )
            pick(cache)
            more, positions = TEXTS[kept, 100:130], torch.tensor([len(prompts[row]) for row in kept])
            mask = torch.cat([mask[kept], torch.ones_like(more)], dim=1)
            positions = positions[:, None] + torch.arange(30)
            got = model(more, past_key_values=cache, attention_mask=mask, position_ids=positions).logits
        for at, row in enumerate(kept):
            replay = Replay(llama, following(policy))
            first = max(len(prompts[row]) - 20, 0)  # tokens of the first chunk
            for part in (prompts[row][:first], prompts[row][first:]):
                if len(part):
                    replay(part)
            assert tiny.off(got[at], replay(more[at])) < EXACT

    def test_reset(self, llama, policy):
        model = extended(policy)
        _, cache = read(model, LONG, 96)
        cache.reset()
        assert get_key_state(cache) is None
        got, _ = read(model, TEXTS[1:2, :60], 20, 40, cache=cache)
        assert torch.equal(got, read(model, TEXTS[1:2, :60], 20, 40)[0])

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_of_the_model_reads_on(self, policy, copied):
        model = extended(policy)
        _, cache = read(model, LONG[:, :40], 20, 20)
        twin, twins = copied(model), copy.deepcopy(cache)
        read(model, TEXTS[1:2, :10])  # has nothing to do with the other
        got = go_on(twin, LONG[:, 40:], twins, 26, 30)
        assert torch.equal(got, go_on(model, LONG[:, 40:], cache, 26, 30))
        assert tiny.off(tiny.logits(rw.restore(twin)), tiny.logits(tiny.build("llama"))) == 0
        assert torch.equal(read(model, LONG, 40, 56)[0], read(extended(policy), LONG, 40, 56)[0])


class TestRefusing:
    """In words that say what to do instead."""

    def test_a_cache_from_before(self, llama):
        _, cache = read(llama, SHORT, 32)
        rw.extend(llama, SCALING)
        self.refuses(llama, cache, r"32 tokens that no extended model has read.*start a new cache")

    @pytest.mark.parametrize("scaling", [SCALING, rw.YaRN(factor=4)], ids=str)
    def test_a_cache_of_other_weights(self, llama, scaling):
        _, cache = read(extended(scaling=scaling), SHORT, 32)
        llama.model.layers[1].self_attn.k_proj.weight.data *= 1.1
        self.refuses(rw.extend(llama, scaling), cache, "32 tokens of another model.*start a new cache")

    def test_a_cache_of_another_base(self):
        _, cache = read(extended(), SHORT, 32)
        rope = {"rope_type": "default", "rope_theta": 20_000.0}
        other = rw.extend(tiny.build("llama", rope_parameters=rope), SCALING)
        self.refuses(other, cache, "of this model with another base.*start a new cache")

    def test_a_static_cache_that_must_turn(self):
        model = extended()
        _, cache = read(model, SHORT, 20, 12, cache=StaticCache(model.config, max_cache_len=64))
        self.refuses(model, cache, 'in a StaticLayer.*policy="request"')

    @pytest.mark.parametrize("given", [{"length": 64}, {"policy": REQUEST}], ids=str)
    def test_but_not_a_static_cache_that_need_not(self, llama, given):
        model = extended(**given)
        ids = LONG[:, :60]
        sizes = (50, 10) if "length" in given else (60,)
        got, _ = read(model, ids, *sizes, cache=StaticCache(model.config, max_cache_len=64))
        want = Replay(llama, fixed(64 if "length" in given else 75)).chunks(ids, *sizes)
        assert tiny.off(got, want) < EXACT

    def test_an_offloaded_cache(self):
        model, cache = extended(), DynamicCache()
        read(model, SHORT, 20, 12, cache=cache)
        cache.offloading = True  # as DynamicCache(offloading=True), which asks for an accelerator
        self.refuses(model, cache, 'an offloaded cache.*policy="request"')

    def test_a_quantized_cache(self):
        pytest.importorskip("optimum.quanto")
        from transformers import QuantizedCache

        model = extended()
        _, cache = read(model, SHORT, 20, 12, cache=QuantizedCache("quanto", model.config))
        self.refuses(model, cache, 'in a Quanto.*policy="request"')

    def test_a_cache_of_continuous_batching(self):
        with pytest.raises(RuntimeError, match=r'cannot rotate the keys in a SimpleNamespace.*policy="request"'):
            extended()(SHORT, cache=SimpleNamespace())

    def test_a_request_that_is_outgrown(self):
        model = extended(REQUEST)
        _, cache = read(model, SHORT, 20, 12)  # the trained length is free
        self.refuses(model, cache, r"reached 33 tokens, more than the 20 .*length=tokens.*stepped")
        _, cache = read(model, LONG[:, :40])
        self.refuses(model, cache, "reached 41 tokens, more than the 40")

    def test_a_forward_that_failed_halfway(self, llama):
        model = extended()
        _, cache = read(model, SHORT[:, :20])
        self.fail_halfway(model, cache)
        self.refuses(
            model, cache, "holds 25 tokens, but the positions of 20 are known.*failed halfway.*start", ids=LONG
        )
        want = Replay(llama, following(STEPPED)).chunks(LONG, 20, 76)
        assert tiny.off(read(model, LONG, 20, 76)[0], want) < EXACT  # a new text is not disturbed

    def test_a_forward_that_failed_when_it_began(self):
        model = extended()
        self.fail_halfway(model, None)
        asked = [each.model.rotary_emb(torch.zeros(1), torch.arange(96)[None]) for each in (model, extended())]
        assert torch.equal(asked[0][0], asked[1][0])
        assert torch.equal(read(model, LONG, 20, 76)[0], read(extended(), LONG, 20, 76)[0])

    @staticmethod
    def fail_halfway(model, cache):
        failing = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read(model, SHORT[:, :5], cache=cache)
        failing.remove()

    @staticmethod
    def refuses(model, cache, why, ids=TEXT[:, :1]):
        with pytest.raises(RuntimeError, match=why) as error:
            read(model, ids, cache=cache)
        assert "\n" not in str(error.value)


class TestInPlace:
    """Where torch lets them be overwritten, cached keys are turned where they lie."""

    FREQUENCIES = tuple(SCALING.frequencies(ROPE, length) for length in (LENGTH, 2 * LENGTH))

    def turn(self, keys):
        channel_layout = ChannelLayout(1, tuple((pair, 0) for pair in range(8)), (*range(8),) * 2, False, True)
        table = RotaryTable(self.FREQUENCIES[0], channel_layout, torch.device("cpu"))
        layer = SimpleNamespace(keys=keys)
        carried = KeyState("any", {"all": table.row_frequencies}, torch.arange(keys.shape[-2])[None])
        channels = [RotatedChannels(0, "keys", "all", 0, "half", tuple(range(8)), 1)]
        rows = {"all": (self.FREQUENCIES[1],)}
        carried.rotate_keys(SimpleNamespace(layers=[layer]), rows, {"all": table}, channels, keep_snapshot=False)
        return layer.keys

    @torch.no_grad()
    def test_they_stay_where_they_are(self):
        keys = torch.randn(1, 2, 40, 16)
        before = keys.clone()
        turned = self.turn(keys)
        assert turned.data_ptr() == keys.data_ptr()
        assert not torch.equal(keys, before)

    def test_not_those_of_inference_mode_outside_it(self):
        with torch.inference_mode():
            keys = torch.randn(1, 2, 40, 16)
        before = keys.tolist()
        assert torch.equal(self.turn(keys), self.turn(torch.tensor(before)))
        assert keys.tolist() == before

    @torch.no_grad()
    def test_not_those_that_rows_share(self):
        keys = torch.randn(1, 2, 40, 16).expand(3, -1, -1, -1)
        before = keys.clone()
        assert torch.equal(self.turn(keys), self.turn(keys.clone()))
        assert torch.equal(keys, before)

    def test_not_those_with_a_gradient(self):
        keys = torch.randn(1, 2, 40, 16, requires_grad=True)
        self.turn(keys * 1).sum().backward()
        assert keys.grad.abs().max() > 0

    @BOTH_KINDS
    def test_filled_in_inference_mode(self, policy):
        model = extended(policy)
        with torch.inference_mode():
            cache = model(LONG[:, :20], use_cache=True).past_key_values
        assert torch.allclose(
            go_on(model, LONG[:, 20:], cache), read(extended(policy), LONG, 20, 76)[0][:, 20:], atol=EXACT
        )


class TestPrecision:
    """10,000 turns of keys in bfloat16, against the key that is turned once from what it was before any turn."""

    STEPS, TOKENS = 10_000, 64

    def test_turned_from_a_copy_two_roundings_are_all(self):
        assert self.roundings(keep_snapshot=True) <= 2.001  # and what float32 adds

    def test_turned_from_themselves_they_add_up(self):
        assert self.roundings(keep_snapshot=False) > 20

    def roundings(self, keep_snapshot):
        """The largest error after all steps, in roundings of a pair of channels."""
        channel_layout = ChannelLayout(1, tuple((pair, 0) for pair in range(8)), (*range(8),) * 2, False, True)
        table = RotaryTable(SCALING.frequencies(ROPE, LENGTH), channel_layout, torch.device("cpu"))
        unturned = torch.randn(self.TOKENS, 16, generator=torch.Generator().manual_seed(0)).double()
        positions = torch.arange(self.TOKENS) * 151
        layer = SimpleNamespace(keys=self.right(unturned, positions, table.row_frequencies[0])[None, None].bfloat16())
        carried = KeyState("any", {"all": table.row_frequencies}, positions[None])
        channels = [RotatedChannels(0, "keys", "all", 0, "half", tuple(range(8)), 1)]
        for reached in range(LENGTH + 1, LENGTH + 1 + self.STEPS):
            rows = {"all": (SCALING.frequencies(ROPE, reached),)}
            carried.rotate_keys(SimpleNamespace(layers=[layer]), rows, {"all": table}, channels, keep_snapshot)
        assert carried.rotations == self.STEPS
        want = self.right(unturned, positions, carried.row_frequencies["all"][0])
        error = self.pairs(layer.keys[0, 0].double() - want)
        return float((error / (HALF_PRECISION / 2 * self.pairs(want))).max())

    @staticmethod
    def right(unturned, positions, frequencies):
        parts = (torch.from_numpy(part) for part in frequencies.cos_sin(positions.numpy(), "float64"))
        return turned(unturned, *(torch.cat([part, part], dim=-1) for part in parts))

    @staticmethod
    def pairs(x):
        return torch.hypot(*x.chunk(2, dim=-1))
