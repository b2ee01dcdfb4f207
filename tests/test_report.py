"""The report: built from a run folder that the project's own writers made, read back, and loaded in a browser."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from envs.bandit import GaussianBandit
from envs.darkroom import DarkRoom
from icrl import run_folder
from icrl.config import EvaluateConfig, FamilyConfig, ObjectiveConfig, Recipe, TrainConfig
from icrl.evaluation import evaluate
from icrl.evaluation_json import evaluation_to_json, save_artefacts
from icrl.interfaces import Decision, UserError
from icrl.report import build_report
from icrl.report.animation import MAX_BYTES, LaneTrajectory, animate
from icrl.report.grid import typical_lane
from icrl.report.inputs import read_run_input
from icrl.report.protocols import match
from icrl.report.rows import group_evaluations, paired_difference, rest_return
from icrl.seeding import generator


class Wanderer:
    """Uniform actions; with ``learns`` the optimal one in every lane that was ever paid."""

    def __init__(self, env, streams, learns: bool, knows: bool = False):
        self.env, self.streams, self.learns, self.knows = env, streams, learns, knows

    def reset(self, lanes):
        self.paid = np.full(self.env.num_envs, self.knows)

    def load_context(self, context):
        self.paid |= (context.reward > 0).any(1)

    def act(self, observation, action_mask=None):
        uniform = self.streams.integers(int(self.env.single_action_space.n))
        return Decision(np.where(self.paid, self.env.optimal_action(), uniform))

    def observe(self, step):
        self.paid |= self.learns & (step.reward > 0)


def factories(learns: bool = True):
    def make(**options):
        return lambda family, env, streams, num_steps: Wanderer(env, streams, **options)

    return {
        "agent": make(learns=learns),
        "random": make(learns=False),
        "optimal": make(learns=False, knows=True),
        "sweep_then_return": make(learns=True),
    }


def write_run(run: Path, family, recipe: Recipe, learns: bool = True) -> Path:
    """A run folder as training and evaluation leave it, with an agent in place of the trained one."""
    run_folder.claim(run, recipe)
    about = {"command": "icrl run quickstart", "versions": {"torch": "2.13.0"}, "machine": {"cpu": "test", "cores": 2}}
    run_folder.update_run(
        run, **about, dataset_hash="sha256-of-the-data", seed=0, finished="2025-01-01", seconds_trained=75.0
    )
    rows = ["step,tag,value"]
    for step in range(0, 60, 20):
        values = {"train/loss": 1.6 / (1 + step), "speed/steps_per_second": 5.5}
        values |= {"validation/return": step / 2, "validation/episode_1": step / 3}
        rows += [f"{step},{tag},{value!r}" for tag, value in values.items()]
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    records = []
    for index, config in enumerate(recipe.evaluations):
        agents, privileged = factories(learns), {"optimal": "the goal"}
        contexts = {name: agents["random"] for name in ("random", "expert")}
        evaluation = evaluate(
            family, family.split().test, agents, config, root_seed=recipe.seed, context_agents=contexts,
            privileged=privileged, progress=False,
        )  # fmt: skip
        records.append(evaluation_to_json(evaluation, family_options=recipe.family.options))
        save_artefacts(evaluation, run / f"evaluation-{index}.npz")
    (run / "evaluation.json").write_text(json.dumps(records))
    return run


def darkroom_recipe(**changes) -> Recipe:
    recipe = Recipe(
        "quickstart", "Distil an explorer.", family=FamilyConfig("darkroom", {"width": 10}), train=TrainConfig(steps=40),
        evaluations=(EvaluateConfig(episodes=6, lanes=40), EvaluateConfig(mode="offline", episodes=1, lanes=40)),
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first", DarkRoom(), darkroom_recipe())


@pytest.fixture(scope="module")
def second_run(tmp_path_factory) -> Path:
    recipe = darkroom_recipe(objective=ObjectiveConfig("dpt"))
    return write_run(tmp_path_factory.mktemp("runs") / "second", DarkRoom(), recipe, learns=False)


@pytest.fixture(scope="module")
def bandit_run(tmp_path_factory) -> Path:
    family = GaussianBandit(num_test_tasks=12)
    recipe = darkroom_recipe(
        family=FamilyConfig("gaussian_bandit", {"num_arms": 5}), evaluations=(EvaluateConfig(episodes=1, lanes=12),)
    )
    return write_run(tmp_path_factory.mktemp("runs") / "bandit", family, recipe)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    return build_report([run], tmp_path_factory.mktemp("page") / "report")


class Reader(HTMLParser):
    """Addresses, pictures, headings and visible text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[key] or "" for key in ("src", "href", "srcset") if key in values]
        self.alts += [values.get("alt") or ""] if tag == "img" else []
        self.anchors |= {values["id"] or ""} if "id" in values else set()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


def test_page_needs_nothing_but_itself(page):
    reader = read(page)
    outside = [address for address in reader.addresses if not address.startswith(("data:", "#"))]
    assert not outside
    assert not re.search(r"https?://|@import|<script|<link rel=.stylesheet", page.read_text())
    assert {address[1:] for address in reader.addresses if address.startswith("#")} <= reader.anchors


