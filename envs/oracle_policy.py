"""Oracles that were trained: a small network that is told the task, kept as safetensors and run in numpy.

``python -m scripts.train_oracle`` makes the files in ``envs/oracles``; each says in its metadata which command made it and what
it returns on which task.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from icrl.interfaces import Array, UserError

FOLDER = Path(__file__).parent / "oracles"


class OraclePolicy:
    """The mean action of a policy that sees an observation and the task.

    A file holds ``weight.0``, ``bias.0``, ``weight.1``, ... of fully connected layers, (out, in) and (out,): ReLU between them, tanh at the end.
    """

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                count = sum(1 for name in file.keys() if name.startswith("weight"))  # noqa: SIM118
                self._layers = [(file.get_tensor(f"weight.{i}").T, file.get_tensor(f"bias.{i}")) for i in range(count)]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is no oracle ({error}): make it with scripts.train_oracle") from None
        self.num_inputs = len(self._layers[0][0])

    def __call__(self, observation: Array, told: Array) -> Array:
        """Observations (..., D) and what is told of the task (..., k) -> actions (..., action_dim) on [-1, 1], float32."""
        hidden = np.concatenate([observation, told], axis=-1, dtype=np.float32)
        for weight, bias in self._layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0)
        weight, bias = self._layers[-1]
        return np.tanh(hidden @ weight + bias)


def kept_oracle(name: str) -> OraclePolicy | None:
    """The oracle of the family called ``name`` that the project keeps, if it does."""
    path = FOLDER / f"{name}.safetensors"
    return _read(path) if path.exists() else None


@lru_cache
def _read(path: Path) -> OraclePolicy:
    return OraclePolicy(path)
