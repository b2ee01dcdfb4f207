"""The policy: token layout + transformer + action head. It never knows which paper it serves.

Two ways in, which give the same outputs (tests/test_models.py): whole windows for training, and new tokens behind a cache at deployment.
Caches are arguments. Outputs are head parameters (logits, or means and log standard deviations); a policy that predicts returns has two steps: features,
and what is read out of them.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from icrl.config import MemoryConfig, ModelConfig
from icrl.data.chunks import Retrieved
from icrl.interfaces import FamilySpec, Observation, UserError
from icrl.models.attention import CausalWindow, QueriedWindow
from icrl.models.cache import CacheView, KVCache
from icrl.models.heads import make_head
from icrl.models.moe import Mixture, check_mixture
from icrl.models.observations import ReturnEncoder
from icrl.models.retrieval import MemoryView, RetrievalCache, RetrievedWindow
from icrl.models.returns import ReturnAim
from icrl.models.tokens import ActionRewardEmbedding, Previous, RetrievedTokens, StepTokens, TransitionTokens
from icrl.models.transformer import Block, Transformer
from icrl.seeding import derive_seed

EMBEDDING_STD = 0.02
"""Standard deviation of initial embeddings (GPT-2's)."""


class Policy(nn.Module):
    """A sequence model over one token layout.

    Parameters
    ----------
    spec : FamilySpec
        Spaces and horizon of the family.
    config : ModelConfig
        Sizes and layout.

    Raises
    ------
    UserError
        If the sizes contradict each other or a space has no encoder or head.
    """

    tokens: Any  # StepTokens or TransitionTokens, as config.layout says

    def __init__(self, spec: FamilySpec, config: ModelConfig):
        super().__init__()
        check_model(config)
        self.spec, self.config = spec, config
        self.num_slots = (
            config.tokens_per_step * config.window + 2
        )  # the beginning of a context, and a query that is not kept
        self.tokens = (StepTokens if config.layout == "step" else TransitionTokens)(spec, config)
        self.retrieved_tokens = RetrievedTokens(spec, config) if config.memory.k else None
        self.transformer = Transformer(config, self.num_slots)
        self.head = make_head(config.width, spec.action_space, spec.action_points)
        self.aim = ReturnAim(config) if config.predicts_returns else None
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():  # GPT-2's scaling of what is added to the residual stream
            if name.endswith(("attention.out.weight", "cross.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * config.num_layers) ** 0.5)
        for module in self.modules():
            if isinstance(module, Mixture):
                module.initialise(config.num_layers)
            if isinstance(module, ReturnEncoder):
                module.down.weight.data.mul_(config.return_scale)
        together = [module for module in self.modules() if isinstance(module, ActionRewardEmbedding)]
        for module in [part for one in together for part in one.children()]:
            if isinstance(module, nn.Embedding):
                module.weight.data.mul_(config.action_reward_std / EMBEDDING_STD)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(
                module.weight,
                std=EMBEDDING_STD if isinstance(module, nn.Embedding) else module.weight.shape[1] ** -0.5,
            )
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def empty_cache(self, lanes: int) -> KVCache:
        """A cache for that many lanes in which nothing was read yet."""
        config = self.config
        return KVCache.empty(
            config.num_layers,
            lanes,
            config.num_heads,
            self.num_slots,
            config.attention_width // config.num_heads,
            self.device,
            config.mixture.blocks if config.mixture.by_task else (),
            config.width,
        )

    # layout `step`

    def step_window(
        self,
        observation: Observation,
        previous: Previous,
        episode: Tensor,
        episode_step: Tensor,
        hidden: Tensor | None = None,
        memory: MemoryView | None = None,
        apart: Tensor | None = None,
    ) -> Tensor:
        """Whole windows (B, T, ...) -> head parameters (B, T, ·), every token seeing itself, what came before and the memory it is given.

        In windows that are ``apart`` (B,) bool every step is read as if the window began with it.
        """
        features = self.window_features(observation, previous, episode, episode_step, hidden, memory, apart)
        return self.head(self._last(features))

    def window_and_returns(
        self,
        observation: Observation,
        previous: Previous,
        episode: Tensor,
        episode_step: Tensor,
        return_to_go: Tensor,
        improves: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Whole windows (B, T, ...) -> head parameters (B, T, ·) of what goes for ``return_to_go`` (B, T), and logits of that return (B, T, bins).

        ``improves`` (B, T) bool: whether each step's episode is better than those before it if it brings that.
        """
        assert self.aim is not None, "this policy predicts no returns"
        features = self._last(self.window_features(observation, previous, episode, episode_step))
        return self.head(self.aim(features, return_to_go, improves)), self.aim.predict(features)

    def window_features(
        self,
        observation: Observation,
        previous: Previous,
        episode: Tensor,
        episode_step: Tensor,
        hidden: Tensor | None = None,
        memory: MemoryView | None = None,
        apart: Tensor | None = None,
    ) -> Tensor:
        """Whole windows (B, T, ...) -> features (B, tokens, D)."""
        if apart is not None:
            previous = previous._replace(exists=previous.exists & ~apart[:, None])
        x = self.tokens(observation, previous, episode, episode_step, hidden)
        pattern = CausalWindow(x.shape[1], self.told(episode_step, 0), apart, self.config.tokens_per_step)
        return self.transformer(x, pattern, memory=memory)

    def step_cached(
        self,
        observation: Observation,
        previous: Previous,
        episode: Tensor,
        episode_step: Tensor,
        cache: KVCache,
        lanes: Tensor | None = None,
        num_kept: Tensor | None = None,
        memory: MemoryView | None = None,
    ) -> Tensor:
        """New steps (n, T, ...) of ``lanes`` (all if None) behind the cache -> head parameters (n, T, ·), and keep them as ``features_cached`` does."""
        return self.head(
            self.features_cached(observation, previous, episode, episode_step, cache, lanes, num_kept, memory)
        )

    def features_cached(
        self,
        observation: Observation,
        previous: Previous,
        episode: Tensor,
        episode_step: Tensor,
        cache: KVCache,
        lanes: Tensor | None = None,
        num_kept: Tensor | None = None,
        memory: MemoryView | None = None,
    ) -> Tensor:
        """New steps (n, T, ...) of ``lanes`` (all if None) behind the cache -> features (n, T, D).

        Keeps them all, or of each lane the first ``num_kept`` (n,), the rest being padding.
        """
        x = self.tokens(observation, previous, episode, episode_step)
        behind = cache.lengths if lanes is None else cache.lengths[lanes]
        view = CacheView(cache, x.shape[1], lanes, told=self.told(episode_step, behind[:, None]))
        features = self._last(self.transformer(x, view, memory=memory))
        view.keep(x.shape[1] if num_kept is None else num_kept * self.config.tokens_per_step)
        return features

    def told(self, episode_step: Tensor, behind: Tensor | int) -> Tensor | None:
        """(n, tokens) how many tokens the task is told from at each token of steps (n, T), the same for all tokens of a step.

        ``behind`` of them, (n, 1), were read before. None where nothing asks for it.
        """
        if not self.config.mixture.by_task:
            return None
        each = self.config.tokens_per_step
        first = behind + each * torch.arange(episode_step.shape[1], device=episode_step.device)
        told = first + 1
        if self.config.mixture.summary == "episodes":
            told = (first - each * episode_step).clamp(min=0)
        return told.expand(episode_step.shape).repeat_interleave(each, 1)

    def _last(self, features: Tensor) -> Tensor:
        """Of the features of tokens (B, tokens, D) those at the last one of every step (B, T, D)."""
        each = self.config.tokens_per_step
        return features[:, each - 1 :: each]

    # memory

    def window_memory(self, retrieved: Retrieved, kind: type[RetrievedWindow] = RetrievedWindow) -> RetrievedWindow:
        """What the tokens of whole windows see of R retrievals (B, R, M, ...), one every `memory.every` steps."""
        assert self.retrieved_tokens is not None, "this policy has no memory"
        looked_at = self.retrieved_tokens.looked_at(retrieved)
        return kind(self.retrieved_tokens(retrieved), looked_at, self._tokens_per_retrieval)

    def shared_window_memory(self, distinct: Retrieved, chunks: Tensor) -> RetrievedWindow:
        """The same, where retrievals share the chunks (B, 1, N 2 C, ...): ``chunks`` (B, R, k) says which each of them brought, -1 for none."""
        assert self.retrieved_tokens is not None, "this policy has no memory"
        span = 2 * self.config.memory.chunk
        places = (chunks.clamp(min=0)[..., None] * span + torch.arange(span, device=chunks.device)).flatten(2)
        rows = torch.arange(len(places), device=chunks.device)[:, None, None]
        looked_at = self.retrieved_tokens.looked_at(distinct)[:, 0][rows, places]
        looked_at = looked_at & (chunks >= 0).repeat_interleave(span, 2)
        return RetrievedWindow(self.retrieved_tokens(distinct), looked_at, self._tokens_per_retrieval, places)

    @property
    def _tokens_per_retrieval(self) -> int:
        return self.config.memory.every * self.config.tokens_per_step

    def with_memory(self, memory: MemoryConfig) -> Policy:
        """The same weights with other options of the memory. Raises UserError where the weights are for other chunks or blocks."""
        for name in MemoryConfig.WEIGHTS_FOR:
            if getattr(memory, name) != getattr(self.config.memory, name):
                raise UserError(
                    f"the policy was trained with model.memory.{name} {getattr(self.config.memory, name)}, not {getattr(memory, name)}: train another"
                )
        if bool(memory.k) != bool(self.config.memory.k):
            raise UserError(
                f"model.memory.k {memory.k} does not fit a policy that was trained with {self.config.memory.k}: train another"
            )
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, memory=memory)
        check_model(other.config)
        return other

    def empty_retrievals(self, lanes: int) -> RetrievalCache:
        """For that many lanes that have retrieved nothing yet."""
        config = self.config
        layers = config.num_layers if config.memory.layers == "all" else 1
        length = 2 * config.memory.chunk * config.memory.k
        head_width = config.attention_width // config.num_heads
        return RetrievalCache(layers, lanes, config.num_heads, length, head_width, self.device)

    def remember(self, retrieved: Retrieved, cache: RetrievalCache, lanes: Tensor) -> None:
        """Make retrievals (n, 1, M, ...) those in force in some lanes (n,)."""
        assert self.retrieved_tokens is not None, "this policy has no memory"
        tokens = self.retrieved_tokens(retrieved)
        for number, block in enumerate(self.transformer.blocks[: len(cache.keys)]):
            assert isinstance(block, Block) and block.cross is not None, "the first blocks remember"
            cache.write(number, lanes, block.cross.remember(tokens))
        cache.seen[lanes, 1:] = self.retrieved_tokens.looked_at(retrieved)[:, 0]

    # layout `transition`

    def query_window(self, context: tuple, query: Observation, prefixes: Tensor) -> Tensor:
        """Query j (B, Q, ...) sees the first ``prefixes[j]`` (Q,) transitions of the context -> head parameters (B, Q, ·).

        ``context`` = (observation, action, reward, next_observation), each (B, P, ...). Nothing attends to a query.
        """
        tokens = self.tokens.context(*context)
        batch, num_context, _ = tokens.shape
        queries = self.tokens.query(query)
        x = torch.cat([self.tokens.beginning(batch).to(tokens.dtype), tokens, queries], 1)
        pattern = QueriedWindow(num_context, prefixes.to(x.device), self.config.exact_set)
        return self.head(self.transformer(x, pattern, first=1 + num_context))

    def begin_context(self, cache: KVCache, lanes: Tensor) -> None:
        """Write the beginning-of-context token of some lanes, whose caches are empty."""
        x = self.tokens.beginning(len(lanes))
        view = CacheView(cache, 1, lanes)
        self.transformer(x, view)
        view.keep(1)

    def context_cached(self, context: tuple, cache: KVCache, lanes: Tensor, num_kept: Tensor) -> None:
        """Append context transitions (n, P, ...) of some lanes, of each the first ``num_kept`` (n,)."""
        x = self.tokens.context(*context)
        view = CacheView(cache, x.shape[1], lanes, self._context_allowed(x))
        self.transformer(x, view)
        view.keep(num_kept)

    def query_cached(self, context: tuple, pending: Tensor, query: Observation, cache: KVCache) -> Tensor:
        """Append one transition (B, 1, ...) where ``pending`` (B,), then answer one query (B, 1, ...) in every lane -> (B, ·).

        One pass over two tokens. Lanes without a pending transition read their query twice; the slot behind a query is never seen.
        """
        queries = self.tokens.query(query)  # (B, 1, D)
        if not bool(pending.any()):
            view = CacheView(cache, 1, None, told=cache.lengths[:, None])
            return self.head(self.transformer(queries, view)[:, 0])
        x = torch.cat([torch.where(pending[:, None, None], self.tokens.context(*context), queries), queries], 1)
        allowed = None
        if self.config.exact_set:
            allowed = torch.stack([~pending, torch.ones_like(pending)], 1)
        held = cache.lengths + pending
        view = CacheView(cache, 2, None, allowed, told=held[:, None].expand(-1, 2))
        features = self.transformer(x, view)
        view.keep(pending.long())
        return self.head(features[torch.arange(len(x), device=x.device), pending.long()])

    def _context_allowed(self, x: Tensor) -> Tensor | None:
        if not self.config.exact_set:
            return None
        return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)

    def flops_per_window(self, batch: int, length: int, num_queries: int = 0) -> float:
        """Floating-point operations of one forward and backward pass over ``batch`` windows of ``length`` tokens, the last ones being queries.

        Products only; causal attention counts half, and so does that of a query to its prefix; the backward pass counts twice the forward.
        The last layer moves nothing but the queries on, where there are any. A mixture of experts counts as the dense layer.
        """
        config, context = self.config, length - num_queries
        moved = (config.num_layers - 1) * length + (num_queries or length)  # tokens behind attention, in all layers
        gathering = 3 * config.width * config.attention_width * config.num_layers * length
        moving = config.width * (config.attention_width + 2 * config.mlp_ratio * config.width) * moved
        among_context = 0 if config.exact_set else context**2 / 2
        pairs = (
            config.num_layers * (num_queries * context / 2) + (config.num_layers - bool(num_queries)) * among_context
        )
        attention = 2 * config.attention_width * pairs  # scores and values
        head = config.width * self.head.outputs * (num_queries or length)
        if self.aim is not None:
            head += length * config.width * (2 * config.mlp_ratio * config.width + config.return_bins)
        return 3 * 2.0 * batch * (gathering + moving + attention + head + self._remembering(length))

    def _remembering(self, length: int) -> float:
        """Products of the cross-attention in one forward pass over ``length`` tokens."""
        config, memory = self.config, self.config.memory
        if memory.k == 0:
            return 0.0
        layers = config.num_layers if memory.layers == "all" else 1
        retrieved = 2 * memory.chunk * memory.k
        retrievals = -(-length // (memory.every * config.tokens_per_step))
        projections = 2 * config.width * config.attention_width * (length + retrievals * retrieved)
        return layers * (projections + 2 * config.attention_width * length * retrieved)


def check_model(config: ModelConfig) -> None:
    """Raise UserError where sizes contradict each other."""
    if config.head_width == 0 and config.width % config.num_heads:
        raise UserError(
            f"model.width {config.width} is not divisible by model.num_heads {config.num_heads}: choose a multiple"
        )
    if config.rotary and (config.attention_width // config.num_heads) % 2:
        raise UserError(
            f"heads of width {config.attention_width // config.num_heads} are odd, rotary positions need an even one: change model.num_heads or "
            "model.head_width"
        )
    for name in ("action_reward_std", "return_scale", "reward_scale"):
        if not 0 < getattr(config, name) < float("inf"):
            raise UserError(f"model.{name} is {getattr(config, name)}, expected a positive number")
    check_memory(config)
    check_mixture(config)
    if config.window < 2:
        raise UserError(f"model.window {config.window} is too short: it must hold at least 2 tokens")


def check_memory(config: ModelConfig) -> None:
    """Raise UserError where the options of the memory contradict each other."""
    memory = config.memory
    if memory.k < 0:
        raise UserError(f"model.memory.k is {memory.k}, expected the number of chunks to retrieve, or 0 for no memory")
    if memory.k == 0:
        return
    for name in ("chunk", "every", "key_width", "candidates", "capacity", "pool"):
        if getattr(memory, name) < 1:
            raise UserError(f"model.memory.{name} is {getattr(memory, name)}, expected at least 1")
    for name in ("empty", "query_dropout"):
        if not 0 <= getattr(memory, name) < 1:
            raise UserError(f"model.memory.{name} is {getattr(memory, name)}, expected a share from 0 to below 1")
    if memory.every > config.window:
        raise UserError(f"model.memory.every {memory.every} is more than model.window {config.window}: ask more often")
    if not (0 < memory.confidence <= 1 and memory.utility >= 0):
        raise UserError(
            f"model.memory.confidence {memory.confidence} and utility {memory.utility}: expected more than 0 to 1, and at least 0"
        )
    if not 0 <= memory.own_past <= 1:
        raise UserError(f"model.memory.own_past is {memory.own_past}, expected a share from 0 to 1")
    if memory.candidates < memory.k:
        raise UserError(
            f"model.memory.k {memory.k} is more than model.memory.candidates {memory.candidates}: retrieve fewer"
        )
    if config.layout != "step":
        raise UserError(f"model.memory needs model.layout step, whose windows have an order, not {config.layout}")


def make_policy(spec: FamilySpec, config: ModelConfig, seed: int) -> Policy:
    """A freshly initialised policy: its weights depend on the seed alone, and global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return Policy(spec, config)
