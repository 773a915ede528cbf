"""What can be asked for, once: each option with its default, its unit and its sentence.

A class is a topic; the settings of a job inherit the topics that it takes. Keywords of the Python API, options of the
commands and the documentation of both derive from these fields, see `schema`: a new option is one more field here, and
the place that uses it.
"""
# ruff: noqa: RUF009 (`option` gives a field, not a value)

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnxruntime as ort
from numpy.typing import NDArray

from onnx_pointwise.deploying import Deployment, Precision
from onnx_pointwise.errors import PlanError
from onnx_pointwise.examples import (
    PRESETS,
    CalibrationSource,
    ChannelOrder,
    Layout,
    Preprocessing,
    preprocessing_of,
)
from onnx_pointwise.graph import MIN_CHANNELS, Choice, ModelSource, Plan
from onnx_pointwise.numerics import FORMS, Form, Method
from onnx_pointwise.progress import Progress
from onnx_pointwise.runtime import MEMORY
from onnx_pointwise.schema import Line, about, checked, option
from onnx_pointwise.study import Said

#: The provider that stands for planning by arithmetic alone.
PLAN_ONLY = "none"

_SHARE = "above 0, at most 1"


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """How far to go; without any, as far as the answers stay the same, or a limit on drift or loss allows."""

    TITLE: ClassVar[str] = "Budget"

    target_macs: float | None = option(None, "Share of the whole model's MACs to keep.", unit=_SHARE)
    target_params: float | None = option(
        None, "Share of the whole model's parameters to keep; targets may be combined.", unit=_SHARE
    )
    target_latency: float | None = option(
        None, "Share of the whole model's latency on the provider to keep.", unit=_SHARE
    )
    ratio: float | None = option(None, "Share of its own MACs that every convolution keeps.", unit=_SHARE)
    energy: float | None = option(None, "Share of its output's energy that every convolution keeps.", unit=_SHARE)
    ranks: Mapping[str, int | tuple[int, int] | Choice] | None = option(
        None,
        "Rank of a convolution chosen by hand, R_in,R_out for reduce_expand; may stand beside the others.",
        line=Line("--rank", metavar="NODE=[FORM:]R", syntax="ranks"),
    )
    plan: Plan | str | Path | None = option(
        None, "A saved plan to replay instead of any budget.", line=Line(syntax="path")
    )

    def shares(self) -> dict[str, float | None]:
        """The budgets that are a share, by name."""
        return {
            "ratio": self.ratio,
            "energy": self.energy,
            "target_macs": self.target_macs,
            "target_params": self.target_params,
            "target_latency": self.target_latency,
        }

    def has_budget(self) -> bool:
        """Whether anything but a plan says how far to go."""
        return bool(self.ranks) or any(value is not None for value in self.shares().values())


