"""Reading and writing model files, good and bad."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from onnx_pointwise.errors import ModelError, OnnxPointwiseError, OutputError
from onnx_pointwise.graph import model_io
from onnx_pointwise.graph.model_io import (
    atomic_folder,
    external_tensors,
    file_bytes,
    load,
    require_writable,
    runtime_source,
    save,
    saved_bytes,
    serialize,
    to_bytes,
    write_text,
)
from onnx_pointwise.graph.wire import tensors
from tests.graphs import (
    constant_node,
    conv_model,
    function_model,
    if_model,
    make_model,
    normal,
    relative,
    run,
    session,
    value,
)


def small(**options: Any) -> onnx.ModelProto:
    return conv_model(normal(8, 6, 3, 3), [9, 9], bias=normal(8), **options)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def same_weights(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    one, two = weights(first), weights(second)
    return list(one) == list(two) and all(
        one[name].dtype == two[name].dtype and np.array_equal(one[name].view(np.uint8), two[name].view(np.uint8))
        for name in one
    )


def saved_externally(folder: Path, model: onnx.ModelProto | None = None, name: str = "model.onnx") -> Path:
    """Save a model with all its weights in `weights.bin`."""
    path = folder / name
    copy = onnx.load_from_string((model or small()).SerializeToString())  # onnx.save changes what it is given
    onnx.save(
        copy,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    return path


def data_of(path: Path) -> list[Path]:
    """The external data files that were written beside a model, left-over ones included."""
    return sorted(path.parent.glob(f"{path.name}.????????.data"))


# --- bad files --------------------------------------------------------------------------------------------------------


def refused(path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), "the sentence names the file"
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 400


def test_a_missing_file_a_directory_and_an_empty_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, r"is a directory; name the \.onnx file in it")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "the file is empty")
    refused(tmp_path / "empty.onnx" / "below.onnx", "cannot be read")
    refused(Path("x" * 300 + ".onnx"), "cannot be read")


@pytest.mark.parametrize("ending", [".onnx", ".json", ".onnxtxt", ".textproto"])
def test_text_is_no_model_whatever_its_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_text("this is not a model\n" * 20)
    refused(path, "not an ONNX model")
    path.write_text(onnx.printer.to_text(small()))
    refused(path, "not an ONNX model")


def test_a_binary_model_is_read_whatever_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(small().SerializeToString())
    assert len(load(path).graph) == 1


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "random.onnx"
    path.write_bytes(np.random.default_rng(seed).bytes(10 + 500 * seed))
    refused(path, "not an ONNX model")


def test_any_truncation_is_an_error_of_ours_or_still_a_model(tmp_path: Path) -> None:
    """Some prefixes of a message are messages; then what is left must be a whole model, or be refused."""
    whole = small(behind="batchnorm").SerializeToString()
    path = tmp_path / "cut.onnx"
    survivors = 0
    for length in [*range(1, 64), *range(64, len(whole) - 1, 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        try:
            survivors += len(load(path).graph.outputs)
        except ModelError as error:
            assert str(error).startswith(f"{path}: ")
    assert survivors < 3


def test_flipped_bytes_are_an_error_of_ours_or_still_a_model(tmp_path: Path) -> None:
    whole = small(behind="batchnorm").SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.onnx"
    for _ in range(500):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(OnnxPointwiseError):
            save(load(path), tmp_path / "out.onnx")


def test_old_operator_sets_and_models_without_outputs(tmp_path: Path) -> None:
    path = tmp_path / "old.onnx"
    onnx.save(small(opset=8, ir_version=3), path)
    refused(path, r"opset 8 is older than 9; raise it with onnx\.version_converter")
    model = small()
    del model.graph.output[:]
    path.write_bytes(model.SerializeToString())
    refused(path, "no IR version, operator set or graph outputs")
    model = small()
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())
    refused(path, "no IR version, operator set or graph outputs")


def test_what_onnx_ir_cannot_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    values = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [0, 5])
    sparse = helper.make_sparse_tensor(values, indices, [4, 4, 3, 3])
    node = helper.make_node("Constant", [], ["W"], sparse_value=sparse)
    model = small()
    model.graph.node.append(node)
    del model.graph.initializer[0]
    path.write_bytes(model.SerializeToString())
    refused(path, "Sparse tensors are not supported")
    model = small()
    del model.graph.initializer[0]
    values.name = "W"
    model.graph.sparse_initializer.append(sparse)
    path.write_bytes(model.SerializeToString())
    refused(path, "the initializer '[Wv]' is sparse; export the model with dense weights")
    model = small()
    model.graph.node.append(model.graph.node[0])
    path.write_bytes(model.SerializeToString())
    refused(path, "two values of it are called")


def test_models_with_loose_ends_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "loose.onnx"
    model = small()
    del model.graph.initializer[0]
    path.write_bytes(model.SerializeToString())
    refused(path, "the node 'conv' takes 'W', which nothing puts out; export the model again")
    model = small()
    model.graph.output.append(value("z", [1]))
    path.write_bytes(model.SerializeToString())
    refused(path, "the output 'z' comes from no node; export the model again")
    model = function_model(normal(5, 5, 3, 3))
    model.functions[0].node[0].input[1] = "nowhere"
    path.write_bytes(model.SerializeToString())
    refused(path, "the node 'inner' takes 'nowhere'")
    model = small()
    path.write_bytes(model.SerializeToString().replace(b"conv", b"\xff\xfe\xfd\xfc"))
    refused(path, "a name in it is no text")
    assert not caplog.records, "what is said in the error needs no warning beside it"


def test_other_sources(tmp_path: Path) -> None:
    proto = small()
    model = ir.from_proto(proto)
    assert load(model) is model
    assert to_bytes(load(proto)) == to_bytes(model)
    onnx.save(proto, tmp_path / "a.onnx")
    assert to_bytes(load(tmp_path / "a.onnx")) == to_bytes(load(str(tmp_path / "a.onnx"))) == to_bytes(model)
    with pytest.raises(ModelError, match="the given ModelProto: not an ONNX model"):
        load(onnx.ModelProto())


def test_a_proto_without_its_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_externally(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"weights\.bin of 'W' is missing in .*elsewhere"):
        load(onnx.load(path, load_external_data=False))
    monkeypatch.chdir(tmp_path)
    assert same_weights(serialize(load(onnx.load(path, load_external_data=False))), small())


# --- external data ----------------------------------------------------------------------------------------------------


def test_external_data_is_read_from_the_model_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_externally(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "model.onnx", Path("model.onnx"), Path("..") / tmp_path.name / "model.onnx"):
        model = load(path)
        assert len(external_tensors(model)) == 2
        assert same_weights(serialize(model), small())
    monkeypatch.chdir(tmp_path.parent)
    assert same_weights(serialize(model), small()), "where it is read from does not depend on the current directory"


def test_external_data_that_is_missing_short_or_outside(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-1])
    refused(path, r"the external data file weights\.bin is too short for 'B'")
    (tmp_path / "weights.bin").unlink()
    refused(path, r"the external data file weights\.bin of 'W' is missing")
    (tmp_path / "weights.bin").mkdir()
    refused(path, r"the external data file weights\.bin of 'W' is missing")
    (tmp_path / "weights.bin").rmdir()
    (tmp_path / "outside.bin").write_bytes(data)
    inner = tmp_path / "inner"
    inner.mkdir()
    path = saved_externally(inner)
    (inner / "weights.bin").unlink()
    (inner / "weights.bin").symlink_to(tmp_path / "outside.bin")
    refused(path, r"the data of 'W' lies outside the model's folder \(weights\.bin\); copy the data beside the model")
    (inner / "weights.bin").unlink()
    (inner / "inside.bin").write_bytes(data)
    (inner / "weights.bin").symlink_to(inner / "inside.bin")
    assert same_weights(serialize(load(path)), small())
    os.link(inner / "inside.bin", tmp_path / "second.bin")
    refused(path, "several hard links; make it a copy")


def place(path: Path, **entries: str) -> None:
    """Change where a model says its first external tensor lies."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_data_at_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"\0" * 4096)
    inner = tmp_path / "inner"
    inner.mkdir()
    path = saved_externally(inner)
    for location in ("../outside.bin", str(tmp_path / "outside.bin"), "a/../../outside.bin", "/etc/passwd"):
        place(path, location=location)
        refused(path, "outside the model's folder")
    path = saved_externally(inner)
    place(path, offset="99999999")
    refused(path, "too short")
    for length in ("4", "99999999"):
        path = saved_externally(inner)
        place(path, length=length)
        refused(path, f"the external data of 'W' are {length} bytes where its shape needs 1728; export the model again")
    for wrong, said in (
        ({"offset": "-4"}, "the external data of 'W' begin at byte -4; export the model again"),
        ({"length": "-1"}, "the external data of 'W' are -1 bytes"),
        ({"offset": "many"}, "the offset of the external data of 'W' is 'many', which is no number; export the model"),
    ):  # the first two onnx_ir says itself since 1.1
        path = saved_externally(inner)
        place(path, **wrong)
        refused(path, f"the model cannot be read: .*(offset|length)|{said}")


