"""Sentences that bad usage and bad input get."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnx_pointwise
from onnx_pointwise.check.limits import limits_of
from onnx_pointwise.cli import parsing
from onnx_pointwise.cli.app import app
from onnx_pointwise.errors import InputError, ModelError, OnnxPointwiseError, OutputError, PlanError, ProviderError
from onnx_pointwise.examples.calibration import calibrate, read_npz
from onnx_pointwise.examples.preprocessing import Preprocessing, preprocessing_of
from onnx_pointwise.graph import Choice, Plan, find_sites, load
from onnx_pointwise.graph.files import atomic_folder, write_text
from onnx_pointwise.graph.surgery import BottleneckPass
from onnx_pointwise.graph.wire import lay_out
from onnx_pointwise.jobs.looking import not_measurable
from onnx_pointwise.numerics.allocate import knapsack
from onnx_pointwise.numerics.factorize import factorize
from onnx_pointwise.planning.budget import Budget, choose, options_of, settle
from onnx_pointwise.runtime import TwinRun, providers, resolve
from onnx_pointwise.runtime.inputs import feedable
from onnx_pointwise.settings import Settings
from onnx_pointwise.study.heads import find_heads
from tests.commands import invoke
from tests.graphs import Array, conv_model, make_model, normal, value


def network(**changes: Any) -> onnx.ModelProto:
    return conv_model(normal(6, 5, 3, 3), [8, 8], batch="N", pads=[1, 1, 1, 1], **changes)


def picture_network() -> onnx.ModelProto:
    return conv_model(normal(4, 3, 3, 3), [8, 8], batch="N", pads=[1, 1, 1, 1])


def example(source: Any, model: onnx.ModelProto | None = None, **options: Any) -> Any:
    loaded = load(network() if model is None else model)
    return calibrate(loaded, source, resolve(loaded), macs=1, **options)


def plan(document: dict[str, Any]) -> Plan:
    return Plan.from_json(json.dumps(document), where="plan.json")


def heads(**options: Any) -> Any:
    return find_heads(resolve(load(network())), **options)


def rewrite(model: onnx.ModelProto | None = None, **options: Any) -> Any:
    options = {"calibration": None, "provider": "none", "latency": False, "min_channels": 1, **options}
    return onnx_pointwise.rewrite(network() if model is None else model, **options)


def stored_sparsely() -> onnx.ModelProto:
    model = network()
    dense = helper.make_tensor("W", onnx.TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", onnx.TensorProto.INT64, [1], [0])
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(dense, places, [6, 5, 3, 3]))
    return model


def in_a_circle() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return make_model(nodes, [value("x", [1])], [value("b", [1])])


def without_inputs() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x"], ["y"], name="bare")]
    return make_model(nodes, [value("x", [1, 1, 3, 3])], [value("y", None)])


def from_nowhere() -> onnx.ModelProto:
    model = network()
    model.graph.output.append(value("ghost", [1]))
    return model


def unwritable() -> ir.Model:
    model = load(network())
    model.metadata_props["author"] = 3  # type: ignore[assignment]
    return model


def failing(message: str) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError(message)

    return fail


def without(path: Path, text: str = "") -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused_rename(path: Path) -> None:
    with atomic_folder(path / "out.onnx") as scratch:
        (scratch / "out.onnx").write_bytes(b"")
        (path / "out.onnx").mkdir()


USAGE: list[tuple[Callable[[], Any], type[OnnxPointwiseError], str]] = [
    # The command line's own small languages.
    (lambda: parsing.numbers("--mean", "1,a"), InputError, "--mean 1,a: write numbers with commas between them."),
    (lambda: parsing.size("--memory", "10K"), InputError, "--memory 10K: write at least a megabyte, as 500M or 2G."),
    (lambda: parsing.size("--memory", "much"), InputError, "--memory much: write at least a megabyte, as 500M or 2G."),
    (
        lambda: parsing.function("--evaluate", "no_such_module:f"),
        InputError,
        "--evaluate no_such_module:f: cannot be imported as MODULE:FUNCTION: No module named 'no_such_module'.",
    ),
    (lambda: parsing.function("--evaluate", "math:pi"), InputError, "--evaluate math:pi: pi is not a function."),
    (
        lambda: parsing.forms("--form", ["reduce", "squeeze"]),
        PlanError,
        "--form squeeze: use one or more of reduce, expand, reduce_expand, vertical, horizontal, depthwise.",
    ),
    (
        lambda: parsing.tolerances("--max-drift", ["y:little"]),
        PlanError,
        "--max-drift y:little: write it as 0.01 or NAME:0.01.",
    ),
    (
        lambda: parsing.tolerances("--max-drift", ["0.1", "y:0.2"]),
        PlanError,
        "--max-drift: give one number for all outputs, or one for each named output, not both.",
    ),
    (
        lambda: parsing.heads("--head", [""]),
        PlanError,
        "--head : name a value, as VALUE, VALUE:2, VALUE:classes or VALUE:2:classes.",
    ),
    (
        lambda: parsing.limits("--limit", ["picture:high"]),
        PlanError,
        "--limit picture:high: write it as presence:0.99,0.95,0.8.",
    ),
    (
        lambda: parsing.ranks("--rank", ["conv=many"]),
        PlanError,
        "--rank conv=many: write it as NODE=32, NODE=expand:32 or NODE=24,32.",
    ),
    (
        lambda: parsing.shapes("--input-shape", ["x:wide"]),
        PlanError,
        "--input-shape x:wide: write it as NAME:1,3,224,224.",
    ),
    # What is asked of the check.
    (
        lambda: onnx_pointwise.check(network(), network(), require="broken", latency=False),
        InputError,
        "What is required must be one of same, close, changed, not 'broken'.",
    ),
    (
        lambda: limits_of({"boxes": (1, 2, 3)}),
        InputError,
        "There is no kind of head 'boxes' to limit; the kinds are classes, presence, picture, gain, numbers.",
    ),
    # Where a network answers.
    (lambda: heads(ignored=["z"]), InputError, "The model has no output 'z' to ignore; its outputs are y."),
    (lambda: heads(ignored=["y"]), InputError, "Every output is ignored; name at least one that counts."),
    (
        lambda: heads(named={"y": -1.0}),
        InputError,
        "The weight of head 'y' must be a number of at least 0, not -1.0.",
    ),
    (
        lambda: heads(named={"z": 1.0}),
        InputError,
        "The model computes no value 'z' to measure at; its heads are 'y'.",
    ),
    (lambda: heads(named={"y": 0.0}), InputError, "The weights of the heads are all 0; give one of them a weight."),
    # Example inputs.
    (
        lambda: example("synthetic"),
        InputError,
        "Synthetic images need one image input with 1 or 3 channels; the model takes x: float32[N, 5, 8, 8].",
    ),
    (
        lambda: example(normal(4, 3, 8), picture_network(), preprocessing="imagenet"),
        InputError,
        "Images are [N, C, H, W] or [N, H, W, C], but an array of shape (4, 3, 8) was given.",
    ),
    (
        lambda: example(normal(4, 5, 8, 8), preprocessing="imagenet"),
        InputError,
        "A value range or layout was given, but the model does not take images.",
    ),
    (
        lambda: example([{"x": normal(1, 5, 8, 8)}, {"z": normal(1, 5, 8, 8)}]),
        InputError,
        "One calibration batch holds z, another one x.",
    ),
    (
        lambda: example([normal(1, 5, 8, 8), normal(1, 5, 8, 9)]),
        InputError,
        "Calibration inputs of 'x' differ in kind: float32[5, 8, 8] and float32[5, 8, 9]; give equal ones.",
    ),
    (
        lambda: example({"x": np.float32(1.0)}),
        InputError,
        "Calibration input 'x' is a single number, of which no example can be told from another; make it a constant of "
        "the model, or take no examples (--calibration none).",
    ),
    (
        lambda: example(
            np.where(np.arange(4) == 2, np.nan, 1.0).astype(np.float32).reshape(4, 1, 1, 1)
            * np.ones((4, 5, 8, 8), np.float32)
        ),
        InputError,
        "Calibration input 'x' holds NaN or infinity, first in example 2.",
    ),
    (lambda: example(7), InputError, "Calibration inputs cannot come from an object of type int."),
    (
        lambda: example(normal(4, 5, 8, 8), limit=0),
        InputError,
        "The number of calibration inputs must be at least 1, not 0.",
    ),
    (lambda: Preprocessing(scale=0.0), InputError, "The scale must be a finite number other than 0, not 0."),
    (
        lambda: Preprocessing(std=(0.0,)),
        InputError,
        "Mean and standard deviation must be finite, and the latter not 0.",
    ),
    (
        lambda: Preprocessing(channel_order="grb"),  # type: ignore[arg-type]
        InputError,
        "The channel order is rgb or bgr, not grb.",
    ),
    (
        lambda: preprocessing_of(None, mean=(), std=(), scale=None, channel_order="grb"),  # type: ignore[arg-type]
        InputError,
        "The channel order is rgb or bgr, not grb.",
    ),
    # Models.
    (
        lambda: load(stored_sparsely()),
        ModelError,
        "the given ModelProto: the initializer 'W' is sparse; export the model with dense weights.",
    ),
    (
        lambda: load(in_a_circle()),
        ModelError,
        "the given ModelProto: its nodes feed one another in a circle; export the model again.",
    ),
    (
        lambda: load(without_inputs()),
        ModelError,
        "the given ModelProto: the node 'bare' (Conv) lacks inputs or outputs; export the model again.",
    ),
    (
        lambda: load(from_nowhere()),
        ModelError,
        "the given ModelProto: the output 'ghost' comes from no node; export the model again.",
    ),
    (lambda: lay_out(unwritable()), ModelError, "The model cannot be written: "),
    # Plans.
    (lambda: Plan.from_json("{", where="plan.json"), PlanError, "plan.json: not JSON: "),
    (
        lambda: Plan.from_json('{"sites": {"a": {}, "a": {}}}', where="plan.json"),
        PlanError,
        "plan.json: 'a' stands in it twice; keep one of them.",
    ),
    (
        lambda: plan({"sites": {}, "format": "recipe"}),
        PlanError,
        "plan.json: not a plan: its format is 'recipe', not 'onnx_pointwise plan'.",
    ),
    (
        lambda: plan({"sites": {}, "version": 99}),
        PlanError,
        "plan.json: version 99 of the plan format is not known here.",
    ),
    (
        lambda: plan({"sites": {}, "budget": []}),
        PlanError,
        "plan.json: 'budget' must be an object; it may be left out.",
    ),
    (
        lambda: plan({"sites": {"a": 3}}),
        PlanError,
        "plan.json: site 'a' needs an object with 'form' and 'rank'.",
    ),
    (
        lambda: rewrite(plan=Plan({"conw": Choice("reduce", 2)})),
        PlanError,
        "The model has no convolution 'conw'; its convolutions are named like 'conv'.",
    ),
    # Budgets.
    (lambda: Budget(ratio=0.5, energy=0.5), PlanError, "Name one budget, not energy and ratio at once."),
    (lambda: Budget(ratio=1.5), PlanError, "The budget ratio is a share above 0 and at most 1, not 1.5."),
    (
        lambda: knapsack([np.array([[2.0], [3.0]])], [np.array([1.0, 0.0])], [1.0]),
        PlanError,
        "No plan stays within the budget; raise it, or allow more forms or sites.",
    ),
    (
        lambda: options_of(settle([], Budget(ratio=0.5)), Budget(ratio=0.5), forms=()),
        PlanError,
        "Name at least one form of reduce, expand, reduce_expand, vertical, horizontal, depthwise.",
    ),
    (
        lambda: not_measurable(Settings(provider="none", target_latency=0.5)),
        PlanError,
        "A target for the latency needs measurements, but the provider none measures nothing; name another provider.",
    ),
    (
        lambda: choose([], settle([], Budget(target_latency=0.5)), Budget(target_latency=0.5), [], None),  # type: ignore[arg-type]
        PlanError,
        "A target for the latency needs a provider to measure on; none plans by arithmetic alone.",
    ),
    (
        lambda: rewrite(),
        PlanError,
        "Without a target, the cheapest network is searched whose answers stay the same, and only example inputs tell",
    ),
    (
        lambda: rewrite(ratio=0.9, evaluate=failing("no data")),
        InputError,
        "The score function of evaluate failed with ValueError: no data; it takes a session and gives a number.",
    ),
    # Arrays.
    (
        lambda: factorize(np.ones((2, 2, 3, 3), np.int32), "reduce", 1),
        PlanError,
        "a kernel of dtype int32 cannot be factorised; it must be float16, bfloat16, float32, float64",
    ),
    (
        lambda: factorize(np.ones((2, 2, 3, 3)), "reduce", 0),
        PlanError,
        "the rank of reduce must be a whole number of at least 1, not 0",
    ),
    (
        lambda: factorize(np.ones((2, 2, 3, 3)), "reduce_expand", (1, 2, 3)),  # type: ignore[arg-type]
        PlanError,
        "the rank of reduce_expand must be a whole number of at least 1 or a pair of them, not (1, 2, 3)",
    ),
    (
        lambda: BottleneckPass(Plan({"conv": Choice("reduce", 1)}))(load(overflowing())),
        PlanError,
        "Convolution 'conv': the factors overflow float16; convert the model to float32 first.",
    ),
    (
        lambda: feedable({"x": np.zeros(1, ml_dtypes.bfloat16)}),
        InputError,
        "Input 'x' is bfloat16, which ONNX Runtime takes from no NumPy array; cast it inside the model.",
    ),
]


def overflowing() -> onnx.ModelProto:
    """A kernel near the largest float16: two equal rows make a factor beyond it."""
    return conv_model(np.full((4, 4, 3, 3), 6e4, np.float16), [8, 8], batch=1)


@pytest.mark.parametrize(("call", "kind", "said"), USAGE, ids=[said[:60] for _, _, said in USAGE])
def test_what_bad_usage_is_told(call: Callable[[], Any], kind: type[OnnxPointwiseError], said: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert said in str(caught.value)


def archive(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def folder_of_images(path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(path / "a.png")
    return path


FILES: list[tuple[Callable[[Path], Any], type[OnnxPointwiseError], str]] = [
    (
        lambda path: read_npz(f"{archive(path / 'a.npz', x=normal(1))}:z"),
        InputError,
        "a.npz: holds no array 'z'; it holds x.",
    ),
    (
        lambda path: example(archive(path / "a.npz", first=normal(1), second=normal(1))),
        InputError,
        "a.npz: holds first, second, none of which is the model's input x: float32[N, 5, 8, 8]; pick one with a.npz:",
    ),
    (
        lambda path: example(path / "absent.npz"),
        InputError,
        "absent.npz: no such file or folder of calibration inputs.",
    ),
    (
        lambda path: example(without(path / "a.csv")),
        InputError,
        "a.csv: calibration inputs come from .npz, .npy or a folder, not '.csv'.",
    ),
    (
        lambda path: example(folder_of_images(path)),
        InputError,
        "holds images, but the model takes x: float32[N, 5, 8, 8].",
    ),
    (lambda path: refused_rename(path), OutputError, "out.onnx: cannot be written (Is a directory)."),
    (
        lambda path: rewrite(plan=path / "absent.json"),
        PlanError,
        "absent.json: no such file.",
    ),
]


@pytest.mark.parametrize(("call", "kind", "said"), FILES, ids=[said[:60] for _, _, said in FILES])
def test_what_bad_files_are_told(
    call: Callable[[Path], Any], kind: type[OnnxPointwiseError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        call(tmp_path)
    assert said in str(caught.value)


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"out\.onnx: cannot be written \(No space left on device\)\."):
        write_text(tmp_path / "out.onnx", "a network")
    assert not list(tmp_path.iterdir())


def test_what_one_model_is_not_asked(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "in.onnx")
    (tmp_path / "taken").touch()
    (tmp_path / "models").mkdir()
    onnx.save(network(), tmp_path / "models" / "a.onnx")
    for line, said in (
        (
            ["in.onnx", "out.onnx", "--quiet", "--verbose"],
            "--quiet and --verbose contradict each other; leave one out.",
        ),
        (["in.onnx", "out.onnx", "--scheduler", "tcp://127.0.0.1:1"], "--scheduler hands out models; one alone is"),
        (["models", "taken"], "taken: is a file; name a folder for the rewritten models."),
    ):
        paths = [str(tmp_path / part) if not part.startswith(("-", "tcp")) else part for part in line]
        result = invoke(app, "rewrite", *paths, "--target-macs", "0.5", "--provider", "none")
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "models", "taken"]


def test_a_value_that_hangs_on_a_site_that_is_not_done() -> None:
    proto = make_model(
        [
            helper.make_node("Conv", ["x", "V"], ["a"], name="site"),
            helper.make_node("Conv", ["a", "W"], ["y"], name="behind"),
        ],
        [value("x", ["n", 8, 6, 6])],
        [value("y", None)],
        {"V": normal(8, 8, 3, 3), "W": normal(8, 8, 3, 3)},
    )
    found = resolve(load(proto))
    sites = [site for site in find_sites(found.model, found) if site.name == "site"]
    with (
        TwinRun(found.model, sites, {"x": normal(4, 8, 6, 6)}, batch=2, memory=2**20) as twin,
        pytest.raises(ModelError, match="A value was asked for before the sites that it depends on were done"),
    ):
        twin.advance(["y"])


# --- providers that cannot be had here --------------------------------------------------------------------------------


def test_a_runtime_too_old_to_tell_what_runs_where() -> None:
    with pytest.raises(ProviderError, match=r"does not tell which provider runs a node; install 1\.24 or newer"):
        providers.nodes_off_provider(SimpleNamespace())  # type: ignore[arg-type]


def test_a_provider_that_refuses_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_require", lambda entry, options: None)
    monkeypatch.setattr(providers, "_create", failing("no kernel for Conv"))
    with pytest.raises(ProviderError, match="Provider cuda cannot run the model in memory: no kernel for Conv; try"):
        providers.open_session(b"", "cuda")


def test_a_runtime_without_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(providers.ort, "register_execution_provider_library")
    entry, options = providers._parse("webgpu")
    with pytest.raises(ProviderError, match=r"takes no plug-ins; install onnxruntime 1\.24 or newer"):
        providers._plugin_devices(entry, options)