@dataclass(frozen=True, kw_only=True)
class PixelRange:
    """What a person says about the value range of images on the command line; it makes a `Preprocessing`."""

    preset: str | None = option(None, f"Value range of images: {', '.join(PRESETS)}; found out otherwise.")
    mean: Sequence[float] = option(
        (), "Mean of each channel after scaling, comma-separated.", line=Line(syntax="numbers")
    )
    std: Sequence[float] = option(
        (), "Standard deviation of each channel, comma-separated.", line=Line(syntax="numbers")
    )
    scale: float | None = option(None, "Factor of pixels from 0 to 255.")
    channel_order: ChannelOrder | None = option(None, "Order of colours that the model takes.")

    def value(self) -> Preprocessing | str | None:
        """The preprocessing, the name of a preset, or ``None`` where nothing was said.

        Raises:
            InputError: There is no such preset, or a number makes no sense.
        """
        return preprocessing_of(
            self.preset, mean=self.mean, std=self.std, scale=self.scale, channel_order=self.channel_order
        )


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Unlabelled example inputs that plan and weights are made from."""

    TITLE: ClassVar[str] = "Example inputs"

    calibration: CalibrationSource = option(
        "auto",
        "Example inputs: .npz, file.npz:key, .npy, a folder, synthetic, none; auto draws images if it takes them.",
        line=Line(metavar="SOURCE", syntax="source"),
    )
    calibration_limit: int | None = option(None, "Example inputs to use at most.", least=1)
    preprocessing: Preprocessing | str | None = option(
        None,
        "What pixels are mapped to, or the name of a preset; found out where the model tells, else assumed.",
        line=Line(parts=PixelRange),
    )
    layout: Layout | None = option(None, "Layout of given arrays, if not the model's.")


@dataclass(frozen=True, kw_only=True)
class Factoring:
    """How weights are computed."""

    TITLE: ClassVar[str] = "Method"

    method: Method = option("als", "How the weights are computed.")
    refit: bool = option(
        True,
        "Let every site make up for what the sites before it have changed.",
        line=Line(without="Do not let sites make up for one another."),
    )


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """Which convolutions are too thin to be looked at."""

    TITLE: ClassVar[str] = "Method"

    min_channels: int | None = option(
        None,
        f"Leave convolutions with fewer input feature maps dense; {MIN_CHANNELS} without example inputs, 1 with them.",
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """What may be chosen for which convolution."""

    TITLE: ClassVar[str] = "Method"

    forms: Sequence[Form] = option(
        FORMS, "Forms that compete; all of them otherwise.", line=Line("--form", metavar="FORM", syntax="forms")
    )
    nodes_to_exclude: Sequence[str] = option(
        (),
        "Convolutions to leave dense, by name or by what tells it from others.",
        line=Line("--exclude", metavar="NODE"),
    )
    repair_seconds: float = option(
        0.0,
        "Time to run variations of a plan for targets in, and keep what measures better.",
        unit="seconds",
        least=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the network runs on."""

    TITLE: ClassVar[str] = "Target"

    provider: str = option("cpu", "Execution provider that the network runs on.")


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How the network runs."""

    TITLE: ClassVar[str] = "Target"

    threads: int | None = option(None, "Threads that the network runs with; the runtime's choice otherwise.", least=1)


@dataclass(frozen=True, kw_only=True)
class Deploying:
    """What the network is made into before it runs."""

    TITLE: ClassVar[str] = "Target"

    deploy: Precision | None = option(
        None,
        "Precision that the network will run in: latency is probed and networks are timed in it, and checked in it, "
        "too; as the model is otherwise.",
    )
    quantize_options: Mapping[str, Any] | None = option(
        None,
        "Settings of ONNX Runtime's static quantizer for int8, by its own names: reduce_range=true.",
        line=Line("--quantize-option", metavar="KEY=VALUE", syntax="pairs"),
    )

    @property
    def deployment(self) -> Deployment:
        """What is made of a network before it runs.

        Raises:
            PlanError: The quantizer has no such setting, or there is nothing to quantise.
        """
        return Deployment(self.deploy, self.quantize_options or {})


@dataclass(frozen=True, kw_only=True)
class Caching:
    """What becomes of measured latencies."""

    TITLE: ClassVar[str] = "Target"

    cache: bool = option(
        True,
        "Keep measured latencies on disk, and use what is there.",
        line=Line(without="Measure latencies anew and do not keep them."),
    )


@dataclass(frozen=True, kw_only=True)
class Optimising:
    """What the runtime makes of the network."""

    TITLE: ClassVar[str] = "Target"

    optimization: str = option("all", "Graph optimisation level of the runtime.", line=None)


@dataclass(frozen=True, kw_only=True)
class Telling:
    """Who is told what goes on."""

    TITLE: ClassVar[str] = "Target"

    progress: Progress | None = option(
        None, "Called with a stage, what is taken up in it, how many of them are done, and of how many.", line=None
    )

    def tell(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        """Say what is taken up, where anybody wants to know."""
        if self.progress is not None:
            self.progress(stage, what, done, total)


@dataclass(frozen=True, kw_only=True)
class Working:
    """What the work itself may take, beside what the network runs with."""

    TITLE: ClassVar[str] = "Target"

    jobs: int | None = option(None, "Processors to compute plan and weights on; all otherwise.", least=1)
    memory: int = option(
        MEMORY,
        "Memory for activations and moments, about; what does not fit lies in files.",
        unit="bytes",
        least=2**20,
        line=Line(metavar="2G|500M", syntax="bytes"),
    )


@dataclass(frozen=True, kw_only=True)
class HeldBack:
    """What both networks are compared on after a rewrite."""

    TITLE: ClassVar[str] = "Check"

    inputs: Mapping[str, NDArray[Any]] | None = option(
        None,
        "Inputs to check with, by name; examples held back, drawn images or random numbers otherwise.",
        unit="[N, ...] each",
        line=Line(metavar="FILE.npz[:KEY]", syntax="npz"),
    )


@dataclass(frozen=True, kw_only=True)
class Given:
    """What two networks are compared on."""

    TITLE: ClassVar[str] = "Check"

    inputs: Mapping[str, NDArray[Any]] | None = option(
        None,
        "Inputs to check with, by name; else drawn images where the network takes images, or random numbers.",
        unit="[N, ...] each",
        line=Line(metavar="FILE.npz[:KEY]", syntax="npz"),
    )


@dataclass(frozen=True, kw_only=True)
class Spreading:
    """Who else works on it."""

    TITLE: ClassVar[str] = "Target"

    scheduler: str | None = option(
        None,
        "Dask scheduler whose workers take independent pieces, as tcp://host:8786; what is timed is timed here.",
        line=Line(metavar="ADDRESS"),
    )


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """How far both networks may differ."""

    TITLE: ClassVar[str] = "Check"

    max_drift: float | Mapping[str, float] | None = option(
        None,
        "Fail where the relative L2 drift is larger; of all outputs, or of an output or head by name.",
        unit="0 or above",
        line=Line(metavar="[NAME:]X", syntax="tolerances"),
    )
    latency: bool = option(True, "Time both networks too.", line=Line(without="Compare outputs and cost only."))


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Where a network answers, and how alike the answers of another must be."""

    TITLE: ClassVar[str] = "Check"

    heads: Mapping[str, Said] | None = option(
        None,
        "Values where the network answers, in place of those that are found, with weight and kind (as in --limit).",
        line=Line("--head", metavar="VALUE[:WEIGHT][:KIND]", syntax="heads"),
    )
    ignore_outputs: Sequence[str] = option(
        (), "Outputs that do not count.", line=Line("--ignore-output", metavar="NAME")
    )
    limits: Mapping[str, Sequence[float]] | None = option(
        None,
        "Up to where answers are the same, close, only changed; by kind: classes, presence, picture (dB), gain (dB of "
        "a picture beyond a linear filter of the input), numbers.",
        line=Line("--limit", metavar="KIND:A,B,C", syntax="limits"),
    )
    require: Literal["same", "close", "changed"] = option(
        "changed", "Fail where the answers are less alike than this; broken ones always do."
    )


