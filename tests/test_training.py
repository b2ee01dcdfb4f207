import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import FAMILY, LAYOUTS, OPTIONS, RECIPE, STEPS, make_store

from envs import make_family
from icrl import checkpoint, optimisation, run_folder, training
from icrl.config import EvaluateConfig, MemoryConfig, TrainConfig
from icrl.interfaces import ActionRule, UserError
from icrl.memory.encoders import make_encoder
from icrl.monitor import read_metrics
from icrl.optimisation import Learner, learning_rate, make_optimizer
from icrl.recipe_json import recipe_from_json
from icrl.training import TrainingInterruptedError, make_sampler, train

# losses of the first ten steps: a change that should not change the mathematics leaves them as they are
GOLDEN = [1.587649, 1.376500, 1.133479, 1.149548, 1.127926, 1.245629, 1.064144, 1.054541, 1.047312, 1.143274]
MEASURED = ("speed/", "memory/", "validation/seconds")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """A training that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    tiny(store, run)
    return run


def tiny(store, run, recipe=RECIPE, **options):
    return train(recipe, store, FAMILY, run, threads=1, progress=False, **options)


def final_weights(run: Path) -> tuple[bytes, bytes]:
    folder = checkpoint.find(run, "latest")
    assert folder is not None and checkpoint.load_state(folder).progress.step == STEPS
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


def do_at_step(monkeypatch, step: int, action):
    """Call ``action`` before update number ``step``, the first time only."""
    before, left = Learner.update, [True]

    def update(self, window, number):
        if number == step and left.pop() if left else False:
            action()
        return before(self, window, number)

    monkeypatch.setattr(Learner, "update", update)


# resume


class CrashError(Exception):
    pass


def crash():
    raise CrashError


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_training_cut_off_at_any_step_ends_with_the_same_bits(store, whole, tmp_path, monkeypatch, step):
    do_at_step(monkeypatch, step, crash)
    with pytest.raises(CrashError):
        tiny(store, tmp_path / "run")
    tiny(store, tmp_path / "run")
    assert final_weights(tmp_path / "run") == final_weights(whole)


def test_a_killed_training_ends_with_the_same_bits(store, whole, tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from tiny_training import FAMILY, RECIPE\n"
        "from icrl.data.store import HistoryStore\n"
        "from icrl.optimisation import Learner\n"
        "from icrl.training import train\n"
        "update = Learner.update\n"
        "def killing(self, window, step):\n"
        "    if step == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return update(self, window, step)\n"
        "Learner.update = killing\n"
        "train(RECIPE, HistoryStore.open(sys.argv[1]), FAMILY, Path(sys.argv[2]), threads=1, progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(store.path), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, check=False, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert checkpoint.find(tmp_path / "run", "latest").name == "step-00000006"  # pyright: ignore[reportOptionalMemberAccess]
    tiny(store, tmp_path / "run")
    assert final_weights(tmp_path / "run") == final_weights(whole)


@pytest.mark.parametrize("step", [2, 4, 5])
def test_ctrl_c_saves_the_step_and_says_how_to_go_on(store, whole, tmp_path, monkeypatch, step, capsys):
    before = signal.getsignal(signal.SIGINT)
    do_at_step(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(TrainingInterruptedError, match=f"stopped after step {step + 1} of 9.*same command again"):
        tiny(store, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.find(tmp_path / "run", "latest").name == f"step-{step + 1:08d}"  # pyright: ignore[reportOptionalMemberAccess]
    tiny(store, tmp_path / "run")
    assert final_weights(tmp_path / "run") == final_weights(whole)


def test_metrics_after_a_resume_are_those_of_an_uninterrupted_training(store, whole, tmp_path, monkeypatch):
    do_at_step(monkeypatch, 8, crash)
    with pytest.raises(CrashError):
        tiny(store, tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open("a") as file:
        file.write("9,train/lo")  # a line that the crash tore
    tiny(store, tmp_path / "run")
    expected, found = (read_metrics(run / "metrics.csv") for run in (whole, tmp_path / "run"))
    assert found.keys() == expected.keys()
    for tag, (steps, values) in expected.items():
        np.testing.assert_array_equal(found[tag][0], steps, tag)  # none twice, none missing
        if not tag.startswith(MEASURED):
            np.testing.assert_array_equal(found[tag][1], values, tag)


def test_a_finished_training_is_left_as_it_is(store, whole, monkeypatch):
    before = (whole / "run.json").read_bytes()
    do_at_step(monkeypatch, 0, crash)
    assert tiny(store, whole) == checkpoint.find(whole, "best")
    assert (whole / "run.json").read_bytes() == before


def test_the_run_record_says_what_ran_and_names_no_place(whole, store):
    record = run_folder.read_run(whole)
    assert record["dataset_hash"] == store.dataset_hash and record["seed"] == RECIPE.seed
    assert record["seconds_trained"] > 0 and record["finished"] >= record["started"]
    assert record["versions"]["torch"] == torch.__version__ and record["steps_trained"] == STEPS
    assert (
        os.uname().nodename not in record["machine"].values()
        and str(Path.cwd()) not in (whole / "run.json").read_text()
    )
    command = ["/root/bin/icrl", "train", "smoke", "--out=/tmp/here/run", "--data", "/tmp/data", "--seed", "3"]
    assert run_folder.command_line(command) == "icrl train smoke --out=run --data data --seed 3"


# one step


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_objective_trains_in_its_layouts(name, store, tmp_path):
    recipe = replace(LAYOUTS[name], train=replace(RECIPE.train, steps=2, validate_every=2))
    assert (tiny(store, tmp_path / "run", recipe, monitored=False) / "model.safetensors").exists()
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_habits_are_those_of_the_windows_that_are_trained_on(store, monkeypatch):
    """In the same mirrors, and as far as an episode can earn more."""
    icee = LAYOUTS["icee"]
    habits = replace(icee.objective, estimate_behaviour=False, habits_alone=True, symmetries=True)
    asked = {}
    monkeypatch.setattr(training, "symmetries_of", lambda family: ["a mirror"])
    monkeypatch.setattr(training, "estimate_behaviour", lambda store, seed, **options: asked.update(options))
    learner = Learner(replace(icee, objective=habits), store.spec, torch.device("cpu"))
    training._prepare(learner, store, FAMILY, False)
    assert asked == {"given_task": False, "most": 10.0, "symmetries": ["a mirror"], "progress": False}


def test_the_loss_of_ten_steps_is_the_golden_one(store):
    recipe = replace(RECIPE, train=replace(RECIPE.train, steps=10))
    learner = Learner(recipe, store.spec, torch.device("cpu"))
    sampler = training.WindowSampler(store, 16, start_fraction=recipe.objective.start_fraction, seed=recipe.seed)
    losses = [learner.update(sampler.batch(step, 8), step).loss for step in range(10)]
    np.testing.assert_allclose(losses, GOLDEN, atol=2e-5)


def test_global_random_state_is_left_alone(store, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    run = tmp_path / "run"
    tiny(store, run, replace(RECIPE, train=replace(RECIPE.train, steps=3)), monitored=False)
    checkpoint.load_policy(run)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], state)


def test_a_step_is_a_function_of_its_number(store):
    def losses(numbers):
        learner = Learner(
            replace(RECIPE, train=replace(RECIPE.train, learning_rate=1e-30)), store.spec, torch.device("cpu")
        )
        window = training.WindowSampler(store, 16, seed=0).batch(0, 8)
        return [learner.update(window, number).loss for number in numbers]

    a, b, again = losses([0, 1, 0])
    assert a == again != b  # dropout and token masks differ between steps


def test_bf16_keeps_weights_in_fp32(store):
    recipe = replace(RECIPE, train=replace(RECIPE.train, bf16=True))
    learner = Learner(recipe, store.spec, torch.device("cpu"))
    exact = Learner(RECIPE, store.spec, torch.device("cpu"))
    window = training.WindowSampler(store, 16, seed=0).batch(0, 8)
    rough, fine = learner.update(window, 0).loss, exact.update(window, 0).loss
    assert rough != fine and rough == pytest.approx(fine, abs=0.05)
    assert all(p.dtype == torch.float32 for p in learner.policy.parameters())


# optimiser


def test_schedule_in_closed_form():
    config = TrainConfig(steps=110, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1)
    rates = [learning_rate(config, step) for step in range(111)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2)
    assert rates[10] == pytest.approx(2.0) and rates[60] == pytest.approx(1.1) and rates[110] == pytest.approx(0.2)
    np.testing.assert_allclose(rates[35], 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5))))
    assert learning_rate(replace(config, warmup_steps=0), 0) == 2.0


def test_decay_shrinks_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Embedding(4, 3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_gradients_are_clipped(store):
    learner = Learner(replace(RECIPE, train=replace(RECIPE.train, clip_norm=0.01)), store.spec, torch.device("cpu"))
    update = learner.update(training.WindowSampler(store, 16, seed=0).batch(0, 8), 0)
    norms = [p.grad.norm() for p in learner.policy.parameters() if p.grad is not None]
    assert update.grad_norm > 0.1 and torch.stack(norms).norm() == pytest.approx(0.01, rel=1e-3)


# validation


def test_best_checkpoint_is_the_best_on_validation_tasks(store, tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(training, "validation_curve", lambda *_: np.array([next(scores)] * 2))
    best = tiny(store, tmp_path / "run")
    assert best.name == "step-00000006"
    progress = checkpoint.load_state(best).progress
    assert (progress.best_step, progress.best_score) == (6, 3.0)
    latest = checkpoint.find(tmp_path / "run", "latest")
    assert latest is not None and checkpoint.load_state(latest).progress.best_score == 3.0
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"index.json", best.name, latest.name}


def test_validation_plays_validation_tasks_with_the_same_numbers_each_time(store, monkeypatch):
    played = []
    make_vec = type(FAMILY).make_vec
    monkeypatch.setattr(type(FAMILY), "make_vec", lambda self, tasks: played.append(tasks) or make_vec(self, tasks))
    learner = Learner(replace(RECIPE, train=replace(RECIPE.train, validation_lanes=7)), store.spec, torch.device("cpu"))
    first, second = (training.validation_curve(learner, store, FAMILY) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (2,) and len(played[0]) == 7
    assert set(map(str, played[0])) == set(map(str, store.split.validation))


@pytest.mark.parametrize("window, k, anywhere", [(16, 0, False), (15, 0, True), (16, 1, True)])
def test_windows_start_where_they_do_when_acting(store, tmp_path, window, k, anywhere):
    """An episode has 8 steps: with less than two of them, or a memory behind it, a full window is halved wherever that is."""
    model = replace(RECIPE.model, window=window, memory=MemoryConfig(k=k, chunk=4, every=4))
    encoder = make_encoder(store.spec, model.memory) if k else None
    starts = make_sampler(replace(RECIPE, model=model), store, encoder=encoder).batch(0, 200).start
    assert bool((starts % 8 != 0).any()) is anywhere


def test_a_run_goes_on_with_the_action_rule_that_its_checkpoints_were_chosen_by(tmp_path):
    recipe = replace(RECIPE, evaluations=(EvaluateConfig(temperature=0.5),))
    run_folder.claim(tmp_path / "run", recipe)
    run_folder.claim(tmp_path / "run", replace(recipe, evaluations=(EvaluateConfig(temperature=0.5, lanes=7),)))
    with pytest.raises(UserError, match="action rule on validation tasks"):
        run_folder.claim(tmp_path / "run", RECIPE)


def test_validation_takes_actions_as_the_evaluation_does(store, monkeypatch):
    rules = []
    made = training.InContextAgent
    monkeypatch.setattr(
        training, "InContextAgent", lambda *a, rule, **k: rules.append(rule) or made(*a, rule=rule, **k)
    )
    for evaluations in ((EvaluateConfig(temperature=0.5), EvaluateConfig()), (EvaluateConfig(greedy=True),), ()):
        learner = Learner(replace(RECIPE, evaluations=evaluations), store.spec, torch.device("cpu"))
        training.validation_curve(learner, store, FAMILY)
    assert rules == [ActionRule(temperature=0.5), ActionRule(greedy=True), ActionRule()]


# what goes wrong


def test_a_loss_that_is_not_finite_stops_with_one_line_and_keeps_the_checkpoint(store, tmp_path, monkeypatch):
    before = optimisation.nn.utils.clip_grad_norm_
    calls = []

    def exploding(parameters, limit):
        calls.append(1)
        return before(parameters, limit) * (math.nan if len(calls) == 5 else 1)

    monkeypatch.setattr(optimisation.nn.utils, "clip_grad_norm_", exploding)
    with pytest.raises(
        UserError, match=r"step 5 has loss .* step-00000003 is kept: try a lower train.learning_rate"
    ) as error:
        tiny(store, tmp_path / "run")
    assert "\n" not in str(error.value)
    policy, _, _ = checkpoint.load_policy(tmp_path / "run", "latest")
    assert all(torch.isfinite(p).all() for p in policy.parameters())


def test_a_folder_of_another_run_is_refused(store, whole, tmp_path):
    other = replace(RECIPE, train=replace(RECIPE.train, batch_size=9))
    with pytest.raises(UserError, match=r"train.batch_size = 8, not 9.*another --out"):
        tiny(store, whole, other)
    with pytest.raises(UserError, match="was trained on dataset"):
        tiny(make_store(tmp_path / "data", seed=1), whole)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"already holds something else \(thesis.tex\)"):
        tiny(store, tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        tiny(store, tmp_path / "notes" / "thesis.tex")


def test_evaluations_may_change_when_a_training_goes_on(store, whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    other = replace(RECIPE, evaluations=(), description="other words")
    tiny(store, run, other)
    assert recipe_from_json(json.loads((run / "recipe.json").read_text())) == other


def test_a_run_folder_knows_its_own_files(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("evaluation.json", "evaluation-7.npz", ".report.new-123", ".run.json.partial"):
        (run / name).touch()
    (run / "recipe.json").unlink()
    run_folder.claim(run, RECIPE)  # all that is there is its own
    (run / "recipe.json").rename(run / "recipe-old.json")
    with pytest.raises(UserError, match=r"something else \(recipe-old.json\)"):
        run_folder.claim(run, RECIPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "train.steps is 0"),
        ({"learning_rate": -1.0}, "train.learning_rate is -1.0"),
        ({"warmup_steps": 10}, "train.warmup_steps is 10, expected 0 to train.steps = 9"),
    ],
)
def test_impossible_numbers_are_refused_before_any_work(store, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(store, tmp_path / "run", replace(RECIPE, train=replace(RECIPE.train, **changes)))
    assert not (tmp_path / "run").exists()


def test_contradictions_are_refused_before_any_work(store, tmp_path):
    with pytest.raises(UserError, match="shorter than two episodes"):
        tiny(store, tmp_path / "run", replace(RECIPE, model=replace(RECIPE.model, window=7)))
    with pytest.raises(UserError, match="device warp: torch cannot use it here"):
        tiny(store, tmp_path / "run", device="warp")
    with pytest.raises(UserError, match="--threads 0"):
        train(RECIPE, store, FAMILY, tmp_path / "run", threads=0, progress=False)
    with pytest.raises(UserError, match=r"the dataset has observation_space .* family darkroom has"):
        train(RECIPE, store, make_family("darkroom", **{**OPTIONS, "width": 5}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_compile_without_a_compiler_is_one_line(store, monkeypatch):
    def broken(_):
        raise RuntimeError("no g++ here\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    recipe = replace(RECIPE, train=replace(RECIPE.train, compile=True))
    with pytest.raises(UserError, match=r"torch.compile fails here \(no g\+\+ here\): install a C\+\+ compiler"):
        Learner(recipe, store.spec, torch.device("cpu"))


def test_threads_are_put_back(store, tmp_path):
    before = torch.get_num_threads()
    with training._threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_time_of_a_stopped_run_counts(tmp_path, monkeypatch):
    clock = iter([1.0, 3.0, 10.0, 14.5, 20.0, 21.0])
    monkeypatch.setattr(run_folder.time, "perf_counter", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), run_folder.timed(tmp_path):
        raise KeyboardInterrupt
    with run_folder.timed(tmp_path):
        pass
    assert run_folder.read_run(tmp_path)["seconds"] == 6.5
    run_folder.update_run(tmp_path, seconds_trained=9.0)  # some of it in a session that was killed
    with run_folder.timed(tmp_path):
        pass
    assert run_folder.read_run(tmp_path)["seconds"] == 9.0


@pytest.mark.parametrize("name", ["ad memory", "ra-dt"])
def test_how_retrievals_went_is_logged(name, store, tmp_path):
    train(LAYOUTS[name], store, FAMILY, tmp_path / "run", progress=False)
    metrics = read_metrics(tmp_path / "run" / "metrics.csv")
    for tag in ("found", "size", "seconds", "utility", "attention"):
        steps, values = metrics[f"retrieval/{tag}"]
        assert len(steps) and (values >= 0).all() and values.max() > 0, tag
    assert (metrics["retrieval/found"][1] <= 1).all() and (metrics["retrieval/attention"][1] < 1).all()
    assert ("retrieval/same_task" in metrics) == (name == "ra-dt")
