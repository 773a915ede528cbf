"""Sentences out of ONNX Runtime's error messages, which carry status codes, source files and C++ signatures."""

from __future__ import annotations

import re

_SOURCE_LOCATION = re.compile(r"\S*/?[\w./]+\.(?:cc|cpp|cxx|cu|h|hpp):\d+\s+")
_LEAD_IN = re.compile(
    r"^(?:(?:Exception during initialization|Error creating execution provider|Load model from \S+ failed):"
    r"|This is an invalid model\.)\s*"
)
_NODE = re.compile(r"^In Node, \(\"(?P<name>[^\"]*)\", .* -> \(.*\) , Error ")
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")


def sentence(error: Exception) -> str:
    """Reduce an error of the runtime to its sentence, without codes, source files, signatures and conditions."""
    text = " ".join(str(error).split())
    text = _STATUS.sub("", text)
    parts = _SOURCE_LOCATION.split(text)
    text = " ".join([parts[0], *(_without_signature(part) for part in parts[1:])])
    text = re.sub(r"^.*? was false\. ", "", text).strip(" .")
    text = re.sub(
        r"^(?:(?:Exception during initialization|Error creating execution provider|Load model from \S+ failed):"
        r"|This is an invalid model\.)\s*",
        "",
        text,
    )
    return (text if len(text) <= 400 else text[:400].rsplit(" ", 1)[0] + "...") or type(error).__name__


def _without_signature(text: str) -> str:
    """Drop a C++ function signature from the front of a message: up to its last parenthesis, trailing ``const`` too."""
    start = text.find("(")
    if start < 0 or "::" not in text[: text.find(" ", start) if " " in text[start:] else len(text)]:
        return text
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            rest = text[index + 1 :]
            rest = re.sub(r"^(?:::<lambda\([^)]*\)>|\s*const\b|\s*\[with [^\]]*\])+", "", rest)
            # operator()(...) has two pairs.
            return _without_signature(text[:start] + rest) if rest.startswith("(") else rest.strip()
    return text
