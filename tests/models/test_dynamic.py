"""Dynamic scalings with a KV cache: cached keys, logits, `generate`, and what is refused."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.architectures import LENGTH, MULTIMODAL_MODELS, TEXT_MODELS, TOLERANCE, build, relative_difference
from tests.helpers.cached_text import (
    CONTINUOUS,
    EVERY_POLICY,
    KEY_TOLERANCE,
    LONG,
    POLICIES,
    REQUEST,
    SCALING,
    SHORT,
    STEPPED,
    TEXT,
    TEXTS,
    WITH_AND_WITHOUT_SNAPSHOT,
    AttentionInputs,
    ReferenceLlama,
    cache_difference,
    continue_text,
    extended_model,
    fixed_frequencies,
    frequencies_under,
    generate,
    pad_left,
    read_text,
)
from transformers import DynamicCache, LlamaModel, StaticCache

import ropewalk as rw
from ropewalk.compat.transformers import cache_argument_name, cache_for_generate
from ropewalk.models.key_state import get_key_state, tokens_seen
from ropewalk.scaling.policies import parse_policy

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),  # Llama 4's vision tables, in .to(bfloat16)
]
BFLOAT16_EPS = torch.finfo(torch.bfloat16).eps

# Architectures with different layouts of pairs, several rotary tables, or more than keys and values in the cache.
LAYOUTS = {
    "llama": "half layout",
    "glm": "interleaved layout, part of the head",
    "cohere": "interleaved layout",
    "phi": "half layout, part of the head",
    "gpt_neox": "half layout, part of the head",
    "gemma3_text": "a table for sliding-window layers and one for the others",
    "mistral": "sliding windows only",
    "gpt_oss": "sliding-window and full layers with the same table",
    "deepseek_v3": "latent attention: the rotated channels are in the values",
    "glm_moe_dsa": "an indexer with its own keys",
    "qwen2_vl": "three position axes",
    "nanochat": "rotates by the opposite angles, then normalizes keys",
    "llama4_text": "complex tables, then normalizes keys",
    "longcat_flash": "two attention modules in each layer",
    "lfm3": "convolutions, a sliding-window layer and a full layer",
}
NOT_ROTATABLE = {
    "deepseek_v4": "its cache holds compressed keys, rotated by other positions",
    "hunyuan_v1_dense": "normalizes keys channel by channel after the rotation",
    "hunyuan_v1_moe": "as above",
    "hunyuan_vl": "as above",
    "minimax": "accepts only its own cache class",
    "recurrent_gemma": "reads a single token in another way",
}


@pytest.fixture
def llama():
    return build("llama")


class TestKeys:
    """Cached keys equal those of a model whose frequencies are fixed at the final ones."""

    @EVERY_POLICY
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_match_those_of_fixed_frequencies(self, name, policy):
        inputs = AttentionInputs()
        cache = inputs.record(extended_model(policy, name), LONG, 20, 13, 1, 1, 1, 40, 20)
        assert get_key_state(cache).rotations > 0
        target_length = parse_policy(policy).scaled_length(LONG.shape[1], LENGTH)
        assert inputs.key_error(cache, LONG, name, length=target_length) < KEY_TOLERANCE
        assert (
            inputs.key_error(cache, LONG, name, length=target_length + LENGTH) > 100 * TOLERANCE
        )  # and differ from those of other frequencies

    @pytest.mark.parametrize("scaling", ["dynamic-ntk", "dynamic-ntk-by-parts", "critical-base"])
    def test_match_under_every_dynamic_scaling(self, scaling):
        inputs = AttentionInputs()
        cache = inputs.record(extended_model("continuous:every=32,margin=1.25", scaling=scaling), LONG, 50, 46)
        assert inputs.key_error(cache, LONG, "llama", scaling, length=120) < KEY_TOLERANCE

    @pytest.mark.parametrize("name", ["gemma3_text", "gpt_oss", "lfm3"])
    def test_match_with_a_scaling_for_each_layer_type(self, name):
        kinds = ("sliding_attention", "full_attention") if name == "gemma3_text" else ("all",)
        scalings = dict.fromkeys(kinds, SCALING) if name != "lfm3" else SCALING
        inputs = AttentionInputs()
        cache = inputs.record(extended_model(CONTINUOUS, name, scalings), LONG, 20, 20, 20, 36)
        assert inputs.key_error(cache, LONG, name, scalings, length=120) < KEY_TOLERANCE

    def test_match_with_two_dynamic_scalings(self):
        scalings = {"sliding_attention": rw.DynamicNTK(), "full_attention": SCALING}
        for policy, target_length in ((STEPPED, 128), ("continuous:every=32,margin=1.25", 120)):
            inputs = AttentionInputs()
            cache = inputs.record(extended_model(policy, "gemma3_text", scalings), LONG, 20, 20, 56)
            assert inputs.key_error(cache, LONG, "gemma3_text", scalings, length=target_length) < KEY_TOLERANCE

    @pytest.mark.parametrize("policy", [STEPPED, "continuous:every=1,margin=1"])
    @pytest.mark.parametrize("name", ["llama", "glm", "deepseek_v3", "gemma3_text"])
    def test_match_in_bfloat16_up_to_rounding(self, name, policy):
        inputs = AttentionInputs()
        cache = inputs.record(extended_model(policy, name).to(torch.bfloat16), LONG, 20, *[1] * 76)
        target_length = parse_policy(policy).scaled_length(LONG.shape[1], LENGTH)
        # The model rounds four times when it rotates, and each later rotation of a cached key once.
        bound = 4 * BFLOAT16_EPS
        assert inputs.key_error(cache, LONG, name, length=target_length, dtype=torch.bfloat16) < bound

    @WITH_AND_WITHOUT_SNAPSHOT
    @pytest.mark.parametrize("name", ["llama", "mistral", "deepseek_v32"])
    def test_match_after_the_text_was_cropped_and_continued(self, name, policy):
        model, inputs, cache = extended_model(policy, name), AttentionInputs(), DynamicCache(config=build(name).config)
        if name == "mistral":
            cache.activate_past_recording()
        inputs.record(model, LONG[:, :70], 30, 10, 30, cache=cache)
        cache.crop(-25)
        inputs.crop(25)
        inputs.record(model, LONG[:, 45:80], 3, 32, cache=cache, start=45)
        if name == "mistral":
            cache.crop(0)
        target_length = parse_policy(policy).scaled_length(80, LENGTH)
        assert get_key_state(cache).num_tokens == 80
        assert inputs.key_error(cache, LONG[:, :80], name, length=target_length) < KEY_TOLERANCE

    @pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
    @pytest.mark.parametrize("after", [rw.YaRN(factor=4), SCALING], ids=str)
    def test_a_prefix_read_under_another_scaling_is_rotated(self, name, after):
        inputs, model = AttentionInputs(), extended_model(name=name, scaling=rw.YaRN(factor=2))
        prefix = inputs.record(model, LONG[:, :40], 40)
        rw.extend(model, after)
        inputs.record(model, LONG[:, 40:], 56, cache=prefix, start=40)
        assert get_key_state(prefix).rotations == 1
        assert inputs.key_error(prefix, LONG, name, after, length=128) < KEY_TOLERANCE


@pytest.mark.parametrize("name", sorted({*TEXT_MODELS, *MULTIMODAL_MODELS} - NOT_ROTATABLE.keys()))
def test_cached_keys_match_on_every_architecture(name):
    scaling, ids = rw.DynamicYaRN(original_length=LENGTH), TEXT[:, : 3 * LENGTH // 2]
    inputs = AttentionInputs()
    cache = inputs.record(extended_model(CONTINUOUS, name, scaling), ids, 20, 16, 1, 11)
    assert inputs.key_error(cache, ids, name, scaling, length=60) < KEY_TOLERANCE


@pytest.mark.parametrize("name", NOT_ROTATABLE)
def test_architectures_whose_keys_cannot_be_rotated_warn_and_refuse(name):
    with pytest.warns(UserWarning, match="the cached keys of a .* cannot be rotated"):
        model = extended_model(name=name, scaling=rw.DynamicYaRN(original_length=LENGTH))
    assert generate(model, TEXT[:, :20], 12).sequences.shape == (1, 32)
    with pytest.raises(
        RuntimeError, match=r'frequencies have changed, but .* cannot be rotated.*; fix .*policy="request"'
    ) as error:
        generate(model, TEXT[:, :20], 20)
    assert "\n" not in str(error.value)


class TestLogits:
    @EVERY_POLICY
    @pytest.mark.parametrize("sizes", [(96,), (33, 63), (20, 13, 1, 1, 61), (31, 1, 1, 31, 32), (1,) * 96], ids=len)
    def test_match_a_reference_that_never_rotates_cached_keys(self, llama, policy, sizes):
        actual, _ = read_text(extended_model(policy), LONG, *sizes)
        expected = ReferenceLlama(llama, frequencies_under(policy)).read_chunks(LONG, *sizes)
        assert relative_difference(actual, expected) < TOLERANCE

    @pytest.mark.parametrize("name", dict.fromkeys([cache_argument_name(LlamaModel.forward), "past_key_values"]))
    def test_match_under_the_old_and_the_new_name_of_the_cache(self, llama, name):
        model, cache = extended_model(), DynamicCache()
        with torch.no_grad():
            logits = [model(part, **{name: cache}).logits for part in LONG.split([33, 63], dim=1)]
        expected = ReferenceLlama(llama, frequencies_under(STEPPED)).read_chunks(LONG, 33, 63)
        assert relative_difference(torch.cat(logits, dim=1), expected) < TOLERANCE
        assert get_key_state(cache).rotations > 0

    cuts = st.sets(st.integers(1, LONG.shape[1] - 1))

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(cuts)
    def test_do_not_depend_on_the_chunks_if_the_length_is_fixed(self, cuts):
        self.assert_same_logits(extended_model(length=128), cuts, {LONG.shape[1]})

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(cuts)
    def test_do_not_depend_on_the_chunks_if_the_steps_are_at_the_same_tokens(self, cuts):
        self.assert_same_logits(extended_model(), cuts | {32, 64}, {32, 64, 96})

    @staticmethod
    def assert_same_logits(model, cuts, others):
        sizes, other_sizes = (np.diff([0, *sorted(each | {LONG.shape[1]})]).tolist() for each in (cuts, others))
        assert (
            relative_difference(read_text(model, LONG, *sizes)[0], read_text(model, LONG, *other_sizes)[0]) < TOLERANCE
        )

    @pytest.mark.parametrize(
        "scaling", [cls() for cls in rw.scaling.REGISTRY.values() if "ynamic" in cls.__name__], ids=str
    )
    @pytest.mark.parametrize("policy", [*POLICIES, REQUEST])
    def test_within_the_trained_length_no_key_is_rotated(self, llama, scaling, policy):
        sizes = 10, 1, 1, 20
        rw.extend(llama, rw.NoScaling())  # so that its tables are exact too
        actual, cache = read_text(extended_model(policy, scaling=scaling), SHORT, *sizes)
        assert torch.equal(actual, read_text(llama, SHORT, *sizes)[0])
        assert get_key_state(cache).rotations == 0

    def test_each_step_rotates_once(self):
        _, cache = read_text(extended_model(), TEXT, *[1] * TEXT.shape[1])
        assert get_key_state(cache).rotations == 3  # 64, 128 and 256 tokens

    @WITH_AND_WITHOUT_SNAPSHOT
    def test_two_texts_can_be_read_alternately(self, policy):
        model, long, short = extended_model(policy), None, None
        got_long, got_short = [], []
        for at in range(0, 96, 8):
            logits, long = read_text(model, TEXTS[:1, at : at + 8], cache=long)
            got_long.append(logits)
            if at < 40:
                logits, short = read_text(model, TEXTS[1:2, at : at + 8], cache=short)
                got_short.append(logits)
        assert torch.equal(torch.cat(got_long, dim=1), read_text(model, TEXTS[:1, :96], *[8] * 12)[0])
        assert torch.equal(torch.cat(got_short, dim=1), read_text(model, TEXTS[1:2, :40], *[8] * 5)[0])

    def test_a_compiled_model_matches(self):
        torch.compiler.reset()
        llama = build("llama", num_hidden_layers=1)
        actual, _ = read_text(
            torch.compile(rw.extend(copy.deepcopy(llama), SCALING), backend="aot_eager"), LONG, 48, 48
        )
        assert (
            relative_difference(actual, ReferenceLlama(llama, frequencies_under(STEPPED)).read_chunks(LONG, 48, 48))
            < TOLERANCE
        )


class TestGenerating:
    """`generate` needs no arguments for a dynamic scaling."""

    @pytest.fixture
    def assistant(self):
        """Return a model that predicts some tokens of the tiny Llama correctly."""
        model = extended_model(CONTINUOUS)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
        return model

    @EVERY_POLICY
    @pytest.mark.parametrize("prompt", [20, 40])
    def test_greedy(self, llama, policy, prompt):
        out = generate(extended_model(policy), TEXT[:, :prompt], 50)
        self.assert_matches_reference(out, 0, ReferenceLlama(llama, frequencies_under(policy)), TEXT[0, :prompt])

    @EVERY_POLICY
    def test_sampling_several_sequences(self, llama, policy):
        torch.manual_seed(0)
        out = generate(extended_model(policy), TEXT[:, :20], 30, do_sample=True, num_return_sequences=3)
        assert len(out.sequences.unique(dim=0)) == 3
        for row in range(3):
            self.assert_matches_reference(out, row, ReferenceLlama(llama, frequencies_under(policy)), TEXT[0, :20])

    @EVERY_POLICY
    def test_rows_of_different_lengths(self, llama, policy):
        prompts = [TEXTS[row, :length] for row, length in enumerate((5, 28, 45))]
        ids, mask = pad_left(*prompts)
        out = generate(extended_model(policy), ids, 40, attention_mask=mask)
        for row, prompt in enumerate(prompts):
            self.assert_matches_reference(out, row, ReferenceLlama(llama, frequencies_under(policy)), prompt)

    def test_beams_between_two_steps(self):
        model = extended_model()
        options = {"num_beams": 3, "num_return_sequences": 3}
        with_cache, without = (generate(model, TEXT[:, :40], 20, use_cache=use, **options) for use in (True, False))
        assert torch.equal(with_cache.sequences, without.sequences)

    @WITH_AND_WITHOUT_SNAPSHOT
    def test_beams_across_steps(self, llama, policy):
        prompts = [TEXTS[0, :20], TEXTS[1, :29]]
        ids, mask = pad_left(*prompts)
        options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
        out = generate(extended_model(policy), ids, 20, attention_mask=mask, **options)
        assert any(len(set(beams.tolist())) > 1 for beams in out.beam_indices)  # the rows of the cache were reordered
        for row, sequence in enumerate(out.sequences):
            new_T = sequence[ids.shape[1] :]
            steps = (
                ReferenceLlama(llama, frequencies_under(policy))
                .logits_of_steps(prompts[row // 3], new_T)
                .log_softmax(-1)
            )
            assert abs(steps.gather(1, new_T[:, None]).sum() - out.sequences_scores[row]) < 1e-4

    @pytest.mark.parametrize("name", ["llama", "mistral"])
    @pytest.mark.parametrize(("policy", "prompt"), [(STEPPED, 36), (REQUEST, 20)])  # no step within the text
    def test_assisted(self, assistant, name, policy, prompt):
        model = extended_model(policy, name)
        expected = generate(model, TEXT[:, :prompt], 27).sequences
        out = generate(model, TEXT[:, :prompt], 27, assistant_model=assistant)
        assert torch.equal(out.sequences, expected)

    @WITH_AND_WITHOUT_SNAPSHOT
    def test_assisted_across_steps(self, assistant, policy):
        model, cache = extended_model(policy), DynamicCache()
        out = generate(model, TEXT[:, :20], 49, assistant_model=assistant, **cache_for_generate(cache))
        count = tokens_seen(cache)
        read_text(
            model, out.sequences[:, count : count + 1], cache=cache
        )  # the last candidates may have set other frequencies
        target_length = parse_policy(policy).scaled_length(count + 1, LENGTH)
        _, expected = read_text(extended_model(length=target_length), out.sequences[:, : count + 1])
        assert cache_difference(first_layer(cache), first_layer(expected)) < TOLERANCE

    @EVERY_POLICY
    def test_several_turns_of_a_chat_on_one_cache(self, llama, policy):
        model, reference, cache = (
            extended_model(policy),
            ReferenceLlama(llama, frequencies_under(policy)),
            DynamicCache(),
        )
        transcript = TEXT[:, :0]
        for message in (TEXT[:, :20], TEXT[:, 20:33], TEXT[:, 33:80]):
            read_before = max(transcript.shape[1] - 1, 0)
            ids = torch.cat([transcript, message], dim=1)
            out = generate(model, ids, 15, **cache_for_generate(cache))
            self.assert_matches_reference(out, 0, reference, ids[0, read_before:])
            transcript = out.sequences

    def test_a_request_keeps_its_frequencies(self, llama):
        model, cache = extended_model(REQUEST), DynamicCache()
        out = generate(model, TEXT[:, :20], 40, **cache_for_generate(cache))
        reference = ReferenceLlama(llama, fixed_frequencies(75))
        self.assert_matches_reference(out, 0, reference, TEXT[0, :20])
        assert get_key_state(cache).rotations == 0
        ids = torch.cat([out.sequences, TEXT[:, 60:80]], dim=1)
        out = generate(model, ids, 20, **cache_for_generate(cache))  # a new request turns once
        reference.frequencies_at = fixed_frequencies(125)
        self.assert_matches_reference(out, 0, reference, ids[0, 59:])
        assert get_key_state(cache).rotations == 1

    def test_a_request_with_input_embeddings(self, llama):
        embedded = llama.model.embed_tokens(TEXT[:, :20]).detach()
        out = generate(extended_model(REQUEST), None, 40, inputs_embeds=embedded)
        self.assert_matches_reference(out, 0, ReferenceLlama(llama, fixed_frequencies(75)), TEXT[0, :20])

    @pytest.mark.parametrize("beams", [1, 2])
    def test_each_row_has_its_own_request_length(self, llama, beams):
        prompts = [TEXTS[0, :10], TEXTS[1, :30]]
        ids, mask = pad_left(*prompts)
        options = {"attention_mask": mask, "num_beams": beams, "num_return_sequences": beams, "length_penalty": 0.0}
        out = generate(extended_model(REQUEST), ids, 30, **options)
        for row, sequence in enumerate(out.sequences):
            prompt, new_T = prompts[row // beams], sequence[ids.shape[1] :]
            reference = ReferenceLlama(llama, fixed_frequencies([50, 75][row // beams]))  # 1.25 x 40 and 60
            if beams == 1:
                self.assert_matches_reference(out, row, reference, prompt)
            else:
                score = reference.logits_of_steps(prompt, new_T).log_softmax(-1).gather(1, new_T[:, None]).sum()
                assert abs(score - out.sequences_scores[row]) < 1e-4

    def test_a_request_length_stays_with_its_row(self, llama):
        ids, mask = pad_left(TEXTS[0, :10], TEXTS[1, :30])
        model, cache = extended_model(REQUEST), DynamicCache()
        out = generate(model, ids, 20, attention_mask=mask, **cache_for_generate(cache))
        cache.batch_select_indices(torch.tensor([1]))
        reference = ReferenceLlama(llama, fixed_frequencies(63))  # 1.25 x 50
        self.assert_matches_reference(out, 1, reference, TEXTS[1, :30])
        last = out.sequences[1:, -1:]
        assert relative_difference(continue_text(model, last, cache), reference(last[0])) < TOLERANCE
        with pytest.raises(RuntimeError, match="reached 51 tokens, more than the 50"):
            continue_text(model, last, cache)

    def test_a_request_works_with_a_static_cache(self, llama):
        out = generate(extended_model(REQUEST), TEXT[:, :20], 30, cache_implementation="static")
        self.assert_matches_reference(out, 0, ReferenceLlama(llama, fixed_frequencies(63)), TEXT[0, :20])

    @staticmethod
    def assert_matches_reference(out, row, reference, prompt_T):
        new_T = out.sequences[row, -len(out.logits) :]
        actual = torch.stack([logits[row] for logits in out.logits])
        assert relative_difference(actual, reference.logits_of_steps(prompt_T, new_T)) < TOLERANCE


class TestRefused:
    """Errors name the remedy."""

    def test_a_cache_filled_before_extend(self, llama):
        _, cache = read_text(llama, SHORT, 32)
        rw.extend(llama, SCALING)
        self.assert_refused(llama, cache, r"32 tokens that no extended model has read.*start a new cache")

    @pytest.mark.parametrize("scaling", [SCALING, rw.YaRN(factor=4)], ids=str)
    def test_a_cache_of_other_weights(self, llama, scaling):
        _, cache = read_text(extended_model(scaling=scaling), SHORT, 32)
        llama.model.layers[1].self_attn.k_proj.weight.data *= 1.1
        self.assert_refused(rw.extend(llama, scaling), cache, "32 tokens of another model.*start a new cache")

    def test_a_cache_of_another_base(self):
        _, cache = read_text(extended_model(), SHORT, 32)
        rope = {"rope_type": "default", "rope_theta": 20_000.0}
        other = rw.extend(build("llama", rope_parameters=rope), SCALING)
        self.assert_refused(other, cache, "of this model with another base.*start a new cache")

    def test_a_static_cache_whose_keys_must_be_rotated(self):
        model = extended_model()
        _, cache = read_text(model, SHORT, 20, 12, cache=StaticCache(model.config, max_cache_len=64))
        self.assert_refused(model, cache, 'in a StaticLayer.*policy="request"')

    def test_the_next_request_in_a_static_cache_is_told_to_fix_the_length_of_all(self):
        model = extended_model(policy=REQUEST)
        _, cache = read_text(model, SHORT[:, :20], 20, cache=StaticCache(model.config, max_cache_len=128))
        get_key_state(cache).request_lengths = (100,)
        with pytest.raises(RuntimeError, match=r"whole conversation: extend\(model, scaling, length=tokens\)$"):
            continue_text(model, LONG[:, 20:60], cache)

    @pytest.mark.parametrize("given", [{"length": 64}, {"policy": REQUEST}], ids=str)
    def test_a_static_cache_is_accepted_if_no_key_must_be_rotated(self, llama, given):
        model = extended_model(**given)
        ids = LONG[:, :60]
        sizes = (50, 10) if "length" in given else (60,)
        actual, _ = read_text(model, ids, *sizes, cache=StaticCache(model.config, max_cache_len=64))
        expected = ReferenceLlama(llama, fixed_frequencies(64 if "length" in given else 75)).read_chunks(ids, *sizes)
        assert relative_difference(actual, expected) < TOLERANCE

    def test_an_offloaded_cache(self):
        model, cache = extended_model(), DynamicCache()
        read_text(model, SHORT, 20, 12, cache=cache)
        cache.offloading = True  # as in DynamicCache(offloading=True), which requires an accelerator
        self.assert_refused(model, cache, 'an offloaded cache.*policy="request"')

    def test_a_quantized_cache(self):
        pytest.importorskip("optimum.quanto")
        from transformers import QuantizedCache

        model = extended_model()
        _, cache = read_text(model, SHORT, 20, 12, cache=QuantizedCache("quanto", model.config))
        self.assert_refused(model, cache, 'in a Quanto.*policy="request"')

    def test_a_cache_of_continuous_batching(self):
        advice = r"cannot rotate the keys in a SimpleNamespace; fix .*: extend\(model, scaling, length=tokens\)$"
        with pytest.raises(RuntimeError, match=advice):
            extended_model()(SHORT, cache=SimpleNamespace())

    def test_a_text_longer_than_its_request(self):
        model = extended_model(REQUEST)
        _, cache = read_text(model, SHORT, 20, 12)  # texts within the trained length are always accepted
        self.assert_refused(model, cache, r"reached 33 tokens, more than the 20 .*length=tokens.*stepped")
        _, cache = read_text(model, LONG[:, :40])
        self.assert_refused(model, cache, "reached 41 tokens, more than the 40")

    def test_a_cache_after_a_forward_that_failed_halfway(self, llama):
        model = extended_model()
        _, cache = read_text(model, SHORT[:, :20])
        self.fail_in_the_second_layer(model, cache)
        self.assert_refused(
            model, cache, "holds 25 tokens, but the positions of 20 are known.*failed halfway.*start", ids=LONG
        )
        expected = ReferenceLlama(llama, frequencies_under(STEPPED)).read_chunks(LONG, 20, 76)
        assert relative_difference(read_text(model, LONG, 20, 76)[0], expected) < TOLERANCE

    def test_a_new_text_after_a_failed_forward_is_undisturbed(self):
        model = extended_model()
        self.fail_in_the_second_layer(model, None)
        tables = [each.model.rotary_emb(torch.zeros(1), torch.arange(96)[None]) for each in (model, extended_model())]
        assert torch.equal(tables[0][0], tables[1][0])
        assert torch.equal(read_text(model, LONG, 20, 76)[0], read_text(extended_model(), LONG, 20, 76)[0])

    @staticmethod
    def fail_in_the_second_layer(model, cache):
        failing = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            read_text(model, SHORT[:, :5], cache=cache)
        failing.remove()

    @staticmethod
    def assert_refused(model, cache, why, ids=TEXT[:, :1]):
        with pytest.raises(RuntimeError, match=why) as error:
            read_text(model, ids, cache=cache)
        assert "\n" not in str(error.value)


def first_layer(cache):
    """Return a cache with the first layer only: its keys depend on the tokens and frequencies, not on earlier keys."""
    return SimpleNamespace(layers=cache.layers[:1])
