"""Optional libraries, and the extras of this package that install them.

A command calls `require` before it reads a file, loads a model or makes a folder, so that a missing library is reported
in the first second.
"""

import importlib.util
import sys

from modernbert.errors import InputError

__all__ = ["EXTRAS", "is_installed", "missing", "require"]

# Name to import -> name to install, and the extra that has it; some are in other extras too.
EXTRAS = {
    "bm25s": ("bm25s", "train"),
    "datasets": ("datasets", "train"),
    "fastapi": ("fastapi", "serve"),
    "jinja2": ("jinja2", "train"),
    "lancedb": ("lancedb", "index"),
    "matplotlib": ("matplotlib", "train"),
    "mteb": ("mteb", "mteb"),
    "onnx": ("onnx", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "orjson": ("orjson", "serve"),
    "prometheus_client": ("prometheus-client", "serve"),
    "pyarrow": ("pyarrow", "train"),
    "ray": ("ray", "ray"),
    "s3fs": ("s3fs", "s3"),
    "scipy": ("scipy", "train"),
    "sentence_transformers": ("sentence-transformers", "sentence-transformers"),
    "sklearn": ("scikit-learn", "train"),
    "starlette": ("starlette", "serve"),
    "swagger_ui_bundle": ("swagger-ui-bundle", "serve"),
    "tensorboard": ("tensorboard", "trackers"),
    "trackio": ("trackio", "trackers"),
    "transformers": ("transformers", "train"),
    "uvicorn": ("uvicorn", "serve"),
    "wandb": ("wandb", "trackers"),
    "zstandard": ("zstandard", "train"),
}


def require(what: str, *libraries: str, extra: str | None = None) -> None:
    """Check that libraries are installed, without importing them.

    `what` is the option, field or file that needs them; `extra` names another extra than that of `EXTRAS`.

    Raises: InputError naming the first library that is missing, and the command that installs it.

    >>> require("--bm25", "json")
    """
    for name in libraries:
        if not is_installed(name):
            raise missing(what, name, extra)


def missing(what: str, library: str, extra: str | None = None) -> InputError:
    """Return the error for a library that is not installed.

    >>> print(missing("--bm25", "bm25s"))
    --bm25: bm25s is not installed: pip install 'modernbert[train]'
    """
    package, usual = EXTRAS[library]
    return InputError(f"{what}: {package} is not installed: pip install 'modernbert[{extra or usual}]'")


def is_installed(name: str) -> bool:
    """Return whether a library is installed, without importing it."""
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None
