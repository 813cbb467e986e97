"""A data set that needs no download: grey pictures of one of four shapes, with noise."""

from __future__ import annotations

import torch

NAMES = ("circle", "square", "triangle", "cross")
SIZE = 32
_GREYS = " .:-=+*#%@"


def make(count: int, seed: int, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Make pictures and say what is on them.

    Args:
        count: How many.
        seed: The same seed gives the same pictures.
        noise: Standard deviation of what is added to every pixel; 0 for clean pictures.

    Returns:
        images: float32 [count, 1, SIZE, SIZE], the shape about 1 and the ground about 0.
        labels: int64 [count], places in ``NAMES``.
    """
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (count,), generator=source)
    # Each picture has its own middle and its own size, as [count, 1, 1] to fit [count, SIZE, SIZE].
    middle = 10 + 12 * torch.rand(2, count, 1, 1, generator=source)
    radius = 5 + 4 * torch.rand(count, 1, 1, generator=source)
    line = torch.arange(SIZE, dtype=torch.float32)
    down = line.view(1, SIZE, 1) - middle[0]
    right = line.view(1, 1, SIZE) - middle[1]
    every = torch.stack(
        [
            down**2 + right**2 < radius**2,
            (down.abs() < 0.85 * radius) & (right.abs() < 0.85 * radius),
            (down < 0.8 * radius) & (down > 2 * right.abs() - radius),
            ((down.abs() < 0.3 * radius) & (right.abs() < radius))
            | ((right.abs() < 0.3 * radius) & (down.abs() < radius)),
        ]
    )
    images = every[labels, torch.arange(count)].float()
    images += noise * torch.randn(images.shape, generator=source)
    return images.unsqueeze(1), labels


def draw(image: torch.Tensor) -> str:
    """Show one picture, [1, SIZE, SIZE] or [SIZE, SIZE], as characters."""
    picture = image.reshape(SIZE, SIZE).clamp(0, 1).cpu()
    # A character is about twice as high as wide, so two rows make one line.
    halved = picture.reshape(SIZE // 2, 2, SIZE).mean(1)
    grey = (halved * (len(_GREYS) - 1)).round().long()
    return "\n".join("".join(_GREYS[one] for one in row) for row in grey.tolist())
