import ast
import json
from pathlib import Path

import pytest

from modernbert.demo.collect import Collected, collect, is_heldout, library_roots, read_records
from modernbert.demo.extract import (
    definitions,
    functions,
    paragraphs,
    parse,
    prose_of_module,
    reads_like_english,
    topics,
)
from modernbert.errors import InputError

PROSE = "This module reads the lines of a file and counts how many of them are words that it has not seen before."
TRAINED = next(name for name in ("alpha", "beta", "gamma", "delta") if not is_heldout(name))
HELDOUT = next(name for name in (f"package{number}" for number in range(100)) if is_heldout(name))


def module(name: str, lines: int = 12) -> str:
    body = "\n".join(f"    total_{name} = total_{name} + len(word) * {number % 3}" for number in range(lines))
    head = f'"""{PROSE.replace("file", name)}"""\n\n\ndef count_{name}(word, total_{name}=0):'
    return f"{head}\n{body}\n    return total_{name}\n"


def library(root: Path, files: dict[str, str]) -> Path:
    for origin, text in files.items():
        path = root / origin
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def gather(tmp_path: Path, files: dict[str, str], budget_mb: float = 1.0) -> tuple[Collected, dict[str, list[str]]]:
    found = collect(tmp_path / "out", budget_mb=budget_mb, seed=1, roots=[library(tmp_path / "lib", files)])
    origins = {path.stem: [r.origin for r in read_records(path)] for path in (found.code, found.prose, found.heldout)}
    return found, origins


def test_held_out_packages_are_whole_and_separate(tmp_path: Path) -> None:
    files = {f"{TRAINED}/a.py": module("a"), f"{HELDOUT}/b.py": module("b"), f"{HELDOUT}/c.py": module("c")}
    found, origins = gather(tmp_path, files)
    assert origins["code"] == [f"{TRAINED}/a.py"]
    assert {f"{HELDOUT}/b.py", f"{HELDOUT}/c.py"} <= set(origins["heldout"])
    assert found.heldout_packages == [HELDOUT]


def test_a_function_copied_into_training_takes_its_file_out_of_the_held_out_ones(tmp_path: Path) -> None:
    copied = module("b") + "\n\n" + module("d").split("\n\n\n")[1]
    files = {f"{TRAINED}/vendored.py": copied, f"{HELDOUT}/b.py": module("b"), f"{HELDOUT}/c.py": module("c")}
    found, origins = gather(tmp_path, files)
    assert not any(origin.startswith(f"{HELDOUT}/b.py") for origin in origins["heldout"])
    assert f"{HELDOUT}/c.py" in origins["heldout"]
    assert found.skipped["held-out copy of training text"] >= 1


def test_the_same_text_is_taken_once(tmp_path: Path) -> None:
    licence = "\n\n".join([PROSE * 2, PROSE.replace("file", "book") * 2])
    files = {f"{TRAINED}/{name}.py": module("a") for name in "abc"}
    files |= {f"{TRAINED}-{number}.dist-info/LICENSE": licence for number in range(3)}
    found, origins = gather(tmp_path, files)
    assert len(origins["code"]) == 1 and found.skipped["duplicate"] == 2
    assert sum(origin.endswith("LICENSE") for origin in origins["prose"]) == 1


def test_files_that_are_not_for_reading_are_counted_by_reason(tmp_path: Path) -> None:
    files = {
        f"{TRAINED}/good.py": module("a"),
        f"{TRAINED}/broken.py": "def broken(:\n" * 30,
        f"{TRAINED}/deep.py": "x = " + "(" * 5_000 + ")" * 5_000,
        f"{TRAINED}/made.py": "# This file was automatically generated. Do not edit.\n" + module("b"),
        f"{TRAINED}/table.py": module("c") + "TABLE = [" + ", ".join(map(str, range(300))) + "]\n",
        f"{TRAINED}/wide.py": module("d") + "WIDE = '" + "a" * 2_000 + "'\n",
        f"{TRAINED}/escape.py": module("e") + "pattern = '\\d'\n",
        f"{TRAINED}/numbers.txt": "0.1 0.2 0.3\n" * 100,
    }
    root = library(tmp_path / "lib", files)
    (root / TRAINED / "latin.py").write_bytes(module("f").replace("words", "w\xf6rter").encode("latin-1"))
    found = collect(tmp_path / "out", budget_mb=1.0, seed=1, roots=[root])
    assert [record.origin for record in read_records(found.code)] == [f"{TRAINED}/escape.py", f"{TRAINED}/good.py"]
    assert found.skipped == {
        "does not parse": 2,
        "generated": 1,
        "data-like": 2,
        "not UTF-8": 1,
        "not prose": found.skipped["not prose"],
    }


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = library(tmp_path / "outside", {"secret.py": module("s")})
    root = library(tmp_path / "lib", {f"{TRAINED}/a.py": module("a")})
    (root / TRAINED / "b.py").symlink_to(outside / "secret.py")
    (root / "linked").symlink_to(outside)
    found = collect(tmp_path / "out", budget_mb=1.0, seed=1, roots=[root])
    assert [record.origin for record in read_records(found.code)] == [f"{TRAINED}/a.py"]


