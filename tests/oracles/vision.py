"""A small vision network and its data, for the tests of calibration and pruning: four shapes in noise, seeded."""

from __future__ import annotations

import torch

SIDE, CLASSES = 16, 4


class Cnn(torch.nn.Module):
    """Two convolutions, a batch norm, and a linear layer: 5,300 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
            torch.nn.ReLU(),
        )
        self.classifier = torch.nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores [n, 4] of images [n, 1, 16, 16]."""
        return self.classifier(self.features(x).mean((2, 3)))


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal bars, vertical bars, both, or a diagonal, each at a place of its own; and which it is."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=random)
    shift = torch.randint(0, 4, (count, 1, 1), generator=random)
    rows, cols = torch.arange(SIDE)[None, :, None], torch.arange(SIDE)[None, None]
    flat, upright, slanted = ((at + shift) % 4 == 0 for at in (rows, cols, rows + cols))
    shapes = torch.stack(torch.broadcast_tensors(flat, upright, flat | upright, slanted))  # [4, count, 16, 16]
    x = shapes[labels, torch.arange(count)] + 0.3 * torch.randn((count, SIDE, SIDE), generator=random)
    return x[:, None], labels


def trained(module: torch.nn.Module | None = None, steps: int = 80) -> torch.nn.Module:
    """The network, or a module of its kind, after so many steps of Adam; in evaluation mode."""
    if module is None:
        torch.manual_seed(1)
        module = Cnn()
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for step in range(steps):
        x, labels = images(64, seed=1000 + step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), labels).backward()
        optimizer.step()
    return module.eval()
