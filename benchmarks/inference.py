"""Evaluation and generation beside the matrix products that they need, and what a user waits for at a start.

    pip install ".[benchmarks]" && python benchmarks/inference.py --rounds 5

The model is the MLP of `peers/work.py` with random weights, on which none of this depends. Evaluation: log p(x|y) of
test images by importance sampling, K samples each, in latents weighed a second; its floor are the products of the
decoder with as many latents, as PyTorch's library does them. Generation: `cvae.generate` of one image, and of 1,000 at
once. Prints medians over the rounds with the smallest and the largest; a ratio is of the same round.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from tfp_cvae import commands

BATCH_SIZE = 1000
# Of the decoder, without the label.
SHAPES = [(40, 500), (500, 500), (500, 784)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--num-samples", type=int, default=5000, help="importance samples K for each image")
    given = parser.parse_args()
    commands.import_tensorflow()
    from tfp_cvae.build import build_cvae
    from tfp_cvae.sources import load_dataset

    print(f"{os.cpu_count()} processors, {given.rounds} rounds\n")
    for name, code in (
        ("tfp-cvae --help", "from tfp_cvae import cli; cli.main(['--help'])"),
        ("import tfp_cvae, load_dataset", "import tfp_cvae; tfp_cvae.load_dataset"),
        ("import tensorflow, tensorflow_probability", "import tensorflow, tensorflow_probability"),
    ):
        wall, processor = zip(*(started(code) for _ in range(given.rounds)), strict=True)
        print(f"{name:44}{spread(wall, '.2f')} s, {spread(processor, '.2f')} s of the processor")

    test = load_dataset("mnist5k").test
    images = test.binarized("dynamic")[: given.num_images]
    labels = test.labels[: given.num_images]
    cvae = build_cvae((28, 28, 1), 10, latent_size=40)
    evaluation(cvae, images, labels, given)
    generation(cvae, given.rounds)


def started(code):
    """Seconds of a Python process, and of the processor."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, processor


def evaluation(cvae, images, labels, given):
    from tfp_cvae.importance import importance_estimate

    def measured():
        importance_estimate(cvae, images, labels, num_samples=given.num_samples, jit_compile=True)

    latents = len(images) * given.num_samples
    weights = [torch.rand(shape) for shape in SHAPES]
    inputs = [torch.rand(BATCH_SIZE, rows) for rows, _ in SHAPES]
    outputs = [torch.empty(BATCH_SIZE, columns) for _, columns in SHAPES]

    def products():
        for _ in range(latents // BATCH_SIZE):
            for left, right, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(left, right, out=out)

    speeds = {"evaluation": [], "products": []}
    with torch.no_grad():
        for _ in range(given.rounds):
            speeds["evaluation"].append(latents / seconds(measured))
            speeds["products"].append(latents / seconds(products))
    ratios = [one / other for one, other in zip(*speeds.values(), strict=True)]
    print(
        f"\nevaluation, K = {given.num_samples:,}, {len(images)} images, XLA, its compiling included; latents a second:"
    )
    print(f"{'importance_estimate':44}{spread(speeds['evaluation'], ',.0f')}")
    print(f"{'products of the decoder alone':44}{spread(speeds['products'], ',.0f')}")
    print(f"{'evaluation against its products':44}{spread(ratios, '.2f')}")


def generation(cvae, rounds):
    def many():
        cvae.generate(np.arange(1000) % 10, seed=0).numpy()

    single = [1e3 * seconds(lambda: cvae.generate(3, seed=0).numpy()) for _ in range(20 + 100 * rounds)][20:]
    batch = [1000 / seconds(many) for _ in range(1 + rounds)][1:]
    print(f"\ngenerate, one image: p50 {np.percentile(single, 50):.1f} ms, p99 {np.percentile(single, 99):.1f} ms")
    print(f"generate, 1,000 images at once: {spread(batch, ',.0f')} images a second")


def seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
