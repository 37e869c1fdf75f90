"""The list of a folder's modules, in the form of sentence-transformers; PyLate writes the same.

In: a folder. Out: its modules in turn, each one of a known kind. A file of its own because vectors and projections both
begin with it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.errors import InputError
from modernbert.safe_files import check_keys, read_json_list

__all__ = ["OURS_LISTED", "Module", "listed_modules"]

# What a folder that names our own module for sentence-transformers lists beside it: the modules that it stands for.
OURS_LISTED = "modernbert_modules.json"
_OURS = "modernbert.inference.sentence_transformers_module.UnpaddedEncoder"
_KINDS = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "MultiVectorMask")
# A class of the same name in another package, such as code beside the weights, may do anything.
_LIBRARIES = ("sentence_transformers", "pylate")


@dataclass(frozen=True)
class Module:
    """One module: the last word of its class, whose library that is, and where in the folder it lies."""

    kind: str
    library: str
    path: str


def listed_modules(folder: Path) -> list[Module]:
    """Return the modules that `modules.json` lists; none where there is no such file.

    Raises: InputError for a module that this package has no part for, or a list that is none.
    """
    place = folder / "modules.json"
    found = _listed(place)
    if any(each.get("type") == _OURS for each in found):
        others = [each for each in found if each.get("type") != _OURS]
        found = _listed(folder / OURS_LISTED) + others
    modules = []
    for each in found:
        named, path = str(each.get("type", "")), str(each.get("path", ""))
        module = Module(named.rpartition(".")[2], named.partition(".")[0], path)
        if module.kind not in _KINDS or module.library not in _LIBRARIES:
            raise InputError(
                f"{place}: lists {named[:80]!r}, expected only {', '.join(_KINDS)} of {' or '.join(_LIBRARIES)}"
            )
        check_keys(each, ("idx", "name", "path", "type", "kwargs"), f"{place}: the entry of {module.kind}")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise InputError(f"{place}: {path[:80]!r} lies outside the folder")
        if module.kind == "Transformer" and Path(path) != Path():
            raise InputError(f"{place}: the path of Transformer is {path[:80]!r}, expected '': the folder itself")
        modules.append(module)
    kinds = [module.kind for module in modules]
    first = kinds.index("Normalize") if "Normalize" in kinds else len(kinds)
    if behind := [kind for kind in kinds[first:] if kind in ("Pooling", "Dense")]:
        raise InputError(f"{place}: lists Normalize before {behind[0]}, expected it behind all others")
    return modules


def _listed(place: Path) -> list[dict[str, Any]]:
    found = read_json_list(place)
    for each in found:
        if not isinstance(each, dict):
            raise InputError(f"{place}: lists {str(each)[:80]!r}, expected modules")
    return found
