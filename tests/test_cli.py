"""The command line, end to end: the whole path, its steps one by one, help that teaches, and every mistake in one line."""

import dataclasses
import json
import shutil
import signal
import sys
import time
from html.parser import HTMLParser
from typing import Any, cast

import pytest
from conftest import run_icrl, start_icrl

from envs.darkroom import DarkRoom
from icrl import recipes
from icrl.config import CollectConfig, EvaluateConfig, FamilyConfig, Recipe, SourceConfig
from icrl.evaluation_json import SCHEMA
from icrl.interfaces import TaskVectorEnv, UserError
from icrl.recipe_json import recipe_from_json
from scripts import cli, common
from scripts.check import check_evaluation, check_recipe
from scripts.options import field_docs, one_line
from scripts.recipe_options import parse_recipe

MODULES = {"list": "list_names", "inspect": "inspect_data"} | {
    name: name for name in ("run", "collect", "train", "evaluate", "report", "bench", "reproduce")
}


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """A command without options of its own."""


def overridden(recipe, *argv):
    """The recipe with command-line overrides."""
    return parse_recipe(recipe, NoOptions, list(argv), prog="icrl test", description="")[0]


def complaint(capsys, *argv):
    """The one line that a wrong command prints; its exit status must be 2."""
    assert cli.main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("icrl: error: ")
    return line


# the whole path


def test_run_leaves_everything_and_says_where_the_report_is(smoke):
    run, done = smoke
    page = run / "report" / "index.html"
    assert done.stdout.splitlines()[-1] == f"report: {page}"
    for name in (
        "recipe.json",
        "run.json",
        "metrics.csv",
        "evaluation.json",
        "data/manifest.json",
        "checkpoints/index.json",
    ):
        assert (run / name).exists(), name
    assert recipe_from_json(json.loads((run / "recipe.json").read_text())) == recipes.smoke()
    HTMLParser().feed(page.read_text())
    assert "data:image/png;base64," in page.read_text()
    (record,) = json.loads((run / "evaluation.json").read_text())
    assert set(SCHEMA["required"]) <= set(record)
    mean = record["agents"]["optimal"]["mean_return"]["mean"]
    assert f"{mean:.2f}" in done.stdout and "verdict:" in done.stdout


def test_run_again_repeats_no_step(smoke, tmp_path):
    run = shutil.copytree(smoke[0], tmp_path / "run")
    kept = ["data/manifest.json", "checkpoints/index.json", "evaluation.json", "evaluation-0.npz", "metrics.csv"]
    before = {name: ((run / name).read_bytes(), (run / name).stat().st_mtime_ns) for name in kept}
    done = run_icrl("run", "smoke", "--out", run)
    assert done.returncode == 0, done.stderr
    assert {name: ((run / name).read_bytes(), (run / name).stat().st_mtime_ns) for name in kept} == before
    assert done.stdout.splitlines()[-1] == f"report: {run / 'report' / 'index.html'}"


def test_run_goes_on_at_the_unfinished_step(smoke, tmp_path):
    run = shutil.copytree(smoke[0], tmp_path / "run")
    finished = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    shutil.rmtree(run / "report")
    before = (run / "checkpoints" / "index.json").stat().st_mtime_ns
    done = run_icrl("run", "smoke", "--out", run)
    assert done.returncode == 0, done.stderr
    assert (run / "checkpoints" / "index.json").stat().st_mtime_ns == before
    again = json.loads((run / "evaluation.json").read_text())
    assert again[0]["agents"]["agent"]["return_by_episode"] == finished[0]["agents"]["agent"]["return_by_episode"]


