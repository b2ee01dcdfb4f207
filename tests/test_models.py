"""Laws of the transformer, for every layout: causality, cached = full, padding, lanes, and what may never be seen."""

from dataclasses import replace
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from icrl.config import MemoryConfig, MixtureConfig, ModelConfig
from icrl.interfaces import FamilySpec, UserError, map_observation
from icrl.models.attention import QueriedWindow, see_first_and_self
from icrl.models.policy import make_policy
from icrl.models.tokens import Previous

SPACES = {
    "grid": MultiDiscrete([4, 5]),
    "discrete": Discrete(6, start=2),
    "real": Box(-np.inf, np.inf, (3,), np.float32),
    "image": Box(0, 7, (4, 4, 2), np.uint8),
    "dict": Dict(place=MultiDiscrete([3, 3]), speed=Box(-1, 1, (2,), np.float32)),
}
ACTIONS = {"categorical": Discrete(4, start=1), "gaussian": Box(-1, 1, (2,), np.float32)}
SMALL = ModelConfig(window=12, width=16, num_layers=2, num_heads=2)
MIXTURE = MixtureConfig(blocks=(0, 1), token_experts=3, task_experts=4)
mixed = pytest.mark.parametrize(
    "options",
    [{}, {"mixture": MIXTURE}, {"mixture": replace(MIXTURE, summary="episodes")}],
    ids=["dense", "prefix", "episodes"],
)


def make(layout="step", space="grid", action="categorical", **options):
    config = ModelConfig(**{**SMALL.__dict__, "layout": layout, "rotary": layout == "step", **options})
    policy = make_policy(FamilySpec("toy", SPACES[space], ACTIONS[action], 4), config, seed=0).eval()
    with torch.no_grad():  # weights large enough that a broken law shows
        for parameter in policy.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return policy


def draw(space: gym.Space, batch: int, length: int, seed: int):
    """Random elements of a space as tensors (B, T, ...)."""
    space.seed(seed)
    samples = [[space.sample() for _ in range(length)] for _ in range(batch)]
    stack = [map_observation(lambda *a: np.stack(a), *row) for row in samples]
    return map_observation(lambda *a: torch.as_tensor(np.stack(a)), *stack)


def step_inputs(policy, batch=3, length=10, seed=0):
    """Random inputs of layout `step`: observation, previous, episode, episode step."""
    random = torch.Generator().manual_seed(seed)
    spec = policy.spec
    ended = torch.rand(batch, length, generator=random) < 0.3
    exists = torch.ones(batch, length, dtype=torch.bool)
    exists[:, 0] = False
    previous = Previous(
        exists,
        draw(spec.action_space, batch, length, seed),
        torch.rand(batch, length, generator=random),
        ended,
        draw(spec.observation_space, batch, length, seed + 3),
        draw(spec.observation_space, batch, length, seed + 1),
        torch.rand(batch, length, generator=random),
        torch.rand(batch, length, generator=random),
    )
    episode = (ended & exists).long().cumsum(1)
    return (
        draw(spec.observation_space, batch, length, seed + 2),
        previous,
        episode,
        torch.randint(0, 4, (batch, length), generator=random),
    )


def cut(inputs, index):
    """The same inputs for some lanes or tokens."""
    observation, previous, episode, step = inputs
    take: Any = lambda x: None if x is None else map_observation(lambda a: a[index], x)  # noqa: E731
    return take(observation), Previous(*(take(p) for p in previous)), episode[index], step[index]


