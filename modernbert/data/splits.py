"""Choose the files of one split of a data set folder by the naming conventions of the Hugging Face `datasets` library.

Source: https://huggingface.co/docs/datasets/repository_structure and `datasets.data_files`. Two rules are stricter:
keywords match in any case (`Test.csv` is a test split), and a name with the keywords of two splits is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from modernbert.data.source_files import Parts
from modernbert.errors import InputError

__all__ = ["Subset", "choose_split", "is_shard", "match_split", "name_of_split", "splits_in", "subset_of"]

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_IN_A_NAME = {
    split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)") for split, words in _KEYWORDS.items()
}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")
_NUMBER_OF_A_SHARD = re.compile(r"-[0-9]+(-of-[0-9]+)?$")
# Keys of an entry of `configs` that do not change which rows are read, or how.
_HARMLESS = {"config_name", "data_files", "data_dir", "default", "version", "description", "license"}
_MOST_NAMED = 6


@dataclass(frozen=True)
class Subset:
    """A subset as the README.md of a data set lists it: its folder, and the patterns of each split's files.

    `patterns` is None if the names of the files decide.
    """

    folder: Parts = ()
    patterns: Mapping[str, Sequence[str]] | None = field(default=None)


def subset_of(readme: str | None, name: str | None, source: str) -> Subset:
    """Return the subset `name`, or the default one, as the YAML header of a README.md lists it under `configs`.

    Raises:
        InputError: There is no such subset, none is the default, or the header has unsupported options.
    """
    configs = _configs_of(readme, source)
    if not configs:
        if name is not None:
            raise InputError(
                f"subset: found {name!r}, but {source} has no README.md that lists subsets under `configs`"
            )
        return Subset()
    found = ", ".join(configs)
    defaults = [each for each, entry in configs.items() if entry.get("default") is True or each == "default"]
    if name is None and len(configs) > 1 and len(defaults) != 1:
        raise InputError(f"{source}: found the subsets {found}; choose one with `subset=NAME`")
    chosen = name if name is not None else next(iter(configs if len(configs) == 1 else defaults))
    if chosen not in configs:
        raise InputError(f"subset: found {chosen!r}, but {source} has the subsets {found}")
    entry = configs[chosen]
    place = f"{source}: README.md: configs: {chosen}"
    unknown = sorted(set(map(str, entry)) - _HARMLESS)
    if unknown:
        raise InputError(f"{place}: {unknown[0]} is not supported; name the files instead of the folder")
    folder = entry.get("data_dir") or ""
    if not isinstance(folder, str):
        raise InputError(f"{place}: data_dir is {folder!r}, expected a path")
    parts = tuple(part for part in folder.split("/") if part not in ("", "."))
    return Subset(parts, _patterns_of(entry["data_files"], f"{place}: data_files") if "data_files" in entry else None)


def choose_split(paths: Sequence[Parts], split: str, source: str, subset: Subset = Subset()) -> tuple[str, list[int]]:
    """Return the data set's own name of a split, and the indices of its files.

    `validation`, `valid`, `val` and `dev` are the same split, and so are `test` and `eval`. Another name is that of a
    file or folder, such as `validation_matched`. If no file name has a split, all files are `train`, or the split that
    the folder is named after.

    >>> choose_split([("dev.csv",), ("train.csv",), ("notes.csv",)], "validation", "some/")
    ('validation', [0])

    Raises:
        InputError: The data set does not have the split, or more than one fits; names those it has.
    """
    inside = [number for number, parts in enumerate(paths) if parts[: len(subset.folder)] == subset.folder]
    below = {number: paths[number][len(subset.folder) :] for number in inside}
    splits = _matched(below, subset.patterns) if subset.patterns is not None else _by_names(below, source)
    group = name_of_split(split)
    fitting = _fitting(list(splits), split)
    if len(fitting) == 1:
        return fitting[0], splits[fitting[0]]
    if not fitting and group is None and subset.patterns is None:
        named = [n for n, parts in below.items() if split in parts[:-1] or _stem(parts[-1]) == split]
        if named:
            return split, named
    if fitting:
        raise InputError(f"{source}: found the splits {', '.join(fitting)} for {split!r}; choose one by its own name")
    if list(splits) == ["train"] and subset.patterns is None and not any(map(splits_in, below.values())):
        # A folder named dev has the split dev.
        if group in _groups([PurePosixPath(source).name]):
            return split, splits["train"]
        raise InputError(
            f"{source}: no file name there has a split, so that all rows are the split train, expected {split}; "
            "name the files, or choose train"
        )
    found = "; ".join(f"{name} ({_listed([paths[n] for n in numbers])})" for name, numbers in splits.items())
    raise InputError(
        f"{source}: has no split {split!r}, found {found or 'none'}; name the files, or choose another split"
    )


def name_of_split(name: str) -> str | None:
    """Return train, validation or test for a keyword of that split; None for any other name.

    >>> name_of_split("dev")
    'validation'
    """
    return next((split for split, words in _KEYWORDS.items() if name.lower() in words), None)


def is_shard(parts: Parts) -> bool:
    """Return whether a file is named like the Hub's own: `data/NAME-00000-of-00001.*`.

    >>> is_shard(("data", "train-00000-of-00001.parquet"))
    True
    """
    return _SHARD.fullmatch("/".join(parts)) is not None


def match_split(names: Sequence[str], split: str, source: str) -> str:
    """Return the one of a data set's split names that is `split` or has the same meaning.

    >>> match_split(["train", "validation"], "dev", "owner/name")
    'validation'

    Raises:
        InputError: None or several do; lists the names.
    """
    fitting = _fitting(names, split)
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(fitting or names) or "none"
    if fitting:
        raise InputError(f"{source}: found the splits {found} for {split!r}; choose one by its own name")
    raise InputError(f"{source}: has no split {split!r}, found {found}; choose another split")


def _fitting(names: Sequence[str], split: str) -> list[str]:
    """Return the split itself if it is among the names, else the names with its meaning."""
    group = name_of_split(split)
    return [split] if split in names else [name for name in names if group and name_of_split(name) == group]


def splits_in(parts: Parts) -> list[str]:
    """Return the splits whose keywords are in the path of a file.

    >>> splits_in(("data", "train-00000-of-00001.parquet"))
    ['train']
    """
    return _groups(parts)


def _by_names(paths: Mapping[int, Parts], source: str) -> dict[str, list[int]]:
    """Return the files of each split: by `data/NAME-00000-of-00001.*`, else by folders, else by file names."""
    shards: dict[str, list[int]] = {}
    for number, parts in paths.items():
        if match := _SHARD.fullmatch("/".join(parts)):
            shards.setdefault(match[1], []).append(number)
    if shards:
        return shards
    for names_of in (lambda parts: parts[:-1], lambda parts: parts[-1:]):
        found: dict[str, list[int]] = {}
        for number, parts in paths.items():
            groups = _groups(names_of(parts))
            if len(groups) > 1:
                raise InputError(
                    f"{source}: the name {'/'.join(parts)} has the splits {' and '.join(groups)}, expected one; "
                    "name the files, or rename it"
                )
            for group in groups:
                found.setdefault(group, []).append(number)
        if found:
            return {split: found[split] for split in _KEYWORDS if split in found}
    return {"train": list(paths)} if paths else {}


def _groups(names: Sequence[str]) -> list[str]:
    return [split for split, pattern in _IN_A_NAME.items() if any(pattern.search(name.lower()) for name in names)]


def _matched(paths: Mapping[int, Parts], patterns: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    found = {}
    for split, globs in patterns.items():
        whole = [re.compile(_regex_of(pattern)) for pattern in globs]
        numbers = [n for n, parts in paths.items() if any(each.fullmatch("/".join(parts)) for each in whole)]
        if numbers:
            found[split] = numbers
    return found


def _regex_of(pattern: str) -> str:
    """Return a glob as `datasets` reads it: `*` stays within a folder, `**` does not.

    >>> bool(re.fullmatch(_regex_of("a/**/*.csv"), "a/x.csv")), bool(re.fullmatch(_regex_of("a/*"), "a/b/x.csv"))
    (True, False)
    """
    made = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    return "".join(made.get(p, p.replace("[!", "[^") if p.startswith("[") else re.escape(p)) for p in pieces)


def _configs_of(readme: str | None, source: str) -> dict[str, dict[str, Any]]:
    lines = (readme or "").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        header = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: README.md: header is not YAML ({' '.join(str(error).split())[:80]})") from None
    entries = header.get("configs") if isinstance(header, dict) else None
    if entries is None:
        return {}
    if not isinstance(entries, list) or not all(
        isinstance(each, dict) and isinstance(each.get("config_name"), str) for each in entries
    ):
        raise InputError(f"{source}: README.md: configs is {str(entries)[:60]!r}, expected entries with config_name")
    return {each["config_name"]: each for each in entries}


def _patterns_of(found: Any, place: str) -> dict[str, list[str]]:
    items = found if isinstance(found, list) else [found]
    if items and all(isinstance(each, str) for each in items):
        return {"train": items}
    patterns = {}
    for each in items:
        path = each.get("path") if isinstance(each, dict) and set(each) == {"split", "path"} else None
        globs = [path] if isinstance(path, str) else path
        if not isinstance(globs, list) or not globs or not all(isinstance(glob, str) for glob in globs):
            raise InputError(f"{place} is {str(each)[:60]!r}, expected paths, or entries with split and path")
        if str(each["split"]) in patterns:
            raise InputError(f"{place} has the split {each['split']!r} twice, expected each once")
        patterns[str(each["split"])] = globs
    return patterns


def _stem(name: str) -> str:
    """Return the name of a file without its suffixes and the number of its shard.

    >>> _stem("validation_matched-00000-of-00001.parquet")
    'validation_matched'
    """
    return _NUMBER_OF_A_SHARD.sub("", name.partition(".")[0])


def _listed(paths: Sequence[Parts]) -> str:
    more = f" and {len(paths) - _MOST_NAMED:,} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join("/".join(parts) for parts in paths[:_MOST_NAMED]) + more
