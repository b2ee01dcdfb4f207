"""Bootstrap intervals against closed forms, paired differences, scores, early and late, and the verdict's words."""

import numpy as np
import pytest

from icrl import metrics
from icrl.metrics import Bootstrap, Estimate

RNG = np.random.default_rng(0)


def estimate(low: float, high: float) -> Estimate:
    return Estimate(np.array([(low + high) / 2]), np.array([[low, high]]), None)


def array(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


def width(interval: np.ndarray | None) -> float:
    low, high = array(interval)[0]
    return float(high - low)


def test_constant_columns_have_intervals_of_zero_width():
    bootstrap = Bootstrap(np.arange(12) % 4, num_seeds=3, root_seed=0)
    result = bootstrap(np.full((3, 12, 2), 0.1)).estimate()
    np.testing.assert_allclose(result.mean, [0.1, 0.1])
    np.testing.assert_allclose(array(result.over_tasks), np.full((2, 2), 0.1), atol=1e-12)
    np.testing.assert_allclose(array(result.fixed_tasks), np.full((2, 2), 0.1), atol=1e-12)


def test_mean_weighs_tasks_equally_though_lanes_do_not_divide():
    lane_task = np.arange(5) % 3  # tasks 0 and 1 twice, task 2 once
    values = np.array([[0.0, 0.0, 3.0, 0.0, 0.0]])
    assert Bootstrap(lane_task, 1, 0)(values).point == pytest.approx([1.0])


def test_interval_over_tasks_is_that_of_the_mean_of_independent_tasks():
    num_tasks = 400
    values = RNG.normal(5.0, 2.0, (1, num_tasks))
    result = Bootstrap(np.arange(num_tasks), 1, 0)(values).estimate()
    assert width(result.over_tasks) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(num_tasks), rel=0.08)
    assert result.fixed_tasks is None  # each task played once


def test_interval_with_fixed_tasks_sees_only_the_spread_within_tasks():
    task_effect = np.array([0.0, 100.0])
    lane_task = np.arange(4) % 2
    noise = RNG.normal(0.0, 1.0, (200, 4))
    result = Bootstrap(lane_task, 200, 0)(task_effect[lane_task] + noise).estimate()
    assert width(result.fixed_tasks) == pytest.approx(2 * 1.96 / np.sqrt(800), rel=0.12)
    assert width(result.over_tasks) > 90


def test_interval_with_fixed_tasks_is_not_too_narrow_with_two_runs_per_task():
    num_tasks = 500
    values = RNG.normal(size=(2, num_tasks))
    result = Bootstrap(np.arange(num_tasks), 2, 0)(values).estimate()
    assert width(result.fixed_tasks) == pytest.approx(2 * 1.96 / np.sqrt(2 * num_tasks), rel=0.1)


def test_runs_of_a_task_are_pooled_over_seeds_whatever_the_lane_order():
    lane_task = np.array([1, 0, 1, 0])
    values = np.array([[10.0, 0.0, 10.0, 0.0], [10.0, 0.0, 10.0, 0.0]])
    result = Bootstrap(lane_task, 2, 0)(values).estimate()
    np.testing.assert_allclose(array(result.fixed_tasks), [[5.0, 5.0]])


def test_one_task_has_no_interval_over_tasks():
    result = Bootstrap(np.zeros(3, int), 1, 0)(np.array([[1.0, 2.0, 3.0]])).estimate()
    assert result.over_tasks is None and width(result.fixed_tasks) > 0


def test_difference_is_paired():
    tasks = RNG.normal(0.0, 29.0, (1, 20))
    bootstrap = Bootstrap(np.arange(20), 1, 0)
    difference = (bootstrap(tasks + 1.0) - bootstrap(tasks)).estimate()
    np.testing.assert_allclose(array(difference.over_tasks), [[1.0, 1.0]])
    assert width(bootstrap(tasks).estimate().over_tasks) > 5


def test_ratio_is_paired():
    regrets = RNG.uniform(1.0, 100.0, (1, 50))
    bootstrap = Bootstrap(np.arange(50), 1, 0)
    ratio = bootstrap(1.1 * regrets).apply(metrics.ratio, bootstrap(regrets)).estimate()
    np.testing.assert_allclose(array(ratio.over_tasks), [[1.1, 1.1]])