def test_figures_lie_beside_the_page_and_have_words(page):
    pictures = sorted(path.name for path in page.parent.iterdir() if path.suffix in (".png", ".gif"))
    kinds = {re.split(r"[-.]", name)[0] for name in pictures}
    assert kinds == {"return", "coverage", "offline", "lane", "visits", "training"}
    reader = read(page)
    assert len(reader.alts) == len(pictures) and all(len(alt) > 20 for alt in reader.alts)
    for path in page.parent.glob("*.png"):
        image = Image.open(path)
        assert image.width > 200 and len(image.convert("RGB").getcolors(1 << 24) or []) > 3, path.name


def test_page_says_what_was_run_and_what_came_of_it(page, run):
    text = read(page).text
    record = json.loads((run / "evaluation.json").read_text())[0]
    for words in (
        "icrl run quickstart",
        "sha256-of-the-data",
        "torch",
        "the goal",
        "1 min 15 s",
        record["verdict"]["text"],
    ):
        assert words in text, words
    mean = record["agents"]["agent"]["return_by_episode"]["mean"]
    low, high = record["agents"]["agent"]["return_by_episode"]["over_tasks"][1]
    assert f"{mean[1]:.1f} [{low:.1f}, {high:.1f}]" in text


def test_published_numbers_stand_beside_the_protocol_that_was_played(page, run, tmp_path):
    text = read(page).text
    assert "DPT (published)" in text and "arXiv 2306.14892" in text and "61.5" in text
    without = build_report([run], tmp_path / "report", published=False)
    assert "(published)" not in read(without).text


def test_another_protocol_gets_no_published_numbers(run):
    loaded = read_run_input(run, "first")
    evaluation = loaded.evaluations[0]
    published = match(evaluation)
    assert published is not None and published.by_episode["DPT"][2] == 18.6
    assert evaluation.artefacts is not None
    for change in ({"horizon": 50}, {"split": "train"}, {"optimal_return": 1.0}):
        other = dataclasses.replace(evaluation, record={**evaluation.record, **change})
        assert match(other) is None, change
    goals = evaluation.artefacts.tasks.copy()
    goals["goal"][0] = (0, 0) if (0, 0) not in map(tuple, goals["goal"]) else (0, 1)
    other = dataclasses.replace(evaluation, artefacts=evaluation.artefacts._replace(tasks=goals))
    assert match(other) is None


def test_bandit_shows_regret_against_published(bandit_run, tmp_path):
    page = build_report([bandit_run], tmp_path / "report")
    assert (page.parent / "regret-1-gaussian-bandit-test-1-episodes.png").exists()
    text = read(page).text
    assert "regret after 500 steps" in text and "Thompson (published)" in text and "9.2" in text


def test_evaluation_on_another_family_is_named_and_matched_as_such(bandit_run, tmp_path):
    changed = Path(shutil.copytree(bandit_run, tmp_path / "changed"))
    records = json.loads((changed / "evaluation.json").read_text())
    options = {"num_arms": 5, "noise": 0.5}
    distance = {"max_pulls": 20, "num_states": 10626, "to_posterior": 0.0123, "between_orders": 0.0045}
    (changed / "evaluation.json").write_text(
        json.dumps([{**records[0], "family_options": options, "posterior_distance": distance}])
    )
    text = read(build_report([changed], tmp_path / "report")).text
    for words in ("gaussian bandit (noise 0.5), test tasks", "Thompson (published) 12.6", "10,626 20 0.0123 0.0045"):
        assert words in text, words


def test_comparison_draws_runs_together(run, second_run, tmp_path):
    page = build_report([run, second_run], tmp_path / "report")
    text = read(page).text
    for words in ("first: agent", "second: agent", "objective.name", "second − first", "second: sweep then return"):
        assert words in text, words
    assert len(list(page.parent.glob("return-*.png"))) == 1
    first, second = group_evaluations([read_run_input(run, "a"), read_run_input(second_run, "b")])[0].agents
    difference = paired_difference(second, first)
    assert difference is not None and difference[1] is not None
    expected = second.record["mean_return"]["mean"] - first.record["mean_return"]["mean"]
    assert difference[0] == pytest.approx(expected) and difference[1][0] <= expected <= difference[1][1] < 0


def test_mean_of_the_rest_agrees_with_the_record(run):
    agent = group_evaluations([read_run_input(run, "first")])[0].agents[0]
    mean, interval = rest_return(agent)
    assert mean == pytest.approx(np.mean(agent.record["return_by_episode"]["mean"][3:]), rel=1e-5)
    assert interval is not None and interval[0] < mean < interval[1]


def test_equal_runs_give_equal_pages(run, tmp_path, page):
    again = build_report([run], tmp_path / "report")
    assert again.read_bytes() == page.read_bytes()


def test_report_replaces_a_report_and_nothing_else(run, tmp_path):
    out = tmp_path / "report"
    build_report([run], out)
    (out / "training.png").write_bytes(b"stale")
    build_report([run], out)
    assert (out / "training.png").read_bytes() != b"stale" and [p.name for p in tmp_path.iterdir()] == ["report"]
    for stranger in ("notes.txt", "holiday.png"):
        (out / stranger).write_text("mine")
        with pytest.raises(UserError, match=rf"{stranger}.*--out"):
            build_report([run], out)
        assert (out / stranger).read_text() == "mine" and (out / "index.html").exists()
        (out / stranger).unlink()


