"""Conditions under which the tool once failed or misled: each test makes the smallest input of its kind."""

from __future__ import annotations

import io
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from typer.testing import CliRunner, Result

import onnx_pointwise
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import ModelError, ProviderError, TargetError
from onnx_pointwise.graph import load, save
from onnx_pointwise.graph.model_io import to_bytes
from onnx_pointwise.reports import terminal as report
from tests.graphs import make_model, normal, value

QUICK = ("--no-latency", "--provider", "none")


def low_rank(outputs: int, inputs: int, *taps: int, seed: int = 0) -> np.ndarray:
    """A kernel that a quarter of the feature maps nearly do for."""
    rank = max(4, inputs // 4)
    left, right = normal(outputs, *taps, rank, seed=seed), normal(rank, inputs, seed=seed + 1)
    kernel = np.moveaxis(left @ right / np.sqrt(rank), -1, 1)
    noisy = kernel + 0.05 * normal(*kernel.shape, seed=seed + 2)
    return np.ascontiguousarray(noisy / np.sqrt(kernel[0].size), np.float32)


def two_convolutions(first: str = "c1", second: str = "c2", *, source: str = "x", result: str = "y") -> onnx.ModelProto:
    """x[n, 16, 12, 12] through two convolutions with a Relu between them."""
    nodes = [
        helper.make_node("Conv", [source, "W1", "b1"], ["a"], name=first, pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "W2"], [result], name=second, pads=[1] * 4),
    ]
    weights = {"W1": low_rank(24, 16, 3, 3), "b1": normal(24), "W2": low_rank(24, 24, 3, 3, seed=5)}
    return make_model(nodes, [value(source, ["n", 16, 12, 12])], [value(result, ["n", 24, 12, 12])], weights)


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


