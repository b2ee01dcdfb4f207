"""RL²: trained on trials, resumed, played in lanes, and its row in an evaluation."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.spaces import Box, Discrete
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from tiny_training import FAMILY, RECIPE, make_store

from agents.rl2 import RL2, RecurrentPolicy, RL2Agent, file_of, known_of, read_learned
from agents.rl2_training import _Training, train
from envs import make_family
from envs.trial import TrialEnv
from icrl.config import EvaluateConfig, RL2Config
from icrl.interfaces import ActionRule, FamilySpec, Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams
from scripts import cli

BANDIT = make_family("gaussian_bandit", num_arms=2, horizon=10, noise=0.1)
CONFIG = RL2Config(
    steps=8000,
    episodes=2,
    num_envs=32,
    rollout_steps=10,
    batch_lanes=16,
    width=16,
    learning_rate=2e-2,
    gamma=0.5,
    entropy=0.0,
    epochs=6,
    reward_scale=1.0,
    gae_lambda=0.5,
    checkpoint_every=4000,
)
SHORT = replace(CONFIG, steps=1200, rollout_steps=0, batch_lanes=8, checkpoint_every=600, epochs=1)


@pytest.fixture(scope="module")
def bandit_run(tmp_path_factory) -> Path:
    """A folder with an RL² policy of ``BANDIT``."""
    run = tmp_path_factory.mktemp("rl2") / "run"
    train(BANDIT, CONFIG, file_of(run), seed=0, board=run / "tensorboard", progress=False)
    return run


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(file)


def life(run, lanes, num_steps, greedy=False, family=BANDIT):
    """The turns of the policy in lanes of these global numbers, each on a test task of its own."""
    env = family.make_vec(family.split().test[lanes], lane_ids=np.asarray(lanes))
    streams = LaneStreams(0, "rl2", lane_ids=np.asarray(lanes))
    agent = RL2(str(run), greedy=greedy).make(family, env, streams, num_steps)
    return list(islice(rollout(agent, env, seed=1), num_steps))


def test_it_learns_to_tell_arms_apart_and_goes_on_for_longer_than_a_trial(bandit_run):
    learned = read_learned(file_of(bandit_run))
    assert learned.steps >= CONFIG.steps and 0 < learned.best_steps <= learned.steps
    rewards = np.stack([turn.step.reward for turn in life(bandit_run, np.arange(200), 60)])  # a trial is 20 steps
    by_trial = rewards.reshape(3, 20, 200).sum(axis=1).mean(axis=1) / 2  # of an episode
    random, optimal = (f(BANDIT.split().test[:200]).mean() for f in (BANDIT.random_return, BANDIT.optimal_return))
    assert by_trial.min() > random + 0.3 * (optimal - random)
    assert rewards[3:].mean() > rewards[0].mean() + 0.05  # the first pull can know nothing
    assert any((bandit_run / "tensorboard").iterdir())


def test_training_is_a_function_of_the_seed_and_leaves_the_generators_alone(tmp_path):
    made = []
    for number, seed in enumerate((1, 1, 2)):
        torch.rand(1)  # where the global generators are does not matter
        np.random.rand()
        before: Any = torch.get_rng_state(), np.random.get_state()
        made.append(train(BANDIT, SHORT, tmp_path / f"{number}", seed=seed, progress=False))
        after: Any = torch.get_rng_state(), np.random.get_state()
        assert torch.equal(before[0], after[0]) and before[1][2] == after[1][2]
    first, again, other = (tensors_of(tmp_path / str(i)) for i in range(3))
    assert all(torch.equal(first[name], again[name]) for name in first) and first.keys() == again.keys()
    assert not torch.equal(first["policy.action_net.weight"], other["policy.action_net.weight"])
    assert replace(made[0], seconds=0) == replace(made[1], seconds=0)


def test_a_stopped_training_goes_on_at_its_last_checkpoint(tmp_path, monkeypatch):
    file, checkpoint, calls = tmp_path / "learner.safetensors", _Training.checkpoint, []

    def stop_at_the_second(self, writer):
        calls.append(self.model.num_timesteps)
        if len(calls) == 2:
            raise KeyboardInterrupt
        checkpoint(self, writer)

    config = replace(SHORT, steps=1900)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Training, "checkpoint", stop_at_the_second)
        train(BANDIT, config, file, seed=0, progress=False)
    assert calls == [640, 1280] and read_learned(file).steps == 640
    kept = tensors_of(file)
    restored = _Training(BANDIT, config, file, 0, "cpu")
    assert restored.model.num_timesteps == 640
    for name, tensor in restored.model.policy.named_parameters():
        assert torch.equal(tensor, kept[f"policy.{name}"])
    moments = restored.model.policy.optimizer.state_dict()["state"]
    assert moments[0]["step"] == 4 and torch.equal(moments[0]["exp_avg"], kept["optimizer.0.exp_avg"])
    assert train(BANDIT, config, file, seed=0, progress=False).steps == 1920
    monkeypatch.setattr(_Training, "go_on", lambda *_: pytest.fail("trained again"))
    assert train(BANDIT, config, file, seed=0, progress=False).steps == 1920


def test_sequences_are_read_as_the_library_reads_them_by_one_lstm_that_actions_and_values_train(tmp_path):
    policy = _Training(BANDIT, SHORT, tmp_path / "none", 0, "cpu").model.policy
    assert isinstance(policy, RecurrentActorCriticPolicy) and policy.lstm_critic is policy.lstm_actor
    lstm, width = policy.lstm_actor, policy.lstm_actor.input_size
    state = tuple(torch.randn(1, 4, SHORT.width) for _ in range(2))
    for starts in (torch.zeros(4, 7), torch.tensor([[1.0], [0], [1], [0]]) * torch.eye(7)[:1]):
        asked = torch.randn(4 * 7, width), state, starts.flatten(), lstm
        ours, again = policy._process_sequence(*asked), policy._process_sequence(*asked)  # type: ignore[arg-type]
        assert ours is again, "read once"
        torch.testing.assert_close(ours, RecurrentActorCriticPolicy._process_sequence(*asked))  # type: ignore[arg-type]
    values, log_probs, _ = policy.evaluate_actions(asked[0], torch.zeros(28), RNNStates(state, state), asked[2])  # type: ignore[arg-type]
    weight: Any = lstm.weight_hh_l0
    moved = [torch.autograd.grad(part.sum(), weight, retain_graph=True)[0] for part in (values, log_probs)]
    assert all(gradient.abs().max() > 0 for gradient in moved)


@pytest.mark.parametrize("name", ["bandit", "box"])
def test_the_agent_in_lanes_is_the_library_s_own_prediction(name, bandit_run, tmp_path):
    """Greedy, on one trial of ``TrialEnv``: the same actions, step by step, as ``predict`` with one environment."""
    family, run, config = BANDIT, bandit_run, CONFIG
    if name == "box":
        family, run, config = make_family("point_robot"), tmp_path, replace(SHORT, steps=640)
        train(family, config, file_of(run), seed=0, progress=False)
    model = _Training(family, config, file_of(run), 0, "cpu").model
    best = {k.removeprefix("actor."): v for k, v in tensors_of(file_of(run)).items() if k.startswith("actor.")}
    model.policy.load_state_dict(best, strict=False)
    trial = TrialEnv(family, family.split().test[:5], config.episodes)
    seen, info = trial.reset(seed=3)
    env = family.make_vec(np.repeat(trial.tasks[[info["task"]]], 2))
    agent = RL2(str(run), greedy=True).make(family, env, LaneStreams(0, lane_ids=2), 99)
    agent.reset(2)
    observation, state, start = _decode(family, seen), None, True
    for _ in range(trial.max_steps):
        action, state = model.predict(seen, state, np.array([start]), deterministic=True)
        if isinstance(family.spec.action_space, Box):
            low, high = family.spec.action_space.low, family.spec.action_space.high
            action = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
        decision = agent.act(observation)
        np.testing.assert_allclose(decision.action, np.stack([action] * 2), atol=1e-6)
        seen, reward, over, _, _ = trial.step(decision.action[0])
        ended = np.full(2, bool(seen[-1]))
        following = _decode(family, seen)
        agent.observe(
            Step(observation, decision.action, np.full(2, reward, np.float32), ended, np.zeros(2, bool), following)
        )
        observation, start = following, False
    assert over


def _decode(family, seen):
    """The observation in what a trial shows, for two lanes."""
    if isinstance(family.spec.observation_space, Box):
        return np.stack([seen[: family.spec.observation_space.shape[0]]] * 2)
    return np.zeros((2, 1), np.int64)


def test_lanes_do_not_mix_and_a_reset_lane_forgets(bandit_run):
    whole, part = life(bandit_run, np.arange(8), 30), life(bandit_run, np.array([6, 1, 4]), 30)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a.step.action[[6, 1, 4]], b.step.action)
        np.testing.assert_allclose(a.decision.behaviour_log_prob[[6, 1, 4]], b.decision.behaviour_log_prob, atol=1e-5)  # type: ignore[index]
    env = BANDIT.make_vec(BANDIT.split().test[:2])
    agent = RL2(str(bandit_run)).make(BANDIT, env, LaneStreams(0, lane_ids=2), 30)
    first, told = [], np.zeros((2, 1), np.int64)
    agent.reset(2)
    for _ in range(2):
        for _ in range(15):
            decision = agent.act(told)
            first.append(np.array(decision.behaviour_log_prob)[:, None])
            off, ones = np.zeros(2, bool), np.ones(2, np.float32)
            agent.observe(Step(told, np.array([1, 1]), ones, off, off, told))
        agent.reset([0])
    again = RL2(str(bandit_run)).make(BANDIT, env, LaneStreams(0, lane_ids=2), 30)._look(told)[0]  # type: ignore[attr-defined]
    now = agent._look(told)[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(now[0], again[0])
    assert not np.array_equal(now[1], again[1])
    with pytest.raises(UserError, match="lanes"):
        agent.reset(3)


def test_looking_twice_is_looking_once_and_given_contexts_are_read(bandit_run):
    env = BANDIT.make_vec(BANDIT.split().test[:3])
    source, told, off = RL2(str(bandit_run)), np.zeros((3, 1), np.int64), np.zeros(3, bool)
    once, twice, given = (source.make(BANDIT, env, LaneStreams(0, lane_ids=3), 9) for _ in range(3))
    for agent in (once, twice, given):
        for t in range(6):
            if agent is not given:
                agent.act(told)
            if agent is twice:
                agent.act(told)
            step = Step(told, np.array([0, 1, t % 2]), np.full(3, t, np.float32), off, off, told)
            agent.observe(step)
    states = [agent._state for agent in (once, twice, given)]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[0], states[2])


def bare_agent(space, lanes, weights, **rule):
    """An untrained policy of width 2 whose output is its head's bias."""
    size = 3 + (space.n if isinstance(space, Discrete) else space.shape[0])
    zeros = {f"lstm_actor.{kind}_{part}_l0": np.zeros(8, np.float32) for kind in ("bias",) for part in ("ih", "hh")}
    zeros |= {"lstm_actor.weight_ih_l0": np.zeros((8, size), np.float32)}
    zeros |= {"lstm_actor.weight_hh_l0": np.zeros((8, 2), np.float32)}
    zeros |= {"action_net.weight": np.zeros((len(weights["action_net.bias"]), 2), np.float32)}
    spec = FamilySpec("bare", Discrete(1), space, 5)
    return RL2Agent(spec, RecurrentPolicy(zeros | weights), LaneStreams(0, lane_ids=lanes), ActionRule(**rule))


