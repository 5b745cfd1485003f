"""What a fresh process loads is what was saved, to the last bit."""

import subprocess
import sys

import numpy as np
import tf_keras as keras

from tfp_cvae.build import build_cvae
from tfp_cvae.losses import ELBO, NegativeELBO

LOAD = """
import sys
import numpy as np
import tf_keras as keras
import tfp_cvae
for folder in sys.argv[1:]:
    cvae = keras.models.load_model(f"{folder}/cvae.keras")
    data = np.load(f"{folder}/data.npz")
    image, one_hot = data["image"], data["one_hot"]
    posterior = cvae.posterior(image, one_hot)
    likelihood = cvae.likelihood(data["latent"], one_hot)
    np.savez(
        f"{folder}/loaded.npz",
        mean=posterior.mean(),
        stddev=posterior.stddev(),
        probability=likelihood.mean(),
        log_prob=likelihood.log_prob(image),
        generated=cvae.generate([0, 1, 2, 2], seed=5),
        prior=cvae.prior(one_hot).stddev(),
    )
"""


def test_keras_files(tmp_path, dataset):
    image, one_hot = dataset.test.binarized(), dataset.test.one_hot()
    latent = np.random.default_rng(0).standard_normal((len(image), 4)).astype(np.float32)
    expected = {}
    for network in ("mlp", "residual", "conv"):
        keras.utils.set_random_seed(0)
        cvae = build_cvae((8, 8, 1), 3, 4, network, width=8, prior="label")
        cvae.compile("adam", loss=NegativeELBO(), metrics=[ELBO()])
        cvae.fit(dataset.train.batches(32), verbose=0)
        folder = tmp_path / network
        folder.mkdir()
        cvae.save(folder / "cvae.keras")
        np.savez(folder / "data.npz", image=image, one_hot=one_hot, latent=latent)
        posterior, likelihood = cvae.posterior(image, one_hot), cvae.likelihood(latent, one_hot)
        expected[folder] = {
            "mean": posterior.mean(),
            "stddev": posterior.stddev(),
            "probability": likelihood.mean(),
            "log_prob": likelihood.log_prob(image),
            "generated": cvae.generate([0, 1, 2, 2], seed=5),
            "prior": cvae.prior(one_hot).stddev(),
        }
    subprocess.run([sys.executable, "-c", LOAD, *map(str, expected)], check=True, capture_output=True)
    for folder, values in expected.items():
        loaded = np.load(folder / "loaded.npz")
        assert set(loaded) == set(values)
        for name, value in values.items():
            np.testing.assert_array_equal(loaded[name], value, err_msg=f"{folder.name}: {name}")


def test_import_is_light_and_complete():
    code = (
        "import sys, tfp_cvae\n"
        "assert 'tensorflow' not in sys.modules\n"
        "for name in tfp_cvae.__all__: getattr(tfp_cvae, name)\n"
        "assert set(tfp_cvae.__all__) <= set(dir(tfp_cvae))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
