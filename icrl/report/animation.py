"""One lane learning, as a small animated GIF: the grid on the left, the return of each episode so far on the right.

Only the goal is drawn in advance; it is what the viewer knows and the agent has to find. Frames share a palette of
seven flat colours, so that 300 of them stay far below the size limit; a longer trajectory is thinned by a stride.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_BYTES = 1_000_000
MAX_FRAMES = 320
PALETTE = {
    "paper": (255, 255, 255),
    "cell": (240, 240, 240),
    "visited": (166, 206, 227),
    "ink": (34, 34, 34),
    "agent": (0, 114, 178),
    "goal": (213, 94, 0),
    "bar": (0, 158, 115),
}
INDEX = {name: index for index, name in enumerate(PALETTE)}


class LaneTrajectory(NamedTuple):
    """What one lane did; T steps in time order over some episodes."""

    position: np.ndarray  # (T, 2) int: row, column *before* the action
    next_position: np.ndarray  # (T, 2) int: row, column after it
    reward: np.ndarray  # (T,) float
    episode: np.ndarray  # (T,) int from 0
    goal: np.ndarray | None  # (2,) int: row, column; None where the tasks name none
    grid: tuple[int, int]  # height, width


class Animation(NamedTuple):
    """An animated picture and the still that stands for it."""

    gif: bytes
    still: bytes  # PNG: the last frame
    num_frames: int


def episodes_to_show(episodes: np.ndarray, most: int = 6) -> np.ndarray:
    """The first episodes and the last one: learning happens early, the last shows what came of it."""
    return episodes if len(episodes) <= most else np.concatenate([episodes[: most - 1], episodes[-1:]])


def animate(trajectory: LaneTrajectory) -> Animation:
    """Draw the lane; the stride over steps grows until the file is at most ``MAX_BYTES``."""
    shown = episodes_to_show(np.unique(trajectory.episode))
    returns = {int(e): float(trajectory.reward[trajectory.episode == e].sum()) for e in shown}
    stride = max(1, -(-int(np.isin(trajectory.episode, shown).sum()) // MAX_FRAMES))
    while True:
        frames = [
            frame
            for e in shown
            for frame in _episode_frames(trajectory, int(e), list(map(int, shown)), returns, stride)
        ]
        gif = _to_gif(frames)
        if len(gif) <= MAX_BYTES or stride > len(trajectory.reward):
            break
        stride *= 2
    buffer = io.BytesIO()
    frames[-1].convert("RGB").save(buffer, "PNG")
    return Animation(gif, buffer.getvalue(), len(frames))


def _episode_frames(
    lane: LaneTrajectory, episode: int, shown: list[int], returns: dict[int, float], stride: int
) -> list[Image.Image]:
    """Frames of one episode: every stride-th step and always the first and last."""
    steps = np.flatnonzero(lane.episode == episode)
    path = np.concatenate([lane.position[steps[:1]], lane.next_position[steps]])  # (steps + 1, 2)
    running = np.concatenate([[0.0], np.cumsum(lane.reward[steps])])  # (steps + 1,)
    chosen = _moments(path, stride)
    bars = {e: returns[e] for e in shown if e < episode}
    top = max(1.0, *returns.values())
    return [
        _draw(lane, path[: i + 1], f"episode {episode + 1}   step {i}", {**bars, episode: running[i]}, shown, top)
        for i in chosen
    ]


def _moments(path: np.ndarray, stride: int) -> list[int]:
    """Which rows of ``path`` (n, 2) to draw: every stride-th, but every tenth of those while the agent stands still."""
    moved = np.concatenate([[True], (path[1:] != path[:-1]).any(axis=1)])
    since_move = np.arange(len(path)) - np.maximum.accumulate(np.where(moved, np.arange(len(path)), 0))
    keep = (since_move < 4 * stride) | (since_move % (10 * stride) == 0)
    return sorted({*np.flatnonzero(keep & (np.arange(len(path)) % stride == 0)).tolist(), len(path) - 1})


def _draw(
    lane: LaneTrajectory, path: np.ndarray, caption: str, bars: dict[int, float], shown: list[int], top: float
) -> Image.Image:
    """One frame; ``path`` (n, 2) so far in this episode, its last row where the agent is."""
    height, width = lane.grid
    cell = max(6, min(48, 280 // max(height, width)))
    grid_width, grid_height = max(width * cell, 200), max(height * cell, 150)
    image = Image.new("P", (grid_width + 40 + 44 * len(shown), grid_height + 44), INDEX["paper"])
    image.putpalette([channel for color in PALETTE.values() for channel in color])
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"  # no antialiasing: it would need colours outside the palette
    draw.text((8, 6), caption, fill=INDEX["ink"], font=ImageFont.load_default(15))

    visited = {(int(row), int(column)) for row, column in path}
    for row in range(height):
        for column in range(width):
            color = "visited" if (row, column) in visited else "cell"
            _box(draw, row, column, cell, color, inset=1)
    if lane.goal is not None:
        _box(draw, int(lane.goal[0]), int(lane.goal[1]), cell, "goal", inset=3, outline=True)
    x, y = 8 + int(path[-1][1]) * cell, 30 + int(path[-1][0]) * cell
    draw.ellipse((x + cell * 0.22, y + cell * 0.22, x + cell * 0.78, y + cell * 0.78), fill=INDEX["agent"])
    _draw_bars(draw, (grid_width + 28, 30, grid_height), bars, shown, top)
    return image


def _box(draw: ImageDraw.ImageDraw, row: int, column: int, cell: int, color: str, inset: int, outline: bool = False):
    """A cell of the grid, filled or as a frame."""
    x, y = 8 + column * cell, 30 + row * cell
    edges = (x + inset, y + inset, x + cell - inset, y + cell - inset)
    if outline:
        draw.rectangle(edges, outline=INDEX[color], width=max(2, cell // 9))
    else:
        draw.rectangle(edges, fill=INDEX[color])


def _draw_bars(
    draw: ImageDraw.ImageDraw, area: tuple[int, int, int], bars: dict[int, float], shown: list[int], top: float
) -> None:
    """Return of each episode shown so far; ``area`` = left, upper edge, height."""
    left, upper, height = area
    font = ImageFont.load_default(13)
    draw.text((left, upper - 24), "return by episode", fill=INDEX["ink"], font=font)
    base = upper + height - 18
    for place, episode in enumerate(shown):
        x = left + 44 * place
        draw.text((x + 8, base + 3), str(episode + 1), fill=INDEX["ink"], font=font)
        if episode in bars:
            tall = (base - upper - 20) * max(0.0, bars[episode]) / top
            draw.rectangle((x, base - tall, x + 30, base), fill=INDEX["bar"])
            draw.text((x + 4, base - tall - 17), f"{bars[episode]:g}"[:5], fill=INDEX["ink"], font=font)
    draw.line((left - 4, base + 1, left + 44 * len(shown) - 8, base + 1), fill=INDEX["ink"])


def _to_gif(frames: list[Image.Image]) -> bytes:
    """Frames at 20 per second, a pause at the end of the loop."""
    buffer = io.BytesIO()
    durations = [50] * (len(frames) - 1) + [2500]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()
