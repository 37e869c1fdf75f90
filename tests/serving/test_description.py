"""The OpenAPI schema: requests generated from it, and responses validated against it."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from modernbert import ModernBert

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")
from fastapi.testclient import TestClient  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from modernbert.model.heads import MaskedLM  # noqa: E402
from modernbert.serving.app import ServeSettings, make_app  # noqa: E402
from modernbert.serving.request_guard import Limits  # noqa: E402
from modernbert.serving.scheduler import Scheduler  # noqa: E402
from modernbert.tasks.task import start_classifier  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
# A request that fits the schema may be refused, because a text is too long or has no mask.
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance
]  # fmt: skip
# A few requests per route by default; more with the environment variable.
NUM_REQUESTS = int(os.environ.get("MODERNBERT_REQUESTS", "6"))
SEED = int(os.environ.get("MODERNBERT_SEED", "0"))


def classifier(bert: ModernBert) -> ModernBert:
    model = copy.deepcopy(bert.model)
    assert isinstance(model, MaskedLM)
    return ModernBert(bert.tokenizer, start_classifier(model, "classify", ["no", "yes"], seed=1).eval())


@pytest.fixture(params=["masks", "labels"])
def client(small_bert: ModernBert, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    bert = small_bert if request.param == "masks" else classifier(small_bert)
    scheduler = Scheduler(bert, budget_tokens=500)
    app = make_app(bert, scheduler, ServeSettings("m", Limits(max_bytes=200_000, log=False)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def refuse(word: str) -> Any:
    raise AssertionError(f"found {word} in an answer")


def drawn(operation: Any, check: Callable[[Any], None]) -> None:
    """Call `check` with requests that fit the schema of a route, and with requests that do not."""
    # A route without parameters has no invalid request.
    modes = list(schemathesis.GenerationMode) if operation.method == "post" else [schemathesis.GenerationMode.POSITIVE]
    for mode in modes:

        @seed(SEED)
        @settings(
            max_examples=NUM_REQUESTS, deadline=None, phases=[Phase.generate], database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            check(case)

        run()


def test_no_request_of_the_description_breaks_the_server(client: TestClient, small_bert: ModernBert) -> None:
    """Every status and every response is in the schema, and none is an internal error."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    seen: list[int] = []

    def check(case: Any) -> None:
        answer = case.call_and_validate(checks=CHECKS)
        seen.append(answer.status_code)
        if "json" in str(answer.headers.get("content-type")):
            json.loads(answer.content, parse_constant=refuse)

    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        drawn(operation, check)
    assert max(seen) < 500 and {200, 422} <= set(seen)
    canary = client.post("/embed", json={"inputs": "a canary"}).json()
    np.testing.assert_allclose(canary, small_bert.embed(["a canary"]), atol=1e-5)


def test_every_route_and_field_is_described_and_every_example_works(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert operation["description"].split("\n")[0].endswith("."), path
            assert not operation["summary"].endswith(".") and operation["tags"], path
            if body := operation.get("requestBody"):
                name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
                answer = client.post(path, json=description["components"]["schemas"][name]["example"])
                assert answer.status_code == 200 or "his model has " in answer.text, (path, answer.text)
                assert operation["responses"]["200"]["content"]["application/json"]["example"]
    for name, schema in description["components"]["schemas"].items():
        for field, facts in schema["properties"].items():
            assert facts.get("description", "").endswith("."), (name, field)
