"""What images without label are worth: errors on test images of runs that learned from few labels.

    python benchmarks/few_labels.py RUN ...

A row for each run of M1, M2 or M1+M2, with errors in percent on the test images, binarized once with seed 0, or grey:
that of q(y|x); and of the latter two that of the same classifier trained on labelled images alone, moved, slanted and
bent likewise, and that of Bayes' rule with K importance samples, on some images.
"""

import argparse
import csv
import sys

import numpy as np

from tfp_cvae import commands

commands.import_tensorflow()
import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

from tfp_cvae import augmentation, likelihood_under_each_label  # noqa: E402
from tfp_cvae.classification import label_posterior_accuracy  # noqa: E402
from tfp_cvae.run import Run  # noqa: E402

COLUMNS = (
    "run",
    "num_labels",
    "seed",
    "epochs",
    "train_seconds",
    "label_posterior",
    "label_posterior_grey",
    "supervised",
    "supervised_grey",
    "bayes",
    "bayes_images",
    "k",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--num-importance-samples", type=int, default=100)
    parser.add_argument("--num-images", type=int, default=1000, help="test images for Bayes' rule")
    parser.add_argument("--steps", type=int, default=2000, help="of the classifier that has labels alone")
    given = parser.parse_args()
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(COLUMNS)
    for path in given.runs:
        run = Run.load(path)
        config = run.config
        if config.num_labels is None:
            parser.error(f"{path}: expected a run with --num-labels")
        data, cvae = run.training_data(), run.model()
        test, label = [data.test.binarized(way) for way in (config.binarization, "none")], data.test.labels
        seconds = round(sum(row["seconds"] for row in run.history()))
        row = [run.path.name, config.num_labels, config.seed, config.epochs, seconds]
        for image in test:
            row.append(percent(1 - label_posterior_accuracy(cvae, data.train, image, label, config.binarization).mean))
        if config.semi_supervised:
            alone = supervised(cvae.classifier, data, config, given.steps)
            row += [percent(alone.predict(image, verbose=0).argmax(axis=1) != label) for image in test]
            chosen = np.sort(np.random.default_rng(0).permutation(len(label))[: given.num_images])
            likelihood = likelihood_under_each_label(cvae, test[0][chosen], num_samples=given.num_importance_samples)
            by_bayes = likelihood.blind.argmax(axis=1)
            row += [percent(by_bayes != label[chosen]), len(chosen), given.num_importance_samples]
        table.writerow(row + [""] * (len(COLUMNS) - len(row)))
        sys.stdout.flush()


def supervised(classifier, data, config, steps):
    """The network of q(y|x) with new weights, trained on the labelled images alone."""
    seed = config.seed
    keras.utils.set_random_seed(seed)
    classifier = keras.Model.from_config(classifier.get_config())
    labelled = data.train.labelled()
    batches = labelled.batches(
        min(config.batch_size, len(labelled)), binarization=config.binarization, seed=seed, drop_remainder=True
    ).repeat()

    def deformed(index, batch):
        (image, one_hot), _ = batch
        noise = tf.random.stateless_normal(
            [tf.shape(image)[0], augmentation.NUM_RANDOM], [seed, tf.cast(index, tf.int32)]
        )
        return augmentation.deform(image, config.deformation * noise), one_hot

    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)),
        keras.losses.CategoricalCrossentropy(),
    )
    classifier.fit(batches.enumerate().map(deformed), steps_per_epoch=steps, verbose=0)
    return classifier


def percent(wrong):
    return round(100 * float(np.mean(wrong)), 2)


if __name__ == "__main__":
    main()
