"""Stable-Baselines3: the history is what the environment saw and gave, probabilities are the policy's, runs repeat themselves."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy import without_flushing

from agents.collect import collect
from agents.recorder import HistoryRecorder
from agents.sb3 import LaneVecEnv, Prepared, RecorderCallback, encode, train
from agents.sb3_source import SB3
from envs.darkroom import DarkRoom
from icrl.config import CollectConfig, FamilyConfig, Recipe, SourceConfig
from icrl.interfaces import FamilySpec, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams

_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)
ARMS, BOX = Discrete(3, start=2), Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
HORIZON = 6


class Plane(gym.Env):
    """Actions move a point on a plane or a line; it pays a noisy 1, and ends by truncation at step 6 or, after large rewards, by termination.

    ``emitted`` keeps what it gave, in its own copies: observation, action, reward, terminated, truncated, next observation.
    """

    def __init__(self, action_space: gym.Space = ARMS):
        self.action_space, self.observation_space = action_space, Box(-100, 100, (2,), np.float32)
        self.emitted: list[tuple] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.age = self.np_random.normal(size=2).astype(np.float32), 0
        return self.at.copy(), {}

    def step(self, action):
        before, self.age = self.at.copy(), self.age + 1
        assert self.action_space.contains(action), action
        self.at = (self.at + np.asarray(action, np.float32) / 10).clip(-100, 100).astype(np.float32)
        reward = float(np.float32(1 + self.np_random.normal()))
        terminated = reward > 2.5
        outcome = (reward, terminated, self.age == HORIZON and not terminated)
        self.emitted.append((before, np.array(action), *outcome, self.at.copy()))
        return self.at.copy(), *outcome, {}


class OneLane(TaskVectorEnv):
    """A plane as the vector environment of a family."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, action_space: gym.Space = ARMS):
        self.single, self.num_envs = Plane(action_space), 1
        self.single_observation_space, self.single_action_space = self.single.observation_space, action_space
        self.observation_space = batch_space(self.single_observation_space, 1)
        self.action_space = batch_space(action_space, 1)

    def reset(self, *, seed=None, options=None):
        return self.single.reset(seed=seed)[0][None], {}

    def step(self, actions):
        following, reward, terminated, truncated, _ = self.single.step(actions[0])
        info = {}
        if terminated or truncated:
            info = {"final_obs": following[None], "_final_obs": np.ones(1, bool)}
            following = self.single.reset()[0]
        return following[None], np.array([reward]), np.array([terminated]), np.array([truncated]), info


def turns_of(options: SB3, num_steps: int, action_space: gym.Space = ARMS) -> tuple[list[Any], Plane, Any]:
    """Train on a plane; the turns, the environment, and the model."""
    env: Any = OneLane(action_space)
    turns: list[Any] = []
    model = train(options, LaneVecEnv(env, seed=1), 3, num_steps, turns.append)
    return turns, env.single, model


def check_emitted(steps, emitted):
    """Steps (one lane each) are exactly what an environment gave."""
    assert len(steps) == len(emitted)
    for step, given in zip(steps, emitted, strict=True):
        for here, there in zip(step, given, strict=True):
            np.testing.assert_array_equal(here, np.asarray(there, np.asarray(here).dtype))


SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 60, "batch_size": 30, "n_epochs": 1},
    "a2c": {"n_steps": 15},
    "dqn": {"learning_starts": 30, "buffer_size": 500},
    "sac": {"learning_starts": 30, "buffer_size": 500, "batch_size": 16},
}


