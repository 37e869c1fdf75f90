"""The folder of a run and its config; a run continues in it only with the same config."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from modernbert.config_files import resolve, to_yaml
from modernbert.errors import InputError
from modernbert.files import only_process, translate_errors, try_delete, write_file

__all__ = ["RunConfig", "check_run_folder", "open_run_folder", "remove_unused"]

_BEFORE_A_CHECKPOINT = {
    "config.yaml", ".lock", "log.jsonl", "timing.jsonl", "checkpoints", "watch", "report.html", "tokenizer",
    "shards", "shards.unfinished",
}  # fmt: skip
# Groups whose order matters: seeds and checkpoints know their entries by number, not by name.
_IN_ORDER = ("data.sources", "phases")


@runtime_checkable
class RunConfig(Protocol):
    """A config of a run. `FREE_TO_CHANGE` names the fields, or groups of them, that may change when a run continues."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def open_run_folder(out: Path, config: RunConfig) -> None:
    """Write the config into a new run folder, or check that an existing one has the same.

    Before the first checkpoint, another config replaces the one in the folder.

    Raises: InputError naming the first field that differs, or the folder if it is something else.
    """
    check_run_folder(out, config)
    with only_process(out):
        write_file(out / "config.yaml", to_yaml(config))


def check_run_folder(out: Path, config: RunConfig) -> None:
    """Check that a run of this config may start or continue in a folder.

    Raises: InputError naming the first field that differs, or the folder if it is something else.
    """
    path = out / "config.yaml"
    try:
        path.exists()
    except OSError as error:
        raise translate_errors(out, error) from error
    if path.exists() and not _may_be_corrected(out):
        was, now = asdict(resolve(type(config), {}, path)), asdict(config)
        started, asked = _flat(was), _flat(now)
        for key in [*asked, *started]:
            if not _is_free(key, config.FREE_TO_CHANGE) and started.get(key) != asked.get(key):
                raise InputError(
                    f"{path}: this run was started with `{key}={started.get(key)}`, found `{key}={asked.get(key)}`; "
                    "choose another `output` for another config"
                )
        for key in _IN_ORDER:
            order, asked_order = _names(was, key), _names(now, key)
            if asked_order != order:
                raise InputError(
                    f"{path}: this run was started with {key} in the order {', '.join(order)}, "
                    f"found {', '.join(asked_order)}; name them in that order"
                )
    elif not path.exists() and out.exists() and not _is_empty(out):
        raise InputError(f"{out}: exists and is not a run folder, expected a new folder or one with config.yaml")


def remove_unused(out: Path) -> None:
    """Delete a run folder that has nothing with which the run could continue, such as shards."""
    if {path.name for path in out.iterdir()} <= {"config.yaml", ".lock", "tokenizer"}:
        try_delete(out)


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _names(tree: Mapping[str, Any], key: str) -> list[str]:
    """Return the names in the group `key` of a config, in order."""
    group: Any = tree
    for part in key.split("."):
        group = group.get(part, {})
    return list(group)


def _is_empty(out: Path) -> bool:
    """Return whether a folder has only files of a run that was killed at its start."""
    return out.is_dir() and all(path.name == ".lock" or path.name.startswith("config.yaml.") for path in out.iterdir())


def _may_be_corrected(out: Path) -> bool:
    """Return whether a run folder has only files that a run writes before its first checkpoint."""
    names = {path.name for path in out.iterdir()}
    return ".lock" in names and names <= _BEFORE_A_CHECKPOINT and not any((out / "checkpoints").glob("step-*"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
