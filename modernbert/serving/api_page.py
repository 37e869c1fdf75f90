"""The page at `/docs`: every route, what it takes and how it is asked.

In: the description that programs read at `/openapi.json`. Out: the same for people, in one page that needs nothing from
anywhere else. A file of its own because FastAPI's own page brings its script from another server.
"""

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from modernbert.serving.playground import HEADERS

__all__ = ["add_docs"]

_EXAMPLES: dict[str, Any] = {
    "inputs": "a text", "input": "a text", "query": "a question", "texts": ["a text", "another"],
    "documents": ["a text", "another"], "ids": [1, 2, 3],
}  # fmt: skip

_CODE = re.compile("`(.+?)`")
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>modernbert: what clients may ask</title>
<link rel="stylesheet" href="page.css">
</head>
<body>
<header>
<p class="kind">modernbert serve</p>
<h1>What clients may ask</h1>
<p>Routes and fields are those of text-embeddings-inference, OpenAI and Cohere. Programs read the same at
<a href="openapi.json">openapi.json</a>; people may ask on <a href="./">the page</a>.</p>
</header>
<main class="docs">ROUTES</main>
</body>
</html>
"""


def add_docs(app: FastAPI) -> None:
    """Add the page; it is written when it is asked for first, when all routes are there."""
    written: list[str] = []

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        if not written:
            written.append(_page(app.openapi()))
        return HTMLResponse(written[0], headers=HEADERS)


def _page(description: Mapping[str, Any]) -> str:
    schemas = description["components"]["schemas"]
    routes = [
        _route(path, method, about, schemas)
        for path, methods in description["paths"].items()
        for method, about in methods.items()
    ]
    return _FRAME.replace("ROUTES", "".join(routes))


def _route(path: str, method: str, about: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    schema = _resolved(body, schemas) if body else {}
    told = about.get("description") or schema.get("description") or about.get("summary", "")
    parts = [f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"]
    texts = (_CODE.sub(r"<code>\1</code>", escape(" ".join(text.split()))) for text in told.split("\n\n"))
    parts += [f"<p>{text}</p>" for text in texts]
    if schema:
        needed = schema.get("required", [])
        rows = [_field(name, of, name in needed, schemas) for name, of in schema.get("properties", {}).items()]
        parts.append(
            f"<table><thead><tr><th>field<th>kind<th>default</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
        parts.append(f"<pre>{escape(_command(path, schema, needed, schemas))}</pre>")
    return "".join(parts) + "</section>"


def _field(name: str, of: Mapping[str, Any], needed: bool, schemas: Mapping[str, Any]) -> str:
    default = "needed" if needed else json.dumps(of.get("default"))
    return f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(of, schemas))}<td>{escape(default)}</tr>"


def _kind(of: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    of = _resolved(of, schemas)
    if "anyOf" in of:
        return " or ".join(dict.fromkeys(_kind(each, schemas) for each in of["anyOf"] if each != {"type": "null"}))
    if "enum" in of or "const" in of:
        return " or ".join(json.dumps(each) for each in of.get("enum", [of.get("const")]))
    if of.get("type") == "array":
        return f"list of ({_kind(of['items'], schemas)})"
    if "properties" in of:
        return "{" + ", ".join(f"{name}: {_kind(each, schemas)}" for name, each in of["properties"].items()) + "}"
    names = {"string": "text", "integer": "whole number", "boolean": "true or false", "number": "number"}
    return names.get(of.get("type", ""), of.get("type", "anything"))


def _command(path: str, schema: Mapping[str, Any], needed: list[str], schemas: Mapping[str, Any]) -> str:
    """Return a command of a shell that asks with what is needed alone."""
    body = {name: _EXAMPLES.get(name, "") for name in needed}
    if "properties" in (inner := _resolved(schema["properties"].get("inputs", {}), schemas)):
        body["inputs"] = {
            name: ["a text", "another"] if name.endswith("s") else "a text" for name in inner["properties"]
        }
    if path == "/fill-mask":
        body["inputs"] = "The capital of France is [MASK]."
    return f"curl -H 'content-type: application/json' -d '{json.dumps(body)}' http://127.0.0.1:8080{path}"


def _resolved(of: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    return schemas[of["$ref"].rsplit("/", 1)[1]] if "$ref" in of else of