@pytest.mark.parametrize("algorithm, space", [("ppo", ARMS), ("ppo", BOX), ("a2c", ARMS), ("dqn", ARMS), ("sac", BOX)])
def test_the_history_is_what_the_environment_saw_and_gave(algorithm, space):
    options = SB3(algorithm, observation="normalised", normalise_reward=True, **SMALL[algorithm])
    turns, env, _ = turns_of(options, 150, space)
    check_emitted([[value[0] for value in turn.step] for turn in turns], env.emitted)
    assert len(turns) >= 150 and sum(turn.step.truncated[0] for turn in turns) > 5
    assert any(turn.step.terminated[0] for turn in turns)
    for turn in turns:
        log_prob = turn.decision.behaviour_log_prob
        assert log_prob.shape == (1,) and log_prob.dtype == np.float32 and np.isfinite(log_prob).all()


def test_the_trap_is_there():
    """The library does change rewards at truncations in place, so the test above can fail; the recorded ones are the emitted."""
    turns, env, model = turns_of(SB3("ppo", **SMALL["ppo"]), 60)
    changed = model.rollout_buffer.rewards[:, 0] != [given[2] for given in env.emitted[:60]]
    truncated = np.array([turn.step.truncated[0] for turn in turns])
    assert truncated.any() and np.array_equal(changed, truncated)
    check_emitted([[value[0] for value in turn.step] for turn in turns], env.emitted)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_run_of_ones_own_is_recorded_beneath_its_wrappers(normalised):
    planes = [Plane(Discrete(3)) for _ in range(3)]
    env = DummyVecEnv([lambda plane=plane: Monitor(plane) for plane in planes])
    top = VecNormalize(env, clip_obs=0.1, clip_reward=0.1) if normalised else env
    model = PPO("MlpPolicy", top, n_steps=20, batch_size=60, n_epochs=1, device="cpu")
    recorder = HistoryRecorder(FamilySpec("plane", planes[0].observation_space, Discrete(3), HORIZON), num_lanes=3)
    model.learn(60)  # before anyone listens
    before = [len(plane.emitted) for plane in planes]
    turns = []
    callback = RecorderCallback(model, lambda turn: (turns.append(turn), recorder.add_turn(turn)))
    model.learn(120, callback=callback, reset_num_timesteps=False)
    model.learn(60, callback=callback, reset_num_timesteps=False)
    assert not normalised or model.env is top
    for lane, (plane, history) in enumerate(zip(planes, recorder.histories(task=0), strict=True)):
        del plane.emitted[: before[lane]]
        assert [turn.step.reward[lane] for turn in turns] == history.reward.tolist()
        columns = (history.observation, history.action, history.reward, history.terminated, history.truncated)
        check_emitted(list(zip(*columns, history.next_observation, strict=True)), plane.emitted)
        assert history.num_transitions == 60 and history.behaviour_log_prob is not None
        assert (history.behaviour_log_prob < 0).all()


def test_keep_ends_the_run_and_wrong_attachments_are_refused():
    env = DummyVecEnv([lambda: Plane(Discrete(3))])
    model, other = (PPO("MlpPolicy", env, n_steps=20, batch_size=20, device="cpu") for _ in range(2))
    seen = []
    model.learn(100, callback=RecorderCallback(model, lambda turn: seen.append(turn) or len(seen) < 7))
    assert len(seen) == 7
    with pytest.raises(UserError, match="for another model"):
        other.learn(20, callback=RecorderCallback(model, seen.append))
    hidden = DummyVecEnv([lambda: gym.wrappers.NormalizeReward(Plane(Discrete(3)))])
    with pytest.raises(UserError, match="normalises its rewards itself"):
        RecorderCallback(PPO("MlpPolicy", hidden, device="cpu"), seen.append)


# --- probabilities: of policies that stay as they were made ---------------------------------------------------------


