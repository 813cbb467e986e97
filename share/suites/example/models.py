"""Three small models, each compiled and trained for one step, as a course's notebooks do it."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.second(x))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A transformer's block with a causal attention, and a head over 64 tokens."""

    def __init__(self, width=64, heads=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(64, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.head = nn.Linear(width, 64)

    def forward(self, tokens):
        x = self.embed(tokens)
        batch, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = (one.view(batch, length, self.heads, -1).transpose(1, 2) for one in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return self.head(x + self.mlp(self.norms[1](x)))


def train_one_step(model, inputs, targets):
    """What a first cell of a training loop waits for: forward, backward, optimiser."""
    model = torch.compile(model.to(DEVICE))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model(inputs.to(DEVICE))
    loss = F.cross_entropy(logits.flatten(0, -2), targets.to(DEVICE).flatten())
    loss.backward()
    optimiser.step()
    return loss.item()


def mlp_step(batch_size):
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10))
    return train_one_step(model, torch.randn(batch_size, 128), torch.randint(10, (batch_size,)))


def cnn_step(batch_size):
    images = torch.randn(batch_size, 3, 32, 32)
    return train_one_step(Cnn(), images, torch.randint(10, (batch_size,)))


def transformer_step(batch_size):
    tokens = torch.randint(64, (batch_size, 33))
    return train_one_step(Block(), tokens[:, :-1], tokens[:, 1:])
