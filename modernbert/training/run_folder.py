"""The folder of a run: begun once, and gone on with only under the same config.

In: a config and a path. Out: a folder with `config.yaml`. A file of its own because more than one program begins runs,
and a run that went on under another config would be a lie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from modernbert.config_files import load, to_yaml
from modernbert.errors import InputError
from modernbert.files import only_process, translate_errors, write_file

__all__ = ["RunConfig", "begin_run_folder", "check_run_folder"]

_BEFORE_A_CHECKPOINT = {
    "config.yaml", ".lock", "log.jsonl", "timing.jsonl", "checkpoints", "watch", "report.html", "tokenizer",
}  # fmt: skip
# Groups whose entries count by their place: a seed and a checkpoint know them by number, not by name.
_IN_ORDER = ("data.sources", "phases")


@runtime_checkable
class RunConfig(Protocol):
    """A config of a run: `FREE_TO_CHANGE` names the fields under which a run may go on otherwise than it was begun.

    They change when, where and on how many devices it is computed and kept, never what it computes.
    """

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def begin_run_folder(out: Path, config: RunConfig) -> None:
    """Write the config into a new run folder, or check that a begun one has the same.

    A config under which no checkpoint was written, nor anything beside the run, may be corrected: it is replaced.

    Raises: InputError naming the first field that differs, or the folder if it is something else.
    """
    check_run_folder(out, config)
    with only_process(out):
        write_file(out / "config.yaml", to_yaml(config))


def check_run_folder(out: Path, config: RunConfig) -> None:
    """Check that a run of this config may begin in a folder, or go on there.

    Raises: InputError naming the first field that differs, or the folder if it is something else.
    """
    path = out / "config.yaml"
    try:
        path.exists()
    except OSError as error:
        raise translate_errors(out, error) from error
    if path.exists() and not _may_be_corrected(out):
        was, now = asdict(load(type(config), path)), asdict(config)
        begun, asked = _flat(was), _flat(now)
        for key in [*asked, *begun]:
            if not _is_free(key, config.FREE_TO_CHANGE) and begun.get(key) != asked.get(key):
                raise InputError(
                    f"{path}: this run was begun with {key}={begun.get(key)}, found {key}={asked.get(key)}; "
                    "choose another `output` for another config"
                )
        for key in _IN_ORDER:
            order, asked_order = _names(was, key), _names(now, key)
            if asked_order != order:
                raise InputError(
                    f"{path}: this run was begun with {key} in the order {', '.join(order)}, "
                    f"found {', '.join(asked_order)}; name them in that order"
                )
    elif not path.exists() and out.exists() and not _is_empty(out):
        raise InputError(f"{out}: exists and is not a run folder, expected a new folder or one with config.yaml")


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _names(tree: Mapping[str, Any], key: str) -> list[str]:
    """Return the names in the group `key` of a config, in order."""
    group: Any = tree
    for part in key.split("."):
        group = group.get(part, {})
    return list(group)


def _is_empty(out: Path) -> bool:
    """Say whether a folder has nothing but what a run leaves that is killed as it begins."""
    return out.is_dir() and all(path.name == ".lock" or path.name.startswith("config.yaml.") for path in out.iterdir())


def _may_be_corrected(out: Path) -> bool:
    """Say whether a run folder has only what a run writes before its first checkpoint."""
    names = {path.name for path in out.iterdir()}
    return ".lock" in names and names <= _BEFORE_A_CHECKPOINT and not any((out / "checkpoints").glob("step-*"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
