"""What is made of Stable-Baselines3: the algorithms, and the network that reads the arrays of an episode.

Owns the only imports of torch and Stable-Baselines3 among the agents of single tokens. Knows the keys of `FixedArrays`,
not what they mean.
"""

from __future__ import annotations

from typing import Any, Final

from gymnasium import spaces

try:
    import torch
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ImportError as error:
    raise ImportError(f"{error}; for policies of single tokens: pip install 'mimgenv[sb3]'") from error

ALGORITHMS: Final[dict[str, Any]] = {"masked": MaskablePPO, "plain": PPO}

PPO_SETTINGS: Final[dict[str, Any]] = {
    "n_steps": 64,
    "batch_size": 256,
    "n_epochs": 8,
    "learning_rate": 1e-3,
    "target_kl": 0.08,
    "ent_coef": 0.01,
    "gamma": 1.0,
    "gae_lambda": 0.95,
}
"""Rewards come at the end only, hence no discount. Larger early updates can end in one constant, refused box."""


class EpisodeFeatures(BaseFeaturesExtractor):
    """Reads the arrays: one image encoder for all slots, and the ids of the text and of the turn with their places."""

    def __init__(self, space: spaces.Dict, features: int = 128, channels: int = 16, patch: int = 7) -> None:
        super().__init__(space, features)
        self._slots = [key for key in space.spaces if key.startswith("image_")]
        shape = space[self._slots[0]].shape
        assert shape is not None
        self.image = torch.nn.Sequential(
            torch.nn.Conv2d(shape[0], channels, patch, patch),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, channels, 3, padding=1),
            torch.nn.ReLU(),
            _Profiles(),
            torch.nn.Linear(channels * (shape[1] // patch + shape[2] // patch), features),
            torch.nn.ReLU(),
            torch.nn.LayerNorm(features),
        )
        self.ids = torch.nn.ModuleDict({key: _IdsReader(space[key]) for key in ("text", "turn")})
        self.mix = torch.nn.Sequential(
            torch.nn.Linear(features * len(self._slots) + 2 * _IdsReader.WIDTH, features), torch.nn.ReLU()
        )

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features, (B, features); images come in as (B, 3, H, W) in [0, 1]."""
        images = [self.image(observations[slot] * 2 - 1) for slot in self._slots]
        ids = [reader(observations[key]) for key, reader in self.ids.items()]
        mixed: torch.Tensor = self.mix(torch.cat([*images, *ids], dim=1))
        return mixed


class _Profiles(torch.nn.Module):
    """What there is in each column and in each row, (B, C, H, W) to (B, C · (W + H)): a coordinate lies on one axis."""

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        return torch.cat([grid.mean(2).flatten(1), grid.mean(3).flatten(1)], dim=1)


class _IdsReader(torch.nn.Module):
    """Sums over places what each id means there, (B, T) to (B, WIDTH)."""

    WIDTH: Final = 32

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.what = torch.nn.Embedding(int(space.high.max()) + 1, self.WIDTH)
        self.where = torch.nn.Parameter(torch.randn(space.shape[0], self.WIDTH))
        self.norm = torch.nn.LayerNorm(self.WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        written = (ids < self.what.num_embeddings - 1).unsqueeze(-1)  # what is empty says nothing
        read: torch.Tensor = self.norm((torch.relu(self.what(ids.long()) + self.where) * written).sum(1))
        return read
