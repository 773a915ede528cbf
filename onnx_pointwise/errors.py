"""The exceptions that the library raises on purpose.

Every message is one sentence a user can act on: it names the file or the node and the way out.
"""

from __future__ import annotations


class OnnxPointwiseError(Exception):
    """Base of every error raised on purpose; the command line turns it into exit code 2."""


class SettingError(OnnxPointwiseError, TypeError):
    """What was asked for is given as a value of another kind: text for a number, one name for a list of them."""


class RangeError(OnnxPointwiseError, ValueError):
    """A number that was asked for lies below the smallest that makes sense."""


class ModelError(OnnxPointwiseError):
    """The input is not a model that can be read, described or run."""


class PlanError(OnnxPointwiseError):
    """A plan, rank or budget does not fit the model it is meant for."""


class TargetError(PlanError):
    """A target lies below what the cheapest candidates of all sites leave.

    Attributes:
        resource: What was to be saved: ``macs``, ``params`` or ``latency``.
        least: The share that is left at best.
    """

    def __init__(self, resource: str, least: float, message: str) -> None:
        super().__init__(message)
        self.resource, self.least = resource, least


class InputError(OnnxPointwiseError):
    """Example inputs do not fit the model's declared inputs."""


class OutputError(OnnxPointwiseError):
    """The result cannot be written where it was asked for."""


class ProviderError(OnnxPointwiseError):
    """An execution provider is unknown, or does not load on this machine."""
