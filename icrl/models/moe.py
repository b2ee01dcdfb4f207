"""Mixtures of experts in place of a block's feed-forward layer: one routed token by token, one by task (T2MIR: Wu et al. 2025, arXiv 2506.05426).

A block has one of the two, or both; then each gives half of the width. A token is handed to the ``top`` experts of its router's choice, and their outputs
are added with gates that sum to 1. The token router reads the token itself. The task router reads a running summary of what the window holds so far (or of
its completed episodes), never what comes later, so that the choice sharpens as evidence comes and costs one decision per step behind a cache.

Experts are as wide as makes a token's active weights, those that decide its route included, as many as those of the dense layer with the same
``model.mlp_ratio``.

Deviations from the public code: no token is routed by the future; which of two thresholds counts for an expert's load follows from its noisy logit, not from
the noise alone; gates are softmaxes in float32 whatever else is not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl.config import ModelConfig
from icrl.interfaces import UserError

FEW_TOKENS = 64
"""So many tokens at most are handed to all experts at once."""
LEAST_NOISE = 1e-2
"""Least standard deviation of a router's noise in training."""


class Routes(NamedTuple):
    """Where tokens (...) go, among E experts."""

    experts: Tensor  # (..., k) int64 the chosen ones
    gates: Tensor  # (..., k) float32, sum to 1
    load: (
        Tensor  # (..., E) float32 probability of being chosen if the noise were drawn anew; without noise whether it is
    )
    representation: Tensor  # (..., D) what the decision was made from


class Router(nn.Module):
    """Noisy top-k gating (Shazeer et al. 2017) on a two-layer network: Linear, Tanh, Linear."""

    def __init__(self, width: int, num_experts: int, top: int):
        super().__init__()
        self.top = top
        self.represent = nn.Linear(width, width)
        self.choose = nn.Linear(width, num_experts, bias=False)
        self.spread = nn.Linear(width, num_experts, bias=False)

    def forward(self, asked: Tensor) -> Routes:
        """Routes of (..., D)."""
        with torch.autocast(asked.device.type, enabled=False):
            representation = torch.tanh(self.represent(asked.float()))
            clean = self.choose(representation)
            if not self.training:
                values, experts = clean.topk(self.top, -1)
                chosen = torch.zeros_like(clean).scatter(-1, experts, 1.0)
                return Routes(experts, values.softmax(-1), chosen, representation)
            deviation = F.softplus(self.spread(representation)) + LEAST_NOISE
            noisy = clean + deviation * torch.randn_like(clean)
            values, experts = noisy.topk(self.top, -1)
            load = _probability_of_choice(clean, deviation, noisy, self.top)
            return Routes(experts, values.softmax(-1), load, representation)


def _probability_of_choice(clean: Tensor, deviation: Tensor, noisy: Tensor, top: int) -> Tensor:
    """(..., E) probability that an expert is among the ``top`` when its own noise is drawn anew and that of the others stays."""
    if top == clean.shape[-1]:
        return torch.ones_like(clean)
    best = noisy.topk(top + 1, -1).values
    inside = noisy > best[..., -1:]
    threshold = torch.where(inside, best[..., -1:], best[..., -2:-1])  # the top-th largest of the others
    return torch.special.ndtr((clean - threshold) / deviation)


