"""Bayesian optimisation: test functions against what is published of them, draws against their kernel, searchers against closed forms."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy import optimize, special, stats

from agents import make_source
from envs import bayesian_optimisation, make_family
from envs.bayesian_optimisation import BayesianOptimisation
from envs.benchmark_functions import FUNCTIONS
from icrl.interfaces import Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams, generator

BY_NAME = {function.name: function for function in FUNCTIONS}
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
PUBLISHED_OPTIMA = {
    "branin": (0.397887, (9.42478, 2.475)),
    "beale": (0, (3, 0.5)),
    "bohachevsky": (0, (0, 0)),
    "bukin_6": (0, (-10, 1)),
    "de_jong_5": (0.998004, (-31.9783, -31.9783)),
    "drop_wave": (-1, (0, 0)),
    "eggholder": (-959.6407, (512, 404.2319)),
    "goldstein_price": (3, (0, -1)),
    "holder_table": (-19.2085, (-8.05502, 9.66459)),
    "michalewicz": (-1.8013, (2.20290, 1.57080)),
    "shubert": (-186.7309, (4.85806, 5.48286)),
    "six_hump_camel": (-1.0316, (-0.0898, 0.7126)),
    "three_hump_camel": (0, (0, 0)),
    "ackley": (0, (0, 0)),
    "rastrigin": (0, (0, 0)),
    "rosenbrock": (0, (1, 1)),
    "levy": (0, (1, 1)),
    "levy_13": (0, (1, 1)),
    "griewank": (0, (0, 0)),
    "schwefel": (0, (420.9687, 420.9687)),
    "styblinski_tang": (-78.33234, (-2.903534, -2.903534)),
    "himmelblau": (0, (-2.805118, 3.131312)),
    "easom": (-1, (3.14159, 3.14159)),
    "mccormick": (-1.913223, (-0.54719, -1.54719)),
    "cross_in_tray": (-2.06261, (1.3491, -1.3491)),
}
"""Value and, where there are several, another minimiser than the module has."""
OTHER_VALUES = [
    ("goldstein_price", (-0.6, -0.4), 30),  # local minima
    ("goldstein_price", (1.8, 0.2), 84),
    ("goldstein_price", (1.2, 0.8), 840),
    ("six_hump_camel", (-1.703607, 0.796084), -0.215464),
    ("three_hump_camel", (-1.747552, 0.873776), 0.298638),
    ("griewank", (3.140023, 4.438445), 0.007396),
    ("beale", (0, 0), 1.5**2 + 2.25**2 + 2.625**2),  # by hand
    ("bohachevsky", (1, 0.25), 1 + 0.125 + 0.3 + 0.4 + 0.7),
    ("bukin_6", (-10, 0), 100),
    ("himmelblau", (0, 0), 11**2 + 7**2),
    ("rastrigin", (1, -2), 5),
    ("rosenbrock", (0, 2), 401),
    ("schwefel", (0, 0), 837.965775),
    ("levy_13", (2, 1), 1),
    ("styblinski_tang", (1, 0), -5),
]


def at(function, *point):
    return function.formula(*(np.array([float(coordinate)]) for coordinate in point))[0]


def in_square(function, point):
    return (np.array([point]) - function.low) / np.subtract(function.high, function.low)


@every_function
def test_a_function_has_its_published_optimum(function):
    value, minimiser = PUBLISHED_OPTIMA[function.name]
    assert function.minimum == pytest.approx(value, abs=6e-5)
    assert at(function, *minimiser) == pytest.approx(value, abs=2e-4)
    own = in_square(function, function.minimiser)
    assert (own >= 0).all() and (own <= 1).all()
    assert function(own)[0] == pytest.approx(function.minimum, rel=1e-9, abs=1e-9)


@every_function
def test_no_search_finds_less_than_the_optimum(function):
    axis = np.linspace(0, 1, 301)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    values = function(grid)
    assert values.shape == (len(grid),) and np.isfinite(values).all()
    starts = grid[np.argsort(values)[:10]]
    found = min(
        optimize.minimize(lambda p: function(np.clip(p, 0, 1)[None])[0], start, method="Nelder-Mead", tol=1e-9).fun
        for start in starts
    )
    assert function.minimum - 1e-8 <= found <= function.minimum + (0.1 if function.name == "bukin_6" else 1e-5)


@pytest.mark.parametrize("name, point, value", OTHER_VALUES)
def test_functions_away_from_their_optimum(name, point, value):
    assert at(BY_NAME[name], *point) == pytest.approx(value, abs=2e-6)


# the family


def draws(length_scales, count):
    tasks = BayesianOptimisation().sample_tasks(generator(0), count)
    tasks["length_scales"] = length_scales
    return tasks


def matern(distance):
    """Matérn's kernel for nu = 5/2 by Bessel's function."""
    z = np.sqrt(5) * np.maximum(distance, 1e-9)
    return 2**-1.5 / special.gamma(2.5) * z**2.5 * special.kv(2.5, z)


def kernel_matrix(points, length_scales):
    return matern(np.linalg.norm((points[:, None] - points) / length_scales, axis=-1))


def test_candidates_fill_the_square():
    points = BayesianOptimisation().points
    assert points.shape == (1024, 2) and points.min() >= 0 and points.max() < 1
    counts = np.histogram2d(*points.T, bins=16, range=[(0, 1), (0, 1)])[0]  # 4 in each cell on average
    assert counts.min() >= 1 and counts.max() <= 8
    assert (BayesianOptimisation(candidate_seed=1).points != points).all()
    np.testing.assert_array_equal(BayesianOptimisation(task_seed=1).points, points)


@pytest.mark.parametrize("length_scales", [(0.05, 0.2), (0.5, 0.5)])
def test_covariance_is_the_kernel_and_draws_have_it(length_scales):
    family = BayesianOptimisation()
    expected = kernel_matrix(family.points, length_scales)
    np.testing.assert_allclose(family.covariance(np.array(length_scales)), expected, atol=1e-7)
    first = np.eye(1024)[0]  # the first column of the root of a matrix is its own first column
    np.testing.assert_allclose(family.draw(np.array(length_scales), first), expected[0], atol=1e-7)
    values = family.values(draws(length_scales, 80))
    assert len(np.unique(values[:, 0])) == 80
    whitened = np.linalg.solve(np.linalg.cholesky(expected + 1e-8 * np.eye(1024)), values.T)
    assert stats.kstest(whitened.ravel(), "norm").pvalue > 1e-3
    near = np.argsort(-expected[7])[20]  # a pair with much in common
    together = (values[:, 7] * values[:, near]).mean()
    assert together == pytest.approx(expected[7, near], abs=4 * np.sqrt(2 / 80))


def test_a_task_is_one_function_whatever_the_list():
    family = BayesianOptimisation(num_variants=2)
    train, validation, test = family.split()
    tasks = np.concatenate([train[:2], test[[3, 30]], validation[:1]])
    whole = family.values(tasks)
    bayesian_optimisation._values.cache_clear()
    longer = BayesianOptimisation(num_train_tasks=5, num_variants=3, least_length_scale=0.1)
    np.testing.assert_array_equal(longer.values(tasks[::-1])[::-1], whole)
    np.testing.assert_array_equal(longer.split().test[:50], test)
    assert tasks.dtype.itemsize < 64
    assert family.values(tasks[:0]).shape == (0, 1024)


def test_a_record_means_the_same_function_for_ever():
    task = draws((0.2, 0.3), 1)
    task["draw_seed"] = 5
    known = [-0.80193143, -1.34591627, -0.8183632]
    np.testing.assert_allclose(BayesianOptimisation().values(task)[0, :3], known, atol=1e-6)


def test_length_scales_are_log_uniform_in_their_range():
    scales = BayesianOptimisation(num_train_tasks=2000, greatest_length_scale=0.2).split().train["length_scales"]
    assert scales.shape == (2000, 2)
    level = np.log(scales / 0.05) / np.log(4)
    assert stats.kstest(level.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(level.T)[0, 1]) < 0.1


def test_a_function_is_made_when_it_is_asked_for_and_once(monkeypatch):
    made = []
    monkeypatch.setattr(bayesian_optimisation, "_draw", lambda points, *_: made.append(1) or np.zeros(len(points)))
    family = BayesianOptimisation(task_seed=77)
    train = family.split().train
    env = family.make_vec(train)
    env.reset(seed=0)
    assert len(train) == 4096 and not made
    env = family.make_vec(np.repeat(train[:3], 4))
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(12, int))
    assert len(made) == 3
    bayesian_optimisation._values.cache_clear()


def test_test_functions_are_negated_and_standardised():
    family = BayesianOptimisation()
    tasks = family.split().test
    values = family.values(tasks)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-9)
    for task, row in zip(tasks, values, strict=True):
        assert np.corrcoef(row, FUNCTIONS[task["function"]](family.points))[0, 1] == pytest.approx(-1)
    np.testing.assert_array_equal(family.optimal_return(tasks), values.max(axis=1))
    np.testing.assert_array_equal(family.make_vec(tasks).optimal_action(), values.argmax(axis=1))
    branin = family.points[values[0].argmax()] * 15 + [-5, 0]
    minimisers = np.array([(-np.pi, 12.275), (np.pi, 2.275), (9.42478, 2.475)])
    assert np.abs(branin - minimisers).max(axis=1).min() < 0.7


def test_a_variant_is_mirrored_and_shifted():
    family = BayesianOptimisation(num_variants=3)
    test = family.split().test
    assert not test["shift"][:25].any() and not test["mirrored"][:25].any()
    assert 0.05 < np.abs(test["shift"][25:]).max() <= 0.1 and test["mirrored"][25:].mean() == pytest.approx(
        0.5, abs=0.2
    )
    task = test[:1].copy()
    task["mirrored"], task["shift"] = (True, False), (0.02, -0.1)
    moved = family.points * [-1, 1] + [1.02, -0.1]
    expected = -FUNCTIONS[0](moved)
    np.testing.assert_allclose(family.values(task)[0], (expected - expected.mean()) / expected.std(), atol=1e-9)


def test_simple_regret_by_hand(monkeypatch):
    values = np.array([[0.0, 2, 4, 1], [5, 5, 5, 5]])
    monkeypatch.setattr(BayesianOptimisation, "values", lambda self, tasks: values)
    regret = BayesianOptimisation().simple_regret(np.zeros(2), np.array([[3, 0, 1, 2, 0], [0, 1, 2, 3, 0]]))
    np.testing.assert_array_equal(regret, [[0.75, 0.75, 0.5, 0, 0], [0, 0, 0, 0, 0]])


def test_noise_is_shared_by_all_candidates_and_left_out_of_the_regret():
    family = BayesianOptimisation(noise=0.5)
    tasks = np.repeat(family.split().test[:1], 2000)
    values, rewards = family.values(tasks[:1])[0], []
    for action in (3, 800):
        env = family.make_vec(tasks)
        env.reset(seed=4)
        rewards.append(env.step(np.full(2000, action))[1] - values[action])
    np.testing.assert_allclose(rewards[0], rewards[1], atol=1e-5)
    assert stats.kstest(rewards[0] / 0.5, "norm").pvalue > 1e-3
    best = np.array([[values.argmax()]])
    assert family.simple_regret(tasks[:1], best) == 0


def test_candidates_of_ones_own(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, generator(0).random((1024, 2)).astype(np.float32))
    family = BayesianOptimisation(candidates=str(path))
    np.testing.assert_array_equal(family.points, np.load(path))
    branin = -FUNCTIONS[0](family.points)
    assert family.values(family.split().test[:1])[0].argmax() == branin.argmax()
    assert gym.make("icrl/BayesianOptimisation-v0", candidates=str(path), function=0).reset(seed=0)[0] == [0]


def points_with(value, *rows):
    points = generator(0).random((1024, 2))
    points[list(rows)] = value
    return points


@pytest.mark.parametrize(
    "points, message",
    [
        (np.zeros((1000, 2)), r"have shape \(1000, 2\): expected \(1024, 2\) different points of the unit square"),
        (np.zeros((1024, 3)), r"have shape \(1024, 3\)"),
        (points_with(1.5, 5), "range from .* to 1.5: expected"),
        (points_with(np.nan, 5), "range from nan"),
        (points_with(0.5, 5, 6), "hold a point twice"),
        (np.full((1024, 2), "a"), "cannot read the candidates"),
        (np.full((1024, 2), None), "cannot read the candidates"),
    ],
)
def test_a_bad_candidate_set_is_refused(points, message, tmp_path):
    np.save(tmp_path / "bad.npy", points)
    with pytest.raises(UserError, match=message) as error:
        make_family("bayesian_optimisation", candidates=str(tmp_path / "bad.npy"))
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_holds_no_array_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.npy", tmp_path / "text.npy", tmp_path / "empty.npy"):
        (tmp_path / "text.npy").write_text("0.1 0.2\n")
        (tmp_path / "empty.npy").write_text("")
        with pytest.raises(UserError, match="cannot read the candidates"):
            BayesianOptimisation(candidates=str(path))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_train_tasks": 0}, "num_train_tasks is 0: expected at least 1"),
        ({"num_variants": 0}, "num_variants"),
        ({"candidate_seed": -1}, "candidate_seed"),
        ({"least_length_scale": 0.001}, "length scales are 0.001 to 0.5: expected"),
        ({"least_length_scale": 0.6}, "length scales are 0.6 to 0.5: expected the least one first"),
        ({"greatest_length_scale": 11.0}, "within 0.01 to 10"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"candidates": 5}, "expected str or NoneType"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_family("bayesian_optimisation", **options)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"function": 25}, "function is outside -1"),
        ({"length_scales": (0.1, 0.0)}, "length_scales are outside"),
        ({"length_scales": (np.nan, 0.1)}, "length_scales are outside"),
        ({"draw_seed": -3}, "draw_seed is negative"),
        ({"shift": (0.0, 0.7), "function": 2}, "shift is beyond 0.5"),
        ({"mirrored": (True, False)}, "a draw is shifted or mirrored"),
    ],
)
def test_bad_tasks_are_refused(fields, message):
    task = draws((0.1, 0.1), 2)
    for name, value in fields.items():
        task[name][1] = value
    with pytest.raises(UserError, match=message):
        BayesianOptimisation().make_vec(task)


# searchers


def search(source, tasks, num_evaluations, family=None, **options):
    """(N, T) the candidates that a source evaluates."""
    family = family or BayesianOptimisation()
    env = family.make_vec(tasks)
    agent = make_source(source, **options).make(family, env, LaneStreams(0, "s", lane_ids=len(tasks)), num_evaluations)
    turns = islice(rollout(agent, env, seed=0), num_evaluations)
    return np.stack([turn.step.action for turn in turns], axis=1)


def searcher(source, lanes, evaluations=(), family=None, length_scales=(0.1, 0.3), **options) -> Any:
    """An agent whose lanes play one draw and have made the evaluations (action, reward)."""
    family = family or BayesianOptimisation()
    env = family.make_vec(np.repeat(draws(length_scales, 1), lanes))
    agent = make_source(source, **options).make(family, env, LaneStreams(0, "s", lane_ids=lanes), 10)
    agent.reset(lanes)
    empty, none = np.zeros((lanes, 1)), np.zeros(lanes, bool)
    for action, reward in evaluations:
        agent.observe(Step(empty, np.full(lanes, action), np.full(lanes, reward, np.float32), none, ~none, empty))
    return agent


def test_expected_improvement_beats_random_points():
    pytest.importorskip("botorch")
    family = BayesianOptimisation()
    tasks = draws((0.2, 0.3), 4)
    found = family.simple_regret(tasks, search("gp_ei", tasks, 15))[:, -1]
    chance = family.simple_regret(np.repeat(tasks, 50), search("random", np.repeat(tasks, 50), 15))[:, -1]
    assert found.mean() < 0.35 * chance.mean()


@pytest.mark.parametrize("source, kernel", [("gp_ei", "rbf"), ("gp_thompson", "matern")])
def test_fitted_searchers_are_deterministic_and_leave_global_state_alone(source, kernel):
    pytest.importorskip("botorch")
    torch = pytest.importorskip("torch")
    tasks = BayesianOptimisation().split().test[:2]
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    chosen = search(source, tasks, 5, kernel=kernel)
    assert (torch.get_rng_state() == state).all() and torch.get_num_threads() == threads
    torch.rand(1)
    np.testing.assert_array_equal(search(source, tasks, 5, kernel=kernel), chosen)
    assert all(len(set(row)) == 5 for row in chosen)


def test_expected_improvement_is_that_of_the_fitted_process():
    pytest.importorskip("botorch")
    evaluations = [(3, 0.5), (700, -1.0), (90, 1.2), (512, 0.1)]
    agent = searcher("gp_ei", 1, evaluations)
    actions, values = (list(column) for column in zip(*evaluations, strict=True))
    scores = agent._scores(0, actions, np.array(values))
    points = agent._points
    with agent._library.apart(0):
        process = agent._library.fitted(points[actions], np.array(values))
        belief = process.posterior(agent._library._tensor(points))
    mean, sd = belief.mean.detach().numpy()[:, 0], belief.variance.detach().numpy()[:, 0] ** 0.5
    z = (mean - 1.2) / sd
    expected = np.log(sd * (stats.norm.pdf(z) + z * stats.norm.cdf(z)))
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert process.covar_module.nu == 2.5 and (process.covar_module.lengthscale.detach() > 0.02).all()
    decision = agent.act(np.zeros((1, 1)))
    expected[actions] = -np.inf
    assert decision.action[0] == expected.argmax() and decision.behaviour_log_prob == 0
    barred = np.arange(1024)[None] != expected.argmax()
    assert agent.act(np.zeros((1, 1)), barred).action[0] == np.argsort(expected)[-2]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_process_that_is_told_the_noise_has_it(noise):
    pytest.importorskip("botorch")
    agent = searcher("gp_ei", 1, family=BayesianOptimisation(noise=noise), known_noise=True)
    values = np.array([0.5, -1.0, 1.2])
    with agent._library.apart(0):
        process = agent._library.fitted(agent._points[[3, 700, 90]], values)
    told = process.likelihood.noise.detach().numpy()  # of standardised values; the library's least is 1e-6
    np.testing.assert_allclose(told, np.full(3, max(noise**2 / values.var(ddof=1), 1e-6)), rtol=1e-6)


def test_a_reset_lane_begins_with_a_random_point():
    pytest.importorskip("botorch")
    agent = searcher("gp_ei", 3, [(3, 0.5), (700, -1.0)])
    agent.reset([1])
    decision = agent.act(np.zeros((3, 1)))
    np.testing.assert_allclose(decision.behaviour_log_prob, [0, -np.log(1024), 0], rtol=1e-6)
    assert decision.action[0] == decision.action[2] != decision.action[1]


def test_a_failed_fit_leaves_the_priors_modes(monkeypatch):
    pytest.importorskip("botorch")
    agent = searcher("gp_ei", 1, [(3, 0.5), (700, -1.0)])

    def fail(likelihood):
        raise agent._library._fit.ModelFittingError("all attempts")

    def lengths() -> tuple[np.ndarray, np.ndarray]:
        with agent._library.apart(0):
            process = agent._library.fitted(agent._points[[3, 700, 90]], np.array([0.5, -1.0, 1.2]))
        kernel = getattr(process.covar_module, "base_kernel", process.covar_module)
        return kernel.lengthscale.detach().numpy(), kernel.lengthscale_prior.mode.numpy()

    fitted, mode = lengths()
    monkeypatch.setattr(agent._library._fit, "fit_gpytorch_mll", fail)
    left, _ = lengths()
    np.testing.assert_allclose(left, np.broadcast_to(mode, left.shape), rtol=1e-5)
    assert not np.allclose(fitted, left, rtol=1e-2)
    assert 0 <= agent.act(np.zeros((1, 1))).action[0] < 1024


def test_drawn_functions_have_the_belief_of_the_fitted_process():
    pytest.importorskip("botorch")
    actions, values = [3, 700, 90], np.array([0.5, -1.0, 1.2])
    agent = searcher("gp_thompson", 1)
    points, some = agent._points, np.arange(5, 1024, 200)
    with agent._library.apart(0):
        process = agent._library.fitted(points[actions], values)
        belief = process.posterior(agent._library._tensor(points))
        first = agent._library.draw(process, points, np.eye(1024)[0]).detach().numpy()
        nothing = agent._library.draw(process, points, np.zeros(1024)).detach().numpy()
    mean = belief.mean.detach().numpy()[:, 0]
    np.testing.assert_allclose(nothing, mean, atol=1e-6)
    covariance = belief.distribution.covariance_matrix.detach().numpy()
    np.testing.assert_allclose((first - mean)[some], covariance[0, some] / np.sqrt(covariance[0, 0]), atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_exact_thompson_draws_from_the_exact_belief(noise):
    scales, lanes = (0.1, 0.3), 80
    evaluations = [(3, 0.5), (700, -1.0), (90, 1.2), (3, 0.5)]
    family = BayesianOptimisation(noise=noise)
    agent = searcher("gp_thompson", lanes, evaluations, family, scales, hyper_parameters="true")
    actions, values = [3, 700, 90, 3], np.array([0.5, -1.0, 1.2, 0.5])
    drawn = np.stack([agent._scores(lane, actions, values) for lane in range(lanes)])  # (lanes, A)
    prior = kernel_matrix(family.points, scales)
    gain = prior[:, actions] @ np.linalg.inv(prior[np.ix_(actions, actions)] + (noise**2 + 1e-8) * np.eye(4))
    mean, covariance = gain @ values, prior - gain @ prior[actions]
    sd = np.sqrt(np.maximum(covariance.diagonal(), 1e-6))
    z = (drawn - mean) / sd
    if noise:
        assert z[:, actions].std() == pytest.approx(1, abs=0.2)
    else:
        np.testing.assert_allclose(drawn[:, actions], np.tile(values, (lanes, 1)), atol=2e-3)
        z = np.delete(z, actions, axis=1)
    assert np.abs(z.mean(axis=0)).max() < 4.5 / np.sqrt(lanes) and np.abs(z.mean()) < 0.1
    assert np.sqrt((z**2).mean()) == pytest.approx(1, abs=0.05)


def test_exact_thompson_finds_the_best_candidates():
    family, tasks = BayesianOptimisation(), draws((0.2, 0.3), 4)
    chosen = search("gp_thompson", tasks, 20, hyper_parameters="true")
    assert all(len(set(row)) == 20 for row in chosen)
    chance = family.simple_regret(np.repeat(tasks, 50), search("random", np.repeat(tasks, 50), 20))[:, -1]
    assert family.simple_regret(tasks, chosen)[:, -1].mean() < 0.4 * chance.mean()


def test_where_everything_was_evaluated_searchers_go_on():
    agent = searcher("gp_thompson", 1, [(a, 0.0) for a in (1, 2)], hyper_parameters="true")
    only = np.isin(np.arange(1024), [1, 2])[None]
    assert agent.act(np.zeros((1, 1)), only).action[0] in (1, 2)
    fresh = np.isin(np.arange(1024), [1, 2, 3])[None]
    assert agent.act(np.zeros((1, 1)), fresh).action[0] == 3


@pytest.mark.parametrize(
    "source, options, family, message",
    [
        ("gp_ei", {}, "gaussian_bandit", "gp_ei needs a family whose actions are points"),
        ("gp_thompson", {}, "point_robot", "gp_thompson needs a family whose actions are points"),
        ("gp_thompson", {"hyper_parameters": "true"}, "bayesian_optimisation", "only of tasks that are draws"),
        (
            "thompson",
            {},
            "bayesian_optimisation",
            "no posterior over its tasks' records: choose the source gp_thompson",
        ),
    ],
)
def test_sources_refuse_families_they_cannot_play(source, options, family, message):
    family = make_family(family)
    tasks = family.split().test[:2]
    with pytest.raises(UserError, match=message):
        make_source(source, **options).make(family, family.make_vec(tasks), LaneStreams(0, lane_ids=2), 5)


@pytest.mark.parametrize("source", ["gp_ei", "gp_thompson"])
def test_a_missing_library_names_the_extra(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "botorch", None)
    for name in [name for name in sys.modules if name.startswith("botorch.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{source} needs BoTorch .*: pip install icrl\[bo\]"):
        search(source, BayesianOptimisation().split().test[:2], 2)
