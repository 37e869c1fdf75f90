"""`modules.json` of sentence-transformers and PyLate: the modules that make vectors, in their order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.errors import InputError
from modernbert.safe_files import FolderFiles, check_keys

__all__ = ["OURS_LISTED", "Module", "listed_modules"]

# In a folder whose modules.json names our own module for sentence-transformers: the modules that it replaces.
OURS_LISTED = "modernbert_modules.json"
_OURS = "modernbert.inference.sentence_transformers_module.UnpaddedEncoder"
_KINDS = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "MultiVectorMask")
# A class of the same name in another package, such as code in the folder, can compute anything.
_LIBRARIES = ("sentence_transformers", "pylate")


@dataclass(frozen=True)
class Module:
    """One module: the name of its class, the library of the class, and its path in the folder."""

    kind: str
    library: str
    path: str


def listed_modules(folder: Path | FolderFiles) -> list[Module]:
    """Return the modules that `modules.json` lists; none if there is no such file.

    Raises: InputError for an unsupported module, or a file that is not a list of modules.
    """
    folder = FolderFiles.of(folder)
    place = folder / "modules.json"
    found = _listed(folder, "modules.json")
    if any(each.get("type") == _OURS for each in found):
        others = [each for each in found if each.get("type") != _OURS]
        found = _listed(folder, OURS_LISTED) + others
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
            raise InputError(f"{place}: {path[:80]!r} is outside the folder")
        if module.kind == "Transformer" and Path(path) != Path():
            raise InputError(f"{place}: the path of Transformer is {path[:80]!r}, expected '': the folder itself")
        modules.append(module)
    kinds = [module.kind for module in modules]
    first = kinds.index("Normalize") if "Normalize" in kinds else len(kinds)
    if behind := [kind for kind in kinds[first:] if kind in ("Pooling", "Dense")]:
        raise InputError(f"{place}: lists Normalize before {behind[0]}, expected it last")
    return modules


def _listed(folder: FolderFiles, name: str) -> list[dict[str, Any]]:
    found = folder.read_json_list(name)
    for each in found:
        if not isinstance(each, dict):
            raise InputError(f"{folder / name}: lists {str(each)[:80]!r}, expected modules")
    return found
