"""Pages that the site generates: commands, configs and HTTP routes from the package; contributing and changelog."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SOURCE = "https://github.com/modernbert/modernbert/blob/main/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    pages: dict[str, Callable[[], str]] = {
        "reference/cli.md": cli_page,
        "reference/configs.md": configs_page,
        "reference/http.md": http_page,
        "contributing.md": lambda: root_page("CONTRIBUTING.md"),
        "changelog.md": lambda: root_page("CHANGELOG.md"),
    }
    for path, write in pages.items():
        files.append(File.generated(config, path, content=write()))
    return files


def root_page(name: str) -> str:
    """Return a page of the repository's root, with links that work on the site."""
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({SOURCE}\1)", (ROOT / name).read_text())


def cli_page() -> str:
    """Return the examples and the options of every command."""
    from modernbert.cli.parser import shell_lines
    from modernbert.cli.verbs import VERBS

    parts = [
        "# Commands",
        "`modernbert COMMAND --help` prints the same. Every command also takes `--config FILE_OR_NAME` (YAML file with "
        "options, or the name of a [shipped config](configs.md)) and `--print` (print all options with their values, "
        "and stop). Exit status: 0, 2 for an error that the user can fix (one line), 130 for an interrupt.",
    ]
    for name, verb in VERBS.items():
        parts += [f"## {name}", verb.summary]
        examples = ["\n".join(shell_lines(each, 76)) for each in verb.examples]
        parts.append("```sh\n" + "\n".join(examples) + "\n```")
        tasks = ("classify", "embed") if verb.by_task else (None,)
        for task in tasks:
            if task:
                parts.append(f"### {name} --task {task}")
            parts += option_tables(verb.load_options(task))
    return "\n\n".join(parts)


def option_tables(schema: type) -> Iterator[str]:
    """Yield a table of options for each section of a command's help."""
    from modernbert.cli.parser import option_row
    from modernbert.options import options_of

    sections: dict[str, list[str]] = {}
    for option in options_of(schema):
        name, text = option_row(option)
        heading = "Arguments" if option.positional else option.section or "Options"
        sections.setdefault(heading, []).append(f"| `{name}` | {cell(text)} |")
    for heading, rows in sections.items():
        yield f"**{heading}**"
        yield "\n".join(["| option | meaning |", "| --- | --- |", *rows])


def cell(text: str) -> str:
    """Return text that does not end the cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def configs_page() -> str:
    """Return the shipped configs."""
    folder = ROOT / "modernbert" / "configs"
    parts = [
        "# Configs",
        "`--config NAME` takes one of these files, or a file of your own. A config lists only the options that differ "
        "from the defaults; `modernbert COMMAND --config NAME --print` prints all of them.",
    ]
    for file in sorted(folder.rglob("*.yaml")):
        parts += [f"## {file.parent.name}/{file.stem}", f"```yaml\n{file.read_text()}```"]
    return "\n\n".join(parts)


def http_page() -> str:
    """Return the routes of the server, from its OpenAPI description."""
    schema = server_app().openapi()
    parts = [
        "# HTTP",
        "Routes of `modernbert serve`. The running server shows the same at `/docs`, with a form to try each route. "
        "Errors have a JSON body with `error` and `error_type`; see the [guide](../guides/serve.md).",
    ]
    schemas = schema["components"]["schemas"]
    routes: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            routes.setdefault(operation["summary"], []).append((f"{method.upper()} {path}", operation))
    for summary, same in routes.items():
        names, operation = ", ".join(f"`{name}`" for name, _ in same), same[0][1]
        parts += [f"## {summary}", names, operation["description"]]
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if body := schemas.get(name_of(content.get("schema", {}))):
            parts.append("\n".join([*TABLE, *field_rows(body, schemas)]))
            parts.append(f"```json\n{json.dumps(body['example'])}\n```")
        answer = operation["responses"]["200"]
        parts.append(f"Returns: {answer['description']}")
        if example := answer.get("content", {}).get("application/json", {}).get("example"):
            parts.append(f"```json\n{json.dumps(example)}\n```")
    return "\n\n".join(parts)


TABLE = ("| field | type | default | meaning |", "| --- | --- | --- | --- |")


def field_rows(body: dict[str, Any], schemas: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a row for each field of a body and of the objects in it, required ones first."""
    required = body.get("required", ())
    for name, field in sorted(body["properties"].items(), key=lambda each: each[0] not in required):
        default = "required" if name in required else f"`{json.dumps(field.get('default'))}`"
        cells = (f"`{prefix}{name}`", type_of(field), default, field["description"])
        yield f"| {' | '.join(map(cell, cells))} |"
        for kind in (field, *field.get("anyOf", ())):
            if inner := schemas.get(name_of(kind)):
                yield from field_rows(inner, schemas, f"{prefix}{name}.")


def name_of(kind: dict[str, Any]) -> str:
    """Return the name of the schema that a type refers to."""
    return str(kind.get("$ref", "")).rsplit("/", 1)[-1]


def type_of(field: dict[str, Any]) -> str:
    """Return the type of a field in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(type_of, field["anyOf"])))
    if "enum" in field:
        return " or ".join(f"`{json.dumps(each)}`" for each in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if field.get("type") == "array":
        return f"array of {type_of(field.get('items', {}))}"
    return str(field.get("type") or "object")


def server_app() -> Any:
    """Return the application of a server with a tiny model."""
    from modernbert.inference.modernbert import ModernBert
    from modernbert.model.config import ModelConfig
    from modernbert.model.heads import MaskedLM
    from modernbert.serving.app import ServeSettings, make_app
    from modernbert.serving.request_guard import Limits
    from modernbert.serving.scheduler import Scheduler
    from modernbert.tokenizer.bpe_training import train_tokenizer

    tokenizer = train_tokenizer((ROOT / "README.md").read_text().splitlines(), 384)
    config = ModelConfig(
        vocab_size=384, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=tokenizer.pad_id, cls_token_id=tokenizer.cls_id, sep_token_id=tokenizer.sep_id,
    )  # fmt: skip
    bert = ModernBert(tokenizer, MaskedLM(config).eval())
    return make_app(bert, Scheduler(bert, 1024), ServeSettings("model", Limits(log=False), warm_up=False))