def test_the_steps_one_by_one_as_modules_give_the_same_weights_and_numbers(smoke_run, tmp_path):
    data, run, page = tmp_path / "data", tmp_path / "run", tmp_path / "page"
    for module, *argv in (
        ("collect", "smoke", "--out", data),
        ("train", "smoke", "--data", data, "--out", run, "--device", "cpu"),
        ("evaluate", run),
        ("report", run, "--out", page),
        ("inspect_data", data),
    ):
        done = run_icrl(*argv, module=f"scripts.{module}")
        assert done.returncode == 0, done.stderr
    assert (page / "index.html").exists()
    (record,), (before,) = (json.loads((folder / "evaluation.json").read_text()) for folder in (run, smoke_run))
    assert record["agents"]["agent"]["return_by_episode"] == before["agents"]["agent"]["return_by_episode"]
    best = json.loads((smoke_run / "checkpoints" / "index.json").read_text())
    assert json.loads((run / "checkpoints" / "index.json").read_text()) == best
    name = f"checkpoints/{best['latest']}/model.safetensors"
    assert (run / name).read_bytes() == (smoke_run / name).read_bytes()


def test_evaluate_adds_a_record_and_report_compares(smoke, tmp_path, capsys):
    run = shutil.copytree(smoke[0], tmp_path / "run")
    argv = ["evaluate", str(run), "--mode", "offline", "--context-size", "20", "--seeds", "2", "--lanes", "10"]
    assert cli.main([*argv, "--baselines", "random", "posterior_sampling", "--greedy"]) == 0
    assert "random context of 20" in capsys.readouterr().out
    online, offline = json.loads((run / "evaluation.json").read_text())
    assert (online["mode"], offline["mode"], offline["seeds"]) == ("online", "offline", [0, 1])
    assert set(offline["agents"]) == {"agent", "random", "posterior_sampling", "agent, rewards hidden"}
    assert (run / "evaluation-1.npz").exists()
    assert cli.main([*argv, "--baselines", "random", "posterior_sampling", "--greedy"]) == 0
    assert len(json.loads((run / "evaluation.json").read_text())) == 2, (
        "the same evaluation takes the place of the old one"
    )
    assert cli.main(["report", str(smoke[0]), str(run), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "index.html").exists()


def test_evaluate_to_json_leaves_the_run_alone(smoke_run, tmp_path, capsys):
    before = (smoke_run / "evaluation.json").read_bytes()
    out = tmp_path / "deep" / "record.json"
    argv = ["evaluate", smoke_run, "--split", "validation", "--episodes", 1, "--lanes", 5, "--seed", 7, "--json", out]
    assert cli.main([str(word) for word in argv]) == 0
    record = json.loads(out.read_text())
    assert "warning" not in capsys.readouterr().err
    assert (record["split"], record["root_seed"], record["episodes"], record["lanes"]) == ("validation", 7, 1, 5)
    assert (smoke_run / "evaluation.json").read_bytes() == before


def test_inspect_shows_progress_actions_and_coverage(smoke_run, tmp_path, capsys):
    figure = tmp_path / "deep" / "data.png"
    assert cli.main(["inspect", str(smoke_run / "data"), "--figure", str(figure)]) == 0
    text = capsys.readouterr().out
    assert "64 histories, 5,760 transitions; tasks: 15 training, 5 validation, 5 test" in text
    assert "of 25 observations seen" in text
    lines = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    assert sum(map(float, lines["action frequencies"])) == pytest.approx(1, abs=0.005)
    returns = [float(value) for value in lines["return per episode"] if value != "–"]
    assert returns[-1] > returns[0] and len(lines["reward per step"]) == 10
    assert figure.read_bytes().startswith(b"\x89PNG")


# help


@pytest.mark.parametrize("name", MODULES)
def test_help_of_every_command_also_as_a_module(name, capsys):
    try:
        assert cli.main([name, "--help"]) == 0
    except SystemExit as stop:
        assert stop.code == 0
    text = capsys.readouterr().out
    assert f"icrl {name}" in text
    done = run_icrl("--help", module=f"scripts.{MODULES[name]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == text.splitlines()[0]


def test_help_of_a_recipe_explains_every_field_with_its_value(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "quickstart", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    recipe = recipes.quickstart()
    for config, prefix in (
        (recipe.model, "model."),
        (recipe.train, "train."),
        (recipe.evaluations[0], "evaluations.0."),
    ):
        docs = field_docs(type(config))
        for field in (f for f in dataclasses.fields(config) if f.name != "family"):
            assert f"--{prefix}{field.name.replace('_', '-')}" in text
            assert docs[field.name] in text
    assert f"Width D of the residual stream. (default: {recipe.model.width})" in text
    assert "--family.options.permuted-actions" in text
    assert "--collect.sources.0.options.epsilon FLOAT" in text


def test_overview_names_every_command(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize("kind, known", [("families", "darkroom"), ("sources", "q_learning"), ("objectives", "dpt")])
def test_list_says_a_line_about_each(kind, known, capsys):
    assert cli.main(["list", kind]) == 0
    entry = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(known + " "))
    assert len(entry.split()) > 3


# recipes and overrides


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_consistent_and_survive_the_command_line_unchanged(name):
    recipe = recipes.load_recipe(name)
    assert recipe.name == name
    assert recipe.description in (recipes.RECIPES[name].__doc__ or "")
    assert overridden(recipe) == recipe
    check_recipe(recipe)


def test_overrides_reach_families_sources_and_evaluations():
    recipe = overridden(
        recipes.quickstart(),
        *[
            "--seed",
            "3",
            "--family.options.width",
            "5",
            "--family.options.start",
            "centre",
            "--collect.sources.0.options.epsilon",
            "0.25",
        ],
        *["--evaluations.1.seeds", "4", "5", "--model.no-rotary", "--train.steps=7"],
    )
    assert (recipe.seed, recipe.train.steps, recipe.model.rotary) == (3, 7, False)
    assert recipe.family.options == {**recipes.quickstart().family.options, "width": 5, "start": "centre"}
    assert recipe.collect.sources[0].options == {"epsilon": 0.25}
    assert [e.seeds for e in recipe.evaluations] == [(0,), (4, 5), (0,)]


def test_another_family_brings_its_own_options():
    recipe = overridden(recipes.smoke(), "--family.name", "gaussian_bandit", "--family.options.num-arms", "3")
    assert recipe.family == FamilyConfig("gaussian_bandit", {"num_arms": 3})
    with pytest.raises(UserError, match=r"--family\.options\.width"):
        overridden(recipes.smoke(), "--family.name=gaussian_bandit", "--family.options.width", "3")


def test_an_evaluation_on_another_family_has_typed_options():
    config = EvaluateConfig(family=FamilyConfig("gaussian_bandit", {"noise": 0.0}))
    recipe = dataclasses.replace(recipes.bandit_dpt(), evaluations=(EvaluateConfig(), config))
    assert overridden(recipe) == recipe
    found = overridden(recipe, "--evaluations.1.family.options.noise", "0.5").evaluations
    assert found[1].family == FamilyConfig("gaussian_bandit", {"noise": 0.5}) and found[0].family is None
    found = overridden(recipe, "--evaluations.0.family.name", "bernoulli_bandit").evaluations
    assert found[0].family == FamilyConfig("bernoulli_bandit")
    fewer_arms = EvaluateConfig(family=FamilyConfig("gaussian_bandit", {"num_arms": 3}))
    with pytest.raises(UserError, match="action_space"):
        check_recipe(dataclasses.replace(recipe, evaluations=(fewer_arms,)))


def test_a_family_of_the_users_own_with_a_required_option(tmp_path, monkeypatch):
    (tmp_path / "own_family.py").write_text(
        "from dataclasses import dataclass\nfrom envs.darkroom import DarkRoom\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(DarkRoom):\n    '''Mine.'''\n    depth: int\n    '''Depth.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = dataclasses.replace(recipes.smoke(), family=FamilyConfig("own_family:Mine"))
    with pytest.raises(UserError, match="depth"):
        overridden(recipe)
    assert overridden(recipe, "--family.options.depth", "4").family.options == {"depth": 4}


def test_a_recipe_of_the_users_own_from_the_working_directory(tmp_path):
    (tmp_path / "my_recipes.py").write_text(
        "import dataclasses\nfrom icrl.recipes import smoke\n"
        "def mine():\n    return dataclasses.replace(smoke(), name='mine', description='Mine.')\n"
    )
    done = run_icrl("collect", "my_recipes:mine", "--out", "data", "--collect.num-histories", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 histories" in done.stdout


# mistakes: one line each, exit status 2, before any work

MISTAKES = {
    "command": (["trian", "smoke"], "did you mean train"),
    "recipe": (["run", "smke"], "did you mean smoke?"),
    "recipe module": (["run", "no_such_module:mine"], "No module named 'no_such_module'"),
    "recipe function": (["run", "icrl.recipes:nothing"], "no function 'nothing'"),
    "recipe argument": (["run", "icrl.recipes:load_recipe"], "a function that needs no argument (missing a required"),
    "recipe type": (["run", "icrl.recipes:load_recipe.__doc__"], "no function"),
    "no recipe": (["run", "--out", "x"], "the recipe comes first"),
    "option": (["run", "smoke", "--model.widht", "3"], "did you mean --model.width"),
    "option of a family": (["run", "smoke", "--family.options.widht", "3"], "did you mean --family.options.width"),
    "value": (["run", "smoke", "--model.width", "wide"], "--model.width"),
    "choice": (["run", "smoke", "--model.layout", "stairs"], "'step', 'transition'"),
    "family": (["run", "smoke", "--family.name", "dakroom"], "did you mean darkroom?"),
    "no family at all": (
        ["run", "smoke", "--family.name", "fjord"],
        "known: ant_dir, augmented, bayesian_optimisation",
    ),
    "no family": (
        ["run", "smoke", "--family.name", "icrl.config:Recipe"],
        "is no family, it lacks make_vec, optimal_return",
    ),
    "nameless family": (["run", "smoke", "--family.name", ":Mine"], "unknown family ':Mine'"),
    "source": (["run", "smoke", "--collect.sources.0.name", "optimol"], "did you mean optimal?"),
    "no source": (["run", "smoke", "--collect.sources.0.name", "icrl.config:Recipe"], "is no source, it lacks make:"),
    "unfit source": (
        ["run", "smoke", "--collect.sources.0.name", "ucb"],
        "--collect.sources.0: ucb is for bandits",
    ),
    "unfit source collected": (
        ["collect", "smoke", "--out", "x", "--collect.sources.0.name", "ucb"],
        "ucb is for bandits",
    ),
    "baseline": (["run", "smoke", "--evaluations.0.baselines", "optimol"], "did you mean optimal?"),
    "unfit baseline": (
        ["run", "smoke", "--evaluations.0.baselines", "random", "ucb"],
        "--evaluations.0.baselines ucb: ucb is for bandits",
    ),
    "twice a baseline": (["run", "smoke", "--evaluations.0.baselines", "random", "random"], "each baseline once"),
    "family value": (["run", "smoke", "--family.options.width", "0"], "expected at least 1"),
    "heads": (["run", "smoke", "--model.width", "33"], "not divisible"),
    "odd head": (
        ["run", "smoke", "--model.width", "30", "--model.num-heads", "2"],
        "rotary positions need an even one",
    ),
    "window": (["run", "smoke", "--model.window", "10"], "shorter than two episodes"),
    "wide window": (["run", "smoke", "--model.window", "100000"], "--model.window 100000: expected at most 32767"),
    "head width": (["run", "smoke", "--model.head-width", "-4"], "--model.head-width -4: expected at least 1, or 0"),
    "history": (["run", "smoke", "--collect.steps-per-history", "10"], "fewer than two episodes"),
    "one kept episode": (["run", "smoke", "--objective.keep-every", "6"], "pass at least 105"),
    "weight decay": (["run", "smoke", "--train.weight-decay", "-1"], "train.weight_decay is -1.0, expected at least 0"),
    "final rate": (
        ["run", "smoke", "--train.final-learning-rate", "1.5"],
        "train.final_learning_rate is 1.5, expected",
    ),
    "no histories": (["run", "smoke", "--collect.num-histories", "0"], "expected at least 1"),
    "no validation": (["run", "smoke", "--family.options.num-validation", "0"], "no validation tasks"),
    "no lanes": (["run", "smoke", "--evaluations.0.lanes", "0"], "--evaluations.0.lanes"),
    "twice a seed": (["run", "smoke", "--evaluations.0.seeds", "1", "1"], "each seed once"),
    "scattered": (["run", "smoke", "--collect.sources.0.scattered"], "single transitions"),
    "plans that end otherwise": (["run", "darkroom-plans", "--objective.told-by", "2"], "must agree on when plans end"),
    "privileged sources": (["run", "darkroom-dpt", "--objective.privileged-sources", "9"], "numbers of the recipe"),
    "exact set": (["run", "smoke", "--model.exact-set"], "--model.layout transition"),
    "threads": (["run", "smoke", "--threads", "0"], "--threads 0"),
    "place of a run": (["run", "smoke", "--out", "/proc/x"], "--out /proc/x: nothing can be written there"),
    "place of data": (["collect", "smoke", "--out", "/proc/x/y"], "--out /proc/x/y: nothing can be written there"),
    "place of figures": (["bench", "--json", "/proc/x.json"], "--json /proc/x.json: nothing can be written there"),
    "no out": (["collect", "smoke"], "--out DATA"),
    "no data": (["train", "smoke", "--out", "x"], "--data DATA"),
    "data": (["train", "smoke", "--data", "nowhere", "--out", "x"], "nowhere"),
    "run": (["evaluate", "nowhere"], "nowhere does not exist"),
    "no run": (["evaluate"], "the run comes first"),
    "report": (["report", "nowhere"], "nowhere does not exist"),
    "no report": (["report"], "usage: icrl report RUN"),
    "inspect": (["inspect", "nowhere"], "nowhere"),
    "list": (["list", "familys"], "did you mean families?"),
    "list what": (["list", "families", "sources"], "one word"),
    "bench": (["bench", "--repeats", "0"], "expected at least 1"),
}


@pytest.mark.parametrize("argv, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_said_in_one_line_before_any_work(argv, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in complaint(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


def test_zero_test_tasks_are_a_contradiction(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["run", "bernoulli-dpt", "--family.options.num-test-tasks", "0"]
    assert "num_test_tasks is 0" in complaint(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


def test_a_family_without_test_tasks_is_refused_whatever_it_is():
    class NoTest(DarkRoom):
        def split(self):
            return super().split()._replace(test=super().split().test[:0])

    with pytest.raises(UserError, match="no test tasks"):
        check_recipe(recipes.smoke(), cast(Any, NoTest(5, 5, 15, num_validation=5)))


class NoPolicy(DarkRoom):
    """A Dark Room whose optimal policy nobody knows."""

    def make_vec(self, tasks, lane_ids=None):
        env = super().make_vec(tasks, lane_ids)
        cast(Any, env).optimal_action = lambda tasks=None: TaskVectorEnv.optimal_action(env)
        return env


def test_who_has_no_optimal_policy_is_told_before_any_work():
    recipe, family = recipes.smoke(), cast(Any, NoPolicy(5, 5, 15, num_validation=5))
    with pytest.raises(UserError, match=r"^--collect\.sources\.0: .* has no optimal policy"):
        check_recipe(recipe, family)
    blind = EvaluateConfig(baselines=("random",))
    check_evaluation(blind, recipe, family)
    with pytest.raises(UserError, match=r"^--baselines optimal: .* has no optimal policy"):
        check_evaluation(EvaluateConfig(baselines=("random", "optimal")), recipe, family)
    with pytest.raises(UserError, match=r"^--context expert: .* has no optimal policy"):
        expert = dataclasses.replace(blind, mode="offline", context="expert", context_size=10)
        check_evaluation(expert, recipe, family)


def test_plain_frames_read_like_drawn_ones():
    drawn = "╭─ Title ──╮\n│ Unrecognized options: --a │\n│ ─────── │\n│ Perhaps you meant: │\n│   --b INT │\n╰──╯"
    plain = " Title\n ---------- \n  Unrecognized options: --a\n  --------\n  Perhaps you meant:\n   --b INT\n"
    assert one_line(drawn) == one_line(plain) == "Unrecognized options: --a (did you mean --b?)"


def test_a_context_that_does_not_fit_the_window(smoke_run, capsys):
    line = complaint(capsys, "evaluate", smoke_run, "--mode", "offline", "--context-size", 100)
    assert "--context-size 100 does not fit" in line


def test_tokens_that_are_the_running_episode_cannot_wait_for_its_end(smoke_run, capsys):
    assert "layout transition" in complaint(capsys, "evaluate", smoke_run, "--append", "episode")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    for argv in (["run", "smoke"], ["collect", "smoke"]):
        assert str(tmp_path) in complaint(capsys, *argv, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_recipe_does_not_go_on_in_a_finished_run(smoke_run, capsys):
    assert "train.steps" in complaint(capsys, "run", "smoke", "--out", smoke_run, "--train.steps", 30)


def test_a_broken_import_inside_a_users_recipe_is_told_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "broken_recipe.py").write_text("\nimport a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"ModuleNotFoundError at broken_recipe\.py:2: No module named 'a_package"):
        recipes.load_recipe("broken_recipe:mine")


def test_ctrl_c_in_a_training_saves_a_checkpoint_and_says_how_to_resume(smoke_run, tmp_path):
    run = tmp_path / "run"
    command = ["train", "smoke", "--data", smoke_run / "data", "--out", run, "--train.steps", "100000"]
    with start_icrl(*command) as process:
        while process.poll() is None and not (run / "metrics.csv").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith("icrl: stopped after step ") and "again" in last
    assert "Traceback" not in err
    assert json.loads((run / "checkpoints" / "index.json").read_text())["latest"]


def test_ctrl_c_says_what_is_true_of_every_command(capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    assert common.run_command(stopped, []) == 130
    assert capsys.readouterr().err == "icrl: stopped; run the same command again\n"


def test_the_unexpected_keeps_its_traceback():
    def broken(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        common.run_command(broken, [])


def test_no_source_and_no_task_to_train_on():
    empty = Recipe(name="x", description="", collect=CollectConfig(sources=()))
    with pytest.raises(UserError, match="at least one source"):
        check_recipe(empty)
    weightless = dataclasses.replace(empty, collect=CollectConfig(sources=(SourceConfig(weight=0.0),)))
    with pytest.raises(UserError, match="weight"):
        check_recipe(weightless)


def test_modules_of_commands_are_importable_programs():
    for module in MODULES.values():
        __import__(f"scripts.{module}")
        assert callable(sys.modules[f"scripts.{module}"].main)


def test_an_evaluation_from_before_an_option_existed_is_not_made_again(smoke_run, tmp_path, capsys):
    run = shutil.copytree(smoke_run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    for identity in about["evaluations"]:
        del identity["options"]["retrieval"], identity["options"]["memory"]
    (run / "run.json").write_text(json.dumps(about))
    before = (run / "evaluation.json").read_bytes()
    assert cli.main(["run", "smoke", "--out", str(run)]) == 0
    assert (run / "evaluation.json").read_bytes() == before