def test_a_linked_model_finds_its_data_beside_the_link(tmp_path: Path) -> None:
    """ONNX Runtime looks there, too."""
    (tmp_path / "real").mkdir()
    path = saved_externally(tmp_path / "real")
    (tmp_path / "link.onnx").symlink_to(path)
    refused(tmp_path / "link.onnx", r"weights\.bin of 'W' is missing")


def everywhere() -> onnx.ModelProto:
    """A model with tensors in the main graph, in Constant nodes, in a branch and in a function."""
    kernel = normal(6, 6, 3, 3)
    model, branches = function_model(kernel), if_model(kernel)
    model.graph.node[-1].output[0] = "called"
    model.graph.node.extend(branches.graph.node)
    for attribute in model.graph.node[-1].attribute:
        attribute.g.initializer.append(numpy_helper.from_array(normal(7, seed=3), f"in_{attribute.name}"))
    model.graph.node[-1].output[0] = "branched"
    model.graph.node.append(helper.make_node("Add", ["called", "branched"], ["y"]))
    model.graph.input.append(value("flag", [], np.bool_))
    return model


def test_tensors_are_found_wherever_they_lie(tmp_path: Path) -> None:
    names = sorted(str(tensor.name) for tensor in tensors(load(everywhere())))
    assert names == ["E", "V", "W", "in_else_branch", "in_then_branch", "own"]
    branches = if_model(normal(5, 4, 3, 3)).graph.node
    function = helper.make_function("local", "F", ["x", "W", "flag"], ["y"], branches, [helper.make_opsetid("", 17)])
    model = function_model(normal(5, 5, 3, 3))
    model.functions.append(function)
    assert "E" in {tensor.name for tensor in tensors(load(model))}


