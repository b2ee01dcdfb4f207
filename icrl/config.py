"""Every option of a run: one nested frozen dataclass, a *recipe*. The text under a field is its command-line help.

Families and sources are named as text plus options; the scripts resolve and check them against the family's or source's own
dataclass before any work. Everything else is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from icrl.interfaces import ActionRule, PlanRule


@dataclass(frozen=True)
class FamilyConfig:
    """Which tasks."""

    name: str = "darkroom"
    """Family by name (see `icrl list families`), or your own as `module:Class`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the family's own dataclass."""


@dataclass(frozen=True)
class SourceConfig:
    """Who leaves the histories."""

    name: str = "uniform"
    """Source by name (see `icrl list sources`), or your own as `module:Class`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the source's own dataclass."""
    scattered: bool = False
    """Collect single transitions from uniformly drawn states instead of whole episodes; for sources that do not learn: DPT shuffles them."""
    weight: float = 1.0
    """Share of the histories that this source leaves, relative to the other sources."""


@dataclass(frozen=True)
class CollectConfig:
    """How learning histories are collected."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """The source agents; histories are divided among them by weight."""
    num_histories: int = 1024
    """Histories to collect, each of one task and one source."""
    steps_per_history: int = 300
    """Length of a history, in environment steps."""
    shard_histories: int = 512
    """Histories per shard: rolled side by side and written at once."""
    workers: int = 2
    """Processes. The dataset does not depend on it."""


@dataclass(frozen=True)
class MemoryConfig:
    """Retrieval memory: experience that the window no longer holds, cut into chunks and found again by what was just seen (RA-DT: Schmied et al. 2024).

    A policy that imitates learners (objectives ad and dpt) is trained with chunks of the same history from before the window, a return-conditioned one (dt)
    also with those of other trajectories; at deployment both remember the lane's own past.
    """

    WEIGHTS_FOR: ClassVar[tuple[str, ...]] = ("chunk", "layers", "arrivals", "repeats")
    """Options that trained weights are for: another value needs another training."""

    k: int = 0
    """Chunks that a retrieval brings; 0: no memory."""
    chunk: int = 25
    """Steps between two cuts. A chunk holds this many steps before its cut, by which it is found, and as many after it."""
    every: int = 25
    """Steps of the window between two retrievals. A full window loses a multiple of this: as long as the window, it loses all."""
    layers: Literal["first", "all"] = "all"
    """Blocks that attend to what was retrieved."""
    arrivals: bool = False
    """Retrieved tokens also tell what the step before theirs did and earned: what was found stands beside the place where it was found, as in the
    window itself. Right where a place pays but once; where one stays and is paid again, the staying tells."""
    repeats: bool = True
    """Retrieved steps that only repeat the one before them (the same observation, action and reward) are looked at, too. Without them the few steps that tell where
    something was found are a larger share of what is looked at."""
    encoder: str = "projection"
    """What makes keys of observations: `projection` (a fixed random one), `policy:RUN` (the frozen policy of a finished run), `language:FOLDER` (a fixed
    random projection into the token embeddings of a language model in that folder)."""
    key_width: int = 64
    """Width of the keys of `projection`."""
    candidates: int = 50
    """Nearest chunks among which the selection chooses."""
    selection: Literal["top", "coverage", "diverse", "sequential", "random", "foreign"] = "top"
    """`top`: the best by score. `coverage`: a set that covers the parts of the query. `diverse`: maximal marginal relevance. `sequential`: each given those
    chosen before it. Controls: `random` chunks of the memory; `foreign`, at deployment, those of another lane."""
    utility: float = 1.0
    """Weight of a candidate's utility beside its relevance: what its episode earned, and `worth`; in the pool of objective dt whether it is of the same
    task."""
    worth: Literal["own", "onward"] = "own"
    """What of a chunk is useful beside a good episode. `own`: what its own steps earned. `onward`: what the episode of its cut earned from its first step on, if its
    own steps in that episode earned anything: right where an episode has parts, since of those that lead to the same the earliest comes first."""
    twin: float = 0.98
    """Of candidates whose steps before and behind the cut are both at least this similar (cosine) only the best is retrieved; above 1: all may be."""
    overlap: bool = True
    """Chunks that one retrieval brings may share steps. Where what is worth most was found at one place and then at another, two chunks that may not are more likely
    to hold both."""
    empty: float = 0.1
    """Objective dt: share of training windows whose memory is empty. Elsewhere it is where a history begins."""
    query_dropout: float = 0.2
    """Share of a query's observations that are left out in training."""
    capacity: int = 10_000
    """Chunks that a lane's memory holds; when it is full, the oldest of those with the lowest utility goes."""
    own_past: float = 0.5
    """Objective dt: share of training windows that retrieve what their lane would have at deployment, trajectories of the same history from before
    theirs, the most useful first; the others search the pool."""
    pool: int = 32_768
    """Objective dt: chunks of the dataset among which training searches, drawn at random."""
    index: Literal["exact", "faiss-flat", "faiss-ivf", "faiss-hnsw"] = "exact"
    """How the pool is searched."""
    confidence: float = 1.0
    """At deployment a retrieval is renewed only if the last action, at the temperature of acting, was less probable than this; 1: always."""


