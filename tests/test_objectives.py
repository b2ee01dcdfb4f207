"""Laws of the losses: what is shown, what is asked, what the label is, and what does not count.

The windows encode their own indices: observation[b, t] = 100 b + t, and what a step executed, what it meant and what was
optimal are known functions of it. A ``Stub`` policy answers every token with a function of its observation: it has no loss
where that is the label.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from agents.collect import collect
from envs.darkroom import DarkRoom
from icrl.config import CollectConfig, MemoryConfig, MixtureConfig, ModelConfig, ObjectiveConfig, SourceConfig
from icrl.data.sampling import Window, WindowSampler, best_before, improving, returns_around
from icrl.interfaces import PLAN_BEGINS, PLAN_OF_TASK, FamilySpec, UserError, map_observation
from icrl.models.heads import CategoricalHead
from icrl.models.policy import Policy, make_policy
from icrl.objectives import OBJECTIVES, check_objective, make_objective
from icrl.objectives.base import masked_loss, previous_steps, step_inputs, step_window
from icrl.objectives.behaviour import estimate_behaviour
from icrl.objectives.dpt import asked_observations, shuffled_order
from icrl.objectives.icee import InContextExploration
from icrl.recipes import smoke

LENGTH, NUM = 12, 700
Layout = Literal["step", "transition"]
MODELS: dict[str, dict[str, Any]] = {
    "icee": {"return_to_go": "predicted", "return_high": 40.0, "cross_episode": "beats"}
}
"""Options of the model that an objective needs."""
CASES: list[tuple[Literal["ad", "dpt", "dt", "icee"], Layout]] = [
    ("ad", "step"),
    ("dpt", "step"),
    ("dpt", "transition"),
    ("dt", "step"),
    ("icee", "step"),
]
every_objective = pytest.mark.parametrize("name, layout", CASES)


def executed(observation):
    return (observation + 1) % NUM


def intended(observation):
    return (observation + 2) % NUM


def optimal(observation):
    return (observation + 3) % NUM


def encoded(lengths=(LENGTH, LENGTH, LENGTH), start: Any = 0, scattered: Any = False) -> Window:
    """Windows (B, 12) of episodes of four steps, padded behind the given lengths; rewards and next observations tell the step, too."""
    batch, steps = len(lengths), np.arange(LENGTH)
    valid = steps < np.array(lengths)[:, None]
    observation = (100 * np.arange(batch)[:, None] + steps).astype(np.uint16)
    ended = np.broadcast_to(steps % 4 == 3, valid.shape) & valid
    reward = observation.astype(np.float32) / NUM * valid
    episode = np.broadcast_to(steps // 4, valid.shape).astype(np.int16) * valid
    earned, to_come = returns_around(reward, episode)
    window = Window(
        observation=observation,
        action=executed(observation),
        reward=reward,
        terminated=ended,
        truncated=np.zeros_like(ended),
        next_observation=(observation + 50).astype(np.uint16),
        target_action=intended(observation),
        optimal_action=optimal(observation),
        behaviour_log_prob=None,
        plan=None,
        episode=episode,
        episode_step=np.broadcast_to(steps % 4, valid.shape).astype(np.int16),
        episode_return=earned,
        return_to_go=to_come,
        valid=valid,
        history=np.arange(batch),
        start=np.broadcast_to(np.asarray(start), (batch,)),
        task=np.zeros(batch, int),
        source=np.zeros(batch, int),
        scattered=np.broadcast_to(np.asarray(scattered), (batch,)),
    )
    return with_padding(window, np.zeros_like)


PER_STEP = (
    "observation",
    "action",
    "reward",
    "terminated",
    "truncated",
    "next_observation",
    "target_action",
    "optimal_action",
    "episode",
    "episode_step",
    "episode_return",
    "return_to_go",
)


def with_padding(window: Window, content) -> Window:
    """The window with ``content(column)`` where it is padding."""

    def put(column):
        valid = window.valid.reshape(window.valid.shape + (1,) * (column.ndim - 2))
        return np.where(valid, column, content(column)).astype(column.dtype)

    columns = {name: map_observation(put, getattr(window, name)) for name in PER_STEP}
    return replace(window, **columns)


def rows(window: Window, index) -> Window:
    """Some windows of the batch."""
    return take(window, lambda a: a[index], lambda a: a[index])


def cut(window: Window, length: int) -> Window:
    """The first steps of every window."""
    return take(window, lambda a: a[:, :length], lambda a: a)


def take(window: Window, of_steps, of_rows) -> Window:
    known = [name for name in ("behaviour_log_prob", "plan") if getattr(window, name) is not None]
    columns = {name: map_observation(of_steps, getattr(window, name)) for name in (*PER_STEP, "valid", *known)}
    columns |= {name: of_rows(getattr(window, name)) for name in ("history", "start", "task", "source", "scattered")}
    return replace(window, **columns)


class Stub:
    """A policy that is all but certain of ``answer(observation)`` at every token; keeps what it was given."""

    device = torch.device("cpu")

    def __init__(self, layout: Layout, answer, **model: Any):
        self.config, self.answer = ModelConfig(layout=layout, window=LENGTH, **model), answer
        self.spec = SimpleNamespace(horizon=4)
        self.head = CategoricalHead(1, Discrete(NUM))

    def _output(self, observation):
        labels = self.answer(observation.long())
        return 100.0 * torch.nn.functional.one_hot(labels, NUM).float()

    def step_window(self, observation, previous, episode, episode_step, hidden=None, memory=None, apart=None):
        self.observation, self.previous, self.hidden = observation, previous, hidden
        return self._output(observation)

    def query_window(self, context, query, prefixes):
        self.context, self.query, self.prefixes = context, query, prefixes
        return self._output(query)


def loss_of(name, policy: Any, window, seed=0, train=True, **options):
    options = {"corrected": False, **options} if name == "icee" else options
    objective = make_objective(ObjectiveConfig(name, **options))
    return objective.loss(policy, window, rng=np.random.default_rng(seed), train=train)


@pytest.fixture
def next_asked(monkeypatch):
    """Every prefix asks for the observation that comes next, so that losses of different windows can be compared."""
    monkeypatch.setattr("icrl.objectives.dpt.asked_observations", lambda prefixes, rng: prefixes)


def small_policy(layout: Layout, observation=None, action=None, **model: Any) -> Policy:
    """A real policy whose outputs depend strongly on everything that it sees."""
    size = {"window": LENGTH, "width": 16, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(layout=layout, rotary=layout == "step", **size, **model)
    policy = make_policy(FamilySpec("toy", observation or Discrete(NUM), action or Discrete(NUM), 4), config, 0)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return policy.eval()


def test_every_objective_is_covered():
    assert {name for name, _ in CASES} == set(OBJECTIVES)


# all objectives


@every_objective
@torch.no_grad()
def test_what_the_padding_holds_changes_nothing(name, layout):
    policy, rng = small_policy(layout, **MODELS.get(name, {})), np.random.default_rng(5)
    window = encoded((12, 7, 1), scattered=[False, True, False])

    def noise(column):
        return rng.random(column.shape) < 0.5 if column.dtype == bool else rng.integers(0, 12, column.shape)

    plain, noisy = (loss_of(name, policy, w) for w in (window, with_padding(window, noise)))
    assert plain.loss == noisy.loss and plain.metrics == noisy.metrics
    torch.testing.assert_close(noisy.accuracy_by_position, plain.accuracy_by_position, rtol=0, atol=0, equal_nan=True)


@every_objective
@torch.no_grad()
def test_padded_windows_are_as_good_as_shorter_ones(name, layout, next_asked):
    policy, window = small_policy(layout, **MODELS.get(name, {})), encoded((8, 8))
    padded, short = loss_of(name, policy, window), loss_of(name, policy, cut(window, 8))
    torch.testing.assert_close(padded.loss, short.loss)
    torch.testing.assert_close(padded.accuracy_by_position[:8], short.accuracy_by_position)
    assert padded.accuracy_by_position[8:].isnan().all()


@every_objective
@torch.no_grad()
def test_every_label_weighs_the_same(name, layout, next_asked):
    policy, window = small_policy(layout, **MODELS.get(name, {})), encoded((12, 4))
    long, short, both = (loss_of(name, policy, rows(window, index)).loss for index in ([0], [1], [0, 1]))
    torch.testing.assert_close(both, (12 * long + 4 * short) / 16)


@every_objective
def test_the_loss_is_a_scalar_that_moves_every_weight(name, layout):
    policy = small_policy(layout, **MODELS.get(name, {}))
    loss = loss_of(name, policy, encoded(), token_mask=0.3 if name == "ad" else 0.0).loss
    assert loss.ndim == 0
    loss.backward()
    still = [key for key, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ([] if name == "ad" or layout == "transition" else ["tokens.hidden"])


@every_objective
@torch.no_grad()
def test_keyed_observations_and_continuous_actions_have_a_loss(name, layout, next_asked):
    observation = Dict(place=Discrete(NUM), speed=Box(-1, 1, (2,), np.float32))
    policy = small_policy(layout, observation, Box(-1, 1, (2,), np.float32), **MODELS.get(name, {}))
    window = encoded((12, 5))

    def keyed(place):
        return {"place": place, "speed": np.stack([place, -1.0 * place], -1).astype(np.float32) / NUM}

    def box(column):
        return np.stack([column, column], -1).astype(np.float32) / NUM

    names = ("action", "target_action", "optimal_action")
    window = replace(
        window,
        observation=keyed(window.observation),
        next_observation=keyed(window.next_observation),
        **{column: box(getattr(window, column)) for column in names},
    )
    long, short, both = (loss_of(name, policy, rows(window, index)).loss for index in ([0], [1], [0, 1]))
    torch.testing.assert_close(both, (12 * long + 5 * short) / 17)


def test_accuracy_is_a_mean_over_what_counts_and_unknown_elsewhere():
    stub: Any = Stub("step", lambda observation: observation)
    output = stub._output(torch.tensor([[1, 2, 3], [1, 2, 3]]))
    labels, counted = torch.tensor([[1, 0, 3], [1, 2, 0]]), torch.tensor([[True, True, False], [True, True, False]])
    result = masked_loss(stub, output, labels, counted)
    assert result.metrics["accuracy"] == 0.75
    np.testing.assert_array_equal(result.accuracy_by_position, [1, 0.5, np.nan])
    assert masked_loss(stub, output, labels, torch.zeros(2, 3, dtype=torch.bool)).loss == 0  # not 0 / 0


def test_a_token_holds_its_observation_and_the_step_before_it():
    stub, window = Stub("step", optimal), encoded()
    loss_of("dpt", stub, window)
    np.testing.assert_array_equal(stub.observation, window.observation)
    previous = previous_steps(window, stub)  # type: ignore[arg-type]
    for part, given in zip(previous, stub.previous, strict=True):
        np.testing.assert_array_equal(part, given)
    assert not previous.exists[:, 0].any() and previous.exists[:, 1:].all()
    for part, column in (
        (previous.action, window.action),
        (previous.reward, window.reward),
        (previous.ended, window.terminated | window.truncated),
        (previous.observation, window.observation),
        (previous.final_observation, window.next_observation),
    ):
        np.testing.assert_array_equal(part[:, 1:], column[:, :-1])


def test_an_episode_ends_whether_terminated_or_truncated():
    window = encoded()
    swapped = replace(window, terminated=window.truncated, truncated=window.terminated)
    first, second = (previous_steps(w, small_policy("step")).ended for w in (window, swapped))
    assert torch.equal(first, second) and first[:, 4::4].all() and first.sum() == 2 * 3


# DPT


@pytest.mark.parametrize("layout", ["step", "transition"])
def test_dpt_asks_for_the_optimal_action_not_the_executed_one(layout: Layout):
    window = encoded((12, 7, 3))
    right = loss_of("dpt", Stub(layout, optimal), window)
    assert right.loss == 0 and right.metrics["accuracy"] == 1
    for wrong in (executed, intended):
        assert loss_of("dpt", Stub(layout, wrong), window).metrics["accuracy"] == 0


@pytest.mark.parametrize("num_queries", [0, 5])
@pytest.mark.parametrize("scattered", [False, True])
def test_dpt_labels_follow_the_query_and_transitions_stay_whole(scattered, num_queries):
    stub, window = Stub("transition", optimal), encoded((12, 7, 12), scattered=scattered)
    output = loss_of("dpt", stub, window, num_queries=num_queries)
    assert output.loss == 0 and output.metrics["accuracy"] == 1
    observation, action, reward, following = (part.numpy().astype(float) for part in stub.context)
    known = np.sort(observation, 1) == np.sort(window.observation.astype(float), 1)
    assert known.all()  # every transition is shown once, in its own window
    full = [0, 2]
    np.testing.assert_array_equal(action[full], executed(observation[full]))
    np.testing.assert_allclose(reward[full] * NUM, observation[full], rtol=1e-6)
    np.testing.assert_array_equal(following[full], observation[full] + 50)


def test_dpt_asks_at_prefix_p_what_comes_next_or_something_shown_never_what_comes_later():
    following = []
    for seed in range(20):
        stub, window = Stub("transition", optimal), encoded((12,) * 6, scattered=[True] * 3 + [False] * 3)
        loss_of("dpt", stub, window, seed, num_queries=4)
        shown, asked = stub.context[0].numpy(), stub.query.numpy()
        for b in range(6):
            for query, prefix in zip(asked[b], stub.prefixes.tolist(), strict=True):
                assert query in shown[b, : prefix + 1]
                following.append(query == shown[b, prefix])
    assert 0.5 < np.mean(following) < 0.8


def test_dpt_asks_for_every_shown_observation_now_and_then():
    rng = np.random.default_rng(0)
    draws = np.stack([asked_observations(np.arange(LENGTH), rng) for _ in range(2000)])
    for prefix in range(LENGTH):
        counts = np.bincount(draws[:, prefix], minlength=LENGTH) / 2000
        others = 0.5 / (prefix + 1)
        np.testing.assert_allclose(counts[:prefix], others, atol=0.05)
        assert counts[prefix] == pytest.approx(0.5 + others, abs=0.05) and not counts[prefix + 1 :].any()


def test_dpt_trains_all_prefixes_from_the_empty_one_or_a_random_subset():
    drawn = []
    for num_queries, expected in ((0, LENGTH), (LENGTH, LENGTH), (99, LENGTH), (4, 4), (1, 1)):
        for seed in range(40):
            stub = Stub("transition", optimal)
            output = loss_of("dpt", stub, encoded(), seed, num_queries=num_queries)
            prefixes = stub.prefixes.tolist()
            assert prefixes == sorted(set(prefixes)) and set(prefixes) <= set(range(LENGTH))
            assert len(prefixes) == expected == stub.query.shape[1]
            assert output.accuracy_by_position.isfinite().nonzero()[:, 0].tolist() == prefixes
            drawn += prefixes if num_queries == 1 else []
    assert {0, LENGTH - 1} <= set(drawn) and len(set(drawn)) > 8


def test_dpt_shuffles_scattered_windows_only_and_padding_stays_last():
    window = encoded((12, 12, 7, 7), scattered=[True, False, True, False])
    first, second = (shuffled_order(window, np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first[[1, 3]], np.tile(np.arange(12), (2, 1)))
    for b, length in ((0, 12), (2, 7)):
        assert sorted(first[b]) == list(range(12)) and sorted(first[b, :length]) == list(range(length))
        assert (first[b, :length] != np.arange(length)).any() and (first[b] != second[b]).any()


def test_dpt_shuffles_every_window_in_an_order_of_its_own_all_equally_likely():
    window = cut(encoded((3,) * 6000, scattered=True), 3)
    order = shuffled_order(window, np.random.default_rng(0))
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == 6 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@torch.no_grad()
def test_dpt_trains_the_same_whether_or_not_it_is_training():
    policy = small_policy("step")
    assert loss_of("dpt", policy, encoded()).loss == loss_of("dpt", policy, encoded(), train=False).loss


def test_dpt_without_optimal_actions_is_refused():
    with pytest.raises(UserError, match="DPT needs optimal actions"):
        loss_of("dpt", Stub("step", optimal), replace(encoded(), optimal_action=None))


# AD


@pytest.mark.parametrize("name", ["ad", "dt"])
def test_what_the_source_meant_is_the_label_where_that_is_known_and_wanted(name):
    known, unknown = encoded((12, 5)), replace(encoded((12, 5)), target_action=None)
    for window, intended_labels, label in (
        (known, True, intended),
        (known, False, executed),
        (unknown, True, executed),
    ):
        for answer in (executed, intended, optimal):
            output = loss_of(name, Stub("step", answer), window, intended_labels=intended_labels)
            assert output.metrics["accuracy"] == (answer is label) and (output.loss == 0) == (answer is label)


def test_ad_counts_no_loss_on_the_first_episode_of_a_window_that_starts_mid_history():
    wrong_at_first = Stub("step", lambda o: torch.where(o % 100 < 4, executed(o), intended(o)))
    middle = loss_of("ad", wrong_at_first, encoded(start=[12, 4, 8]))
    assert middle.loss == 0 and middle.metrics["accuracy"] == 1
    np.testing.assert_array_equal(middle.accuracy_by_position, [np.nan] * 4 + [1] * 8)
    beginning = loss_of("ad", wrong_at_first, encoded(start=0))
    np.testing.assert_array_equal(beginning.accuracy_by_position, [0] * 4 + [1] * 8)
    mixed = loss_of("ad", wrong_at_first, encoded(start=[0, 4, 0]))
    assert mixed.metrics["accuracy"].item() == pytest.approx(24 / 32)
    np.testing.assert_array_equal(mixed.accuracy_by_position, [0] * 4 + [1] * 8)


@pytest.mark.parametrize("horizon, episodic", [(7, False), (4, True)], ids=["less than two episodes", "episodic"])
def test_ad_counts_every_step_where_no_window_starts_with_an_episode_that_is_only_read(horizon, episodic):
    stub = Stub("step", intended, episodic=episodic)
    stub.spec.horizon = horizon
    output = loss_of("ad", stub, encoded(start=[12, 4, 8]))
    np.testing.assert_array_equal(output.accuracy_by_position, [1] * 12)


def test_ad_hides_masked_tokens_and_counts_none_of_them():
    stub, window = Stub("step", intended), encoded((12,) * 7)
    loss_of("ad", stub, window, token_mask=0.4)
    assert stub.hidden is not None
    hidden = stub.hidden.numpy()
    assert hidden.shape == (7, 12) and 0.2 < hidden.mean() < 0.6
    wrong = np.where(hidden, executed(window.observation), intended(window.observation))
    only_masked_wrong = loss_of("ad", stub, replace(window, target_action=wrong), token_mask=0.4)
    assert only_masked_wrong.loss == 0 and only_masked_wrong.metrics["accuracy"] == 1
    np.testing.assert_array_equal(only_masked_wrong.accuracy_by_position.isfinite(), ~hidden.all(0))
    for position in np.argwhere(~hidden)[:5]:
        wrong = intended(window.observation)
        wrong[tuple(position)] += 1
        assert loss_of("ad", stub, replace(window, target_action=wrong), token_mask=0.4).metrics["accuracy"] < 1


@torch.no_grad()
def test_ad_sees_nothing_of_a_masked_token():
    policy, stub, window = small_policy("step"), Stub("step", intended), encoded()
    loss_of("ad", stub, window, token_mask=0.4)
    assert stub.hidden is not None
    hidden = stub.hidden.numpy()
    changed = replace(window, observation=np.where(hidden, 7, window.observation).astype(np.uint16))
    before, after = (loss_of("ad", policy, w, token_mask=0.4).loss for w in (window, changed))
    assert before == after != loss_of("ad", policy, changed).loss


def test_ad_draws_a_new_mask_at_each_step():
    masks = []
    for seed in (0, 0, 1):
        stub = Stub("step", intended)
        loss_of("ad", stub, encoded(), seed, token_mask=0.5)
        masks.append(stub.hidden)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@torch.no_grad()
def test_ad_smooths_labels_as_by_hand():
    policy, window = small_policy("step"), encoded()
    plain, smoothed = (loss_of("ad", policy, window, label_smoothing=share) for share in (0.0, 0.3))
    log_probs = torch.log_softmax(step_window(policy, window), -1)
    torch.testing.assert_close(smoothed.loss, 0.7 * plain.loss - 0.3 * log_probs.mean())
    assert smoothed.metrics == plain.metrics


@torch.no_grad()
def test_ad_neither_masks_nor_smooths_when_it_is_not_training():
    policy, stub = small_policy("step"), Stub("step", intended)
    options: dict[str, Any] = {"token_mask": 0.5, "label_smoothing": 0.3}
    loss_of("ad", stub, encoded(), train=False, **options)
    assert stub.hidden is None
    measured = loss_of("ad", policy, encoded(), train=False, **options).loss
    assert measured == loss_of("ad", policy, encoded()).loss != loss_of("ad", policy, encoded(), **options).loss


# contradictions


@pytest.mark.parametrize(
    "name, model, options, words",
    [
        ("ad", {"layout": "transition", "rotary": False}, {}, "ad needs model.layout step, not transition"),
        ("ad", {"window": 7}, {}, "model.window 7 is shorter than two episodes .* at least 8"),
        ("dpt", {}, {"start_fraction": 0.7}, "start_fraction 0.7 .* set it to 1"),
        ("dpt", {}, {"keep_every": 2}, "keep_every 2 is an option of AD, .* set it to 1"),
        ("dpt", {}, {"token_mask": 0.1}, "token_mask 0.1 is an option of AD, .* set it to 0"),
        ("ad", {}, {"search_return": 3.0}, "search_return is an option of DT, not of AD"),
        ("dt", {"episodic": True, "return_to_go": "total", "rate_step": 0.5}, {}, "rate_step 0.5 rounds rates"),
        ("dt", {"episodic": True, "return_to_go": "rate", "rate_step": float("nan")}, {}, "a number of at least 0"),
        ("dt", {"episodic": True, "return_to_go": "rate"}, {"apart": 0.5}, "apart without a memory"),
        ("ad", {}, {"apart": 0.5}, "apart is 0.5: expected a share .* 0 for all others"),
        (
            "dt",
            {
                "episodic": True,
                "return_to_go": "rate",
                "memory": MemoryConfig(k=1),
                "mixture": MixtureConfig(blocks=(0,)),
            },
            {"apart": 0.5},
            "hides what a task router reads",
        ),
        ("ad", {"window": 7}, {"short_window": True, "keep_every": 2}, "keep_every 2 joins whole episodes"),
        ("dpt", {}, {"short_window": True}, "short_window True is an option of AD"),
        ("dpt", {}, {"label_smoothing": 0.1}, "label_smoothing 0.1 is no option of DPT: set it to 0"),
        ("dpt", {"layout": "transition"}, {}, "transition has no positions: set model.rotary to False"),
        ("ad", {"plans": True}, {}, "model.plans is for objective dpt in layout step"),
        ("dpt", {}, {"told_by": 1.0}, "told_by 1.0 says when plans .* no longer needed: set model.plans to True"),
        (
            "dpt",
            {"layout": "transition", "rotary": False, "interleaved": True},
            {},
            "are options of model.layout step",
        ),
        ("icee", {}, {}, "icee and model.return_to_go predicted belong together, not icee and off"),
        ("ad", {"return_to_go": "predicted"}, {}, "belong together, not ad and predicted"),
        ("icee", {"return_to_go": "predicted", "window": 7}, {}, "shorter than two episodes .* ICEE .* at least 8"),
        ("icee", {"return_to_go": "predicted", "return_bins": 1}, {}, "return_bins 1 .* at least 2 values"),
        ("icee", {"return_to_go": "predicted", "episodic": True}, {}, "reads whole lives, without a memory"),
        ("ad", {"cross_episode": "equals"}, {}, "cross_episode equals is about returns that a policy predicts"),
        ("icee", {"return_to_go": "predicted"}, {"label_smoothing": 0.1}, "is no option of ICEE: set it to 0"),
        ("icee", {"return_to_go": "predicted"}, {"most_weight": 0.0}, "most_weight is 0.0, expected more than 0"),
        (
            "icee",
            {"return_to_go": "predicted"},
            {"improving_weight": 0.0},
            "improving_weight is 0.0, expected a number",
        ),
        (
            "icee",
            {"return_to_go": "predicted"},
            {"estimate_behaviour": True, "symmetries": True},
            "is given tasks, which symmetries change",
        ),
        (
            "icee",
            {"return_to_go": "predicted"},
            {"habits_alone": True, "corrected": False},
            "serve objective.corrected",
        ),
        (
            "icee",
            {"return_to_go": "predicted"},
            {"habits_alone": True, "estimate_behaviour": True},
            "is given the task and habits_alone is not: set one",
        ),
        ("ad", {}, {"habits_alone": True}, "are options of ICEE, not of AD"),
        ("dpt", {}, {"estimate_behaviour": True}, "are options of ICEE, not of DPT"),
        ("ad", {}, {"improving_weight": 2.0}, "are options of ICEE, not of AD"),
    ],
)
def test_contradictions_are_refused(name, model, options, words):
    objective = ObjectiveConfig(name, **{"start_fraction": 1.0, **options})
    with pytest.raises(UserError, match=words):
        check_objective(objective, ModelConfig(**model), FamilySpec("toy", Discrete(NUM), Discrete(NUM), 4))


@every_objective
def test_fitting_options_are_accepted(name, layout):
    conditioned = name == "dt"
    model = ModelConfig(
        layout=layout,
        window=8,
        rotary=layout == "step",
        episodic=conditioned,
        return_to_go={"dt": "total", "icee": "predicted"}.get(name, "off"),  # type: ignore[arg-type]
    )
    check_objective(ObjectiveConfig(name, start_fraction=1.0), model, FamilySpec("toy", Discrete(2), Discrete(2), 4))


@pytest.mark.parametrize("layout", ["step", "transition"])
def test_dpt_trains_prefixes_of_privileged_sources_only_after_a_reward(layout):
    window = encoded((LENGTH, LENGTH))
    reward = np.zeros((2, LENGTH), np.float32)
    reward[:, 4] = 1
    window = replace(window, reward=reward, source=np.array([0, 1]))
    known = {}
    for privileged in ((), (1,), (0, 1)):
        output = loss_of("dpt", Stub(layout, executed), window, privileged_sources=privileged)
        known[privileged] = output.accuracy_by_position.isfinite().nonzero()[:, 0].tolist()
    assert known[()] == known[(1,)] == list(range(LENGTH))
    assert known[(0, 1)] == list(range(5, LENGTH))  # the reward of step 4 is shown from prefix 5 on


# plans


def test_plans_count_where_they_begin_where_they_are_the_tasks_own_and_once_all_is_told():
    window = encoded((LENGTH, LENGTH))
    plan, reward = np.zeros((2, LENGTH), np.uint8), np.zeros((2, LENGTH), np.float32)
    plan[:, [0, 3, 8]], plan[:, 4:6] = PLAN_BEGINS, PLAN_OF_TASK
    reward[0, 9] = 1
    earned, _ = returns_around(reward, window.episode)
    window = replace(window, plan=plan, reward=reward, episode_return=earned)
    stub = Stub("step", optimal, plans=True)
    for told_by, expected in ((0.0, [0, 3, 4, 5, 8]), (1.0, [0, 3, 4, 5, 8, 10, 11])):
        output = loss_of("dpt", stub, rows(window, [0]), told_by=told_by)
        assert output.accuracy_by_position.isfinite().nonzero()[:, 0].tolist() == expected
        assert output.metrics["accuracy"] == 1
    begins = stub.previous.begins
    assert begins.nonzero()[:, 1].tolist() == [0, 3, 8]


def test_where_every_step_begins_a_plan_the_loss_is_dpts_own():
    window = encoded((LENGTH, 7))
    policy = small_policy("step", plans=True)
    always = replace(window, plan=np.full(window.valid.shape, PLAN_BEGINS, np.uint8))
    plain = small_policy("step")
    shared = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("tokens.plan.")}
    flag = policy.tokens.plan.weight[1]  # what it adds to every token
    plain.load_state_dict({**shared, "tokens.kind.weight": shared["tokens.kind.weight"] + flag})
    torch.testing.assert_close(loss_of("dpt", policy, always).loss, loss_of("dpt", plain, window).loss)
    goes_on = np.where(np.arange(LENGTH) % 2, PLAN_OF_TASK, PLAN_BEGINS) * np.ones((2, 1), int)  # the same steps count
    goes_on = replace(window, plan=goes_on.astype(np.uint8))
    assert abs(loss_of("dpt", policy, goes_on).loss - loss_of("dpt", policy, always).loss) > 1e-3


def test_plans_and_histories_of_plans_belong_together():
    window = encoded((LENGTH,))
    with pytest.raises(
        UserError, match="learns from histories of plans, which these are not: collect from source plans"
    ):
        loss_of("dpt", small_policy("step", plans=True), window)
    planned = replace(window, plan=np.full(window.valid.shape, PLAN_BEGINS, np.uint8))
    for layout in ("step", "transition"):
        with pytest.raises(UserError, match=r"the policy is not told where they begin: set model\.plans to True"):
            loss_of("dpt", small_policy(layout), planned)


# ICEE


def icee_policy(**model):
    return small_policy("step", **MODELS["icee"] | model)


def test_icee_weights_actions_by_how_improbable_the_source_made_them():
    policy, window = icee_policy(), encoded((LENGTH, LENGTH))
    probable = np.full((2, LENGTH), np.log(1 / NUM), np.float32)
    uniform = replace(window, behaviour_log_prob=probable)
    plain, same = loss_of("icee", policy, window), loss_of("icee", policy, uniform, corrected=True)
    torch.testing.assert_close(plain.loss, same.loss)  # of a uniform source nothing is corrected
    rare = replace(window, behaviour_log_prob=probable - np.log([[4.0], [1.0]]).astype(np.float32))
    first, second = (loss_of("icee", policy, rows(window, [i])) for i in (0, 1))
    actions = [out.loss - out.metrics["return_loss"] for out in (first, second)]
    weighted = loss_of("icee", policy, rare, corrected=True)
    torch.testing.assert_close(weighted.loss - weighted.metrics["return_loss"], (4 * actions[0] + actions[1]) / 2)
    assert weighted.metrics["effective_sample"] == pytest.approx(25 / 34)
    cut_off = loss_of("icee", policy, rare, corrected=True, most_weight=2.0)
    torch.testing.assert_close(cut_off.loss - cut_off.metrics["return_loss"], (2 * actions[0] + actions[1]) / 2)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_icee_learns_no_action_of_an_episode_that_has_earned_all_it_can(low):
    """Unless it can lose it again."""
    policy, window = icee_policy(return_low=low, return_high=40.0), encoded((LENGTH,))
    told = np.linspace(-8, -6, LENGTH, dtype=np.float32)[None]  # how probable actions were
    over = np.arange(LENGTH)[None] >= 9  # the last steps of the last episode
    window = replace(
        window,
        behaviour_log_prob=told,
        episode_return=np.where(over, np.float32(40), window.episode_return),
        return_to_go=np.where(over, np.float32(0), window.return_to_go),
    )
    whole, part = (loss_of("icee", policy, w, corrected=True, improving_weight=3.0) for w in (window, cut(window, 9)))
    of_actions = [out.loss - out.metrics["return_loss"] for out in (whole, part)]
    alike = [
        torch.allclose(of_actions[0], of_actions[1]),
        whole.metrics["effective_sample"].item() == pytest.approx(part.metrics["effective_sample"].item()),
    ]
    assert alike == [low == 0] * 2


@pytest.mark.parametrize("told", ["return", "improves"])
@torch.no_grad()
def test_what_an_episode_brings_is_seen_by_no_prediction_and_by_the_action_of_its_step_alone(told):
    policy, window = icee_policy(), encoded((LENGTH,))
    inputs = step_inputs(policy, window)
    aims = {"return": torch.zeros(1, LENGTH), "improves": torch.zeros(1, LENGTH, dtype=torch.bool)}
    action, returns = policy.window_and_returns(*inputs, *aims.values())
    aims[told][:, 5] = 10
    action_then, returns_then = policy.window_and_returns(*inputs, *aims.values())
    torch.testing.assert_close(returns_then, returns)
    assert (action_then != action).any(-1)[0].nonzero().flatten().tolist() == [5]


def test_an_episode_improves_by_the_return_that_a_policy_can_go_for():
    """With values 10 apart, one that earns 21 teaches what to do for 20: no more than the 20 of the episode before it."""
    policy: Any = icee_policy(return_bins=5)
    window = encoded((LENGTH,))
    reward = np.zeros((1, LENGTH), np.float32)
    reward[0, [3, 7, 11]] = 20, 21, 26
    earned, to_come = returns_around(reward, window.episode)
    read, told = policy.window_and_returns, []

    def spy(*inputs):
        told[:] = inputs[-2:]
        return read(*inputs)

    policy.window_and_returns = spy
    loss_of("icee", policy, replace(window, reward=reward, episode_return=earned, return_to_go=to_come))
    assert told[0][0].tolist() == [20.0] * 8 + [30.0] * 4
    assert told[1][0].tolist() == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    "low, high, earns, gains",
    [
        (0.0, 40.0, [[0, 2, 5], [0, 1, 0]], [[0, 2 / 40, 3 / 40], [0, 1 / 40, 0]]),
        (-40.0, 40.0, [[-8, 2, 5], [-8, 1, 0]], [[0, 2 / 40, 3 / 40], [0, 1 / 40, 0]]),  # from 0 on,
        (-40.0, 0.0, [[-8, -3, -5], [-8, -9, 0]], [[0.8, 5 / 40, 0], [0.8, 0, 0.2]]),  # unless nothing is above it
    ],
)
def test_episodes_count_by_how_much_they_beat_all_before_them_where_so_asked(low, high, earns, gains):
    policy: Any = icee_policy(return_low=low, return_high=high)
    window = encoded((LENGTH, 10))
    reward = np.zeros((2, LENGTH), np.float32)
    reward[:, [3, 7, 9]] = earns  # episodes of four steps, in the second window padding behind the tenth
    earned, to_come = returns_around(reward, window.episode)
    correct = np.tile([1.0, 3.0], LENGTH // 2)  # weights of so improbable actions
    improbable = np.log(1 / NUM / correct).astype(np.float32)
    told = {"reward": reward, "episode_return": earned, "return_to_go": to_come}
    window = replace(window, **told, behaviour_log_prob=np.tile(improbable, (2, 1)))
    read, outputs = policy.window_and_returns, []
    policy.window_and_returns = lambda *inputs: outputs.append(read(*inputs)) or outputs[-1]
    for weight in (1.0, 4.0):
        output = loss_of("icee", policy, window, corrected=True, improving_weight=weight)
        with torch.no_grad():
            losses = policy.head.loss(outputs[-1][0], torch.as_tensor(window.action))
        emphasis = np.repeat(1 + (weight - 1) * np.array(gains), 4, 1)
        emphasis /= emphasis[window.valid].mean()
        expected = (losses * torch.as_tensor(emphasis * correct))[torch.as_tensor(window.valid)].mean()
        of_action = (output.loss - output.metrics["return_loss"]).double()
        torch.testing.assert_close(of_action, expected, rtol=1e-5, atol=1e-6)
        kept = (emphasis * correct)[window.valid]
        assert output.metrics["effective_sample"] == pytest.approx(kept.sum() ** 2 / (kept**2).sum() / len(kept))


def test_which_episodes_improve():
    total = np.repeat([[0, 0, 2, 1, 2, 3]], 2, 1).reshape(1, -1).astype(np.float32)
    best = best_before(total, np.tile([0, 1], 6)[None])
    assert best[0, ::2].tolist() == [-np.inf, 0, 0, 2, 2, 2]
    beats, equals = (improving(total, best, rule)[0, ::2].tolist() for rule in ("beats", "equals"))
    assert beats == [True, False, True, False, False, True]
    assert equals == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    "log_prob, message",
    [
        (None, "which these histories do not tell: set objective.estimate_behaviour"),
        (np.nan, "which these histories do not tell: set objective.estimate_behaviour"),
        (-np.inf, "were impossible"),
    ],
)
def test_icee_refuses_histories_that_it_cannot_correct(log_prob, message):
    window = encoded((LENGTH,))
    known = None if log_prob is None else np.full((1, LENGTH), log_prob, np.float32)
    with pytest.raises(UserError, match=message):
        loss_of("icee", icee_policy(), replace(window, behaviour_log_prob=known), corrected=True)


def test_icee_refuses_returns_that_it_cannot_predict():
    with pytest.raises(UserError, match=r"bring returns from .* predicts 0 to 0.001: set model.return_low"):
        loss_of("icee", icee_policy(return_high=0.001), encoded((LENGTH,)))


def test_behaviour_is_estimated_where_histories_do_not_tell_it(tmp_path):
    """Of episodes with noise of their own it finds the probability that an action has over all of them."""
    source = SourceConfig("graded", {"low": 0.5, "high": 0.5, "twice": 3})
    recipe = replace(smoke(), collect=CollectConfig((source,), num_histories=40, steps_per_history=150))
    store = collect(recipe, tmp_path / "data", progress=False)
    window = WindowSampler(store, 32, seed=1).batch(0, 64)
    told = window.behaviour_log_prob
    assert told is not None
    model = estimate_behaviour(store, 0, given_task=True, most=np.inf, progress=False)
    untold = replace(window, behaviour_log_prob=None)
    error = np.abs(np.exp(model.log_probs(untold)) - np.exp(told))[window.valid]
    assert error.mean() < 0.08 and np.unique(np.exp(told[window.valid]).round(4)).size == 4
    half = replace(window, behaviour_log_prob=np.where(np.arange(32) % 2, told, np.nan))
    np.testing.assert_array_equal(model.log_probs(half)[:, 1::2], told[:, 1::2])
    policy = make_policy(store.spec, ModelConfig(window=32, width=16, num_layers=1, num_heads=2, **MODELS["icee"]), 0)
    losses = []
    for behaviour, seen in ((None, window), (model, untold)):
        objective = InContextExploration(ObjectiveConfig("icee"), behaviour)
        losses.append(objective.loss(policy, seen, rng=np.random.default_rng(0), train=True).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_habits_are_what_the_source_does_whatever_the_task(tmp_path):
    """Half of the actions are noise that prefers one of five, the others lead to goals all over the room; what histories tell is not asked."""
    source = SourceConfig("graded", {"low": 0.5, "high": 0.5, "twice": 3})
    recipe = replace(smoke(), collect=CollectConfig((source,), num_histories=200, steps_per_history=150))
    store = collect(recipe, tmp_path / "data", progress=False)
    window = WindowSampler(store, 32, seed=1).batch(0, 256)
    habits = np.exp(estimate_behaviour(store, 0, given_task=False, most=np.inf, progress=False).log_probs(window))
    places = np.asarray(window.observation) @ [100, 1]
    for place in np.unique(places[window.valid]):
        here = window.valid & (places == place)
        for action in range(5):
            taken = here & (window.action == action)
            if here.sum() >= 300 and taken.any():
                assert habits[taken].mean() == pytest.approx(taken.sum() / here.sum(), abs=0.12)
                assert np.ptp(habits[taken]) < 1e-5  # of whatever task


def test_what_follows_the_last_reward_is_no_habit(tmp_path):
    """An optimal policy stays where it was paid, and does so nowhere before."""
    once = replace(smoke().family, options={**smoke().family.options, "reward": "once"})
    collection = CollectConfig((SourceConfig("optimal"),), num_histories=100, steps_per_history=150)
    store = collect(replace(smoke(), family=once, collect=collection), tmp_path / "data", progress=False)
    window = WindowSampler(store, 25, seed=1).batch(0, 64)
    stay = replace(window, action=np.full_like(window.action, 4))
    for most, stays in ((np.inf, True), (1.0, False)):
        model = estimate_behaviour(store, 0, given_task=False, most=most, progress=False)
        assert bool(np.exp(model.log_probs(stay))[window.valid].mean() > 0.3) is stays


def test_habits_in_mirrors_prefer_no_direction(tmp_path):
    source = SourceConfig("graded", {"low": 0.5, "high": 0.5, "twice": 3})
    recipe = replace(smoke(), collect=CollectConfig((source,), num_histories=100, steps_per_history=150))
    store = collect(recipe, tmp_path / "data", progress=False)
    everywhere = np.argwhere(np.ones((5, 5)))[None].astype(np.uint8)
    window = replace(WindowSampler(store, 25, seed=1).batch(0, 1), observation=everywhere)
    for images, apart in (((), True), (DarkRoom(width=5, height=5).images(), False)):
        model = estimate_behaviour(store, 0, given_task=False, most=np.inf, symmetries=images, progress=False)
        moves = [np.exp(model.log_probs(replace(window, action=np.full((1, 25), move)))).mean() for move in range(4)]
        assert bool(np.ptp(moves) > 0.05) is apart, moves


def test_a_share_of_dts_training_windows_has_its_steps_apart_and_no_other_window():
    policy = small_policy("step", episodic=True, return_to_go="total")
    window = rows(encoded((4, 4, 4)), np.arange(8) % 3)
    plain, apart = loss_of("dt", policy, window), loss_of("dt", policy, window, apart=1.0)
    whole = [step_window(policy, window, apart=torch.full((8,), chosen)) for chosen in (False, True)]
    labels, counted = torch.as_tensor(window.target_action).long(), torch.as_tensor(window.valid)
    for output, expected in zip((plain, apart), whole, strict=True):
        torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(expected[counted], labels[counted]))
    assert loss_of("dt", policy, window, apart=1.0, train=False).loss == plain.loss
    some = [loss_of("dt", policy, rows(window, [i]), apart=0.5, seed=i).loss for i in range(8)]
    alone = [[loss_of("dt", policy, rows(window, [i]), apart=a).loss for i in range(8)] for a in (0.0, 1.0)]
    drawn = [some[i] == alone[1][i] for i in range(8)]
    assert 0 < sum(drawn) < 8 and all(drawn[i] or some[i] == alone[0][i] for i in range(8))
