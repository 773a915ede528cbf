"""The command line: parse, call the public API, print."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console, RenderableType
from typer.core import TyperGroup

import onnx_pointwise as api
from onnx_pointwise.errors import InputError, OnnxPointwiseError, PlanError
from onnx_pointwise.examples import PRESETS, ChannelOrder, Layout, preprocessing_of, read_npz
from onnx_pointwise.graph import MIN_CHANNELS, Choice, make_choice, require_writable, write_text
from onnx_pointwise.jobs import require_other_file
from onnx_pointwise.numerics import FORMS, Form, Method
from onnx_pointwise.reports import terminal as report

CHECK_FAILED, BAD_INPUT = 1, 2


class _Commands(TyperGroup):
    """Turns the library's own errors into one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OnnxPointwiseError as error:
            _errors().print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
            ctx.exit(BAD_INPUT)


app = typer.Typer(
    name="onnx-pointwise",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make trained ONNX convolutional networks cheaper with 1x1 convolutions, and check what changed.",
)


def _errors() -> Console:
    return Console(stderr=True)


class _Output:
    """Where a command's table and JSON go: with JSON on standard output, the table moves to standard error."""

    def __init__(self, target: str | None) -> None:
        self._target = target
        self.console = Console(stderr=target == "-")
        if target is not None and target != "-":
            require_writable(target)

    def show(self, renderable: RenderableType) -> None:
        self.console.print(renderable)

    def save(self, document: dict[str, Any]) -> None:
        if self._target is None:
            return
        text = json.dumps(document, indent=2, allow_nan=False, default=str) + "\n"
        if self._target == "-":
            sys.stdout.write(text)
        else:
            write_text(self._target, text)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, str], None]]:
        """Show what is going on, stage by stage."""
        with _errors().status("reading") as status:
            yield lambda stage, what: status.update(f"{stage}: {what}")

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        with _errors().status(what):
            yield


_Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON too; - for standard output.")]
_Shapes = Annotated[
    list[str],
    typer.Option("--input-shape", metavar="NAME:1,3,224,224", help="Concrete shape of an input with open dimensions."),
]
_Inputs = Annotated[
    Path | None,
    typer.Option("--inputs", metavar="FILE.npz", help="Inputs to check with, by name; random ones otherwise."),
]
_Calibration = Annotated[
    str,
    typer.Option(metavar="SOURCE", help="Example inputs: .npz, file.npz:key, .npy, a folder, synthetic, none."),
]
_MaxDrift = Annotated[
    list[str],
    typer.Option("--max-drift", metavar="[OUTPUT:]X", help="Fail where the relative L2 drift is larger."),
]
_Provider = Annotated[str, typer.Option(help="Execution provider of the check.")]
_Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the check; the runtime's choice otherwise.")]
_MinChannels = Annotated[int, typer.Option(min=1, help="Leave convolutions with fewer input feature maps dense.")]
_Inline = Annotated[bool, typer.Option("--inline-functions", help="Inline local functions first.")]
_Freeze = Annotated[
    bool, typer.Option("--freeze-initializers", help="Make constants of initializers that are graph inputs too.")
]
_Force = Annotated[bool, typer.Option("--force", help="Write the model even if the check fails.")]
_NoCache = Annotated[bool, typer.Option("--no-cache", help="Measure latencies anew and do not keep them.")]
_NoLatency = Annotated[bool, typer.Option("--no-latency", help="Compare outputs and cost only.")]
_NoCheck = Annotated[bool, typer.Option("--no-check", help="Write the model without running it.")]
_External = Annotated[
    bool | None,
    typer.Option("--external-data/--no-external-data", help="Keep weights outside the file, or inside; as the input."),
]
_Method = Annotated[Method, typer.Option(help="How the weights are computed.")]


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)],
    input_shape: _Shapes = [],
    min_channels: _MinChannels = MIN_CHANNELS,
    inline_functions: _Inline = False,
    treads: Annotated[
        str | None, typer.Option(metavar="PROVIDER", help="Measure latency over the ranks on a provider: cpu, ...")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of that measurement.")] = None,
    no_cache: _NoCache = False,
    json_file: _Json = None,
) -> None:
    """Show each convolution: cost, spectrum, the ranks that would do, or why it stays dense."""
    output = _Output(json_file)
    result = api.inspect(
        model,
        input_shapes=_named_shapes(input_shape),
        min_channels=min_channels,
        inline_functions=inline_functions,
        treads_on=treads,
        threads=threads,
        cache=not no_cache,
    )
    output.show(report.inspection(result))
    output.save(result.to_dict())