def frozen(algorithm, space, num_steps=120, **options):
    turns, _, model = turns_of(SB3(algorithm, learning_rate=1e-12, **SMALL[algorithm], **options), num_steps, space)
    prepared = model.env
    paid, seen = False, []
    for turn in turns:
        seen.append([*encode(prepared.venv.observation_space, turn.step.observation)[0], paid])
        paid = not turn.step.ended[0]  # every step pays
    log_prob = np.concatenate([turn.decision.behaviour_log_prob for turn in turns])
    action = np.concatenate([turn.step.action for turn in turns])
    return turns, model, torch.tensor(np.array(seen, np.float32)), action, log_prob


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_log_probability_of_discrete_actions(algorithm):
    _, model, seen, action, log_prob = frozen(algorithm, ARMS)
    expected = model.policy.get_distribution(seen).log_prob(torch.tensor(action - 2))
    np.testing.assert_allclose(log_prob, expected.detach(), atol=1e-5)
    assert set(action) == {2, 3, 4}


def test_log_density_of_a_gaussian_is_that_of_the_sample_before_clipping():
    _, model, seen, action, log_prob = frozen("ppo", BOX, num_steps=240)
    unit = (action - BOX.low) / (BOX.high - BOX.low) * 2 - 1  # as the policy counts, [-1, 1]
    inside = (np.abs(unit) < 1).all(1)
    normal = model.policy.get_distribution(seen).distribution
    density = normal.log_prob(torch.tensor(unit)).sum(1).detach().numpy() - np.log(1 * 2)  # half the widths of the box
    np.testing.assert_allclose(log_prob[inside], density[inside], atol=1e-4)
    assert 0 < inside.sum() < 240 and (log_prob[~inside] < density[~inside]).all()


def test_log_density_of_sac():
    _, model, seen, action, log_prob = frozen("sac", BOX)
    np.testing.assert_allclose(log_prob[:30], -np.log(2 * 4), rtol=1e-6)  # uniform over the box at the start
    unit = torch.tensor((action - BOX.low) / (BOX.high - BOX.low) * 2 - 1)[30:].double()
    mean, log_std, _ = model.actor.get_action_dist_params(seen[30:])
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp())
    density = (normal.log_prob(torch.atanh(unit)) - torch.log(1 - unit**2)).sum(1).detach().numpy() - np.log(1 * 2)
    inside = (unit.abs() < 0.999).all(1).numpy()
    np.testing.assert_allclose(log_prob[30:][inside], density[inside], atol=2e-3)
    assert inside.sum() > 60


def test_dqn_is_epsilon_greedy_around_what_it_meant():
    turns, _, _, action, log_prob = frozen("dqn", ARMS, 600, exploration_fraction=1e-6, exploration_final_eps=0.3)
    target = np.concatenate([turn.decision.target_action for turn in turns])
    epsilon = np.where(np.arange(600) < 30, 1, 0.3)
    np.testing.assert_allclose(np.exp(log_prob), epsilon / 3 + (1 - epsilon) * (action == target), rtol=1e-5)
    assert (action == target)[30:].mean() == pytest.approx(0.8, abs=0.06)


# --- what the learner sees ------------------------------------------------------------------------------------------


