"""Frozen encoders: what makes keys of observations. A chunk's key is the mean over the steps before its cut, of unit length; nothing here is ever trained.

``projection`` embeds observations at random: index vectors by random tables, real vectors by random Fourier features, so that near states have near keys.
``language:FOLDER`` brings a random projection of the observation into the token embeddings of a language model, as a Hopfield network would recall them (HELM:
Paischer et al. 2022; RA-DT's domain-agnostic encoder). ``policy:RUN`` takes the hidden states of a finished run's frozen policy (RA-DT's other encoder).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from icrl.config import MemoryConfig
from icrl.data import schema
from icrl.interfaces import Array, FamilySpec, Observation, UserError
from icrl.seeding import generator

HOPFIELD_BETA = 10.0
"""Inverse temperature of the recall, on cosines."""
SCALE = 1.0
"""Spread of the random frequencies for real observations, after symlog."""


class Past(NamedTuple):
    """Up to P steps of lanes or chunks, oldest first; ``valid`` is False where there are fewer. All (..., P, ...)."""

    observation: Observation
    action: Array
    reward: Array
    ended: Array
    valid: Array


class Encoder(Protocol):
    """Keys of steps."""

    width: int

    def parts(self, past: Past) -> Array:
        """(..., P, E) float32: the key of every step, 0 where there is none."""
        ...

    def identity(self) -> str:
        """What two memories must share for their keys to be comparable."""
        ...

    def keep(self, run: Path) -> None:
        """Copy into a run folder what the encoder needs and cannot be made again."""
        ...


def keys_of(parts: Array) -> Array:
    """(..., E) mean of the parts (..., P, E), of unit length; 0 where there are none."""
    total = parts.sum(-2)
    return total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


class Projection:
    """A fixed random embedding of observations (..., E)."""

    def __init__(self, spec: FamilySpec, width: int, seed: int = 0):
        self.width = width
        self._embed = _random_embedding(spec.observation_space, width, seed)
        self._described = f"projection {width} {seed} of {schema.spec_to_json(spec)['observation_space']}"

    def parts(self, past: Past) -> Array:
        embedded = self._embed(past.observation)
        return embedded * past.valid[..., None]

    def identity(self) -> str:
        return self._described

    def keep(self, run: Path) -> None: ...


class LanguageEmbeddings:
    """A random projection of observations, recalled among a language model's token embeddings (V, E) by one step of a Hopfield network."""

    def __init__(self, spec: FamilySpec, folder: str | Path, seed: int = 0):
        tokens = read_token_embeddings(Path(folder))
        self.width = tokens.shape[1]
        self._projection = Projection(spec, self.width, seed)
        self._tokens = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), 1e-12)
        self._hash = hashlib.sha256(tokens.tobytes()).hexdigest()[:16]

    def parts(self, past: Past) -> Array:
        state = self._projection.parts(past)
        state = state / np.maximum(np.linalg.norm(state, axis=-1, keepdims=True), 1e-12)
        flat = state.reshape(-1, self.width)
        distinct, where = np.unique(flat, axis=0, return_inverse=True)
        scores = HOPFIELD_BETA * distinct @ self._tokens.T  # (d, V)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        recalled = (shares / shares.sum(1, keepdims=True)) @ self._tokens
        return recalled[where.reshape(-1)].reshape(state.shape).astype(np.float32) * past.valid[..., None]

    def identity(self) -> str:
        return f"language embeddings {self._hash} behind {self._projection.identity()}"

    def keep(self, run: Path) -> None: ...


def read_token_embeddings(folder: Path) -> Array:
    """(V, E) float32 input embeddings of a Hugging Face model's folder (safetensors). UserError where there are none."""
    from safetensors import SafetensorError, safe_open

    names = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (no mapping)
                    if name.endswith(names):
                        return weights.get_tensor(name).float().numpy()
        except (SafetensorError, OSError, TypeError) as error:
            raise UserError(f"{file} cannot be read ({error}): download the language model again") from None
    raise UserError(
        f"{folder} holds no token embeddings of a language model in safetensors files: give the folder of a Hugging Face model, or choose "
        "--model.memory.encoder projection"
    )


def make_encoder(spec: FamilySpec, config: MemoryConfig, run: Path | None = None) -> Encoder:
    """The encoder that ``config`` names, the copy that ``run`` keeps of it where there is one.

    Raises UserError for an unknown one, or a path without what it needs.
    """
    kind, _, path = config.encoder.partition(":")
    if config.encoder == "projection":
        return Projection(spec, config.key_width)
    if kind == "language" and path:
        return LanguageEmbeddings(spec, path)
    if kind == "policy" and path:
        from icrl.memory.policy_encoder import KEPT, PolicyEncoder

        kept = run is not None and (run / KEPT).exists()
        return PolicyEncoder.of_run(spec, run / KEPT if run is not None and kept else Path(path), config.chunk)
    raise UserError(
        f"model.memory.encoder {config.encoder!r} is unknown, expected projection, policy:RUN or language:FOLDER"
    )


def _random_embedding(space: gym.Space, width: int, seed: int) -> Any:
    """A function from observations (..., ...) to (..., width) float32, drawn once from the seed."""
    if isinstance(space, gym.spaces.Dict):
        parts = {
            name: _random_embedding(part, width, seed + 1 + n) for n, (name, part) in enumerate(space.spaces.items())
        }
        return lambda observation: sum(embed(observation[name]) for name, embed in parts.items())
    rng = generator(seed, "memory projection")
    if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)):
        return _table_embedding(space, width, rng)
    size = int(np.prod(space.shape or (1,)))
    axes = len(space.shape or ())
    frequencies = rng.normal(size=(size, width)).astype(np.float32) * SCALE
    phases = rng.uniform(0, 2 * np.pi, width).astype(np.float32)

    def fourier(observation: Array) -> Array:
        x = np.asarray(observation, np.float32)
        x = x.reshape(*x.shape[: x.ndim - axes], size)
        return np.cos(np.sign(x) * np.log1p(np.abs(x)) @ frequencies + phases) * np.float32((2 / width) ** 0.5)

    return fourier


def _table_embedding(space: Any, width: int, rng: np.random.Generator) -> Any:
    """One random vector for each whole observation where they can be listed, else the sum of one per coordinate."""
    discrete = isinstance(space, gym.spaces.Discrete)
    sizes = np.atleast_1d(np.asarray(space.n if discrete else space.nvec))
    start = np.atleast_1d(np.asarray(space.start))
    if np.prod(sizes.astype(float)) <= 1 << 16:
        strides = np.concatenate([np.cumprod(sizes[::-1])[-2::-1], [1]]).astype(np.int64)
        table = rng.normal(size=(int(np.prod(sizes)), width)).astype(np.float32) * np.float32(width**-0.5)
    else:
        strides = None
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        table = rng.normal(size=(int(sizes.sum()), width)).astype(np.float32) * np.float32((width * len(sizes)) ** -0.5)

    def look_up(observation: Array) -> Array:
        index = np.asarray(observation, np.int64)
        index = (index[..., None] if discrete else index) - start
        return table[index @ strides] if strides is not None else table[index + offsets].sum(-2)

    return look_up