@app.command()
def rewrite(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The .onnx file to read.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx file to write.", show_default=False)],
    target_macs: Annotated[float | None, typer.Option(help="Share of the whole model's MACs to keep.")] = None,
    target_params: Annotated[float | None, typer.Option(help="Share of its parameters to keep.")] = None,
    target_latency: Annotated[float | None, typer.Option(help="Share of its latency on the provider to keep.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of its MACs that every convolution keeps.")] = None,
    energy: Annotated[float | None, typer.Option(help="Share of its energy that every convolution keeps.")] = None,
    rank: Annotated[
        list[str],
        typer.Option(metavar="NODE=[FORM:]R", help="Rank of one convolution, R_in,R_out for reduce_expand."),
    ] = [],
    plan: Annotated[Path | None, typer.Option(help="Replay a saved plan.")] = None,
    save_plan: Annotated[Path | None, typer.Option(help="Write the plan as JSON.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="How far the score of --evaluate may fall.")] = None,
    evaluate: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your own score of a session, higher is better.")
    ] = None,
    calibration: _Calibration = "auto",
    calibration_limit: Annotated[int | None, typer.Option(min=1, help="Example inputs to use at most.")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Value range of images: {', '.join(PRESETS)}; found out otherwise.")
    ] = None,
    mean: Annotated[str, typer.Option(help="Mean of each channel after scaling, comma-separated.")] = "",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel, comma-separated.")] = "",
    scale: Annotated[float | None, typer.Option(help="Factor of pixels from 0 to 255.")] = None,
    channel_order: Annotated[ChannelOrder | None, typer.Option(help="Order of colours that the model takes.")] = None,
    layout: Annotated[Layout | None, typer.Option(help="Layout of given arrays, if not the model's.")] = None,
    no_refit: Annotated[bool, typer.Option("--no-refit", help="Do not let sites make up for one another.")] = False,
    repair_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time to run variations of the plan in and keep what measures better.")
    ] = 0.0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processors to compute plan and weights on; all otherwise.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory for activations and moments: 2G, 500M.")] = "2G",
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    form: Annotated[list[str], typer.Option(metavar="FORM", help="Forms that compete; all of them otherwise.")] = [],
    method: _Method = "als",
    exclude: Annotated[list[str], typer.Option(metavar="NODE", help="Leave this convolution dense.")] = [],
    min_channels: _MinChannels = MIN_CHANNELS,
    input_shape: _Shapes = [],
    inline_functions: _Inline = False,
    freeze_initializers: _Freeze = False,
    inputs: _Inputs = None,
    max_drift: _MaxDrift = [],
    provider: Annotated[
        str, typer.Option(help="Execution provider to plan for and check on; none plans by arithmetic alone.")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to plan for and check with; the runtime's choice otherwise.")
    ] = None,
    no_cache: _NoCache = False,
    no_latency: _NoLatency = False,
    no_check: _NoCheck = False,
    force: _Force = False,
    external_data: _External = None,
    json_file: _Json = None,
) -> None:
    """Insert 1x1 convolutions until a budget is met, check the result and write it."""
    output = _prepare(source, target, json_file, save_plan)
    forms = _forms(form)
    with output.progress() as progress:
        result = api.rewrite(
            source,
            target_macs=target_macs,
            target_params=target_params,
            target_latency=target_latency,
            ratio=ratio,
            energy=energy,
            ranks=_ranks(rank, forms) or None,
            plan=plan,
            forms=forms,
            method=method,
            refit=not no_refit,
            repair_seconds=repair_seconds,
            calibration=calibration,
            calibration_limit=calibration_limit,
            preprocessing=preprocessing_of(
                preset,
                mean=_numbers("--mean", mean),
                std=_numbers("--std", std),
                scale=scale,
                channel_order=channel_order,
            ),
            layout=layout,
            evaluate=_scorer(evaluate),
            max_loss=max_loss,
            jobs=jobs,
            memory=_bytes(memory),
            seed=seed,
            nodes_to_exclude=exclude,
            min_channels=min_channels,
            input_shapes=_named_shapes(input_shape),
            inline_functions=inline_functions,
            freeze_initializers=freeze_initializers,
            check=not no_check,
            max_drift=_tolerances(max_drift),
            inputs=None if inputs is None else read_npz(inputs),
            latency=not no_latency,
            provider=provider,
            threads=threads,
            cache=not no_cache,
            progress=progress,
        )
    if save_plan is not None:
        write_text(save_plan, result.plan.to_json())
    _finish(output, result, target, force=force, external_data=external_data)


