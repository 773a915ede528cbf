"""Damage files at random and see what the commands make of them: an answer or a sentence, in bounded time and memory.

    python -m tools.fuzz_files --count 20000 --seed 0

Each case damages a model, a plan, a configuration, example inputs or a picture, by bytes or, in a model, field by
field, and runs a command on it. Cases come from their number alone, so that one can be looked at: ``--first 1234
--count 1``. They run in processes of their own, which may die of them. Exit code 1 where a case crashed, gave a
traceback, took longer than 10 seconds of processor time or more than 1 GiB, or left a file although it failed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

#: What a case may take: seconds of processor time, and bytes.
SECONDS, BYTES = 10.0, 2**30
# What a process may reserve, mapped libraries included.
_ADDRESSES = 12 * 2**30
# Seconds after which a case is given up, however busy the machine is.
_PATIENCE = 600.0
# Cases after which a process lays aside what it keeps.
_FROZEN = 100
_QUICK = ("--provider", "none", "--no-latency", "--min-channels", "2")
_INTERESTING = (0, 1, -1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))


@dataclass(frozen=True)
class Case:
    """A command on damaged files.

    Attributes:
        kind: What was damaged, and how.
        files: Files by name.
        line: The command.
    """

    kind: str
    files: dict[str, bytes]
    line: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        number: The case.
        kind: What was damaged, and how.
        line: The command.
        code: Its exit code.
        seconds: Of processor time.
        peak: Bytes that the process held at most.
        fault: What was wrong with that; empty where nothing was.
    """

    number: int
    kind: str
    line: str
    code: int
    seconds: float
    peak: int
    fault: str = ""


# --- what is damaged --------------------------------------------------------------------------------------------------


def _weights(*shape: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _model(nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], output: Sequence[Any], **more: Any) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)
    data: bytes = model.SerializeToString()
    return data


def plain_model() -> bytes:
    """Convolutions with all that folds into them."""
    nodes = [
        helper.make_node("Conv", ["x", "W1", "b1"], ["a"], name="c1", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", "s", "b1", "m", "v"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "W2"], ["c"], name="c2", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("ConvTranspose", ["c", "W3"], ["t"], name="up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["t"], ["p"]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "V", "d"], ["g"], name="fc"),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    weights: dict[str, Any] = {"W1": _weights(8, 4, 3, 3, seed=1), "W2": _weights(8, 8, 3, 3, seed=2)}
    weights |= {"W3": _weights(8, 6, 2, 2, seed=3), "V": _weights(6, 5, seed=4), "d": _weights(5, seed=5)}
    weights |= {name: np.abs(_weights(8, seed=6)) + 0.1 for name in ("b1", "s", "m", "v")}
    return _model(nodes, weights | {"shape": np.array([0, -1])}, ["n", 5])


