"""The matrix products of a step with W alone, forward and backward, by the library that PyTorch has for them."""

import math

import torch
import work


def main():
    task = work.load()
    weights = [torch.from_numpy(value) for name, value in task.initial().items() if name[0] == "W"]
    inputs = [torch.rand(task.batch_size, weight.shape[0]) for weight in weights]
    outputs = [torch.rand(task.batch_size, weight.shape[1]) for weight in weights]
    results = [
        (torch.empty_like(y), torch.empty_like(w), torch.empty_like(x))
        for x, w, y in zip(inputs, weights, outputs, strict=True)
    ]

    def train(number):
        for _ in range(task.steps):
            for layer, (x, w, y, (forward, by_weight, by_input)) in enumerate(
                zip(inputs, weights, outputs, results, strict=True)
            ):
                torch.mm(x, w, out=forward)
                torch.mm(x.T, y, out=by_weight)
                # Nobody asks for the gradient by the image.
                if layer:
                    torch.mm(y, w.T, out=by_input)
        return math.nan

    with torch.no_grad():
        work.take_turns(train)


if __name__ == "__main__":
    main()
