"""The same training in this package and in others, side by side in one run.

    pip install ".[benchmarks]" && python benchmarks/training.py --rounds 5

Each trains in a process of its own, one epoch at a time, and they take turns, as the machine may have other work to do.
An epoch has all that the training needs, data and random numbers included; `peers/work.py` says what it is. Prints a
row of CSV for each epoch, and a table of images a second and of ratios: the median over the rounds, with the smallest
and the largest, of what each does, and of what the first one does against it in the same round. The seconds to start
are those from the start of the process to the end of the first epoch, less the quickest one: imports, data, compiling.
The memory is the most that the process, and those that it has started itself, have had at any time.

    python benchmarks/training.py --until -95 -91 --peers tfp_cvae "JAX, jitted scan" "PyTorch, eager"

trains each until the ELBO of the test images, binarized once, is that high, and prints the seconds of its epochs until
then, those of compiling in the first one among them, and without those of measuring it.

    python benchmarks/training.py --network conv

trains the convolutional network of the recipe `best` instead of the MLP (`peers/conv_work.py`), where it is known.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peers import work

PEERS = {
    "mlp": {
        "tfp_cvae": ("package.py", ""),
        "tfp_cvae, a program for each step": ("package.py", "keras"),
        "tfp_cvae, without XLA": ("package.py", "kernels"),
        "tfp_cvae, TensorFlow's own kernels": ("package.py", "own kernels"),
        "tfp_cvae, bfloat16": ("package.py", "bfloat16"),
        "tfp_cvae, bfloat16, Keras's Adam": ("package.py", "bfloat16, Keras's Adam"),
        "tfp_cvae, averaged weights": ("package.py", "average"),
        "tfp_cvae, own callbacks": ("package.py", "callbacks"),
        "tfp_cvae, callbacks of train": ("package.py", "train"),
        "tfp_cvae, 2 workers": ("package.py", "2 workers"),
        "JAX, jitted scan": ("jax_scan.py", ""),
        "PyTorch, eager": ("torch_loop.py", ""),
        "PyTorch, compile": ("torch_loop.py", "compile"),
        "PyTorch, bfloat16": ("torch_loop.py", "bfloat16"),
        "PyTorch, compile, bfloat16": ("torch_loop.py", "compile bfloat16"),
        "Keras 3, train_step": ("keras3_step.py", ""),
        "TFP, tfpl and fit": ("tfpl_fit.py", ""),
        "matrix products alone": ("products.py", ""),
    },
    "conv": {
        "tfp_cvae": ("package.py", ""),
        "tfp_cvae, TensorFlow's own kernels": ("package.py", "own kernels"),
        "tfp_cvae, bfloat16": ("package.py", "bfloat16"),
        "tfp_cvae, own callbacks": ("package.py", "callbacks"),
        "tfp_cvae, callbacks of train": ("package.py", "train"),
        "tfp_cvae, 2 workers": ("package.py", "2 workers"),
        "JAX, jitted step": ("jax_conv.py", ""),
        "PyTorch, eager": ("torch_conv.py", ""),
        "PyTorch, compile": ("torch_conv.py", "compile"),
        "PyTorch, bfloat16": ("torch_conv.py", "bfloat16"),
        "PyTorch, compile, bfloat16": ("torch_conv.py", "compile bfloat16"),
        "convolutions and products alone": ("products_conv.py", ""),
    },
}
MEASURE_NO_TEST = ("keras3_step.py", "products.py", "products_conv.py", "2 workers")
FOLDER = pathlib.Path(__file__).parent / "peers"


class Peer:
    """A process that trains an epoch when it is told to, and starts with the first one."""

    def __init__(self, script, variant, flags):
        self.words = [str(word) for word in (sys.executable, FOLDER / script, "--variant", variant, *flags)]
        # Of all that use TensorFlow: as `tfp-cvae` has it, and TensorFlow itself on newer processors.
        self.environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0" if variant == "own kernels" else "1"}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = None

    def epoch(self):
        if self.process is None:
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=self.environment,
            )
        return self.ask("go")

    def ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"error: {self.words[1]}: exit status {self.process.returncode}\n{self.errors.read()}")
        return json.loads(line)

    def close(self):
        """Ends the process; returns the most memory that it has had, in MiB."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        peak = sum(peak_kib(process) for process in (self.process.pid, *children)) / 1024
        self.process.stdin.close()
        self.process.wait()
        return peak


