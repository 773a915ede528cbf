"""Train the shipped digit classifier and write its model, ONNX file and data split.

    python -m tools.train_digits [--out FOLDER] [--epochs N]

The data come inside scikit-learn: 1797 handwritten digits of 8x8 pixels (`sklearn.datasets.load_digits`), here enlarged
to 16x16. 600 of them are held out for the test and are never seen in training; the calibration inputs are 512 of the
others, without labels. Everything random is seeded, TensorFlow runs its deterministic kernels on a fixed number of
threads, and files are written without time stamps, so a second run on the same machine gives the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.exporting.runtime import quiet, runtime
from onnx_pointwise.graph.model_io import atomic_folder, require_writable

SEED = 2024
TEST = 600
CALIBRATION = 512
EPOCHS = 10
BATCH = 64
THREADS = 2
LEAST_ACCURACY = 0.985

FloatArray = NDArray[np.float32]
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip archive can hold


@dataclass(frozen=True)
class Split:
    """The digits, divided; `*_rows` are row numbers in scikit-learn's data set.

    Attributes:
        train: float32 [1197, 16, 16, 1] in 0..1, with `train_labels` int64 [1197].
        test: float32 [600, 16, 16, 1], with `test_labels` int64 [600].
        calibration: float32 [512, 16, 16, 1], a part of `train`.
    """

    train: FloatArray
    train_labels: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    test: FloatArray
    test_labels: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    calibration: FloatArray
    calibration_rows: NDArray[np.int64]


def split() -> Split:
    """Load the digits and divide them, always in the same way."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.stack([enlarge(image) for image in data.images])
    labels = np.asarray(data.target, np.int64)
    rows = np.random.default_rng(SEED).permutation(len(images))
    test, train = rows[:TEST], rows[TEST:]
    calibration = train[:CALIBRATION]
    return Split(
        train=images[train],
        train_labels=labels[train],
        train_rows=train,
        test=images[test],
        test_labels=labels[test],
        test_rows=test,
        calibration=images[calibration],
        calibration_rows=calibration,
    )


def enlarge(image: NDArray[np.float64]) -> FloatArray:
    """An 8x8 digit with ink 0..16 as a network input: float32 [16, 16, 1] in 0..1, bilinear."""
    large = ndimage.zoom(image, 2, order=1, mode="nearest", grid_mode=True)
    return np.asarray(large / 16, np.float32)[..., None]


def distort(images: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Turn, scale and shift each image a little, so that a thousand digits are enough to train on.

    Args:
        images: float32 [N, H, W, 1].
        rng: the source of randomness.

    Returns:
        Images of the same shape: up to 12 degrees, 12 % and 1.5 pixels away from the given ones.
    """
    centre = (np.array(images.shape[1:3]) - 1) / 2
    out = np.empty_like(images)
    for index, image in enumerate(images):
        angle, scale = np.deg2rad(rng.uniform(-12, 12)), np.exp(rng.uniform(-0.12, 0.12))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        offset = centre - turn @ centre + rng.uniform(-1.5, 1.5, 2)
        out[index, ..., 0] = ndimage.affine_transform(image[..., 0], turn, offset, order=1)
    return out


def train(data: Split, epochs: int = EPOCHS) -> Any:
    """Train the network of `models/digits.py`.

    Args:
        data: the split; only `train` and `train_labels` are used.
        epochs: passes over the training images, each distorted anew.

    Returns:
        The trained model, without an optimizer's state.
    """
    from models.digits import digit_classifier

    rt = runtime()
    keras = rt.keras
    keras.backend.clear_session()
    keras.utils.set_random_seed(SEED)
    rt.tf.config.experimental.enable_op_determinism()
    rng = np.random.default_rng(SEED)
    steps = -(-len(data.train) // BATCH)
    model = digit_classifier()
    model.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps), weight_decay=1e-2),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    for epoch in range(epochs):
        history = model.fit(distort(data.train, rng), data.train_labels, batch_size=BATCH, epochs=1, verbose=0).history
        print(f"epoch {epoch + 1}/{epochs}: loss {history['loss'][-1]:.4f}, accuracy {history['accuracy'][-1]:.4f}")
    plain = digit_classifier()
    plain.set_weights(model.get_weights())
    return plain


def fix_threads() -> None:
    """Use the same number of threads everywhere; has to happen before TensorFlow computes anything."""
    config = runtime().tf.config.threading
    config.set_intra_op_parallelism_threads(THREADS)
    config.set_inter_op_parallelism_threads(1)


def keras_bytes(model: Any) -> bytes:
    """A `.keras` archive of a model that depends on nothing but the model: no dates, no machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    metadata = json.loads(members["metadata.json"])
    metadata["date_saved"] = "1980-01-01@00:00:00"
    members["metadata.json"] = json.dumps(metadata).encode()
    members["config.json"] = _number_objects(members["config.json"])
    return zip_bytes(members)


def _number_objects(config: bytes) -> bytes:
    """Replace memory addresses, which Keras uses to tell shared objects apart, by numbers in order of appearance."""
    numbers: dict[bytes, int] = {}

    def number(match: re.Match[bytes]) -> bytes:
        return match[1] + str(numbers.setdefault(match[2], len(numbers) + 1)).encode()

    return re.sub(rb'("shared_object_id": )(\d+)', number, config)


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A compressed `.npz` archive without time stamps."""
    members: dict[str, bytes] = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    return zip_bytes(members)


def zip_bytes(members: Mapping[str, bytes]) -> bytes:
    """A deflated zip archive of the given files, in the given order, all dated 1980-01-01."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file in one step: beside the target, then renamed."""
    with atomic_folder(path) as scratch:
        (scratch / path.name).write_bytes(content)


def run(folder: Path, epochs: int = EPOCHS) -> float:
    """Train, check and write `digits.keras`, `digits.onnx` and `digits.npz`.

    Args:
        folder: where to write.
        epochs: passes over the training images.

    Returns:
        Accuracy on the held-out test images.

    Raises:
        OnnxPointwiseError: the network is not good enough to ship, or a file cannot be written.
    """
    from tools.export_keras import export

    paths = [require_writable(folder / f"digits.{suffix}") for suffix in ("keras", "onnx", "npz")]
    fix_threads()
    data = split()
    with quiet():
        model = train(data, epochs)
        guesses = model.predict(data.test, batch_size=200, verbose=0).argmax(1)
    accuracy = float((guesses == data.test_labels).mean())
    print(f"accuracy on {TEST} held-out digits: {accuracy:.4f}")
    if accuracy < LEAST_ACCURACY:
        raise OnnxPointwiseError(
            f"the trained network reaches {accuracy:.4f} on the test digits, below {LEAST_ACCURACY}; "
            "train for more epochs."
        )
    arrays: dict[str, NDArray[Any]] = {"calibration": data.calibration, "x": data.test, "y": data.test_labels}
    contents = [keras_bytes(model), export(model).model.SerializeToString(deterministic=True), npz_bytes(arrays)]
    for path, content in zip(paths, contents, strict=True):
        write(path, content)
        print(f"{path}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()[:16]}")
    return accuracy


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "models", metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N")
    options = parser.parse_args(arguments)
    try:
        run(options.out, options.epochs)
    except OnnxPointwiseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