def test_a_folder_of_pictures_is_no_report(run, tmp_path):
    (tmp_path / "album" / "summer.png").mkdir(parents=True)
    (tmp_path / "album" / "index.html").write_text("my photographs")
    with pytest.raises(UserError, match=r"--out"):
        build_report([run], tmp_path / "album")
    assert sorted(p.name for p in (tmp_path / "album").iterdir()) == ["index.html", "summer.png"]


@pytest.mark.parametrize("name", ["recipe.json", "run.json", "metrics.csv", "evaluation.json"])
def test_missing_file_is_named_with_its_command(run, tmp_path, name):
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / name).unlink()
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*`icrl (run|evaluate) ") as error:
        build_report([broken], tmp_path / "report")
    assert "\n" not in str(error.value) and not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", '{"finished": null, "steps_trained": 7}', r"unfinished \(7 of 40 steps\)"),
        ("evaluation.json", "[]", "holds no evaluation"),
        ("evaluation.json", "{", "is not JSON"),
        ("evaluation.json", '[{"format_version": 99}]', "format version 99, expected 1"),
        ("evaluation.json", '[{"format_version": 1}]', "lacks family"),
        ("evaluation-0.npz", "no arrays", "cannot be read"),
    ],
)
def test_unfinished_or_damaged_run_is_refused(run, tmp_path, name, content, words):
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / name).write_text(content)
    with pytest.raises(UserError, match=words):
        build_report([broken], tmp_path / "report")


def test_truncated_arrays_of_an_evaluation_are_refused(run, tmp_path):
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    arrays = broken / "evaluation-0.npz"
    arrays.write_bytes(arrays.read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read"):
        build_report([broken], tmp_path / "report")


def test_missing_run_and_repeated_run_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="icrl run RECIPE --out"):
        build_report([tmp_path / "nowhere"], tmp_path / "report")
    with pytest.raises(UserError, match="twice"):
        build_report([run, run], tmp_path / "report")


def test_run_without_arrays_has_no_maps(run, tmp_path):
    bare = Path(shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("*.npz")))
    page = build_report([bare], tmp_path / "report")
    assert not list(page.parent.glob("visits-*")) and list(page.parent.glob("return-*"))


def test_text_from_a_run_cannot_become_markup(run, tmp_path):
    hostile = Path(shutil.copytree(run, tmp_path / "hostile"))
    run_folder.update_run(hostile, command="icrl <script>alert(1)</script>")
    html = build_report([hostile], tmp_path / "report").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html


def test_animation_is_small_and_moves():
    rng = generator(0, "walk")
    position = np.clip(np.cumsum(rng.integers(-1, 2, (8000, 2)), axis=0), 0, 39)  # (T, 2)
    lane = LaneTrajectory(
        position, np.roll(position, -1, 0), (rng.random(8000) < 0.1).astype(float), np.arange(8000) // 800,
        np.array([3, 4]), (40, 40),
    )  # fmt: skip
    animation = animate(lane)
    image = Image.open(io.BytesIO(animation.gif))
    assert len(animation.gif) <= MAX_BYTES and getattr(image, "n_frames", 1) > 50 and image.info["loop"] == 0


def test_typical_lane_is_the_median_of_counted_episodes():
    reward = np.array([[0, 5, 2], [0, 0, 0], [9, 0, 9]], float)
    episode = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    assert typical_lane(reward, episode, episodes=2) == 2
    assert typical_lane(reward, episode, episodes=3) == 0


@pytest.mark.slow
def test_report_opens_in_a_browser(page, tmp_path):
    """Every figure decodes in headless Chromium; narrow and wide, the page does not overflow sideways."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.fail("chromium is missing: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    probe = tmp_path / "probe.html"  # the page and a script that writes down what the browser made of it
    probe.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    for width in (400, 1400):
        command = [browser, *flags, f"--window-size={width},900", "--dump-dom", probe.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r'<output id="probe">(.*?)</output>', done.stdout)
        assert found, done.stderr[-2000:]
        seen = SimpleNamespace(**json.loads(found.group(1)))
        assert seen.figures == len(read(page).alts) and seen.decoded == seen.figures, vars(seen)
        assert seen.overflow <= 0, f"at {width} px the page is {seen.overflow} px too wide"
        shot = tmp_path / f"page-{width}.png"
        command = [browser, *flags, f"--window-size={width},900", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
        assert len(Image.open(shot).convert("RGB").getcolors(1 << 24) or []) > 20


PROBE = """<output id="probe"></output><script>addEventListener("load", () => {
const images = [...document.querySelectorAll("figure img")], root = document.documentElement;
document.getElementById("probe").textContent = JSON.stringify({figures: images.length,
decoded: images.filter(i => i.complete && i.naturalWidth > 100).length, overflow: root.scrollWidth - root.clientWidth});});</script>"""