@pytest.mark.parametrize("external", [None, True, False])
def test_external_data_in_every_place_comes_along(tmp_path: Path, external: bool | None) -> None:
    """onnx stores attributes outside too, also those of functions."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    path = saved_externally(tmp_path / "from", everywhere())
    model = load(path)
    assert len(external_tensors(model)) >= 4
    target = tmp_path / "to" / "copy.onnx"
    save(model, target, use_external_data_format=external)
    path.unlink()
    (tmp_path / "from" / "weights.bin").unlink()
    assert bool(data_of(target)) == (external is not False)
    feeds = {"x": normal(1, 6, 8, 8), "flag": np.array(False)}
    reference = run(everywhere(), **feeds)[0]
    assert relative(reference, run(onnx.load(target), **feeds)[0]) == 0
    from_disk = session(to_bytes(load(target))).run(None, feeds)[0]
    assert relative(reference, from_disk) == 0


# --- writing ----------------------------------------------------------------------------------------------------------


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "plain": small,
    "with batch normalisation": lambda: small(behind="batchnorm"),
    "constant kernel": lambda: small(source="constant"),
    "float16": lambda: conv_model(normal(9, 8, 3, 3, dtype=np.float16), [9, 9]),
    "bfloat16": lambda: conv_model(normal(9, 8, 3, 3).astype(ml_dtypes.bfloat16), [9, 9], opset=22),
    "old": lambda: small(opset=9, ir_version=3),
    "everywhere": everywhere,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("external", [None, True, False])
def test_round_trip(tmp_path: Path, name: str, external: bool | None) -> None:
    proto = MODELS[name]()
    onnx.checker.check_model(proto, full_check=True)
    path = tmp_path / "model.onnx"
    model = load(proto)
    save(model, path, use_external_data_format=external)
    onnx.checker.check_model(str(path), full_check=True)
    again = onnx.load(path)
    assert same_weights(again, proto)
    assert [info.name for info in again.graph.input] == [info.name for info in proto.graph.input]
    assert list(again.graph.output) == list(proto.graph.output)
    assert (again.ir_version, list(again.opset_import)) == (proto.ir_version, list(proto.opset_import))
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in proto.graph.node]
    assert len(again.graph.value_info) == len(proto.graph.value_info)
    assert same_weights(serialize(model), proto), "saving leaves the model as it was"
    assert not external_tensors(model)
    assert bool(data_of(tmp_path / "model.onnx")) == bool(external and name != "constant kernel")


def test_tensor_types_and_texts_survive(tmp_path: Path) -> None:
    """Types of every width, strings, empty ones and scalars; descriptions and quantisation notes of tensors."""
    model = small()
    odd = {
        "bits": numpy_helper.from_array(np.arange(7, dtype=np.int64), "bits"),
        "flags": numpy_helper.from_array(np.array([True, False]), "flags"),
        "scalar": numpy_helper.from_array(np.array(2.5, np.float64), "scalar"),
        "nothing": numpy_helper.from_array(np.zeros((0, 3), np.float32), "nothing"),
        "words": numpy_helper.from_array(np.array(["ab", "c"], dtype=object), "words"),
        "typed": helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        "half": helper.make_tensor("half", TensorProto.FLOAT16, [3], [1.0, 2.0, 3.0]),
        "nibbles": helper.make_tensor("nibbles", TensorProto.INT4, [5], [1, -2, 3, -4, 5]),
        "complex": numpy_helper.from_array(np.array([1 + 2j], np.complex64), "complex"),
    }
    odd["bits"].doc_string = "what it is"
    odd["bits"].metadata_props.add(key="k", value="v")
    model.graph.initializer.extend(odd.values())
    note = model.graph.quantization_annotation.add(tensor_name="W")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scalar")
    for external in (False, True):
        path = tmp_path / "model.onnx"
        save(load(model), path, use_external_data_format=external)
        again = onnx.load(path)
        stored = {tensor.name: tensor for tensor in again.graph.initializer}
        for name, tensor in odd.items():
            np.testing.assert_array_equal(numpy_helper.to_array(stored[name]), numpy_helper.to_array(tensor))
            assert stored[name].data_type == tensor.data_type
        assert stored["bits"].doc_string == "what it is"
        assert [(item.key, item.value) for item in stored["bits"].metadata_props] == [("k", "v")]
        assert list(again.graph.quantization_annotation) == [note]


def test_the_size_is_known_before_it_is_written(tmp_path: Path) -> None:
    for name, make in MODELS.items():
        path = tmp_path / "model.onnx"
        model = load(make())
        save(model, path)
        assert saved_bytes(model) == path.stat().st_size == file_bytes(path), name
        assert path.read_bytes() == to_bytes(model), name
    path = saved_externally(tmp_path)
    model = load(path)
    assert (
        file_bytes(path) == file_bytes(path, model) == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    )
    (tmp_path / "to").mkdir()
    target = tmp_path / "to" / "model.onnx"
    save(model, target)
    written = target.stat().st_size + sum(item.stat().st_size for item in data_of(target))
    assert saved_bytes(model) == written == file_bytes(target)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        save(load(everywhere()), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_files_do_not_grow_by_writing(tmp_path: Path) -> None:
    model = small(behind="batchnorm")
    assert len(to_bytes(load(model))) <= len(model.SerializeToString()) + 8


def test_a_tensor_shorter_than_its_shape_is_not_written(tmp_path: Path) -> None:
    model = small()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match="'W' holds 1724 bytes where its shape needs 1728"):
        save(load(model), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("onnx_pointwise.graph.wire._write_data", full)
        for external in (False, True):
            with pytest.raises(OutputError, match=f"{path}: cannot be written .No space left on device."):
                save(load(small()), path, use_external_data_format=external)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match="No space left"):
            save(load(small()), path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(OutputError, match="No space left"):
            write_text(path, "new")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as scratch:
        (scratch / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    save(load(small()), path, use_external_data_format=True)
    assert sorted(tmp_path.iterdir()) == [path, *data_of(path)]
    assert same_weights(onnx.load(path), small())
    # Over its own input, while that is mapped.
    save(load(path), path)
    assert same_weights(onnx.load(path), small())
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_model_file_appears_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees it sees the data it needs, too."""
    moved: list[str] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        moved.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    for name in ("a.onnx", "z.onnx"):
        save(load(small()), tmp_path / name, use_external_data_format=True)
    assert [name.split(".")[-1] for name in moved] == ["data", "onnx"] * 2