@pytest.mark.parametrize("options", [{}, {"interleaved": True, "return_to_go": "total"}], ids=["joint", "interleaved"])
@torch.no_grad()
def test_steps_that_are_apart_are_windows_of_their_own(options):
    policy = make(**options)
    inputs = step_inputs(policy)
    together = policy.step_window(*inputs)
    found = policy.step_window(*inputs, apart=torch.tensor([True, False, True]))
    torch.testing.assert_close(found[1], together[1], rtol=1e-5, atol=1e-5)
    for t in range(inputs[2].shape[1]):
        alone = cut(inputs, np.s_[:, t : t + 1])
        alone[1].exists[:] = False
        expected = policy.step_window(*alone)[:, 0]
        torch.testing.assert_close(found[::2, t], expected[::2], rtol=1e-4, atol=1e-4)
        assert t == 0 or not torch.allclose(found[1, t], expected[1], atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"previous_observation": True, "episode_return": True},
        {"interleaved": True, "return_to_go": "total"},
        {"mixture": MIXTURE},
        {"mixture": replace(MIXTURE, summary="episodes"), "interleaved": True, "return_to_go": "total"},
    ],
    ids=str,
)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("action", ACTIONS)
@torch.no_grad()
def test_future_changes_nothing_and_one_cached_step_equals_the_full_pass(space, action, options):
    policy = make(space=space, action=action, **options)
    inputs, other = step_inputs(policy), step_inputs(policy, seed=9)
    full = policy.step_window(*inputs)
    assert not torch.allclose(full[:, 5:], policy.step_window(*other)[:, 5:])
    past, future = cut(inputs, np.s_[:, :5]), cut(other, np.s_[:, 5:])
    join: Any = lambda a, b: None if a is None else map_observation(lambda x, y: torch.cat([x, y], 1), a, b)  # noqa: E731
    mixed = (
        join(past[0], future[0]),
        Previous(*(join(a, b) for a, b in zip(past[1], future[1], strict=True))),
        join(past[2], future[2]),
        join(past[3], future[3]),
    )
    torch.testing.assert_close(policy.step_window(*mixed)[:, :5], full[:, :5])
    cache = policy.empty_cache(3)
    for t in range(10):
        one = policy.step_cached(*cut(inputs, np.s_[:, t : t + 1]), cache)
        torch.testing.assert_close(one[:, 0], full[:, t], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"interleaved": True}, {"mixture": MIXTURE}, {"mixture": replace(MIXTURE, summary="episodes")}],
    ids=["dense", "interleaved", "prefix", "episodes"],
)
@torch.no_grad()
def test_returns_and_actions_behind_a_cache_are_those_of_the_full_pass(options):
    policy = make(return_to_go="predicted", return_high=1.0, return_bins=5, cross_episode="beats", **options)
    inputs = step_inputs(policy)
    improves = torch.rand(3, 10, generator=torch.Generator().manual_seed(2)) < 0.5
    to_go = torch.rand(3, 10, generator=torch.Generator().manual_seed(3))
    actions, returns = policy.window_and_returns(*inputs, to_go, improves)
    assert policy.aim is not None
    cache = policy.empty_cache(3)
    for t in range(10):
        features = policy.features_cached(*cut(inputs, np.s_[:, t : t + 1]), cache)[:, 0]
        action = policy.head(policy.aim(features, to_go[:, t], improves[:, t]))
        torch.testing.assert_close(policy.aim.predict(features), returns[:, t], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(action, actions[:, t], rtol=1e-4, atol=1e-4)


@mixed
@torch.no_grad()
def test_cached_lanes_may_reset_at_different_times_and_prefills_may_be_padded(options):
    policy = make(**options)
    inputs = step_inputs(policy)
    full = policy.step_window(*inputs)
    cache = policy.empty_cache(3)
    kept = torch.tensor([2, 6])
    lanes = torch.tensor([2, 0])
    policy.step_cached(*cut(cut(inputs, np.s_[:, :6]), lanes), cache, lanes, kept)
    assert cache.lengths.tolist() == [6, 0, 2]
    for t in range(4):  # lane 0 goes on at token 6, lane 1 at 0, lane 2 at 2
        at = torch.tensor([6, 0, 2]) + t
        now = (torch.arange(3)[:, None], at[:, None])
        one = policy.step_cached(*cut(inputs, now), cache)
        torch.testing.assert_close(one[:, 0], full[torch.arange(3), at], rtol=1e-4, atol=1e-4)


@mixed
@torch.no_grad()
def test_permuting_the_lanes_permutes_the_outputs(options):
    policy = make(**options)
    inputs, order = step_inputs(policy), [2, 0, 1]
    torch.testing.assert_close(policy.step_window(*cut(inputs, order)), policy.step_window(*inputs)[order])


def transition_inputs(policy, batch=3, length=6, seed=0):
    spec = policy.spec
    context = (
        draw(spec.observation_space, batch, length, seed),
        draw(spec.action_space, batch, length, seed + 1),
        torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)),
        draw(spec.observation_space, batch, length, seed + 2),
    )
    return context, draw(spec.observation_space, batch, length + 1, seed + 3)