@dataclass(frozen=True)
class MixtureConfig:
    """Mixtures of experts in place of the feed-forward layer of some blocks (T2MIR: Wu et al. 2025).

    However many experts there are, a token's active weights are as many as those of the dense layer with the same model.mlp_ratio.
    """

    blocks: tuple[int, ...] = ()
    """Blocks with mixtures, by number from 0; none: all are dense."""
    parts: Literal["both", "token", "task"] = "both"
    """`token`: each token is routed by itself. `task`: by a summary of what the window holds so far. `both`: each gives half of the width."""
    token_experts: int = 6
    """Experts among which tokens are routed by themselves."""
    token_top: int = 2
    """Experts that a token is handed to."""
    task_experts: int = 8
    """Experts among which tokens are routed by task."""
    task_top: int = 2
    """Experts that a task is handed to."""
    summary: Literal["prefix", "episodes"] = "prefix"
    """What the task router reads: the mean of the window so far, or (layout `step`) of its completed episodes alone."""
    token_balance: float = 0.01
    """Weight of the loss that balances the experts' load: squared coefficients of variation of gates and of expected numbers of tokens."""
    task_balance: float = 0.01
    """The same of the experts of tasks."""
    contrast: float = 0.01
    """Weight of the contrastive loss of the task router; above 0 a batch holds two windows of each of its tasks."""
    momentum: float = 0.995
    """Contrast: what the slow copy of the task router keeps of itself at each step."""
    temperature: float = 0.1
    """Contrast: temperature of similarities."""

    @property
    def by_task(self) -> bool:
        """Whether there is a task router."""
        return bool(self.blocks) and self.parts != "token"


