"""What a job starts from: the model and its convolutions, a plan to replay, example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnx_pointwise.errors import OutputError, PlanError
from onnx_pointwise.examples import Calibration, calibrate
from onnx_pointwise.exporting import exported, is_foreign
from onnx_pointwise.graph import (
    MIN_CHANNELS,
    ModelCost,
    ModelSource,
    Plan,
    ResolvedShapes,
    Site,
    file_bytes,
    find_sites,
    frozen,
    full_name,
    inlined,
    load,
    model_cost,
    named_after,
    origin,
    require_sites,
)
from onnx_pointwise.numerics import is_exact
from onnx_pointwise.progress import within
from onnx_pointwise.runtime import resolve
from onnx_pointwise.settings import Opening, Settings
from onnx_pointwise.study import Heads, declared_batch, distilled, find_heads, telling

_NOTHING = "No convolution of the model can be rewritten, so no example inputs were taken."
_DRAWN = (
    "Only drawn images tell how far this network may go: on real ones its answers may move further. Name some with "
    "--calibration, or --inputs to check with."
)
_SILENT = (
    "No output of the network holds numbers to measure errors by, so nothing shows what errors do: plan and weights "
    "come from the kernels alone. Name a value inside it with --head."
)
_EXACT = "No rank is below full, so weights come from the kernels alone; example inputs are not needed."


@dataclass(frozen=True)
class Network:
    """A network as a rewrite starts from it.

    Attributes:
        source: What both networks are compared and scored with: the path, or the model.
        base: The model that is rewritten, its functions inlined where that was asked for.
        shapes: Its shapes.
        sites: Its convolutions, in graph order.
        cost: Cost of the source.
        heads: Where it answers.
    """

    source: ModelSource
    base: ir.Model
    shapes: ResolvedShapes
    sites: Sequence[Site]
    cost: ModelCost
    heads: Heads

    @property
    def by_name(self) -> dict[str, Site]:
        """The convolutions by name."""
        return {site.name: site for site in self.sites}


def opened(model: ir.Model, settings: Opening) -> tuple[ir.Model, ResolvedShapes, list[Site]]:
    """Give a working copy of a model with its shapes and convolutions.

    Raises:
        ModelError: The model cannot be described or run.
        InputError: The input shapes do not fit the model.
    """
    base = model.clone()
    if settings.inline_functions and base.functions:
        base = inlined(base, where=origin(model) or "the model in memory")
    named_after(base, model)
    shapes = resolve(base, settings.input_shapes)
    least = MIN_CHANNELS if settings.min_channels is None else settings.min_channels
    return base, shapes, find_sites(base, shapes, min_channels=least)


def cost_of(source: ModelSource, model: ir.Model, shapes: ResolvedShapes) -> ModelCost:
    """Count what a model costs; the bytes of its file where it comes from one."""
    size = file_bytes(source, model) if isinstance(source, str | Path) else None
    return model_cost(model, shapes, file_bytes=size)


def onnx_of(model: ModelSource) -> ModelSource:
    """A model as ONNX: one of Keras or PyTorch is converted, and held against what it was.

    Raises:
        ExportError: It cannot be converted, or what that takes is not installed.
    """
    return exported(model) if isinstance(model, str | Path) and is_foreign(model) else model


def network(model: ModelSource, settings: Settings) -> Network:
    """Read what is to be rewritten.

    Raises:
        ModelError: The model cannot be read, described or run.
        InputError: The input shapes do not fit the model.
    """
    model = onnx_of(model)
    if settings.freeze_initializers:
        model = frozen(model)
    dense = load(model)
    base, shapes, sites = opened(dense, settings)
    source = model if isinstance(model, str | Path) else dense
    heads = find_heads(shapes, named=settings.heads, ignored=settings.ignore_outputs)
    return Network(source, base, shapes, sites, cost_of(model, dense, shapes), heads)


def with_full_names(settings: Settings, net: Network) -> Settings:
    """Settings that name convolutions in full where they name them by a part.

    Raises:
        PlanError: Several convolutions may be meant.
    """
    names = [site.name for site in net.sites]
    ranks = settings.ranks
    if ranks is not None:
        ranks = {full_name(name, names): rank for name, rank in ranks.items()}
    excluded = tuple(full_name(name, names) for name in settings.nodes_to_exclude)
    return replace(settings, ranks=ranks, nodes_to_exclude=excluded)


def read_plan(plan: Plan | str | Path) -> Plan:
    """Give a plan, from its file if need be.

    Raises:
        PlanError: The file cannot be read as a plan.
    """
    if isinstance(plan, Plan):
        return plan
    path = Path(plan)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read as a plan: {error}.") from error


def examples_for(net: Network, replay: Plan | None, settings: Settings) -> Calibration:
    """Get the example inputs that a rewrite takes, none for a plan that has no question to them.

    Raises:
        PlanError: The plan to replay does not fit the network.
        InputError: The examples do not fit the network.
    """
    ranges = settings.deployment.takes_examples
    if not any(site.rewritable for site in net.sites) and not ranges:
        return Calibration({}, {"source": "none", "sentence": _NOTHING})
    if replay is not None:
        require_sites(replay, net.by_name)
        if _keeps_the_function(replay, net) and not ranges:
            return Calibration({}, {"source": "none", "sentence": _EXACT})
    examples = calibrate(
        net.base,
        settings.calibration,
        net.shapes,
        macs=net.cost.macs,
        limit=settings.calibration_limit,
        preprocessing=settings.preprocessing,
        layout=settings.layout,
        seed=settings.seed,
    )
    return _told(net, _distilled(net, examples, settings) if examples.drawn else examples, settings)


def with_stems(net: Network, examples: Calibration, settings: Settings) -> Network:
    """The same network with convolutions of few feature maps among those that may be rewritten, if nobody said which.

    What an error in the first convolution does to all that follows, a kernel alone does not tell; examples do.
    """
    if not examples.inputs or settings.min_channels is not None:
        return net
    return replace(net, sites=find_sites(net.base, net.shapes, min_channels=1))


def _distilled(net: Network, drawn: Calibration, settings: Settings) -> Calibration:
    """Move images that were drawn until they look like the training data to a network that remembers its statistics."""
    found = distilled(
        net.shapes,
        drawn.inputs,
        macs=net.cost.macs,
        memory=settings.memory,
        batch=declared_batch(net.base),
        threads=settings.jobs,
        progress=within(settings.tell, "load"),
    )
    if found is None:
        return drawn
    (images,) = found.inputs.values()
    layers = "one BatchNormalization sees" if found.layers == 1 else f"{found.layers} BatchNormalizations see"
    said = (
        f"{str(drawn.description['sentence']).removesuffix('.')}; {len(images)} of them were moved until {layers} "
        f"nearly what training showed, {found.after:.2g} deviations off in place of {found.before:.2g}."
    )
    about = {"layers": found.layers, "misfit_before": found.before, "misfit_after": found.after}
    return Calibration(found.inputs, {**drawn.description, "count": len(images), "distilled": about, "sentence": said})


def _told(net: Network, examples: Calibration, settings: Settings) -> Calibration:
    """Look at what examples can tell; those that tell nothing are left aside, as if there were none."""
    if not examples.inputs or len({np.shape(array)[:1] for array in examples.inputs.values()}) > 1:
        return examples
    if not net.heads.gauges:
        return Calibration({}, {**examples.description, "warnings": [_SILENT]})
    found = telling(net.base, net.shapes, net.heads, examples.inputs, threads=settings.jobs)
    warnings = found.warnings()
    if settings.searches and settings.inputs is None and examples.description["source"] == "synthetic":
        warnings.append(_DRAWN)
    said = {**examples.description, "warnings": warnings} if warnings else examples.description
    if found.useless:
        return Calibration({}, said)
    # Held back, a copy of an example would tell nothing but good.
    inputs = {name: array[list(found.different)] for name, array in examples.inputs.items()}
    return Calibration(inputs if found.few else examples.inputs, said)


def _keeps_the_function(plan: Plan, net: Network) -> bool:
    """Whether a plan only projects and expands, so that example inputs have nothing to say."""
    sites = net.by_name
    return all(
        is_exact(choice.form, choice.rank, site.in_channels, site.out_channels, site.kernel_shape)
        for site, choice in ((sites[name], choice) for name, choice in plan.choices.items())
    )


def require_other_file(source: str | Path, target: str | Path) -> None:
    """Check that an output would not overwrite its input.

    Raises:
        OutputError: Both are the same file.
    """
    source, target = Path(source), Path(target)
    try:
        same = source.resolve() == target.resolve() or source.samefile(target)
    except OSError:  # one of them is not there yet, or has a name that no file can have, which is told where it matters
        same = False
    if same:
        raise OutputError(f"{target}: is the input itself; name another file to write.")
