import csv
import inspect
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from arm_family import run as run_evaluation
from search_run import run_search
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import FAMILY, LAYOUTS, make_store

from icrl import throughput
from icrl.data.sampling import WindowSampler
from icrl.evaluation_json import evaluation_to_json, log_evaluation
from icrl.interfaces import UserError
from icrl.monitor import GLOSSARY, FileMonitor, NullMonitor, meaning_of, read_metrics
from icrl.optimisation import Learner
from icrl.training import train

CPU = torch.device("cpu")
CONFIG = {"name": "tiny", "train": {"steps": 4, "list": [1]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "data")


def board(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


class Tags(list):
    """What is needed of a writer, to see the tags."""

    def add_scalar(self, tag, scalar_value, global_step):
        self.append(tag)


def evaluation_tags() -> set[str]:
    """The tags of an evaluation of a bandit, which has returns and regret, and of a search by plans."""
    tags = Tags()
    for evaluation in (run_evaluation(episodes=1, hide_rewards=False), run_search(episodes=2)):
        log_evaluation(tags, evaluation_to_json(evaluation))
    return set(tags)


def test_every_tag_of_every_objective_and_evaluation_is_in_the_glossary(store, tmp_path):
    seen = evaluation_tags()
    for name, recipe in LAYOUTS.items():
        run = tmp_path / name
        train(recipe, store, FAMILY, run, threads=1, progress=False)
        events = board(run).Tags()
        logged = {*read_metrics(run / "metrics.csv"), *events["scalars"], *events["images"]}
        assert set(read_metrics(run / "metrics.csv")) == set(events["scalars"])
        seen |= logged | {tag.removesuffix("/text_summary") for tag in events["tensors"]}
        assert {"validation/curve", "accuracy/by_position"} <= set(events["images"])
    for tag in seen:
        assert all(meaning_of(tag)), tag
    unused = [pattern for pattern in GLOSSARY if not any(meaning_of(tag) is GLOSSARY[pattern] for tag in seen)]
    assert unused == []
    with pytest.raises(KeyError):
        meaning_of("train/unheard_of")


def test_both_records_hold_the_values(tmp_path):
    monitor = FileMonitor(tmp_path, 0, CONFIG, CPU)
    monitor.scalars(1, {"train/loss": 0.1})
    monitor.scalars(2, {"train/loss": 1 / 3})
    monitor.validation(2, np.array([1.0, 2.0]), 0.5)
    monitor.close()
    metrics = read_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(metrics["train/loss"][0], [1, 2])
    np.testing.assert_array_equal(metrics["train/loss"][1], [0.1, 1 / 3])  # every digit
    assert metrics["validation/return"][1] == [1.5] and metrics["validation/episode_02"][1] == [2.0]
    events = board(tmp_path)
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2]
    assert events.Images("validation/curve")[0].width == 500
    text = events.Tensors("config/recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"steps": 4' in text
    assert "_hparams_/experiment" in events.summary_metadata


def wait_for_another_second() -> None:
    """TensorBoard reads a folder's files by the second in their names, then by a number that is not padded: those of one second may swap."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.02)


def test_steps_past_the_checkpoint_are_forgotten_by_both_records(tmp_path):
    first = FileMonitor(tmp_path, 0, CONFIG, CPU)
    for step in (2, 4, 6):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    wait_for_another_second()
    resumed = FileMonitor(tmp_path, 4, CONFIG, CPU)
    resumed.scalars(6, {"train/loss": 60.0})
    resumed.close()
    steps, values = read_metrics(tmp_path / "metrics.csv")["train/loss"]
    assert steps.tolist() == [2, 4, 6] and values.tolist() == [2.0, 4.0, 60.0]
    assert [(e.step, e.value) for e in board(tmp_path).Scalars("train/loss")] == [(2, 2.0), (4, 4.0), (6, 60.0)]
    wait_for_another_second()
    FileMonitor(tmp_path, 0, CONFIG, CPU).close()  # no checkpoint was reached: all of it is forgotten
    assert read_metrics(tmp_path / "metrics.csv") == {}
    assert board(tmp_path).Scalars("train/loss") == []


def test_a_torn_last_line_is_dropped_and_a_foreign_file_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,tag,value\n1,train/loss,0.5\n2,train/lo")
    assert read_metrics(tmp_path / "metrics.csv")["train/loss"][1].tolist() == [0.5]
    for content in ("a,b\n1,2\n", "step,tag,value\nx,train/loss,1\n", "step,tag,value\n1,2\n"):
        (tmp_path / "metrics.csv").write_text(content)
        with pytest.raises(UserError, match="is not the metrics of a run"):
            FileMonitor(tmp_path, 3, CONFIG, CPU)
        assert (tmp_path / "metrics.csv").read_text() == content


def test_metrics_are_a_table_that_any_reader_opens(tmp_path):
    monitor = FileMonitor(tmp_path, 0, CONFIG, CPU)
    monitor.scalars(1, {"train/loss": float("nan")})
    monitor.close()
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"step": "1", "tag": "train/loss", "value": "nan"}]


def test_accuracy_is_logged_where_something_is_predicted(tmp_path):
    monitor = FileMonitor(tmp_path, 0, CONFIG, CPU)
    accuracy = np.linspace(0, 1, 17)
    accuracy[8] = np.nan
    monitor.accuracy(1, accuracy)
    monitor.close()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert {tag: value[1][0] for tag, value in metrics.items()} == {
        f"accuracy/position_{i:04d}": i / 16 for i in (0, 2, 4, 16)
    }


def test_speed_is_work_over_time(tmp_path, monkeypatch):
    monkeypatch.setattr("icrl.monitor.matrix_rate", lambda _: 1e9)
    monitor = FileMonitor(tmp_path, 0, CONFIG, CPU)
    monitor.speed(1, num_steps=10, seconds=2.0, tokens=300, flops=5e7)
    monitor.close()
    values = {tag: value[1][0] for tag, value in read_metrics(tmp_path / "metrics.csv").items()}
    assert values["speed/steps_per_second"] == 5 and values["speed/tokens_per_second"] == 1500
    assert values["speed/flop_utilisation"] == pytest.approx(0.25)
    assert values["memory/peak"] > 0.01


def test_null_monitor_takes_the_same_calls():
    def methods(cls):
        return {n: inspect.signature(f) for n, f in vars(cls).items() if inspect.isfunction(f) and n[0] != "_"}

    assert methods(NullMonitor) == methods(FileMonitor)


def test_flops_count_what_a_hand_count_counts(store):
    recipe = replace(LAYOUTS["ad"], model=replace(LAYOUTS["ad"].model, width=8, num_layers=3, mlp_ratio=4))
    policy = Learner(recipe, store.spec, CPU).policy
    blocks = 3 * (4 * 8 * 8 + 2 * 4 * 8 * 8) * 2  # query, key, value, output; two feed-forward layers
    attention = 3 * 2 * 2 * 8 * (10 / 2)  # scores and values over half of 10 keys
    head = 2 * 8 * 5
    assert policy.flops_per_window(4, 10) == pytest.approx(3 * 4 * 10 * (blocks + attention + head))


@pytest.mark.parametrize(
    "layout, queries, tokens", [("step", 0, 16), ("transition", 0, 1 + 16 + 16), ("transition", 5, 1 + 16 + 5)]
)
def test_work_of_a_step_counts_the_tokens_that_the_transformer_sees(store, layout, queries, tokens, monkeypatch):
    recipe = LAYOUTS["dpt transition" if layout == "transition" else "dpt step"]
    learner = Learner(replace(recipe, objective=replace(recipe.objective, num_queries=queries)), store.spec, CPU)
    seen = []
    forward = learner.policy.transformer.forward
    monkeypatch.setattr(
        learner.policy.transformer, "forward", lambda x, *a, **k: seen.append(x.shape[:2]) or forward(x, *a, **k)
    )
    window = WindowSampler(store, recipe.model.window, start_fraction=1.0, keep_every=1, seed=0).batch(0, 3)
    learner.update(window, 0)
    assert seen == [(3, tokens)]
    num_queries = tokens - 17 if layout == "transition" else 0
    assert learner.work_of(3) == (3 * tokens, learner.policy.flops_per_window(3, tokens, num_queries))


def test_matrix_rate_is_measured_once_and_believable():
    rate = throughput.matrix_rate(CPU)
    assert 1e8 < rate < 1e14 and throughput.matrix_rate(CPU) == rate


def test_memory_counts_what_is_allocated():
    before = throughput.memory_bytes(CPU)
    block = np.ones(25_000_000)  # 200 MB
    assert throughput.memory_bytes(CPU) - before > 150e6
    del block
