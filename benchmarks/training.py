"""The same training in this package and in others, side by side in one run.

    pip install ".[benchmarks]" && python benchmarks/training.py --rounds 5

Each trains in a process of its own, one epoch at a time, and they take turns, as the machine may have other work to do.
An epoch has all that the training needs, data and random numbers included; `peers/work.py` says what it is. Prints a
row of CSV for each epoch, and a table of images a second and of ratios: the median over the rounds, with the smallest
and the largest, of what each does, and of what the first one does against it in the same round.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

PEERS = {
    "tfp_cvae": ("package.py", ""),
    "tfp_cvae, a program for each step": ("package.py", "keras"),
    "tfp_cvae, without XLA": ("package.py", "kernels"),
    "tfp_cvae, 2 workers": ("package.py", "2 workers"),
    "JAX, jitted scan": ("jax_scan.py", ""),
    "PyTorch, eager": ("torch_loop.py", ""),
    "PyTorch, compile": ("torch_loop.py", "compile"),
    "PyTorch, bfloat16": ("torch_loop.py", "bfloat16"),
    "Keras 3, train_step": ("keras3_step.py", ""),
    "TFP, tfpl and fit": ("tfpl_fit.py", ""),
    "matrix products alone": ("products.py", ""),
}
FOLDER = pathlib.Path(__file__).parent / "peers"


class Peer:
    """A process that trains an epoch when it is told to."""

    def __init__(self, name, flags):
        script, variant = PEERS[name]
        words = [sys.executable, FOLDER / script, "--variant", variant, *flags]
        pipe, self.errors = subprocess.PIPE, tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(list(map(str, words)), stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def epoch(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"error: {self.process.args[1]} has ended: {self.errors.read().splitlines()[-1:]}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each that are measured")
    parser.add_argument("--warm-up", type=int, default=1, help="epochs of each before, which compile")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()
    flags = ["--dataset", given.dataset, "--batch-size", str(given.batch_size)]

    from tfp_cvae.sources import load_dataset

    count = len(load_dataset(given.dataset).train) // given.batch_size * given.batch_size
    peers = {name: Peer(name, flags) for name in given.peers}
    found = {name: [] for name in peers}
    print("round,name,images_per_second,loss")
    for number in range(1 - given.warm_up, given.rounds + 1):
        for name, peer in peers.items():
            epoch = peer.epoch()
            speed = count / epoch["seconds"]
            print(f'{number},"{name}",{speed:.0f},{epoch["loss"]:.2f}', flush=True)
            if number > 0:
                found[name].append(speed)
    for peer in peers.values():
        peer.close()

    print(f"\n{count} images an epoch, batch {given.batch_size}, {given.rounds} rounds, {os.cpu_count()} processors")
    print(f"{'':36}{'images a second':>28}{'times as fast as it':>28}")
    for name, speeds in found.items():
        ratios = [own / other for own, other in zip(found[given.peers[0]], speeds, strict=True)]
        print(f"{name:36}{spread(speeds, '.0f'):>28}{spread(ratios, '.2f'):>28}")


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