def test_sampled_actions_have_the_probability_that_is_recorded_and_obey_masks():
    bias = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    agent, seen = bare_agent(Discrete(3, start=4), 20_000, {"action_net.bias": bias}), np.zeros(20_000, int)
    decision = agent.act(seen)
    for action, share in ((4, 0.1), (5, 0.6), (6, 0.3)):
        chosen = decision.action == action
        assert chosen.mean() == pytest.approx(share, abs=0.02)
        np.testing.assert_allclose(np.exp(decision.behaviour_log_prob[chosen]), share, rtol=1e-5)  # type: ignore[index]
    mask = np.tile([True, False, True], (20_000, 1))
    decision = agent.act(seen, mask)
    assert set(decision.action) == {4, 6} and (decision.action == 4).mean() == pytest.approx(0.25, abs=0.02)
    squared = bare_agent(Discrete(3, start=4), 20_000, {"action_net.bias": bias}, temperature=0.5).act(seen)
    assert (squared.action == 4).mean() == pytest.approx(0.01 / 0.46, abs=0.01)
    greedy = bare_agent(Discrete(3, start=4), 2, {"action_net.bias": bias}, greedy=True)
    assert greedy.act(seen[:2]).action.tolist() == [5, 5] and greedy.act(seen[:2], mask[:2]).action.tolist() == [6, 6]


