"""RL² (Duan et al. 2016; Wang et al. 2016): a recurrent policy that ``icrl rl2`` has trained, as an agent. No torch: an LSTM in numpy.

It sees what ``envs.trial.TrialEncoding`` shows, keeps one state per lane until that lane is reset, through any number of episodes
(trained on trials of a few), and its weights never change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from safetensors import SafetensorError, safe_open
from scipy.special import expit, log_softmax

from agents.base import lanes_of_reset
from envs.trial import TrialEncoding
from icrl.config import RL2Config
from icrl.data.schema import space_to_json, spec_to_json
from icrl.interfaces import (
    ActionRule,
    Agent,
    Array,
    Decision,
    Family,
    FamilySpec,
    Observation,
    Step,
    TaskVectorEnv,
    UserError,
)
from icrl.seeding import LaneStreams

ACTOR = ("lstm_actor.", "action_net.", "log_std")
"""How the names of the weights that act begin."""
FREE_FIELDS = ("steps", "checkpoint_every")
"""Fields of the configuration that may change when a training goes on."""


@dataclass(frozen=True)
class Learned:
    """What a training says of itself, beside the weights in its file."""

    spec: dict[str, Any]
    """Of the family, as JSON."""
    settings: dict[str, Any]
    """The fields of ``icrl.config.RL2Config``."""
    num_tasks: int
    """Training tasks."""
    steps: int = 0
    """Environment steps done, all lanes together."""
    seconds: float = 0.0
    """Time that they took, checkpoints included."""
    library: str = ""
    """What trained it, with its version."""
    best_steps: int = 0
    """Those of the best checkpoint, which acts."""
    best_return: float | None = None
    """Its mean return of an episode on validation tasks."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def note(self) -> str:
        """The budget in words."""
        steps = f"{self.steps / 1e6:.3g} M" if self.steps >= 100_000 else f"{self.steps:,}"
        return (
            f"RL² (recurrent PPO, {steps} steps of training on {self.num_tasks:,} tasks "
            f"in trials of {self.settings['episodes']} episodes)"
        )


def file_of(run: str | Path) -> Path:
    """Where a run folder keeps its RL² policy."""
    return Path(run) / "rl2" / "learner.safetensors"


def known_of(file: Path, family: Family, config: RL2Config) -> Learned:
    """How far the training that ``file`` keeps is; one of 0 steps where there is no file yet.

    Raises UserError for a family that RL² cannot play, and where the file holds a training with other options or spaces.
    """
    check_playable(family.spec)
    wanted = Learned(spec_to_json(family.spec), asdict(config), len(family.split().train))
    if not file.exists():
        return wanted
    found = read_learned(file)
    if found.spec != wanted.spec:
        raise UserError(f"{file} was trained in {found.spec['name']}, with other spaces: remove it to train anew")
    for key, value in wanted.settings.items():
        if key not in FREE_FIELDS and found.settings.get(key) != value:
            raise UserError(
                f"{file} holds a training with rl2.{key} = {found.settings.get(key)}, not {value}: take the same, or remove it to train anew"
            )
    return replace(found, settings=wanted.settings)


def read_learned(file: Path) -> Learned:
    """What the file says of itself. Raises UserError where it is none that ``icrl rl2`` wrote."""
    return _read(file)[0]


def _read(file: Path, prefix: str | None = None) -> tuple[Learned, dict[str, Array]]:
    """The same, and the tensors whose names start with ``prefix``, without it."""
    try:
        with safe_open(file, framework="numpy") as content:
            learned = Learned(**json.loads(content.metadata()["learned"]))
            names = [name for name in content.keys() if prefix and name.startswith(prefix)]  # noqa: SIM118
            return learned, {name.removeprefix(prefix or ""): content.get_tensor(name) for name in names}
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file} is no RL² policy ({error}): remove it and train it again with icrl rl2") from None


def check_playable(spec: FamilySpec) -> None:
    """Raise UserError for spaces that RL² cannot see or act in."""
    TrialEncoding(spec)
    space = spec.action_space
    if not (isinstance(space, Discrete) or (isinstance(space, Box) and space.is_bounded() and len(space.shape) == 1)):
        raise UserError(f"RL² needs discrete actions or a bounded box of vectors, this family has {space}")


