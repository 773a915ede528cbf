"""What the help of each command says first: the options that most people need, and examples that work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """The way into a command.

    Attributes:
        group: Where the list of commands puts it.
        first: The parameters that matter most, at most six.
        examples: Command lines, each with what it does.
    """

    group: str
    first: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()


REWRITE, LOOK, MACHINE = "Make a network cheaper", "Look at networks", "This machine"

#: By command, in the order of the list.
GUIDES: Mapping[str, Guide] = {
    "rewrite": Guide(
        REWRITE,
        ("calibration", "target_latency", "target_macs", "require", "provider", "inputs"),
        (
            ("rewrite net.onnx out.onnx --calibration images.npz", "the fastest whose answers stay the same"),
            ("rewrite net.onnx out.onnx --target-macs 0.5 --provider none", "half of the arithmetic"),
            ("rewrite net.onnx out.onnx --target-macs 0.5 --report out.html", "the result as a page to look at"),
            ("rewrite net.onnx out.onnx --target-latency 0.6 --threads 1", "0.6 of the time on one thread"),
            ("rewrite net.onnx out.onnx --calibration images.npz --deploy int8", "planned for static int8"),
            ("rewrite net.onnx out.onnx --config job.yaml --exclude conv1", "options from a file, one beside it"),
        ),
    ),
    "sweep": Guide(
        REWRITE,
        ("calibration", "shares", "cost", "pick", "answers", "providers"),
        (
            ("sweep net.onnx --calibration images.npz", "networks from dear to cheap, what each costs and answers"),
            ("sweep net.onnx out.onnx --calibration images.npz --pick knee", "write the one where the front gives way"),
        ),
    ),
    "insert": Guide(
        REWRITE,
        ("node", "feature_maps", "calibration", "require", "provider", "inputs"),
        (
            ("insert net.onnx out.onnx --node conv2 --feature-maps 64", "a 1x1 with 64 feature maps before conv2"),
            ("insert net.onnx out.onnx --node conv2 --feature-maps 8 --force", "write it however far answers move"),
        ),
    ),
    "inspect": Guide(
        LOOK,
        ("treads_on", "threads", "input_shapes", "min_channels", "whole", "json_file"),
        (
            ("inspect net.onnx", "what costs most, and how low its rank could be"),
            ("inspect net.onnx --treads cpu --threads 1", "latency over the ranks, a staircase"),
            ("inspect net.onnx --all --json convolutions.json", "every convolution, and as data"),
        ),
    ),
    "check": Guide(
        LOOK,
        ("inputs", "require", "max_drift", "providers", "sites", "latency"),
        (
            ("check net.onnx out.onnx --inputs images.npz", "answers, shapes, cost and latency"),
            ("check net.onnx out.onnx --inputs images.npz --require close", "exit code 1 if they are not close"),
            ("check net.onnx out.onnx --inputs images.npz --sites", "which convolution moved the answers"),
        ),
    ),
    "bench": Guide(
        LOOK,
        ("provider", "thread_counts", "batch_sizes", "max_seconds", "memory", "nodes"),
        (
            ("bench net.onnx", "latency of one network"),
            ("bench net.onnx out.onnx --threads 1 --threads 2", "two in turns, on one thread and on two"),
            ("bench net.onnx --nodes", "what each kernel takes"),
        ),
    ),
    "providers": Guide(MACHINE, (), (("providers", "what can run here, and why the rest cannot"),)),
    "cache": Guide(MACHINE, ("clear",), (("cache", "where measured latencies are kept"),)),
    "schema": Guide(MACHINE, (), (("schema rewrite", "what the JSON of a rewrite holds, as JSON Schema"),)),
}
