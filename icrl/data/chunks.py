"""Chunks: what a retrieval memory holds and brings. Pure data, arrays or tensors alike; icrl/memory says which and why."""

from __future__ import annotations

from typing import Any, NamedTuple

from icrl.interfaces import Observation


class Retrieved(NamedTuple):
    """What R retrievals brought to each of B windows: M transitions each, one chunk after the other. All (B, R, M, ...)."""

    observation: Observation
    action: Any
    reward: Any  # float32
    ended: Any  # bool: the episode ended with this transition
    return_to_go: Any  # float32: what its episode earned from this step on; read only where it is an input
    episode_return: Any  # float32: what its episode had earned before this step; read only with `model.episode_return`
    position: Any  # int64: step within the chunk, from 0; the cut is in its middle
    valid: Any  # bool: there is a transition
