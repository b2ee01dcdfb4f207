"""Token layouts: how transitions become tokens. One file owns them; an objective names the one that it uses.

``step``        token t holds (o_t, a_{t-1}, r_{t-1}, d_{t-1}), and where an episode begins the final observation of the one before it;
                the action of step t is predicted at token t. Interleaved, step t is several tokens: (a_{t-1}, r_{t-1}), the return still to come
                where it is an input (Chen et al. 2021, arXiv 2106.01345), and o_t, at which the action is predicted.
``transition``  context tokens hold (o, a, r, o'); a query token holds o alone. A learned beginning-of-context token comes first.

What a memory brings is one token per transition (icrl/memory), with embeddings of its own.

The first token of a window carries no previous step, in training as at deployment.
"""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from icrl.config import ModelConfig
from icrl.data.chunks import Retrieved
from icrl.interfaces import FamilySpec, Observation, map_observation
from icrl.models.observations import ReturnEncoder, make_encoder
from icrl.models.points import PointTable


class Previous(NamedTuple):
    """What the step before a token was: the inputs of layout ``step`` beside the observation. All (B, T, ...)."""

    exists: Tensor  # bool: False for the first token of a window
    action: Tensor
    reward: Tensor  # float32
    ended: Tensor  # bool: the episode ended, this token begins the next one
    observation: Observation  # what the step started from; read only with `config.previous_observation`
    final_observation: Observation  # the step's next observation; read only where `ended`
    episode_return: Tensor  # float32: rewards of the running episode so far, 0 where it begins; read only with `config.episode_return`
    return_to_go: Tensor  # float32: what the running episode is still to earn, this step included; where it is an input
    begins: Tensor | None = None  # bool: a plan begins now; read only with `config.plans`


class ActionRewardEmbedding(nn.Module):
    """a and r together: E[a] + r·R[a] for discrete actions, so that what an action earned is one look-up away; else a network on (a, r)."""

    def __init__(self, spec: FamilySpec, config: ModelConfig):
        super().__init__()
        width, space = config.width, spec.action_space
        self.reward_mean, self.reward_scale = config.reward_mean, config.reward_scale
        self.start = int(space.start) if isinstance(space, gym.spaces.Discrete) else None
        if spec.action_points is not None:
            self.action, self.reward = PointTable(spec.action_points, width), PointTable(spec.action_points, width)
        elif isinstance(space, gym.spaces.Discrete):
            self.action, self.reward = nn.Embedding(int(space.n), width), nn.Embedding(int(space.n), width)
        else:
            size = int(np.prod(space.shape or (1,))) + 1
            self.network = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, action: Tensor, reward: Tensor) -> Tensor:
        """(..., [A]) and (...) -> (..., D)."""
        reward = (reward - self.reward_mean) / self.reward_scale
        if self.start is None:
            return self.network(torch.cat([action.float(), reward[..., None]], -1))
        index = action.long() - self.start
        return self.action(index) + reward[..., None] * self.reward(index)


class StepTokens(nn.Module):
    """Layout ``step``."""

    def __init__(self, spec: FamilySpec, config: ModelConfig):
        super().__init__()
        self.observation = make_encoder(config.width, spec.observation_space)
        self.final_observation = make_encoder(config.width, spec.observation_space)
        self.action_reward = ActionRewardEmbedding(spec, config)
        self.kind = nn.Embedding(3, config.width)  # first of the window, within an episode, first of a later episode
        self.hidden = nn.Parameter(torch.zeros(config.width))
        self.previous_observation = None
        if config.previous_observation:
            self.previous_observation = make_encoder(config.width, spec.observation_space)
        self.episode_return = ReturnEncoder(config.width) if config.episode_return else None
        self.return_to_go = ReturnEncoder(config.width) if config.conditioned else None
        self.per_step_left, self.rate_step = config.return_to_go == "rate", config.rate_step
        self.horizon = spec.horizon
        self.part = nn.Embedding(config.tokens_per_step, config.width) if config.tokens_per_step > 1 else None
        self.plan = nn.Embedding(2, config.width) if config.plans else None
        self.positions = config.episode_embedding
        if self.positions:
            self.episode = nn.Embedding(config.window, config.width)
            self.episode_step = nn.Embedding(min(spec.horizon, config.window), config.width)

    def forward(
        self,
        observation: Observation,  # (B, T, ...)
        previous: Previous,
        episode: Tensor,  # (B, T) number of the episode within the window
        episode_step: Tensor,  # (B, T) step within the episode
        hidden: Tensor | None = None,  # (B, T) bool: tokens whose content is hidden in training
    ) -> Tensor:
        parts = self._parts(observation, previous, episode_step)
        kind = self.part
        x = (
            sum(parts[1:], parts[0])[:, :, None] if kind is None else torch.stack(parts, 2) + kind.weight
        )  # (B, T, parts, D)
        if hidden is not None:
            x = torch.where(hidden[..., None, None], self.hidden.to(x.dtype), x)
        if self.positions:
            x = x + self.episode(episode.long().clamp(max=self.episode.num_embeddings - 1))[:, :, None]
            x = x + self.episode_step(episode_step.long().clamp(max=self.episode_step.num_embeddings - 1))[:, :, None]
        return x.flatten(1, 2)

    def _parts(self, observation: Observation, previous: Previous, episode_step: Tensor) -> list[Tensor]:
        """What each token of a step holds, or what its one token holds together: (B, T, D) each."""
        before, now = self._before(previous), self._now(observation, previous)
        if self.return_to_go is None:
            return [before, now]
        to_go = previous.return_to_go
        if self.per_step_left:
            to_go = to_go / (self.horizon - episode_step).clamp(min=1)
        if self.rate_step:
            to_go = (to_go / self.rate_step).round() * self.rate_step
        return [before, self.return_to_go(to_go[..., None]), now]

    def _before(self, previous: Previous) -> Tensor:
        """(B, T, D) what the step before did and earned."""
        before = self.action_reward(previous.action, previous.reward)
        if self.previous_observation is not None:
            before = before + self.previous_observation(previous.observation)
        return before * previous.exists[..., None]

    def _now(self, observation: Observation, previous: Previous) -> Tensor:
        """(B, T, D) what is seen now, and how the step before ended."""
        begins = previous.ended & previous.exists
        x = self.observation(observation) + self.kind(previous.exists.long() * (1 + previous.ended.long()))
        if bool(begins.any()):
            x = x + self.final_observation(previous.final_observation) * begins[..., None]
        if self.episode_return is not None:
            x = x + self.episode_return(previous.episode_return[..., None])
        if self.plan is not None:
            assert previous.begins is not None, "this policy must be told where plans begin"
            x = x + self.plan(previous.begins.long())
        return x


