"""A memory in a roll-out: what is computed through caches is what the full pass computes, and an empty memory is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_in_context import HORIZON, Script, as_window, live, make_agent
from toy import without_flushing, write_histories

from icrl.config import MemoryConfig, MixtureConfig
from icrl.data.chunks import Retrieved
from icrl.data.sampling import windows
from icrl.data.schema import History
from icrl.in_context import InContextAgent
from icrl.interfaces import UserError
from icrl.memory.files import merge_memories, read_memory
from icrl.memory.training import LifeMemory
from icrl.models.observations import to_tensors
from icrl.models.retrieval import RetrievedWindow
from icrl.objectives.base import step_inputs, step_window

_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)
MEMORY = MemoryConfig(k=2, chunk=3, every=2, key_width=8, candidates=5)
LIFE = {"memory": MEMORY}
EPISODIC = {"memory": MEMORY, "episodic": True}
KINDS = {
    "life": LIFE,
    "life, first block": {"memory": replace(MEMORY, layers="first")},
    "life, every step": {"memory": replace(MEMORY, every=1)},
    "episodic": EPISODIC,
    "interleaved": {**EPISODIC, "interleaved": True, "return_to_go": "total"},
    "rate": {**EPISODIC, "return_to_go": "rate"},
    "parts": {"memory": replace(MEMORY, worth="onward", arrivals=True), "episode_return": True},
    "no repeats": {"memory": replace(MEMORY, repeats=False)},
    "mixture": {"memory": MEMORY, "mixture": MixtureConfig(blocks=(0,), token_experts=3, task_experts=4)},
    "unsure": {"memory": replace(MEMORY, every=1, confidence=0.5)},
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def agent_of(options, window=10) -> Any:
    target: Any = 0.3 * HORIZON if "return_to_go" in options else None
    agent: InContextAgent = make_agent(window=window, target_return=target, search_return=0.1, **options)
    agent.policy.spec = replace(agent.policy.spec, horizon=HORIZON)
    return agent


def retrieved_for(agent, lane, groups):
    """What the memory brings, asked anew, for the first groups of a lane's window."""
    recall = agent.recall
    asked = recall.asked[[lane], :groups], agent._limits()[[lane]], recall.asked_at[[lane], :groups]
    ids = recall.memory.search(np.array([lane]), *asked)
    if (ids < 0).all():
        return None
    return Retrieved(*(to_tensors(part, agent.policy.device) for part in recall.memory.read(np.array([lane]), ids)))


