"""A source of training images that are float tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSource:
    """Images and targets held as float tensors: what a network trains on, beside `ImageSet`."""

    images: Tensor  # (N, C, H, W)
    targets: Tensor  # (N,) int64, (N, classes) soft, or (N, D) real-valued

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.images.device

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices]
