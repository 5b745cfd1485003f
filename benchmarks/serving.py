"""Single-row requests to an exported model through the C++ loader, beside the matrix products that they need.

    python benchmarks/serving.py RUN

exports the model of a run, loads it in a process without Python TensorFlow as a server does, with XLA switched off, and
asks it one row at a time from one client.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 5
SAMPLES = 100

ASK = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from cpp_loader import Session
folder, calls, seconds = sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
begin = time.perf_counter()
session = Session(folder)  # With the shared libraries of TensorFlow.
result = {"load": time.perf_counter() - begin}
image = np.load(sys.argv[5])
for signature, (inputs, outputs) in calls.items():
    rows = {"label": np.array([0]), "seed": np.array([0]), "image": image}
    feeds = {tensor: rows[name] for name, tensor in inputs.items()}
    begin = time.perf_counter()
    session.run(feeds, list(outputs.values()))
    result.setdefault("first", time.perf_counter() - begin)
    for _ in range(5):
        session.run(feeds, list(outputs.values()))
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        session.run(feeds, list(outputs.values()))
        times.append(time.perf_counter() - begin)
    result[signature] = times
print(json.dumps(result))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np
    import stand_ins

    from tfp_cvae.export import export_run
    from tfp_cvae.importance import products_per_second
    from tfp_cvae.run import Run

    run = Run.load(arguments.run)
    cvae = run.model()
    floors = {"generate": products_per_second(cvae, batch_size=1)}
    if cvae.num_classes:
        latents = SAMPLES * cvae.num_classes
        floors["classify"] = products_per_second(cvae, batch_size=latents) / latents
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        version = export_run(run, folder, num_importance_samples=SAMPLES)
        exported = time.perf_counter() - begin
        np.save(pathlib.Path(folder, "image.npy"), run.training_data().test.binarized()[:1])
        calls = {name: stand_ins.signature_tensors(version)[name] for name in floors}
        words = [ROOT / "tests", version, json.dumps(calls), SECONDS, pathlib.Path(folder, "image.npy")]
        answer = subprocess.run(
            [sys.executable, "-c", ASK, *map(str, words)], check=True, capture_output=True, text=True
        ).stdout
        size = sum(file.stat().st_size for file in version.rglob("*") if file.is_file())
    found = json.loads(answer)
    weights = sum(4 * int(np.prod(weight.shape)) for weight in cvae.trainable_variables)
    print(f"{run.config.network}, prior {run.config.prior}; one client, one row a request, {SECONDS} s each")
    print(
        f"export {exported:.1f} s, load {found['load']:.2f} s, first answer after {found['first'] * 1000:.0f} ms more"
    )
    print(f"folder {size / 1e6:.2f} MB, {size / weights:.2f} times the weights")
    for name, floor in floors.items():
        times = np.array(found[name])
        p50, p99 = 1000 * np.quantile(times, [0.5, 0.99])
        rate = len(times) / times.sum()
        print(
            f"{name:9} {rate:8.1f} requests a second, p50 {p50:.2f} ms, p99 {p99:.2f} ms; "
            f"products alone {floor:.1f} a second: {rate / floor:.2f} of them"
        )


if __name__ == "__main__":
    main()