class TaskRouter(Router):
    """A router whose representation a contrastive loss may draw together within tasks; keeps a slow copy of what makes it."""

    def __init__(self, width: int, num_experts: int, top: int):
        super().__init__(width, num_experts, top)
        self.slow = copy.deepcopy(self.represent).requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the slow copy: ``momentum`` of itself and the rest of the weights as they are."""
        for slow, fast in zip(self.slow.parameters(), self.represent.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)

    @torch.no_grad()
    def slow_representation(self, asked: Tensor) -> Tensor:
        """What the slow copy makes of (..., D)."""
        return torch.tanh(self.slow(asked.float()))


class Experts(nn.Module):
    """E two-layer networks with GELU, D -> hidden -> ``out``."""

    def __init__(self, num: int, width: int, hidden: int, out: int):
        super().__init__()
        self.up = nn.Parameter(torch.empty(num, width, hidden))
        self.up_bias = nn.Parameter(torch.zeros(num, hidden))
        self.down = nn.Parameter(torch.empty(num, hidden, out))
        self.down_bias = nn.Parameter(torch.zeros(num, out))

    def initialise(self, num_layers: int) -> None:
        """As the dense layer: rows of unit norm in, what is added to the residual stream scaled by depth."""
        nn.init.normal_(self.up, std=self.up.shape[1] ** -0.5)
        nn.init.normal_(self.down, std=0.02 / (2 * num_layers) ** 0.5)

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """x (..., D) -> (..., out). Tokens are sorted by expert, so that each expert sees all of its own in one product.

        Of few tokens, as at deployment, every expert sees all: fewer and larger products.
        """
        if not self.training and x.shape[:-1].numel() <= FEW_TOKENS:
            return self._all_on_all(x, routes)
        top, shape = routes.experts.shape[-1], x.shape[:-1]
        order = routes.experts.flatten().argsort(stable=True)  # (N k,) of pairs of a token and an expert
        counts = routes.experts.flatten().bincount(minlength=len(self.up)).tolist()
        rows = x.flatten(0, -2).index_select(0, order // top)
        weights = zip(self.up.unbind(), self.up_bias.unbind(), self.down.unbind(), self.down_bias.unbind(), strict=True)
        parts = [_feed(part, *own) for part, own in zip(rows.split(counts), weights, strict=True) if len(part)]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        out = torch.cat(parts).index_select(0, back).unflatten(0, (*shape, top))  # (..., k, out)
        return (out * routes.gates.to(out.dtype)[..., None]).sum(-2)

    def _all_on_all(self, x: Tensor, routes: Routes) -> Tensor:
        rows = x.flatten(0, -2).expand(len(self.up), -1, -1)  # (E, N, D)
        up, up_bias, down, down_bias = (w.to(x.dtype) for w in (self.up, self.up_bias, self.down, self.down_bias))
        hidden = F.gelu(torch.baddbmm(up_bias[:, None], rows, up))
        out = torch.baddbmm(down_bias[:, None], hidden, down)  # (E, N, out)
        experts, gates = routes.experts.flatten(0, -2), routes.gates.flatten(0, -2).to(x.dtype)
        share = x.new_zeros(len(experts), len(self.up)).scatter_(1, experts, gates)  # (N, E)
        return (out * share.T[..., None]).sum(0).view(*x.shape[:-1], -1)

    def by_loop(self, x: Tensor, routes: Routes) -> Tensor:
        """The same, expert after expert over all tokens: what ``forward`` must equal (tests/test_moe.py)."""
        total = torch.zeros(())
        for number in range(len(self.up)):
            gate = (routes.gates * (routes.experts == number)).sum(-1, keepdim=True)
            own = self.up[number], self.up_bias[number], self.down[number], self.down_bias[number]
            total = total + gate * _feed(x, *own)
        return total


def _feed(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, up.mT, up_bias)), down.mT, down_bias)


def expert_widths(config: ModelConfig, num: int, top: int) -> tuple[int, int]:
    """Hidden and output width of experts of which a token is handed to ``top`` of ``num``."""
    parts = 2 if config.mixture.parts == "both" else 1
    out = config.width // parts
    router = config.width * (config.width + num)
    budget = 2 * config.mlp_ratio * config.width**2 / parts - router
    return round(budget / (top * (config.width + out))), out


class Mixture(nn.Module):
    """What stands in place of the feed-forward layer: x (B, T, D), and the summary of what came before, to (B, T, D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout, mixture, width = config.dropout, config.mixture, config.width
        self.token_router = self.token_experts = self.task_router = self.task_experts = None
        if mixture.parts != "task":
            self.token_router = Router(width, mixture.token_experts, mixture.token_top)
            hidden, out = expert_widths(config, mixture.token_experts, mixture.token_top)
            self.token_experts = Experts(mixture.token_experts, width, hidden, out)
        if mixture.parts != "token":
            self.task_router = TaskRouter(width, mixture.task_experts, mixture.task_top)
            hidden, out = expert_widths(config, mixture.task_experts, mixture.task_top)
            self.task_experts = Experts(mixture.task_experts, width, hidden, out)

    def initialise(self, num_layers: int) -> None:
        """Weights of all experts; the slow copy of the task router starts as the router."""
        for experts in (self.token_experts, self.task_experts):
            if experts is not None:
                experts.initialise(num_layers)
        if self.task_router is not None:
            self.task_router.follow(0.0)

    def forward(self, x: Tensor, summary: Tensor | None) -> Tensor:
        parts = []
        if self.token_router is not None and self.token_experts is not None:
            parts.append(self.token_experts(x, self.token_router(x)))
        if self.task_router is not None and self.task_experts is not None:
            assert summary is not None, "a task router reads a summary"
            parts.append(self.task_experts(x, self.task_router(summary)))
        return F.dropout(torch.cat(parts, -1), self.dropout, self.training)


class Decision(NamedTuple):
    """What one router was asked, (B, T, D), and what it decided."""

    name: str  # of the router, within the policy
    router: Router
    asked: Tensor
    routes: Routes

    @property
    def place(self) -> tuple[str, str]:
        """``transformer.blocks.2.mlp.task_router`` -> ``("task", "2")``."""
        _, _, block, _, router = self.name.split(".")
        return router.removesuffix("_router"), block


@contextmanager
def watched(policy: nn.Module) -> Iterator[list[Decision]]:
    """The decisions of all routers of a policy while this lasts, in the order in which they are made."""
    seen: list[Decision] = []
    hooks = []
    for name, module in policy.named_modules():
        if isinstance(module, Router):

            def keep(router: nn.Module, asked: tuple[Tensor], routes: Routes, name: str = name) -> None:
                assert isinstance(router, Router)
                seen.append(Decision(name, router, asked[0], routes))

            hooks.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def check_mixture(config: ModelConfig) -> None:
    """Raise UserError where the options of the mixture contradict each other."""
    mixture = config.mixture
    if not mixture.blocks:
        return
    last = config.num_layers - 1
    if min(mixture.blocks) < 0 or max(mixture.blocks) > last or len(set(mixture.blocks)) < len(mixture.blocks):
        raise UserError(
            f"model.mixture.blocks {' '.join(map(str, mixture.blocks))}: expected different numbers from 0 to {last}"
        )
    if mixture.parts == "both" and config.width % 2:
        raise UserError(
            f"model.width {config.width} is odd, and each of two mixtures gives half of it: choose an even one"
        )
    for part in ("token", "task"):
        top, num = getattr(mixture, f"{part}_top"), getattr(mixture, f"{part}_experts")
        if not 1 <= top <= num:
            raise UserError(
                f"model.mixture.{part}_top is {top}, expected 1 to the {num} experts of model.mixture.{part}_experts"
            )
        if mixture.parts in (part, "both") and expert_widths(config, num, top)[0] < 1:
            raise UserError(
                f"model.mixture.{part}_top {top} leaves no width for experts within model.mlp_ratio {config.mlp_ratio}: hand tokens to fewer"
            )
    for name in ("token_balance", "task_balance", "contrast"):
        if not 0 <= getattr(mixture, name) < math.inf:
            raise UserError(f"model.mixture.{name} is {getattr(mixture, name)}, expected a weight of at least 0")
    if not 0 <= mixture.momentum <= 1 or not mixture.temperature > 0:
        raise UserError(
            f"model.mixture.momentum {mixture.momentum} and temperature {mixture.temperature}: expected 0 to 1, and more than 0"
        )
    if mixture.summary == "episodes" and config.episodic:
        raise UserError(
            "model.mixture.summary episodes has nothing to read where model.episodic forgets them: choose prefix"
        )
    if mixture.summary == "episodes" and config.layout != "step":
        raise UserError(
            "model.mixture.summary episodes needs model.layout step, whose windows have an order: choose prefix"
        )
