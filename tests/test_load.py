"""``icrl.load``: the agent of a run folder in the user's own loop, with the weights, seed and action rule that were asked for."""

from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import FAMILY, LAYOUTS, make_store
from toy import without_flushing

import icrl
from icrl import training
from icrl.data.sampling import Window, windows
from icrl.in_context import InContextAgent
from icrl.interfaces import Step, UserError
from icrl.objectives.base import step_window
from icrl.rollout import rollout
from icrl.training import train

Layout = Literal["step", "transition"]
RECIPES = {"step": LAYOUTS["ad"], "transition": LAYOUTS["dpt transition"]}
every_layout = pytest.mark.parametrize("layout", RECIPES)
LANES, WINDOW = 4, RECIPES["step"].model.window

_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """A run of each layout, of nine steps, of which the sixth was the best on validation tasks."""
    folders = {}
    for layout, recipe in RECIPES.items():
        scores = iter([1.0, 3.0, 2.0])
        folders[layout] = tmp_path_factory.mktemp(layout) / "run"
        fast = replace(recipe, train=replace(recipe.train, learning_rate=0.03))  # weights that say something
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "validation_curve", lambda *_, scores=scores: np.array([next(scores)]))
            train(fast, store, FAMILY, folders[layout], threads=1, progress=False, monitored=False)
    return folders


def play(agent: InContextAgent, num_steps: int):
    """The turns of an agent on held-out tasks, one by one."""
    tasks = FAMILY.split().test
    return islice(rollout(agent, FAMILY.make_vec(tasks[np.arange(LANES) % len(tasks)]), seed=0), num_steps)


def actions(turns):
    return np.stack([turn.step.action for turn in turns])


def context_of(store, length=WINDOW - 6) -> Window:
    """The beginning of a history for each lane, cut in the middle of an episode."""
    return windows(store, np.arange(LANES), np.zeros(LANES, int), length)


def same_step(lanes, t, action=2, reward=0.0) -> Step:
    """One and the same transition in every lane; episodes are as long as the family's."""
    place, following = (np.tile([k % 4, 1], (lanes, 1)) for k in (t, t + 1))
    ended, nothing = np.full(lanes, (t + 1) % FAMILY.spec.horizon == 0), np.zeros(lanes, bool)
    return Step(place, np.full(lanes, action), np.full(lanes, reward, np.float32), nothing, ended, following)


# which agent


@every_layout
def test_best_and_latest_give_their_own_weights(runs, layout):
    best, latest = (icrl.load(runs[layout], checkpoint=which).policy.state_dict() for which in ("best", "latest"))
    for weights, folder in ((best, "step-00000006"), (latest, "step-00000009")):
        there = load_file(runs[layout] / "checkpoints" / folder / "model.safetensors")
        assert weights.keys() == there.keys() and all(torch.equal(weights[key], there[key]) for key in there)
    assert not torch.equal(best["head.linear.weight"], latest["head.linear.weight"])
    default = icrl.load(str(runs[layout])).policy.state_dict()
    assert all(torch.equal(default[key], best[key]) for key in best)