@pytest.mark.parametrize("external", [True, False])
def test_an_interruption_between_data_and_model_leaves_the_old_pair_whole(
    external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "model.onnx", conv_model(normal(8, 6, 3, 3, seed=1), [9, 9], bias=normal(8, seed=1))
    save(load(small()), path, use_external_data_format=True)
    neighbour = tmp_path / "model.onnx.notes.data"
    neighbour.touch()
    replace = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        if self.name == path.name:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", stopped)
        save(load(other), path, use_external_data_format=external)
    assert same_weights(onnx.load(path), small())
    assert len(data_of(path)) == 1, "nothing of the attempt is left"
    # The next attempt clears away what the old model and the interrupted one have left, and nothing else.
    save(load(other), path, use_external_data_format=external)
    assert same_weights(onnx.load(path), other)
    assert sorted(tmp_path.iterdir()) == sorted([path, neighbour, *data_of(path)])
    assert len(data_of(path)) == external


def test_long_names_are_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".onnx")
    save(load(small()), path)
    assert same_weights(onnx.load(path), small())


def test_targets_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path, match in (
        (tmp_path, "is a directory; name a file to write"),
        (tmp_path / "none" / "a.onnx", "the folder .*none does not exist; create it first"),
        (tmp_path / "file" / "a.onnx", "the folder .*file does not exist"),
    ):
        with pytest.raises(OutputError, match=match):
            require_writable(path)
        with pytest.raises(OutputError, match=match):
            save(load(small()), path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe: is no regular file; name another file"):
        save(load(small()), tmp_path / "pipe")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", refuse)
        with pytest.raises(OutputError, match=r"cannot be written to \(Permission denied\); name another place"):
            require_writable(tmp_path / "a.onnx")
    with monkeypatch.context() as patch:  # permissions bind no administrator, who may run this test
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(OutputError, match="file: is write-protected; name another file"):
            require_writable(tmp_path / "file")
        assert require_writable(tmp_path / "new") == tmp_path / "new"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_model_too_large_for_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "_PROTOBUF_LIMIT", 1000)
    path = tmp_path / "model.onnx"
    model = load(small())
    with pytest.raises(OutputError, match="must be saved with external data"):
        save(model, path, use_external_data_format=False)
    assert list(tmp_path.iterdir()) == []
    save(model, path)
    assert len(external_tensors(load(path))) == 1
    assert same_weights(onnx.load(path), small())
    assert saved_bytes(model) == file_bytes(path)
    with pytest.raises(ModelError, match="more than 2 GiB"):
        to_bytes(model)


