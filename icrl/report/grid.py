"""What happens on a grid: visit maps of an agent and one of its lanes as an animated picture."""

from __future__ import annotations

import numpy as np

from icrl.evaluation_json import Artefacts
from icrl.report.animation import LaneTrajectory, animate
from icrl.report.maps import MapRow, visit_figure
from icrl.report.page import Block, Details, Picture
from icrl.report.rows import Row
from icrl.report.style import to_png


def grid_blocks(row: Row, name: str) -> list[Block]:
    """Animation and visit maps of an agent, nothing where the evaluation has no grid; ``name`` is a piece of file names."""
    artefacts, arrays = row.evaluation.artefacts, row.arrays
    if artefacts is None or "visit_mean" not in arrays:
        return []
    lane = typical_lane(arrays["life_reward"], arrays["life_episode"], row.evaluation.record["episodes"])
    goal = lane_goal(artefacts, lane)
    animation = animate(lane_trajectory(row, lane, goal))
    still = f"lane-{name}-still.png"
    where = (
        ""
        if goal is None
        else f" The goal, row {goal[0] + 1} and column {goal[1] + 1}, is outlined; the agent does not see it."
    )
    num_lanes = arrays["life_reward"].shape[1]
    lane_words = f"lane {lane + 1}, the one with the median return of the first {num_lanes}"
    returns = [
        f"{arrays['life_reward'][arrays['life_episode'][:, lane] == e, lane].sum():g} in episode {e}"
        for e in arrays["visit_episodes"]
    ]
    episodes = [int(e) for e in arrays["visit_episodes"]]
    maps = [MapRow("all lanes", arrays["visit_mean"], None)]
    maps.append(MapRow(f"lane {lane + 1}", arrays["visit_lanes"][:, lane].astype(float), goal))
    figure = visit_figure(maps, episodes, f"Visits of {row.label}")
    return [
        Picture(
            f"lane-{name}.gif",
            animation.gif,
            f"Animation of {row.label} in one lane: its return is {', '.join(returns)}.",
            f"{row.label}, {lane_words}: blue cells are those visited in the episode.{where}",
            still=still,
        ),
        Details(
            "Its last moment as a still picture",
            [Picture(still, animation.still, f"The last moment of that lane; its return is {', '.join(returns)}.")],
        ),
        Picture(
            f"visits-{name}.png",
            to_png(figure),
            f"Heat maps of visits by {row.label} in episodes {', '.join(map(str, episodes))}.",
            "Share of an episode's steps in each cell, mean of all lanes (goals differ) and in the lane above, its goal outlined.",
        ),
    ]


def typical_lane(reward: np.ndarray, episode: np.ndarray, episodes: int) -> int:
    """Of lanes n, the one whose total reward over the counted episodes is the (lower) median; arrays (T, n)."""
    totals = (reward * (episode <= episodes)).sum(axis=0)  # (n,)
    return int(np.argsort(totals, kind="stable")[(len(totals) - 1) // 2])


def lane_goal(artefacts: Artefacts, lane: int) -> tuple[int, int] | None:
    """(row, column) of the lane's goal, where tasks have a field of that name."""
    if "goal" not in (artefacts.tasks.dtype.names or ()):
        return None
    row, column = artefacts.tasks["goal"][artefacts.lane_task[lane]]
    return int(row), int(column)


def lane_trajectory(row: Row, lane: int, goal: tuple[int, int] | None) -> LaneTrajectory:
    """The counted steps of one lane. Where an action led to is the next step's cell, at an episode's end the goal if that step paid."""
    arrays = row.arrays
    counted = arrays["life_episode"][:, lane] <= row.evaluation.record["episodes"]
    position = arrays["life_observation"][counted, lane].astype(int)  # (T, 2)
    episode = arrays["life_episode"][counted, lane].astype(int) - 1
    reward = arrays["life_reward"][counted, lane]
    last = np.append(episode[1:] != episode[:-1], True)
    following = np.where(last[:, None], position, np.roll(position, -1, axis=0))
    if goal is not None:
        following = np.where((last & (reward > 0))[:, None], goal, following)
    shape = arrays["visit_mean"].shape[1:]
    return LaneTrajectory(
        position, following, reward, episode, None if goal is None else np.array(goal), (int(shape[0]), int(shape[1]))
    )
