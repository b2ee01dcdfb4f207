"""The in-context agent: what it computes through its cache is what the training pass computes on the window that it holds."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiDiscrete

from icrl.config import ModelConfig
from icrl.data.sampling import Window, returns_around
from icrl.files import read_arrays, write_arrays
from icrl.in_context import InContextAgent
from icrl.interfaces import PLAN_BEGINS, ActionRule, FamilySpec, PlanRule, Step, UserError
from icrl.models.policy import make_policy
from icrl.objectives.base import step_inputs, step_window
from icrl.seeding import LaneStreams

HORIZON = 4


def make_agent(
    layout: Literal["step", "transition"] = "step",
    window=10,
    greedy=False,
    append: Literal["step", "episode"] = "step",
    target_return: float | None = None,
    search_return: float = 0.0,
    **options,
):
    spec = FamilySpec("toy", MultiDiscrete([5, 5]), Discrete(3), HORIZON)
    config = ModelConfig(
        layout=layout, window=window, width=16, num_layers=2, num_heads=2, rotary=layout == "step", **options
    )
    policy = make_policy(spec, config, 0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return InContextAgent(
        policy,
        seed=1,
        rule=ActionRule(greedy),
        append=append,
        target_return=target_return,
        search_return=search_return,
    )


class Script:
    """A fixed life per lane: random observations and rewards, episodes that end after 2 to 4 steps, differently in each lane."""

    def __init__(self, lanes, length, seed=0):
        rng = np.random.default_rng(seed)
        self.observation = rng.integers(0, 5, (length + 1, lanes, 2))
        self.reward = rng.random((length, lanes)).astype(np.float32)
        self.ended = np.zeros((length, lanes), bool)
        for lane in range(lanes):
            ends = np.cumsum(rng.integers(2, HORIZON + 1, length))
            self.ended[ends[ends < length], lane] = True

    def step(self, t, action):
        nothing = np.zeros_like(self.ended[t])
        return Step(self.observation[t], action, self.reward[t], self.ended[t], nothing, self.observation[t + 1])

    def linger(self):
        """Every fourth step shows and pays what the one before it did."""
        for column in (self.observation, self.reward):
            column[3::4] = column[2:-1:4]

    def after(self, t):
        """What is left of the script from step t on."""
        rest = Script(0, 0)
        rest.observation, rest.reward, rest.ended = self.observation[t:], self.reward[t:], self.ended[t:]
        return rest


def live(agent, script, length, reset_before=None):
    """Act and observe; yields t and the head parameters that the actions were drawn from.

    ``reset_before`` = {t: lanes that are reset before step t}.
    """
    outputs = []
    choose = agent.policy.head.choose

    def spy(params, *rest):
        outputs.append(params.clone())
        return choose(params, *rest)

    agent.policy.head.choose = spy
    for t in range(length):
        if reset_before and t in reset_before:
            agent.reset(reset_before[t])
        decision = agent.act(script.observation[t])
        yield t, outputs[-1]
        agent.observe(script.step(t, decision.action))


def as_window(agent, lane, observation):
    """What the agent holds of a lane, plus the current observation, as a training window of one history."""
    context, n = agent.context, int(agent.context.lengths[lane])
    columns = context.columns
    take = lambda name: columns[name][lane, :n] if columns else np.zeros((0,))  # noqa: E731
    ended = take("ended").astype(bool)
    episode = np.concatenate([[0], np.cumsum(ended)])
    starts = np.concatenate([[0], np.flatnonzero(ended) + 1])
    step = np.arange(n + 1) - starts[episode]
    pad = lambda a, last: np.concatenate([a.reshape(n, *np.shape(last)), np.asarray(last)[None]])[None]  # noqa: E731
    reward = pad(take("reward"), 0).astype(np.float32)
    earned, to_come = returns_around(reward, episode[None])
    plan = None if agent.plans is None else pad(take("begins"), agent.plans.begins[lane]).astype(np.uint8)
    return Window(
        pad(take("observation"), observation), pad(take("action"), 0).astype(int), reward,
        pad(ended, False), np.zeros((1, n + 1), bool), pad(take("next_observation"), observation), None, None, None, plan,
        episode[None], step[None], earned, to_come, np.ones((1, n + 1), bool), np.zeros(1, int), np.zeros(1, int), np.zeros(1, int),
        np.zeros(1, int), np.zeros(1, bool),
    )  # fmt: skip


@pytest.mark.parametrize("also", [(), ("episode_return", "previous_observation"), ("plans",)])
@torch.no_grad()
def test_cached_life_equals_the_full_pass_over_the_window_that_it_holds(also):
    given: Any = dict.fromkeys(also, True)
    agent, script = make_agent(**given), Script(3, 40)
    agent.reset(3)
    fullest = 0
    for t, output in live(agent, script, 40):
        for lane in range(3):
            window = as_window(agent, lane, script.observation[t, lane])
            expected = step_window(agent.policy, window)[0, -1]
            torch.testing.assert_close(output[lane], expected, rtol=1e-4, atol=1e-4)
            assert window.reward.shape[1] <= agent.policy.config.window
            if len(agent.context.columns):
                assert agent.context.lengths[lane] == 0 or window.episode_step[0, 0] == 0
            fullest = max(fullest, window.reward.shape[1])
    assert fullest == agent.policy.config.window


@pytest.mark.parametrize("rule", ["off", "beats"])
@torch.no_grad()
def test_a_policy_that_predicts_returns_acts_for_the_one_that_it_drew(rule):
    agent, script = (
        make_agent(return_to_go="predicted", return_bins=9, return_high=1.5, cross_episode=rule),
        Script(3, 40),
    )
    agent.reset(3)
    draw, drawn = agent._draw_return, []

    def spy(logits):
        drawn[:] = [logits, *draw(logits)]
        return drawn[1], drawn[2]

    agent._draw_return = spy
    improved = set()
    for t, output in live(agent, script, 40):
        for lane in range(3):
            window = as_window(agent, lane, script.observation[t, lane])
            totals = window.episode_return + window.reward
            finished = totals[:, :-1][window.terminated[:, :-1]]
            earned, to_go, improves = float(window.episode_return[0, -1]), drawn[1][lane], bool(drawn[2][lane])
            assert improves == (round(earned + float(to_go), 4) > round(float(max(finished, default=-np.inf)), 4))
            improved.add(improves)
            gone_for = torch.full((1, window.reward.shape[1]), float(to_go))
            told = torch.full(gone_for.shape, improves)
            expected = agent.policy.window_and_returns(*step_inputs(agent.policy, window), gone_for, told)
            for mine, full in zip((output, drawn[0]), expected, strict=True):
                torch.testing.assert_close(mine[lane], full[0, -1], rtol=1e-4, atol=1e-4)
    assert improved == {True, False}


@torch.no_grad()
def test_the_return_gone_for_is_drawn_from_the_tilted_prediction():
    agent = make_agent(return_to_go="predicted", return_low=-1.0, return_high=1.0, return_bins=3)
    agent.reset(4000)
    logits = torch.log(torch.tensor([0.5, 0.4, 0.1])).expand(4000, 3)
    for tilt, expected in ((0.0, [0.5, 0.4, 0.1]), (2.0, [0, 0.5, 0.5]), (1.0, [0, 2 / 3, 1 / 3])):
        agent.rule = ActionRule(tilt=tilt)
        drawn = agent._draw_return(logits)[0]
        np.testing.assert_allclose([(drawn == value).mean() for value in (-1, 0, 1)], expected, atol=0.03)
    hopeless = torch.tensor([0.0, -1e9, -1e9]).expand(4000, 3)
    assert (agent._draw_return(hopeless)[0] == -1).all()


@torch.no_grad()
def test_lanes_whose_windows_show_no_reward_have_a_tilt_of_their_own():
    agent = make_agent(return_to_go="predicted", return_bins=3, return_high=2.0)
    agent.rule = ActionRule(tilt=50.0, search_tilt=0.0)
    agent.reset(4000)
    script = Script(4000, 1)
    script.reward[0] = np.arange(4000) % 2
    agent.act(script.observation[0])
    agent.observe(script.step(0, np.zeros(4000, int)))
    drawn = agent._draw_return(torch.log(torch.tensor([0.5, 0.4, 0.1])).expand(4000, 3))[0]
    assert (drawn[1::2] == 2).all()
    np.testing.assert_allclose([(drawn[::2] == value).mean() for value in (0, 1, 2)], [0.5, 0.4, 0.1], atol=0.03)
    agent.context.forget(np.arange(4000))  # what was found, too
    drawn = agent._draw_return(torch.log(torch.tensor([0.5, 0.4, 0.1])).expand(4000, 3))[0]
    np.testing.assert_allclose([(drawn == value).mean() for value in (0, 1, 2)], [0.5, 0.4, 0.1], atol=0.03)
    agent.rule = ActionRule(tilt=50.0)
    assert (agent._draw_return(torch.zeros(4000, 3))[0] == 2).all()


@torch.no_grad()
def test_returns_gone_for_are_better_than_those_before_where_any_is_possible():
    agent = make_agent(return_to_go="predicted", return_high=2.0, return_bins=3, cross_episode="equals")
    agent.reset(4000)
    script = Script(4000, 3)
    script.ended[:] = [[False], [True], [False]]
    for t, earned in enumerate((0.5, 0.5, 1.0)):  # an episode that earned 1; now one that has earned 1 so far
        script.reward[t] = earned
        agent.act(script.observation[t])
        agent.observe(script.step(t, np.zeros(4000, int)))
    agent.rule = ActionRule(tilt=0.0)
    logits = torch.log(torch.tensor([0.5, 0.4, 0.1])).expand(4000, 3)

    def shares():
        values, improves = agent._draw_return(logits)
        assert np.unique(improves).tolist() == [agent.context.best()[0] == 1]
        return [(values == value).mean() for value in (0, 1, 2)]

    np.testing.assert_allclose(shares(), [0.5, 0.4, 0.1], atol=0.03)  # to earn 1 again will do
    agent.context.episode_return[:] = 0.0
    np.testing.assert_allclose(shares(), [0, 0.8, 0.2], atol=0.03)
    agent.context.columns["reward"][:, 1] = 4.0
    np.testing.assert_allclose(shares(), [0.5, 0.4, 0.1], atol=0.03)  # nothing comes near the best: any return will do
    agent.reset([7])
    assert np.isneginf(agent.context.best()).nonzero()[0].tolist() == [7]


def test_plans_begin_by_the_rule():
    """With an episode, by chance, after a while, or where the policy doubts them."""
    shares = {}
    for name, rule in (
        ("never", PlanRule(0, 0)),
        ("chance", PlanRule(0.5, 0)),
        ("length", PlanRule(0, 0, 2)),
        ("doubt", PlanRule(0, 0.3)),
        ("always doubt", PlanRule(0, 1.0)),
    ):
        agent, script, began = make_agent(plans=True), Script(3, 40), np.zeros((40, 3), bool)
        agent.rule = ActionRule(plans=rule)
        agent.reset(3)
        for t in range(40):
            decision = agent.act(script.observation[t])
            assert decision.plan is not None
            began[t] = decision.plan == PLAN_BEGINS
            agent.observe(script.step(t, decision.action))
        starts = np.concatenate([np.ones((1, 3), bool), script.ended[:39]])
        assert began[starts].all()
        shares[name] = began[~starts].mean()
        if name == "length":
            steps = np.arange(40)[:, None] - np.maximum.accumulate(np.where(starts, np.arange(40)[:, None], 0), 0)
            np.testing.assert_array_equal(began, steps % 2 == 0)
    assert shares["never"] == 0 and 0.35 < shares["chance"] < 0.65
    assert 0 < shares["doubt"] < 1 and shares["always doubt"] == 1


@pytest.mark.parametrize(
    "options",
    [{"plans": True}, {"return_to_go": "predicted", "return_high": 4.0, "return_bins": 5, "cross_episode": "equals"}],
)
def test_what_a_lane_does_does_not_depend_on_the_others(options):
    """Nor on how often they doubt: lanes 0 to 2 of six do what they do among three."""
    taken = {}
    for lanes in (3, 6):
        agent, script = make_agent(**options), Script(6, 40)
        agent.rule = ActionRule(plans=PlanRule(0.1, 0.4))
        agent.reset(lanes)
        taken[lanes] = []
        for t in range(40):
            decision = agent.act(script.observation[t][:lanes])
            taken[lanes].append(decision.action[:3])
            step = script.step(t, np.resize(decision.action, 6))
            agent.observe(Step(*(part[:lanes] for part in step)))
    np.testing.assert_array_equal(taken[3], taken[6])


@pytest.mark.parametrize(
    "options",
    [{"plans": True}, {"return_to_go": "predicted", "return_high": 4.0, "return_bins": 5, "cross_episode": "equals"}],
)
def test_plans_and_returns_go_on_in_a_saved_context_and_start_afresh_in_a_lane_that_is_reset(options, tmp_path):
    agent, again, script = make_agent(**options), make_agent(**options), Script(3, 40)
    agent.reset(3)
    for t in range(17):
        agent.observe(script.step(t, agent.act(script.observation[t]).action))
    agent.save_context(tmp_path / "context.npz")
    again.restore_context(tmp_path / "context.npz")
    for t in range(17, 30):
        one, other = (a.act(script.observation[t]) for a in (agent, again))
        np.testing.assert_array_equal(one.action, other.action)
        assert one.behaviour_log_prob is not None and other.behaviour_log_prob is not None
        np.testing.assert_allclose(one.behaviour_log_prob, other.behaviour_log_prob, rtol=1e-3, atol=1e-4)
        for a in (agent, again):
            a.observe(script.step(t, one.action))
    agent.reset([1])
    if agent.plans is not None:
        assert agent.act(script.observation[30]).plan[1] == PLAN_BEGINS  # type: ignore[index]
    with pytest.raises(UserError, match="was saved by an agent for"):
        make_agent().restore_context(tmp_path / "context.npz")


def test_asking_again_leaves_plans_as_they_were():
    agent, script = make_agent(plans=True), Script(3, 12)
    agent.rule = ActionRule(plans=PlanRule(0.0, 0.0))
    agent.reset(3)
    for t in range(12):
        for _ in range(2):
            decision = agent.act(script.observation[t])
            agent.action_probs(script.observation[t])
        starts = np.ones(3, bool) if t == 0 else script.ended[t - 1]
        np.testing.assert_array_equal(decision.plan == PLAN_BEGINS, starts)  # type: ignore[possibly-undefined]
        kept = [part.clone() for part in (agent.cache.keys, agent.cache.values)]
        agent.observe(script.step(t, decision.action))
        agent._reread(np.arange(3))
        for part, was in zip((agent.cache.keys, agent.cache.values), kept, strict=True):
            for lane, length in enumerate(agent.context.lengths.tolist()):
                torch.testing.assert_close(part[:, lane, :, :length], was[:, lane, :, :length], rtol=1e-4, atol=1e-4)


def test_what_was_observed_without_a_choice_is_read_whole():
    """Episodes that end without an act in between, of different lengths."""
    agent, other, script = make_agent(), make_agent(), Script(3, 9)
    agent.reset(3)
    for t in range(9):
        agent.observe(script.step(t, np.zeros(3, int)))
    other.reset(3)
    agent.act(script.observation[9])
    other.context = agent.context
    other._reread(np.arange(3))
    for lane, length in enumerate(agent.context.lengths.tolist()):
        torch.testing.assert_close(agent.cache.keys[:, lane, :, :length], other.cache.keys[:, lane, :, :length])


def test_a_policy_that_predicts_returns_has_no_probabilities():
    agent = make_agent(return_to_go="predicted")
    agent.reset(2)
    with pytest.raises(UserError, match="for a return that it draws"):
        agent.action_probs(np.zeros((2, 2), int))


@pytest.mark.parametrize("running", [False, True])
@torch.no_grad()
def test_a_policy_that_predicts_returns_takes_a_given_context_like_a_life(running):
    agent, given = (make_agent(return_to_go="predicted", cross_episode="equals") for _ in range(2))
    window = given_context(2, 6)
    ended = np.array([[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 1, 0]], bool)
    given.load_context(replace(window, terminated=ended), running=running)
    ended[:, -1] = not running
    agent.reset(2)
    for t in range(6):
        agent.act(window.observation[:, t])
        step = Step(*(getattr(window, name)[:, t] for name in Step._fields))
        agent.observe(step._replace(terminated=ended[:, t]))
    np.testing.assert_array_equal(agent.context.best(), given.context.best())
    np.testing.assert_array_equal(agent.context.episode_return, given.context.episode_return)
    agent.streams.counters[:] = given.streams.counters
    script = Script(2, 1)
    lived, loaded = (next(output for _, output in live(one, script, 1)) for one in (agent, given))
    torch.testing.assert_close(lived, loaded, rtol=1e-4, atol=1e-4)


def test_at_an_episodes_start_there_is_room_for_a_whole_one():
    agent, script = make_agent(), Script(3, 40)
    agent.reset(3)
    for t, _ in live(agent, script, 40):
        begins = agent.context.episode_step == 0
        assert (agent.context.lengths[begins] + HORIZON <= 10).all(), t


def test_a_window_shorter_than_an_episode_is_halved():
    agent = make_agent(window=4)
    agent.reset(1)
    lengths = []
    script = Script(1, 12)
    script.ended[:] = False
    for _ in live(agent, script, 12):
        lengths.append(int(agent.context.lengths[0]))
    assert lengths == [0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("exact_set", [False, True])
@pytest.mark.parametrize("append", ["step", "episode"])
def test_queries_answer_from_everything_lived_through(exact_set, append):
    """Or, where transitions are appended by episodes, from the episodes that ended."""
    agent, script = make_agent("transition", exact_set=exact_set, append=append), Script(3, 30)
    agent.reset(3)
    for t, output in live(agent, script, 30):
        for lane in range(3):
            running = int(agent.context.episode_step[lane]) if append == "episode" else 0
            n = int(agent.context.lengths[lane]) - running
            columns = agent.context.columns
            names = ("observation", "action", "reward", "next_observation")
            context = tuple(torch.as_tensor(columns[name][lane, :n][None]) for name in names) if columns else None
            if not context:
                continue
            query = torch.as_tensor(script.observation[t, lane][None, None])
            expected = agent.policy.query_window(context, query, torch.tensor([n]))[0, 0]
            torch.testing.assert_close(output[lane], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["step", "transition"])
def test_resetting_a_lane_equals_a_fresh_agent_and_leaves_the_others_alone(layout):
    script, (agent, same, fresh) = Script(3, 20), (make_agent(layout, greedy=True) for _ in range(3))
    agent.reset(3)
    same.reset(3)
    fresh.reset(3)
    outputs = [output for _, output in live(agent, script, 20, reset_before={7: [1]})]
    untouched = [output for _, output in live(same, script, 20)]
    new = [output for _, output in live(fresh, script.after(7), 13)]
    for t in range(20):
        torch.testing.assert_close(outputs[t][[0, 2]], untouched[t][[0, 2]], rtol=1e-4, atol=1e-4)
        expected = untouched[t][1] if t < 7 else new[t - 7][1]
        torch.testing.assert_close(outputs[t][1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layout", "append"), [("step", "step"), ("transition", "step"), ("transition", "episode")])
def test_a_saved_context_goes_on_as_if_never_interrupted(layout, append, tmp_path):
    script = Script(3, 30)
    agent, restored = (
        make_agent(layout, append=append, episode_return=layout == "step", previous_observation=layout == "step")
        for _ in range(2)
    )
    agent.reset(3)
    for t in range(15):
        agent.observe(script.step(t, agent.act(script.observation[t]).action))
    agent.save_context(tmp_path / "context.npz")
    restored.restore_context(tmp_path / "context.npz")
    for t in range(15, 30):
        first, second = agent.act(script.observation[t]), restored.act(script.observation[t])
        np.testing.assert_array_equal(first.action, second.action)
        agent.observe(script.step(t, first.action))
        restored.observe(script.step(t, second.action))


def given_context(lanes, length, seed=0):
    rng = np.random.default_rng(seed)
    zeros = np.zeros((lanes, length), int)
    return Window(
        rng.integers(0, 5, (lanes, length, 2)), rng.integers(0, 3, (lanes, length)), rng.random((lanes, length)).astype(np.float32),
        np.ones((lanes, length), bool), zeros > 0, rng.integers(0, 5, (lanes, length, 2)), None, None, None, None,
        np.tile(np.arange(length), (lanes, 1)), zeros, zeros.astype(np.float32), zeros.astype(np.float32), zeros == 0, np.arange(lanes), np.zeros(lanes, int), np.zeros(lanes, int),
        np.zeros(lanes, int), np.ones(lanes, bool),
    )  # fmt: skip


@torch.no_grad()
def test_a_loaded_context_is_fixed_and_is_what_the_query_sees():
    agent, window = make_agent("transition"), given_context(2, 6)
    agent.load_context(window)
    script = Script(2, 8)
    context = tuple(
        torch.as_tensor(a) for a in (window.observation, window.action, window.reward, window.next_observation)
    )
    for t, output in live(agent, script, 8):
        query = torch.as_tensor(script.observation[t][:, None])
        torch.testing.assert_close(
            output, agent.policy.query_window(context, query, torch.tensor([6]))[:, 0], rtol=1e-4, atol=1e-4
        )


def test_too_long_contexts_wrong_lanes_and_foreign_files_are_refused(tmp_path):
    agent = make_agent("transition")
    with pytest.raises(UserError, match="room for 10"):
        agent.load_context(given_context(2, 11))
    with pytest.raises(UserError, match="first"):
        make_agent().reset([0])
    with pytest.raises(UserError, match="layout transition"):
        make_agent(append="episode")
    with pytest.raises(UserError, match="streams are for 2"):
        InContextAgent(agent.policy, streams=LaneStreams(0, "x", lane_ids=2)).reset(3)
    (tmp_path / "foreign.npz").write_bytes(b"not a context")
    with pytest.raises(UserError, match="not a saved context"):
        agent.restore_context(tmp_path / "foreign.npz")


def test_masked_actions_are_never_taken():
    agent, script = make_agent(), Script(50, 10)
    agent.reset(50)
    mask = np.ones((50, 3), bool)
    mask[:, 1] = False
    for t in range(10):
        action = agent.act(script.observation[t], mask).action
        assert (action != 1).all()
        agent.observe(script.step(t, action))


@pytest.mark.parametrize("layout", ["step", "transition"])
def test_rewards_of_any_type_are_taken(layout):
    script, agent, same = Script(2, 6), make_agent(layout), make_agent(layout)
    agent.reset(2)
    same.reset(2)
    for t in range(6):
        step = script.step(t, agent.act(script.observation[t]).action)
        same.act(script.observation[t])
        agent.observe(step)
        same.observe(step._replace(reward=[float(r) for r in step.reward]))
    np.testing.assert_array_equal(agent.action_probs(script.observation[6]), same.action_probs(script.observation[6]))


@pytest.mark.parametrize(("layout", "window"), [("step", 6), ("step", 8), ("transition", 6), ("transition", 8)])
def test_a_short_window_keeps_something_at_every_episode(layout, window):
    """A window of less than two episodes must not be emptied whenever an episode begins."""
    agent, script = make_agent(layout, window=window), Script(2, 40)
    agent.reset(2)
    kept = []
    for t, _ in live(agent, script, 40):
        if t > window:
            kept.append(agent.context.lengths.min())
    assert min(kept) > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda agent, script: make_agent().act(script.observation[0]), "call reset"),
        (lambda agent, script: make_agent().save_context("context.npz"), "call reset"),
        (lambda agent, script: agent.act(script.observation[0][:1]), r"observation has shape \(1, 2\), expected \(2, 2\)"),
        (lambda agent, script: agent.act(script.observation[0, 0]), r"observation has shape \(2,\), expected \(2, 2\)"),
        (lambda agent, script: agent.act(script.observation[0] + 5), "values outside MultiDiscrete"),
        (lambda agent, script: agent.act(script.observation[0], np.ones((2, 2))), r"shape \(2, 2\) .* expected \(2, 3\)"),
        (lambda agent, script: agent.act(script.observation[0], np.zeros((2, 3))), "a True in every row"),
        (lambda agent, script: agent.observe(script.step(0, np.zeros(2))._replace(reward=np.array([0, np.nan]))), "finite"),
        (lambda agent, script: agent.observe(script.step(0, np.zeros(2))._replace(reward=np.zeros(1))), "each of 2 lanes"),
        (lambda agent, script: agent.observe(script.step(0, np.array([0, 3]))), "one of Discrete"),
        (lambda agent, script: agent.action_probs(script.observation[0] + 5), "values outside MultiDiscrete"),
        (lambda agent, script: agent.load_context(replace(given_context(2, 3), valid=np.zeros((2, 3), bool))), "padding"),
        (lambda agent, script: agent.load_context(replace(given_context(2, 3), action=np.full((2, 3), 7))), "one of Discrete"),
        (lambda agent, script: agent.save_context("nowhere/context.npz"), "does not exist"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    agent, script = make_agent(), Script(2, 4)
    agent.reset(2)
    with pytest.raises(UserError, match=words) as error:
        call(agent, script)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_only_a_saved_context_of_the_same_kind_is_restored(tmp_path):
    agent, file = make_agent(), tmp_path / "context"  # the name is taken as it is given
    agent.reset(2)
    agent.save_context(file)
    make_agent().restore_context(file)
    for other in (make_agent("transition"), make_agent(window=12)):
        with pytest.raises(UserError, match="saved by an agent for"):
            other.restore_context(file)
    content = file.read_bytes()
    np.savez(tmp_path / "foreign.npz", lengths=np.zeros(2))
    foreign = (tmp_path / "foreign.npz").read_bytes()
    for damaged in (b"", content[:100], foreign, b"\x93NUMPY"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a saved context"):
            agent.restore_context(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("counters"),
        lambda arrays: arrays.pop("columns/action"),
        lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("columns/")],
        lambda arrays: arrays.update({"columns/reward": arrays["columns/reward"][:2]}),
        lambda arrays: arrays.update(lengths=arrays["lengths"] + 10**6),
        lambda arrays: arrays.update(lengths=arrays["lengths"] - 10**6),
        lambda arrays: arrays.update(paid=arrays["paid"][:2]),
    ],
)
def test_a_damaged_context_is_one_line_and_leaves_the_agent_as_it_was(tmp_path, change):
    saving, agent, file = make_agent(), make_agent(), tmp_path / "context.npz"
    for one, lanes in ((saving, 3), (agent, 5)):
        one.reset(lanes)
        script = Script(lanes, 4)
        for t in range(4):
            one.observe(script.step(t, one.act(script.observation[t]).action))
    saving.save_context(file)
    arrays = read_arrays(file)
    change(arrays)
    write_arrays(file, arrays)
    with pytest.raises(UserError, match="is not a saved context"):
        agent.restore_context(file)
    assert agent.num_lanes == 5 and agent.context.lengths.tolist() == [4] * 5


def test_a_context_is_restored_into_an_agent_of_other_lanes_that_has_lived(tmp_path):
    saving, agent, file = make_agent(), make_agent(), tmp_path / "context.npz"
    scripts = {3: Script(3, 6), 5: Script(5, 6)}
    for one, lanes in ((saving, 3), (agent, 5)):
        one.reset(lanes)
        for t in range(4):
            one.observe(scripts[lanes].step(t, one.act(scripts[lanes].observation[t]).action))
    saving.save_context(file)
    agent.restore_context(file)
    for t in (4, 5):
        actions = [one.act(scripts[3].observation[t]).action for one in (saving, agent)]
        np.testing.assert_array_equal(actions[0], actions[1])
        for one in (saving, agent):
            one.observe(scripts[3].step(t, actions[0]))


@pytest.mark.parametrize("layout", ["step", "transition"])
def test_what_was_observed_counts_however_often_the_agent_was_asked(layout):
    script, agents = Script(2, 8), [make_agent(layout) for _ in range(3)]
    asked_once, asked_twice = agents[:2]
    for agent in agents:
        agent.reset(2)
    for t in range(3):
        step = script.step(t, asked_once.act(script.observation[t]).action)
        asked_twice.action_probs(script.observation[t])
        asked_twice.act(script.observation[t])
        for agent in agents:
            agent.observe(step)
    first, *others = (agent.action_probs(script.observation[3]) for agent in agents)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)


def test_an_episode_longer_than_the_horizon_is_cut_within():
    agent, script = make_agent(), Script(2, 30)
    script.ended[:] = False
    agent.reset(2)
    assert len(list(live(agent, script, 30))) == 30
