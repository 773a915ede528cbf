"""A network of more than 2 GiB: its weights stay in their files, and no more of them is in memory than is worked on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph.model_io import load, to_bytes
from onnx_pointwise.runtime import open_session
from tests.graphs import normal, value

MIB = 2**20
# Two tables of 1.1 GiB; of the files most are holes.
ROWS, COLUMNS = 18 * 2**10, 2**14
TABLES = {"first": "weights/first.bin", "second": "weights/second.bin"}

# What a command holds at most beside the files that it maps, by a thread that looks every few milliseconds.
WATCHED = """
import json, sys, threading
from pathlib import Path
from onnx_pointwise.cli import main

most, over = 0, threading.Event()
def watch():
    global most
    while not over.wait(0.005):
        lines = Path("/proc/self/status").read_text().splitlines()
        most = max(most, next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
watcher = threading.Thread(target=watch)
watcher.start()
sys.argv = ["onnx-pointwise", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as end:
    code = end.code or 0
over.set()
watcher.join()
print(json.dumps([code, most]), file=sys.stderr)
"""


def external(name: str, shape: tuple[int, ...], location: str, offset: int = 0) -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=shape, data_location=TensorProto.EXTERNAL)
    length = int(np.prod(shape)) * 4
    for key, entry in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(entry))
    return tensor


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two convolutions, and two tables of which what they see chooses a row each: 2.25 GiB in two files."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "weights").mkdir()
    rng = np.random.default_rng(0)
    for name, location in TABLES.items():
        with (folder / location).open("wb") as stream:
            stream.truncate(ROWS * COLUMNS * 4)
            for row in range(8):
                stream.seek(row * COLUMNS * 4)
                stream.write(rng.standard_normal(COLUMNS, np.float32).tobytes())
            stream.seek((ROWS - 1) * COLUMNS * 4)
            stream.write(normal(COLUMNS, seed=len(name)).tobytes())
    kernels = {f"w{number}": normal(8, 3 if number == 0 else 8, 3, 3, seed=number) / 8 for number in range(2)}
    start = (folder / TABLES["first"]).stat().st_size
    tensors = [external(name, (ROWS, COLUMNS), location) for name, location in TABLES.items()]
    with (folder / TABLES["first"]).open("ab") as stream:
        for name, kernel in kernels.items():
            tensors.append(external(name, kernel.shape, TABLES["first"], start))
            stream.write(kernel.tobytes() + bytes(-kernel.nbytes % 4096))
            start += kernel.nbytes + -kernel.nbytes % 4096
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "c0", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "r0"),
        helper.make_node("Conv", ["b", "w1"], ["c"], "c1", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], "r1"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["features"], "flat"),
        helper.make_node("ArgMax", ["features"], ["row"], "choose", axis=1, keepdims=0),
        helper.make_node("Gather", ["first", "row"], ["y"], "look"),
        helper.make_node("Gather", ["second", "row"], ["z"], "look_too"),
    ]
    outputs = [value("y", ["n", COLUMNS]), value("z", ["n", COLUMNS]), value("features", ["n", 8])]
    graph = helper.make_graph(nodes, "large", [value("x", ["n", 3, 16, 16])], outputs, tensors)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "x.npz", x=normal(16, 3, 16, 16, seed=5))
    yield folder / "model.onnx"
    for item in sorted(folder.rglob("*.*")):
        item.unlink()  # pytest would keep gigabytes


def command(*arguments: str | Path) -> tuple[int, int, str]:
    """Run a command in a process of its own: exit code, most bytes in memory, and what it said."""
    given = json.dumps([str(argument) for argument in arguments])
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, given],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    code, most = json.loads(done.stderr.strip().splitlines()[-1])
    return code, most * 1024, done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process holds")
def test_a_network_of_more_than_2_gib_is_rewritten_inspected_and_checked_where_its_weights_lie(large: Path) -> None:
    target = large.parent / "out" / "new.onnx"
    target.parent.mkdir()
    quick = ("--provider", "none", "--no-latency", "--no-cache")
    inputs = f"{large.parent / 'x.npz'}:x"
    made = command(
        "rewrite", large, target, "--target-macs", "0.8", "--calibration", inputs, "--no-check", "--min-channels", "1",
        *quick,
    )  # fmt: skip
    assert made[0] == 0, made[2]
    checked = command("check", large, target, "--inputs", inputs, "--no-latency", "--sites", "--max-drift", "10")
    assert checked[0] in (0, 1), checked[2]
    assert "c1" in checked[2], "the convolutions are named that are computed otherwise"
    looked = command("inspect", large)
    assert looked[0] == 0, looked[2]
    for _, most, said in (made, checked, looked):
        assert most < 700 * MIB, said  # a table alone is 1,152 MiB
    # Two files, both beside the model, in which all starts at pages.
    proto = onnx.load(target, load_external_data=False)
    found = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.external_data
    }
    assert len({entry["location"] for entry in found.values()}) == 2
    assert {item.name for item in target.parent.iterdir()} == {
        target.name, *(entry["location"] for entry in found.values())
    }  # fmt: skip
    assert found["first"]["location"] != found["second"]["location"]
    assert all(int(entry["offset"]) % 4096 == 0 for entry in found.values())
    onnx.checker.check_model(target, full_check=True)
    # By path in ONNX Runtime the rows are those of the tables.
    x = np.load(large.parent / "x.npz")["x"][:2]
    y, z, features = open_session(target, threads=1).run(None, {"x": x})
    for name, rows in (("first", y), ("second", z)):
        table = np.memmap(large.parent / TABLES[name], np.float32, "r", shape=(ROWS, COLUMNS))
        np.testing.assert_array_equal(rows, table[features.argmax(axis=1)])
        written = np.memmap(
            target.with_name(found[name]["location"]), np.float32, "r", int(found[name]["offset"]), (ROWS, COLUMNS)
        )
        np.testing.assert_array_equal(written[-1], normal(COLUMNS, seed=len(name)))
    with pytest.raises(ModelError, match="more than 2 GiB"):
        to_bytes(load(target))
