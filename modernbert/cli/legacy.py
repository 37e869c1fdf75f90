"""Commands that are not generated from option classes yet."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from modernbert import config_files as configs

__all__ = ["VERBS", "app"]

VERBS = (
    "tokenizer", "prepare", "pretrain", "finetune", "sweep", "evaluate", "grow", "average", "convert", "plan",
)  # fmt: skip

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


@app.command()
def pretrain(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Pretrain in phases; started again, go on from the last checkpoint."""
    from modernbert.training.pretraining import PretrainConfig, run

    resolved = _resolve(PretrainConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
def finetune(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Teach a model: classify, multilabel, regress, rerank, choose, tag, extract, embed, late."""
    from modernbert.training.finetune_command import run, schema_of

    resolved = _resolve(schema_of(*_file_and_words(config, overrides)), config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
def sweep(
    config: ConfigFile = None,
    overrides: Overrides = None,
    lrs: Annotated[list[float] | None, typer.Option(help="A rate to try; again for more.")] = None,
    weight_decays: Annotated[list[float] | None, typer.Option(help="A decay to try; again for more.")] = None,
    epochs: Annotated[list[int] | None, typer.Option(help="Epochs to try; again for more.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="A seed to try; again for more.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="A device; again for one run on each.")] = None,
) -> None:
    """Fine-tune with several settings, stop what does badly, keep the best model; goes on where it was."""
    from modernbert.training.finetune_command import schema_of
    from modernbert.training.sweep_command import SweepConfig, run

    base = _resolve(schema_of(*_file_and_words(config, overrides)), config, overrides, print_config=False)
    assert base is not None
    run(SweepConfig(base, lrs or [], weight_decays or [], epochs or [], seeds or [], devices or []))


evaluate = typer.Typer(help="Score models on tasks with known answers.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")


@evaluate.command("glue")
def evaluate_glue(
    model: Model,
    data: Annotated[Path, typer.Argument(help="A folder with a folder for each task: cola, sst2, ...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where runs and results go.")],
    tasks: Annotated[
        list[str] | None, typer.Option(help="A task; again for more. All that are there, by default.")
    ] = None,
    grid: Annotated[str, typer.Option(help="chosen: the settings the paper chose; paper: all it tried.")] = "chosen",
    lrs: Annotated[
        list[float] | None, typer.Option(help="A rate to try, instead of the grid's; again for more.")
    ] = None,
    weight_decays: Annotated[list[float] | None, typer.Option(help="A decay to try; again for more.")] = None,
    epochs: Annotated[list[int] | None, typer.Option(help="Epochs to try; again for more.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="A seed; again for more. 0, 1 and 2, by default.")] = None,
    max_len: Annotated[int, typer.Option(help="Tokens at which texts are cut.")] = 256,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain that end a run.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="auto, cpu, cuda:N; again for one run on each.")] = None,
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
) -> None:
    """Tune on the tasks of GLUE and show scores beside the published ones; goes on where it was."""
    from modernbert.training.glue import GlueConfig, run

    config = GlueConfig(
        model, data, out, tasks or [], grid, lrs or [], weight_decays or [], epochs or [], seeds or [0, 1, 2], max_len,
        patience, devices or ["auto"], precision,
    )  # fmt: skip
    run(config)


@evaluate.command("retrieval")
def evaluate_retrieval(
    model: Model,
    collections: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="In BEIR's form, or mteb:TASK.")],
    split: Annotated[str, typer.Option(help="Whose judgments: qrels/SPLIT.tsv.")] = "test",
    bm25: Annotated[bool, typer.Option("--bm25", help="Rank by words, too.")] = False,
    pooling: Annotated[str | None, typer.Option(help="mean, cls or tokens; else as tuned.")] = None,
    query_prompt: Annotated[str | None, typer.Option(help="Put before queries; else as tuned.")] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Put before documents; else as tuned.")] = None,
    query_length: Annotated[int | None, typer.Option(help="Most tokens of a query; else as tuned.")] = None,
    document_length: Annotated[int | None, typer.Option(help="Most tokens of a document; else as tuned.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file.")] = None,
    index: Annotated[Path | None, typer.Option(help="A folder to keep the documents' vectors in.")] = None,
) -> None:
    """Rank a collection's documents for its queries: nDCG@10, MRR@10, recall@100."""
    from modernbert.evaluation.evaluate_retrieval import RetrievalConfig, run

    run(
        RetrievalConfig(
            model, collections, split, bm25, pooling, query_prompt, document_prompt, query_length, document_length,
            device, dtype, out, index,
        )
    )  # fmt: skip


@app.command()
def grow(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Make the start of a larger model from a trained one."""
    from modernbert.training.grow_folder import GrowConfig, run

    resolved = _resolve(GrowConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
def average(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Average the best checkpoints of a run, or several models."""
    from modernbert.training.average_checkpoints import AverageConfig, run

    resolved = _resolve(AverageConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt of Composer, or a pytorch_model.bin.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new model folder, or FILE.safetensors.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder with tokenizer.json; else the checkpoint's own.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option("--config", help="The YAML that the checkpoint was trained with.")
    ] = None,
    num_attention_heads: Annotated[int | None, typer.Option(help="Where the file does not tell.")] = None,
    max_position_embeddings: Annotated[int | None, typer.Option(help="Tokens it was trained for.")] = None,
    global_attn_every_n_layers: Annotated[int | None, typer.Option(help="Where the file does not tell.")] = None,
    local_attention: Annotated[int | None, typer.Option(help="The window of local layers.")] = None,
    global_rope_theta: Annotated[float | None, typer.Option(help="10000 in phase 1, 160000 after.")] = None,
    local_rope_theta: Annotated[float | None, typer.Option(help="Of local layers.")] = None,
    norm_eps: Annotated[float | None, typer.Option(help="Where the file does not tell.")] = None,
) -> None:
    """Make a model folder of a checkpoint of the reference repository, without running anything in it."""
    from modernbert.checkpoints.convert import ConvertConfig, run

    run(
        ConvertConfig(
            checkpoint, out, tokenizer, training, num_attention_heads, max_position_embeddings,
            global_attn_every_n_layers, local_attention, global_rope_theta, local_rope_theta, norm_eps,
        )
    )  # fmt: skip


@app.command()
def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu, or t4, a10, l4, 3090, 4090, a100, h100, h200; again for more.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many of each GPU.")] = 8,
    length: Annotated[int | None, typer.Option(help="Tokens of every document; else the most a phase takes.")] = None,
    shapes: Annotated[bool, typer.Option("--shapes", help="Look for shapes that fill GPUs, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output, tables beside it.")] = False,
) -> None:
    """Forecast what a pretraining config costs: memory, tokens a second, hours."""
    from modernbert.planning.plan import PlanConfig, run

    config, words = _file_and_words(config, overrides)
    run(PlanConfig(config, words, device or ["h100"], count, length, shapes, as_json))


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
