"""ResNet-18 for images of 32 x 32; two narrow blocks of it on a CPU."""

import torch
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, BLOCKS = (64, (2, 2, 2, 2)) if DEVICE == "cuda" else (8, (1, 1))
CLASSES = 10


class Residual(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.short = nn.Identity()
        if before != after or stride != 1:
            self.short = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        y = nn.functional.relu(self.norm1(self.conv1(x)))
        return nn.functional.relu(self.norm2(self.conv2(y)) + self.short(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        before = WIDTH
        for stage, blocks in enumerate(BLOCKS):
            after = WIDTH * 2**stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(Residual(before, after, stride))
                before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def train_step(batch_size=32):
    torch.manual_seed(0)
    model = ResNet().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compiled = torch.compile(model)
    x = torch.randn(batch_size, 3, 32, 32, device=DEVICE)
    y = torch.randint(CLASSES, (batch_size,), device=DEVICE)
    loss = nn.functional.cross_entropy(compiled(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()  # waits for the GPU