NAMES = [
    "conv[0]",
    "[bold]head",
    "[/]",
    "[/conv1]",
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "\u202eright",
    ":smile:",
    "\\[x]",
    'a "b"',
    "\x07",
    "链",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_data_in_the_terminal(name: str, tmp_path: Path) -> None:
    """They are printed whole, and neither colour it nor move the cursor."""
    path = saved(two_convolutions(name, "c2", source=f"in{name}", result=f"out{name}"), tmp_path / "in.onnx")
    shown = "".join(c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" else c for c in name)
    out = tmp_path / "out[0].onnx"
    for arguments in (
        ["inspect", path],
        ["rewrite", path, out, "--rank", f"{name}=4", *QUICK],
        ["check", path, out, "--no-latency", "--max-drift", "0.0001"],
        ["bench", path, "--runs", "1", "--nodes"],
        ["insert", path, tmp_path / "none.onnx", "--node", f"{name}?", "--feature-maps", 4],
    ):
        result = run(*arguments)
        assert result.exit_code == {"check": 1, "insert": 2}.get(str(arguments[0]), 0), result.output
        assert shown in result.output
        assert not {c for c in result.output if unicodedata.category(c)[0] == "C"} - {"\n"}
    assert f"Wrote {out}" in run("rewrite", path, out, "--rank", f"{name}=4", *QUICK).output.replace("\n", "")


def refused(result: Result, *words: str) -> None:
    """Exit code 2 and one sentence that holds the words."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ") and result.stderr.count("error: ") == 1
    for word in words:
        assert word in result.stderr, result.stderr


def test_a_target_that_is_missed_is_refused_however_many_sites_there_are(tmp_path: Path) -> None:
    path = saved(two_convolutions(), tmp_path / "in.onnx")
    out = tmp_path / "out.onnx"
    target = ("--target-macs", 0.5, "--calibration", "none", *QUICK)
    refused(run("rewrite", path, out, *target, "--exclude", "c2"), "with every site at its lowest rank", "1 excluded")
    words = ("nothing can be rewritten, 1.000 of the MACs are left.", "Of 2 convolutions", "2 excluded")
    refused(run("rewrite", path, out, *target, "--exclude", "c1", "--exclude", "c2"), *words)
    refused(run("rewrite", path, out, *target, "--min-channels", 999), "2 few_channels (inspect says more)")
    assert run("rewrite", path, out, "--target-macs", 1, *target[2:], "--min-channels", 999).exit_code == 0
    relu = make_model([helper.make_node("Relu", ["x"], ["y"])], [value("x", [1, 3, 8, 8])], [value("y", [1, 3, 8, 8])])
    refused(run("rewrite", saved(relu, path), tmp_path / "none.onnx", *target), "The model has no convolution.")
    nodes = [helper.make_node("F", ["x", "W"], ["y"], name="call", domain="local")]
    body = [helper.make_node("Conv", ["a", "w"], ["b"], name="inner")]
    function = helper.make_function("local", "F", ["a", "w"], ["b"], body, [helper.make_opsetid("", 17)])
    kernel = {"W": low_rank(16, 16, 3, 3)}
    shapes = [value("x", [1, 16, 8, 8])], [value("y", [1, 16, 6, 6])]
    saved(make_model(nodes, *shapes, kernel, domains=["local"], functions=[function]), path)
    refused(run("rewrite", path, tmp_path / "none.onnx", *target), "1 in_function", "--inline-functions")
    assert run("rewrite", path, out, *target, "--inline-functions").exit_code == 0
    assert not (tmp_path / "none.onnx").exists()


def test_models_come_as_bytes_and_open_files(tmp_path: Path) -> None:
    proto = two_convolutions()
    data = proto.SerializeToString()
    options = {"ranks": {"c1": 4}, "provider": "none", "latency": False, "calibration": None}
    wanted = to_bytes(onnx_pointwise.rewrite(proto, **options).model)
    opened = io.BytesIO(data)
    path = saved(proto, tmp_path / "in.onnx")
    with path.open("rb") as stream:
        for source in (data, bytearray(data), memoryview(data), opened, opened, stream):
            assert to_bytes(onnx_pointwise.rewrite(source, **options).model) == wanted
    assert len(onnx_pointwise.inspect(opened).sites) == 2
    assert onnx_pointwise.check(opened, data, latency=False).passed
    opened.close()
    for source, words in (
        (data[:-200], "The bytes given are not an ONNX model, or truncated"),
        (io.BytesIO(b"nonsense"), "The bytes given are not an ONNX model"),
        (io.StringIO("text"), "The open file given is one of text; open it in binary mode"),
        (opened, "The open file given cannot be read as a model"),
        (None, "An object of type NoneType is no model; give a path"),
        (3.5, "An object of type float is no model"),
    ):
        with pytest.raises(ModelError, match=words):
            onnx_pointwise.rewrite(source, **options)


@pytest.mark.parametrize("provider", [None, 3, ["cpu"]])
def test_a_provider_that_is_no_text_is_refused(provider: Any) -> None:
    words = "An execution provider is named by text, such as 'cpu'"
    for call in (
        lambda: onnx_pointwise.rewrite(two_convolutions(), target_macs=0.5, provider=provider),
        lambda: onnx_pointwise.bench(two_convolutions(), provider=provider),
        lambda: onnx_pointwise.check(two_convolutions(), two_convolutions(), providers=[provider]),
    ):
        with pytest.raises(ProviderError, match=words):
            call()


def test_a_network_without_known_sizes_says_so() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    model = make_model(nodes, [value("x", ["n", 3])], [value("y", None, np.int64)])
    result = onnx_pointwise.check(model, model, latency=False)
    assert result.to_dict()["before"]["activation_bytes"] is None
    console = Console(width=100, file=io.StringIO())
    console.print(report.check(result))
    assert "unknown unknown" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.fixture
def crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, one with external data, examples for them, a plan, and other names for some of them."""
    monkeypatch.chdir(tmp_path)
    saved(two_convolutions(), tmp_path / "in.onnx")
    save(load(two_convolutions()), tmp_path / "big.onnx", use_external_data_format=True)
    np.savez(tmp_path / "examples.npz", x=normal(4, 16, 12, 12))
    assert run("rewrite", "in.onnx", "out.onnx", "--rank", "c1=4", *QUICK, "--save-plan", "plan.json").exit_code == 0
    (tmp_path / "out.onnx").unlink()
    (tmp_path / "soft").symlink_to("in.onnx")
    os.link(tmp_path / "examples.npz", tmp_path / "hard")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(item.relative_to(folder)): str(item.readlink()) if item.is_symlink() else item.read_bytes()
        for item in sorted(folder.rglob("*"))
        if not item.is_dir()
    }


@pytest.mark.parametrize(
    "line",
    [
        "rewrite in.onnx in.onnx",
        "rewrite in.onnx soft",
        "rewrite in.onnx OUT --json in.onnx",
        "rewrite in.onnx OUT --json ./OUT",
        "rewrite in.onnx OUT --save-plan OUT",
        "rewrite in.onnx OUT --save-plan j --json j",
        "rewrite in.onnx OUT --json hard",
        "rewrite in.onnx OUT --json examples.npz",
        "rewrite in.onnx examples.npz",
        "rewrite big.onnx DATA",
        "rewrite big.onnx OUT --json DATA",
        "rewrite in.onnx OUT --inputs examples.npz --json examples.npz",
        "rewrite in.onnx plan.json --plan plan.json",
        "rewrite in.onnx /dev/stdout",
        "rewrite in.onnx OUT --json /dev/null",
        "insert in.onnx in.onnx --node c1 --feature-maps 4",
        "insert in.onnx OUT --node c1 --feature-maps 4 --json soft",
        "check in.onnx big.onnx --json big.onnx",
        "check in.onnx big.onnx --json DATA",
        "check in.onnx big.onnx --inputs examples.npz --json hard",
        "bench in.onnx --json in.onnx",
        "bench in.onnx big.onnx --json DATA",
        "inspect in.onnx --json soft",
    ],
)
def test_nothing_that_was_named_is_overwritten(line: str, crowd: Path) -> None:
    (data,) = crowd.glob("big.onnx.*.data")
    words = [data.name if word == "DATA" else word for word in line.split()]
    if words[0] == "rewrite":
        words += [*QUICK] if "--plan" in words else ["--rank", "c1=4", *QUICK]
        words += ["--calibration", "examples.npz:x"]
    before = contents(crowd)
    refused(run(*words), "name another file")
    assert contents(crowd) == before


def test_links_are_written_through(crowd: Path) -> None:
    (crowd / "store").mkdir()
    for name in ("model", "json", "plan"):
        (crowd / name).symlink_to(crowd / "store" / name)
    line = ("--rank", "c1=4", *QUICK, "--json", "json", "--save-plan", "plan", "--calibration", "none")
    for _ in range(2):
        assert run("rewrite", "in.onnx", "model", *line).exit_code == 0
        assert sorted(item.name for item in (crowd / "store").iterdir()) == ["json", "model", "plan"]
        assert all((crowd / name).is_symlink() for name in ("model", "json", "plan"))
    assert run("check", "in.onnx", "model", "--no-latency").exit_code == 0


def test_json_for_standard_output_is_no_file(crowd: Path) -> None:
    result = run("inspect", "in.onnx", "--json", "-")
    assert result.exit_code == 0 and json.loads(result.stdout)["sites"]
    assert not (crowd / "-").exists()


def detector() -> onnx.ModelProto:
    """As many rows come out as there are large values; with fewer than three, as on random inputs, TopK fails."""
    nodes = [
        helper.make_node("Conv", ["x", "W1"], ["a"], name="c1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "W2"], ["c"], name="c2", pads=[1] * 4),
        helper.make_node("Greater", ["c", "limit"], ["large"]),
        helper.make_node("Reshape", ["large", "flat"], ["kept"]),
        helper.make_node("Compress", ["c", "kept"], ["found"]),
        helper.make_node("TopK", ["found", "three"], ["y", "where"]),
    ]
    stored = {"limit": np.array(300, np.float32), "flat": np.array([-1]), "three": np.array([3])}
    weights = {"W1": low_rank(24, 16, 3, 3), "W2": low_rank(24, 24, 3, 3, seed=5), **stored}
    return make_model(nodes, [value("x", [1, 16, 12, 12])], [value("y", [3])], weights)


def test_networks_that_fail_on_random_inputs_are_planned_on_those_given(tmp_path: Path) -> None:
    path = saved(detector(), tmp_path / "in.onnx")
    np.savez(tmp_path / "given.npz", x=1000 * normal(4, 16, 12, 12))
    refused(run("bench", path, "--runs", 1), "does not run")
    given = ("--inputs", tmp_path / "given.npz")
    assert run("bench", path, *given, "--runs", 1, "--max-seconds", 0.1, "--nodes").exit_code == 0
    line = ("rewrite", path, tmp_path / "out.onnx", "--target-macs", 0.7, "--calibration", "none", "--no-cache")
    result = run(*line, *given)
    assert result.exit_code in (0, 1, 2) and "does not run" not in result.output, result.output
    assert isinstance(result.exception, SystemExit | None)


def test_nothing_is_drawn_where_nothing_can_be_rewritten() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = make_model(nodes, [value("x", ["n", 3, 64, 64])], [value("y", None)])
    result = onnx_pointwise.rewrite(model, ratio=0.5, latency=False, provider="none")
    assert "No convolution of the model can be rewritten" in result.calibration["sentence"]
    with pytest.raises(TargetError, match=r"The model has no convolution\."):
        onnx_pointwise.rewrite(model, target_macs=0.5, latency=False, provider="none")


def noisy() -> onnx.ModelProto:
    """Noise as large as what it is added to."""
    model = two_convolutions()
    model.graph.node.insert(1, helper.make_node("RandomNormalLike", ["a"], ["noise"], name="noise", scale=2.0))
    model.graph.node.insert(2, helper.make_node("Add", ["a", "noise"], ["s"]))
    model.graph.node[3].input[0] = "s"
    return model


def test_random_nodes_draw_alike_in_both_networks(tmp_path: Path) -> None:
    path, out = saved(noisy(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert run("check", path, path, "--no-latency", "--max-drift", "1e-6").exit_code == 0
    result = run("rewrite", path, out, "--rank", "c2=24", "--rank", "c1=8", *QUICK)
    assert result.exit_code == 0, result.output
    assert "'noise' draw random numbers; for the comparison they drew the same in both" in result.output
    written = onnx.load(out)
    (node,) = [item for item in written.graph.node if item.op_type == "RandomNormalLike"]
    assert [item.name for item in node.attribute] == ["scale"]
    plain, drawn = (
        onnx_pointwise.rewrite(model, ranks={"c1": 8}, latency=False, provider="none", calibration=None).check
        for model in (two_convolutions(), noisy())
    )
    assert plain is not None and drawn is not None
    assert drawn.drift["y"].relative_l2 < plain.drift["y"].relative_l2


def answers(*kinds: str) -> onnx.ModelProto:
    """Two convolutions whose result comes as a tensor, a sequence of its halves, or a map of its mean."""
    model = two_convolutions(result="tensor")
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name)
        for name, array in {"half": np.array(12), "sizes": np.array([0, -1]), "V": normal(24, 3)}.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("SplitToSequence", ["tensor", "half"], ["sequence"], axis=1),
            helper.make_node("GlobalAveragePool", ["tensor"], ["p"]),
            helper.make_node("Reshape", ["p", "sizes"], ["f"]),
            helper.make_node("MatMul", ["f", "V"], ["g"]),
            helper.make_node("ZipMap", ["g"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        ]
    )
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    zipped = onnx.ValueInfoProto(name="map")
    zipped.type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    zipped.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    declared = {
        "tensor": model.graph.output[0],
        "sequence": helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, None),
        "map": zipped,
    }
    outputs = [declared[kind] for kind in kinds]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def test_where_no_output_holds_numbers_no_drift_is_said_to_be_within_limits(tmp_path: Path) -> None:
    path, out = saved(answers("map"), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = run("rewrite", path, out, "--rank", "c1=11", "--calibration", "none", *QUICK)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "no output holds numbers whose drift could be limited" in words and "within its limit" not in words


def test_sequences_are_compared_item_by_item_and_maps_are_named(tmp_path: Path) -> None:
    path, out = saved(answers("map", "sequence", "tensor"), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    assert run("inspect", path).exit_code == 0
    result = run("rewrite", path, out, "--rank", "c1=4", "--calibration", "none", *QUICK)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "Not compared: map. It is a map, or a sequence of them" in words
    assert "What it is made of is compared, 'g'." in words
    onnx.checker.check_model(onnx.load(out), full_check=True)
    found = onnx_pointwise.check(path, out, latency=False)
    assert list(found.drift) == ["sequence[0]", "sequence[1]", "tensor"]
    result = run("check", path, out, "--no-latency", "--max-drift", "sequence:0.001")
    assert result.exit_code == 1 and "Output 'sequence[1]' drifts" in " ".join(result.output.split())
    assert run("check", path, out, "--no-latency", "--max-drift", "sequence:9").exit_code == 0
    refused(run("check", path, out, "--no-latency", "--max-drift", "map:0.1"), "'map'", "holds no numbers to compare")
    # A network that puts out nothing else is compared in front of it.
    only = saved(answers("map"), tmp_path / "map.onnx")
    assert run("check", only, only, "--no-latency").exit_code == 0
    assert [(head.value, head.kind) for head in onnx_pointwise.check(only, only, latency=False).heads] == [
        ("g", "classes")
    ]


def test_a_limit_that_compared_nothing_has_failed_and_the_first_node_is_named(tmp_path: Path) -> None:
    model = two_convolutions()
    model.graph.node.insert(0, helper.make_node("Log", ["x"], ["l"], name="logarithm"))
    model.graph.node[1].input[0] = "l"
    path = saved(model, tmp_path / "in.onnx")
    result = run("check", path, path, "--no-latency", "--max-drift", "0.1")
    assert result.exit_code == 1
    words = " ".join(result.output.split())
    assert "compared nothing on cpu: all of its" in words and "the node 'logarithm' (Log) makes" in words
    assert run("check", path, path, "--no-latency").exit_code == 1, "nor has the verdict anything to stand on"
    np.savez(tmp_path / "given.npz", x=np.abs(normal(3, 16, 12, 12)) + 0.1)
    limited = ("check", path, path, "--no-latency", "--max-drift", "0.1")
    assert run(*limited, "--inputs", tmp_path / "given.npz").exit_code == 0