def test_a_docstring_with_half_a_surrogate_pair_is_written(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, {f"{TRAINED}/a.py": f'"""{PROSE * 2} It ends in \\ud800."""\n\n' + module("a")})
    assert "It ends in ?." in "".join(record.text for record in read_records(found.prose))


def test_a_large_package_does_not_crowd_out_a_small_one(tmp_path: Path) -> None:
    files = {f"large/m{number}.py": module(f"n{number}", lines=60) for number in range(40)}
    files |= {f"{name}/a.py": module(name) for name in ("small", "little")}
    found, origins = gather(tmp_path, files, budget_mb=0.02)
    packages = [record.package for path in (found.code, found.heldout) for record in read_records(path)]
    assert {"small", "little", "large"} <= set(packages)
    assert sum(found.num_bytes.values()) < 0.02 * 1_000_000 + 5_000


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    root = library(tmp_path / "lib", {f"{TRAINED}/m{number}.py": module(f"n{number}") for number in range(30)})
    once, again, other = (
        collect(tmp_path / name, budget_mb=0.01, seed=seed, roots=[root]).code.read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert once == again != other


def test_counts_equal_the_written_records(tmp_path: Path) -> None:
    found, _ = gather(tmp_path, {f"{name}/a.py": module(name) for name in (TRAINED, HELDOUT)})
    for path in (found.code, found.prose, found.heldout):
        records = read_records(path)
        assert found.num_documents[path.stem] == len(records)
        assert found.num_bytes[path.stem] == sum(len(record.text.encode()) for record in records)


def test_no_python_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Python source"):
        collect(tmp_path / "out", budget_mb=1.0, seed=1, roots=[tmp_path])


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "code.jsonl"
    path.write_text(json.dumps({"text": "a", "origin": "b", "package": "c"}) + "\n" + '{"text": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"code\.jsonl:2: text is int, expected text"):
        read_records(path)
    with pytest.raises(InputError, match="absent.jsonl: no such file"):
        read_records(tmp_path / "absent.jsonl")


def test_the_library_of_this_interpreter_has_text(tmp_path: Path) -> None:
    assert any(root.name.startswith("python3") for root in library_roots())
    found = collect(tmp_path, budget_mb=0.5, seed=17, roots=library_roots()[:1])
    assert sum(found.num_bytes.values()) > 400_000
    assert found.num_packages > 10 and found.heldout_packages


def test_definitions_are_those_that_a_full_walk_finds() -> None:
    tree = parse(Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8"))
    assert tree is not None
    names = {node.name for node in definitions(tree)}
    assert names == {
        n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def test_prose_is_docstrings_and_comments_without_code() -> None:
    comment = f"# {PROSE.replace('file', 'tape')}\n# It is slow but it is right.\n"
    text = f'"""{PROSE}"""\n{comment}\n# x = 1\n# y = f(x)\nz = 1\n'
    tree = parse(text)
    assert tree is not None
    found = prose_of_module([tree], text)
    assert found == [PROSE, PROSE.replace("file", "tape") + "\nIt is slow but it is right."]


def test_copies_are_detected_at_any_indent() -> None:
    plain = "def f(a):\n    b = a\n    c = b\n    return c\n"
    method = "class C:\n\n" + "".join(f"    {line}\n" for line in plain.split("\n") if line)
    one, two = ((parse(text), text) for text in (plain, method))
    assert one[0] and two[0]
    assert functions(definitions(one[0]), one[1]) == functions(definitions(two[0]), two[1]) != []


def test_help_topics_and_paragraphs() -> None:
    tree = parse("topics = {'if': 'The if statement\\n\\nis used', 'for': 'x'}")
    assert tree is not None
    assert topics(tree) == [("if", "The if statement\n\nis used"), ("for", "x")]
    assert paragraphs("a\n b\n  \n\nc\n") == ["a\n b", "c"]


def test_a_licence_reads_like_english_and_a_table_does_not() -> None:
    assert reads_like_english(
        "Permission is hereby granted, free of charge, to any person who has a copy of this software."
    )
    assert not reads_like_english("\n".join(f"{number:04x} {number}" for number in range(100)))