@dataclass(frozen=True, kw_only=True)
class Locating:
    """Which part of a network did it."""

    TITLE: ClassVar[str] = "Check"

    sites: bool = option(False, "Compare at every convolution that the second network computes otherwise, too.")


@dataclass(frozen=True, kw_only=True)
class Trying:
    """More on how two networks are compared."""

    TITLE: ClassVar[str] = "Check"

    batch_sizes: Sequence[int] = option(
        (1, 3), "Batch sizes to try where the model leaves the batch dimension open.", least=1, line=None
    )
    latency_seconds: float = option(
        10.0, "Time that the latency takes on each provider; 0 for none.", unit="seconds", least=0.0, line=None
    )


@dataclass(frozen=True, kw_only=True)
class Checking:
    """Whether the result is compared with the source."""

    TITLE: ClassVar[str] = "Check"

    check: bool = option(
        True, "Compare both models in ONNX Runtime.", line=Line(without="Write the model without running it.")
    )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The user's own score of a network."""

    TITLE: ClassVar[str] = "Check"

    evaluate: Callable[[ort.InferenceSession], float] | None = option(
        None,
        "Your own score of a session, higher is better.",
        line=Line(metavar="MODULE:FUNCTION", syntax="function"),
    )
    max_loss: float | None = option(None, "How far the score may fall.", unit="in its own unit")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes that a model leaves open."""

    TITLE: ClassVar[str] = "Model"

    input_shapes: Mapping[str, Sequence[int]] | None = option(
        None,
        "Concrete shapes by name, of inputs with open dimensions: those that will be deployed, at which costs are "
        "counted and latency is timed.",
        line=Line("--input-shape", metavar="NAME:1,3,224,224", syntax="shapes"),
    )


@dataclass(frozen=True, kw_only=True)
class Inlining:
    """What becomes of local functions."""

    TITLE: ClassVar[str] = "Model"

    inline_functions: bool = option(False, "Inline local functions first, so that convolutions in them are seen.")


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """What becomes of initializers that are inputs too."""

    TITLE: ClassVar[str] = "Model"

    freeze_initializers: bool = option(
        False, "Make constants of initializers that are graph inputs too; the runtime then optimises fully."
    )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn."""

    TITLE: ClassVar[str] = "Model"

    seed: int = option(0, "Seed of everything that is drawn.", least=0)


