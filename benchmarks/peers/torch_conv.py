"""PyTorch by hand, as in `torch_loop.py`, with the network of `conv_work.py` and channels last in memory.

Where the stride is 2 PyTorch pads at the other end than TensorFlow, so that this is that network in a mirror.
"""

import conv_work
import torch
import torch_loop
import work
from torch.nn import functional


def loss(w, image, one_hot, noise):
    def conv(x, number, **kwargs):
        return functional.conv2d(x, w[f"W{number}"], w[f"b{number}"], **kwargs)

    def deconv(x, number, **kwargs):
        return functional.conv_transpose2d(x, w[f"W{number}"], w[f"b{number}"], stride=2, output_padding=1, **kwargs)

    def block(h, i, j):
        return h + conv(functional.silu(conv(functional.silu(h), i, padding=1)), j, padding=1)

    def dense(parts, number):
        return torch.addmm(w[f"b{number}"], torch.cat(parts, dim=-1), w[f"W{number}"])

    def label(number):
        return (one_hot @ w[f"V{number}"])[:, :, None, None]

    hidden = conv(image.view(-1, 1, 28, 28), 1, stride=2, padding=2) + label(1)
    hidden = conv(block(hidden, 2, 3), 4, stride=2, padding=1)
    hidden = functional.silu(block(hidden, 5, 6)).permute(0, 2, 3, 1).flatten(1)
    hidden = functional.silu(dense([hidden, one_hot], 7))
    mean, raw = torch.addmm(w["b8"], hidden, w["W8"]).float().chunk(2, dim=-1)
    stddev = functional.softplus(raw + work.UNIT_SCALE)
    hidden = functional.silu(dense([mean + stddev * noise, one_hot], 9))
    hidden = dense([hidden, one_hot], 10).view(len(image), 7, 7, -1).permute(0, 3, 1, 2)
    hidden = deconv(block(hidden, 11, 12), 13, padding=1) + label(13)
    hidden = deconv(functional.silu(block(hidden, 14, 15)), 16, padding=2)
    return torch_loop.negative_elbo(mean, stddev, hidden.flatten(1) + w["p"], image)


def tensors(weights):
    """Kernels of convolutions as PyTorch has them: the last two axes first, and the other way round."""
    found = {name: torch.from_numpy(value) for name, value in weights.items()}
    return {
        name: value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in found.items()
    }


if __name__ == "__main__":
    task = work.load()
    torch_loop.run(task, tensors(conv_work.initial(task)), loss)
