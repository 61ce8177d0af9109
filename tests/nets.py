"""Models of the zoo in plain PyTorch, as people write them."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 11), activation(), nn.Linear(11, 9), activation(), nn.Linear(9, 4))


def conv_norm_relu(inputs: int, outputs: int, **settings: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, **settings), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def conv_stack() -> nn.Module:
    return nn.Sequential(
        conv_norm_relu(3, 6),
        conv_norm_relu(6, 10, bias=False),
        nn.MaxPool2d(2),
        conv_norm_relu(10, 14, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(14, 5),
    )


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, convolve each channel by itself, project."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = inputs == outputs and stride == 1

    def forward(self, images: Tensor) -> Tensor:
        projected = self.project(self.depthwise(self.expand(images)))
        return images + projected if self.residual else projected


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 6)
        self.block1, self.block2 = InvertedResidual(6, 14, 6), InvertedResidual(6, 18, 8, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block2(self.block1(self.stem(images))).mean((2, 3)))


def group_norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.GroupNorm(3, 12),
        nn.SiLU(),
        nn.Conv2d(12, 14, 3, padding=1),
        nn.GroupNorm(2, 14),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(14, 5),
    )


class UNet(nn.Module):
    """Two levels, joined by concatenation; one step up is a transposed convolution, the other interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_norm_relu(3, 6), conv_norm_relu(6, 10), conv_norm_relu(10, 14)
        self.up2, self.merge2 = nn.ConvTranspose2d(14, 9, 2, stride=2), conv_norm_relu(9 + 10, 8)
        self.up1, self.merge1 = nn.Upsample(scale_factor=2, mode="bilinear"), conv_norm_relu(8 + 6, 7)
        self.head = nn.Conv2d(7, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down1(images)
        coarse = self.down2(F.max_pool2d(fine, 2))
        hidden = self.middle(F.max_pool2d(coarse, 2))
        hidden = self.merge2(torch.cat([self.up2(hidden), coarse], 1))
        hidden = self.merge1(torch.cat([self.up1(hidden), fine], 1))
        return self.head(hidden)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, self.conv(F.relu(self.norm(images)))], 1)


class DenseNet(nn.Module):
    """Each layer reads what all layers before it wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.layer1, self.layer2 = DenseLayer(6, 4), DenseLayer(10, 7)
        self.transition = nn.Sequential(nn.BatchNorm2d(17), nn.ReLU(), nn.Conv2d(17, 8, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.transition(self.layer2(self.layer1(self.stem(images)))).mean((2, 3)))


class Encoder(nn.Module):
    """PyTorch's own transformer between two linear maps."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.read = nn.Linear(5, 12)
        layer = nn.TransformerEncoderLayer(
            12, nhead=3, dim_feedforward=22, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(12) if norm_first else None, enable_nested_tensor=False
        )
        self.head = nn.Linear(12, 6)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.encoder(self.read(series)).mean(1))


class Recurrent(nn.Module):
    """A language model over an LSTM or a GRU of two layers."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(23, 10)
        self.recurrent = cell(10, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 23)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.embedding(tokens))
        return self.head(hidden)


class LowRankAdapted(nn.Module):
    """A frozen linear map with a trained update of low rank beside it (LoRA, arXiv:2106.09685)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(inputs, outputs).requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.frozen(inputs) + 2.0 * inputs @ self.A.T @ self.B.T


def lora_net() -> nn.Module:
    return nn.Sequential(LowRankAdapted(5, 11, rank=3), nn.GELU(), LowRankAdapted(11, 4, rank=2))


class VAE(LightningModule):
    """A variational autoencoder with one map for mean and log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 11), nn.GELU(), nn.Linear(11, 2 * 3))
        self.decoder = nn.Sequential(nn.Linear(3, 9), nn.GELU(), nn.Linear(9, 5))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        mean, log_variance = self.encoder(batch).chunk(2, dim=-1)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        loss = F.mse_loss(self.decoder(latent), batch) + divergence
        self.log("divergence", divergence)
        return loss


class MixerBlock(nn.Module):
    def __init__(self, patches: int, channels: int, over_patches: int, over_channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.patches = nn.Sequential(nn.Linear(patches, over_patches), nn.GELU(), nn.Linear(over_patches, patches))
        self.channels = nn.Sequential(nn.Linear(channels, over_channels), nn.GELU(), nn.Linear(over_channels, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.patches(self.norm1(hidden).transpose(1, 2)).transpose(1, 2)
        return hidden + self.channels(self.norm2(hidden))


class Mixer(nn.Module):
    """MLPs over patches and over channels by turns (arXiv:2105.01601)."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(3, 10, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(4, 10, 7, 13), MixerBlock(4, 10, 8, 14))
        self.norm, self.head = nn.LayerNorm(10), nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.read(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(hidden)).mean(1))


class GraphConvolution(nn.Module):
    """Two graph convolutions that gather the messages along edges and add them up at their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 11), nn.Linear(11, 7), nn.Linear(7, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = F.relu(self._spread(self.first(nodes), edges))
        return self.head(F.relu(self._spread(self.second(hidden), edges)))

    @staticmethod
    def _spread(messages: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        arrived = torch.zeros_like(messages).index_add_(0, target, messages[source])
        degree = torch.zeros(len(messages)).index_add_(0, target, torch.ones(len(target)))
        return arrived / degree.clamp(min=1).unsqueeze(-1)


def ring(nodes: int) -> Tensor:
    """The edges of a ring with a chord, as rows of sources and targets."""
    source = torch.arange(nodes)
    return torch.stack([torch.cat([source, torch.tensor([0])]), torch.cat([(source + 1) % nodes, torch.tensor([4])])])


class Siamese(nn.Module):
    """One tower, run on both of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 11), nn.GELU(), nn.Linear(11, 7))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.cosine_similarity(self.tower(left), self.tower(right), dim=-1)


class GAN(LightningModule):
    """Two networks against each other, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(3, 11), nn.GELU(), nn.Linear(11, 5))
        self.discriminator = nn.Sequential(nn.Linear(5, 9), nn.LeakyReLU(0.2), nn.Linear(9, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        fake = self(torch.randn(len(batch), 3, device=self.device))

        self.toggle_optimizer(discriminator)
        real_score, fake_score = self.discriminator(batch), self.discriminator(fake.detach())
        loss = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        discriminator.zero_grad()
        self.manual_backward(loss)
        discriminator.step()
        self.untoggle_optimizer(discriminator)

        self.toggle_optimizer(generator)
        loss = F.softplus(-self.discriminator(fake)).mean()
        generator.zero_grad()
        self.manual_backward(loss)
        generator.step()
        self.untoggle_optimizer(generator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(self.generator.parameters()), torch.optim.Adam(self.discriminator.parameters())]
