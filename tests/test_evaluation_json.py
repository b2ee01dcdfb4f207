"""The record of an evaluation: its schema, its statistics by hand, what trackers leave, what is logged."""

import json

import numpy as np
import pytest
from arm_family import AGENTS, FAMILY, optimal, run, try_arms, zero

from icrl.config import EvaluateConfig
from icrl.evaluation import evaluate
from icrl.evaluation_json import SCHEMA, evaluation_to_json, load_artefacts, log_evaluation, save_artefacts
from icrl.exactness import PosteriorDistance

# trackers


def test_bandit_regret_curve_and_ratio():
    record = evaluation_to_json(
        run(tasks=FAMILY.tasks(4), agents={"agent": try_arms, "zero": zero, "optimal": optimal})
    )
    agent, fixed = record["agents"]["agent"]["bandit"], record["agents"]["zero"]["bandit"]
    assert agent["steps"] == list(range(1, 21))
    assert agent["final_regret"]["mean"] == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert fixed["final_regret"]["mean"] == pytest.approx(20 * 3 / 4)
    assert fixed["cumulative_regret"]["mean"] == pytest.approx([0.75 * t for t in range(1, 21)])
    assert fixed["regret_ratio_of_agent"]["mean"] == pytest.approx(1.5 / 15)
    assert record["agents"]["optimal"]["bandit"]["regret_ratio_of_agent"]["mean"] is None  # over nothing


def test_visits_and_one_life_of_a_grid(tmp_path):
    result = run(seeds=(3, 4))
    save_artefacts(result, tmp_path / "deep" / "evaluation.npz")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["evaluation.npz"]
    stored = load_artefacts(tmp_path / "deep" / "evaluation.npz")
    assert set(stored.agents) == {"agent", "optimal", "random", "agent, rewards hidden"}
    np.testing.assert_array_equal(stored.tasks, result.tasks)
    arrays = stored.agents["agent"]
    np.testing.assert_array_equal(arrays["returns"], result.agents["agent"].returns)
    assert arrays["visit_episodes"].tolist() == [1, 2, 3, 4]
    assert arrays["visit_lanes"].shape == (4, 6, 6, 1)
    assert arrays["visit_mean"][0, :, 0].tolist() == [1, 1, 1, 1, 1, 0]
    assert arrays["life_observation"].shape == (20, 6, 2)
    first_episode = arrays["life_episode"][:, 1] == 1
    assert arrays["life_reward"][first_episode, 1].sum() == arrays["returns"][0, 1, 0]
    assert arrays["cumulative_regret"].shape == (2, 16, 20)


# the record


def check(value, schema, where="record"):
    """The part of JSON Schema that SCHEMA uses."""
    if schema is True:
        return
    kinds = {"object": dict, "array": list, "number": (int, float), "integer": int, "string": str, "boolean": bool}
    if "enum" in schema:
        assert value in schema["enum"], where
        return
    allowed = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if value is None:
        assert "null" in allowed, where
        return
    assert any(isinstance(value, kinds[kind]) for kind in allowed if kind != "null"), (where, value)
    if isinstance(value, dict):
        assert set(schema["required"]) <= set(value), where
        for key, item in value.items():
            extra = schema["additionalProperties"]
            assert key in schema.get("properties", {}) or extra, (where, key)
            check(item, schema.get("properties", {}).get(key, extra), f"{where}.{key}")
    if isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)), where
        for item in value:
            check(item, schema["items"], where + "[]")


@pytest.mark.parametrize(
    "options", [{}, {"episodes": 1}, {"mode": "offline", "context_size": 3}, {"lanes": 1}, {"hide_rewards": False}]
)
def test_record_is_json_and_as_the_schema_says(options):
    record = json.loads(json.dumps(evaluation_to_json(run(**options)), allow_nan=False))
    check(record, SCHEMA)
    with pytest.raises(AssertionError):
        check({**record, "surprise": 1}, SCHEMA)