def test_constants_too_large_for_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge:
        """Stands for a graph that protobuf cannot put into one message."""

        graph: Any

        def __init__(self, *_: object) -> None:
            self.graph = self

        def SerializeToString(self, **_: object) -> bytes:  # noqa: N802
            raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr("onnx_pointwise.graph.wire.without_initializers", Huge)
    with pytest.raises(ModelError, match="constants and subgraphs fill more than 2 GiB; make initializers"):
        to_bytes(load(small()))


# --- for the runtime --------------------------------------------------------------------------------------------------


def test_paths_and_bytes_go_to_the_runtime_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with runtime_source(path) as source:
        assert source == str(path)
    with runtime_source(b"bytes") as source:
        assert source == b"bytes"


@pytest.mark.parametrize("kind", ["proto", "ir"])
def test_small_models_go_as_bytes_and_large_ones_as_a_file(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small() if kind == "proto" else ir.from_proto(small())
    x = normal(2, 6, 9, 9)
    reference = run(small(), x=x)[0]
    with runtime_source(model) as source:
        assert isinstance(source, bytes)
        np.testing.assert_array_equal(session(source).run(None, {"x": x})[0], reference)
    monkeypatch.setattr(model_io, "_IN_MEMORY_LIMIT", 1000)
    with runtime_source(model) as source:
        assert isinstance(source, str)
        assert Path(source).with_name("model.onnx.data").stat().st_size == 6 * 8 * 9 * 4
        np.testing.assert_array_equal(session(source).run(None, {"x": x})[0], reference)
    assert not Path(source).parent.exists()


def test_external_data_reaches_the_runtime(tmp_path: Path) -> None:
    path = saved_externally(tmp_path)
    x = normal(2, 6, 9, 9)
    with runtime_source(load(path)) as source:
        assert isinstance(source, bytes)
        np.testing.assert_array_equal(session(source).run(None, {"x": x})[0], run(small(), x=x)[0])


def test_no_room_for_a_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "_IN_MEMORY_LIMIT", 0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_pointwise.graph.wire._write_data", full)
    with pytest.raises(OutputError, match=r"No space left on device.*set TMPDIR"), runtime_source(small()):
        pass


def test_constants_with_external_data_in_a_model_without_initializers(tmp_path: Path) -> None:
    model = make_model(
        [constant_node(normal(1, 3, 8, 8), "c"), helper.make_node("Add", ["x", "c"], ["y"])],
        [value("x", [1, 3, 8, 8])],
        [value("y", [1, 3, 8, 8])],
    )
    path = saved_externally(tmp_path, model)
    x = normal(1, 3, 8, 8, seed=1)
    np.testing.assert_array_equal(run(to_bytes(load(path)), x=x)[0], run(model, x=x)[0])