@dataclass(frozen=True)
class RL2:
    """A run's RL² policy, a recurrent network trained by reinforcement on trials of training tasks; its weights stay as they are."""

    run: str
    """Run folder that icrl rl2 has trained it in."""
    greedy: bool = False
    """Take the most probable action (of a box: the mean) instead of sampling."""
    temperature: float = 1.0
    """Sample with probabilities to the power 1 / temperature."""

    @property
    def note(self) -> str:
        """Its training budget. Raises UserError where the run has none."""
        return read_learned(self._file()).note

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """Raises UserError where the run has no RL² policy, or one for other spaces."""
        learned, weights = _read(self._file(), "actor.")
        for name in ("observation_space", "action_space"):
            space = getattr(family.spec, name)
            if space_to_json(space) != learned.spec[name]:
                raise UserError(
                    f"the RL² policy of {self.run} was trained in {learned.spec['name']} with another {name.replace('_', ' ')} "
                    f"than {space}: train one for this family"
                )
        return RL2Agent(family.spec, RecurrentPolicy(weights), streams, ActionRule(self.greedy, self.temperature))

    def _file(self) -> Path:
        file = file_of(self.run)
        if not file.exists():
            raise UserError(
                f"{self.run} has no RL² policy: train one with icrl rl2 {self.run} (or set rl2.steps in its recipe)"
            )
        return file


class RecurrentPolicy:
    """One LSTM and a linear layer on it, as sb3-contrib trains them."""

    def __init__(self, weights: dict[str, Array]):
        self._input, self._hidden = (weights[f"lstm_actor.weight_{part}_l0"].T for part in ("ih", "hh"))
        self._bias = weights["lstm_actor.bias_ih_l0"] + weights["lstm_actor.bias_hh_l0"]
        self._head, self._head_bias = weights["action_net.weight"].T, weights["action_net.bias"]
        self.std = np.exp(weights["log_std"]) if "log_std" in weights else None  # (action_dim,) of continuous actions

    def start(self, num_lanes: int) -> Array:
        """(2, B, width) zeros: the hidden and the cell state."""
        return np.zeros((2, num_lanes, len(self._hidden)), np.float32)

    def __call__(self, seen: Array, state: Array) -> tuple[Array, Array]:
        """Inputs (B, D) and states (2, B, width) -> logits or means (B, ·), and the states afterwards."""
        let_in, keep, new, let_out = np.split(seen @ self._input + state[0] @ self._hidden + self._bias, 4, axis=1)
        cell = expit(keep) * state[1] + expit(let_in) * np.tanh(new)
        hidden = expit(let_out) * np.tanh(cell)
        return hidden @ self._head + self._head_bias, np.stack([hidden, cell])


class RL2Agent:
    """The policy in lanes. A step is read when it is acted on; ``observe`` makes that reading final."""

    def __init__(self, spec: FamilySpec, policy: RecurrentPolicy, streams: LaneStreams, rule: ActionRule):
        self._space, self._encoding = spec.action_space, TrialEncoding(spec)
        self._policy, self._streams, self._rule = policy, streams, rule
        self._state = policy.start(streams.num_lanes)
        self._fresh = np.ones(streams.num_lanes, bool)  # (B,) nothing lived through since the reset
        self._last: Step | None = None
        self._looked: tuple[Array, Array] | None = None  # what the last look gave, until the step is observed

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        index = lanes_of_reset(lanes, len(self._fresh))
        self._state[:, index], self._fresh[index], self._looked = 0, True, None

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        """Sample, or take the most probable allowed action; continuous actions are clipped to their box."""
        output, _ = self._look(observation)
        if isinstance(self._space, Discrete):
            logits = output if action_mask is None else np.where(action_mask, output, -np.inf)
            log_probs = log_softmax(logits / self._rule.temperature, axis=1)
            choice = log_probs.argmax(axis=1) if self._rule.greedy else self._streams.choice(np.exp(log_probs))
            chosen = np.take_along_axis(log_probs, choice[:, None], 1)[:, 0]
            return Decision(choice + int(self._space.start), None, chosen.astype(np.float32))
        assert isinstance(self._space, Box) and self._policy.std is not None
        std = self._policy.std * self._rule.temperature**0.5  # a density to the power 1 / temperature
        noise = (
            np.zeros_like(output) if self._rule.greedy else self._streams.normal(output.shape[1]).reshape(output.shape)
        )
        halves = (self._space.high - self._space.low) / 2
        action = self._space.low + (np.clip(output + std * noise, -1, 1) + 1) * halves
        log_density = -np.square(noise) / 2 - np.log(std * halves) - np.log(2 * np.pi) / 2
        action = np.clip(action, self._space.low, self._space.high).astype(self._space.dtype)
        return Decision(action, None, log_density.sum(axis=1).astype(np.float32))  # of the sample before it was clipped

    def observe(self, step: Step) -> None:
        """Remember the step. One that was not acted on (of a context that is given) is read first."""
        _, self._state = self._looked or self._look(step.observation)
        self._looked, self._last = None, step
        self._fresh = np.zeros_like(self._fresh)

    def _look(self, observation: Observation) -> tuple[Array, Array]:
        """Logits or means (B, ·) at an observation, and the states after it, which are not final yet."""
        seen = self._encoding.start(observation)
        if self._last is not None:
            last = self._last
            later = self._encoding.after(observation, last.action, last.reward, last.ended)
            seen = np.where(self._fresh[:, None], seen, later)
        self._looked = self._policy(seen, self._state)
        return self._looked
