"""Action heads against torch.distributions: losses, log-probabilities, masks, and actions drawn as often as they say."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.distributions import Categorical, Independent, Normal

from icrl.interfaces import ActionRule, UserError
from icrl.models.heads import CategoricalHead, GaussianHead, make_head
from icrl.objectives.base import tensor
from icrl.seeding import LaneStreams

SIZE = 3
BOX = Box(np.array([-1.0, -0.5, -2.0], np.float32), np.array([1.0, 0.5, 0.1], np.float32))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def streams(lanes, name="head"):
    return LaneStreams(0, name, lane_ids=lanes)


def gaussian(space=BOX) -> GaussianHead:
    head = make_head(4, space)
    assert isinstance(head, GaussianHead)
    return head


def categorical(num=5, start=0) -> CategoricalHead:
    head = make_head(4, Discrete(num, start=start))
    assert isinstance(head, CategoricalHead)
    return head


def normal(params) -> Independent:
    """The distribution that the parameters of a Gaussian head stand for."""
    mean, log_std = params[..., :SIZE], params[..., SIZE:]
    return Independent(Normal(mean, log_std.exp()), 1)


# Gaussian


def test_gaussian_loss_is_the_negative_log_density():
    params, action = random(2, 7, 2 * SIZE), random(2, 7, SIZE, seed=1)
    loss = gaussian().loss(params, action)
    assert loss.shape == (2, 7)
    torch.testing.assert_close(loss, -normal(params).log_prob(action))
    torch.testing.assert_close(gaussian().loss(params, action, smoothing=0.3), loss)  # smoothing has no meaning here


def test_gaussian_loss_is_least_where_mean_and_spread_are_those_of_the_labels():
    labels = random(500, SIZE, seed=2) * 0.3 + 0.2
    best = torch.cat([labels.mean(0), labels.std(0, correction=0).log()])
    losses = [gaussian().loss((best + shift).expand(500, -1), labels).mean() for shift in (0.0, 0.1, -0.1)]
    assert losses[0] < min(losses[1:])


@torch.no_grad()
def test_gaussian_spread_is_bounded_whatever_the_features():
    head = gaussian()
    log_std = head(1000 * random(50, 4))[..., SIZE:]
    assert log_std.min() == pytest.approx(-5) and log_std.max() == pytest.approx(2)
    mean, raw = head.linear(random(50, 4)).chunk(2, -1)
    torch.testing.assert_close(head(random(50, 4)), torch.cat([mean, -1.5 + 3.5 * torch.tanh(raw)], -1))


def test_gaussian_draws_are_clipped_but_their_log_density_is_of_the_unclipped_sample():
    params = random(400, 2 * SIZE)
    action, log_prob = gaussian().choose(params, streams(400), ActionRule(), None)
    distribution = normal(params)
    noise = torch.as_tensor(streams(400).normal(SIZE))
    sample = distribution.base_dist.loc + distribution.base_dist.scale * noise.float()  # type: ignore[attr-defined]
    np.testing.assert_allclose(action, sample.clamp(torch.as_tensor(BOX.low), torch.as_tensor(BOX.high)), atol=1e-6)
    np.testing.assert_allclose(log_prob, distribution.log_prob(sample), rtol=1e-4, atol=1e-4)
    clipped = (np.abs(action - sample.numpy()) > 1e-6).any(1)
    assert 0.3 < clipped.mean() < 1
    of_clipped = distribution.log_prob(torch.as_tensor(action)).numpy()
    assert (np.abs(log_prob - of_clipped)[clipped] > 1e-3).mean() > 0.9
    assert all(BOX.contains(one) for one in action)


def test_gaussian_draws_have_the_moments_that_the_parameters_say():
    wide = Box(-np.inf, np.inf, (SIZE,))
    params = torch.tensor([0.3, -2.0, 5.0, -1.0, 0.0, 1.0]).expand(20_000, -1)
    action, log_prob = gaussian(wide).choose(params, streams(20_000), ActionRule(), None)
    np.testing.assert_allclose(action.mean(0), [0.3, -2.0, 5.0], atol=0.06)
    np.testing.assert_allclose(action.std(0), np.exp([-1.0, 0.0, 1.0]), rtol=0.02)
    assert np.abs(np.corrcoef(action.T) - np.eye(SIZE)).max() < 0.03
    entropy = normal(params[0]).entropy().item()
    assert -log_prob.mean() == pytest.approx(entropy, abs=0.03)


def test_gaussian_greedy_is_the_mean_within_the_box_and_draws_nothing():
    params, used = random(50, 2 * SIZE), streams(50)
    action, log_prob = gaussian().choose(params, used, ActionRule(greedy=True), None)
    np.testing.assert_array_equal(action, np.clip(params[:, :SIZE].numpy(), BOX.low, BOX.high))
    np.testing.assert_allclose(log_prob, normal(params).log_prob(params[:, :SIZE]), rtol=1e-5)
    assert not used.counters.any()


def test_gaussian_hit_is_within_two_spreads_in_every_dimension():
    params = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, np.log(2.0)])
    labels = torch.tensor([[1.9, -1.9, 3.9], [2.1, 0, 0], [0, 0, 4.1], [0, -2.1, 0]])
    assert gaussian().hit(params.expand(4, -1), labels).tolist() == [1, 0, 0, 0]


# categorical


@pytest.mark.parametrize("start", [0, 3, -2])
def test_categorical_loss_is_the_negative_log_probability(start):
    logits = random(2, 6, 5)
    index = torch.randint(0, 5, (2, 6), generator=torch.Generator().manual_seed(1))
    loss = categorical(start=start).loss(logits, index + start)
    torch.testing.assert_close(loss, -Categorical(logits=logits).log_prob(index))
    assert categorical(start=start).hit(logits, logits.argmax(-1) + start).all()
    assert not categorical(start=start).hit(logits, logits.argmin(-1) + start).any()


def test_categorical_smoothing_by_hand():
    logits, labels = random(4, 5), torch.tensor([0, 4, 2, 2])
    log_probs = torch.log_softmax(logits, -1)
    target = torch.full((4, 5), 0.2 / 5)
    target[torch.arange(4), labels] += 0.8
    torch.testing.assert_close(categorical().loss(logits, labels, smoothing=0.2), -(target * log_probs).sum(-1))


def test_categorical_draws_as_often_as_it_says():
    logits = random(5).expand(20_000, -1)
    action, log_prob = categorical().choose(logits, streams(20_000), ActionRule(), None)
    probs = torch.softmax(logits[0], -1).numpy()
    np.testing.assert_allclose(np.bincount(action, minlength=5) / 20_000, probs, atol=0.015)
    np.testing.assert_allclose(np.exp(log_prob), probs[action], rtol=1e-5)


@pytest.mark.parametrize("greedy", [False, True])
def test_categorical_masks_leave_no_probability_and_the_rest_sums_to_one(greedy):
    logits = random(3000, 5)
    mask = np.random.default_rng(0).random((3000, 5)) < 0.5
    mask[np.arange(3000), np.arange(3000) % 5] = True
    action, log_prob = categorical().choose(logits, streams(3000), ActionRule(greedy), mask)
    assert mask[np.arange(3000), action].all() and (~mask).any()
    allowed = torch.softmax(logits, -1).numpy() * mask
    expected = (allowed / allowed.sum(1, keepdims=True))[np.arange(3000), action]
    np.testing.assert_allclose(np.exp(log_prob), expected, rtol=1e-4)
    if greedy:
        np.testing.assert_array_equal(action, allowed.argmax(1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_another_temperature_is_a_power_of_the_probabilities(temperature):
    logits, rule = random(5), ActionRule(temperature=temperature)
    action, log_prob = categorical().choose(logits.expand(20_000, -1), streams(20_000), rule, None)
    powers = torch.softmax(logits, -1).double() ** (1 / temperature)
    probs = (powers / powers.sum()).numpy()
    np.testing.assert_allclose(np.bincount(action, minlength=5) / 20_000, probs, atol=0.015)
    np.testing.assert_allclose(np.exp(log_prob), probs[action], rtol=1e-4)
    params = torch.tensor([[0.1, -0.2, 0.0, -1.0, -0.5, -2.0]])
    action, _ = gaussian(Box(-np.inf, np.inf, (SIZE,))).choose(params.expand(20_000, -1), streams(20_000), rule, None)
    spread = np.exp([-1.0, -0.5, -2.0]) * temperature**0.5  # a density to the power 1 / temperature
    np.testing.assert_allclose(action.std(0), spread, rtol=0.05)


def test_a_temperature_that_is_not_positive_is_refused():
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="more than 0"):
            ActionRule(temperature=wrong)


def test_one_allowed_action_is_certain():
    mask = np.eye(5, dtype=bool)[[3, 0, 4]]
    action, log_prob = categorical(start=10).choose(random(3, 5), streams(3), ActionRule(), mask)
    assert action.tolist() == [13, 10, 14] and not log_prob.any()


def test_categorical_greedy_is_the_most_probable_action_and_draws_nothing():
    logits, used = random(40, 5), streams(40)
    action, log_prob = categorical(start=-2).choose(logits, used, ActionRule(greedy=True), None)
    np.testing.assert_array_equal(action, logits.argmax(-1).numpy() - 2)
    np.testing.assert_allclose(log_prob, torch.log_softmax(logits, -1).max(-1).values, rtol=1e-5)
    assert not used.counters.any()


@pytest.mark.parametrize("start", [0, 2, 7, -3])
def test_drawn_actions_are_members_of_a_space_that_starts_anywhere(start):
    space = Discrete(5, start=start)
    action, _ = categorical(start=start).choose(torch.zeros(500, 5), streams(500), ActionRule(), None)
    assert sorted(set(action.tolist())) == list(range(start, start + 5)) and space.contains(action[0])


@pytest.mark.parametrize("start, dtype", [(0, np.uint16), (60_000, np.uint16), (-400, np.int16)])
def test_more_than_256_actions_with_labels_as_they_are_stored(start, dtype):
    head, logits = categorical(num=700, start=start), random(2, 40, 700)
    index = np.random.default_rng(0).integers(0, 700, (2, 40))
    labels = (index + start).astype(dtype)
    assert (labels.astype(int) - start == index).all()  # the space fits the type
    stored = tensor(labels, torch.device("cpu"))
    assert stored.dtype == getattr(torch, np.dtype(dtype).name)
    torch.testing.assert_close(head.loss(logits, stored), -Categorical(logits=logits).log_prob(torch.as_tensor(index)))
    best = tensor((logits.argmax(-1).numpy() + start).astype(dtype), torch.device("cpu"))
    assert head.hit(logits, best).all() and not head.hit(logits, stored).all()
    action, _ = head.choose(
        30 * torch.nn.functional.one_hot(torch.tensor([0, 699, 300]), 700), streams(3), ActionRule(), None
    )
    assert (action - start).tolist() == [0, 699, 300]


@pytest.mark.parametrize("space", [BOX, Discrete(5)])
def test_a_lane_draws_the_same_whoever_plays_beside_it(space):
    head = make_head(4, space)
    params = random(60, 6 if space is BOX else 5)
    alone = head.choose(params[20:], LaneStreams(0, "head", lane_ids=np.arange(20, 60)), ActionRule(), None)
    together = head.choose(params, streams(60), ActionRule(), None)
    for some, all_of_them in zip(alone, together, strict=True):
        np.testing.assert_array_equal(some, all_of_them[20:])


@pytest.mark.parametrize("space", [BOX, Discrete(5)])
def test_losses_are_taken_in_full_precision(space):
    head, rough = make_head(4, space), (3 * random(100, 6 if space is BOX else 5)).bfloat16()
    labels = random(100, SIZE) if space is BOX else torch.arange(100) % 5
    loss = head.loss(rough, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, head.loss(rough.float(), labels), rtol=0, atol=0)
