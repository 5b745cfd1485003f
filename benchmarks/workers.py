"""What a training step of several workers is made of, and what that says of more of them.

    pip install . && python benchmarks/workers.py --workers 2 4

The MLP 500-500 with 40 latents, 128 images a step in all, float32, without XLA, which workers do not have on a CPU. All
workers are processes of this machine that talk over its loopback, each with one thread on one core. Measured are

    C(b)  a step of one worker on b images
    A(n)  the sum of all gradients over n workers, of each variable by itself as in training, and nothing else
    T(n)  a step of n workers, which the model C(128 / n) + A(n) is compared to

A ring sends 2 (n - 1) / n times the gradients through each worker, in 2 (n - 1) turns, so that on other machines A(n)
is about 2 (n - 1) latency + 2 (n - 1) / n bytes / bandwidth. Medians, of the chief, of sums and of ten steps at once.
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time

from tfp_cvae import commands

BATCH_SIZE = 128
STEPS = 300
STEPS_PER_EXECUTION = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], metavar="N")
    parser.add_argument("--measure", choices=["step", "sum"], help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(given.measure, given.batch_size)))
        return
    print(f"{os.cpu_count()} processors; {BATCH_SIZE} images a step in all; milliseconds")
    print(f"{'workers':>8}{'images each':>12}{'C':>8}{'A':>8}{'C + A':>8}{'T':>8}{'C(128) / T':>12}")
    alone = run("step", 1, BATCH_SIZE)
    print(f"{1:8}{BATCH_SIZE:12}{alone:8.1f}{0:8.1f}{alone:8.1f}{alone:8.1f}{1:12.2f}", flush=True)
    for number in given.workers:
        compute = run("step", 1, BATCH_SIZE // number)
        summing = run("sum", number, BATCH_SIZE)
        step = run("step", number, BATCH_SIZE)
        row = f"{number:8}{BATCH_SIZE // number:12}{compute:8.1f}{summing:8.1f}{compute + summing:8.1f}{step:8.1f}"
        print(f"{row}{alone / step:12.2f}", flush=True)


def run(what, number, batch_size):
    """Milliseconds that the first of as many processes has measured."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    cluster = {"worker": [f"localhost:{free.getsockname()[1]}" for free in sockets]}
    for free in sockets:
        free.close()
    processes = []
    for index in range(number):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        words = [sys.executable, __file__, "--measure", what, "--batch-size", str(batch_size)]
        processes.append(
            subprocess.Popen(
                words,
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    printed = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        if process.returncode:
            raise SystemExit(f"error: exit status {process.returncode}\n{errors}")
    return json.loads(printed[0][0].splitlines()[-1])


def measured(what, batch_size):
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[index % len(processors)]})
    commands.import_tensorflow()
    import tensorflow as tf
    import tf_keras as keras

    from tfp_cvae import distribution
    from tfp_cvae.build import build_cvae
    from tfp_cvae.losses import NegativeELBO
    from tfp_cvae.memory import keep_freed_memory
    from tfp_cvae.optimizers import FusedAdam
    from tfp_cvae.sources import load_dataset

    keep_freed_memory()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = distribution.from_environment()
    data = load_dataset("mnist5k")
    with strategy.scope():
        cvae = build_cvae(data.image_shape, data.num_classes, latent_size=40)
        cvae.compile(FusedAdam(1e-3), loss=NegativeELBO(), steps_per_execution=STEPS_PER_EXECUTION)
    seconds = []
    if what == "sum":
        gradients = [tf.zeros(variable.shape) for variable in cvae.trainable_variables]

        def summed():
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.identity(part) for part in gradients])

        together = tf.function(lambda: strategy.run(summed))
        for _ in range(STEPS):
            begin = time.perf_counter()
            tf.nest.map_structure(lambda part: part.numpy(), strategy.experimental_local_results(together()))
            seconds.append(time.perf_counter() - begin)
    else:
        batches = distribution.distribute(
            lambda share: data.train.batches(batch_size, drop_remainder=True, share=share), strategy
        )
        starts = []
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: starts.append((batch, time.perf_counter()))
        )
        epoch = len(data.train) // batch_size
        cvae.fit(batches, epochs=-(-STEPS // epoch), steps_per_epoch=epoch, callbacks=[clock], verbose=0)
        seconds = [
            (end - begin) / STEPS_PER_EXECUTION
            for (first, begin), (last, end) in itertools.pairwise(starts)
            if last - first == STEPS_PER_EXECUTION
        ]
    # Without the first ones, which trace.
    return 1e3 * statistics.median(seconds[len(seconds) // 10 :])


if __name__ == "__main__":
    main()