@app.command()
def insert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The .onnx file to read.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx file to write.", show_default=False)],
    node: Annotated[str, typer.Option(help="The convolution to put a 1x1 in front of.")],
    feature_maps: Annotated[int, typer.Option(help="Feature maps that the 1x1 puts out: fewer, as many, or more.")],
    method: _Method = "als",
    calibration: _Calibration = "auto",
    input_shape: _Shapes = [],
    freeze_initializers: _Freeze = False,
    inputs: _Inputs = None,
    max_drift: _MaxDrift = [],
    provider: _Provider = "cpu",
    threads: _Threads = None,
    no_latency: _NoLatency = False,
    no_check: _NoCheck = False,
    force: _Force = False,
    external_data: _External = None,
    json_file: _Json = None,
) -> None:
    """Put one 1x1 convolution in front of one convolution, whatever it costs."""
    output = _prepare(source, target, json_file)
    with output.working("inserting"):
        result = api.insert_pointwise(
            source,
            node,
            feature_maps,
            method=method,
            calibration=calibration,
            input_shapes=_named_shapes(input_shape),
            check=not no_check,
            max_drift=_tolerances(max_drift),
            inputs=None if inputs is None else read_npz(inputs),
            latency=not no_latency,
            provider=provider,
            threads=threads,
            freeze_initializers=freeze_initializers,
        )
    _finish(output, result, target, force=force, external_data=external_data)