@pytest.mark.parametrize("exact_set", [False, True])
@pytest.mark.parametrize("space", ["grid", "dict"])
@pytest.mark.parametrize("mixture", [MixtureConfig(), MIXTURE], ids=["dense", "mixture"])
@torch.no_grad()
def test_queries_see_their_prefix_alone_and_cached_equals_full(exact_set, space, mixture):
    policy = make("transition", space, exact_set=exact_set, mixture=mixture)
    context, query = transition_inputs(policy)
    full = policy.query_window(context, query, torch.arange(7))
    changed, _ = transition_inputs(policy, seed=20)
    mixed = tuple(
        map_observation(lambda a, b: torch.cat([a[:, :3], b[:, 3:]], 1), a, b)
        for a, b in zip(context, changed, strict=True)
    )
    again = policy.query_window(mixed, query, torch.arange(7))
    torch.testing.assert_close(again[:, :4], full[:, :4])
    assert not torch.allclose(again[:, 4:], full[:, 4:])

    cache = policy.empty_cache(3)
    policy.begin_context(cache, torch.arange(3))
    reached = torch.zeros(3, dtype=torch.long)
    for t in range(9):  # lane 1 pauses at t = 3, lane 2 starts anew at t = 5
        pending = torch.tensor([t > 0, t > 0 and t != 3, t > 0 and t != 5])
        if t == 5:
            cache.lengths[2] = 0
            reached[2] = 0
            policy.begin_context(cache, torch.tensor([2]))
        pending &= reached < 6
        at = (torch.arange(3)[:, None], reached.clamp(max=5)[:, None])
        reached = reached + pending
        ask = (torch.arange(3)[:, None], reached[:, None])
        one = policy.query_cached(
            tuple(map_observation(lambda a, at=at: a[at], part) for part in context),
            pending,
            map_observation(lambda a, ask=ask: a[ask], query),
            cache,
        )
        torch.testing.assert_close(one, full[torch.arange(3), reached], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_exact_set_does_not_care_about_order_and_the_causal_context_does():
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    for exact_set, mixture in product((True, False), (MixtureConfig(), MIXTURE)):
        policy = make("transition", exact_set=exact_set, mixture=mixture)
        context, query = transition_inputs(policy)
        shuffled = tuple(part[:, order] for part in context)
        first, second = (policy.query_window(c, query[:, :1], torch.tensor([6])) for c in (context, shuffled))
        assert torch.allclose(first, second, atol=1e-5) == exact_set


def test_query_mask_by_hand():
    mask = QueriedWindow(2, torch.tensor([0, 2]), exact_set=False).mask
    assert mask.int().tolist() == [[1, 0, 0, 1, 0], [1, 1, 1, 0, 1]]


def test_seeing_the_first_token_and_oneself_is_attention_under_that_mask():
    q, k, v = torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.eye(5, dtype=torch.bool)
    mask[:, 0] = True
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(see_first_and_self(q, k, v), expected)


def test_hidden_tokens_carry_nothing():
    policy = make()
    inputs, other = step_inputs(policy), step_inputs(policy, seed=5)
    hidden = torch.zeros(3, 10, dtype=torch.bool)
    hidden[:, 4] = True
    changed = inputs[0].clone()
    changed[:, 4] = other[0][:, 4]
    with torch.no_grad():
        torch.testing.assert_close(
            policy.step_window(changed, *inputs[1:], hidden=hidden), policy.step_window(*inputs, hidden=hidden)
        )


def test_initial_weights_depend_on_the_seed_alone_and_leave_global_randomness_alone():
    before = torch.random.get_rng_state()
    spec = FamilySpec("toy", SPACES["grid"], ACTIONS["categorical"], 4)
    first, second, third = (make_policy(spec, SMALL, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)
    assert torch.equal(before, torch.random.get_rng_state())


@torch.no_grad()
def test_returns_do_not_drown_what_is_seen_before_training():
    """Of a token's first content no more comes from returns of 0 to 100 than a few times what comes from places in a room."""
    options: Any = {
        "episodic": True,
        "return_to_go": "total",
        "episode_return": True,
        "memory": MemoryConfig(k=1, chunk=3, every=2),
    }
    spec = FamilySpec("toy", SPACES["grid"], ACTIONS["categorical"], 100)
    policy = make_policy(spec, replace(SMALL, width=64, **options), seed=0)
    returns, places = torch.arange(101.0)[:, None], torch.tensor(list(product(range(4), range(5))))
    both: list[Any] = [policy.tokens, policy.retrieved_tokens]
    for tokens in both:
        seen = tokens.observation(places).std(0).mean()
        for encoder in (tokens.return_to_go, tokens.episode_return):
            assert 0.1 * seen < encoder(returns).std(0).mean() < 3 * seen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "not divisible"),
        ({"num_heads": 16}, "odd"),
        ({"window": 1}, "too short"),
        ({"return_scale": 0.0}, r"model\.return_scale is 0\.0, expected a positive number"),
    ],
)
def test_contradictory_sizes_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        make(**options)