@every_kind
@torch.no_grad()
def test_cached_life_equals_the_full_pass_with_the_same_retrievals(options):
    agent, script = agent_of(options), Script(3, 60)
    if not options["memory"].repeats:
        script.linger()
    agent.reset(3)
    remembered, halved, left_out, before = 0, 0, 0, np.zeros(3)
    for t, output in live(agent, script, 60):
        for lane in range(3):
            window = as_window(agent, lane, script.observation[t, lane])
            n = window.reward.shape[1]
            steps = agent.context.columns["episode_step"][lane, : n - 1] if n > 1 else np.zeros(0, int)
            earned = agent.context.columns["episode_return"][lane, : n - 1] if n > 1 else np.zeros(0)
            earned = np.append(earned, agent.context.episode_return[lane])[None].astype(np.float32)
            steps = np.append(steps, agent.context.episode_step[lane])[None]
            paid = agent.context.columns["paid"][lane, : n - 1] if n > 1 else np.zeros(0, bool)
            target = np.where(np.append(paid, agent.context.paid[lane]), agent.target_return, agent.search_return)[None]
            asked = (target - earned).astype(np.float32)
            if options.get("return_to_go") == "rate":  # so much of each step left
                asked = (target / HORIZON * (HORIZON - steps)).astype(np.float32)
            window = replace(window, episode_step=steps, episode_return=earned, return_to_go=asked)
            retrieved = retrieved_for(agent, lane, -(-n // agent.policy.config.memory.every))
            expected = step_window(agent.policy, replace(window, retrieved=retrieved))[0, -1]
            torch.testing.assert_close(output[lane], expected, rtol=1e-4, atol=1e-4)
            remembered += retrieved is not None
            if retrieved is not None:
                left_out += int((retrieved.valid & ~agent.policy.retrieved_tokens.looked_at(retrieved)).sum())
            halved += n < before[lane] and n > 1
            before[lane] = n
    assert remembered > 60 and (halved > 3 or agent.policy.config.episodic)
    assert (left_out > 0) != options["memory"].repeats


@pytest.mark.parametrize("episode_return", [True, False])
@torch.no_grad()
def test_retrieved_tokens_tell_what_their_episode_had_earned_where_the_model_is_told_returns(episode_return):
    agent, _ = lived({**LIFE, "episode_return": episode_return})
    recall = agent.recall
    assert recall is not None and agent.policy.retrieved_tokens is not None
    found = Retrieved(
        *(to_tensors(part, agent.policy.device) for part in recall.memory.read(np.arange(2), np.zeros((2, 1, 2), int)))
    )
    other = found._replace(episode_return=found.episode_return + 1)
    tokens = agent.policy.retrieved_tokens
    assert torch.equal(tokens(found), tokens(other)) != episode_return


@torch.no_grad()
def test_arrivals_tell_of_the_step_before_within_its_chunk_and_episode():
    """A reward is seen at its own token and at the next one, but neither in the next chunk nor behind the end of an episode."""
    agent = agent_of({"memory": replace(MEMORY, arrivals=True)})
    tokens: Any = agent.policy.retrieved_tokens
    span, k = 2 * MEMORY.chunk, MEMORY.k
    shape = 1, 1, span * k
    plain = Retrieved(
        observation=torch.zeros((*shape, 2), dtype=torch.long),
        action=torch.zeros(shape, dtype=torch.long),
        reward=torch.zeros(shape),
        ended=torch.zeros(shape, dtype=torch.bool),
        return_to_go=torch.zeros(shape),
        episode_return=torch.zeros(shape),
        position=torch.arange(span).repeat(k).view(shape),
        valid=torch.ones(shape, dtype=torch.bool),
    )
    for at, ends, seen in ((1, False, [1, 2]), (span - 1, False, [span - 1]), (1, True, [1])):
        ended, reward = plain.ended.clone(), plain.reward.clone()
        ended[..., at], reward[..., at] = ends, 1.0
        found = tokens(plain._replace(ended=ended, reward=reward)) != tokens(plain._replace(ended=ended))
        assert torch.nonzero(found.any(-1)[0, 0])[:, 0].tolist() == seen


@pytest.mark.parametrize("repeats", [True, False])
@torch.no_grad()
def test_steps_that_repeat_the_one_before_them_in_their_chunk_may_be_left_out(repeats):
    agent = agent_of({"memory": replace(MEMORY, repeats=repeats)})
    told = {"observation": [4, 4, 4, 5, 5, 5], "action": [0, 0, 1, 1, 1, 1], "reward": [0, 0, 0, 0, 0, 1]}
    columns = {name: torch.tensor(2 * values)[None, None] for name, values in told.items()}
    columns["observation"] = torch.stack([columns["observation"], torch.zeros(1, 1, 12, dtype=torch.long)], -1)
    rest = {name: torch.zeros(1, 1, 12) for name in ("return_to_go", "episode_return")}
    ended, valid = torch.zeros(1, 1, 12, dtype=torch.bool), torch.arange(12)[None, None] < 10
    position = torch.arange(6).repeat(2)[None, None]
    found = agent.policy.retrieved_tokens.looked_at(
        Retrieved(**columns, **rest, ended=ended, position=position, valid=valid)
    )
    once = [True, False, True, True, False, True, True, False, True, True, False, False]
    assert found[0, 0].tolist() == (valid[0, 0].tolist() if repeats else once)


@torch.no_grad()
def test_rates_may_enter_as_multiples_of_a_step():
    """Of each step left, 0.3 and 0.6 are nearest to 0.5, so the tokens are those of 0.5; 0.2 is nearest to 0."""
    agent = agent_of({**EPISODIC, "return_to_go": "rate", "rate_step": 0.5})
    exact = agent_of({**EPISODIC, "return_to_go": "rate"})
    agent.reset(1)
    window = as_window(agent, 0, Script(1, 1).observation[0, 0])
    tokens = {}
    for rate in (0.2, 0.3, 0.5, 0.6):
        asked = np.full_like(window.reward, rate * agent.policy.tokens.horizon)
        inputs = step_inputs(agent.policy, replace(window, return_to_go=asked))
        tokens[rate] = [one.policy.tokens(*inputs) for one in (agent, exact)]
    assert torch.equal(tokens[0.3][0], tokens[0.5][0]) and torch.equal(tokens[0.6][0], tokens[0.5][0])
    assert not torch.equal(tokens[0.2][0], tokens[0.5][0]) and not torch.equal(tokens[0.3][1], tokens[0.5][1])


@every_kind
@torch.no_grad()
def test_an_empty_memory_is_no_memory_bit_for_bit(options):
    agent, script = agent_of(options), Script(2, 30)
    agent.reset(2)
    for t, _ in live(agent, script, 30):
        if t == 8:
            break
    policy: Any = agent.policy
    window = as_window(agent, 0, script.observation[8, 0])
    length, each = window.reward.shape[1], policy.config.memory.every
    nothing = torch.zeros(1, -(-length // each), 4, dtype=torch.bool)
    tokens = torch.randn(*nothing.shape, policy.config.width)
    plain = step_window(policy, window)
    inputs: list[Any] = []
    policy.step_window, real = lambda *a: inputs.append(a), policy.step_window
    step_window(policy, window)
    empty = real(*inputs[0][:-2], RetrievedWindow(tokens, nothing, each * policy.config.tokens_per_step))
    assert torch.equal(plain, empty)
    some = nothing.clone()
    some[..., 0] = True
    full = real(*inputs[0][:-2], RetrievedWindow(tokens, some, each * policy.config.tokens_per_step))
    assert not torch.allclose(plain, full, atol=1e-3)
    other = torch.where(some[..., None], tokens, 1e4)  # what masked neighbours hold is inert
    again = real(*inputs[0][:-2], RetrievedWindow(other, some, each * policy.config.tokens_per_step))
    assert torch.equal(full, again)


def test_a_lane_is_asked_for_little_until_its_life_has_paid_and_again_after_a_reset():
    agent, script = agent_of({**EPISODIC, "return_to_go": "total"}), Script(2, 12)
    script.reward[:] = 0
    script.reward[4, 1] = 2
    agent.reset(2)
    asked, step_cached = [], agent.policy.step_cached
    agent.policy.step_cached = lambda o, previous, *a, **k: asked.append(previous) or step_cached(o, previous, *a, **k)
    for _ in live(agent, script, 10):
        pass
    single = [p for p in asked if p.return_to_go.shape == (2, 1)]
    targets = np.stack([(p.return_to_go + p.episode_return)[:, 0].numpy() for p in single], 1)  # (2, 10)
    np.testing.assert_allclose(targets[0], 0.1, rtol=1e-6)
    np.testing.assert_allclose(targets[1], [0.1] * 5 + [agent.target_return] * 5, rtol=1e-6)
    agent.reset([1])
    assert agent.context.paid.tolist() == [False, False]


def test_a_saved_context_and_a_memory_tell_whether_a_life_has_paid(tmp_path):
    agent, script = lived({**EPISODIC, "return_to_go": "rate"}, lanes=2)
    assert agent.context.paid.all() and script.reward.max() > 0
    agent.save_context(tmp_path / "context.npz")
    again = agent_of({**EPISODIC, "return_to_go": "rate"})
    again.reset(2)
    again.restore_context(tmp_path / "context.npz")
    assert again.context.paid.all()
    agent.save_memory(tmp_path / "memory.npz")
    fresh = agent_of({**EPISODIC, "return_to_go": "rate"})
    fresh.reset(2)
    fresh.load_memory(tmp_path / "memory.npz")
    assert fresh.context.paid.all()


@torch.no_grad()
def test_lanes_are_apart_and_a_reset_forgets_the_memory():
    one, two = agent_of(LIFE), agent_of(LIFE)
    script, other = Script(2, 40), Script(2, 40, seed=3)
    other.observation[:, 0], other.reward[:, 0], other.ended[:, 0] = (
        script.observation[:, 0],
        script.reward[:, 0],
        script.ended[:, 0],
    )
    one.reset(2)
    two.reset(2)
    for (_, a), (_, b) in zip(live(one, script, 40), live(two, other, 40), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-5)
    fresh = agent_of(LIFE)
    fresh.reset(2)
    one.reset([1])
    assert one.recall is not None and one.recall.memory.count.tolist()[1] == 0
    rest = script.after(5)
    outputs = [next(live(agent, rest, 1))[1][1] for agent in (one, fresh)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_in_force_stays_where_the_policy_is_sure():
    sure = agent_of({"memory": replace(MEMORY, every=1, confidence=1e-9)})
    script = Script(2, 9)
    sure.reset(2)
    for _ in live(sure, script, 9):
        pass
    assert sure.recall is not None
    asked = sure.recall.asked[:, :9]
    assert (asked == asked[:, :1]).all()  # the first question, asked before anything was lived
    unsure = agent_of({"memory": replace(MEMORY, every=1)})
    unsure.reset(2)
    for _ in live(unsure, script, 9):
        pass
    assert unsure.recall is not None
    assert len(np.unique(unsure.recall.asked[0, :9].reshape(9, -1), axis=0)) > 5


# files


def utility(agent):
    """(B, N) of all chunks, now."""
    memory = agent.recall.memory
    return memory.utility(np.arange(len(memory.life)), memory.life[:, None])[:, 0]


def lived(options=LIFE, lanes=2, steps=40, seed=0):
    agent, script = agent_of(options), Script(lanes, steps + 10, seed)
    agent.reset(lanes)
    for _ in live(agent, script, steps):
        pass
    return agent, script


@every_kind
@torch.no_grad()
def test_a_saved_and_restored_context_acts_as_the_one_that_saved_it(options, tmp_path):
    agent, script = lived(options, steps=37)
    agent.save_context(tmp_path / "context.npz")
    again = agent_of(options)
    again.reset(2)
    again.restore_context(tmp_path / "context.npz")
    rest = script.after(37)
    for (_, a), (_, b) in zip(live(agent, rest, 10), live(again, rest, 10), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_lane_that_starts_from_a_saved_memory_retrieves_from_it(tmp_path):
    agent, script = lived()
    agent.save_memory(tmp_path / "memory.npz")
    again, plain = agent_of(LIFE), agent_of(LIFE)
    again.reset(2)
    plain.reset(2)
    again.load_memory(tmp_path / "memory.npz")
    assert again.recall is not None and agent.recall is not None
    assert again.recall.memory.count.tolist() == agent.recall.memory.count.tolist()
    held = again.recall.memory.count.min()
    np.testing.assert_array_equal(utility(again)[:, :held], utility(agent)[:, :held])
    outputs = [[output for _, output in live(a, script, 8)] for a in (again, plain)]
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=1e-4, atol=1e-4)  # nothing was seen to ask with
    assert not torch.allclose(outputs[0][7], outputs[1][7], atol=1e-3)


def test_memories_of_one_task_are_merged_and_the_best_stay(tmp_path):
    agent, _ = lived(lanes=3)
    tasks = np.array([(4,), (7,), (4,)], [("goal", int)])
    agent.save_memory(tmp_path / "memory.npz", tasks)
    assert agent.recall is not None
    counts = agent.recall.memory.count
    again = agent_of(LIFE)
    again.reset(3)
    again.load_memory(tmp_path / "memory.npz", np.array([(7,), (4,), (5,)], tasks.dtype))
    assert again.recall is not None
    assert again.recall.memory.count.tolist() == [counts[1], counts[0] + counts[2], 0]
    small = agent_of({"memory": replace(MEMORY, capacity=4)})
    small.reset(1)
    small.load_memory(tmp_path / "memory.npz", tasks[:1])
    assert small.recall is not None
    kept, everything = utility(small)[0], utility(again)[1, : counts[0] + counts[2]]
    np.testing.assert_allclose(np.sort(kept[:4]), np.sort(everything)[-4:])


def test_merged_memories_are_what_all_of_them_lived_through(tmp_path):
    first, second = lived(lanes=2)[0], lived(lanes=3, steps=50)[0]
    tasks = np.array([(4,), (7,), (4,)], [("goal", int)])
    files = [tmp_path / "first.npz", tmp_path / "second.npz"]
    first.save_memory(files[0], tasks[:2])
    second.save_memory(files[1], tasks)
    merged = merge_memories(files, tmp_path / "merged.npz")
    assert first.recall is not None and second.recall is not None
    (a, b), (c, d, e) = first.recall.memory.count, second.recall.memory.count
    assert np.bincount(merged.lane).tolist() == [a, b, c, d, e] and merged.num_lanes == 5
    parts = [read_memory(file) for file in files]
    np.testing.assert_array_equal(merged.keys, np.concatenate([part.keys for part in parts]))
    np.testing.assert_array_equal(merged.utility(), np.concatenate([part.utility() for part in parts]))
    again = agent_of(LIFE)
    again.reset(2)
    again.load_memory(tmp_path / "merged.npz", tasks[:2])
    assert again.recall is not None and again.recall.memory.count.tolist() == [a + c + e, b + d]


def test_a_memory_without_chunks_can_be_merged(tmp_path):
    empty, full = lived(lanes=2, steps=1)[0], lived(lanes=2)[0]
    files = [tmp_path / "empty.npz", tmp_path / "full.npz"]
    empty.save_memory(files[0])
    full.save_memory(files[1])
    merged, alone = merge_memories(files, tmp_path / "merged.npz"), read_memory(files[1])
    np.testing.assert_array_equal(merged.lane, alone.lane + 2)
    np.testing.assert_array_equal(merged.chunks["action"], alone.chunks["action"])


def test_memories_that_do_not_belong_together_are_not_merged(tmp_path):
    agent, other = lived()[0], lived({"memory": replace(MEMORY, key_width=16)})[0]
    tasks = np.array([(1,), (2,)], [("goal", int)])
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    agent.save_memory(files[0], tasks)
    other.save_memory(files[1], tasks)
    agent.save_memory(files[2])
    for pair, words in (
        (files[:2], "b.npz was made with key width 16, .*a.npz with 8"),
        (files[::2], "that know their tasks"),
    ):
        with pytest.raises(UserError, match=words):
            merge_memories(pair, tmp_path / "merged.npz")
    assert not (tmp_path / "merged.npz").exists()
    before = files[1].read_bytes()
    with pytest.raises(UserError, match=r"b\.npz exists: choose another name"):
        merge_memories([files[0], files[0]], files[1])
    assert files[1].read_bytes() == before


def test_memories_that_do_not_fit_are_one_line(tmp_path):
    agent, _ = lived()
    file = tmp_path / "memory.npz"
    agent.save_memory(file, np.array([(1,), (2,)], [("goal", int)]))
    for options, words in (
        ({"memory": replace(MEMORY, chunk=2)}, "made with chunk 3, this policy needs 2"),
        ({"memory": replace(MEMORY, key_width=16)}, "made with key width 8, this policy needs 16"),
    ):
        other = agent_of(options)
        other.reset(2)
        with pytest.raises(UserError, match=words):
            other.load_memory(file)
    with pytest.raises(UserError, match="remembers none of the 2 tasks"):
        again = agent_of(LIFE)
        again.reset(2)
        again.load_memory(file, np.array([(3,), (4,)], [("goal", int)]))
    with pytest.raises(UserError, match="already remembers something"):
        agent.load_memory(file)
    with pytest.raises(UserError, match="there is no memory: the policy has none"):
        plain = make_agent()
        plain.reset(2)
        plain.load_memory(file)
    content = file.read_bytes()
    for damaged in (content[:100], content[: len(content) // 2], b"", b"no zip at all"):
        file.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"is not a saved memory .* give a file that icrl evaluate --save-memory wrote"
        ):
            agent.load_memory(file)
    agent.save_context(tmp_path / "context.npz")
    with pytest.raises(UserError, match="is not a saved memory"):
        agent.load_memory(tmp_path / "context.npz")
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        agent.save_memory(tmp_path / "nowhere" / "memory.npz")


def life_of(script, actions, lane, steps):
    """What a lane lived through, as a history."""
    ended = script.ended[:steps, lane].copy()
    ended[-1] = True
    return History(
        observation=script.observation[:steps, lane].astype(np.uint16),
        action=np.array(actions)[:, lane].astype(np.uint8),
        reward=script.reward[:steps, lane],
        terminated=ended,
        truncated=np.zeros_like(ended),
        final_observation=script.observation[1 : steps + 1, lane][ended].astype(np.uint16),
        episode_offset=np.concatenate([[0], np.flatnonzero(ended) + 1]),
    )


@pytest.mark.parametrize("episodic", [False, True])
@torch.no_grad()
def test_every_group_of_a_window_retrieves_what_training_does_for_such_a_window(episodic, tmp_path):
    """Episodes longer than the window, so that what a chunk is worth changes between a question and a second reading."""
    memory = replace(MEMORY, query_dropout=0.0, empty=0.0, utility=3.0)
    agent, script, steps = agent_of({"memory": memory, "episodic": episodic}), Script(2, 90), 80
    for lane, length in ((0, 17), (1, 13)):
        script.ended[:, lane] = np.arange(1, 91) % length == 0
    agent.reset(2)
    seen, actions, recall = [], [], agent.recall
    assert recall is not None
    act = agent.act
    agent.act = lambda *given: actions.append(act(*given)) or actions[-1]
    for _, _ in live(agent, script, steps):
        for lane in range(2):
            n = int(agent.context.lengths[lane])
            start, groups = int(recall.memory.life[lane]) - n, n // memory.every + 1
            seen.append((lane, start, groups, retrieved_for(agent, lane, groups)))
    histories = [life_of(script, [a.action for a in actions], lane, steps) for lane in range(2)]
    store = write_histories(tmp_path / "data", replace(agent.policy.spec, horizon=17), histories, 1)
    training, compared, worth = LifeMemory(store, memory, agent._encoder, episodic), 0, 0
    for lane, start, groups, found in seen:
        offsets = histories[lane].episode_offset
        episode = int(np.searchsorted(offsets, start, side="right")) - 1
        skip = np.array([start - offsets[episode]])
        window = windows(store, np.array([lane]), np.array([episode]), 10, skip=skip, episodic=episodic)
        expected = training.retrieve(window, np.random.default_rng(0)).retrieved
        assert (found is None) == (expected is None or not expected.valid[:, :groups].any())
        if found is None or expected is None:
            continue
        valid = expected.valid[:, :groups]
        np.testing.assert_array_equal(found.valid, valid)
        for name in ("observation", "action", "reward", "ended"):
            np.testing.assert_array_equal(
                np.asarray(getattr(found, name))[valid], getattr(expected, name)[:, :groups][valid]
            )
        compared += int(valid.any(2).sum())
        worth += groups > 2
    assert compared > 150 and worth > 40


@torch.no_grad()
def test_lanes_with_and_without_memories_side_by_side():
    """A lane that remembers nothing acts as if there were no memory, whatever its neighbour retrieves."""
    agent, script = lived()
    agent.reset([1])
    rest = script.after(40)
    alone = agent_of(LIFE)
    alone.reset(2)
    for (_, a), (_, b) in zip(live(agent, rest, 5), live(alone, rest, 5), strict=True):
        torch.testing.assert_close(a[1], b[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_saved_and_loaded_memory_gives_identical_actions(tmp_path):
    agent, script = lived()
    agent.save_memory(tmp_path / "memory.npz")
    outputs = []
    for _ in range(2):
        again = agent_of(LIFE)
        again.reset(2)
        again.load_memory(tmp_path / "memory.npz")
        outputs.append([output.clone() for _, output in live(again, script, 30)])
        again.save_memory(tmp_path / "again.npz")
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_damage_anywhere_in_a_memory_is_one_line(tmp_path):
    agent, _ = lived()
    file = tmp_path / "memory.npz"
    agent.save_memory(file)
    content, rng, told = file.read_bytes(), np.random.default_rng(0), 0
    for place in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 255
        file.write_bytes(bytes(damaged))
        again = agent_of(LIFE)
        again.reset(2)
        try:
            again.load_memory(file)
        except UserError:
            told += 1
    assert told > 100
