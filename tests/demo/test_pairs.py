from modernbert.demo.collect import Record
from modernbert.demo.pairs import Pair, pairs

BODY = "    first = [word for word in words]\n    second = sorted(first)\n    return second\n"


def source(name: str, docstring: str, body: str = BODY) -> str:
    return f'def {name}(words):\n    """{docstring}"""\n{body}\n'


def found(text: str, origin: str = "pack/mod.py") -> list[Pair]:
    return pairs([Record(text, origin, "pack")])


def test_the_first_paragraph_asks_and_the_function_without_it_answers() -> None:
    text = source("order", "Sort the words,\n    longest first.\n\n    Not stable.\n    ")
    assert found(text) == [
        Pair("Sort the words, longest first.", f"def order(words):\n{BODY}".rstrip(), "pack", "order")
    ]


def test_a_method_loses_its_indent_and_keeps_its_signature() -> None:
    method = "".join(f"    {line}\n" for line in source("order", "Sort the words of it.").split("\n") if line)
    text = "class Words:\n    @property\n" + method.replace("(words)", "(\n        self, words\n    )")
    (pair,) = found(text)
    assert pair.passage == f"def order(\n    self, words\n):\n{BODY}".rstrip()
    compile(pair.passage, "passage", "exec")


def test_the_passage_never_holds_the_query() -> None:
    text = "\n".join(
        source(f"f{number}", f"Count the words number {number} of them.", BODY.replace("first", f"a{number}"))
        for number in range(5)
    )
    assert len(found(text)) == 5
    assert all(pair.query not in pair.passage for pair in found(text))


def test_texts_that_are_no_query_are_left_out() -> None:
    refused = [
        "Sort.",
        "",
        ">>> order(words)",
        ":param words: to be sorted here",
        "http://a.example b c",
        "x=1 y=2 z=3 w=4",
        "naïve sorting of words",
    ]
    for docstring in [*refused, " ".join(["word"] * 61)]:
        assert found(source("order", docstring)) == [], docstring


def test_markup_is_taken_off() -> None:
    (pair,) = found(source("order", "Sort a :class:`~collections.abc.Sequence` of ``words`` by :ref:`key <keys>`."))
    assert pair.query == "Sort a collections.abc.Sequence of words by key."


def test_tests_special_methods_and_short_functions_are_left_out() -> None:
    good = "Sort the words by length."
    assert found(source("test_order", good)) == []
    assert found(source("__call__", good)) == []
    assert found(source("order", good, "    return sorted(words)\n")) == []
    assert found(source("order", good), origin="pack/tests/mod.py") == []
    assert found(source("order", good), origin="pack/mod.py#prose") == []
    assert found('def order(words): "Sort the words by length."; a = 1; b = 2; return a\n') == []
    assert len(found(source("order", good))) == 1


def test_no_query_and_no_passage_twice() -> None:
    same_query = source("one", "Sort the words by length.") + source(
        "two", "Sort the WORDS by length.", BODY.replace("first", "third")
    )
    assert [pair.name for pair in found(same_query)] == ["one"]
    same_passage = source("one", "Sort the words by length.") + source("one", "Order the words by size.")
    assert len(found(same_passage)) == 1


def test_a_package_gives_at_most_its_cap_the_same_each_time() -> None:
    def records(package: str) -> list[Record]:
        return [
            Record(
                source(
                    f"f{n}",
                    f"Count the {package} words but {'very ' * n}slowly.",
                    BODY.replace("first", f"{package}{n}"),
                ),
                f"{package}/m{n}.py",
                package,
            )
            for n in range(20)
        ]

    every = pairs(records("a") + records("b"), cap_per_package=5)
    assert [pair.package for pair in every] == ["a"] * 5 + ["b"] * 5
    assert pairs(records("b") + records("a"), cap_per_package=5) == every


def test_a_file_that_does_not_parse_gives_nothing() -> None:
    assert found("def broken(:\n") == []