class TransitionTokens(nn.Module):
    """Layout ``transition``."""

    def __init__(self, spec: FamilySpec, config: ModelConfig):
        super().__init__()
        self.begin = nn.Parameter(0.02 * torch.randn(config.width))
        self.query_kind = nn.Parameter(torch.zeros(config.width))
        self.observation = make_encoder(config.width, spec.observation_space)
        self.next_observation = make_encoder(config.width, spec.observation_space)
        self.query_observation = make_encoder(config.width, spec.observation_space)
        self.action_reward = ActionRewardEmbedding(spec, config)

    def beginning(self, batch: int) -> Tensor:
        """(B, 1, D): the token that every context starts with."""
        return self.begin.expand(batch, 1, -1)

    def context(
        self, observation: Observation, action: Tensor, reward: Tensor, next_observation: Observation
    ) -> Tensor:
        """(B, P, ...) transitions -> (B, P, D)."""
        around = self.observation(observation) + self.next_observation(next_observation)
        return around + self.action_reward(action, reward)

    def query(self, observation: Observation) -> Tensor:
        """(B, Q, ...) observations -> (B, Q, D)."""
        return self.query_observation(observation) + self.query_kind


class RetrievedTokens(nn.Module):
    """Tokens of what a memory brought: embeddings of their own, and where in its chunk each transition stands."""

    def __init__(self, spec: FamilySpec, config: ModelConfig):
        super().__init__()
        self.observation = make_encoder(config.width, spec.observation_space)
        self.action_reward = ActionRewardEmbedding(spec, config)
        self.before = ActionRewardEmbedding(spec, config) if config.memory.arrivals else None
        self.ended = nn.Embedding(2, config.width)
        self.position = nn.Embedding(2 * config.memory.chunk, config.width)
        self.return_to_go = ReturnEncoder(config.width) if config.conditioned else None
        self.episode_return = ReturnEncoder(config.width) if config.episode_return else None
        self.norm = nn.LayerNorm(config.width)
        self.repeats = config.memory.repeats

    def forward(self, retrieved: Retrieved) -> Tensor:
        """(B, R, M, ...) -> (B, R, M, D); what is not valid is finite, and not looked at."""
        x = self.observation(retrieved.observation) + self.action_reward(retrieved.action, retrieved.reward)
        x = x + self.ended(retrieved.ended.long()) + self.position(retrieved.position)
        if self.return_to_go is not None:
            x = x + self.return_to_go(retrieved.return_to_go[..., None])
        if self.episode_return is not None:
            x = x + self.episode_return(retrieved.episode_return[..., None])
        if self.before is not None:
            action, reward, ended = (part.roll(1, 2) for part in (retrieved.action, retrieved.reward, retrieved.ended))
            led_here = (retrieved.position > 0) & ~ended
            x = x + self.before(action, reward) * led_here[..., None]
        return self.norm(x)

    def looked_at(self, retrieved: Retrieved) -> Tensor:
        """(B, R, M) bool: all that is valid, or without `memory.repeats` that of it which does not repeat the step before it in its chunk."""
        if self.repeats:
            return retrieved.valid
        told = [retrieved.action, retrieved.reward, retrieved.ended]
        map_observation(told.append, retrieved.observation)
        same = [(part == part.roll(1, 2)).reshape(*retrieved.valid.shape, -1).all(-1) for part in told]
        again = torch.stack([retrieved.position > 0, *same]).all(0)
        return retrieved.valid & ~again
