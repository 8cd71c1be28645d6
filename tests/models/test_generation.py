"""`generate` under a dynamic scaling: candidates that may be rejected, and caches that the model itself drops."""

import functools

import pytest
import torch
from tests.helpers.architectures import LENGTH, build
from tests.helpers.cached_text import CONTINUOUS, REQUEST, SCALING, STEPPED, TEXT, extended_model, generate, read_text
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_generate, find_output_cache
from ropewalk.models.key_state import get_key_state, tokens_seen

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
]
POLICIES = [STEPPED, CONTINUOUS, "continuous:every=32,margin=1", REQUEST]
EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)
SEEDS = range(20)
NEW_TOKENS = 14  # past a step: at 32 tokens from a prompt of 25, at 64 from one of 57
CANDIDATES = {
    "prompt lookup": lambda policy: {"prompt_lookup_num_tokens": 5},
    "assistant": lambda policy: {"assistant_model": similar_model(build("llama"))},
    "extended assistant": lambda policy: {"assistant_model": similar_model(extended_model(policy))},
    "early exit": lambda policy: {"assistant_early_exit": 1},
}


def similar_model(model):
    """Change the weights so little that some predictions stay the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    return model


def prompt(seed):
    """Return a text that repeats itself, so that lookup finds candidates."""
    part = torch.randint(3, 97, (1, 7), generator=torch.Generator().manual_seed(seed))
    return part.repeat(1, 9)[:, : 25 if seed % 2 else 57]


def answer(model, ids, tokens=NEW_TOKENS, **options):
    return generate(model, ids, tokens, **options).sequences[:, ids.shape[1] :].tolist()


@functools.cache
def greedy_answers(policy):
    model = extended_model(policy)
    return [answer(model, prompt(seed)) for seed in SEEDS]


class TestCandidates:
    """Candidates of prompt lookup and assistants change the speed of an answer, and never the answer."""

    @EVERY_POLICY
    @pytest.mark.parametrize("candidates", CANDIDATES)
    def test_answers_of_20_seeds_equal_those_of_greedy_decoding(self, policy, candidates):
        model, options = extended_model(policy), CANDIDATES[candidates](policy)
        assert [answer(model, prompt(seed), **options) for seed in SEEDS] == greedy_answers(policy)

    @pytest.mark.parametrize("policy", [STEPPED, "continuous:every=32,margin=1", REQUEST])
    def test_candidates_save_calls_of_the_model(self, policy):
        model, calls = extended_model(policy), []
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        answer(model, TEXT[:, :33], 30, assistant_model=extended_model(policy))
        assert len(calls) < 15

    @EVERY_POLICY
    def test_sampling_with_an_assistant_keeps_within_the_vocabulary_of_the_model(self, policy):
        torch.manual_seed(0)
        options = {"do_sample": True, "assistant_model": similar_model(build("llama"))}
        assert len(answer(extended_model(policy), TEXT[:, :25], 40, **options)[0]) == 40

    @EVERY_POLICY
    def test_rejected_candidates_leave_the_cache(self, policy):
        model, cache = extended_model(policy), DynamicCache()
        options = {"assistant_model": similar_model(build("llama")), **cache_for_generate(cache)}
        sequence = generate(model, prompt(1), NEW_TOKENS, **options).sequences
        assert get_key_state(cache).num_tokens == tokens_seen(cache) < sequence.shape[1]
        positions_T = get_key_state(cache).positions_BT[0]
        assert positions_T.tolist() == list(range(tokens_seen(cache)))

    def test_a_cache_that_holds_tokens_is_refused(self):
        """transformers 5.23 appends the whole text to the cache again, and its answer is that of another text."""
        model = extended_model()
        _, cache = read_text(model, prompt(1))
        with pytest.raises(RuntimeError, match=r"25 tokens, which transformers would read again .*; start a new cache"):
            answer(model, TEXT[:, :30], **cache_for_generate(cache), prompt_lookup_num_tokens=5)

    def test_a_padded_prompt(self):
        model, ids = extended_model(), torch.cat([torch.zeros(1, 9, dtype=torch.int64), prompt(1)], dim=1)
        options = {"attention_mask": (torch.arange(ids.shape[1]) >= 9)[None].long()}
        assert answer(model, ids, prompt_lookup_num_tokens=5, **options) == answer(model, ids, **options)

    @EVERY_POLICY
    def test_restore_gives_generate_back(self, policy):
        model = rw.restore(extended_model(policy))
        assert not {"_get_candidate_generator", "prepare_inputs_for_generation"} & vars(model).keys()
        expected = answer(build("llama"), prompt(1))
        assert answer(model, prompt(1), prompt_lookup_num_tokens=5) == expected


class TestDroppedCaches:
    """Phi-3 drops its cache when the text passes the original length, and reads the text again."""

    @pytest.mark.parametrize("name", ["phi3", "phimoe"])
    @pytest.mark.parametrize("start", [20, 40])
    def test_the_text_that_is_read_again_belongs_to_the_same_request(self, name, start):
        model = extended_model(REQUEST, name)
        fixed = rw.extend(build(name), SCALING, length=int(1.25 * (start + 30)) + 1)
        out, expected = (generate(each, TEXT[:, :start], 30) for each in (model, fixed))
        assert torch.equal(out.sequences, expected.sequences)
        assert tokens_seen(find_output_cache(out)) == start + 29
        assert get_key_state(find_output_cache(out)).rotations == 0

    @pytest.mark.parametrize("policy", [STEPPED, CONTINUOUS])
    def test_the_text_that_is_read_again_follows_its_length(self, policy):
        out = generate(extended_model(policy, "phi3"), TEXT[:, :20], 30)
        read = read_text(extended_model(policy, "phi3"), out.sequences[:, :50], LENGTH + 1, *[1] * 17)[0]
        assert torch.equal(read[0, LENGTH:49].argmax(-1), out.sequences[0, LENGTH + 1 : 50])

    @pytest.mark.parametrize("policy", POLICIES)
    def test_candidates(self, policy):
        model = rw.extend(build("phi3", sliding_window=None), SCALING, policy=policy)
        for seed in SEEDS[:4]:
            assert answer(model, prompt(seed), prompt_lookup_num_tokens=5) == answer(model, prompt(seed))


class TestContinuousBatching:
    """`generate_batch` stores keys in pages, where they cannot be rotated."""

    @pytest.mark.parametrize("policy", [STEPPED, CONTINUOUS, REQUEST])
    def test_a_dynamic_scaling_is_refused_when_it_begins(self, policy):
        with pytest.raises(RuntimeError, match=r"continuous batching; .*: extend\(model, scaling, length=tokens\)$"):
            generate_batch(extended_model(policy), TEXT[:, :20])

    def test_the_advice_works(self):
        advised = rw.extend(extended_model(), SCALING, length=64)
        prompts = TEXT[:, :20], TEXT[:, :40]
        assert generate_batch(advised, *prompts) == [answer(advised, ids, 6)[0] for ids in prompts]


def generate_batch(model, *prompts):
    """Generate 6 tokens for each prompt by continuous batching, in a small cache."""
    options = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    cache = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=128)
    outputs = model.generate_batch(
        [ids[0].tolist() for ids in prompts], generation_config=options, continuous_batching_config=cache
    )
    return [outputs[name].generated_tokens for name in sorted(outputs)]