# --- what each job takes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Opening(Shapes, Inlining, Smallest):
    """What a model is opened with, to look at its convolutions."""


@checked
@dataclass(frozen=True, kw_only=True)
class Settings(
    Budgets,
    Examples,
    Factoring,
    Choosing,
    Device,
    Deploying,
    Threads,
    Caching,
    Working,
    Telling,
    Checking,
    HeldBack,
    Comparing,
    Answering,
    Scoring,
    Opening,
    Freezing,
    Drawing,
):
    """What `rewrite` can be asked for."""

    provider: str = option("cpu", "Execution provider to plan for and check on; none plans by arithmetic alone.")

    @property
    def runs_on(self) -> str:
        """The provider that networks are run on: planning by arithmetic alone leaves the CPU."""
        return "cpu" if self.provider == PLAN_ONLY else self.provider

    @property
    def searches(self) -> bool:
        """Whether nothing but limits says how far to go, so that the cheapest network within them is wanted."""
        return self.plan is None and not self.has_budget()

    def require_consistent(self) -> None:
        """Refuse what contradicts itself, before any work is done.

        Raises:
            PlanError: There is a budget beside a plan, a limit that nothing measures, or a setting that the quantizer
                does not have.
        """
        _ = self.deployment  # reads the settings of the quantizer
        if self.plan is not None and self.has_budget():
            raise PlanError("A plan replays as it is; leave out every budget beside it, or edit the plan.")
        if self.max_loss is not None and self.evaluate is None:
            raise PlanError("max_loss needs a score: name a function with evaluate.")
        if self.searches and not self.check:
            raise PlanError(
                "Without a target a network is searched by its answers, which takes the check; leave it on."
            )
        if not self.check and (self.max_drift is not None or self.require != "changed" or self.inputs is not None):
            raise PlanError("max_drift, require and inputs are for the check; leave it on, or leave them out.")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What is written."""

    TITLE: ClassVar[str] = "Folder"

    force: bool = option(False, "Write models even if their checks fail.", line=None)
    external_data: bool | None = option(None, "Keep weights outside the files, or inside; as the input.", line=None)


@dataclass(frozen=True, kw_only=True)
class ManySettings(Settings, Spreading, Writing):
    """What `rewrite_all` can be asked for."""


#: What the shares of a sweep are shares of.
Cost = Literal["macs", "params", "size", "latency"]
#: What the answers of a sweep are judged by.
Answers = Literal["drift", "agreement", "score"]


@dataclass(frozen=True, kw_only=True)
class Trading:
    """Which networks are made, and how they are weighed against one another."""

    TITLE: ClassVar[str] = "Sweep"

    shares: Sequence[float] = option(
        (0.9, 0.75, 0.6, 0.45, 0.3),
        "Shares of the untouched network's cost to make a network for, each.",
        unit=_SHARE,
        line=Line("--share", metavar="X"),
    )
    cost: Cost | None = option(None, "What these are shares of; latency where it is measured, else MACs, unless named.")
    answers: Answers | None = option(
        None, "What answers are judged by; your own score where there is one, else drift, unless named."
    )
    pick: str | None = option(
        None,
        "Network to hand over: knee, a share as 0.7, or the cheapest whose answers are same, close or changed.",
        line=Line(metavar="RULE"),
    )
    providers: Sequence[str] = option(
        ("cpu",),
        "Execution providers to plan for and check on, each with a front of its own; none plans by arithmetic alone.",
        line=Line("--provider", metavar="NAME"),
    )


@checked
@dataclass(frozen=True, kw_only=True)
class SweepSettings(
    Trading,
    Examples,
    Factoring,
    Choosing,
    Deploying,
    Threads,
    Caching,
    Working,
    Spreading,
    Telling,
    HeldBack,
    Comparing,
    Answering,
    Scoring,
    Opening,
    Freezing,
    Drawing,
):
    """What `sweep` can be asked for."""


@dataclass(frozen=True)
class Insertion:
    """Where to insert what."""

    TITLE: ClassVar[str] = "Insertion"

    node: str = field(metadata=about("The convolution to put a 1x1 in front of."))
    feature_maps: int = field(metadata=about("Feature maps that the 1x1 puts out: fewer, as many, or more."))


@checked
@dataclass(frozen=True, kw_only=True)
class InsertSettings(
    Insertion,
    Examples,
    Factoring,
    Device,
    Threads,
    Working,
    Telling,
    Checking,
    HeldBack,
    Comparing,
    Answering,
    Shapes,
    Inlining,
    Freezing,
    Drawing,
):
    """What `insert_pointwise` can be asked for."""


@checked
@dataclass(frozen=True, kw_only=True)
class CheckSettings(
    Threads, Optimising, Telling, Given, Comparing, Answering, Locating, Trying, Shapes, Freezing, Drawing
):
    """What `check` can be asked for."""

    TITLE: ClassVar[str] = "Target"

    providers: Sequence[str] = option(
        ("cpu",), "Execution providers to check on, the first one the main one.", line=Line("--provider")
    )


@dataclass(frozen=True)
class Opponent:
    """What a network is timed against."""

    TITLE: ClassVar[str] = "Timing"

    other: ModelSource | bytes | None = option(None, "Another network to compare with.", line=None)


@checked
@dataclass(frozen=True, kw_only=True)
class BenchSettings(Opponent, Device, Optimising, Telling, Shapes, Freezing, Drawing):
    """What `bench` can be asked for."""

    TITLE: ClassVar[str] = "Timing"

    inputs: Mapping[str, NDArray[Any]] | None = option(
        None,
        "Inputs to time with, by name, a whole batch of them in every run; random ones otherwise.",
        unit="[N, ...] each",
        line=Line(metavar="FILE.npz[:KEY]", syntax="npz"),
    )
    batch_sizes: Sequence[int] = option(
        (),
        "Batch sizes of inputs that leave theirs open; as the shapes are otherwise.",
        least=1,
        line=Line("--batch"),
    )
    thread_counts: Sequence[int | None] = option(
        (None,), "Threads inside one operator, each measured.", least=1, line=Line("--threads", syntax="counts")
    )
    runs: int = option(100, "Timed runs of each network and row, at most.", least=1)
    warmup: int = option(10, "Untimed runs before them.", least=1)
    max_seconds: float = option(10.0, "Time that a row may take.", unit="seconds", least=0.01)
    memory: bool = option(False, "Measure peak memory too, each network in a process of its own.")
    advice: bool = option(
        True, "Say what the figures advise, on the CPU.", line=Line(without="Only time; no kernels, no advice.")
    )


@checked
@dataclass(frozen=True, kw_only=True)
class InspectSettings(Opening, Threads, Caching, Telling):
    """What `inspect` can be asked for."""

    TITLE: ClassVar[str] = "Target"

    treads_on: str | None = option(
        None,
        "Execution provider to measure latency over forms and ranks on: cpu, ...",
        line=Line("--treads", metavar="PROVIDER"),
    )
