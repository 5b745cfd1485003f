"""PyTorch by hand: images in memory, fused Adam.

Variants: "compile" has the loss through `torch.compile`, "bfloat16" under autocast, "compile bfloat16" both.
"""

import torch
import work
from torch.nn import functional


def loss(w, image, one_hot, noise):
    hidden = functional.silu(torch.addmm(one_hot @ w["V1"], image, w["W1"]))
    hidden = functional.silu(torch.addmm(one_hot @ w["V2"], hidden, w["W2"]))
    mean, raw = torch.addmm(w["b3"], hidden, w["W3"]).chunk(2, dim=-1)
    stddev = functional.softplus(raw + work.UNIT_SCALE)
    hidden = functional.silu(torch.addmm(one_hot @ w["V4"], mean + stddev * noise, w["W4"]))
    hidden = functional.silu(torch.addmm(one_hot @ w["V5"], hidden, w["W5"]))
    logits = torch.addmm(w["b6"], hidden, w["W6"])
    return negative_elbo(mean, stddev, logits, image)


def negative_elbo(mean, stddev, logits, image):
    distortion = functional.binary_cross_entropy_with_logits(logits, image, reduction="sum") / len(image)
    rate = 0.5 * (mean.square() + stddev.square() - 1 - 2 * stddev.log()).sum(dim=-1)
    return distortion + rate.mean()


def run(task, weights, loss):
    """Takes turns with what a loss of (weights, image, one_hot, noise) trains."""
    torch.manual_seed(0)
    images, one_hot = torch.from_numpy(task.images), torch.from_numpy(task.one_hot)
    weights = {name: torch.nn.Parameter(value) for name, value in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=1e-3, eps=1e-7, fused=True)
    objective = torch.compile(loss) if "compile" in task.variant else loss

    def train(number):
        order = torch.randperm(len(images))
        total = 0.0
        for step in range(task.steps):
            index = order[step * task.batch_size : (step + 1) * task.batch_size]
            grey = images[index].float()
            image = (torch.rand_like(grey) * 255 < grey).float()
            noise = torch.randn(task.batch_size, task.latent_size)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in task.variant):
                value = objective(weights, image, one_hot[index], noise)
            value.backward()
            optimizer.step()
            total += value.detach()
        return float(total) / task.steps

    held_out, labels = map(torch.from_numpy, task.held_out)
    noise = torch.randn(len(held_out), task.latent_size, generator=torch.Generator().manual_seed(0))

    def of_test():
        with torch.no_grad():
            return loss(weights, held_out, labels, noise)

    work.take_turns(train, of_test)


if __name__ == "__main__":
    task = work.load()
    run(task, {name: torch.from_numpy(value) for name, value in task.initial().items()}, loss)
