"""The names of the engines as choices of an option, without importing torch."""

from typing import Literal

__all__ = ["EngineName"]

EngineName = Literal["auto", "cuda", "flash", "cpu", "torch", "reference"]