@app.command()
def check(
    before: Annotated[Path, typer.Argument(help="The model as it was.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="The rewritten model.", show_default=False)],
    input_shape: _Shapes = [],
    inputs: _Inputs = None,
    max_drift: _MaxDrift = [],
    provider: Annotated[list[str], typer.Option(help="Execution provider; may be named several times.")] = ["cpu"],
    threads: _Threads = None,
    freeze_initializers: _Freeze = False,
    no_latency: _NoLatency = False,
    json_file: _Json = None,
) -> None:
    """Compare two models in ONNX Runtime: shapes, drift, cost and latency."""
    output = _Output(json_file)
    with output.working("checking"):
        result = api.check(
            before,
            after,
            input_shapes=_named_shapes(input_shape),
            inputs=None if inputs is None else read_npz(inputs),
            max_drift=_tolerances(max_drift),
            providers=provider,
            threads=threads,
            freeze_initializers=freeze_initializers,
            latency=not no_latency,
        )
    output.show(report.check(result))
    output.save(result.to_dict())
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(help="The .onnx file.", show_default=False)],
    other: Annotated[Path | None, typer.Argument(help="Another one to compare with.", show_default=False)] = None,
    input_shape: _Shapes = [],
    batch: Annotated[list[int], typer.Option(min=1, help="Batch size; may be named several times.")] = [],
    threads: Annotated[list[int], typer.Option(min=1, help="Threads; may be named several times.")] = [],
    provider: _Provider = "cpu",
    runs: Annotated[int, typer.Option(min=1, help="Timed runs at most.")] = 100,
    warmup: Annotated[int, typer.Option(min=1, help="Runs before them.")] = 10,
    max_seconds: Annotated[float, typer.Option(min=0.01, help="Seconds a row may take.")] = 10.0,
    freeze_initializers: _Freeze = False,
    memory: Annotated[bool, typer.Option("--memory", help="Measure peak memory in fresh processes too.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="Time each kernel of the model too.")] = False,
    json_file: _Json = None,
) -> None:
    """Time a model, alone or in turns with another one."""
    output = _Output(json_file)
    shapes = _named_shapes(input_shape)
    with output.working("timing"):
        result = api.bench(
            model,
            other,
            input_shapes=shapes,
            batch_sizes=batch,
            thread_counts=tuple(threads) or (None,),
            provider=provider,
            runs=runs,
            warmup=warmup,
            max_seconds=max_seconds,
            freeze_initializers=freeze_initializers,
            memory=memory,
        )
        kernels = (
            api.node_times(
                model,
                input_shapes=shapes,
                provider=provider,
                threads=threads[0] if threads else None,
                freeze_initializers=freeze_initializers,
            )
            if nodes
            else []
        )
    output.show(report.bench(result, kernels))
    output.save(result.to_dict() | {"nodes": [kernel.to_dict() for kernel in kernels]})


@app.command()
def providers(json_file: _Json = None) -> None:
    """List the execution providers of this machine, and why the others are missing."""
    output = _Output(json_file)
    with output.working("looking for providers"):
        found = api.discover()
    output.show(report.providers(found))
    output.save({"providers": [info.to_dict() for info in found]})


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all measurements.")] = False,
    json_file: _Json = None,
) -> None:
    """Show where measured latencies are kept, or forget them."""
    output = _Output(json_file)
    info = api.cache_info()
    if clear:
        api.clear_cache()
    output.show(report.cache(info, cleared=clear))
    output.save(info.to_dict() | {"cleared": clear})


def _prepare(source: Path, target: Path, json_file: str | None, save_plan: Path | None = None) -> _Output:
    require_other_file(source, target)
    require_writable(target)
    if save_plan is not None:
        require_writable(save_plan)
    return _Output(json_file)


def _finish(
    output: _Output, result: api.RewriteResult, target: Path, *, force: bool, external_data: bool | None
) -> None:
    """Write the model if its check passed, say what happened, and exit accordingly."""
    written = result.passed or force
    if written:
        result.save(target, use_external_data_format=external_data)
    output.show(report.rewrite(result))
    output.save(result.to_dict())
    if written:
        output.show(f"Wrote {target} in {result.seconds['total']:.1f} s.")
    else:
        output.show(f"[bold red]The check failed; {target} was not written. --force writes it all the same.")
    if not result.passed:
        raise typer.Exit(CHECK_FAILED)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise InputError(f"{option} {text}: write numbers with commas between them.") from error


def _bytes(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    try:
        size = int(float(text[:-1]) * units[text[-1:].upper()]) if text[-1:].upper() in units else int(text)
    except ValueError:
        size = 0
    if size < 2**20:
        raise InputError(f"--memory {text}: write at least a megabyte, as 500M or 2G.")
    return size


def _scorer(text: str | None) -> Callable[[Any], float] | None:
    """Import the function that ``module:function`` names; modules beside the user come first, as in Python itself."""
    if text is None:
        return None
    module, _, name = text.partition(":")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"--evaluate {text}: cannot be imported as MODULE:FUNCTION: {error}.") from error
    finally:
        sys.path.remove("")
    if not callable(function):
        raise InputError(f"--evaluate {text}: {name} is not a function.")
    return cast(Callable[[Any], float], function)


def _forms(texts: Sequence[str]) -> tuple[Form, ...]:
    unknown = [text for text in texts if text not in FORMS]
    if unknown:
        raise PlanError(f"--form {unknown[0]}: use one or more of {', '.join(FORMS)}.")
    return tuple(form for form in FORMS if form in texts) or FORMS


def _named_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        try:
            shapes[name] = tuple(int(part) for part in sizes.replace("x", ",").split(","))
        except ValueError:
            name = ""
        if not name:
            raise PlanError(f"--input-shape {text}: write it as NAME:1,3,224,224.")
    return shapes


def _tolerances(texts: Sequence[str]) -> float | dict[str, float] | None:
    named: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition(":")
        try:
            named[name] = float(number)
        except ValueError as error:
            raise PlanError(f"--max-drift {text}: write it as 0.01 or OUTPUT:0.01.") from error
    if not named:
        return None
    if "" in named and len(named) > 1:
        raise PlanError("--max-drift: give one number for all outputs, or one for each named output, not both.")
    return named.get("", named)


def _ranks(texts: Sequence[str], forms: Sequence[Form]) -> dict[str, Choice | int | tuple[int, int]]:
    ranks: dict[str, Choice | int | tuple[int, int]] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        form, _, numbers = value.rpartition(":")
        try:
            parsed = tuple(int(part) for part in numbers.split(","))
        except ValueError:
            parsed = ()
        if not name or len(parsed) not in (1, 2):
            raise PlanError(f"--rank {text}: write it as NODE=32, NODE=expand:32 or NODE=24,32.")
        rank = parsed[0] if len(parsed) == 1 else parsed
        if form:
            ranks[name] = make_choice(name, form, rank, where="--rank")
        else:
            ranks[name] = rank  # type: ignore[assignment]
    return ranks


def main() -> None:
    """Run the command line."""
    app()
