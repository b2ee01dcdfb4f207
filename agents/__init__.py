"""Sources by name: agents that leave histories, and the baselines of an evaluation."""

from __future__ import annotations

from typing import Any

from icrl.interfaces import Source
from icrl.registry import build, find_class, known_names

SOURCES: dict[str, str] = {
    "random": "agents.uniform:Uniform",
    "uniform": "agents.uniform:Uniform",
    "fixed_odds": "agents.uniform:FixedOdds",
    "optimal": "agents.oracle:Optimal",
    "annealed": "agents.oracle:Annealed",
    "graded": "agents.oracle:Graded",
    "misled": "agents.oracle:Misled",
    "plans": "agents.plans:Plans",
    "q_learning": "agents.q_learning:QLearning",
    "sb3": "agents.sb3_source:SB3",
    "rl2": "agents.rl2:RL2",
    "ucb": "agents.bandits:UCB",
    "linucb": "agents.bandits:LinUCB",
    "empirical_mean": "agents.bandits:EmpiricalMean",
    "gp_ei": "agents.gaussian_process:GPExpectedImprovement",
    "gp_thompson": "agents.gaussian_process:GPThompson",
    "thompson": "agents.bayes:PosteriorSampling",
    "posterior_sampling": "agents.bayes:PosteriorSampling",
    "sample_and_hold": "agents.bayes:SampleAndHold",
    "nearest_plausible": "agents.bayes:NearestPlausible",
    "blind_sweep": "agents.bayes:BlindSweep",
    "sweep_then_return": "agents.bayes:SweepThenReturn",
    "by_member": "agents.by_member:ByMember",
}
GROUP = "icrl.sources"
"""Entry-point group in which another package may add sources."""


def source_names() -> list[str]:
    """Names of all sources: the built-in ones and those that installed packages add."""
    return sorted(known_names(SOURCES, GROUP))


def source_class(name: str) -> type:
    """The dataclass of the source called ``name``, or of "module:Class". Raises UserError where there is none."""
    return find_class("source", name, SOURCES, GROUP)


def make_source(name: str, /, **options: Any) -> Source:
    """A source with the given options. Raises UserError for an unknown name or option or an impossible value."""
    return build("source", name, source_class(name), options)
