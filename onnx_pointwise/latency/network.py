"""How long a network takes, and how much of that each choice at its sites would save, measured on a provider.

Sites are probed alone, see ``latency``. Inside the network they take another time: their inputs come from elsewhere,
activations are fused into them. So each site's probes are scaled by what its convolution takes there according to the
runtime's profile, and what a rewrite adds in kernels to start is counted: the runtime takes some microseconds between
two kernels. Even so the sum is off: smaller weights leave more room in the caches for everything else. One network
that is rewritten halfway is timed, and what it gains in speed more or less than its sites promise corrects all
predictions. Latency does not depend on the weights, so random ones stand in for those still to be computed.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_pointwise.deploying import AS_IS, Deployment
from onnx_pointwise.errors import ModelError
from onnx_pointwise.graph import (
    BottleneckPass,
    Choice,
    Plan,
    Replacement,
    ResolvedShapes,
    Site,
    find_sites,
    piece_count,
    pieces,
    replacement,
)
from onnx_pointwise.latency.cache import LatencyCache
from onnx_pointwise.latency.clock import place
from onnx_pointwise.latency.keeping import kept
from onnx_pointwise.latency.kernels import TOLERANCE, SiteLatency, site_latencies
from onnx_pointwise.numerics import FORMS, Factors, Form, Rank, whole
from onnx_pointwise.progress import Within, unheard
from onnx_pointwise.runtime import (
    NOISY,
    Array,
    Verdict,
    compare,
    input_specs,
    is_cpu,
    measure,
    node_times,
    random_inputs,
)

# Seconds that timing two networks against each other may take.
_COMPARE_SECONDS = 4.0
_PROFILE_RUNS = 24
# Rounds in which the untouched network is timed.
_ROUNDS = 3
# Seconds between two kernels, at most: what is more comes from a machine that was busy while the whole was timed.
_LONGEST_GAP = 5e-5
# How often a network is timed again where the machine is too noisy to tell.
_TRIES = 3
# How far corrections lie from 1, as standard deviation: what one measured under noise is weighed against.
_SPREAD = 0.3
# The noise floor that is always there, and no uncertainty.
_QUIET = 0.01
# What a correction may be at most; a network that is not faster at all is found out when it is timed itself.
_CORRECTIONS = (0.25, 2.0)
# No network takes less than this share of another one.
_LEAST = 1e-3
# Attributes that hold weights or graphs: the sizes of the one and the nodes of the other are told anyway.
_LARGE = {
    ir.AttributeType.TENSORS,
    ir.AttributeType.GRAPH,
    ir.AttributeType.GRAPHS,
    ir.AttributeType.SPARSE_TENSOR,
    ir.AttributeType.SPARSE_TENSORS,
}


@dataclass(frozen=True)
class Timing:
    """A rewritten network timed against the untouched one.

    Attributes:
        ratio: Its latency as a share of the untouched network's.
        noise: The noise floor of that, see ``benchmark.LatencyComparison``.
        verdict: Whether it is faster beyond the noise floor.
    """

    ratio: float
    noise: float
    verdict: Verdict


@dataclass(frozen=True)
class NetworkLatency:
    """What is known of a network's latency on one provider.

    Attributes:
        model: The untouched network.
        shapes: Its shapes, at which everything is timed.
        provider: The provider, as for ``providers.open_session``.
        threads: Threads inside one operator; the runtime's own choice if ``None``.
        dense: Seconds of one run of the untouched network.
        sites: Latency of each site probed alone, by its name.
        inside: Seconds of each untouched site inside the network.
        between: Seconds that the runtime takes between two kernels.
        cache: Where measurements are kept.
        kept: What a network that is rewritten halfway gains in speed, as a share of what its sites promise.
        inputs: What the network is timed on; random inputs if ``None``.
        deployment: What is made of a network before it runs.
        deployed: What is made of the untouched one; the network itself if ``None``.
    """

    model: ir.Model
    shapes: ResolvedShapes
    provider: str
    threads: int | None
    dense: float
    sites: Mapping[str, SiteLatency]
    inside: Mapping[str, float]
    between: float
    cache: LatencyCache | None
    kept: float = 1.0
    inputs: Mapping[str, Array] | None = None
    deployment: Deployment = AS_IS
    deployed: ir.Model | None = None

    @property
    def untouched(self) -> ir.Model:
        """The network that runs where nothing is rewritten."""
        return self.model if self.deployed is None else self.deployed

    def seconds(self, name: str, choice: Choice | None) -> float:
        """What a site takes inside the network.

        Args:
            name: A site that was measured.
            choice: A form and rank that were measured; ``None`` for the untouched site.
        """
        if choice is None:
            return self.inside[name]
        site = self.sites[name]
        added = piece_count(choice.form) - 1  # kernels to start
        return self.inside[name] * site.of(choice.form, choice.rank) / site.dense + added * self.between

    def measured(self) -> dict[str, Measured]:
        """Give the treads of each site, without those that no longer pay inside the network."""
        found = {}
        for name, site in self.sites.items():
            dense = self.seconds(name, None)
            timed = [(choice, self.seconds(name, Choice(*choice))) for choice in site.choices]
            faster = [(choice, seconds) for choice, seconds in timed if seconds < (1.0 - TOLERANCE) * dense]
            found[name] = Measured(
                dense,
                tuple(choice for choice, _ in faster),
                tuple(seconds for _, seconds in faster),
                dense * site.fastest / site.dense,
            )
        return found

    def sum_of_sites(self, choices: Mapping[str, Choice]) -> float:
        """Latency of a rewritten network as a share of the untouched one's, by what its sites promise to save.

        Args:
            choices: Form and rank by site name, all of them measured.
        """
        saved = sum(self.seconds(name, None) - self.seconds(name, choice) for name, choice in choices.items())
        return 1.0 - saved / self.dense

    def predict(self, choices: Mapping[str, Choice]) -> float:
        """Predict the same with the correction that the network rewritten halfway asked for."""
        return _slower(self.sum_of_sites(choices), self.kept)

    def promised(self, share: float) -> float:
        """The sum of sites that goes with a predicted share."""
        return _slower(share, 1.0 / self.kept)

    def halfway(self) -> dict[str, Choice]:
        """At every site that can be made faster, what comes nearest to half of its latency."""
        found = {}
        for name, site in self.measured().items():
            if site.choices:
                nearest = min(range(len(site.choices)), key=lambda index: abs(site.seconds[index] - 0.5 * site.dense))
                found[name] = Choice(*site.choices[nearest])
        return found

    @property
    def bias_is_free(self) -> bool:
        """Whether a convolution takes no longer with a bias; where it is added by a kernel of its own it does."""
        return is_cpu(self.provider)

    def time(self, plan: Plan) -> Timing:
        """Time the network rewritten by a plan, stand-ins for its weights in place, against the untouched one.

        Where it does not run on them, the answer is what its sites promise.

        Raises:
            ProviderError: The provider cannot run it.
        """
        choices = [(name, choice.form, choice.rank) for name, choice in plan.choices.items()]
        key = f"{_network_key(self)} ratio {choices} {plan.corrected}"
        try:
            known = kept(self.cache, key, lambda: self._timed(plan))
        except ModelError:
            # A detector may find nothing before its weights are computed, and fail on that: its sites must do. That the
            # untouched network runs has been seen.
            ratio = self.predict(plan.choices)
            return Timing(ratio, TOLERANCE, "faster" if ratio < 1.0 - TOLERANCE else "no change")
        return Timing(*known)

    def _timed(self, plan: Plan) -> list[Any]:
        rewritten = self.model.clone()
        sites = {site.name: site for site in find_sites(self.model)}
        # Where inputs decide how much there is to compute, the network has to do about what it did.
        weights = {
            name: _stand_in(sites[name], choice) if self.inputs is None else replacement(sites[name], choice, "svd")
            for name, choice in plan.choices.items()
        }
        # A refit gives every convolution that it takes a bias, and on some providers that is a kernel more.
        bare = [name for name in plan.corrected if not sites[name].has_bias]
        weights |= {name: Replacement(whole(sites[name].weights()[0]), None) for name in bare}
        weights = {name: _biased(sites[name], one) for name, one in weights.items()}
        BottleneckPass(plan, weights)(rewritten)
        after = _deployed(rewritten, self.shapes, self.deployment, self.inputs)
        told: list[Any] = []
        for _ in range(_TRIES):
            timed = compare(
                self.untouched,
                after,
                inputs=self.inputs,
                input_shapes=None if self.inputs is not None else self.shapes.inputs,
                provider=self.provider,
                threads=self.threads,
                max_seconds=_COMPARE_SECONDS,
            )
            # The quietest counts, whatever it says.
            if not told or timed.noise < told[1]:
                told = [timed.ratio, timed.noise, timed.verdict]
            if timed.noise <= NOISY:
                break
        return told


def network_latency(
    model: ir.Model,
    shapes: ResolvedShapes,
    sites: Sequence[Site],
    *,
    forms: Sequence[Form] = FORMS,
    asked: Mapping[str, Choice] | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    cache: LatencyCache | None = None,
    inputs: Mapping[str, Array] | None = None,
    deployment: Deployment = AS_IS,
    progress: Within = unheard,
) -> NetworkLatency:
    """Measure what a network and its sites take.

    Args:
        model: The network; it is left as it is.
        shapes: Its shapes.
        sites: Sites that may be rewritten and whose sizes are known.
        forms: The forms that compete.
        asked: Form and rank of sites that are decided already, by name.
        provider: Execution provider, as for ``providers.open_session``.
        threads: Threads inside one operator; the runtime's own choice if ``None``.
        cache: Where measurements are kept; ``None`` measures everything anew.
        inputs: What to time the whole network on, by name, at the sizes of ``shapes``; random inputs if ``None``.
        deployment: What is made of a network before it runs.
        progress: Called with what is measured next.

    Raises:
        ModelError: The runtime cannot run the network, or it cannot be deployed so.
        ProviderError: The provider does not load, or cannot run the network.
    """
    named = {name: (choice.form, choice.rank) for name, choice in (asked or {}).items()}
    probed = site_latencies(
        sites,
        forms=forms,
        provider=provider,
        threads=threads,
        asked=named,
        cache=cache,
        deployment=deployment,
        progress=progress,
    )
    progress("the whole network", 0, 0)
    known = NetworkLatency(
        model,
        shapes,
        provider,
        threads,
        0.0,
        probed,
        {},
        0.0,
        cache,
        inputs=inputs,
        deployment=deployment,
        deployed=_deployed(model, shapes, deployment, inputs),
    )
    dense, _, (kernels, times) = kept(cache, f"{_network_key(known)} dense", lambda: _dense_times(known))
    alone = {name: latency.dense for name, latency in probed.items()}
    # A profile sees kernels only on the CPU; elsewhere it sees them being started.
    inside = {name: times.get(name, seconds) for name, seconds in alone.items()} if times else alone
    whole = sum(times.values()) if times else sum(alone.values())
    # What is profiled is slowed down by it, and parts can take no more than the whole.
    slowed = max(1.0, whole / dense)
    inside = {name: seconds / slowed for name, seconds in inside.items()}
    between = min(_LONGEST_GAP, max(0.0, dense - whole) / kernels) if times else 0.0
    found = replace(known, dense=dense, inside=inside, between=between)
    trial = found.halfway()
    if not trial:
        return found
    progress("a network rewritten halfway", 0, 0)
    return replace(found, kept=_correction(found.time(Plan(trial)), found.sum_of_sites(trial)))


def _slower(share: float, kept: float) -> float:
    """The share of the latency at which as much of a gain in speed is left.

    Of a gain, not of what is saved: however far off a promise is, a network takes some time.
    """
    return 1.0 / (1.0 + kept * (1.0 / max(share, _LEAST) - 1.0))


def _correction(timing: Timing, promised: float) -> float:
    """What a network gains in speed as a share of what its sites promise, weighed by how sure that is.

    Under noise a measured share is held against what is known without it, that corrections lie around 1: the mean of
    both, each weighed by its precision.

    Args:
        timing: The network, timed.
        promised: What its sites promise that it takes, as a share of the untouched network's latency.
    """
    if promised >= 1.0:
        return 1.0
    ratio = max(timing.ratio, _LEAST)
    gain = 1.0 / max(promised, _LEAST) - 1.0
    uncertain = max(0.0, timing.noise - _QUIET) / ratio**2 / gain
    weight = _SPREAD**2 / (_SPREAD**2 + uncertain**2)
    low, high = _CORRECTIONS
    return min(high, max(low, 1.0 + weight * ((1.0 / ratio - 1.0) / gain - 1.0)))


def _deployed(
    model: ir.Model, shapes: ResolvedShapes, deployment: Deployment, inputs: Mapping[str, Array] | None
) -> ir.Model:
    """What is made of a network, any numbers serving for its ranges: they do not matter to its latency."""
    if not deployment.takes_examples:
        return deployment.made(model)
    return deployment.made(model, random_inputs(input_specs(model), shapes.inputs) if inputs is None else inputs)


def _dense_times(known: NetworkLatency) -> list[Any]:
    """Seconds of one run, noise, and number of kernels with seconds of each convolution and of all others, under ''.

    Whole and kernels are timed in turns, and the fastest of each counts: what disturbs lasts longer than one of them.
    """
    inputs, provider = known.inputs, known.provider
    given: dict[str, Any] = {"input_shapes": known.shapes.inputs} if inputs is None else {"inputs": inputs}
    given |= {"provider": provider, "threads": known.threads}
    wholes, profiles = [], []
    for _ in range(_ROUNDS):
        dense = measure(known.untouched, **given, max_seconds=_COMPARE_SECONDS / _ROUNDS / 2)
        # The quiet quarter: on a busy machine the median of the whole and those of its kernels were a third apart.
        wholes.append(float(np.quantile(dense.times, 0.25)))
        if is_cpu(provider):
            profiles.append(node_times(known.untouched, **given, runs=_PROFILE_RUNS // _ROUNDS))
    noise = float(np.median(wholes)) / min(wholes) - 1.0
    if not profiles:
        return [min(wholes), noise, [0, {}]]
    kernels = min(profiles, key=lambda one: sum(kernel.seconds for kernel in one))
    times: dict[str, float] = {}
    for kernel in kernels:
        times[kernel.site or ""] = times.get(kernel.site or "", 0.0) + kernel.seconds
    return [min(wholes), noise, [len(kernels), times]]


def _network_key(known: NetworkLatency) -> str:
    """Describe all that the latency of a network depends on: nodes and the sizes of weights, not their values."""
    model = known.model
    digest = hashlib.sha256()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            digest.update(f"{name} {value.dtype} {value.shape};".encode())
    for node in itertools.chain(model.graph.all_nodes(), *(body.all_nodes() for body in model.functions.values())):
        values = [[value.name if value is not None else "" for value in side] for side in (node.inputs, node.outputs)]
        plain = [_attribute(item) for item in node.attributes.values()]
        digest.update(f"{node.domain} {node.op_type} {values} {plain};".encode())
    for name, array in (known.inputs or {}).items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    sizes = {name: tuple(shape) for name, shape in known.shapes.inputs.items()}
    return f"{place(known.provider, known.threads, known.deployment)} network {sizes} {digest.hexdigest()}"


def _attribute(item: ir.Attr) -> str:
    if item.type == ir.AttributeType.TENSOR and not item.is_ref():
        return f"{item.name} {item.as_tensor().dtype} {item.as_tensor().shape}"
    return item.name if item.type in _LARGE else f"{item.name} {item}"


def _stand_in(site: Site, choice: Choice) -> Replacement:
    """Random factors of the right sizes, which keep the size of activations about as it was."""
    rng = np.random.default_rng(0)
    made = [
        (rng.standard_normal(piece.kernel) / math.sqrt(math.prod(piece.kernel[1:]))).astype(site.dtype)
        for piece in pieces(site, choice.form, choice.rank)
    ]
    before = None if choice.form == "expand" else made.pop(0)
    kernel, *after = made
    return Replacement(Factors(choice.form, choice.rank, before, kernel, after[0] if after else None, 0.0), None)


def _biased(site: Site, weights: Replacement) -> Replacement:
    """The same with a bias, which a refit gives to what has none."""
    kept = weights.bias is not None or (site.has_bias and not site.folds)
    return weights if kept else replace(weights, bias=np.zeros(site.out_channels))


@dataclass(frozen=True)
class Measured:
    """Latency of a site as it stands in the network, see ``network_latency``.

    Attributes:
        dense: Seconds of the untouched site.
        choices: Forms and ranks that are faster than that and that no higher rank equals.
        seconds: Seconds of each of them.
        fastest: Seconds of the fastest form and rank there is, faster than ``dense`` or not.
    """

    dense: float
    choices: tuple[tuple[Form, Rank], ...]
    seconds: tuple[float, ...]
    fastest: float