def nested_model() -> bytes:
    """Branches, local functions, constants that nodes make, odd outputs."""
    branch = helper.make_graph(
        [helper.make_node("Conv", ["x", "W"], ["i"], name="inner", pads=[1] * 4)],
        "then",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(_weights(4, 4, 3, 3, seed=7), "W")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["j"])], "else", [], [helper.make_tensor_value_info("j", 1, None)]
    )
    body = [helper.make_node("Conv", ["a", "w"], ["b"], name="local", pads=[1] * 4)]
    function = helper.make_function("local", "F", ["a", "w"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["k"], then_branch=branch, else_branch=other),
        helper.make_node("Cast", ["H"], ["W1"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["W1"], ["W2"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["k", "W2"], ["c"], name="c", pads=[1] * 4),
        helper.make_node("Conv", ["c", "W2"], ["e"], name="shared", pads=[1] * 4),
        helper.make_node("F", ["e", "W2"], ["q"], domain="local"),
        helper.make_node("Resize", ["q", "", "scales"], ["y"], mode="nearest"),
    ]
    weights = {"H": _weights(4, 4, 3, 3, seed=8).astype(np.float16), "scales": np.array([1, 1, 2, 2], np.float32)}
    return _model(nodes, weights, ["n", 4, 16, 16], functions=[function])


def external_model() -> tuple[bytes, bytes]:
    """A convolution whose kernel lies in a file of its own."""
    model = onnx.load_from_string(plain_model())
    tensor = model.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "data.bin"), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString(), data


_PLAN = json.dumps(
    {
        "format": "onnx_pointwise plan",
        "version": 1,
        "method": "svd",
        "budget": {"target_macs": 0.5},
        "latency": {"sites": {"c1": {"dense": 1.0, "rewritten": 0.5}}},
        "sites": {"c1": {"form": "reduce", "rank": 2}, "c2": {"form": "reduce_expand", "rank": [3, 4], "error": 0.1}},
    },
    indent=1,
).encode()
_CONFIG = (
    b"ratio: 0.5\nrank: {c1: 2}\nexclude: [up, c2]\nlatency: false\nprovider: none\ncalibration: none\nform: reduce\n"
)


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _picture() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(stream, "PNG")
    return stream.getvalue()


# --- how it is damaged ------------------------------------------------------------------------------------------------


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut out, repeat or move bytes, a few times."""
    held = bytearray(data)
    for _ in range(int(rng.geometric(0.4))):
        if not held:
            break
        at = int(rng.integers(len(held)))
        length = int(min(rng.geometric(0.1), len(held) - at))
        match int(rng.integers(7)):
            case 0:
                held[at] ^= 1 << int(rng.integers(8))
            case 1:
                held[at] = int(rng.integers(256))
            case 2:
                del held[at : at + length]
            case 3:
                held[at:at] = held[at : at + length] * int(rng.integers(1, 4))
            case 4:
                del held[at:]
            case 5:
                held[at : at + length] = rng.bytes(length)
            case _:
                held[at : at + 1] = int(rng.choice([0, 127, 128, 255])).to_bytes() * int(rng.integers(1, 11))
    return bytes(held)


def damaged_fields(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a few fields of a model, anywhere in it; each stays of its kind, and none keeps its meaning."""
    model = onnx.load_from_string(data)
    for _ in range(int(rng.geometric(0.5))):
        places = list(_places(model))
        message, field = places[int(rng.integers(len(places)))]
        try:
            _change(message, field, rng)
        except (ValueError, TypeError, AttributeError):  # what this kind of field does not take
            continue
    changed: bytes = model.SerializeToString()
    return changed


def _places(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _places(item)


def _change(message: Any, field: Any, rng: np.random.Generator) -> None:
    value = getattr(message, field.name)
    if not field.is_repeated:
        if field.message_type is not None or rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _other(value, rng))
        return
    at = int(rng.integers(len(value)))
    match int(rng.integers(4)):
        case 0:
            del value[at]
        case 1:
            value.append(value[at])
        case 2 if field.message_type is None:
            value[at] = _other(value[at], rng)
        case _:
            other = int(rng.integers(len(value)))
            if field.message_type is None:
                value[at], value[other] = value[other], value[at]
            else:
                value[at].CopyFrom(value[other])


def _other(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, bool | int):
        return (
            int(rng.choice(np.array(_INTERESTING, object)))
            if rng.random() < 0.5
            else int(value) + int(rng.choice([-1, 1]))
        )
    if isinstance(value, float):
        return float(rng.choice([0.0, -1.0, np.inf, np.nan, 1e38, 1e-45]))
    if isinstance(value, bytes):
        return damaged_bytes(value, rng)
    names = [
        "",
        "x",
        "y",
        "a",
        "W1",
        "\x1b[31m",
        "[/]",
        "../data.bin",
        "/etc/passwd",
        "\u202e",
        "z" * 5000,
        "Conv",
        "-1",
    ]
    return str(rng.choice(names))


def case(seed: int, number: int) -> Case:
    """Make a case, from its number alone."""
    rng = np.random.default_rng([seed, number])
    out = ("out.onnx", "--json", "out.json", "--save-plan", "out.plan")
    rewrite = ("rewrite", "in.onnx", *out, *_QUICK, "--calibration", "none")
    commands = (
        ("inspect", "in.onnx", "--json", "out.json"),
        (*rewrite, "--ratio", "0.5", "--no-check"),
        (*rewrite, "--ratio", "0.5"),
        ("insert", "in.onnx", "out.onnx", "--node", "c1", "--feature-maps", "2", "--calibration", "none", "--no-check"),
        ("check", "whole.onnx", "in.onnx", "--no-latency"),
    )
    files = {"in.onnx": plain_model()}
    line = commands[int(rng.choice(len(commands), p=[0.35, 0.35, 0.1, 0.1, 0.1]))]
    pick = rng.random()
    if pick < 0.7:
        source, data = (plain_model(), b"") if rng.random() < 0.5 else (nested_model(), b"")
        if rng.random() < 0.2:
            source, data = external_model()
        by_field = rng.random() < 0.6
        files = {"in.onnx": (damaged_fields if by_field else damaged_bytes)(source, rng), "data.bin": data}
        if line[0] == "check":
            files["whole.onnx"] = plain_model()
        return Case("model, fields" if by_field else "model, bytes", files, line)
    if pick < 0.78:
        files["plan.json"] = damaged_bytes(_PLAN, rng)
        return Case("plan", files, (*rewrite, "--plan", "plan.json", "--no-check"))
    if pick < 0.86:
        name = str(rng.choice(["c.yaml", "c.json"]))
        files[name] = damaged_bytes(_CONFIG if name == "c.yaml" else _PLAN, rng)
        return Case("configuration", files, ("rewrite", "in.onnx", *out, "--no-check", "--config", name))
    examples = (*rewrite[:-1], "PLACE", "--ratio", "0.5", "--no-check", "--calibration-limit", "4")
    array = _weights(4, 4, 8, 8, seed=9)
    name, data = (("e.npz", _npz(x=array)), ("e.npy", _npy(array)), ("e/p.png", _picture()))[int(rng.integers(3))]
    files[name] = damaged_bytes(data, rng)
    if name == "e/p.png":
        model = onnx.load_from_string(files["in.onnx"])
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(_weights(8, 3, 3, 3, seed=1), "W1"))
        files["in.onnx"] = model.SerializeToString()
    where = name.partition("/")[0]
    return Case(f"examples, {Path(name).suffix}", files, tuple(where if word == "PLACE" else word for word in examples))


