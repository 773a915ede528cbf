"""External data: as many files as there were, aligned as they were, and never copied without need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnx_pointwise.errors import ModelError, OutputError
from onnx_pointwise.graph.files import data_name, is_data_name
from onnx_pointwise.graph.model_io import Detached, file_bytes, load, runtime_source, save, saved_bytes
from onnx_pointwise.runtime import open_session
from tests.graphs import make_model, normal, value

# Name, file and offset of the tensors of `spread`: two files, one of them in a folder, starts at multiples of 256.
PLACES = {
    "a": ("one.bin", 0),
    "b": ("parts/two.bin", 256),
    "c": ("one.bin", 1280),
    "twin": ("parts/two.bin", 256),
}
SHAPE = (8, 6, 3, 3)


def spread(folder: Path) -> Path:
    """A model of four sums whose addends lie in two files; two of them are one."""
    (folder / "parts").mkdir(parents=True)
    nodes, tensors, last = [], [], "x"
    for number, (name, (file, offset)) in enumerate(PLACES.items()):
        size = int(np.prod(SHAPE)) * 4
        with (folder / file).open("r+b" if (folder / file).exists() else "wb") as stream:
            stream.seek(offset)
            stream.write(normal(*SHAPE, seed=offset).tobytes())
        tensor = TensorProto(name=name, data_type=1, dims=SHAPE, data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", file), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(entry))
        tensors.append(tensor)
        nodes.append(helper.make_node("Add", [last, name], [f"y{number}"]))
        last = f"y{number}"
    model = make_model(nodes, [value("x", SHAPE)], [value(last, SHAPE)])
    model.graph.initializer.extend(tensors)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def places(path: Path) -> dict[str, tuple[str, int]]:
    """Where the tensors of a model lie: file and offset by name."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        found[tensor.name] = entries["location"], int(entries["offset"])
    return found


def result(source: str | bytes | Path) -> np.ndarray:
    return np.asarray(open_session(source).run(None, {"x": np.zeros(SHAPE, np.float32)})[0])


def test_as_many_files_as_there_were_aligned_alike_and_shared_alike(tmp_path: Path) -> None:
    source = spread(tmp_path / "from")
    (tmp_path / "to").mkdir()
    target = tmp_path / "to" / "model.onnx"
    model = load(source)
    save(model, target)
    found = places(target)
    first, second = found["a"][0], found["b"][0]
    assert {first, second} == {item.name for item in target.parent.iterdir()} - {"model.onnx"}
    assert found == {"a": (first, 0), "b": (second, 0), "c": (first, 1792), "twin": (second, 0)}
    assert second == first.replace(".data", ".2.data")
    assert saved_bytes(model) == file_bytes(target)
    np.testing.assert_array_equal(result(target), result(source))
    onnx.checker.check_model(target, full_check=True)


def test_data_that_is_saved_again_clears_away_all_files_of_before(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    save(load(spread(tmp_path / "from")), target)
    assert len(list(tmp_path.glob("*.data"))) == 2
    other = make_model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", SHAPE)],
        [value("y", SHAPE)],
        {"w": normal(*SHAPE)},
    )
    save(load(other), target, use_external_data_format=True)
    assert len(list(tmp_path.glob("*.data"))) == 1


def test_names_of_data_files() -> None:
    names = [data_name("m.onnx", "01234567", number) for number in range(3)]
    assert names == ["m.onnx.01234567.data", "m.onnx.01234567.2.data", "m.onnx.01234567.3.data"]
    assert all(is_data_name(name, "m.onnx") for name in names)
    for name in ("m.onnx.01234567.x.data", "m.onnx.0123456.data", "n.onnx.01234567.data", "m.onnx.01234567.2.data.bak"):
        assert not is_data_name(name, "m.onnx")


def test_what_is_new_goes_to_what_stands_before_it(tmp_path: Path) -> None:
    model = load(spread(tmp_path / "from"))
    model.graph.initializers["c"].const_value = ir.tensor(normal(*SHAPE, seed=7), name="c")
    save(model, tmp_path / "new.onnx")
    found = places(tmp_path / "new.onnx")
    assert found["c"][0] == found["b"][0] != found["a"][0]
    changed = load(tmp_path / "new.onnx").graph.initializers["c"].const_value
    assert changed is not None
    np.testing.assert_array_equal(changed.numpy(), normal(*SHAPE, seed=7))


def test_large_tensors_start_where_they_can_be_mapped(tmp_path: Path) -> None:
    names = ["small", "large"]
    arrays = [normal(300), normal(2**18)]
    model = make_model(
        [helper.make_node("Add", ["x", "small"], ["y"]), helper.make_node("Add", ["x", "large"], ["z"])],
        [value("x", [1])],
        [value("y", [300]), value("z", [2**18])],
        dict(zip(names, arrays, strict=True)),
    )
    save(load(model), tmp_path / "model.onnx", use_external_data_format=True)
    assert [offset for _, offset in places(tmp_path / "model.onnx").values()] == [0, 2**16]
    loaded = onnx.load(tmp_path / "model.onnx")
    for tensor, array in zip(loaded.graph.initializer, arrays, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array)


def test_weights_in_files_are_left_there_for_a_session_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = spread(tmp_path / "from")
    expected = result(source)
    monkeypatch.chdir(tmp_path)  # where the process is must not matter
    with runtime_source(load(source), in_place=True) as given:
        assert isinstance(given, Detached)
        assert len(given) < 2000, "no weights in it"
        np.testing.assert_array_equal(result(given), expected)
    with runtime_source(load(source)) as given:
        assert isinstance(given, bytes) and not isinstance(given, Detached)
        np.testing.assert_array_equal(result(given), expected)
    model = load(source)
    for name in ("b", "twin"):
        held = model.graph.initializers[name].const_value
        assert isinstance(held, ir.ExternalTensor)
        (tmp_path / "elsewhere" / "parts").mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / "parts" / "two.bin").write_bytes(
            (tmp_path / "from" / "parts" / "two.bin").read_bytes()
        )
        held.base_dir = tmp_path / "elsewhere"
    with runtime_source(model, in_place=True) as given:  # of two folders a session knows but one
        assert not isinstance(given, Detached)
        np.testing.assert_array_equal(result(given), expected)


def test_new_weights_beyond_what_goes_as_bytes_make_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(spread(tmp_path / "from"))
    monkeypatch.setattr("onnx_pointwise.graph.model_io._IN_MEMORY_LIMIT", 100)
    with runtime_source(model, in_place=True) as given:
        assert isinstance(given, str)
        np.testing.assert_array_equal(result(given), result(tmp_path / "from" / "model.onnx"))


def test_data_that_shrinks_after_it_was_read_writes_nothing(tmp_path: Path) -> None:
    source = spread(tmp_path / "from")
    model = load(source)
    (tmp_path / "from" / "one.bin").write_bytes(b"short")
    (tmp_path / "to").mkdir()
    with pytest.raises((ModelError, OutputError), match=r"holds \d+ bytes|is shorter than expected"):
        save(model, tmp_path / "to" / "new.onnx")
    assert list((tmp_path / "to").iterdir()) == []
