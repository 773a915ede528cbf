"""Check and time networks on the GPU providers of this machine.

    python -m tools.check_gpu FOLDER [--provider cuda:use_tf32=0] [--target-macs 0.5] [--json FILE]

Takes every ``.onnx`` file of a folder. Where ``NAME.after.onnx`` lies beside ``NAME.onnx`` the two are compared; any
other network is rewritten first, without data, to the share of MACs asked for. On every GPU provider that loads, and on
the CPU to compare with, both networks run on the same inputs: shapes, drift from the dense network there and on the
CPU, nodes that ran elsewhere, and latency with inputs and outputs in device memory.

Exit code 1 if a check fails, 2 if there is nothing to check or to check on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onnx_pointwise import rewrite
from onnx_pointwise.check import CheckResult, ProviderCheck, check
from onnx_pointwise.errors import OnnxPointwiseError
from onnx_pointwise.graph.model_io import ModelSource, require_writable, write_text
from onnx_pointwise.runtime.machine import machine
from onnx_pointwise.runtime.providers import ProviderInfo, discover, provider_info

AFTER = ".after.onnx"
#: What is looked at here is the provider: on random inputs and at a rank for speed, answers may move as they like.
ANY_ANSWERS = {"classes": (0.0,) * 3, "presence": (0.0,) * 3, "picture": (-1e3,) * 3, "numbers": (1e6,) * 3}
_NOT_GPU = {"cpu", "dnnl", "xnnpack"}


@dataclass(frozen=True)
class Outcome:
    """What came of one network.

    Attributes:
        network: Its file name.
        result: The check; None where it could not be made.
        fault: Why not.
    """

    network: str
    result: CheckResult | None
    fault: str | None

    @property
    def passed(self) -> bool:
        """Whether the check was made and found nothing."""
        return self.result is not None and self.result.passed

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dict."""
        return {
            "network": self.network,
            "check": None if self.result is None else self.result.to_dict(),
            "fault": self.fault,
        }


def networks(folder: Path) -> Iterator[Path]:
    """List the networks of a folder, without those that another one is compared with."""
    return (path for path in sorted(folder.glob("*.onnx")) if not path.name.endswith(AFTER))


def shapes_for(path: Path, given: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """Pick the input shapes given for one network, as ``NETWORK/INPUT:1,3,224,224``.

    Raises:
        ValueError: A shape is not of that form.
    """
    shapes = {}
    for text in given:
        where, colon, sizes = text.rpartition(":")
        network, slash, name = where.partition("/")
        if not (colon and slash and all(size.strip().isdigit() for size in sizes.split(","))):
            raise ValueError(f"'{text}' is not of the form NETWORK/INPUT:1,3,224,224")
        if network == path.stem:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes or None


def examine(path: Path, providers: Sequence[str], options: argparse.Namespace) -> Outcome:
    """Rewrite one network where it has no partner, and check it on every provider."""
    partner = path.with_name(path.stem + AFTER)
    try:
        shapes = shapes_for(path, options.input_shape)
        after: ModelSource = partner
        if not partner.is_file():
            # From the kernels alone: graph, shapes and speed are the question here, and they are the same with data.
            after = rewrite(
                path,
                target_macs=options.target_macs,
                calibration=None,
                input_shapes=shapes,
                check=False,
                provider=options.plan_for,
                threads=options.threads,
            ).model
        result = check(
            path,
            after,
            providers=providers,
            input_shapes=shapes,
            latency_seconds=options.seconds,
            threads=options.threads,
            max_drift=options.max_drift,
            limits=ANY_ANSWERS,
        )
    except OnnxPointwiseError as error:
        return Outcome(path.name, None, str(error))
    return Outcome(path.name, result, None)


def provider_table(infos: Sequence[ProviderInfo]) -> Table:
    """Show which providers there are, and why the others are missing."""
    table = Table("Provider", "Version", "Device, or why it is missing", box=None, pad_edge=False)
    for info in infos:
        reason = (info.reason or "").removeprefix(f"Provider {info.name} does not load: ")
        table.add_row(info.name, info.version or "", info.device if info.available else reason)
    return table


def result_table(outcomes: Sequence[Outcome]) -> Table:
    """Show one line for each network and provider."""
    table = Table(box=None, pad_edge=False)
    for title in ("Network", "Provider", "Shapes"):
        table.add_column(title)
    for title in ("Drift", "Dense from CPU", "Rewritten from CPU", "Nodes off", "Dense", "Rewritten, share of it"):
        table.add_column(title, justify="right")
    for outcome in outcomes:
        if outcome.result is None:
            table.add_row(outcome.network, "", str(outcome.fault))
            continue
        for one in outcome.result.providers:
            table.add_row(outcome.network, *_cells(one))
    return table


def _cells(one: ProviderCheck) -> list[str]:
    def worst(drift: Any) -> str:
        return "" if not drift else f"{max(value.relative_l2 for value in drift.values()):.1e}"

    latency = one.latency
    timing = ["not timed", ""]
    if latency is not None:
        low, high = latency.interval
        ratio = f"{latency.ratio:.3f} [{low:.3f}, {high:.3f}] {latency.verdict}"
        timing = [f"{latency.before.median * 1e3:.3f} ms", ratio]
    return [
        one.provider,
        "equal" if one.shapes_equal else "differ",
        worst(one.drift),
        worst(one.dense_from_cpu),
        worst(one.rewritten_from_cpu),
        f"{len(one.nodes_off_before)} -> {len(one.nodes_off)}",
        *timing,
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_gpu", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="folder of .onnx files")
    parser.add_argument("--provider", action="append", default=[], help="check on this one; all that load otherwise")
    parser.add_argument("--target-macs", type=float, default=0.5, help="share of MACs that a rewrite keeps (0.5)")
    parser.add_argument("--plan-for", default="none", help="choose ranks by the latency on this provider (none)")
    parser.add_argument("--max-drift", type=float, help="largest relative L2 drift allowed")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NETWORK/INPUT:SIZES")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of timing a network and provider (10)")
    parser.add_argument("--threads", type=int, help="threads on the CPU")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; give its exit code."""
    options = arguments(argv)
    console = Console()
    infos = discover()
    console.print(provider_table(infos))
    try:
        for provider in options.provider:
            provider_info(provider)
        paths = list(networks(options.folder))
        for path in paths:
            shapes_for(path, options.input_shape)
        if options.json is not None:
            require_writable(options.json)
    except (OnnxPointwiseError, ValueError) as error:
        console.print(f"Error: {error}", style="red", markup=False)
        return 2
    gpus = [info.name for info in infos if info.available and info.name not in _NOT_GPU]
    wanted = list(options.provider or gpus)
    if not paths or not wanted:
        missing = f"no .onnx files in {options.folder}" if not paths else "no GPU provider loads on this machine"
        console.print(f"Error: {missing}.", style="red", markup=False)
        return 2
    outcomes = []
    for path in paths:
        console.print(f"{path.name}...", style="dim", markup=False)
        outcomes.append(examine(path, [*dict.fromkeys([*wanted, "cpu"])], options))
    console.print(result_table(outcomes))
    for outcome in outcomes:
        for finding in outcome.result.findings if outcome.result else ():
            console.print(f"{outcome.network}: {finding.sentence}", style="red", markup=False)
    if options.json is not None:
        data = {
            "machine": machine().to_dict(),
            "providers": [info.to_dict() for info in infos],
            "networks": [outcome.to_dict() for outcome in outcomes],
        }
        write_text(options.json, json.dumps(data, indent=1, allow_nan=False) + "\n")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