def peak_kib(process):
    """Largest resident memory of a process so far."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each that are measured")
    parser.add_argument("--warm-up", type=int, default=1, help="epochs of each before, which compile")
    parser.add_argument("--network", choices=PEERS, default="mlp", help="what all train")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="by default all that have the network")
    parser.add_argument("--until", type=float, nargs="+", metavar="ELBO", help="train until the ELBO is that high")
    parser.add_argument("--figure", metavar="PATH", help="draw the images a second, as .png")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()
    known = PEERS[given.network]
    given.peers = given.peers or list(known)
    check_peers(parser, f"--network {given.network}", given.peers, known)
    if given.until:
        able = [name for name, peer in known.items() if not set(MEASURE_NO_TEST) & set(peer)]
        check_peers(parser, "--until", given.peers, able)

    from tfp_cvae.sources import load_dataset

    data = load_dataset(given.dataset)
    with tempfile.TemporaryDirectory() as folder:
        arrays = f"{folder}/arrays.npz"
        work.save(data, arrays)
        flags = ["--dataset", given.dataset, "--batch-size", given.batch_size, "--network", given.network]
        peers = {name: Peer(*known[name], [*flags, "--arrays", arrays]) for name in given.peers}
        if given.until:
            train_until(peers, sorted(given.until))
        else:
            train_in_turn(peers, len(data.train) // given.batch_size * given.batch_size, given)


def train_in_turn(peers, count, given):
    """Trains each for an epoch of as many images at a time, and prints how fast they were."""
    found, first, memory = {name: [] for name in peers}, {}, {}
    print("round,name,images_per_second,loss")
    for number in range(1 - given.warm_up, given.rounds + 1):
        for name, peer in peers.items():
            begin = time.perf_counter()
            epoch = peer.epoch()
            first.setdefault(name, time.perf_counter() - begin)
            speed = count / epoch["seconds"]
            print(f'{number},"{name}",{speed:.0f},{epoch["loss"]:.2f}', flush=True)
            if number > 0:
                found[name].append(speed)
    for name, peer in peers.items():
        memory[name] = peer.close()

    print(f"\n{count} images an epoch, batch {given.batch_size}, {given.rounds} rounds, {os.cpu_count()} processors")
    print(versions())
    print(f"{'':36}{'images a second':>28}{'times as fast as it':>28}{'start, s':>10}{'MiB':>8}")
    for name, speeds in found.items():
        ratios = [own / other for own, other in zip(found[given.peers[0]], speeds, strict=True)]
        start = first[name] - count / max(speeds)
        print(f"{name:36}{spread(speeds, '.0f'):>28}{spread(ratios, '.2f'):>28}{start:>10.1f}{memory[name]:>8.0f}")
    if given.figure:
        draw(found, given.figure)


def check_peers(parser, flag, names, able):
    if unable := [name for name in names if name not in able]:
        quoted = [", ".join(f'"{name}"' for name in group) for group in (able, unable)]
        parser.error(f"{flag}: expected --peers of {quoted[0]}, got {quoted[1]}")


def versions():
    installed = {part.metadata["Name"]: part.version for part in importlib.metadata.distributions()}
    names = ("tensorflow", "tf_keras", "tensorflow-probability", "keras", "jax", "torch")
    return ", ".join(f"{name} {installed[name]}" for name in names if name in installed)


def draw(found, path):
    """Images a second of each: the median over the rounds, and a line from the smallest to the largest."""
    import matplotlib.figure

    names = sorted(found, key=lambda name: statistics.median(found[name]))
    medians = [statistics.median(found[name]) for name in names]
    below = [median - min(found[name]) for name, median in zip(names, medians, strict=True)]
    above = [max(found[name]) - median for name, median in zip(names, medians, strict=True)]
    figure = matplotlib.figure.Figure(figsize=(8, 0.6 + 0.34 * len(names)), layout="constrained")
    place = figure.subplots()
    colors = ["C0" if name.startswith("tfp_cvae") else "silver" for name in names]
    bars = place.barh(names, medians, xerr=[below, above], color=colors, error_kw={"elinewidth": 1.2, "capsize": 2.5})
    for name, bar in zip(names, bars, strict=True):
        if name.endswith("products alone"):
            # Nobody's training: what one in float32 could reach at most.
            bar.set(facecolor="white", edgecolor="silver", hatch="///")
    place.xaxis.set_major_formatter("{x:,.0f}")
    place.set_xlabel("training images a second: median, slowest and fastest round")
    place.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def train_until(peers, bounds):
    """Trains each until its ELBO is as high as the highest of the bounds, which are in rising order."""
    seconds = dict.fromkeys(peers, 0.0)
    reached = {name: {} for name in peers}
    print("epoch,name,seconds,elbo")
    for number in itertools.count(1):
        going_on = {name: peer for name, peer in peers.items() if bounds[-1] not in reached[name]}
        if not going_on:
            break
        for name, peer in going_on.items():
            seconds[name] += peer.epoch()["seconds"]
            elbo = peer.ask("test")["elbo"]
            print(f'{number},"{name}",{seconds[name]:.1f},{elbo:.2f}', flush=True)
            for bound in bounds:
                if elbo >= bound:
                    reached[name].setdefault(bound, seconds[name])
    for peer in peers.values():
        peer.close()
    print(f"\nseconds of training to an ELBO of the test images, in nats; {os.cpu_count()} processors")
    print(versions())
    for bound in bounds:
        own, *_ = (times[bound] for times in reached.values())
        for name, times in reached.items():
            print(f"{bound:8} {name:36}{times[bound]:>8.1f} s; the first needs {own / times[bound]:.2f} of it")


def spread(values, form):
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
