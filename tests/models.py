"""The models that the tests share: small, ordinary, and with random weights."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp() -> nn.Module:
    """Three layers."""
    return nn.Sequential(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 9), nn.ReLU(), nn.Linear(9, 4))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels + 2, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels + 2)
        self.conv2 = nn.Conv2d(channels + 2, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.norm1(self.conv1(images)), inplace=True)
        return F.relu(images + self.norm2(self.conv2(hidden)))


class ConvNet(nn.Module):
    """Convolution, batch norm, ReLU, two residual blocks, pooling, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.block1 = ResidualBlock(6)
        self.down = nn.Conv2d(6, 10, 3, stride=2)
        self.block2 = ResidualBlock(10)
        self.head = nn.Linear(10 * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.block1(F.relu(self.norm(self.stem(images))))
        hidden = self.block2(F.max_pool2d(self.down(hidden), 2, padding=1))
        return self.head(F.adaptive_avg_pool2d(hidden, 2).flatten(1))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + F.dropout(self.down(F.gelu(self.up(self.norm2(tokens)))), 0.1, self.training)


class Transformer(nn.Module):
    """Two blocks of causal attention with dropout, learned positions, and an untied classifier of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(13, 12), nn.Parameter(0.1 * torch.randn(8, 12))
        self.blocks = nn.ModuleList([TransformerBlock(12, heads=3, hidden=17) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 13)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class Twisted(nn.Module):
    """An MLP that adds a fixed constant to each of its hidden units, another to every one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 3)
        self.register_buffer("twist", torch.linspace(0, 1, 7))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(inputs)) + self.twist)))