@every_layout
def test_acting_changes_no_weight_and_drops_nothing_out(runs, layout):
    agent = icrl.load(runs[layout])
    before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
    first, second = (actions(play(agent, 20)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(before[key], value) for key, value in agent.policy.state_dict().items())
    assert not agent.policy.training


@every_layout
def test_the_seed_alone_decides_what_is_drawn(runs, layout):
    first, again, other = (actions(play(icrl.load(runs[layout], seed=seed), 20)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.2
    np.testing.assert_array_equal(first, actions(play(icrl.load(runs[layout]), 20)))


@every_layout
def test_greedy_takes_the_most_probable_action_whatever_the_seed(runs, layout):
    place = np.argwhere(np.ones((4, 4)))
    for seed in (0, 1):
        agent, asked = (icrl.load(runs[layout], seed=seed, greedy=True) for _ in range(2))
        agent.reset(16)
        asked.reset(16)
        np.testing.assert_array_equal(agent.act(place).action, asked.action_probs(place).argmax(1))
    drawn = icrl.load(runs[layout])
    drawn.reset(16)
    assert (drawn.act(place).action != asked.action_probs(place).argmax(1)).any()


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no best checkpoint there: train it first"):
        icrl.load(tmp_path)


# probabilities


@every_layout
@pytest.mark.parametrize("num_steps, temperature", [(0, 1.0), (3, 1.0), (3, 3.0)])
def test_action_probs_are_those_that_act_draws_from(runs, layout, num_steps, temperature):
    lanes = 5000
    agent, asked = (icrl.load(runs[layout], temperature=temperature) for _ in range(2))
    for one in (agent, asked):
        one.reset(lanes)
        for t in range(num_steps):
            step = same_step(lanes, t)
            one.act(step.observation)
            one.observe(step)
    place = same_step(lanes, num_steps).observation
    probs, decision = asked.action_probs(place), agent.act(place)
    assert probs.shape == (lanes, 5)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(probs, probs[:1].repeat(lanes, 0), rtol=1e-3)
    frequency = np.bincount(decision.action, minlength=5) / lanes
    assert (np.abs(frequency - probs[0]) < 4 * np.sqrt(probs[0] * (1 - probs[0]) / lanes)).all()
    assert probs[0].max() < 0.9  # a certain policy would prove nothing
    assert decision.behaviour_log_prob is not None
    np.testing.assert_allclose(np.exp(decision.behaviour_log_prob), probs[np.arange(lanes), decision.action], rtol=1e-3)


@every_layout
def test_an_agent_that_is_asked_goes_on_like_one_that_acts(runs, layout):
    """``action_probs`` in the place of ``act`` reads the observation just the same."""
    acting, asked = icrl.load(runs[layout]), icrl.load(runs[layout])
    for agent in (acting, asked):
        agent.reset(LANES)
    for t in range(2 * WINDOW):
        step = same_step(LANES, t, action=t % 5, reward=float(t % 3))
        probs, decision = asked.action_probs(step.observation), acting.act(step.observation)
        assert decision.behaviour_log_prob is not None
        chosen = probs[np.arange(LANES), decision.action]
        np.testing.assert_allclose(np.exp(decision.behaviour_log_prob), chosen, rtol=1e-3)
        for agent in (acting, asked):
            agent.observe(step)


# given contexts


@torch.no_grad()
@pytest.mark.parametrize("running", [False, True])
def test_a_loaded_context_is_read_like_the_training_window_of_the_same_tokens(runs, store, running):
    agent, window = icrl.load(runs["step"]), context_of(store)
    length = window.reward.shape[1]
    whole = context_of(store, length + 1)
    assert not whole.truncated[:, length - 1].any()  # the context breaks off in the middle of an episode
    goes_on = step_window(agent.policy, whole)[:, -1]
    episode, episode_step, truncated = (a.copy() for a in (whole.episode, whole.episode_step, whole.truncated))
    episode[:, -1], episode_step[:, -1], truncated[:, length - 1] = episode[:, -1] + 1, 0, True
    whole = replace(whole, episode=episode, episode_step=episode_step, truncated=truncated)
    begins = step_window(agent.policy, whole)[:, -1]
    assert not torch.allclose(goes_on, begins, atol=1e-2)
    agent.load_context(window, running=running)
    probs = torch.as_tensor(agent.action_probs(whole.observation[:, -1]))
    torch.testing.assert_close(probs, (goes_on if running else begins).softmax(-1), rtol=1e-3, atol=1e-5)


@every_layout
@pytest.mark.parametrize("lived", [0, 2])
def test_a_context_saved_while_fixed_comes_back_fixed(runs, store, layout, lived, tmp_path):
    window, agent, restored = context_of(store), icrl.load(runs[layout]), icrl.load(runs[layout])
    agent.load_context(window)
    for t in range(5):
        if t == lived:
            agent.save_context(tmp_path / "context.npz")
            restored.restore_context(tmp_path / "context.npz")
        step = same_step(LANES, t, action=t, reward=1.0)
        first = agent.act(step.observation)
        agent.observe(step)
        if t < lived:
            continue
        second = restored.act(step.observation)
        np.testing.assert_array_equal(first.action, second.action)
        np.testing.assert_allclose(first.behaviour_log_prob, second.behaviour_log_prob, rtol=1e-4)  # type: ignore[arg-type]
        restored.observe(step)
        running = t + 1 if layout == "step" else 0  # in layout `step` the running episode is read, too
        assert (restored.context.lengths == window.reward.shape[1] + running).all()


@every_layout
def test_a_fixed_context_that_leaves_no_room_for_the_episode_says_so(runs, store, layout):
    agent, room = icrl.load(runs[layout]), 3
    agent.load_context(context_of(store, WINDOW - room))
    for t in range(room):
        step = same_step(LANES, t)
        agent.act(step.observation)
        agent.observe(step)
    if layout == "transition":  # nothing is added
        agent.act(step.observation)
    else:
        with pytest.raises(UserError, match="fill the window of 16 steps: load a shorter context"):
            agent.act(step.observation)


# a full window


@every_layout
def test_half_of_a_full_window_is_free_when_it_was_read_again(runs, layout):
    agent, held, first = icrl.load(runs[layout]), [], []
    for _ in play(agent, 6 * WINDOW):
        held.append(agent.context.lengths.copy())
        first.append(agent.context.columns["episode_step"][:, 0].copy())
    held = np.stack(held)  # (T, B) transitions after each step
    again = held[1:] <= held[:-1]
    kept = held[1:][again] - 1
    assert held.max() == WINDOW and again.sum() >= 8 * LANES
    assert kept.min() > 0 and kept.max() <= WINDOW - WINDOW // 2
    assert layout == "transition" or not np.any(first)  # a window begins where an episode does
