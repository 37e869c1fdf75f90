"""The page in a browser: it shows the results of the library."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import ModernBert

pytest.importorskip("fastapi")
from browser import Page, Served, tuned  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from modernbert.serving.app import ServeSettings, make_app  # noqa: E402
from modernbert.serving.request_guard import Limits  # noqa: E402
from modernbert.serving.scheduler import Scheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
EMOJI = "A 👩‍🚀 and a naïve 🎈 in the land 京."


def test_the_page_is_three_files_without_external_requests(small_bert: ModernBert) -> None:
    app = make_app(small_bert, Scheduler(small_bert), ServeSettings("m", Limits(log=False, api_key="secret"), False))
    with TestClient(app) as client:
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            found = client.get(path)
            assert found.status_code == 200 and found.headers["content-type"] == f"{kind}; charset=utf-8"
            policy = found.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            assert found.headers["x-content-type-options"] == "nosniff"
            # The only URL is the namespace of the icon, which is never requested.
            assert re.findall(r"https?://[^'\"\s]+", found.text) in ([], ["http://www.w3.org/2000/svg"])
            assert client.head(path).status_code == 200
            assert client.put(path).status_code == 401 and client.post(path, json={"inputs": "a"}).status_code == 401
        assert client.post("/embed", json={"inputs": "a"}).status_code == 401
        assert client.get("/info").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        np.testing.assert_allclose(
            client.post("/", json={"inputs": "a"}, headers=headers).json(), small_bert.embed(["a"]), atol=1e-5
        )
        assert client.put("/", headers=headers).status_code == 405
    packaged = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f'"serving/*.{kind}"' in packaged for kind in ("html", "css", "js"))


def test_info_names_the_routes_of_a_model(small_bert: ModernBert) -> None:
    def info(bert: ModernBert) -> Any:
        with TestClient(make_app(bert, Scheduler(bert), ServeSettings("m", Limits(log=False), False))) as client:
            return client.get("/info").json()

    found = info(small_bert)
    assert found["answers"] == ["fill-mask", "rerank", "similarity"] and found["scores"] == "cosine"
    assert found["attention"] == {"layers": 4, "global_every": 3, "window": 128}
    assert found["mask"] == {"text": "[MASK]", "takes_space": True}
    assert info(tuned(small_bert, "tag", ["O", "B-x"]))["answers"] == ["predict"]
    assert info(tuned(small_bert, "extract", ["start", "end"]))["answers"] == []
    ranker = info(tuned(small_bert, "rerank", ["score"]))
    assert ranker["answers"] == ["rerank"] and ranker["scores"] == "probability"


def test_masks_are_filled_with_the_guesses_of_the_library(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "masks")
    assert page.texts(".masks h3") == ["Mask 1", "Mask 2"]
    text = "The capital of country 5 is [MASK], in a [MASK] of rivers."
    page.run(text=text)
    expected: Any = small_bert.fill_mask(text, 8)
    assert page.texts(".masks .number") == [f"{100 * guess.probability:.1f}%" for row in expected for guess in row]
    tokens = dict(zip(*(page.texts(f".timings {tag}") for tag in ("dt", "dd")), strict=True))
    assert tokens["Tokens"] == str(small_bert.count_tokens(text)[0])
    assert re.fullmatch(r"\d+ ms", tokens["Seen here"]) and {"Server", "Waited", "Computed"} < set(tokens)
    chosen = expected[1][2].text
    page.driver.find_elements("css selector", "#masks .masks > div:nth-child(2) button")[2].click()
    page.until(lambda: page.texts(".masks h3") == ["Mask 1"])
    filled = f"The capital of country 5 is [MASK], in a{chosen} of rivers."
    assert page.find("#masks-text").get_property("value") == filled
    page.find("#masks-undo").click()
    page.until(lambda: len(page.texts(".masks h3")) == 2)
    assert page.find("#masks-text").get_property("value") == text
    page.write("masks-text", "")
    page.find("#masks-insert").click()
    assert page.find("#masks-text").get_property("value") == "[MASK]" and page.focused() == "masks-text"


@pytest.mark.parametrize("task", ["mask", "rerank"])
def test_passages_stand_in_the_order_of_the_library(
    task: str, page: Page, serve: Callable[..., Served], masked: Served, small_bert: ModernBert
) -> None:
    bert = small_bert if task == "mask" else tuned(small_bert, "rerank", ["score"])
    page.open((masked if task == "mask" else serve(bert)).url, "search")
    passages = ["One of\ntwo lines.", "🎈 the land", "rivers", "The capital of country 7."]
    page.run(query="capital", text="\n\n  \n".join(passages) + "\n\n")
    expected = bert.rerank("capital", passages)
    assert page.texts(".ranks .words") == [passages[each.index] for each in expected]
    shown = [float(each) for each in page.texts(".ranks .number")]
    np.testing.assert_allclose(shown, [each.score for each in expected], atol=5.1e-4)
    assert page.texts(".place p") == passages and page.texts(".place .is-chosen") == [passages[expected[0].index]]
    page.driver.find_elements("css selector", "#search .ranks button")[2].click()
    assert page.texts(".place .is-chosen") == [passages[expected[2].index]]
    page.run(text="a line\nanother line\n")
    assert sorted(page.texts(".place p")) == ["a line", "another line"]


def test_the_matrix_is_that_of_the_library(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "compare")
    sentences = ["The capital of country 3.", "The capital of country 4.", "x", "rivers 🎈"]
    page.run(text="\n".join(sentences))
    shown = np.array([float(each) for each in page.texts("tbody td")]).reshape(4, 4)
    expected = small_bert.similarity(sentences, sentences)
    np.testing.assert_allclose(shown, expected, atol=0.0051)
    np.fill_diagonal(expected, -1)
    row, column = sorted(np.unravel_index(expected.argmax(), expected.shape))
    assert page.status.startswith(f"Most alike: {row + 1} and {column + 1}, cosine")
    page.run(text="alone")
    assert page.alert == "sentences: found 1, expected 2 to 16" and not page.texts("td")


def test_labels_are_those_of_the_library(page: Page, serve: Callable[..., Served], small_bert: ModernBert) -> None:
    bert = tuned(small_bert, "classify", ["no", "yes", "maybe"])
    page.open(serve(bert).url, "classify")
    assert page.js("return [...document.querySelectorAll('[role=tab]')].map((tab) => tab.textContent)") == [
        "Classify", "Tokens",
    ]  # fmt: skip
    for text, second in (("The land", ""), ("The land", "rivers")):
        page.run(text=text, pair=second)
        known: Any = bert.classify((text, second) if second else text)
        rows = zip(page.texts(".score > span:first-child"), page.texts(".score .number"), strict=True)
        assert list(rows) == [(label, f"{100 * share:.1f}%") for label, share in known.items()]


def test_spans_are_marked_at_their_characters(page: Page, serve: Callable[..., Served], small_bert: ModernBert) -> None:
    bert = tuned(small_bert, "tag", ["O", "B-x", "I-x"])
    page.open(serve(bert).url, "classify")
    text = f"{EMOJI} 🎈🎈 The capital of {EMOJI}"
    page.run(text=text)
    spans: Any = bert.tag(text)
    assert spans and page.texts(".tagged mark") == [
        f"{span.text}{span.label} {100 * span.score:.1f}%" for span in spans
    ]
    bare = "return [...document.querySelectorAll('.tagged small')].forEach((each) => each.remove())"
    page.js(bare)
    assert page.texts(".tagged") == [text]


def test_tokens_are_pieces_of_the_text(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "tokens")
    page.run(text=EMOJI)
    located = small_bert.tokenizer.encode_with_offsets(EMOJI)
    pieces = [EMOJI[slice(*place)] if place else small_bert.tokenizer.id_to_token(token) for token, place in located]
    shown = [piece.replace(" ", "·") if piece != "\u200d" else "U+200D" for piece in pieces]
    assert page.texts(".token") == shown and "U+200D" in shown and "🎈" in shown
    assert len(page.texts(".token.is-special")) == 2
    assert page.status == f"{len(pieces)} tokens of at most 1,000."
    for number, (token, place) in enumerate(located):
        page.js("document.querySelectorAll('.token')[arguments[0]].click()", number)
        told = page.texts(".token-details")[0]
        assert told.startswith(f"Token {number + 1} of {len(pieces)} · id {token} · ")
        assert place is None or f" {place[0] + 1}" in told
    page.run(text="x " * 1_200)
    number = small_bert.count_tokens("x " * 1_200)[0]
    assert page.status == f"{number:,} tokens of at most 1,000, {number - 1_000:,} too many."


def test_the_window_is_the_attention_of_a_layer(page: Page, masked: Served, small_bert: ModernBert) -> None:
    page.open(masked.url, "tokens")
    text = "x" * 298
    assert small_bert.count_tokens(text) == [300]
    page.run(text=text)
    names = page.js("return [...document.querySelectorAll('#tokens .layers input')].map((each) => each.ariaLabel)")
    assert [name.split(", ")[1] for name in names] == ["global", "local", "local", "global"]

    def seen(layer: int, token: int) -> list[int]:
        found = page.js(
            "document.querySelectorAll('#tokens .layers input')[arguments[0]].click();"
            "const pieces = [...document.querySelectorAll('.token')]; pieces[arguments[1]].click();"
            "return pieces.flatMap((each, n) => each.matches('.is-seen') ? [n] : [])", layer, token,
        )  # fmt: skip
        assert page.texts(".window strong") == [str(len(found))]
        return found

    left, right = small_bert.config.window
    for layer in range(4):
        for token in (0, 10, 150, 299):
            is_global = small_bert.config.is_global(layer)
            expected = [n for n in range(300) if is_global or -left <= n - token <= right]
            assert seen(layer, token) == expected
    assert len(seen(1, 150)) == 129 and len(seen(3, 150)) == 300
    seen(1, 150)
    assert page.texts(".ranges .number") == ["129 tokens", "257 tokens", "300 tokens"]
