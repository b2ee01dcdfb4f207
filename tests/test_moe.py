"""Laws of mixtures of experts: what an expert mixture computes, who is routed where, and what the routers' losses reward."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from tiny_training import FAMILY, LAYOUTS, MIXTURE, RECIPE, make_store

from icrl import checkpoint
from icrl.config import MixtureConfig, ModelConfig
from icrl.data.sampling import WindowSampler
from icrl.interfaces import FamilySpec, Symmetry, UserError
from icrl.models.moe import Decision, Experts, Mixture, Router, Routes, TaskRouter, watched
from icrl.models.policy import make_policy
from icrl.objectives.routing import info_nce, routing_loss, variation
from icrl.optimisation import Learner
from icrl.recipes import smoke
from icrl.training import make_sampler, train
from scripts.check import check_recipe

SPEC = FamilySpec("toy", MultiDiscrete([4, 5]), Discrete(4), 4)


def experts_of(num=5, width=6, hidden=7, out=3, dtype=torch.float64, seed=0) -> Experts:
    experts = Experts(num, width, hidden, out).to(dtype)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=dtype))
    return experts


def routes_of(experts, num: int, gates=None) -> Routes:
    experts = torch.as_tensor(experts)
    gates = torch.full(experts.shape, 1 / experts.shape[-1]) if gates is None else gates
    load = torch.zeros(*experts.shape[:-1], num).scatter(-1, experts, 1.0)
    return Routes(experts, gates, load, torch.zeros(*experts.shape[:-1], 2))


def router_of(kind: type[Router] = Router, width=6, num=5, top=2, seed=0) -> Any:
    router = kind(width, num, top)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    return router


# experts


@pytest.mark.parametrize("top, never", [(1, 0), (2, 3), (5, None)])
@pytest.mark.parametrize("training", [True, False])  # sorted, and, as these are few tokens, all at once
def test_grouped_experts_are_those_of_the_loop_in_values_and_gradients(top, never, training):
    experts, random = experts_of().train(training), torch.Generator().manual_seed(1)
    x = torch.randn(4, 9, 6, generator=random, dtype=torch.float64, requires_grad=True)
    score = torch.rand(4, 9, 5, generator=random)
    if never is not None:
        score[..., never] = -1.0  # an expert that gets nothing
    chosen = score.topk(top, -1).indices
    gates = torch.rand(4, 9, top, generator=random, dtype=torch.float64).softmax(-1).requires_grad_()
    found = []
    for forward in (experts.forward, experts.by_loop):
        out = forward(x, routes_of(chosen, 5, gates))
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in (x, gates, *experts.parameters()) if p.grad is not None)])
        experts.zero_grad()
        x.grad = gates.grad = None
    assert len(found[0]) == len(found[1]) == 7
    for grouped, looped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, looped, rtol=1e-10, atol=1e-10)


def test_identical_experts_are_one_network_whoever_is_chosen():
    experts, one = experts_of(dtype=torch.float32), experts_of(1, dtype=torch.float32)
    with torch.no_grad():
        for parameter, single in zip(experts.parameters(), one.parameters(), strict=True):
            parameter.copy_(single.expand_as(parameter))
    x, router = torch.randn(3, 8, 6), router_of().eval()
    alone = routes_of(torch.zeros(3, 8, 1, dtype=torch.long), 1, torch.ones(3, 8, 1))
    torch.testing.assert_close(experts(x, router(x)), one(x, alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", ["both", "token", "task"])
def test_active_weights_are_those_of_the_dense_layer(parts):
    config = ModelConfig(width=48, mlp_ratio=6, mixture=MixtureConfig(blocks=(0,), parts=parts))
    mixture = Mixture(config)
    active = 0
    for experts, top in ((mixture.token_experts, 2), (mixture.task_experts, 2)):
        if experts is not None:
            active += top * (experts.up[0].numel() + experts.down[0].numel())
    for router in (mixture.token_router, mixture.task_router):
        active += 0 if router is None else router.represent.weight.numel() + router.choose.weight.numel()
    assert active == pytest.approx(2 * 6 * 48**2, rel=0.01)  # widths are whole numbers
    assert mixture(torch.zeros(2, 3, 48), torch.zeros(2, 3, 48)).shape == (2, 3, 48)


# routers


def test_a_router_takes_the_best_and_its_gates_are_their_softmax():
    router, x = router_of().eval(), torch.randn(20, 6)
    routes = router(x)
    logits = router.choose(torch.tanh(router.represent(x)))
    np.testing.assert_array_equal(routes.experts, logits.argsort(-1, descending=True)[:, :2])
    torch.testing.assert_close(routes.gates, logits.gather(-1, routes.experts).softmax(-1))
    torch.testing.assert_close(routes.load, torch.zeros(20, 5).scatter(1, routes.experts, 1.0))
    torch.testing.assert_close(router(x).gates, routes.gates)  # no noise when it is not training


def test_the_load_is_the_probability_of_being_chosen_if_the_own_noise_were_drawn_anew():
    router, x = router_of(top=2), torch.randn(1, 6)
    torch.manual_seed(0)
    routes = router(x)
    torch.manual_seed(0)
    representation = torch.tanh(router.represent(x))
    clean = router.choose(representation)[0]
    deviation = torch.nn.functional.softplus(router.spread(representation))[0] + 0.01
    noisy = clean + deviation * torch.randn_like(clean[None])[0]
    for expert in range(5):
        others = torch.cat([noisy[:expert], noisy[expert + 1 :]])
        drawn = clean[expert] + deviation[expert] * torch.randn(
            200_000, generator=torch.Generator().manual_seed(expert)
        )
        chosen = (drawn > others.sort(descending=True).values[1]).float().mean()
        assert routes.load[0, expert].item() == pytest.approx(chosen.item(), abs=0.005)


def test_a_router_that_takes_all_has_full_load():
    assert (router_of(top=5)(torch.randn(3, 6)).load == 1).all()


def test_routing_is_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        routes = router_of()(torch.randn(3, 6, dtype=torch.bfloat16))
    assert routes.gates.dtype == routes.load.dtype == routes.representation.dtype == torch.float32


def decisions(policy, length=8, seed=0, change_from: int | None = None) -> list[Decision]:
    """What the routers decide on a random window, whose observations from one on may be others."""
    window = make_window(policy, length, seed, change_from)
    with watched(policy) as seen, torch.no_grad():
        policy.step_window(*window)
    return seen


def make_window(policy, length, seed, change_from):
    from test_models import cut, step_inputs

    inputs = step_inputs(policy, 3, length, seed)
    if change_from is None:
        return inputs
    other = step_inputs(policy, 3, length, seed + 50)
    head: Any
    tail: Any
    head, tail = cut(inputs, np.s_[:, :change_from]), cut(other, np.s_[:, change_from:])
    joined: list[Any] = [None if a is None else torch.cat([a, b], 1) for a, b in zip(head[1], tail[1], strict=True)]
    previous = type(inputs[1])(*joined)  # type: ignore[arg-type]
    return (
        torch.cat([head[0], tail[0]], 1),
        previous,
        torch.cat([head[2], tail[2]], 1),
        torch.cat([head[3], tail[3]], 1),
    )


@pytest.mark.parametrize("summary", ["prefix", "episodes"])
def test_future_tokens_change_no_routing_of_earlier_ones(summary):
    mixture = replace(MIXTURE, blocks=(0, 1), summary=summary)
    policy = make_policy(SPEC, ModelConfig(window=12, width=16, num_layers=2, num_heads=2, mixture=mixture), 0).eval()
    before, after = decisions(policy), decisions(policy, change_from=5)
    assert [d.name.rpartition(".")[2] for d in before] == ["token_router", "task_router"] * 2
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.asked[:, :5], other.asked[:, :5])
        np.testing.assert_array_equal(one.routes.experts[:, :5], other.routes.experts[:, :5])
    assert any(
        (one.asked[:, 5:] - other.asked[:, 5:]).abs().max() > 1e-3 for one, other in zip(before, after, strict=True)
    )


def test_a_task_is_told_from_the_mean_of_the_window_or_of_its_completed_episodes():
    episode_step = torch.tensor([[2, 3, 0, 1, 0, 1, 2]])
    for summary, counts in (("prefix", [1, 2, 3, 4, 5, 6, 7]), ("episodes", [0, 0, 2, 2, 4, 4, 4])):
        mixture = replace(MIXTURE, summary=summary)
        policy = make_policy(
            SPEC, ModelConfig(window=12, width=16, num_layers=1, num_heads=2, mixture=mixture), 0
        ).eval()
        told = policy.told(episode_step, 0)
        assert told is not None and told.tolist() == [counts]


def test_the_tokens_of_a_step_share_its_decision_about_the_task():
    options = {"interleaved": True, "return_to_go": "total", "mixture": MIXTURE}
    policy = make_policy(SPEC, ModelConfig(window=12, width=16, num_layers=1, num_heads=2, **options), 0).eval()
    _, task = decisions(policy)
    grouped = task.routes.experts.unflatten(1, (-1, 3))
    assert (grouped == grouped[:, :, :1]).all()


# losses


def test_balance_is_least_where_all_experts_get_the_same():
    assert variation(torch.tensor([3.0, 3.0, 3.0])) == 0
    assert variation(torch.tensor([4.0, 3.0, 2.0])) == pytest.approx(2 / 3 / 9)
    router, valid = router_of(num=4), torch.ones(1, 4, dtype=torch.bool)
    asked, config = torch.randn(1, 4, 6), MixtureConfig(token_balance=1.0)

    def loss(experts) -> float:
        decision = Decision("transformer.blocks.0.mlp.token_router", router, asked, routes_of([experts], 4))
        return float(routing_loss(config, [decision], valid, torch.zeros(1))[0])

    even, uneven, worst = (
        loss([[0, 1], [1, 2], [2, 3], [3, 0]]),
        loss([[0, 1], [0, 2], [2, 3], [3, 0]]),
        loss([[0, 1]] * 4),
    )
    assert even == 0 < uneven < worst


def test_padding_and_weights_of_the_balance_loss():
    router, asked = router_of(num=4), torch.randn(1, 4, 6)
    decision = Decision(
        "transformer.blocks.2.mlp.token_router", router, asked, routes_of([[[0, 1], [2, 3], [0, 1], [0, 1]]], 4)
    )
    valid = torch.tensor([[True, True, False, False]])
    loss, metrics = routing_loss(MixtureConfig(token_balance=0.5), [decision], valid, torch.zeros(1))
    assert loss == 0 and metrics["routing/token_2/least_load"] == metrics["routing/token_2/most_load"] == 0.25
    everything, _ = routing_loss(MixtureConfig(token_balance=0.5), [decision], None, torch.zeros(1))
    assert float(everything) == pytest.approx(0.5 * 2 * 0.25)  # 3, 3, 1, 1: variance 1, squared mean 4


def test_contrast_is_near_zero_where_tasks_are_apart_and_log_of_all_where_they_are_one():
    task = torch.tensor([0, 0, 1, 1, 2, 2])
    apart = torch.eye(3).repeat_interleave(2, 0)
    loss, hit = info_nce(apart, apart, task, 0.05)
    assert loss < 1e-6 and hit == 1
    loss, _ = info_nce(torch.ones(6, 3), torch.ones(6, 3), task, 0.05)
    assert float(loss) == pytest.approx(np.log(5))
    lonely, hit = info_nce(torch.randn(3, 3), torch.randn(3, 3), torch.arange(3), 0.05)
    assert lonely == 0 and hit == 0


def test_contrast_compares_no_window_with_itself():
    fast = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    slow = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    task = torch.tensor([0, 0, 1, 1])
    similarity = torch.nn.functional.normalize(fast, dim=-1) @ torch.nn.functional.normalize(slow, dim=-1).T / 0.5
    expected = []
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        rest = [i for i in range(4) if i != one]
        expected.append(torch.logsumexp(similarity[one, rest], 0) - similarity[one, other])
    assert float(info_nce(fast, slow, task, 0.5)[0]) == pytest.approx(float(torch.stack(expected).mean()))


def test_contrast_looks_at_the_last_step_of_each_window():
    router = router_of(TaskRouter)
    asked = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(5) < torch.tensor([[5], [2], [3], [5]])
    config = MixtureConfig(task_balance=0.0, contrast=1.0)

    def loss(asked) -> float:
        decision = Decision("transformer.blocks.0.mlp.task_router", router, asked, router.eval()(asked))
        return float(routing_loss(config, [decision], valid, torch.tensor([0, 0, 1, 1]))[0].detach())

    other = asked.clone()
    other[~valid] += 1
    other[:, 0] += 1
    assert loss(other) == loss(asked) != pytest.approx(loss(asked.flip(1)))


def test_the_slow_copy_follows_by_the_formula():
    router = router_of(TaskRouter)
    before, fast = router.slow.weight.clone(), router.represent.weight
    router.follow(0.9)
    torch.testing.assert_close(router.slow.weight, 0.9 * before + 0.1 * fast)
    router.follow(0.0)
    torch.testing.assert_close(router.slow.weight, fast.detach())
    assert not router.slow.weight.requires_grad
    asked = torch.randn(3, 6)
    torch.testing.assert_close(router.slow_representation(asked), router(asked).representation.detach())


# in training


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "store")


def mixed(**options):
    return replace(RECIPE, model=replace(RECIPE.model, mixture=replace(MIXTURE, **options)))


def test_gradients_reach_every_expert_and_router(store):
    learner = Learner(mixed(), store.spec, torch.device("cpu"))
    learner.update(make_sampler(mixed(), store).batch(0, 8), 0)
    for name, parameter in learner.policy.named_parameters():
        if ".mlp." in name and parameter.requires_grad:
            assert parameter.grad is not None, name
            each = parameter.grad.abs().flatten(1).sum(1) if "_experts." in name else parameter.grad.abs().sum()
            assert (each > 0).all(), name


def test_every_step_moves_the_slow_copy_and_the_losses_are_logged(store):
    learner = Learner(mixed(momentum=0.5), store.spec, torch.device("cpu"))
    router = next(m for m in learner.policy.modules() if isinstance(m, TaskRouter))
    before = router.slow.weight.clone()
    update = learner.update(make_sampler(mixed(), store).batch(0, 8), 0)
    torch.testing.assert_close(router.slow.weight, (before + router.represent.weight.detach()) / 2)
    assert {"routing/balance", "routing/contrast", "routing/same_task_nearest"} < set(update.metrics)
    assert 0 <= update.metrics["routing/task_0/least_load"] <= 1 / 4 <= update.metrics["routing/task_0/most_load"] <= 1
    without = Learner(mixed(token_balance=0.0, task_balance=0.0, contrast=0.0), store.spec, torch.device("cpu"))
    window = make_sampler(mixed(), store).batch(0, 8)
    plain = without.update(window, 0)
    assert plain.loss < update.loss and "routing/contrast" not in plain.metrics


def test_a_batch_holds_two_windows_of_each_of_its_tasks(store):
    for step in range(5):
        window = make_sampler(mixed(), store).batch(step, 8)
        first, second = window.task[::2], window.task[1::2]
        np.testing.assert_array_equal(first, second)
        assert len(set(first.tolist())) == 4 and (window.history[::2] != window.history[1::2]).all()
    assert len(set(make_sampler(mixed(contrast=0.0), store).batch(0, 8).task.tolist())) > 4
    assert not make_sampler(mixed(parts="token"), store).paired


def test_too_few_tasks_for_pairs_are_one_line(store):
    with pytest.raises(
        UserError, match=r"26 windows.* 13 tasks, and there are histories of 9: lower train\.batch_size"
    ):
        WindowSampler(store, 8, paired=True).batch(0, 26)
    with pytest.raises(UserError, match=r"batches of 7 windows.* need an even number"):
        WindowSampler(store, 8, paired=True).batch(0, 7)


def test_pairs_that_cannot_be_made_are_refused_before_any_work():
    recipe = smoke()
    for batch_size, words in ((15, "need an even number"), (64, "and there are histories of 15")):
        train = replace(recipe.train, pairs=True, batch_size=batch_size)
        with pytest.raises(UserError, match=words):
            check_recipe(replace(recipe, train=train))


def test_a_checkpoint_with_other_experts_is_refused(store, tmp_path):
    short = replace(RECIPE.train, steps=2, warmup_steps=1, validate_every=2)
    best = train(replace(mixed(), train=short), store, FAMILY, tmp_path / "run", progress=False, monitored=False)
    for options in ({"task_experts": 5}, {"parts": "task"}, {"blocks": ()}):
        with pytest.raises(UserError, match="mlp"):
            checkpoint.load_weights(make_policy(store.spec, mixed(**options).model, 0), best)


@pytest.mark.parametrize("name", ["ad mixture", "ad memory and mixture", "dpt transition mixture"])
def test_a_training_cut_off_goes_on_to_the_same_bits(store, tmp_path, monkeypatch, name):
    recipe = replace(LAYOUTS[name], train=replace(RECIPE.train, steps=4, validate_every=2))
    weights = []
    for folder, steps in (("whole", [4]), ("cut", [3, 4])):
        update = Learner.update
        for stop in steps:

            def stopping(self, window, step, stop=stop, update=update):
                if step == stop:
                    raise KeyboardInterrupt
                return update(self, window, step)

            monkeypatch.setattr(Learner, "update", stopping)
            with nullcontext() if stop == 4 else pytest.raises(KeyboardInterrupt):
                train(recipe, store, FAMILY, tmp_path / folder, threads=1, progress=False, monitored=False)
            monkeypatch.setattr(Learner, "update", update)
        latest = checkpoint.find(tmp_path / folder, "latest")
        assert latest is not None
        weights.append((latest / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_bfloat16_trains_and_its_contrast_is_in_float32(store):
    recipe = mixed(contrast=1.0)
    losses = []
    for bf16 in (False, True):
        learner = Learner(replace(recipe, train=replace(RECIPE.train, bf16=bf16)), store.spec, torch.device("cpu"))
        update = learner.update(make_sampler(recipe, store).batch(0, 8), 0)
        losses.append(update.metrics["routing/contrast"])
        assert np.isfinite(update.loss)
    assert losses[0] == pytest.approx(
        losses[1], abs=1e-3
    )  # a similarity over the temperature in bfloat16 is off by 0.06


def test_compiling_a_mixture_is_refused(store):
    with pytest.raises(UserError, match=r"train\.compile cannot compile mixtures"):
        Learner(replace(mixed(), train=replace(RECIPE.train, compile=True)), store.spec, torch.device("cpu"))


def test_windows_of_which_nothing_tells_the_task_do_not_count_in_the_contrast():
    router = router_of(TaskRouter).eval()
    asked = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    config = MixtureConfig(task_balance=0.0, contrast=1.0)

    def loss(asked, task):
        decision = Decision("transformer.blocks.0.mlp.task_router", router, asked, router(asked))
        return float(routing_loss(config, [decision], None, torch.tensor(task))[0].detach())

    blank = torch.cat([asked, torch.zeros(2, 5, 6)])
    assert loss(blank, [0, 0, 1, 1, 2, 2]) == pytest.approx(loss(asked, [0, 0, 1, 1]))


def test_mirrors_keep_pairs_of_one_task(tmp_path):
    images = [Symmetry(lambda o, n=n: o * 0 + n, np.arange(5)) for n in range(3)]
    window = WindowSampler(make_store(tmp_path / "data"), 8, paired=True, symmetries=images).batch(0, 16)
    seen = np.asarray(window.observation)[:, 0, 0]
    np.testing.assert_array_equal(seen[::2], seen[1::2])
    assert len(set(seen.tolist())) == 3


@pytest.mark.parametrize(
    "options, words",
    [
        ({"blocks": (1,)}, "blocks 1: expected different numbers from 0 to 0"),
        ({"blocks": (0, 0)}, "blocks 0 0: expected different numbers"),
        ({"token_top": 4}, "token_top is 4, expected 1 to the 3 experts"),
        ({"task_top": 0}, "task_top is 0, expected 1 to the 4 experts"),
        ({"contrast": -1.0}, "contrast is -1.0, expected a weight of at least 0"),
        ({"task_top": 4, "task_experts": 400}, "leaves no width for experts"),
        ({"momentum": 1.5}, "momentum 1.5"),
        ({"temperature": 0.0}, "temperature 0.0"),
    ],
)
def test_contradictions_are_one_line(options, words):
    with pytest.raises(UserError, match=words):
        make_policy(SPEC, mixed(**options).model, 0)


def test_episodic_windows_have_no_completed_episodes():
    with pytest.raises(UserError, match=r"summary episodes has nothing to read"):
        make_policy(SPEC, ModelConfig(episodic=True, num_layers=1, mixture=replace(MIXTURE, summary="episodes")), 0)


def test_an_odd_width_has_no_halves_and_transitions_have_no_episodes():
    with pytest.raises(UserError, match="width 15 is odd"):
        make_policy(SPEC, ModelConfig(width=15, num_heads=1, head_width=4, num_layers=1, mixture=MIXTURE), 0)
    with pytest.raises(UserError, match=r"summary episodes needs model\.layout step"):
        config = ModelConfig(
            layout="transition", rotary=False, num_layers=1, mixture=replace(MIXTURE, summary="episodes")
        )
        make_policy(SPEC, config, 0)