# --- what becomes of it -----------------------------------------------------------------------------------------------


def run_case(made: Case, number: int) -> Outcome:
    """Run a case in this process, in a folder of its own."""
    import resource

    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            for name, data in made.files.items():
                Path(name).parent.mkdir(exist_ok=True)
                Path(name).write_bytes(data)
            _reset_peak()
            start = resource.getrusage(resource.RUSAGE_SELF)
            result = _invoke(made.line)
            end = resource.getrusage(resource.RUSAGE_SELF)
            there = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
        finally:
            os.chdir(before)
    seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    outcome = Outcome(number, made.kind, " ".join(made.line), result.exit_code, seconds, _peak())
    fault = _fault(result, sorted(there - set(made.files)), outcome)
    return Outcome(**(asdict(outcome) | {"fault": fault}))


@dataclass(frozen=True)
class _Result:
    """How a command ended: with what exit code or exception, and what it printed."""

    exit_code: int
    exception: Exception | None
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


@functools.cache
def _command() -> Any:
    """The commands, read once for all cases: that takes longer than most of these."""
    from onnx_pointwise.cli.app import app

    return typer.main.get_command(app)


def _invoke(line: Sequence[str]) -> _Result:
    """Run a command in this process as the shell would."""
    printed, said = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code, failure = 0, None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            _command().main(list(line), prog_name="onnx-pointwise")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:
            code, failure = 1, error
    texts = [stream.buffer.getvalue().decode() for stream in (printed, said)]
    return _Result(code, failure, texts[0], texts[1])


def _fault(result: Any, new: Sequence[str], outcome: Outcome) -> str:
    if result.exception is not None:
        return "".join(traceback.format_exception(result.exception))[-2000:]
    if result.exit_code not in (0, 1, 2):
        return f"exit code {result.exit_code}"
    if "Traceback" in result.output:
        return str(result.output)[-2000:]
    if result.exit_code == 2 and new:
        return f"exit code 2, but it left {', '.join(new)}"
    if result.exit_code == 2 and not result.stderr.strip():
        return "exit code 2 without a sentence"
    if outcome.seconds > SECONDS:
        return f"took {outcome.seconds:.1f} seconds"
    return f"took {outcome.peak / 2**20:.0f} MiB" if outcome.peak > BYTES else ""


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _peak() -> int:
    return _status("VmHWM") if sys.platform == "linux" else 0


