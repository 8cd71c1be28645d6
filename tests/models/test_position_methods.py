"""Position methods on whole models, compared with a dense reference that knows nothing of channel layouts."""

import copy
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from tests.helpers import position_oracle
from tests.helpers.architectures import IDS, LENGTH, TOLERANCE, build, relative_difference
from tests.helpers.cached_text import generate, pad_left, read_text
from tests.helpers.position_models import oracle_logits
from transformers import DynamicCache, StaticCache

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.models import far_keys, position_attention
from ropewalk.models.extend import extended
from ropewalk.models.far_keys import FarKeys, RotatedKeys
from ropewalk.models.key_state import get_key_state
from ropewalk.models.position_hooks import PositionHooks

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:transformers cannot express")]
IDS_T = torch.randint(3, 97, (1, 4 * LENGTH), generator=torch.Generator().manual_seed(8))
METHOD = rw.LeakyReRoPE(factor=4, window=12)
# Half layout, and interleaved pairs of a part of the channels.
LAYOUTS = pytest.mark.parametrize("name", ["llama", "glm"])


@pytest.fixture
def llama():
    return build("llama")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of queries that are smaller than the windows, as with real windows."""
    monkeypatch.setattr(position_attention, "BLOCK_SIZE", 7)
    monkeypatch.setattr(position_attention, "_MASKED_BLOCK_SIZE", 11)


def leaky_oracle(model, ids, factor=4, window=12, **options):
    return oracle_logits(model, ids, position_oracle.leaky_rerope(ids.shape[1], LENGTH, factor, window), **options)


def random_splits(length, seed):
    """Return the sizes of chunks of a text: a few long ones, then single tokens, then the rest."""
    generator = np.random.default_rng(seed)
    first = int(generator.integers(1, length - 8))
    return [first, 1, 1, length - first - 2]


class TestEqualsTheDenseReference:
    @LAYOUTS
    @pytest.mark.parametrize("seed", range(3))
    def test_any_window_group_length_and_split(self, name, seed, small_blocks):
        generator = np.random.default_rng(seed)
        length = int(generator.integers(LENGTH + 12, 2 * LENGTH + 16))
        window, group = int(generator.integers(1, LENGTH)), int(generator.integers(2, 9))
        chunk_size = int(generator.integers(4, LENGTH))
        local_size = int(generator.integers(1, chunk_size))
        methods = {
            rw.SelfExtend(group=group, window=window): position_oracle.self_extend(length, LENGTH, group, window),
            rw.LeakyReRoPE(factor=group + 0.5, window=window): position_oracle.leaky_rerope(
                length, LENGTH, group + 0.5, window
            ),
            rw.ReRoPE(window=window): position_oracle.rerope(length, LENGTH, window),
            rw.JetLong(window=window): position_oracle.jet_long(length, LENGTH, window),
            rw.DualChunk(chunk_size=chunk_size, local_size=local_size): position_oracle.dual_chunk(
                length, LENGTH, chunk_size, local_size
            ),
        }
        model, ids = build(name), IDS_T[:, :length]
        for method, relative_TT in methods.items():
            expected = oracle_logits(model, ids, relative_TT)
            rw.extend(model, method)
            whole, _ = read_text(model, ids)
            split, _ = read_text(model, ids, *random_splits(length, seed))
            rw.restore(model)
            assert relative_difference(whole, expected) < TOLERANCE, method
            assert relative_difference(split, expected) < TOLERANCE, method

    @LAYOUTS
    def test_token_by_token(self, name):
        model, ids = build(name), IDS_T[:, : 2 * LENGTH]
        expected = leaky_oracle(model, ids)
        rw.extend(model, METHOD)
        assert relative_difference(read_text(model, ids, *[1] * ids.shape[1])[0], expected) < TOLERANCE

    def test_options_that_follow_the_text_change_the_far_keys_in_the_cache(self, llama):
        length = IDS_T.shape[1]
        expected = oracle_logits(llama, IDS_T, position_oracle.jet_long(length, LENGTH, window=12))
        rw.extend(llama, rw.JetLong(window=12))
        logits, cache = read_text(llama, IDS_T, 40, *[1] * 60, length - 100)
        assert relative_difference(logits, expected) < TOLERANCE
        kept = [list(layer) for layer in get_key_state(cache).far_keys.layers.values()]
        assert [[method.group for method, _ in layer] for layer in kept] == [[4], [4]]  # of the last token only

    def test_logits_scaled_by_the_position_of_the_query(self, llama):
        length = 2 * LENGTH
        factor_T = np.maximum(np.log(np.arange(length) + 1) / np.log(LENGTH), 1.0)
        relative_TT = position_oracle.leaky_rerope(length, LENGTH, 4, 12)
        expected = oracle_logits(llama, IDS_T[:, :length], relative_TT, factor_T)
        rw.extend(llama, rw.LeakyReRoPE(factor=4, window=12, logit_scaling="log-n"))
        assert relative_difference(read_text(llama, IDS_T[:, :length], 40, 24)[0], expected) < TOLERANCE

    def test_far_keys_at_the_frequencies_of_a_scaling(self, llama):
        """With `linear`, near-exact is Leaky ReRoPE."""
        expected = leaky_oracle(llama, IDS_T)
        rw.extend(llama, rw.parse("near-exact:scaling=linear,factor=4,window=12"))
        assert relative_difference(read_text(llama, IDS_T, 40, 88)[0], expected) < TOLERANCE

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_with_either_attention_implementation(self, llama, attention):
        llama.set_attn_implementation(attention)
        expected = leaky_oracle(llama, IDS_T)
        rw.extend(llama, METHOD)
        assert relative_difference(read_text(llama, IDS_T, 40, 88)[0], expected) < TOLERANCE

    def test_in_half_precision(self, llama):
        expected = leaky_oracle(llama, IDS_T)
        plain_error = relative_difference(
            read_text(copy.deepcopy(llama).to(torch.bfloat16), IDS_T)[0].float(), read_text(llama, IDS_T)[0]
        )
        rw.extend(llama.to(torch.bfloat16), METHOD)
        for sizes in ([], [40, 1, 87]):
            assert relative_difference(read_text(llama, IDS_T, *sizes)[0].float(), expected) < 1.5 * plain_error

    def test_gradients_are_those_of_the_same_attention_without_fused_kernels(self, llama):
        rw.extend(llama, METHOD)
        ids = IDS_T[:, : 2 * LENGTH]
        loss = llama(ids, labels=ids, use_cache=False).loss
        loss.backward()
        weight = llama.model.layers[0].self_attn.k_proj.weight
        gradient, step = weight.grad.clone(), 1e-3 * weight.grad / weight.grad.norm()
        with torch.no_grad():
            weight += step
            above = llama(ids, labels=ids, use_cache=False).loss
            weight -= 2 * step
            below = llama(ids, labels=ids, use_cache=False).loss
        assert float(above - below) == pytest.approx(float(2 * (gradient * step).sum()), rel=0.05)

    @pytest.mark.parametrize(
        "options", [{}, {"attention_mask": torch.ones(1, 2 * LENGTH).index_fill(1, torch.tensor(5), 0)}]
    )
    def test_under_autocast(self, llama, options):
        ids = IDS_T[:, : 2 * LENGTH]
        rw.extend(llama, METHOD)
        expected = llama(ids, **options).logits
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            logits = llama(ids, **options).logits
        assert 1e-4 < relative_difference(logits.float(), expected) < 0.05
        llama(ids, labels=ids, **options).loss.backward()
        gradient = llama.model.layers[0].self_attn.k_proj.weight.grad.clone()
        llama.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            llama(ids, labels=ids, **options).loss.backward()
        assert relative_difference(llama.model.layers[0].self_attn.k_proj.weight.grad, gradient) < 0.1

    def test_gradients_with_frozen_keys(self, llama, small_blocks, monkeypatch):
        """Far keys grow while the queries before them still need theirs for the backward pass."""
        monkeypatch.setattr(far_keys, "_TOKENS_AHEAD", 0)
        rw.extend(llama.requires_grad_(False), METHOD)
        query = llama.model.layers[0].self_attn.q_proj.weight.requires_grad_()
        llama(IDS_T, labels=IDS_T, use_cache=False).loss.backward()
        gradient = query.grad.clone()
        llama.zero_grad()
        llama.requires_grad_()
        llama(IDS_T, labels=IDS_T, use_cache=False).loss.backward()
        assert relative_difference(query.grad, gradient) < TOLERANCE


class TestShortTexts:
    def test_have_the_bits_of_the_unextended_model(self, llama):
        ids = IDS_T[:, :LENGTH]
        plain, _ = read_text(llama, ids)
        plain_split, _ = read_text(llama, ids, 20, 1, 11)
        rw.extend(llama, METHOD)
        assert torch.equal(read_text(llama, ids)[0], plain)
        logits, cache = read_text(llama, ids, 20, 1, 11)
        assert torch.equal(logits, plain_split)
        assert get_key_state(cache).far_keys is None

    def test_the_beginning_of_a_long_text_is_exact(self, llama):
        plain, _ = read_text(llama, IDS_T)
        rw.extend(llama, METHOD)
        logits, _ = read_text(llama, IDS_T)
        assert relative_difference(logits[:, :LENGTH], plain[:, :LENGTH]) < TOLERANCE
        assert relative_difference(logits[:, LENGTH:], plain[:, LENGTH:]) > 0.01

    def test_restore_gives_the_same_bits_and_the_same_attention(self, llama):
        plain, _ = read_text(llama, IDS_T)
        attributes = [set(vars(module)) for module in llama.modules()]
        rw.extend(llama, METHOD)
        read_text(llama, IDS_T)
        rw.restore(llama)
        assert torch.equal(read_text(llama, IDS_T)[0], plain)
        assert llama.config._attn_implementation == "sdpa"
        probes = {"_ropewalk_probe"}  # results of probing, kept for the next time
        assert [set(vars(module)) - probes for module in llama.modules()] == [names - probes for names in attributes]


class TestBatches:
    def test_left_padding(self, llama, small_blocks):
        rows = IDS_T[0, :100], IDS_T[0, 3:63], IDS_T[0, 5:25], IDS_T[0, 7:67]
        ids, mask = pad_left(*rows)
        positions = (mask.cumsum(-1) - 1).clip(min=0)
        expected = [leaky_oracle(llama, row[None])[0] for row in rows]
        rw.extend(llama, METHOD)
        with torch.no_grad():
            whole = llama(ids, attention_mask=mask, position_ids=positions).logits
            first = llama(ids[:, :90], attention_mask=mask[:, :90], position_ids=positions[:, :90])
            cache = cache_for_call(llama, find_output_cache(first))
            rest = llama(ids[:, 90:], attention_mask=mask, position_ids=positions[:, 90:], **cache)
        split = torch.cat([first.logits, rest.logits], dim=1)
        for logits in (whole, split):
            for row, alone in zip(logits, expected, strict=True):
                assert relative_difference(row[-len(alone) :], alone) < TOLERANCE

    def test_holes_in_the_mask_and_padding_on_the_right(self, llama, small_blocks):
        """The positions count the hidden tokens, as transformers does if none are given."""
        mask = torch.ones(2, IDS_T.shape[1], dtype=torch.int64)
        mask[0, 5:9], mask[0, 90:95], mask[1, 100:] = 0, 0, 0
        ids = IDS_T.expand(2, -1)
        expected = leaky_oracle(llama, ids, attention_mask=mask)
        rw.extend(llama, METHOD)
        with torch.no_grad():
            logits = llama(ids, attention_mask=mask).logits
        assert relative_difference(logits[0, 95:], expected[0, 95:]) < TOLERANCE
        assert relative_difference(logits[1, :100], expected[1, :100]) < TOLERANCE

    def test_texts_packed_into_one_row(self, llama):
        lengths = 60, 68
        alone = [leaky_oracle(llama, part) for part in IDS_T.split(list(lengths), dim=1)]
        rw.extend(llama, METHOD)
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        with torch.no_grad():
            logits = llama(IDS_T, position_ids=positions, use_cache=False).logits
        assert relative_difference(logits, torch.cat(alone, dim=1)) < TOLERANCE

    def test_generation_of_a_padded_batch(self, llama):
        rows = IDS_T[0, :70], IDS_T[0, 3:33]
        ids, mask = pad_left(*rows)
        rw.extend(llama, METHOD)
        together = generate(llama, ids, 12, attention_mask=mask)
        for index, row in enumerate(rows):
            alone = generate(llama, row[None], 12)
            assert torch.equal(together.sequences[index, -12:], alone.sequences[0, -12:])


class TestGeneration:
    """Answers are compared with those of the model that reads the whole text again for every token."""

    @pytest.fixture
    def extended(self, llama):
        return rw.extend(llama, METHOD)

    @pytest.fixture
    def prompt(self):
        return IDS_T[:, : LENGTH - 5]  # the answer passes the original length

    @pytest.fixture
    def expected(self, extended, prompt):
        return generate(extended, prompt, 40, use_cache=False).sequences

    def test_with_the_default_cache(self, extended, prompt, expected):
        assert torch.equal(generate(extended, prompt, 40).sequences, expected)

    def test_with_prompt_lookup_which_crops_the_cache(self, extended, prompt, expected):
        answer = generate(extended, prompt, 40, prompt_lookup_num_tokens=3)
        assert torch.equal(answer.sequences, expected)

    def test_with_an_assistant(self, extended, prompt, expected):
        assistant = build("llama", num_hidden_layers=1)
        answer = generate(extended, prompt, 40, assistant_model=assistant)
        assert torch.equal(answer.sequences, expected)

    def test_with_a_static_cache(self, extended, prompt, expected):
        answer = generate(extended, prompt, 40, cache_implementation="static", disable_compile=True)
        assert torch.equal(answer.sequences, expected)

    def test_in_chunks(self, extended, expected):
        answer = generate(extended, expected[:, :60], 7, prefill_chunk_size=13)
        assert torch.equal(answer.sequences, expected[:, :67])

    def test_with_beams(self, extended, prompt):
        without_cache = generate(extended, prompt, 20, num_beams=3, use_cache=False)
        assert torch.equal(generate(extended, prompt, 20, num_beams=3).sequences, without_cache.sequences)


class TestCaches:
    def test_a_cropped_cache_goes_on_as_if_the_rest_had_never_been_read(self, llama):
        rw.extend(llama, METHOD)
        other = IDS_T.flip(1)
        _, cache = read_text(llama, torch.cat([IDS_T[:, :70], other[:, :30]], dim=1), 60, 40)
        cache.crop(-30)
        continued, _ = read_text(llama, IDS_T[:, 70:], 1, 57, cache=cache)
        assert relative_difference(continued, read_text(llama, IDS_T)[0][:, 70:]) < TOLERANCE

    def test_a_copied_cache(self, llama):
        rw.extend(llama, METHOD)
        _, cache = read_text(llama, IDS_T[:, :70])
        for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            assert get_key_state(twin).far_keys is None  # they follow from the cached keys
            continued, _ = read_text(llama, IDS_T[:, 70:], cache=twin)
            assert relative_difference(continued, read_text(llama, IDS_T)[0][:, 70:]) < TOLERANCE

    def test_far_keys_are_half_of_the_cache_at_most(self, llama):
        rw.extend(llama, METHOD)
        _, cache = read_text(llama, IDS_T, 100, *[1] * 28)
        cached = [layer.keys.nbytes for layer in cache.layers]
        layers = get_key_state(cache).far_keys.layers.values()
        kept = [sum(each.keys.untyped_storage().nbytes() for each in layer.values()) for layer in layers]
        assert all(0 < far <= 1.125 * keys for far, keys in zip(kept, cached, strict=True))

    def test_rows_of_different_lengths_keep_one_copy_of_their_far_keys(self, llama):
        """By default, every row has its own factor."""
        rows = [IDS_T[0, :length] for length in (128, 100, 15, 70, 128)]
        ids, mask = pad_left(*rows)
        rw.extend(llama, rw.LeakyReRoPE())
        together = generate(llama, ids, 12, attention_mask=mask)
        (of_layer, other) = get_key_state(find_output_cache(together)).far_keys.layers.values()
        assert sorted(rows for _, rows in of_layer) == sorted(rows for _, rows in other) == [(0, 4), (1,), (3,)]
        assert sum(each.keys.shape[0] for each in of_layer.values()) == 4
        for index, row in enumerate(rows):
            alone = generate(llama, row[None], 12)
            assert torch.equal(together.sequences[index, -12:], alone.sequences[0, -12:])

    def test_a_long_text_keeps_the_far_keys_of_one_factor_while_it_is_read(self, llama, monkeypatch):
        counts = []
        extend = RotatedKeys.extend
        monkeypatch.setattr(
            RotatedKeys, "extend", lambda *args: counts.append(len(store.layers[0, 0])) or extend(*args)
        )
        store = FarKeys()
        monkeypatch.setattr(PositionHooks, "_far_keys", lambda *_: store)
        rw.extend(llama, rw.LeakyReRoPE())
        read_text(llama, IDS_T)
        assert len(counts) > 10
        assert max(counts) == 1

    def test_nothing_is_kept_without_a_cache(self, llama, monkeypatch):
        stores = weakref.WeakSet()
        monkeypatch.setattr(FarKeys, "__init__", lambda store: stores.add(store) or setattr(store, "layers", {}))
        monkeypatch.setattr(FarKeys, "__hash__", object.__hash__)
        rw.extend(llama, METHOD)
        handle = llama.model.layers[1].register_forward_hook(lambda *_: alive.append(len(stores)))
        alive = []
        with torch.no_grad():
            llama(IDS_T, use_cache=False)
        handle.remove()
        assert alive == [0]

    def test_a_cache_that_the_plain_model_filled_is_refused_past_the_original_length(self, llama):
        _, cache = read_text(llama, IDS_T[:, :20])
        rw.extend(llama, METHOD)
        with pytest.warns(UserWarning, match="no extended model"):
            read_text(llama, IDS_T[:, 20:30], cache=cache)
        with pytest.raises(RuntimeError, match="start a new cache") as error:
            read_text(llama, IDS_T[:, 30:40], cache=cache)
        assert "\n" not in str(error.value)

    def test_a_cache_that_was_read_with_a_scaling_is_refused(self, llama):
        _, cache = read_text(rw.extend(llama, rw.YaRN(factor=4)), IDS_T[:, :20])
        rw.extend(llama, METHOD)
        with pytest.raises(RuntimeError, match="read with other frequencies; start a new cache"):
            read_text(llama, IDS_T[:, 20:30], cache=cache)

    def test_a_cache_goes_on_under_a_scaling(self, llama):
        """The cached keys have the trained frequencies, so that a scaling can rotate them."""
        _, cache = read_text(rw.extend(llama, METHOD), IDS_T[:, :20])
        expected, _ = read_text(rw.extend(llama, rw.NoScaling()), IDS_T[:, :30], 20, 10)
        continued, _ = read_text(llama, IDS_T[:, 20:30], cache=cache)
        assert relative_difference(continued, expected[:, 20:]) < TOLERANCE


class TestSharedModels:
    def test_threads(self, llama):
        rw.extend(llama, METHOD)
        texts = [IDS_T[:, :LENGTH], IDS_T[:, :90], IDS_T[:, 5:70], IDS_T[:, 9:]]
        expected = [read_text(llama, text, 30, text.shape[1] - 30)[0] for text in texts]
        results = {}

        def read(index):
            text = texts[index]
            results[index] = [read_text(llama, text, 30, text.shape[1] - 30)[0] for _ in range(3)]

        threads = [threading.Thread(target=read, args=(index,)) for index in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, logits in enumerate(expected):
            assert all(torch.equal(result, logits) for result in results[index])

    def test_models_that_share_a_config_keep_their_attention(self, llama):
        twin = type(llama)(llama.config).eval()
        plain, _ = read_text(twin, IDS_T)
        rw.extend(llama, METHOD)
        assert twin.config._attn_implementation == "sdpa"
        assert torch.equal(read_text(twin, IDS_T)[0], plain)

    def test_copied_and_pickled_models(self, llama):
        rw.extend(llama, METHOD)
        expected, _ = read_text(llama, IDS_T, 40, 88)
        for twin in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
            assert torch.equal(read_text(twin, IDS_T, 40, 88)[0], expected)
            rw.restore(twin)
            assert twin.config._attn_implementation == "sdpa"
        assert torch.equal(read_text(llama, IDS_T, 40, 88)[0], expected)

    def test_a_block_puts_the_model_back(self, llama):
        plain, _ = read_text(llama, IDS_T)
        with extended(llama, METHOD):
            assert relative_difference(read_text(llama, IDS_T)[0], plain) > 0.01
        assert torch.equal(read_text(llama, IDS_T)[0], plain)


class TestRefusals:
    """Each in one line, before anything is computed wrongly."""

    def test_attention_dropout(self, llama):
        llama.config.attention_dropout = 0.1
        for layer in llama.model.layers:
            layer.self_attn.attention_dropout = 0.1
        rw.extend(llama, METHOD).train()
        with pytest.raises(RuntimeError, match="attention dropout"):
            llama(IDS_T)

    def test_attention_that_was_changed_after_extend(self, llama):
        rw.extend(llama, METHOD)
        llama.set_attn_implementation("eager")
        with pytest.raises(RuntimeError, match="the attention implementation was changed"):
            read_text(llama, IDS_T)

    def test_other_attention_implementations(self, llama):
        llama.config._attn_implementation = "flex_attention"
        with pytest.raises(
            rw.InputError, match="attention implementation: got 'flex_attention'; expected sdpa or eager"
        ):
            rw.extend(llama, METHOD)

    def test_positions_of_an_image(self):
        model = rw.extend(build("qwen2_vl"), METHOD)
        positions = torch.arange(40).expand(3, 1, 40).clone()
        positions[1:, :, 3:6] = 3
        with torch.no_grad():
            model(input_ids=IDS_T[:, :30], position_ids=positions[..., :30])
        with pytest.raises(RuntimeError, match="positions on 3 axes that differ"):
            model(input_ids=IDS_T[:, :40], position_ids=positions)

    def test_recomputation_of_attention(self, llama):
        rw.extend(llama, METHOD).train()
        llama.gradient_checkpointing_enable()
        llama(IDS_T[:, :LENGTH], use_cache=False).logits.sum().backward()
        with pytest.raises(RuntimeError, match=r"leaky-rerope cannot recompute .*gradient_checkpointing_disable"):
            llama(IDS_T, use_cache=False)
        with torch.no_grad():
            llama(IDS_T, use_cache=False)

    def test_attention_weights(self, llama):
        llama.set_attn_implementation("eager")
        rw.extend(llama, METHOD)
        assert len(llama(IDS_T[:, :LENGTH], output_attentions=True).attentions) == 2
        with pytest.raises(RuntimeError, match="leaky-rerope has no attention weights past the original length"):
            llama(IDS_T, output_attentions=True)

    def test_attention_to_later_tokens(self):
        model = rw.extend(build("gemma", use_bidirectional_attention=True), METHOD)
        with pytest.raises(RuntimeError, match="GemmaAttention attends to later tokens, too"):
            read_text(model, IDS_T)

    def test_a_failed_call_does_not_leave_its_positions_behind(self, llama):
        rw.extend(llama, METHOD)
        expected, _ = read_text(llama, IDS_T)
        handle = llama.model.layers[1].register_forward_pre_hook(self.fail)
        with pytest.raises(ZeroDivisionError):
            read_text(llama, IDS_T)
        handle.remove()
        assert torch.equal(
            read_text(llama, IDS[:1, :10])[0], read_text(rw.restore(copy.deepcopy(llama)), IDS[:1, :10])[0]
        )
        assert torch.equal(read_text(llama, IDS_T)[0], expected)

    @staticmethod
    def fail(*_):
        raise ZeroDivisionError


def test_static_cache_passed_by_hand(llama):
    rw.extend(llama, METHOD)
    expected, _ = read_text(llama, IDS_T)
    logits, _ = read_text(llama, IDS_T, 40, 1, 87, cache=StaticCache(config=llama.config, max_cache_len=160))
    assert relative_difference(logits, expected) < TOLERANCE


def test_one_cache_passed_by_hand(llama):
    rw.extend(llama, METHOD)
    expected, _ = read_text(llama, IDS_T)
    logits, _ = read_text(llama, IDS_T, 40, 1, 87, cache=DynamicCache(config=llama.config))
    assert relative_difference(logits, expected) < TOLERANCE
