"""How many generated images of each class a separate classifier recognises.

python benchmarks/recognition.py RUN [--classifier-dataset mnist] [--count 1000]

The classifier is trained on real images alone, of the run's own data set or another one with the same classes.
"""

import argparse
import json
import sys

import numpy as np

from tfp_cvae.recognition import accuracy, recognised, train_classifier
from tfp_cvae.run import Run
from tfp_cvae.sources import load_dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--classifier-dataset")
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    run = Run.load(arguments.run)
    dataset = load_dataset(arguments.classifier_dataset or run.config.dataset)
    classifier = train_classifier(dataset)
    real = accuracy(classifier, dataset.test.binarized("none"), dataset.test.labels)
    fractions = recognised(classifier, run.model(), count=arguments.count)
    result = {
        "run": run.config.to_dict(),
        "classifier": {"trained on": dataset.name, "accuracy on real test images": round(real, 4)},
        "generated for each class": arguments.count,
        "recognised": dict(zip(run.class_names, np.round(fractions, 4).tolist(), strict=True)),
        "worst": round(float(fractions.min()), 4),
        "mean": round(float(fractions.mean()), 4),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
