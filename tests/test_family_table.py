"""The table of returns by family: ordered as returns must be, complete in the docs."""

from conftest import ROOT

from envs import FAMILIES
from scripts import cli
from scripts.families import measure


def test_random_then_source_then_optimum():
    for name in ("darkroom", "keydoor", "point_robot", "gaussian_bandit"):
        row = measure(name)
        assert row.random < row.first <= row.last <= row.optimal + 1e-3, name


def test_what_cannot_be_measured_says_why(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.families.SHOWN", {})  # nearest_plausible, which needs a belief
    assert cli.main(["families", "darkroom", "maze_runner", "--out", str(tmp_path / "new" / "table.md")]) == 0
    text = (tmp_path / "new" / "table.md").read_text()
    assert "| `darkroom`, 20 test tasks | 0.74 | `nearest_plausible`, 20 episodes | 43.70 | 90.90 | 90.90 |" in text
    assert "| `maze_runner` | not measured: maze_runner has no posterior" in text
    assert cli.main(["families", "darkrom"]) == 2
    assert "'darkrom' is not built in: known are darkroom" in capsys.readouterr().err


def test_the_docs_show_every_family():
    text = (ROOT / "docs" / "families.md").read_text()
    assert [name for name in FAMILIES if f"| `{name}`" not in text] == []