def test_encoding_by_hand():
    grid = MultiDiscrete([2, 3], start=[1, 0])
    at = np.array([[1, 2], [2, 0]])
    assert encode(grid, at).tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    assert encode(grid, at, joint=True).tolist() == [[0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    assert encode(Discrete(3, start=5), np.array([5, 7])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert encode(Box(0, 255, (1, 2), np.uint8), np.array([[[0, 255]]], np.uint8)).tolist() == [[-1, 1]]
    assert encode(Box(-np.inf, np.inf, (2,)), np.array([[3, -7.5]])).tolist() == [[3, -7.5]]
    parts = Dict({"b": MultiBinary(2), "a": Dict({"x": Discrete(2)})})
    assert encode(parts, {"b": np.array([[1, 0]]), "a": {"x": np.array([1])}}).tolist() == [[0, 1, 1, 0]]


def test_the_learner_sees_whether_the_episode_has_paid():
    family = DarkRoom(width=3, height=1, horizon=3, num_validation=0)
    lanes = LaneVecEnv(family.make_vec(family.make_tasks(np.array([1, 0]))), seed=0, record_optimal=True)
    prepared = Prepared(lanes, joint=False, show_paid=True)
    assert prepared.reset()[:, -1].tolist() == [0, 0]
    paid, last = [], []
    for action in (2, 2, 2, 4):
        prepared.step_async(np.array([action, 4]))
        observation, _, _, infos = prepared.step_wait()
        paid.append(observation[:, -1].tolist())
        last.append([info.get("terminal_observation") for info in infos])
        assert lanes.optimal_action is not None
        assert lanes.optimal_action.tolist() == [{0: 2, 1: 4, 2: 3}[int(lanes.last.observation[0, 1])], 4]
    assert paid == [[1, 1], [1, 1], [0, 0], [0, 1]]
    assert last[2][0].tolist() == [1, 0, 0, 1, 1] and last[0] == [None, None]


# --- the source -----------------------------------------------------------------------------------------------------


def recipe(num_histories=2, steps=240, **options):
    source = SourceConfig("agents.sb3_source:SB3", {**SMALL["ppo"], **options})
    collected = CollectConfig(sources=(source,), num_histories=num_histories, steps_per_history=steps, workers=1)
    room = FamilyConfig("darkroom", {"width": 4, "height": 4, "horizon": 12, "num_validation": 2})
    return Recipe("x", "x", family=room, collect=collected)


def test_collections_repeat_themselves_and_leave_global_randomness_alone(tmp_path):
    one = collect(recipe(), tmp_path / "one", progress=False)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), torch.get_num_threads()
    two = collect(recipe(), tmp_path / "two", progress=False)
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), torch.get_num_threads()
    assert one.dataset_hash == two.dataset_hash and one.num_shards == 2
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert one.optional == ("behaviour_log_prob", "optimal_action") and one.num_transitions == 480
    first, second = one.history(0), one.history(1)
    assert isinstance(first.observation, np.ndarray)
    assert not np.array_equal(first.action, second.action)
    alone = collect(recipe(num_histories=1), tmp_path / "alone", progress=False)
    assert np.array_equal(alone.history(0).action, first.action)  # whatever else is collected
    goal = one.tasks_of(0)["goal"]
    assert first.reward.tolist() == (first.next_observation == goal).all(1).tolist()


def test_ppo_learns_a_small_room(tmp_path):
    chosen = recipe(1, 4000, n_steps=120, batch_size=60, n_epochs=8)
    history = collect(chosen, tmp_path / "data", progress=False).history(0)
    returns = history.episode_returns[:-1].reshape(-1)
    assert returns[:30].mean() < 4 and returns[-30:].mean() > 7


@pytest.mark.parametrize(
    "options, message",
    [
        ({"algorithm": "dqn", "n_epochs": 3}, "sb3's n_epochs is 3, but dqn has none: its options are learning_rate,"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: expected more than 0"),
        ({"ent_coef": -1.0}, "ent_coef"),
        ({"discount": 1.5}, "discount is 1.5"),
        ({"net_width": 0}, "net_width is 0"),
        ({"n_steps": 100, "batch_size": 64}, "n_steps 100 is no multiple of batch_size 64"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SB3(**options)


@pytest.mark.parametrize(
    "algorithm, space, message",
    [
        ("dqn", BOX, "dqn cannot choose actions in Box.*: take ppo, a2c, sac"),
        ("sac", ARMS, "sac cannot .*: take ppo, a2c, dqn"),
        ("ppo", Box(-np.inf, np.inf, (2,)), "ppo cannot .*: take another source"),
    ],
)
def test_actions_that_an_algorithm_does_not_have_are_refused(algorithm, space, message):
    env, streams = SimpleNamespace(single_action_space=space), LaneStreams(0, lane_ids=1)
    with pytest.raises(UserError, match=message):
        SB3(algorithm).record(None, env, streams, 10, seed=0, record_optimal=False, keep=bool)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is no agent"):
        SB3(algorithm).make(None, env, streams, 10)  # type: ignore[arg-type]


def test_options_are_plain_values():
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(SB3))
