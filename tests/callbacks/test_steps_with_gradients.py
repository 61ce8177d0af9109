"""Training steps that differentiate by themselves, or in a way of their own: traced, and trained as without us."""

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.callbacks.test_untouched_training import assert_identical
from tests.callbacks.trainings import Net, outcome


class Swish(torch.autograd.Function):
    """Written in the older style, in which `forward` is given the context."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs * inputs.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        sigmoid = inputs.sigmoid()
        return gradient * sigmoid * (1 + inputs * (1 - sigmoid))


class OwnFunction(Net):
    def forward(self, images):
        return self.head(Swish.apply(self.hidden(Swish.apply(self.norm(self.conv(images))).flatten(1))))


class Penalized(Net):
    """Holds the gradient of its outputs with respect to its inputs near one (arXiv:1704.00028)."""

    def training_step(self, batch, batch_idx):
        images = batch[0].requires_grad_()
        (gradient,) = torch.autograd.grad(self(images).sum(), images, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return super().training_step(batch, batch_idx) + penalty


class InnerStep(Net):
    """Differentiates its loss through one step of gradient descent of its head (arXiv:1703.03400)."""

    def training_step(self, batch, batch_idx):
        (images, labels), weight = batch, self.head.weight
        features = torch.tanh(self.hidden(F.relu(self.norm(self.conv(images))).flatten(1)))
        (gradient,) = torch.autograd.grad(F.cross_entropy(self.head(features), labels), weight, create_graph=True)
        return F.cross_entropy(F.linear(features, weight - 0.1 * gradient, self.head.bias), labels)


class ReadsGradients(Net):
    """Optimizes by hand, and scales its step by the size of the gradient that it reads."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([parameter.grad.norm() for parameter in self.parameters()]).norm()
        self.log("norm", norm)
        for parameter in self.parameters():
            parameter.grad.div_(1 + norm)
        optimizer.step()


class Checkpointed(Net):
    reentrant = False

    def forward(self, images):
        features = checkpoint(lambda given: F.relu(self.norm(self.conv(given))), images, use_reentrant=self.reentrant)
        return self.head(torch.tanh(checkpoint(self.hidden, features.flatten(1), use_reentrant=self.reentrant)))


class CheckpointedReentrant(Checkpointed):
    reentrant = True


class Adversarial(LightningModule):
    """A generator against a critic whose weights are clipped, in turns, by two optimizers (arXiv:1701.07875)."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 36))
        self.critic = nn.Sequential(nn.Linear(36, 9), nn.LeakyReLU(0.2), nn.Linear(9, 1))

    def configure_optimizers(self):
        return [torch.optim.RMSprop(net.parameters(), lr=0.01) for net in (self.generator, self.critic)]

    def training_step(self, batch, batch_idx):
        real = batch[0].flatten(1)
        fake = self.generator(torch.randn(len(real), 4))
        for optimizer, net in zip(self.optimizers(), (self.generator, self.critic), strict=True):
            self.toggle_optimizer(optimizer)
            if net is self.generator:
                loss = -self.critic(fake).mean()
                self.manual_backward(loss)
            else:
                loss = self.critic(fake.detach()).mean() - self.critic(real).mean()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        for parameter in self.critic.parameters():
            parameter.data.clamp_(-0.1, 0.1)


class Language(LightningModule):
    """A small GPT-2, which computes its activations twice to keep none."""

    def __init__(self, **settings):
        super().__init__()
        config = transformers.GPT2Config(
            vocab_size=31, n_positions=8, n_embd=12, n_layer=1, n_head=3, bos_token_id=0, eos_token_id=0
        )
        self.model = transformers.GPT2LMHeadModel(config)
        self.model.gradient_checkpointing_enable(**settings)

    def training_step(self, batch, batch_idx):
        tokens = (batch[0].flatten(1)[:, :7].abs() * 10).long().clamp(max=30)
        return self.model(input_ids=tokens, labels=tokens).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


IMAGES = {"conv": 6, "hidden": 8}
GPT2 = {
    "model.transformer.wte": 12,
    "model.transformer.h.0.attn.c_attn.heads": 3,
    "model.transformer.h.0.mlp.c_fc": 48,
}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (OwnFunction, IMAGES),
        (Penalized, IMAGES),
        (InnerStep, IMAGES),
        (ReadsGradients, IMAGES),
        (Checkpointed, IMAGES),
        (CheckpointedReentrant, IMAGES),
        (Adversarial, {"generator.0": 7, "generator.0.2": 4, "critic.0": 9}),  # its noise, 4 numbers, may be permuted
        (Language, GPT2),
        (lambda: Language(gradient_checkpointing_kwargs={"use_reentrant": True}), GPT2),
    ],
)
def test_its_symmetries_are_found_and_its_training_is_untouched(tmp_path, build, expected):
    without, _, _ = outcome(tmp_path / "without", 0, False, build)
    with_monitors, (monitor, _), _ = outcome(tmp_path / "with", 0, True, build)
    groups = {group.name: group.size for group in monitor.symmetries if group.kind == "permutation"}
    assert groups == expected
    assert all(group.verified for group in monitor.symmetries)
    assert not monitor.symmetries.without_rule
    assert not monitor.symmetries.rejected
    assert_identical(with_monitors, without)