def test_continuous_actions_are_scaled_and_clipped_with_the_density_of_the_sample():
    space = Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
    weights = {"action_net.bias": np.array([0.5, 2.0], np.float32), "log_std": np.log(np.array([0.1, 0.2], np.float32))}
    greedy = bare_agent(space, 2, weights, greedy=True).act(np.zeros(2, int))
    assert greedy.action.tolist() == [[0.5, 4.0]] * 2 and greedy.action.dtype == np.float32
    many = bare_agent(space, 20_000, weights).act(np.zeros(20_000, int))
    assert all(space.contains(action) for action in many.action[:100])
    assert many.action[:, 0].std() == pytest.approx(0.1, rel=0.05)
    sharp = bare_agent(space, 20_000, weights, temperature=0.25).act(np.zeros(20_000, int))
    assert sharp.action[:, 0].std() == pytest.approx(0.05, rel=0.05)
    entropy = np.log(0.1 * 0.4) + np.log(2 * np.pi * np.e)
    assert -np.mean(many.behaviour_log_prob) == pytest.approx(entropy, abs=0.02)  # type: ignore[arg-type]


TINY = replace(SHORT, steps=512, width=8)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with a policy of a few steps, and no RL² yet."""
    from icrl.training import train as train_policy

    train_policy(RECIPE, make_store(tmp_path / "data"), FAMILY, tmp_path / "run", progress=False)
    return tmp_path / "run"


def flags(config: RL2Config) -> list[str]:
    changed = {k: v for k, v in dataclasses.asdict(config).items() if v != getattr(RL2Config(), k)}
    return [word for key, value in changed.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def complaint(capsys, *argv) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert cli.main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("icrl: error: ") and err.count("\n") == 1, err
    return err


def test_its_row_says_what_its_training_cost(run, capsys):
    assert "icrl rl2" in complaint(capsys, "evaluate", run, "--baselines", "random", "rl2")
    assert "asks for no steps of RL²" in complaint(capsys, "rl2", run)
    assert cli.main(["rl2", str(run), *flags(TINY)]) == 0
    assert f"evaluate it: icrl evaluate {run} --baselines rl2" in capsys.readouterr().out
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["rl2"]["steps"] == 512 and recipe["rl2"]["width"] == 8
    argv = ["evaluate", str(run), "--episodes", "2", "--lanes", "4", "--baselines", "random", "rl2"]
    assert cli.main(argv) == 0
    note = "RL² (recurrent PPO, 512 steps of training on 9 tasks in trials of 2 episodes)"
    assert re.search(rf"\nrl2 +{re.escape(note)}\n", capsys.readouterr().out)
    (record,) = json.loads((run / "evaluation.json").read_text())
    row = record["agents"]["rl2"]
    assert row["note"] == note and row["role"] == "baseline" and row["privileged"] is None
    assert record["agents"]["random"]["note"] == ""
    assert cli.main(["rl2", str(run), "--steps", "1000"]) == 0  # goes on, and its row is another
    assert cli.main(argv) == 0
    (record,) = json.loads((run / "evaluation.json").read_text())
    assert "1,024 steps" in record["agents"]["rl2"]["note"]
    assert "rl2.width = 8, not 4" in complaint(capsys, "rl2", run, "--width", "4")


def test_icrl_run_trains_it_once_before_the_evaluations(tmp_path, monkeypatch, capsys):
    from scripts import rl2 as command
    from scripts.common import MachineOptions
    from scripts.run import run_recipe

    collect = replace(RECIPE.collect, num_histories=16, steps_per_history=40, workers=1)
    evaluation = EvaluateConfig(episodes=2, lanes=4, baselines=("random", "rl2"), hide_rewards=False)
    recipe = replace(RECIPE, collect=collect, rl2=TINY, evaluations=(evaluation,))
    monkeypatch.setattr("icrl.report.build_report", lambda *_: tmp_path)
    run_recipe(recipe, tmp_path / "run", MachineOptions())
    assert "[2/4] train: RL² (recurrent PPO" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert "steps of training" in record["agents"]["rl2"]["note"]
    monkeypatch.setattr(command, "training_module", lambda: pytest.fail("trained again"))
    run_recipe(recipe, tmp_path / "run", MachineOptions())


def test_a_missing_package_is_one_line_before_any_work(tmp_path, run, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "sb3_contrib"] + ["sb3_contrib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "agents.rl2_training")
    monkeypatch.delattr("agents.rl2_training", raising=False)
    wanted = "sb3-contrib, which is not installed: pip install -e '.[rl2]'"
    assert wanted in complaint(capsys, "rl2", run, "--steps", "100")
    assert wanted in complaint(capsys, "run", "smoke", "--rl2.steps", "100", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not (run / "rl2").exists()


IMPOSSIBLE = {
    "steps": (["--rl2.steps", "-1"], "--rl2.steps -1: expected at least 0"),
    "lanes": (["--rl2.num-envs", "0"], "--rl2.num-envs 0: expected at least 1"),
    "batch": (["--rl2.batch-lanes", "7"], "expected a divisor of --rl2.num-envs 64"),
    "gamma": (["--rl2.gamma", "1.5"], "--rl2.gamma 1.5: expected 0 to 1"),
    "rate": (["--rl2.learning-rate", "0"], "--rl2.learning-rate 0.0: expected more than 0"),
    "scale": (["--rl2.reward-scale", "0"], "--rl2.reward-scale 0.0"),
    "none trained": (["--evaluations.0.baselines", "rl2"], "this recipe trains no RL² policy: pass --rl2.steps"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_options_are_refused_before_any_work(name, capsys, tmp_path):
    options, message = IMPOSSIBLE[name]
    assert message in complaint(capsys, "run", "smoke", *options, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_spaces_and_other_files_are_refused(bandit_run, tmp_path):
    other = make_family("gaussian_bandit", num_arms=3, horizon=10)
    env = other.make_vec(other.split().test[:1])
    with pytest.raises(UserError, match="was trained in gaussian_bandit with another action space"):
        RL2(str(bandit_run)).make(other, env, LaneStreams(0, lane_ids=1), 5)
    with pytest.raises(UserError, match="with other spaces: remove it to train anew"):
        known_of(file_of(bandit_run), other, CONFIG)
    file_of(tmp_path).parent.mkdir()
    for content in (b"", b"\x80pickle", safetensors.torch.save({"actor.x": torch.zeros(1)})):
        file_of(tmp_path).write_bytes(content)
        with pytest.raises(UserError, match="is no RL² policy"):
            RL2(str(tmp_path)).make(BANDIT, env, LaneStreams(0, lane_ids=1), 5)
