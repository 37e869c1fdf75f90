"""Types of options that several commands share."""

from pathlib import Path
from typing import Literal

__all__ = ["Dtype", "Executor", "FileOrUrl", "InferenceDtype", "OnError", "Overflow"]

Dtype = Literal["auto", "float32", "bfloat16"]
InferenceDtype = Literal["auto", "float32", "bfloat16", "int8"]
Executor = Literal["local", "ray"]
FileOrUrl = str | Path
OnError = Literal["fail", "skip"]
Overflow = Literal["error", "truncate", "split-mean"]