def _reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _work(seed: int) -> None:
    """Run the cases whose numbers come in, one a line, and answer each with a line."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))  # a fault must not take the machine with it
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # native libraries write where they like
    for turn, text in enumerate(sys.stdin):
        if turn % _FROZEN == 1:
            # What the imports left is looked through in every collection otherwise, and jobs collect often.
            gc.collect()
            gc.freeze()
        answers.write(json.dumps(asdict(run_case(case(seed, int(text)), int(text)))) + "\n")
        answers.flush()


class _Worker:
    """A process that runs cases, and is replaced when it dies of one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None

    def run(self, number: int) -> Outcome:
        process = self._process
        if process is None:
            line = [sys.executable, "-m", "tools.fuzz_files", "--worker", "--seed", str(self._seed)]
            root = str(Path(__file__).resolve().parents[1])
            environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = self._process = subprocess.Popen(line, text=True, env=environment, **pipes)  # type: ignore[call-overload]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        text = _line(process.stdout)
        if text:
            return Outcome(**json.loads(text))
        ended = process.poll()
        self.close()
        made = case(self._seed, number)
        code = -int(signal.SIGKILL) if ended is None else ended
        fault = f"hung for {_PATIENCE:.0f} s" if ended is None else f"the process died with {ended}"
        return Outcome(number, made.kind, " ".join(made.line), code, 0.0, 0, fault)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _line(stream: IO[str]) -> str:
    """Read a line; nothing where the other side is gone, or takes too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        line: str = stream.readline() if selector.select(_PATIENCE) else ""
    return line


def fuzz(
    count: int, *, first: int = 0, seed: int = 0, workers: int = 1, told: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run cases.

    Args:
        count: How many.
        first: The number of the first one.
        seed: What all of them are drawn from.
        workers: Processes at a time.
        told: Called with each outcome.

    Returns:
        The outcomes in order.
    """
    outcomes: list[Outcome] = []
    numbers = iter(range(first, first + count))
    lock = threading.Lock()

    def work() -> None:
        worker = _Worker(seed)
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                outcome = worker.run(number)
                with lock:
                    outcomes.append(outcome)
                    if told is not None:
                        told(outcome)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(outcomes, key=lambda outcome: outcome.number)


def zip_bomb(size: int) -> bytes:
    """An ``.npz`` whose one array is so many zeros."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("x.npy", "w") as f,
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        f.write(header.getvalue())
        block = bytes(2**20)
        for start in range(0, size, len(block)):
            f.write(block[: size - start])
    return stream.getvalue()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    count: Annotated[int, typer.Option(help="Cases.")] = 20_000,
    first: Annotated[int, typer.Option(help="Number of the first one.")] = 0,
    seed: Annotated[int, typer.Option(help="What they are drawn from.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes at a time.")] = 2,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Damage files at random and see what the commands make of them."""
    if worker:
        _work(seed)
        return
    codes: Counter[tuple[str, int]] = Counter()

    def told(outcome: Outcome) -> None:
        codes[outcome.kind, outcome.code] += 1
        if outcome.fault:
            print(f"case {outcome.number} ({outcome.kind}; {outcome.line}): {outcome.fault}", flush=True)
        if codes.total() % 1000 == 0:
            print(f"{codes.total()} cases", flush=True)

    outcomes = fuzz(count, first=first, seed=seed, workers=workers, told=told)
    for (kind, code), number in sorted(codes.items()):
        print(f"{kind}: exit code {code} {number} times")
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    largest = max(outcomes, key=lambda outcome: outcome.peak)
    print(
        f"{len(outcomes)} cases, {faults} faults; at most {slowest.seconds:.2f} s of processor time (case "
        f"{slowest.number}) and {largest.peak / 2**20:.0f} MiB (case {largest.number})."
    )
    raise typer.Exit(1 if faults else 0)


if __name__ == "__main__":
    app()
