"""What bench, providers and cache tell, and a rewrite of many models."""

from __future__ import annotations

from onnx_pointwise.reports.schema.words import (
    ANY,
    LIKENESS,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    Schema,
    every,
    maybe,
    named,
    ref,
    whole,
)

RUN: dict[str, Schema] = {
    "bench": whole(
        "What one or two networks take.",
        model=TEXT,
        other=maybe(TEXT),
        rows=every(
            whole(batch=maybe(WHOLE), threads=maybe(WHOLE), latency=ref("run"), comparison=maybe(ref("comparison")))
        ),
        memory=named(named(maybe(NUMBER))),
        machine=ref("machine"),
        warnings=every(TEXT),
        advice=every(ref("advice")),
        nodes=every(named(ANY)),
    ),
    "providers": whole("Execution providers of a machine.", providers=every(named(ANY))),
    "cache": whole("The measured latencies that are kept.", path=TEXT, entries=WHOLE, bytes=WHOLE, cleared=TRUTH),
    "many": whole(
        "What became of many models.",
        origin=ref("origin"),
        passed=TRUTH,
        models=every(
            whole(
                source=TEXT,
                target=TEXT,
                written=TRUTH,
                passed=TRUTH,
                verdict=maybe(LIKENESS),
                error=maybe(TEXT),
                result=maybe(ref("rewrite")),
            )
        ),
    ),
}
