"""The matrix products of a step with W alone, forward and backward, by the library that PyTorch has for them."""

import functools
import math

import torch
import work


def dense(batch_size, rows, columns):
    """Calls for a layer's products, on inputs of their own: forward, gradient by weight, gradient by input."""
    x, w, y = torch.rand(batch_size, rows), torch.rand(rows, columns), torch.rand(batch_size, columns)
    return [
        functools.partial(torch.mm, x, w, out=torch.empty_like(y)),
        functools.partial(torch.mm, x.T, y, out=torch.empty_like(w)),
        functools.partial(torch.mm, y, w.T, out=torch.empty_like(x)),
    ]


def run(task, layers):
    """Takes turns with the calls of all layers, in as many steps as others have."""
    first, *others = layers
    # Nobody asks for the gradient by the image.
    calls = sum(others, first[:2])

    def train(number):
        for _ in range(task.steps):
            for call in calls:
                call()
        return math.nan

    with torch.no_grad():
        work.take_turns(train)


if __name__ == "__main__":
    task = work.load()
    run(task, [dense(task.batch_size, *w.shape) for name, w in task.initial().items() if name[0] == "W"])
