"""Random streams: equal names give equal draws, and a lane's draws depend on nothing but its own number."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from icrl.seeding import LaneStreams, derive_seed, generator


@given(st.integers(0, 2**31), st.lists(st.integers(0, 10_000), min_size=1, max_size=8, unique=True))
def test_lane_stream_does_not_depend_on_other_lanes(root, ids):
    together = LaneStreams(root, "noise", lane_ids=np.array(ids)).uniform(3).reshape(len(ids), 3)
    for row, lane in zip(together, ids, strict=True):
        alone = LaneStreams(root, "noise", lane_ids=np.array([lane])).uniform(3)
        np.testing.assert_array_equal(row, alone[0])


def test_drawing_for_some_lanes_leaves_the_others_where_they_were():
    streams, same = (LaneStreams(1, "x", lane_ids=4) for _ in range(2))
    streams.uniform(lanes=np.array([1, 3]))
    after, expected = streams.uniform(), same.uniform()
    np.testing.assert_array_equal(after[[0, 2]], expected[[0, 2]])
    assert (after[[1, 3]] != expected[[1, 3]]).all()


def test_draws_look_uniform_normal_and_choose_in_proportion():
    streams = LaneStreams(7, "x", lane_ids=200_000)
    uniform, normal = streams.uniform(), streams.normal()
    assert abs(uniform.mean() - 0.5) < 0.005 and abs(uniform.var() - 1 / 12) < 0.002
    assert abs(normal.mean()) < 0.01 and abs(normal.var() - 1) < 0.02
    counts = np.bincount(streams.choice(np.tile([1.0, 0.0, 3.0], (200_000, 1))), minlength=3)
    assert counts[1] == 0 and abs(counts[2] / counts.sum() - 0.75) < 0.005


def test_names_separate_streams():
    assert derive_seed(0, "a") != derive_seed(0, "b") != derive_seed(1, "b")
    assert generator(0, "a", 1).integers(1 << 40) != generator(0, "a", 2).integers(1 << 40)
    assert generator(0, "a").integers(1 << 40) == generator(0, "a").integers(1 << 40)
