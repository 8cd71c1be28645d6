"""Policies: the length each computes frequencies for, worked out by hand, and the errors for wrong input."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ropewalk as rw
from ropewalk.scaling.policies import POLICIES, parse_policy

ORIGINAL = 2048
margins = st.floats(1, 100) | st.integers(1, 100)
policies = (
    st.builds(rw.SteppedPolicy, st.lists(st.floats(1, 1e6), unique=True).map(sorted), margins)
    | st.builds(rw.ContinuousPolicy, st.integers(1, 10**6), margins)
    | st.builds(rw.RequestPolicy, margins)
)


@settings(max_examples=100, deadline=None)
@given(policies)
def test_spec_and_pickle_restore_an_equal_policy(policy):
    assert parse_policy(str(policy)) == policy
    assert parse_policy(policy) is policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(parse_policy(str(policy))) == hash(policy)


@settings(max_examples=100, deadline=None)
@given(policies, st.integers(1, 10**6), st.integers(1, 10**6))
def test_longer_text_never_gets_a_shorter_scaled_length(policy, length, more):
    assert policy.scaled_length(length, ORIGINAL) <= policy.scaled_length(length + more, ORIGINAL)


@pytest.mark.parametrize("policy", ["stepped:margin=3", "stepped:factors=[4]", "continuous:every=5000", "request"])
@pytest.mark.parametrize("length", [1, ORIGINAL - 1, ORIGINAL])
def test_text_within_the_original_length_is_unscaled(policy, length):
    assert parse_policy(policy).scaled_length(length, ORIGINAL) == ORIGINAL


@pytest.mark.parametrize(
    ("policy", "length", "scaled_length"),
    [
        ("stepped:margin=1", 2049, 4096),
        ("stepped:margin=1", 4096, 4096),
        ("stepped:margin=1", 4097, 8192),
        ("stepped:margin=1", 100_000, 131_072),
        ("stepped:margin=1.5", 2049, 4096),
        ("stepped:margin=1.5", 2731, 8192),  # 1.5 x 2731 = 4096.5
        ("stepped:margin=2", 2049, 8192),
        ("stepped:factors=[1.5,3],margin=1", 2049, 3072),
        ("stepped:factors=[1.5,3],margin=1", 3072, 3072),
        ("stepped:factors=[1.5,3],margin=1", 3073, 6144),
        ("stepped:factors=[1.5,3],margin=1", 6145, 6144),  # past the last factor, which stays in use
        ("stepped:factors=[1.5,3],margin=1", 10**6, 6144),
        ("stepped:factors=[4],margin=4", 2049, 8192),
        ("stepped:factors=[2,8],margin=1.25", 3277, 16_384),  # 1.25 x 3277 = 4096.25
        ("continuous:every=1,margin=1", 2049, 2049),
        ("continuous:every=1,margin=1.25", 2049, 2562),  # 2561.25
        ("continuous:every=32,margin=1.25", 2049, 2600),  # 1.25 x 2080
        ("continuous:every=32,margin=1.25", 2080, 2600),
        ("continuous:every=32,margin=1.25", 2081, 2640),
        ("continuous:every=1000,margin=1.5", 2049, 4500),
        ("request:margin=1.25", 2049, 2562),
        ("request:margin=1", 2049, 2049),
        ("request:margin=2", 3000, 6000),
    ],
)
def test_scaled_length_matches_hand_computed_value(policy, length, scaled_length):
    assert parse_policy(policy).scaled_length(length, ORIGINAL) == scaled_length


def test_default_options():
    assert parse_policy("stepped") == rw.SteppedPolicy(factors=())
    assert parse_policy("continuous") == rw.ContinuousPolicy()
    assert parse_policy("request") == rw.RequestPolicy()
    assert set(POLICIES) == {"stepped", "continuous", "request"}
    assert [name for name, policy in POLICIES.items() if policy.keeps_key_snapshot] == ["continuous"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("steps", "policy: got 'steps'.*did you mean stepped"),
        (None, "policy: got None.*stepped, continuous, request"),
        (2.0, "policy: got 2.0"),
        ("stepped:margin=0.5", "stepped: margin: got 0.5"),
        ("stepped:margin=wide", "stepped: margin: got 'wide'"),
        ("stepped:factors=2", "stepped: factors: got 2; expected a list"),
        ("stepped:factors=two", "stepped: factors: got 'two'; expected a list"),
        ("stepped:factors=[4,2]", r"stepped: factors: got \[4, 2\]; expected distinct numbers in increasing order"),
        ("stepped:factors=[2,2]", "stepped: factors: .*distinct"),
        ("stepped:factors=[0.5,2]", "stepped: factors: got 0.5"),
        ('stepped:factors=["two"]', "stepped: factors: got 'two'"),
        ("stepped:factors=[true]", "stepped: factors: got True"),
        ("stepped:every=3", "stepped: option: got 'every'; expected factors, margin"),
        ("stepped:margin=1,margin=2", "stepped: option: got 'margin'; expected each option once"),
        ("continuous:every=0", "continuous: every: got 0"),
        ("continuous:every=1.5", "continuous: every: got 1.5"),
        ("continuous:margin=none", "continuous: margin: got None"),
        ("continuous:margin=0.99", "continuous: margin: got 0.99"),
        ("continuous:factors=[2]", "continuous: option: got 'factors'; expected every, margin"),
        ("request:margin=-1", "request: margin: got -1"),
        ("request:margin", "request: option: got 'margin'; expected option=value"),
    ],
)
def test_wrong_input_raises_one_line_that_names_the_option(spec, message):
    with pytest.raises(rw.InputError, match=f"^{message}") as error:
        parse_policy(spec)
    assert "\n" not in str(error.value)
