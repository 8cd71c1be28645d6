"""The state of cached keys: operations on caches, rotation in place, and rounding."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from tests.helpers.architectures import LENGTH, TOLERANCE, build, compute_logits, relative_difference
from tests.helpers.cached_text import (
    LONG,
    ROPE,
    SCALING,
    TEXT,
    TEXTS,
    WITH_AND_WITHOUT_SNAPSHOT,
    ReferenceLlama,
    continue_text,
    extended_model,
    frequencies_under,
    pad_left,
    read_text,
    rotate_half,
)
from transformers import DynamicCache

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.models.cache_layout import RotatedChannels
from ropewalk.models.channel_layout import ChannelLayout
from ropewalk.models.key_state import KeyState, attach_key_state, get_key_state, tokens_seen
from ropewalk.models.rotary_table import RotaryTable

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
]
BFLOAT16_EPS = torch.finfo(torch.bfloat16).eps


@pytest.fixture
def llama():
    return build("llama")


@WITH_AND_WITHOUT_SNAPSHOT
class TestCacheOperations:
    """The key state stays right under everything that transformers does to a cache."""

    def test_caches_of_every_class(self, llama, policy):
        model = extended_model(policy)
        expected = ReferenceLlama(llama, frequencies_under(policy)).read_chunks(LONG, 20, 76)
        for cache in (None, DynamicCache(), DynamicCache(config=model.config)):
            assert relative_difference(read_text(model, LONG, 20, 76, cache=cache)[0], expected) < TOLERANCE

    def test_caches_in_tuples_of_outputs(self, llama, policy):
        model = extended_model(policy)
        with torch.no_grad():
            logits, cache = model(LONG[:, :20], use_cache=True, return_dict=False)[:2]
            after, same = model(LONG[:, 20:], **cache_for_call(model, cache), return_dict=False)[:2]
        assert same is cache
        expected = ReferenceLlama(llama, frequencies_under(policy)).read_chunks(LONG, 20, 76)
        assert relative_difference(torch.cat([logits, after], dim=1), expected) < TOLERANCE
        with torch.no_grad():  # call the decoder without its head
            _, cache = model.model(LONG[:, :20], use_cache=True, return_dict=False)[:2]
        assert relative_difference(continue_text(model, LONG[:, 20:], cache), after) < TOLERANCE

    def test_a_copied_cache_is_independent(self, llama, policy):
        model = extended_model(policy)
        _, prefix = read_text(model, TEXT[:, :40], 20, 20)
        for row in range(3):
            actual = continue_text(model, TEXTS[row : row + 1, 40:100], copy.deepcopy(prefix), 10, 50)
            reference = ReferenceLlama(llama, frequencies_under(policy))
            reference.read_chunks(TEXT[:, :40], 20, 20)
            assert relative_difference(actual, reference.read_chunks(TEXTS[row : row + 1, 40:100], 10, 50)) < TOLERANCE
        assert get_key_state(prefix).num_tokens == 40

    def test_a_saved_cache_continues(self, llama, policy):
        model, saved = extended_model(policy), io.BytesIO()
        _, cache = read_text(model, LONG[:, :40], 20, 20)
        torch.save(cache, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        assert type(loaded) is type(cache)
        again = pickle.loads(pickle.dumps(cache))
        expected = continue_text(model, LONG[:, 40:], cache, 26, 30)
        for each in (loaded, again):
            assert torch.equal(continue_text(extended_model(policy), LONG[:, 40:], each, 26, 30), expected)

    def test_a_cropped_cache_continues(self, llama, policy):
        model, reference = extended_model(policy), ReferenceLlama(llama, frequencies_under(policy))
        _, cache = read_text(model, LONG[:, :70], 20, 20, 30)
        reference.read_chunks(LONG[:, :70], 20, 20, 30)
        for count, new in ((50, 5), (20, 8), (10, 80)):  # the second and third return to shorter lengths
            cache.crop(count - tokens_seen(cache))
            reference.crop(count)
            more = TEXTS[1:2, count : count + new]
            assert relative_difference(continue_text(model, more, cache), reference(more[0])) < TOLERANCE
            assert get_key_state(cache).num_tokens == count + new

    def test_a_repeated_cache_continues_in_several_ways(self, llama, policy):
        model = extended_model(policy)
        _, cache = read_text(model, TEXT[:, :40], 20, 20)
        cache.batch_repeat_interleave(3)
        actual = continue_text(model, TEXTS[:, 40:100], cache, 10, 50)
        for row in range(3):
            reference = ReferenceLlama(llama, frequencies_under(policy))
            reference.read_chunks(TEXT[:, :40], 20, 20)
            assert (
                relative_difference(actual[row], reference.read_chunks(TEXTS[row : row + 1, 40:100], 10, 50)[0])
                < TOLERANCE
            )

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
    def test_selected_rows_continue(self, llama, policy, pick, kept):
        """The rows have different lengths, so that each has other frequencies."""
        prompts = [TEXTS[row, :length] for row, length in enumerate((12, 40, 70))]
        ids, mask = pad_left(*prompts)
        model, cache = extended_model(policy), DynamicCache()
        options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "attention_mask": mask}
        with torch.no_grad():
            for chunk in (slice(0, 50), slice(50, 70)):
                positions = options["position_ids"][:, chunk]
                read = {"attention_mask": mask[:, : chunk.stop], "position_ids": positions}
                model(ids[:, chunk], **cache_for_call(model, cache), **read)
            pick(cache)
            more, positions = TEXTS[kept, 100:130], torch.tensor([len(prompts[row]) for row in kept])
            mask = torch.cat([mask[kept], torch.ones_like(more)], dim=1)
            positions = positions[:, None] + torch.arange(30)
            actual = model(more, **cache_for_call(model, cache), attention_mask=mask, position_ids=positions).logits
        for at, row in enumerate(kept):
            reference = ReferenceLlama(llama, frequencies_under(policy))
            first = max(len(prompts[row]) - 20, 0)  # tokens of the row in the first chunk
            for part in (prompts[row][:first], prompts[row][first:]):
                if len(part):
                    reference(part)
            assert relative_difference(actual[at], reference(more[at])) < TOLERANCE

    def test_a_reset_cache_starts_a_new_text(self, llama, policy):
        model = extended_model(policy)
        _, cache = read_text(model, LONG, 96)
        cache.reset()
        assert get_key_state(cache) is None
        actual, _ = read_text(model, TEXTS[1:2, :60], 20, 40, cache=cache)
        assert torch.equal(actual, read_text(model, TEXTS[1:2, :60], 20, 40)[0])

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copied_model_continues_a_copied_cache(self, policy, copied):
        model = extended_model(policy)
        _, cache = read_text(model, LONG[:, :40], 20, 20)
        twin, twins = copied(model), copy.deepcopy(cache)
        read_text(model, TEXTS[1:2, :10])  # must not disturb the copy
        actual = continue_text(twin, LONG[:, 40:], twins, 26, 30)
        assert torch.equal(actual, continue_text(model, LONG[:, 40:], cache, 26, 30))
        assert relative_difference(compute_logits(rw.restore(twin)), compute_logits(build("llama"))) == 0
        assert torch.equal(read_text(model, LONG, 40, 56)[0], read_text(extended_model(policy), LONG, 40, 56)[0])


class TestRotationInPlace:
    """Cached keys are rotated in place if torch permits it."""

    FREQUENCIES = tuple(SCALING.frequencies(ROPE, length) for length in (LENGTH, 2 * LENGTH))

    def rotate(self, keys):
        channel_layout = ChannelLayout(1, tuple((pair, 0) for pair in range(8)), (*range(8),) * 2, False, True)
        table = RotaryTable(self.FREQUENCIES[0], channel_layout, torch.device("cpu"))
        layer = SimpleNamespace(keys=keys)
        state = KeyState("any", {"all": table.row_frequencies}, torch.arange(keys.shape[-2])[None])
        channels = [RotatedChannels(0, "keys", "all", 0, "half", tuple(range(8)), 1)]
        rows = {"all": (self.FREQUENCIES[1],)}
        state.rotate_keys(SimpleNamespace(layers=[layer]), rows, {"all": table}, channels, keep_snapshot=False)
        return layer.keys

    @torch.no_grad()
    def test_keys_stay_in_their_memory(self):
        keys = torch.randn(1, 2, 40, 16)
        before = keys.clone()
        rotated = self.rotate(keys)
        assert rotated.data_ptr() == keys.data_ptr()
        assert not torch.equal(keys, before)

    def test_keys_of_inference_mode_are_copied_outside_it(self):
        with torch.inference_mode():
            keys = torch.randn(1, 2, 40, 16)
        before = keys.tolist()
        assert torch.equal(self.rotate(keys), self.rotate(torch.tensor(before)))
        assert keys.tolist() == before

    @torch.no_grad()
    def test_keys_that_rows_share_are_copied(self):
        keys = torch.randn(1, 2, 40, 16).expand(3, -1, -1, -1)
        before = keys.clone()
        assert torch.equal(self.rotate(keys), self.rotate(keys.clone()))
        assert torch.equal(keys, before)

    def test_keys_with_a_gradient_are_copied(self):
        keys = torch.randn(1, 2, 40, 16, requires_grad=True)
        self.rotate(keys * 1).sum().backward()
        assert keys.grad.abs().max() > 0

    @WITH_AND_WITHOUT_SNAPSHOT
    def test_a_cache_filled_in_inference_mode_continues_outside_it(self, policy):
        model = extended_model(policy)
        with torch.inference_mode():
            cache = find_output_cache(model(LONG[:, :20], use_cache=True))
        assert torch.allclose(
            continue_text(model, LONG[:, 20:], cache),
            read_text(extended_model(policy), LONG, 20, 76)[0][:, 20:],
            atol=TOLERANCE,
        )


class TestPrecision:
    """1,500 rotations of bfloat16 keys, compared with one rotation in float64 of the unrotated key."""

    STEPS, TOKENS = 1_500, 64

    def test_rotating_from_a_snapshot_costs_two_roundings(self):
        assert self.roundings(keep_snapshot=True) <= 2.001  # and the rounding of float32 angles

    def test_rotating_in_place_adds_up_roundings(self):
        assert self.roundings(keep_snapshot=False) > 20

    def roundings(self, keep_snapshot):
        """Return the largest error after all steps, in units of half a bfloat16 rounding step of a pair."""
        channel_layout = ChannelLayout(1, tuple((pair, 0) for pair in range(8)), (*range(8),) * 2, False, True)
        table = RotaryTable(SCALING.frequencies(ROPE, LENGTH), channel_layout, torch.device("cpu"))
        unrotated = torch.randn(self.TOKENS, 16, generator=torch.Generator().manual_seed(0)).double()
        positions = torch.arange(self.TOKENS) * 151
        layer = SimpleNamespace(
            keys=self.exact_keys(unrotated, positions, table.row_frequencies[0])[None, None].bfloat16()
        )
        state = KeyState("any", {"all": table.row_frequencies}, positions[None])
        channels = [RotatedChannels(0, "keys", "all", 0, "half", tuple(range(8)), 1)]
        for reached in range(LENGTH + 1, LENGTH + 1 + self.STEPS):
            rows = {"all": (SCALING.frequencies(ROPE, reached),)}
            state.rotate_keys(SimpleNamespace(layers=[layer]), rows, {"all": table}, channels, keep_snapshot)
        assert state.rotations == self.STEPS
        expected = self.exact_keys(unrotated, positions, state.row_frequencies["all"][0])
        error = self.pair_norms(layer.keys[0, 0].double() - expected)
        return float((error / (BFLOAT16_EPS / 2 * self.pair_norms(expected))).max())

    @staticmethod
    def exact_keys(unrotated, positions, frequencies):
        parts = (torch.from_numpy(part) for part in frequencies.cos_sin(positions.numpy(), "float64"))
        return rotate_half(unrotated, *(torch.cat([part, part], dim=-1) for part in parts))

    @staticmethod
    def pair_norms(x):
        return torch.hypot(*x.chunk(2, dim=-1))


class TestIdentity:
    @pytest.mark.parametrize("scaling", [SCALING, rw.YaRN(factor=4)], ids=str)
    def test_a_cache_of_another_model_at_the_address_of_an_earlier_one_is_refused(self, scaling):
        model, other = extended_model(scaling=scaling), build("llama")
        other.model.layers[1].self_attn.k_proj.weight.data *= 1.1
        _, foreign = read_text(rw.extend(other, scaling), TEXT[:, :20])
        _, own = read_text(model, TEXT[:, :20])
        continue_text(model, TEXT[:, 20:21], own)
        state = get_key_state(own)
        vars(state).update(vars(get_key_state(foreign)))  # as if the state of `own` had been deleted
        attach_key_state(foreign, state)
        with pytest.raises(RuntimeError, match="20 tokens of another model"):
            continue_text(model, TEXT[:, 20:21], foreign)

    def test_a_copied_state_is_checked_again(self):
        model = extended_model()
        _, cache = read_text(model, TEXT[:, :20])
        twin, twins = copy.deepcopy(model), copy.deepcopy(cache)
        twin.model.layers[1].self_attn.k_proj.weight.data *= 1.1
        with pytest.raises(RuntimeError, match="20 tokens of another model"):
            continue_text(twin, TEXT[:, 20:21], twins)
        continue_text(model, TEXT[:, 20:21], twins)
