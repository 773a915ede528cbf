"""Sentences that bad usage and bad input get, and that there is no sentence which no test reads.

The last test runs behind all others (see `conftest.py`), and only where all of them ran.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnx_pointwise
from onnx_pointwise.cli import parsing
from onnx_pointwise.cli.main import app  # noqa: F401
