"""Four linear layers, as a first notebook has them; small on a CPU, 1024 wide on a GPU."""

import torch
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH = 1024 if DEVICE == "cuda" else 128
CLASSES = 10


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, CLASSES),
        )

    def forward(self, x):
        return self.layers(x)


def train_step(batch_size=256):
    torch.manual_seed(0)
    model = Mlp().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    compiled = torch.compile(model)
    x = torch.randn(batch_size, WIDTH, device=DEVICE)
    y = torch.randint(CLASSES, (batch_size,), device=DEVICE)
    loss = nn.functional.cross_entropy(compiled(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()  # waits for the GPU
