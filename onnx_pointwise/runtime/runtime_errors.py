"""Sentences out of ONNX Runtime's error messages, which carry status codes, source files and C++ signatures."""

from __future__ import annotations

import re

_LIMIT = 400
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
# From the beginning of a word: a message may hold a name of thousands of characters.
_SOURCE_LOCATION = re.compile(r"(?<!\S)\S*[\w./]\.(?:cc|cpp|cxx|cu|h|hpp):\d+\s+")
_LEAD_IN = re.compile(
    r"^(?:(?:Exception during initialization|Error creating execution provider|Load model from \S+ failed):"
    r"|This is an invalid model\.)\s*"
)
_NODE = re.compile(r"^In Node, \(\"(?P<name>[^\"]*)\", .* -> \(.*\) , Error ")
_RUNNING = re.compile(r"^Non-zero status code returned while running (?P<op>\w+) node\. Name:'(?P<name>[^']*)' ")
_CONDITION = re.compile(r"^(?:(?! {2}|: ).)*? was false\. ")


def sentence(error: Exception) -> str:
    """Reduce an error of the runtime to its sentence, without codes, source files, signatures and conditions.

    Returns:
        One line without a full stop, at most 400 characters.
    """
    text = _STATUS.sub("", " ".join(str(error).split()))
    first, *rest = _SOURCE_LOCATION.split(text)
    text = " ".join([first.strip(), *(_without_signature(part) for part in rest)]).strip()
    for pattern in (_RUNNING, _NODE):
        text = pattern.sub(r"node '\g<name>': ", _LEAD_IN.sub("", text))
    text = re.sub(r"Status Message: ", "", text)
    text = _CONDITION.sub("", text).strip(" .")
    if len(text) > _LIMIT:
        text = text[:_LIMIT].rsplit(" ", 1)[0] + "..."
    return text or type(error).__name__


def _without_signature(text: str) -> str:
    """Drop a C++ function signature from the front of a message: up to its last parenthesis, trailing ``const`` too."""
    start = text.find("(")
    if start < 0 or "::" not in text[:start]:
        return text
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            rest = re.sub(r"^(?:::<lambda\([^)]*\)>|\s*const\b|\s*\[with [^\]]*\])+", "", text[index + 1 :])
            # operator()(...) has two pairs.
            return _without_signature(text[:start] + rest) if rest.startswith("(") else rest.strip()
    return text
