"""Published numbers of Key-Door stand beside what was played, and beside nothing else."""

from dataclasses import replace

import pytest

from agents import make_source
from envs import make_family
from icrl.config import EvaluateConfig
from icrl.evaluation import evaluate
from icrl.evaluation_json import evaluation_to_json, load_artefacts, save_artefacts
from icrl.report.inputs import EvaluationInput
from icrl.report.protocols import match


def played(tmp_path, **options) -> EvaluationInput:
    """One evaluation of the optimal policy in Key-Door, as a report reads it."""
    family = make_family("keydoor", **options)
    config = EvaluateConfig(episodes=2, lanes=20, hide_rewards=False)
    agents = {"agent": make_source("optimal").make}
    evaluation = evaluate(family, family.split().test, agents, config, root_seed=0, progress=False)
    save_artefacts(evaluation, tmp_path / "arrays.npz")
    return EvaluationInput(
        evaluation_to_json(evaluation, family_options=options), load_artefacts(tmp_path / "arrays.npz")
    )


def test_keydoor_by_radts_protocol(tmp_path):
    evaluation = played(tmp_path)
    published = match(evaluation)
    assert published is not None and published.by_episode["RA-DT"] == {40: 82}
    artefacts = evaluation.artefacts
    assert artefacts is not None
    tasks = artefacts.tasks.copy()
    tasks["door"][0] = (tasks["door"][0] + 1) % 10
    for other in (
        replace(evaluation, artefacts=artefacts._replace(tasks=tasks)),
        replace(evaluation, record={**evaluation.record, "split": "train"}),
        replace(evaluation, record={**evaluation.record, "horizon": 200}),
    ):
        assert match(other) is None


@pytest.mark.parametrize("start, fits", [("random", True), ("corner", False)])
def test_keydoor_by_ads_protocol(tmp_path, start, fits):
    options = {"width": 9, "height": 9, "horizon": 50, "reward": "once", "start": start}
    published = match(played(tmp_path, **options))
    assert (published is not None) == fits
    if published is not None:
        assert published.by_episode["AD"] == {200: 1.65, 1000: 1.83}
