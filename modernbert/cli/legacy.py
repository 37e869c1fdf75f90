"""Commands that are not generated from option classes yet."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from modernbert import config_files as configs

__all__ = ["VERBS", "app"]

VERBS = ("tokenizer", "prepare")

Schema = TypeVar("Schema")

app = typer.Typer(
    name="modernbert",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Not a path: the first word may be a field to set, and a path makes one slash of the two in a URL.
ConfigFile = Annotated[
    str | None, typer.Argument(metavar="[CONFIG]", help="A YAML file, or the name of a shipped one: pretrain/demo.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Fields to set.")]
Print = Annotated[bool, typer.Option("--print", help="Show the resolved config and stop.")]
Model = Annotated[str, typer.Argument(help="A model folder, or the name of a model on the hub.")]
Texts = Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of --file or standard input.")]
TextFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="Lines of text, or rows: .jsonl, .json, .parquet, .csv, .tsv.")
]
TextField = Annotated[str, typer.Option(help="The field with the text, in files of rows.")]
OnError = Annotated[str, typer.Option(help="What to do with rows that cannot be used: fail, skip.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a text.")]
Overflow = Annotated[str, typer.Option(help="What of too long texts: error, truncate, split-mean.")]
Backend = Annotated[str, typer.Option(help="auto, triton, varlen, native, banded, dense.")]


@app.command()
def tokenizer(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Learn a byte-level BPE vocabulary from text, or adapt OLMo's."""
    from modernbert.data.tokenizer_training import TokenizerConfig, run

    resolved = _resolve(TokenizerConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
def prepare(
    config: ConfigFile = None,
    overrides: Overrides = None,
    executor: Annotated[str | None, typer.Option(help="Where to tokenise: local, or ray.")] = None,
    print_config: Print = False,
) -> None:
    """Turn documents into tokenised shards; started again, go on with those that are done."""
    from modernbert.data.prepare import PrepareConfig, run

    words = [*(overrides or []), *([f"executor={executor}"] if executor else [])]
    resolved = _resolve(PrepareConfig, config, words, print_config)
    if resolved is not None:
        run(resolved)


def _resolve(
    schema: type[Schema], config: str | None, overrides: list[str] | None, print_config: bool
) -> Schema | None:
    """Merge defaults, file and words; print and return nothing if that is all that was asked."""
    config, words = _file_and_words(config, overrides)
    resolved = configs.load(schema, config, words)
    if print_config:
        print(configs.to_yaml(resolved), end="")
        return None
    return resolved


def _file_and_words(config: str | None, overrides: list[str] | None) -> tuple[str | None, list[str]]:
    """Tell a config file from a first word `key=value`."""
    words = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        return None, [config, *words]
    return config, words