def test_what_the_family_was_and_how_far_from_its_posterior():
    config = EvaluateConfig(episodes=1, lanes=4, hide_rewards=False)
    result = evaluate(FAMILY, FAMILY.tasks(4), AGENTS, config, root_seed=0, progress=False)
    distance = PosteriorDistance(3, np.array([0, 1]), np.array([0.1, 0.3]), np.array([0.0, 0.5]))
    record = evaluation_to_json(result, family_options={"arms": (1, 2)}, posterior_distance=distance)
    record = json.loads(json.dumps(record, allow_nan=False))
    check(record, SCHEMA)
    assert record["family_options"] == {"arms": [1, 2]}
    assert record["posterior_distance"] == pytest.approx(
        {"max_pulls": 3, "num_states": 2, "to_posterior": 0.2, "between_orders": 0.25}
    )
    bare = evaluation_to_json(result)
    assert bare["family_options"] == {} and bare["posterior_distance"] is None


def test_every_key_of_the_schema_is_described():
    def visit(schema, where):
        assert schema.get("description") or where.endswith(("over_tasks", "fixed_tasks")), where
        for key, item in schema.get("properties", {}).items():
            visit(item, f"{where}.{key}")

    visit(SCHEMA, "record")
    visit(SCHEMA["properties"]["agents"]["additionalProperties"], "agents")


def test_statistics_of_the_record():
    record = evaluation_to_json(run(tasks=FAMILY.tasks(4), lanes=8))
    agent, best = record["agents"]["agent"], record["agents"]["optimal"]
    assert agent["return_by_episode"]["mean"] == pytest.approx([3.5, 5, 5, 5])
    assert agent["late_minus_early"]["mean"] == pytest.approx(1.5)
    assert agent["area_under_curve"]["mean"] == pytest.approx(18.5)
    assert agent["regret_by_episode"]["mean"] == pytest.approx([1.5, 0, 0, 0])
    assert agent["normalised_score"]["mean"] == pytest.approx((18.5 / 4 - 1.25) / 3.75)
    assert best["normalised_score"]["mean"] == pytest.approx(1)
    assert best["agent_minus_this"]["mean"] == pytest.approx(18.5 / 4 - 5)
    assert agent["return_by_episode"]["fixed_tasks"][0] == pytest.approx([3.5, 3.5])  # no chance within a task
    low, high = agent["return_by_episode"]["over_tasks"][0]
    assert 2 <= low < 3.5 < high <= 5


def test_privileged_rows_say_so():
    config = EvaluateConfig(episodes=1, lanes=4, hide_rewards=False)
    told = {"optimal": "knows the task"}
    result = evaluate(FAMILY, FAMILY.tasks(4), AGENTS, config, root_seed=0, privileged=told, progress=False)
    rows = evaluation_to_json(result)["agents"]
    assert rows["optimal"]["privileged"] == "knows the task" and rows["agent"]["privileged"] is None
    assert rows["agent"]["role"] == "agent" and rows["optimal"]["role"] == "baseline"


def test_curves_are_logged_by_episode():
    logged = []

    class Writer:
        def add_scalar(self, tag, scalar_value, global_step):
            logged.append((tag, scalar_value, global_step))

    record = evaluation_to_json(run(tasks=FAMILY.tasks(4), hide_rewards=False))
    log_evaluation(Writer(), record)
    curve = [(step, value) for tag, value, step in logged if tag == "evaluation/test_online/return_by_episode/agent"]
    assert curve == list(enumerate([3.5, 5, 5, 5], start=1))
    assert any(tag.endswith("cumulative_regret/agent") for tag, _, _ in logged)


def test_progress_shows_agents_and_rate(capsys):
    run(progress=True, agents={"agent": zero}, hide_rewards=False)
    shown = capsys.readouterr().err
    assert "agent" in shown and "step/s" in shown and "100%" in shown
