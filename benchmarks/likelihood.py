"""Importance-weighted log p(x|y) of runs on all test images, under the true labels only.

    python benchmarks/likelihood.py --num-importance-samples 100 RUN ...

`tfp-cvae evaluate` gives the same number among others; this is what to compare many runs by. Prints rows of CSV.
"""

import argparse

from tfp_cvae import Estimate, Run, importance_estimate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--num-importance-samples", type=int, default=100)
    arguments = parser.parse_args()
    print("run,recipe_epochs,training_seed,training_seconds,n,K,elbo,elbo_se,log_p_x_given_y,log_p_x_given_y_se")
    for path in arguments.runs:
        run = Run.load(path)
        cvae, test = run.model(), run.training_data().test
        found = importance_estimate(
            cvae,
            test.binarized(run.config.binarization),
            test.labels if cvae.num_classes else None,
            num_samples=arguments.num_importance_samples,
            jit_compile=run.config.suits_xla,
        )
        elbo, log_likelihood = Estimate.of(found.elbo), Estimate.of(found.log_likelihood)
        numbers = [elbo.mean, elbo.standard_error, log_likelihood.mean, log_likelihood.standard_error]
        seconds = sum(row["seconds"] for row in run.history())
        words = [run.path.name, run.config.epochs, run.config.seed, f"{seconds:.0f}"]
        print(*words, len(test), arguments.num_importance_samples, *(f"{number:.3f}" for number in numbers), sep=",")


if __name__ == "__main__":
    main()
