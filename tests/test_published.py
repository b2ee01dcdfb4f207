"""The published numbers travel inside the package and can be read by protocol."""

import pytest

from icrl.interfaces import UserError
from icrl.published import citation, load_published, online_curves, section


def test_curves_and_citation_of_a_protocol():
    curves = online_curves("darkroom_10x10_dpt_protocol")
    assert curves["DPT"][1] == 0.8 and curves["DPT"][40] == 75.1
    assert "2306.14892" in citation("darkroom_10x10_dpt_protocol")


def test_a_protocol_without_curves_has_none():
    assert online_curves("bandit_5_arm_dpt_protocol") == {}


def test_every_section_names_a_known_source():
    published = load_published()
    names = set(published) - {"about", "sources"}
    assert names and all(section(name)["source"] in published["sources"] for name in names)


def test_unknown_protocol_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"no such section; choose one of .*darkroom_10x10_dpt_protocol"):
        section("darkroom_11x11")