def test_bootstrap_is_deterministic_and_depends_on_the_seed():
    values = RNG.normal(size=(2, 6, 3))
    first, again, other = (Bootstrap(np.arange(6) % 3, 2, seed)(values) for seed in (0, 0, 1))
    np.testing.assert_array_equal(array(first.over_tasks), array(again.over_tasks))
    np.testing.assert_array_equal(array(first.fixed_tasks), array(again.fixed_tasks))
    assert not np.array_equal(array(first.fixed_tasks), array(other.fixed_tasks))


def test_blocks_of_resamples_bound_memory_and_change_nothing(monkeypatch):
    values = RNG.normal(size=(2, 8))
    whole = Bootstrap(np.arange(8) % 4, 2, 0)(values)
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 100)
    blocks = Bootstrap(np.arange(8) % 4, 2, 0)(values)
    assert whole.over_tasks is not None and blocks.fixed_tasks is not None
    assert whole.over_tasks.shape == (metrics.NUM_RESAMPLES, 1)
    np.testing.assert_allclose(array(blocks.fixed_tasks), array(whole.fixed_tasks))


@pytest.mark.parametrize(
    "episodes, first, last", [(1, [0], [0]), (3, [0], [2]), (40, [0, 1, 2, 3], list(range(30, 40)))]
)
def test_early_is_the_first_tenth_and_late_the_last_quarter(episodes, first, last):
    index = np.arange(episodes)
    assert index[metrics.early(episodes)].tolist() == first
    assert index[metrics.late(episodes)].tolist() == last


def test_late_minus_early_of_a_rising_curve():
    np.testing.assert_allclose(metrics.late_minus_early(np.array([[1.0, 5.0, 9.0, 11.0]])), [[10.0]])


def test_normalised_score_divides_means_over_tasks_not_tasks():
    lane_task, returns = np.arange(2), np.array([[8.0, 1.0]])
    random, optimal = np.array([[0.0, 0.0]]), np.array([[10.0, 2.0]])
    bootstrap = Bootstrap(lane_task, 1, 0)
    score = metrics.normalised_score(*(bootstrap(column).point for column in (returns, random, optimal)))
    assert score == pytest.approx([9 / 12])  # the mean of per-task scores would be 0.65


def test_normalised_score_is_nan_where_nothing_can_be_gained():
    assert np.isnan(metrics.normalised_score(np.array([1.0]), np.array([1.0]), np.array([1.0]))).all()


def test_verdict_learned_iff_both_intervals_exceed_zero():
    result = metrics.verdict(estimate(1, 2), estimate(3, 4))
    assert result.learned is True
    assert result.text.startswith("learned in context: late - early episodes +1.50 [+1.00, +2.00]")


@pytest.mark.parametrize(
    "progress, hidden, failed, held",
    [
        (estimate(-1, 2), estimate(3, 4), "late - early episodes", "agent - rewards hidden"),
        (estimate(1, 2), estimate(0, 4), "agent - rewards hidden", "late - early episodes"),
    ],
)
def test_verdict_says_which_check_failed(progress, hidden, failed, held):
    result = metrics.verdict(progress, hidden)
    assert result.learned is False
    before, after = result.text.split(" does not exceed 0")
    assert failed in before and held not in before and held in after


def test_rounding_is_no_learning():
    rounding = np.array([0.1, 0.1, 0.1]).mean() - 0.1
    assert rounding > 0 and metrics.verdict(estimate(rounding, rounding), estimate(1, 2)).learned is False


def test_verdict_says_that_both_checks_failed():
    result = metrics.verdict(estimate(-1, 1), estimate(-2, -1), "steps")
    assert result.learned is False
    assert "late - early steps" in result.text and "rewards hidden" in result.text
    assert result.text.endswith("do not exceed 0")


@pytest.mark.parametrize(
    "progress, hidden, words",
    [
        (estimate(1, 2), None, "rewards hidden was not evaluated"),
        (None, estimate(1, 2), "one episode"),
        (Estimate(np.array([1.0]), None, None), estimate(1, 2), "at least two tasks"),
    ],
)
def test_verdict_says_why_it_is_not_available(progress, hidden, words):
    result = metrics.verdict(progress, hidden)
    assert result.learned is None and words in result.text
