"""The in-context agent: a frozen policy, a cache, and the rule for a full window. Batched over lanes, with ``reset``, ``act``, ``observe``.

The rule, one for training and deployment: a window starts at the beginning of an episode. When, at an episode's start, a lane's window has no room for one
more whole episode, its oldest episodes are forgotten until half of the window is free, and the kept ones are read again from scratch: exactly what
a training window that starts in the middle of a history looks like; keys that had seen the forgotten part do not survive. A window that holds less
than two episodes, or transitions without order (layout ``transition``), or that has a memory behind it, is halved when it is full. An episodic policy
forgets its window at each episode's end. So cost per step does not grow with the length
of the life, and reading again costs less than a token per step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from icrl.boundary import Boundary
from icrl.commitment import Commitment
from icrl.context import Context
from icrl.data.sampling import Window, improving
from icrl.data.schema import spec_to_json
from icrl.files import DAMAGED_NPZ, read_arrays, write_arrays
from icrl.interfaces import (
    PLAN_BEGINS,
    ActionRule,
    Array,
    Decision,
    Observation,
    Step,
    Tasks,
    UserError,
    map_observation,
)
from icrl.memory.encoders import Encoder, make_encoder
from icrl.memory.files import check_fits, describe, fill, lanes_by_task, read_memory, save_memory
from icrl.memory.recall import Recall
from icrl.models.heads import CategoricalHead
from icrl.models.observations import to_tensors
from icrl.models.policy import Policy
from icrl.models.tokens import Previous
from icrl.seeding import LaneStreams

SAMPLED = ActionRule()
READ_TOKENS = 16_384
"""Tokens per forward pass when contexts are read again: bounds memory."""


def check_append(append: str, layout: str) -> None:
    """Raise UserError where the layout cannot add transitions by episodes."""
    if append == "episode" and layout == "step":
        raise UserError(
            'append is "episode", but in layout step the running episode is what the policy reads: choose "step", or a run of layout transition'
        )


class InContextAgent:
    """A frozen policy that learns from what it lives through. See icrl/interfaces.py for the three calls.

    Parameters
    ----------
    policy : Policy
        Its weights are never changed.
    streams : LaneStreams, optional
        Random numbers for sampling actions, one stream per lane; by default derived from ``seed`` at ``reset``.
    seed : int
        Root seed of the default streams.
    rule : ActionRule
        How actions are taken: sampled, sampled at another temperature, or the most probable one; when plans begin, how far predicted returns are tilted.
    append : "step" or "episode"
        When transitions join what the policy sees: at once, or (layout ``transition``, as Lee et al. 2023 published DPT) when their episode ends.
    target_return : float, optional
        What a return-conditioned policy is asked to earn in each episode.
    search_return : float
        What it is asked for until its life, or the memory that it starts from, holds a reward above 0; 0: ``target_return``.
    encoder : Encoder, optional
        Makes the keys of a policy with a memory; by default the one that its configuration names.
    memory : path, optional
        A saved memory from which ``reset(number of lanes)`` starts, with ``tasks`` (B,) as in ``load_memory``.

    Raises
    ------
    UserError
        If transitions are to join by episodes in layout ``step``, whose tokens are the running episode, a return-conditioned policy is asked for no
        return, or a saved memory is given to a policy that has none.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        streams: LaneStreams | None = None,
        seed: int = 0,
        rule: ActionRule = SAMPLED,
        append: Literal["step", "episode"] = "step",
        target_return: float | None = None,
        search_return: float = 0.0,
        encoder: Encoder | None = None,
        memory: str | Path | None = None,
        tasks: Tasks | None = None,
    ):
        check_append(append, policy.config.layout)
        if policy.config.conditioned and target_return is None:
            raise UserError(
                "this policy is conditioned on the return still to come: give the target_return of an episode"
            )
        self.append, self.target_return = append, target_return or 0.0
        self.search_return = search_return or self.target_return
        self.recall: Recall | None = None
        if memory is not None and not policy.config.memory.k:
            raise UserError(f"{memory} was given, but this policy has no memory (model.memory.k is 0): leave it out")
        self._encoder, self._memory, self._tasks = encoder, memory, tasks
        if policy.config.memory.k and encoder is None:
            self._encoder = make_encoder(policy.spec, policy.config.memory)
        self._sure: Array | None = None
        self.policy, self.rule, self._seed, self._streams = policy.eval(), rule, seed, streams
        self._boundary = Boundary(policy.spec)
        self.num_lanes = 0
        self._fixed = False

    # the three calls

    @torch.no_grad()
    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Start that many fresh lanes (int), or make some lanes (indices) forget everything, for a new task."""
        whole = isinstance(lanes, (int, np.integer))
        if whole:
            self.num_lanes, self._fixed, self._sure = int(lanes), False, None
            self.streams = self._streams or LaneStreams(self._seed, "agent", lane_ids=self.num_lanes)
            if self.streams.num_lanes != self.num_lanes:
                raise UserError(
                    f"reset({lanes}) but the random streams are for {self.streams.num_lanes} lanes: use as many lanes"
                )
            self.context = Context(self.num_lanes, self.policy.config.window)
            self.cache = self.policy.empty_cache(self.num_lanes)
            self.plans = Commitment(self.num_lanes, self.rule.plans) if self.policy.config.plans else None
            if self._encoder is not None:
                self.recall = Recall(self.policy, self._encoder, self.num_lanes)
            lanes = np.arange(self.num_lanes)
        index = np.asarray(lanes, np.int64)
        if self.num_lanes == 0 or (len(index) and not 0 <= index.min() <= index.max() < self.num_lanes):
            raise UserError(
                f"reset of lanes {lanes} but the agent has {self.num_lanes} lanes: call reset(number of lanes) first"
            )
        self.context.forget(index)
        self.context.paid[index] = False
        self._empty_cache(index)
        if self.plans is not None:
            self.plans.forget(index)
        if self.recall is not None:
            self.recall.forget(index)
            if whole and self._memory is not None:
                self.load_memory(self._memory, self._tasks)
        self._pending = np.zeros(self.num_lanes, bool) if len(index) == self.num_lanes else self._pending
        self._pending[index] = False

    @torch.no_grad()
    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        """Choose an action in every lane; observation (B, ...). Raises UserError where shapes or values are not those of the spaces."""
        self._boundary.check_observation("observation", observation, self.num_lanes)
        self._boundary.check_mask(action_mask, self.num_lanes)
        if self.plans is not None:
            action, log_prob = self._follow_plans(self.plans, observation, action_mask)
        else:
            action, log_prob = self._choose(self._params(observation), action_mask)
        if self.recall is not None and self.recall.config.confidence < 1:
            self._sure = log_prob >= np.log(self.recall.config.confidence)
        return Decision(action, None, log_prob, None if self.plans is None else PLAN_BEGINS * self.plans.begins)

    def _choose(self, params: torch.Tensor, action_mask: Array | None) -> tuple[Array, Array]:
        return self.policy.head.choose(params, self.streams, self.rule, action_mask)

    def _follow_plans(
        self, plans: Commitment, observation: Observation, action_mask: Array | None
    ) -> tuple[Array, Array]:
        """Actions and their log-probabilities (B,): those with which the plans go on, or, where one is over or in doubt, begin."""
        head = self.policy.head
        assert isinstance(head, CategoricalHead), "plans are of discrete actions"
        begins = plans.due(self.streams)
        anew = self._params(observation) if plans.rule.doubt else None
        action, log_prob = self._choose(self._params(observation, begins), action_mask)
        if anew is not None:
            doubted = ~begins & (head.log_prob(anew, action, action_mask) < np.log(plans.rule.doubt))
            if doubted.any():
                begins, counters = begins | doubted, self.streams.counters.copy()
                self._params(observation, begins)  # what the caches are to hold
                other, other_log_prob = self._choose(anew, action_mask)
                self.streams.counters[~doubted] = counters[~doubted]  # other lanes' draws are their own
                action, log_prob = np.where(doubted, other, action), np.where(doubted, other_log_prob, log_prob)
        plans.begins = begins
        return action, log_prob

    @torch.no_grad()
    def action_probs(self, observation: Observation) -> Array:
        """(B, A) the probabilities that ``act`` would draw from, at its temperature; of a policy that follows plans, if a plan began now.

        Raises UserError where actions are continuous, or chosen for a return that is drawn.
        """
        self._boundary.check_observation("observation", observation, self.num_lanes)
        if not isinstance(self.policy.head, CategoricalHead):
            raise UserError(f"actions in {self.policy.spec.action_space} have densities, not probabilities")
        if self.policy.config.predicts_returns:
            raise UserError(
                "this policy acts for a return that it draws: without one its actions have no probabilities"
            )
        params = self._params(observation)
        if self.plans is not None:
            self._params(observation, self.plans.begins)  # the caches hold again what ``act`` left
        return torch.softmax(params.float() / self.rule.temperature, -1).cpu().numpy()

    def observe(self, step: Step) -> None:
        """Append what the last action of every lane led to; see ``load_context`` for the exception.

        Raises UserError where shapes or values are not those of the spaces, or a reward is not finite.
        """
        self._boundary.check_step(step, self.num_lanes)
        if self._fixed and self.policy.config.layout == "transition":
            return
        self.context.append(step, True if self.plans is None else self.plans.begins)
        if self.plans is not None:
            self.plans.observe(step.ended)
        self._pending[:] = self.append == "step"
        if self.policy.config.episodic:
            over = np.flatnonzero(step.ended)
            self.context.forget(over)
            self._empty_cache(over)
        if self.recall is not None:
            self.recall.add(step)
            self.recall.begin(np.arange(self.num_lanes), self.context.lengths, self._sure)

    # contexts

    @torch.no_grad()
    def load_context(self, window: Window, *, running: bool = False) -> None:
        """Offline use: make a given dataset (B, P transitions, lane i for lane i) the fixed context. ``observe`` then adds nothing to it.

        In layout ``step`` the running episode itself is still read, since a token holds what the step before it was. It is a new episode,
        or with ``running`` the context's last one, which goes on.
        """
        batch, length = window.reward.shape
        config = self.policy.config
        if config.episodic or self._encoder is not None:
            raise UserError(
                "a given context is for policies that read whole lives as they were and have no memory: let this one live through it"
            )
        if not window.valid.all():
            raise UserError("a context with padding was given: give lanes whose contexts are equally long")
        room = self.policy.config.window - (self.policy.config.layout == "step")
        if length > room:
            raise UserError(f"a context of {length} transitions does not fit: this policy's window has room for {room}")
        self.reset(batch)
        for t in range(length):
            step = Step(*(map_observation(lambda a, t=t: a[:, t], getattr(window, name)) for name in Step._fields))
            self._boundary.check_step(step, self.num_lanes)
            self.context.append(step)
        if not running:
            if length:
                self.context.columns["ended"][:, length - 1] = True
            self.context.episode_step[:] = 0
            self.context.episode_return[:] = 0
        self._reread(np.arange(batch))
        self._pending[:] = False
        self._fixed = True

    def save_context(self, path: str | Path) -> None:
        """Write what every lane has lived through, and its random streams, to the file ``path`` (.npz), whole or not at all."""
        if self.num_lanes == 0:
            raise UserError("there is no context to save: call reset(number of lanes) first")
        arrays = {
            **self.context.state(),
            "counters": self.streams.counters,
            "fixed": np.array(self._fixed),
            "made_for": np.array(self._made_for()),
        }
        if self.plans is not None:
            arrays |= {"plan_age": self.plans.age, "plan_begins": self.plans.begins}
        if self.recall is not None:
            arrays |= {f"memory/{key}": part for key, part in self.recall.state().items()}
        write_arrays(Path(path), arrays)

    def save_memory(self, path: str | Path, tasks: Tasks | None = None) -> None:
        """Write the chunks that every lane remembers to the file ``path`` (.npz); ``tasks`` (B,) says what each lane plays.

        Raises UserError where the policy has no memory or the file cannot be written.
        """
        save_memory(path, self._recalling().memory, self.policy.spec, tasks)

    def load_memory(self, path: str | Path, tasks: Tasks | None = None) -> None:
        """Start every lane, which must be fresh, from a saved memory.

        A lane gets what all saved lanes of its task (``tasks``, (B,)) remember, without tasks what lane i does. Raises UserError for a file that is no
        memory, one of another encoder, family or version, or one without these tasks.
        """
        recall = self._recalling()
        if tasks is not None and len(tasks) != self.num_lanes:
            raise UserError(f"{len(tasks)} tasks were given for {self.num_lanes} lanes: give one for each")
        saved = read_memory(path, self.policy.spec)
        check_fits(path, saved, recall.memory, self.policy.spec)
        if tasks is None:
            saved = replace(saved, tasks=np.zeros(0))
        lanes = lanes_by_task(saved, np.zeros(self.num_lanes) if tasks is None else tasks, path)
        for lane, theirs in enumerate(lanes):
            fill(recall.memory, lane, saved, theirs)
        held = np.arange(recall.memory.paid.shape[1]) < recall.memory.count[:, None]
        self.context.paid |= ((recall.memory.paid > 0) & held).any(1)

    def tracked(self) -> dict[str, Array]:
        """What the agent itself leaves of a roll-out, for reports: see ``icrl.memory.trace``."""
        return {} if self.recall is None else self.recall.trace.arrays()

    def _recalling(self) -> Recall:
        if self.recall is None:
            raise UserError(
                "there is no memory: the policy has none (model.memory.k is 0), or reset(number of lanes) was not called yet"
            )
        return self.recall

    def restore_context(self, path: str | Path) -> None:
        """Go on from a saved context: the agent then acts as the one that saved it would have.

        Raises UserError for a file that is no saved context, or one of another family, layout or window.
        """
        try:
            self._restore(read_arrays(Path(path)))
        except DAMAGED_NPZ as error:
            raise UserError(f"{path} is not a saved context ({error!r}): give a file that save_context wrote") from None
        self._reread(np.flatnonzero(self.context.lengths))

    def _made_for(self) -> str:
        """What a saved context must agree with, as JSON."""
        config = self.policy.config
        spec = spec_to_json(self.policy.spec)
        spec.pop("action_points", None)  # long, and weights know points by where they are
        made_for = {"spec": spec, "layout": config.layout, "window": config.window}
        made_for |= {name: getattr(config, name) for name in ("plans", "return_to_go")}
        if self._encoder is not None:
            made_for["memory"] = describe(config.memory.chunk, self._encoder, self.policy.spec)
        return json.dumps(made_for)

    def _restore(self, saved: dict[str, Array]) -> None:
        """The state that ``save_context`` wrote; KeyError where something is missing."""
        if str(saved["made_for"]) != self._made_for():
            raise UserError(
                f"the context was saved by an agent for {saved['made_for']}, this one is for {self._made_for()}: load the run that saved it"
            )
        space, counters, fixed = self.policy.spec.observation_space, saved["counters"], bool(saved["fixed"])
        context = Context(len(saved["lengths"]), self.policy.config.window)
        context.restore(saved, space)
        self.reset(len(context.lengths))
        self.context = context
        self.streams.counters[:] = counters
        self._fixed = fixed
        if self.plans is not None:
            self.plans.age[:], self.plans.begins[:] = saved["plan_age"], saved["plan_begins"]
        if self.recall is not None:
            memory = {key.removeprefix("memory/"): part for key, part in saved.items() if key.startswith("memory/")}
            self.recall.restore(memory, space)

    # reading

    def _params(self, observation: Observation, begins: Array | bool = True) -> torch.Tensor:
        """Read the observation (B, ...) in every lane, where a plan ``begins`` (B,) or goes on -> head parameters (B, ·)."""
        if not self._fixed:
            self._make_room()
        elif self.policy.config.layout == "step" and self.context.lengths.max() >= self.context.window:
            raise UserError(
                f"the fixed context and the running episode fill the window of {self.context.window} steps: load a shorter context"
            )
        self._catch_up()
        return self._step(observation, begins) if self.policy.config.layout == "step" else self._query(observation)

    def _catch_up(self) -> None:
        """Make the cache hold what the context does: read what was observed without a choice, forget a second look at one observation."""
        step = self.policy.config.layout == "step"
        each = self.policy.config.tokens_per_step
        held = each * self.context.lengths if step else 1 + self._seen(slice(None)) - self._pending
        expected = torch.as_tensor(held, device=self.policy.device)
        behind = torch.nonzero(self.cache.lengths < expected)[:, 0].cpu().numpy()
        if len(behind):
            self._reread(behind)
        if step:
            self.cache.lengths.copy_(expected)

    def _seen(self, lanes: Array | slice) -> Array:
        """How many of some lanes' transitions the policy may see: all, or those of the episodes that ended."""
        lengths = self.context.lengths[lanes]
        return lengths if self.append == "step" else np.maximum(lengths - self.context.episode_step[lanes], 0)

    def _empty_cache(self, lanes: Array) -> None:
        index = torch.as_tensor(lanes, device=self.policy.device)
        self.cache.lengths[index] = 0
        if self.policy.config.layout == "transition" and len(lanes):
            self.policy.begin_context(self.cache, index)

    def _make_room(self) -> None:
        """Forget the oldest episodes of lanes whose window is full, and read what they keep again."""
        config, horizon = self.policy.config, self.policy.spec.horizon
        window = config.window
        whole_episodes = config.keeps_episodes(horizon)
        needed = np.where(self.context.episode_step == 0, horizon if whole_episodes else 1, 1)
        full = np.flatnonzero(self.context.lengths + needed > window)
        if len(full) == 0:
            return
        every = config.memory.every if self.recall is not None else 1
        for lane in full.tolist():
            cut = self.context.drop_oldest(lane, max(int(needed[lane]), window // 2), whole_episodes, every)
            if self.recall is not None:
                self.recall.shift(lane, cut // every)
        self._reread(full)

    @torch.no_grad()
    def _reread(self, lanes: Array) -> None:
        """Read the contexts of some lanes from scratch, lanes of similar length together."""
        self._empty_cache(lanes)
        lanes = lanes[np.argsort(self._seen(lanes), kind="stable")]
        if len(lanes):
            size = max(1, READ_TOKENS // max(1, self._tokens_of(int(self._seen(lanes).max()))))
            for start in range(0, len(lanes), size):
                self._read(lanes[start : start + size])
        self._pending[lanes] = False

    def _tokens_of(self, length: int) -> int:
        """Tokens that are read for a context of that many steps, the retrieved ones included."""
        config = self.policy.config
        retrieved = 2 * config.memory.chunk * config.memory.k * -(-length // config.memory.every)
        return length * config.tokens_per_step + retrieved

    def _read(self, lanes: Array) -> None:
        """Write the contexts of some lanes into their caches, which hold nothing.

        Layout ``step``: a context of n transitions is n tokens, the n-th transition being carried by the token that comes next.
        """
        context, device = self.context, self.policy.device
        lengths = self._seen(lanes)
        if self.policy.config.layout == "transition":
            self._read_transitions(lanes, lengths)
            return
        longest = int(lengths.max())
        if longest == 0:
            return
        rows = np.arange(longest)  # transitions
        before = np.maximum(rows - 1, 0)

        def take(name: str, rows: Array = rows) -> Observation:
            return map_observation(
                lambda array: torch.as_tensor(array[lanes[:, None], rows], device=device), context.columns[name]
            )

        earned, steps = take("episode_return"), take("episode_step")
        previous = Previous(
            torch.as_tensor(rows > 0, device=device).expand(len(lanes), longest),
            take("action", before),
            take("reward", before),
            take("ended", before),
            take("observation", before),
            take("next_observation", before),
            earned,
            self._asked(earned, steps, take("paid")),
            take("begins"),
        )
        episode = torch.as_tensor(context.episodes(lanes, longest)[:, :-1], device=device)
        memory = None if self.recall is None else self.recall.window(lanes, lengths, self._limits()[lanes])
        index, kept = torch.as_tensor(lanes, device=device), torch.as_tensor(lengths, device=device)
        self.policy.features_cached(take("observation"), previous, episode, steps, self.cache, index, kept, memory)

    def _read_transitions(self, lanes: Array, lengths: Array) -> None:
        """The same in layout ``transition``, into caches that hold nothing."""
        longest, device = int(lengths.max()), self.policy.device
        if longest == 0:
            return
        parts = tuple(
            map_observation(lambda a: torch.as_tensor(a[lanes, :longest], device=device), self.context.columns[name])
            for name in ("observation", "action", "reward", "next_observation")
        )
        index, kept = torch.as_tensor(lanes, device=device), torch.as_tensor(lengths, device=device)
        self.policy.context_cached(parts, self.cache, index, kept)

    def _step(self, observation: Observation, begins: Array | bool) -> torch.Tensor:
        """Layout ``step``: one token for every lane -> head parameters (B, ·)."""
        context, device = self.context, self.policy.device
        lanes = np.arange(self.num_lanes)
        last = np.maximum(context.lengths - 1, 0)

        def now(array: Array) -> torch.Tensor:
            return torch.as_tensor(np.asarray(array)[:, None], device=device)

        if context.columns:
            action, reward, ended, before, final = (
                map_observation(lambda a: now(a[lanes, last]), context.columns[name])
                for name in ("action", "reward", "ended", "observation", "next_observation")
            )
            longest = int(context.lengths.max())
            episode = context.episodes(lanes, longest)[:, -1]
        else:
            space = self.policy.spec.action_space
            action = now(np.zeros((self.num_lanes, *(space.shape or ())), space.dtype) + getattr(space, "start", 0))
            reward, ended = now(np.zeros(self.num_lanes, np.float32)), now(np.zeros(self.num_lanes, bool))
            before = final = map_observation(now, observation)
            episode = np.zeros(self.num_lanes, np.int64)
        earned = now(context.episode_return)
        previous = Previous(
            now(context.lengths > 0),
            action,
            reward,
            ended,
            before,
            final,
            earned,
            self._asked(earned, now(context.episode_step), now(context.paid)),
            now(np.zeros(self.num_lanes, bool) | begins),
        )
        place = now(episode), now(context.episode_step)
        seen = map_observation(now, observation)
        if self.policy.config.predicts_returns:
            return self._go_for(self.policy.features_cached(seen, previous, *place, self.cache)[:, 0])
        memory = None if self.recall is None else self.recall.look(context.lengths, self._limits())
        output = self.policy.step_cached(seen, previous, *place, self.cache, memory=memory)
        if self.recall is not None:
            self.recall.looked()
        return output[:, 0]

    def _go_for(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, D) of the step that a policy is at -> head parameters (B, ·) of what goes for a return that is drawn."""
        assert self.policy.aim is not None
        drawn = self._draw_return(self.policy.aim.predict(features))
        to_go, improves = (torch.as_tensor(part, device=self.policy.device) for part in drawn)
        return self.policy.head(self.policy.aim(features, to_go, improves))

    def _draw_return(self, logits: torch.Tensor) -> tuple[Array, Array]:
        """The return to go for (B,) float32, drawn from what the policy predicts, (B, bins), tilted towards high ones, and whether it improves on the best (B,).

        With `model.cross_episode` only returns that do are drawn, however improbable, where any of the values does.
        """
        assert self.policy.aim is not None
        config, values = self.policy.config, self.policy.aim.values().numpy()
        total = self.context.episode_return[:, None] + values
        improves = improving(total, self.context.best()[:, None], config.cross_episode)
        share = (values - config.return_low) / (config.return_high - config.return_low)
        search_tilt = self.rule.tilt if self.rule.search_tilt is None else self.rule.search_tilt
        tilt = np.where(self.context.shows_reward(), self.rule.tilt, search_tilt)[:, None]
        probs = torch.softmax(logits.double(), -1).cpu().numpy() * share**tilt
        if config.cross_episode != "off":
            probs = np.where((probs * improves).sum(1, keepdims=True) > 0, probs * improves, probs)
        probs[probs.sum(1) <= 0, 0] = 1.0  # nothing but the least return is thought possible
        drawn = self.streams.choice(probs)
        return values[drawn], improves[np.arange(len(drawn)), drawn]

    def _asked(self, earned: torch.Tensor, episode_step: torch.Tensor, paid: torch.Tensor) -> torch.Tensor:
        """(B, T) float32 the return still to come that the policy is asked for, where its episode has earned so much after so many steps.

        ``paid`` tells whether its life had by then.

        A rate is asked for as a return too, so that tokens are made here as in training: they divide it by the steps that are left.
        """
        target = torch.where(paid, self.target_return, self.search_return)
        if self.policy.config.return_to_go == "rate":
            horizon = self.policy.spec.horizon
            return target / horizon * (horizon - episode_step).float()
        return target - earned

    def _limits(self) -> Array:
        """(B,) steps of the lanes' lives by which a chunk must have ended to be retrieved: the window's beginning, or that of its episode."""
        assert self.recall is not None
        within = self.context.episode_step if self.policy.config.episodic else self.context.lengths
        return self.recall.memory.life - within

    def _query(self, observation: Observation) -> torch.Tensor:
        """Layout ``transition``: append the last transition where there is one, and ask -> head parameters (B, ·)."""
        context, device = self.context, self.policy.device
        lanes, last = np.arange(self.num_lanes), np.maximum(context.lengths - 1, 0)
        query = to_tensors(map_observation(lambda a: np.asarray(a)[:, None], observation), device)
        parts = ()
        if self._pending.any():
            parts = tuple(
                to_tensors(map_observation(lambda a: a[lanes, last][:, None], context.columns[name]), device)
                for name in ("observation", "action", "reward", "next_observation")
            )
        pending = torch.as_tensor(self._pending.copy(), device=device)
        output = self.policy.query_cached(parts, pending, query, self.cache)
        self._pending[:] = False
        return output