@pytest.mark.parametrize("change", [{"chunk": 2}, {"layers": "first"}, {"arrivals": True}, {"repeats": False}])
def test_weights_keep_the_options_of_the_memory_that_they_are_for(change):
    memory = MemoryConfig(k=1, chunk=3, every=2)
    policy = make(memory=memory)
    (name,) = change
    with pytest.raises(UserError, match=rf"trained with model\.memory\.{name} .*: train another"):
        policy.with_memory(replace(memory, **change))
    assert policy.with_memory(replace(memory, utility=3.0)).config.memory.utility == 3.0


def test_spaces_without_encoder_or_head_are_refused_by_name():
    for observation, action, words in (
        (gym.spaces.Text(3), Discrete(2), "observation space"),
        (Discrete(2), MultiDiscrete([2, 2]), "action space"),
    ):
        with pytest.raises(UserError, match=words):
            make_policy(FamilySpec("toy", observation, action, 4), SMALL, 0)


def test_flops_count_products_once_forward_twice_backward_and_causal_attention_at_half():
    policy = make("step", window=10)
    width, layers, tokens = 16, 2, 3 * 10
    matrices = layers * (4 * width**2 + 8 * width**2) + width * 4
    attention = layers * 2 * 10 * width / 2
    assert policy.flops_per_window(3, 10) == pytest.approx(3 * 2 * tokens * (matrices + attention))
    aims = make("step", window=10, return_to_go="predicted", return_bins=5)
    beside = 8 * width**2 + 5 * width  # the network behind the features, and what predicts the return
    assert aims.flops_per_window(3, 10) == pytest.approx(3 * 2 * tokens * (matrices + attention + beside))


@pytest.mark.parametrize("exact_set", [False, True])
def test_flops_of_queries_leave_out_what_the_last_layer_does_not_do(exact_set):
    policy = make("transition", window=10, exact_set=exact_set)
    width, queries, context = 16, 3, 11
    keys = 2 * 3 * width**2 * (context + queries)  # both layers: query, key and value of every token
    behind = 9 * width**2 * ((context + queries) + queries)  # first layer all tokens, last layer the queries
    pairs = 2 * queries * context / 2 + (0 if exact_set else context**2 / 2)
    work = keys + behind + 2 * width * pairs + queries * width * 4
    assert policy.flops_per_window(5, context + queries, queries) == pytest.approx(5 * 3 * 2 * work)
