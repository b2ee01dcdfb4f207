"""In-context reinforcement learning: train a transformer on learning histories, then learn new tasks with its weights frozen.

``icrl.load(run)`` gives the trained agent of a run folder for your own loop. The steps of a run are functions on a recipe:
``agents.collect.collect``, ``icrl.training.train``, ``icrl.evaluation.evaluate`` and ``icrl.report.build_report``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from icrl.in_context import InContextAgent


def load(
    run: str | Path,
    *,
    checkpoint: Literal["best", "latest"] = "best",
    seed: int = 0,
    greedy: bool = False,
    temperature: float = 1.0,
    append: Literal["step", "episode"] = "step",
    target_return: float | None = None,
    device: str = "cpu",
) -> InContextAgent:
    """The in-context agent of a run folder, with its weights frozen and its context empty.

    Call ``reset(number of lanes)``, then ``act(observation)`` and ``observe(step)`` in turn; ``save_context`` and ``restore_context`` keep what it
    has learned of its tasks. Plans and the returns that a policy goes for follow the recipe's first online evaluation. A return-conditioned policy is asked for ``target_return`` per episode, by default what its recipe says. Actions are sampled, with
    probabilities to the power 1 / ``temperature``, or with ``greedy`` the most probable ones. Raises UserError where the run has no checkpoint or a damaged one, or its layout cannot ``append`` so.
    """
    from icrl.checkpoint import load_policy
    from icrl.in_context import InContextAgent
    from icrl.memory.encoders import make_encoder

    policy, recipe, _ = load_policy(Path(run), checkpoint, device)
    target = recipe.objective.target_return if target_return is None else target_return
    memory = policy.config.memory
    encoder = make_encoder(policy.spec, memory, Path(run)) if memory.k else None
    rule = replace(recipe.validation_rule, greedy=greedy, temperature=temperature)
    return InContextAgent(
        policy,
        seed=seed,
        rule=rule,
        append=append,
        target_return=target,
        search_return=recipe.objective.search_return,
        encoder=encoder,
    )
