"""The trained network that is shipped: its accuracy, its data, and the script that made it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from models import networks
from tools import train_digits

# TensorFlow and a software GPU driver bring an LLVM each, and crash one another in one process.
pytestmark = pytest.mark.keras

ROOT = Path(__file__).resolve().parents[2]
LEAST_ACCURACY = 0.985


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def shipped(key: str) -> np.ndarray:
    with np.load(ROOT / "models" / "digits.npz") as data:
        return data[key]


def test_accuracy_of_the_shipped_file() -> None:
    guesses = run(ROOT / "models" / "digits.onnx", shipped("x")).argmax(1)
    accuracy = float((guesses == shipped("y")).mean())
    assert accuracy >= LEAST_ACCURACY
    assert networks.metric("digits", networks.path("digits")) == accuracy


def test_the_metric_judges_the_file_it_is_given(tmp_path: Path) -> None:
    model = onnx.load(networks.path("digits"))
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "probabilities/bias"]
    spoilt = onnx.numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[3] * 100  # everything is a three
    bias.CopyFrom(onnx.numpy_helper.from_array(spoilt.astype(np.float32), bias.name))
    onnx.save(model, tmp_path / "spoilt.onnx")
    assert networks.metric("digits", tmp_path / "spoilt.onnx") == pytest.approx(float((shipped("y") == 3).mean()))


def test_the_metric_on_fewer_inputs() -> None:
    right = run(networks.path("digits"), shipped("x")[:50]).argmax(1) == shipped("y")[:50]
    assert networks.metric("digits", networks.path("digits"), limit=50) == float(right.mean())


def test_calibration_inputs_fit_the_network() -> None:
    assert networks.NETWORKS == ["digits"]
    inputs = networks.calibration("digits")
    assert inputs.shape == (512, 16, 16, 1)
    assert inputs.dtype == np.float32
    assert inputs.min() >= 0
    assert inputs.max() <= 1
    assert run(networks.path("digits"), inputs[:2]).shape == (2, 10)
    np.testing.assert_array_equal(networks.calibration("digits", limit=7), inputs[:7])


@pytest.mark.parametrize("call", [networks.path, networks.calibration, lambda name: networks.metric(name, "x.onnx")])
def test_unknown_networks_are_refused(call) -> None:
    with pytest.raises(KeyError, match=r"nothing.*digits"):
        call("nothing")


def test_sizes_of_the_shipped_files() -> None:
    assert (ROOT / "models" / "digits.onnx").stat().st_size <= 2_000_000
    assert sum((ROOT / "models" / f"digits.{suffix}").stat().st_size for suffix in ("onnx", "keras", "npz")) < 4_000_000


def test_large_kernels_dominate_the_work() -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(networks.path("digits")))
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    kernels = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    macs = {node.name: np.prod(kernels[node.input[1]]) * np.prod(sizes[node.output[0]][2:]) for node in convolutions}
    assert {tuple(kernels[node.input[1]][2:]) for node in convolutions} == {(3, 3), (5, 5)}
    assert {kernels[node.input[1]][0] for node in convolutions} <= set(range(32, 129))
    dense = np.prod(kernels["probabilities/kernel"])
    assert sum(macs.values()) == 27_729_920
    assert sum(macs.values()) / (sum(macs.values()) + dense) > 0.99


def test_the_split_is_disjoint_and_what_is_shipped() -> None:
    pytest.importorskip("sklearn")
    data = train_digits.split()
    test, trained, calibration = (
        set(rows.tolist()) for rows in (data.test_rows, data.train_rows, data.calibration_rows)
    )
    assert not test & trained
    assert calibration <= trained
    assert (len(test), len(calibration), len(test | trained)) == (600, 512, 1797)
    # No test image hides among the others under another row number either.
    known = {image.tobytes() for image in data.train}
    assert not known & {image.tobytes() for image in data.test}
    np.testing.assert_array_equal(data.test, shipped("x"))
    np.testing.assert_array_equal(data.test_labels, shipped("y"))
    np.testing.assert_array_equal(data.calibration, shipped("calibration"))
    assert set(data.test_labels.tolist()) == set(range(10))


def test_digits_are_enlarged_without_being_moved() -> None:
    image = np.zeros((8, 8))
    image[2, 5] = 16
    large = train_digits.enlarge(image)[..., 0]
    assert large.shape == (16, 16)
    rows, columns = np.indices(large.shape)
    assert (rows * large).sum() / large.sum() == pytest.approx(4.5)
    assert (columns * large).sum() / large.sum() == pytest.approx(10.5)
    np.testing.assert_array_equal(train_digits.enlarge(np.full((8, 8), 16.0)), 1)


def test_distortions_are_seeded_and_small() -> None:
    images = shipped("calibration")[:20]
    once = train_digits.distort(images, np.random.default_rng(3))
    np.testing.assert_array_equal(once, train_digits.distort(images, np.random.default_rng(3)))
    assert once.shape == images.shape
    assert once.dtype == np.float32
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, once, strict=True)]
    assert np.mean(correlation) > 0.5
    assert np.max(correlation) < 0.9999


def test_archives_carry_no_dates(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.ones(3, np.float32)}
    content = train_digits.npz_bytes(arrays)
    assert content == train_digits.npz_bytes(arrays)
    (tmp_path / "a.npz").write_bytes(content)
    with np.load(tmp_path / "a.npz") as data:
        np.testing.assert_array_equal(data["a"], arrays["a"])
        assert data["b"].dtype == np.float32
    for name in ("digits.npz", "digits.keras"):
        with zipfile.ZipFile(ROOT / "models" / name) as archive:
            assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_keras_file_agrees_with_the_onnx_file() -> None:
    pytest.importorskip("tensorflow")
    from tools.export_keras import export

    model = ROOT / "models" / "digits.keras"
    result = export(model)
    assert result.max_error < 1e-5
    shipped_model = onnx.load(networks.path("digits"))
    assert [node.name for node in result.model.graph.node] == [node.name for node in shipped_model.graph.node]
    import keras

    expected = keras.models.load_model(model, compile=False).predict(shipped("x"), verbose=0)
    np.testing.assert_allclose(run(networks.path("digits"), shipped("x")), expected, atol=1e-5)


def test_a_keras_archive_depends_on_nothing_but_the_model() -> None:
    pytest.importorskip("tensorflow")
    import keras

    once, again = (keras.models.load_model(ROOT / "models" / "digits.keras", compile=False) for _ in range(2))
    assert train_digits.keras_bytes(once) == train_digits.keras_bytes(again)


def test_a_network_that_is_not_good_enough_is_not_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "tools.train_digits", "--out", str(tmp_path), "--epochs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "below 0.985; train for more epochs" in done.stderr
    assert "epoch 1/1" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_training_into_a_missing_folder_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_digits.main(["--out", str(tmp_path / "missing")]) == 2
    assert "does not exist" in capsys.readouterr().err