@dataclass(frozen=True)
class ModelConfig:
    """The backbone, the same for every objective."""

    layout: Literal["step", "transition"] = "step"
    """Token layout: one token per step, or context transitions with separate query tokens."""
    window: int = 300
    """Longest context, in tokens (one step or one transition each)."""
    width: int = 64
    """Width D of the residual stream."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads."""
    head_width: int = 0
    """Width of a head; 0: model.width / model.num_heads. Narrower heads make the key-value cache, which bounds the speed of acting, smaller."""
    mlp_ratio: int = 4
    """Hidden width of the feed-forward layers over the width."""
    action_reward_std: float = 0.02
    """Standard deviation of the initial embeddings of actions and rewards (others: 0.02): more where these tell most, as in bandits."""
    return_scale: float = 0.02
    """Factor on the first output of the networks that embed returns (predicted ones are looked up instead). With 1 they drown what they are added to, whose embeddings begin
    at 0.02, and places are learned late."""
    reward_mean: float = 0.0
    """Rewards enter the model as (reward - reward_mean) / reward_scale."""
    reward_scale: float = 1.0
    """See reward_mean: small differences between rewards are seen sooner when the scale is their spread."""
    rotary: bool = True
    """Rotary positions over the window. Off: no positions."""
    episode_embedding: bool = True
    """Add embeddings of the episode within the window and of the step within the episode (layout `step`)."""
    previous_observation: bool = False
    """Layout `step`: each token also carries what the step before it started from, so that it holds a whole transition, as in layout `transition`: right
    where dynamics must be learned in context."""
    episode_return: bool = False
    """Add an embedding of the return of the running episode so far (layout `step`), to retrieved steps too: what the rewards of an episode add up to need not be
    found by attention. Right where an episode has parts, as a key and then a door."""
    episodic: bool = False
    """Layout `step`: the window stays inside one episode; at its end the context is forgotten, and only a memory remains."""
    return_to_go: Literal["off", "total", "rate", "predicted"] = "off"
    """Layout `step`: add the return still to come in the episode, which objective `dt` conditions on. `total`: as published. `rate`: divided by the steps
    that are left of the horizon, so that asking for much stays possible however late a reward is found. Retrieved
    chunks carry the total either way. `predicted`: the policy predicts this return, and its action is read out for one of the values; no token holds it
    (ICEE)."""
    rate_step: float = 0.0
    """Rates enter as multiples of this, the nearest; 0: as they are. The exact rate of an episode tells how far its goal is, and a policy that is told it
    in training learns by heart where such goals are."""
    return_bins: int = 21
    """Predicted returns: how many values there are, from return_low to return_high."""
    return_low: float = 0.0
    """Predicted returns: the least."""
    return_high: float = 20.0
    """Predicted returns: the greatest. Where none is below 0, what an episode does that has earned this much is not learned, since nothing is left to go for."""
    cross_episode: Literal["off", "beats", "equals"] = "off"
    """With predicted returns: an action is also read out for whether its episode earns more than all earlier ones of the window (ICEE's cross-episode return to
    go); `equals`: or as much as the best of them, if that is above 0. When it acts the policy draws only returns that make this true, where any of the values does."""
    plans: bool = False
    """Layout `step`: tokens say where a plan begins, so that the policy can go on with what it has begun (history-conditioned DPT)."""
    interleaved: bool = False
    """Layout `step`: tokens of their own for what was done and earned, for the return to go and for the observation, as published, instead of one
    that holds them all."""
    exact_set: bool = False
    """Layout `transition`: context tokens see only themselves, so that the order of the context provably does not matter."""
    dropout: float = 0.0
    """Dropout on attention output and feed-forward output."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Retrieval memory."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """Mixtures of experts."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step in layout `step`."""
        return 2 + self.conditioned if self.interleaved else 1

    @property
    def conditioned(self) -> bool:
        """Whether the return still to come is an input that is asked for from outside."""
        return self.return_to_go in ("total", "rate")

    @property
    def predicts_returns(self) -> bool:
        """Whether the policy itself says which return it goes for."""
        return self.return_to_go == "predicted"

    @property
    def most_earned(self) -> float:
        """Predicted returns: what an episode can earn, after which nothing that it does matters; infinite where it could lose it again."""
        return self.return_high if self.return_low >= 0 else math.inf

    def keeps_episodes(self, horizon: int) -> bool:
        """Whether a full window loses whole episodes of ``horizon`` steps, and so starts with one that is only read; otherwise its older half goes."""
        forgets_all = self.episodic or self.memory.k > 0
        return self.layout == "step" and not forgets_all and 2 * horizon <= self.window

    @property
    def attention_width(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_width if self.head_width else self.width


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the policy learns to predict, and from which windows."""

    name: Literal["ad", "dpt", "dt", "icee"] = "ad"
    """`ad`: the source's own actions. `dpt`: the optimal action for every prefix of the context. `dt`: the action that was taken, given the return still
    to come; with a memory, RA-DT. `icee`: both the return still to come and the action that was taken, corrected for how probable the source made it."""
    target_return: float = 0.0
    """DT: return of an episode that the policy is asked for when it acts; less what it has earned, or with `model.return_to_go rate` in proportion
    to the steps that are left."""
    search_return: float = 0.0
    """DT: the same until a step of the lane's life, its memory included, has paid more than 0; 0: `target_return` from the first. Asked for much before it
    knows of any reward, a policy goes where rewards were in training and nowhere else."""
    apart: float = 0.0
    """DT: share of training windows in which every step is read as if the window began with it. What the steps before it tell, which way the agent was
    going above all, then comes from the memory or not at all (the return of the episode so far stays an input where it is one)."""
    keep_every: int = 1
    """AD: keep every k-th episode of a history, so that the window shows k times faster progress."""
    short_window: bool = False
    """AD: accept a window of less than two episodes without a memory, in which nothing can be learned across episodes: to measure what a memory is worth."""
    token_mask: float = 0.0
    """AD: probability that a past token's inputs are hidden in training."""
    label_smoothing: float = 0.0
    """AD, DT: label smoothing of the action loss."""
    intended_labels: bool = True
    """AD, DT: learn the action that the source meant, where it is known, instead of the executed (noisy) one."""
    symmetries: bool = False
    """Turn and mirror each training window at random, where the family knows its symmetries: few training tasks count several times."""
    start_fraction: float = 0.7
    """Share of training windows that start at the beginning of a history; the rest start at any episode of it."""
    corrected: bool = True
    """ICEE: weight each action's loss by how improbable the source made it, so that the policy learns of the actions themselves and not of the source's habits."""
    most_weight: float = 20.0
    """ICEE: greatest of these weights, which reach 1 / (probability x actions)."""
    improving_weight: float = 1.0
    """ICEE: how many times as much the actions of an episode count that earns `model.return_high` where nothing before it in the window earned more than 0 (or than
    `model.return_low`, where all returns are above 0 or none is); for a smaller gain proportionally less, below 0 not at all. Few steps explore and find something; most show how to
    earn again what was earned, or nothing."""
    habits_alone: bool = False
    """ICEE: weight by how probable an action is given the observation alone, as a small model says that is fitted to what counts of the histories. So the source's habits are corrected for, and what
    it knew of the task is still learned. Otherwise what histories tell is used, which is with the task known."""
    estimate_behaviour: bool = False
    """ICEE: where histories do not tell how probable their actions were, fit a small model of the source that says so."""
    told_by: float = 0.0
    """DPT with `model.plans`: what an episode has earned when the optimal policy is known, so that every later step counts; 0: nothing tells that."""
    num_queries: int = 0
    """DPT in layout `transition`: prefixes trained per window; 0 trains all of them."""
    privileged_sources: tuple[int, ...] = ()
    """DPT: numbers (from 0) of the recipe's sources whose actions know more than their history shows, as an optimal policy's do. Of theirs only
    prefixes that hold a reward are trained; right where the first reward tells all, as in Dark Room."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Windows per batch."""
    pairs: bool = False
    """A batch holds two windows of each of its tasks, as the contrastive loss of a task router needs them anyway."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    final_learning_rate: float = 0.05
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    beta2: float = 0.99
    """AdamW's second-moment decay."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    bf16: bool = False
    """Autocast matrix products to bfloat16."""
    compile: bool = False
    """Compile the training step with torch.compile (needs a C++ compiler on CPU)."""
    log_every: int = 20
    """Steps between two log lines."""
    validate_every: int = 250
    """Steps between two roll-outs on validation tasks; a checkpoint is written at each."""
    validation_episodes: int = 4
    """Episodes per validation roll-out; their mean return chooses the best checkpoint."""
    validation_lanes: int = 64
    """Lanes per validation roll-out, spread evenly over the validation tasks."""


@dataclass(frozen=True)
class RL2Config:
    """RL² (Duan et al. 2016; Wang et al. 2016), a baseline: recurrent PPO trained on whole trials of the training tasks. Needs sb3-contrib."""

    steps: int = 0
    """Environment steps of training, all lanes together; 0: none."""
    episodes: int = 10
    """Episodes of one task in a trial, through which the memory lasts."""
    num_envs: int = 64
    """Lanes: trials that are played side by side."""
    rollout_steps: int = 40
    """Steps of every lane between two updates, through which gradients flow; 0: a whole trial."""
    width: int = 128
    """Units of the LSTM."""
    learning_rate: float = 1e-3
    """Step size of Adam; it falls linearly to a tenth."""
    gamma: float = 0.97
    """Discount per step, through a whole trial."""
    gae_lambda: float = 0.95
    """How far advantages look ahead."""
    entropy: float = 0.05
    """Weight of the entropy of actions; it falls linearly to 0."""
    epochs: int = 4
    """Passes over the steps of an update."""
    batch_lanes: int = 16
    """Lanes per gradient step."""
    reward_scale: float = 10.0
    """The learner's rewards are divided by this: right where the discounted sum of those to come is of the order of 1 afterwards."""
    checkpoint_every: int = 100_000
    """Steps between two checkpoints; each is played on validation tasks, and the best is what acts."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out evaluation, weights frozen."""

    split: Literal["train", "validation", "test", "all"] = "test"
    """Which tasks; `all` is the three lists one after the other."""
    family: FamilyConfig | None = None
    """Evaluate on this family instead of the recipe's; its spaces must be the same."""
    episodes: int = 40
    """Episodes per lane, in context."""
    lanes: int = 60
    """Lanes per seed, spread evenly over the tasks."""
    seeds: tuple[int, ...] = (0,)
    """Evaluation seeds: each repeats the whole evaluation with other random numbers."""
    mode: Literal["online", "offline"] = "online"
    """`online`: the context starts empty and grows. `offline`: it is given and fixed."""
    context: Literal["random", "expert"] = "random"
    """Offline: uniform transitions, or those of the optimal policy."""
    context_size: int = 100
    """Offline: transitions in the context."""
    append: Literal["step", "episode"] = "step"
    """When the agent's own transitions join its context: at once, or (layout `transition`, as DPT was published) when their episode ends."""
    greedy: bool = False
    """Take the most probable action instead of sampling; the same for every compared agent that has probabilities."""
    temperature: float = 1.0
    """Sample actions with probabilities to the power 1 / temperature; the same for the agent and RL². Below 1, less of the noise is imitated that sources
    had and meant nothing by."""
    tilt: float = 3.0
    """ICEE: the return to go for is drawn with probabilities q(c) ((c - c_min) / (c_max - c_min))^tilt, q being what the policy predicts."""
    search_tilt: float | None = None
    """The same while no step in the window has paid more than 0; None: `tilt`. While nothing was found, or all is forgotten again, a high tilt brings out what the prediction is wrong
    about."""
    plan_hazard: float = 0.1
    """Policies that follow plans (`model.plans`): probability at each step that another one begins; one always does where an episode begins."""
    plan_doubt: float = 0.02
    """The same: a plan ends where the policy, asked for a new one, gives the action with which the old one goes on less than this probability; 0: never."""
    plan_length: int = 0
    """The same: a plan ends after so many steps; 0: never."""
    memory: str = ""
    """Start from this saved memory: every lane with what lanes of its task remembered."""
    retrieval: dict[str, int | float | str] = field(default_factory=dict)
    """Options of model.memory that differ in this evaluation, as selection diverse: all but chunk, layers, arrivals and repeats, which the weights are for."""
    baselines: tuple[str, ...] = ("random", "optimal", "source")
    """Sources to evaluate beside the agent (see `icrl list sources`); `source` stands for those that left the recipe's histories, with
    their options, `rl2` for the run's own RL² policy."""
    posterior_pulls: int = 0
    """Bernoulli bandits: also compare the agent with the exact posterior in every count state up to this many pulls."""
    hide_rewards: bool = True
    """Also evaluate the agent with its rewards hidden from the context, which the verdict needs."""

    @property
    def rule(self) -> ActionRule:
        """How actions are taken. Raises UserError for a temperature that is not positive, or a chance that is none."""
        plans = PlanRule(self.plan_hazard, self.plan_doubt, self.plan_length)
        return ActionRule(self.greedy, self.temperature, plans, self.tilt, self.search_tilt)


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    name: str
    """Name of the recipe."""
    description: str
    """What it shows, in a line."""
    seed: int = 0
    """Root seed: every random stream derives from it."""
    family: FamilyConfig = field(default_factory=FamilyConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rl2: RL2Config = field(default_factory=RL2Config)
    evaluations: tuple[EvaluateConfig, ...] = (EvaluateConfig(),)
    """Evaluations at the end of the run. Validation roll-outs take actions as the first online one does."""

    @property
    def validation_rule(self) -> ActionRule:
        """How actions are taken on validation tasks."""
        return next((one.rule for one in self.evaluations if one.mode == "online"), ActionRule())
