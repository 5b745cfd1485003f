"""The convolutions and matrix products of a step with W alone, as `products.py`, of the network of `conv_work.py`."""

import functools

import conv_work
import products
import torch
import work
from torch.nn import functional


def conv(batch_size, layer):
    """Calls for a layer's convolutions, on inputs of their own: forward, gradient by weight, gradient by input."""
    size, _, *channels = layer.kernel
    inputs = channels[layer.is_transposed]
    # PyTorch's library is the fastest one for each, with channels last unless there is only one channel.
    order = torch.contiguous_format if 1 in channels else torch.channels_last
    x = torch.rand(batch_size, inputs, layer.side, layer.side).contiguous(memory_format=order)
    w = torch.rand(layer.kernel).permute(3, 2, 0, 1).contiguous(memory_format=order)
    excess = 1 if layer.is_transposed else 0
    sizes = ([layer.stride] * 2, [size // 2] * 2, [1, 1], layer.is_transposed, [excess] * 2, 1)
    forward = functools.partial(torch.ops.aten.convolution, x, w, None, *sizes)
    y = torch.rand_like(forward())
    backward = functools.partial(torch.ops.aten.convolution_backward, y, x, w, None, *sizes)
    if layer.is_transposed and y.shape[1] == 1:
        forward = functools.partial(deconv_to_one_channel, x, w)
    return [
        forward,
        functools.partial(backward, [False, True, False]),
        functools.partial(backward, [True, False, False]),
    ]


def deconv_to_one_channel(x, w):
    """A matrix product and a sum where its parts overlap: a fraction of the time of PyTorch's own for it."""
    size = w.shape[-1]
    side = 2 * x.shape[-1]
    parts = torch.matmul(w.flatten(1).T, x.flatten(2))
    return functional.fold(parts, (side, side), size, padding=size // 2, stride=2)


if __name__ == "__main__":
    task = work.load()
    layers = conv_work.layers(task).values()
    products.run(
        task,
        [
            conv(task.batch_size, layer) if layer.side else products.dense(task.batch_size, *layer.kernel)
            for layer in layers
        ],
    )
