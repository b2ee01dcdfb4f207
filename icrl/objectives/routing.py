"""What a mixture of experts adds to any objective's loss: balanced experts, and a task router that tells tasks apart (T2MIR: Wu et al. 2025).

Balance (Shazeer et al. 2017): the squared coefficients of variation, over the experts, of their summed gates and of the number of tokens that they are expected
to get. Contrast: every batch holds two windows of each of its tasks (icrl/data/sampling.py); at the last step of each, the task router's
representation must be nearer to what its slow copy makes of the other window of the task than of any window of another task (InfoNCE, He et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from icrl.config import MixtureConfig
from icrl.models.moe import Decision, TaskRouter


def routing_loss(
    config: MixtureConfig, seen: Sequence[Decision], valid: Tensor | None, task: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of all routers, a scalar, and what to log of it.

    ``valid`` (B, T) says which tokens are no padding (None: all), ``task`` (B,) what each window's task is.
    """
    total, metrics = torch.zeros((), device=task.device), {}
    balances, contrasts, found = [], [], []
    for decision in seen:
        counted = torch.ones_like(decision.asked[..., 0], dtype=torch.bool) if valid is None else valid
        weight = config.task_balance if isinstance(decision.router, TaskRouter) else config.token_balance
        balance, load = _balance(decision, counted)
        total = total + weight * balance
        balances.append(balance.detach())
        place = "_".join(decision.place)
        metrics |= {f"routing/{place}/least_load": load.min(), f"routing/{place}/most_load": load.max()}
        metrics[f"routing/{place}/entropy"] = entropy(load)
        if isinstance(decision.router, TaskRouter) and config.contrast:
            contrast, hit = _contrast(decision, decision.router, counted, task, config.temperature)
            total = total + config.contrast * contrast
            contrasts.append(contrast.detach())
            found.append(hit)
    metrics["routing/balance"] = torch.stack(balances).mean()
    if contrasts:
        metrics |= {
            "routing/contrast": torch.stack(contrasts).mean(),
            "routing/same_task_nearest": torch.stack(found).mean(),
        }
    return total, metrics


def _balance(decision: Decision, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The balance loss of one router, and the share of the choices that each expert got, (E,)."""
    routes, weights = decision.routes, valid[..., None].float()
    zeros = torch.zeros_like(routes.load)
    importance = (zeros.scatter(-1, routes.experts, routes.gates) * weights).sum((0, 1))
    load = (routes.load * weights).sum((0, 1))
    with torch.no_grad():
        chosen = (zeros.scatter(-1, routes.experts, 1.0) * weights).sum((0, 1))
    return variation(importance) + variation(load), chosen / chosen.sum().clamp(min=1)


def entropy(shares: Tensor) -> Tensor:
    """Of shares (E,) that sum to 1, in nats: 0 where one expert gets all, ln E where each gets the same."""
    return torch.special.entr(shares).sum()


def variation(amounts: Tensor) -> Tensor:
    """Squared coefficient of variation of (E,): 0 where all are the same."""
    return amounts.var(correction=0) / amounts.mean().square().clamp(min=1e-10)


def _contrast(
    decision: Decision, router: TaskRouter, valid: Tensor, task: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE at the last step of each window, and the share of windows whose nearest is of their task."""
    rows, last = torch.arange(len(task), device=task.device), valid.sum(1) - 1
    asked = decision.asked[rows, last]
    told = asked.detach().any(-1)  # of some there is nothing to tell the task from yet
    fast = decision.routes.representation[rows, last][told]
    return info_nce(fast, router.slow_representation(asked[told]), task[told], temperature)


def info_nce(fast: Tensor, slow: Tensor, task: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of representations (B, D) against those of a slow copy (B, D) by task (B,), no window being compared with itself.

    Windows whose task no other one shares do not count. Also the share of the others whose nearest is of their task.
    """
    similarity = F.normalize(fast, dim=-1) @ F.normalize(slow, dim=-1).T / temperature
    itself = torch.eye(len(task), dtype=torch.bool, device=task.device)
    similarity = similarity.masked_fill(itself, -torch.inf)
    same = (task[:, None] == task) & ~itself
    paired = same.any(1)
    if not bool(paired.any()):
        return fast.sum() * 0, torch.zeros((), device=fast.device)
    among_same = similarity.masked_fill(~same, -torch.inf)[paired].logsumexp(1)
    loss = (similarity[paired].logsumexp(1) - among_same).mean()
    nearest = similarity.argmax(1, keepdim=True)
    return loss, same.gather(1, nearest)[paired].float().mean().detach()


def follow(policy: torch.nn.Module, momentum: float) -> None:
    """Move the slow copies of all task routers, once after every optimiser step."""
    for module in policy.modules():
        if isinstance(module, TaskRouter):
            module.follow(momentum)
