"""Three small networks, of the kinds a course uses, to warm ``torch.compile`` up with.

Small on purpose: the time goes into compiling, not into computing, and a student's GPU memory
stays the student's. torch is imported by whoever calls and handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """A network with one batch.

    Attributes:
        model: ``torch.nn.Module`` on the device, float32; maps ``x`` to float32 [batch, classes].
        x: The batch, on the device.
        y: The right classes, on the device; int64 [batch].
    """

    model: Any
    x: Any
    y: Any


def mlp(torch: Any, device: str) -> Workload:
    """Two hidden layers.

    ``x``: float32 [batch, features]; 32 x 64 on a CPU, 256 x 1024 on a GPU.
    """
    nn = torch.nn
    batch, width = (32, 64) if device == "cpu" else (256, 1024)
    model = nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip
    return _on(torch, device, model, torch.randn(batch, width))


def cnn(torch: Any, device: str) -> Workload:
    """Two convolutions and a classifier.

    ``x``: float32 [batch, 3, height, width]; 8 x 3 x 16 x 16 on a CPU, 64 x 3 x 32 x 32 on a GPU.
    """
    nn = torch.nn
    batch, side, width = (8, 16, 8) if device == "cpu" else (64, 32, 64)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES),
    )  # fmt: skip
    return _on(torch, device, model, torch.randn(batch, 3, side, side))


def transformer(torch: Any, device: str) -> Workload:
    """One pre-norm transformer block and a classifier over the mean of the tokens.

    ``x``: float32 [batch, tokens, width]; 4 x 16 x 32 on a CPU, 16 x 256 x 256 on a GPU.
    """
    batch, tokens, width = (4, 16, 32) if device == "cpu" else (16, 256, 256)
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        """Attention and a feed-forward net, each with its residual."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.head = nn.Linear(width, CLASSES)

        def forward(self, x: Any) -> Any:
            """``x``: float32 [batch, tokens, width] to float32 [batch, classes]."""
            split = (batch, tokens, 4, width // 4)
            q, k, v = (
                part.view(split).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
            )
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
            x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
            return self.head(x.mean(1))

    return _on(torch, device, Block(), torch.randn(batch, tokens, width))


BUILDERS: Dict[str, Callable[[Any, str], Workload]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
}


def _on(torch: Any, device: str, model: Any, x: Any) -> Workload:
    y = torch.randint(0, CLASSES, (x.shape[0],))
    return Workload(model.to(device).train(), x.to(device), y.to(device))


def train_step(torch: Any, run: Any, work: Workload, optimizer: Any) -> float:
    """One training step.

    Args:
        torch: The module.
        run: ``work.model``, or its compiled form.
        work: What to train on.
        optimizer: Over the model's parameters.

    Returns:
        The loss before the step.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(run(work.x), work.y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())
