"""`modernbert VERB ...`: the command line.

In: words. Out: an exit status: 0 done, 2 with one line for what the user can mend, 130 when interrupted. Every verb
imports its job when it is called, so that `--help` answers at once.
"""

import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from modernbert import config_files as configs
from modernbert.errors import InputError

__all__ = ["main"]

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
Engine = Annotated[str, typer.Option(help="What computes: auto, cuda, flash, cpu, torch, reference.")]


@contextmanager
def _told() -> Iterator[None]:
    """Turn what went wrong in a verb into one line and an exit status."""
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        print(f"modernbert: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("modernbert: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left, as `head` does; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        # What prints for people has ended so itself, with another status.
        sys.exit(0)


def _tell_version(wanted: bool) -> bool:
    if wanted:
        print(f"modernbert {metadata.version('modernbert')}, torch {metadata.version('torch')}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train and use ModernBERT encoders."""


@app.command()
@_told()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="The same in one minute, with less of everything.")] = False,
) -> None:
    """Train a small ModernBERT on text found on this machine, and show what it learned."""
    from modernbert.demo.demo_steps import run

    run(out, quick=quick)


@app.command()
@_told()
def tokenizer(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Learn a byte-level BPE vocabulary from text, or adapt OLMo's."""
    from modernbert.data.tokenizer_training import TokenizerConfig, run

    resolved = _resolve(TokenizerConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
@_told()
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
@_told()
def pretrain(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Pretrain in phases; started again, go on from the last checkpoint."""
    from modernbert.training.pretraining import PretrainConfig, run

    resolved = _resolve(PretrainConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
@_told()
def finetune(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Teach a model: classify, multilabel, regress, rerank, choose, tag, extract, embed, late."""
    from modernbert.training.finetune_command import run, schema_of

    resolved = _resolve(schema_of(*_file_and_words(config, overrides)), config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
@_told()
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
@_told()
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
@_told()
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
@_told()
def grow(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Make the start of a larger model from a trained one."""
    from modernbert.training.grow_folder import GrowConfig, run

    resolved = _resolve(GrowConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
@_told()
def average(config: ConfigFile = None, overrides: Overrides = None, print_config: Print = False) -> None:
    """Average the best checkpoints of a run, or several models."""
    from modernbert.training.average_checkpoints import AverageConfig, run

    resolved = _resolve(AverageConfig, config, overrides, print_config)
    if resolved is not None:
        run(resolved)


@app.command()
@_told()
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
@_told()
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


@app.command()
@_told()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; else RUN/report.html, or ./report.html for several.")
    ] = None,
) -> None:
    """Show runs side by side on one HTML page."""
    from modernbert.reporting.report import ReportConfig, run

    run(ReportConfig(runs, out))


@app.command("fill-mask")
@_told()
def fill_mask(
    model: Model,
    texts: Texts = None,
    file: TextFile = None,
    text_field: TextField = "text",
    on_error: OnError = "fail",
    top_k: Annotated[int, typer.Option(help="Guesses a mask.")] = 5,
    json_lines: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
) -> None:
    """Print what the model would put in place of each [MASK]."""
    from modernbert.inference.fill_mask_texts import FillMaskConfig, run

    run(FillMaskConfig(model, texts or [], file, text_field, on_error, top_k, json_lines, device, dtype, engine))


@app.command()
@_told()
def embed(
    model: Model,
    texts: Texts = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", help="Lines of text, or rows: .jsonl, .json, .parquet, .csv, .tsv; again for more."
        ),
    ] = None,
    text_field: TextField = "text",
    on_error: Annotated[
        str, typer.Option(help="What to do with rows that cannot be used: fail, skip, null (a vector of NaN).")
    ] = "fail",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .npy, .jsonl, .parquet or .lance; else standard output.")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="mean or cls; else as tuned.")] = None,
    normalize: Annotated[bool, typer.Option(help="Scale vectors to length 1.")] = True,
    prompt: Annotated[
        str | None, typer.Option(help='Put before each text; else the folder\'s default prompt, and "" for none.')
    ] = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Keep the first components only.")] = None,
    overflow: Overflow = "error",
    precision: Annotated[str, typer.Option(help="float32, float16, int8, binary.")] = "float32",
    devices: Annotated[list[str] | None, typer.Option("--device", help="auto, cpu, cuda:N; a process each.")] = None,
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    executor: Annotated[str, typer.Option(help="local, or ray: the cluster that RAY_ADDRESS names.")] = "local",
    processes: Annotated[int | None, typer.Option(help="In all; else one a device, or a GPU of the cluster.")] = None,
) -> None:
    """Write one vector a text; of files of any size or a pipe, going on after a stop."""
    from modernbert.inference.embed_files import EmbedConfig, run

    if texts and files:
        raise InputError(f"found texts and the file {files[0]}, expected one or the other")
    run(
        EmbedConfig(
            model, texts or [], files or [], text_field, out, pooling, normalize, prompt, truncate_dim, overflow,
            precision, devices or ["auto"], dtype, engine, executor, processes, on_error,
        )
    )  # fmt: skip


@app.command()
@_told()
def index(
    model: Model,
    sources: Annotated[list[str], typer.Argument(help="Folders and files of text or code.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index: a folder, new or to be brought up to date.")],
    passage_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a passage: 256 in a new index, as begun in another.")
    ] = None,
    text_field: TextField = "text",
    on_error: Annotated[str, typer.Option(help="What to do with unreadable files and rows: fail, skip.")] = "fail",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
) -> None:
    """Make files searchable; again, bring the index up to date with them."""
    from modernbert.search.index_files import IndexConfig, run

    run(IndexConfig(model, sources, out, passage_tokens, text_field, device, dtype, engine, on_error))


@app.command()
@_told()
def search(
    index: Annotated[Path, typer.Argument(help="A folder made by modernbert index.")],
    query: Annotated[str, typer.Argument(help="What is asked.")],
    top_k: Annotated[int, typer.Option(min=1, help="Passages.")] = 5,
    how: Annotated[str, typer.Option(help="hybrid, vectors, words.")] = "hybrid",
    rerank: Annotated[str | None, typer.Option(help="A model that ranks the best again.")] = None,
    model: Annotated[str | None, typer.Option(help="Where the index's model lies now; else where it was.")] = None,
    json_lines: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Print the passages of indexed files that answer a query."""
    from modernbert.search.search_files import SearchConfig, run

    run(SearchConfig(index, query, top_k, how, rerank, json_lines, device, dtype, model))


@app.command()
@_told()
def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    int8: Annotated[bool, typer.Option("--int8", help="In int8 besides, where that stays near enough.")] = False,
    texts: Annotated[Path | None, typer.Option(help="Texts to compare on besides: lines of text, or rows.")] = None,
) -> None:
    """Write a model for ONNX Runtime and what is built on it, compared with ours before it is kept."""
    from modernbert.export.export_model import ExportConfig, run
    from modernbert.inference.text_inputs import gather_texts

    run(ExportConfig(model, out, int8, gather_texts([], texts) if texts else ()))


@app.command()
@_told()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.", min=0, max=65535)] = 8080,
    api_key: Annotated[str | None, typer.Option(envvar="MODERNBERT_API_KEY", help="What clients must show.")] = None,
    budget_tokens: Annotated[int, typer.Option(min=64, help="Most tokens of a batch.")] = 4_096,
    queue_tokens: Annotated[int, typer.Option(min=1, help="Tokens that may wait.")] = 1_000_000,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 512,
    max_bytes: Annotated[int, typer.Option(min=1, help="Of a request's body.")] = 8_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds for a request.")] = 120.0,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds that others may keep a request waiting.")] = 10.0,
    batch_seconds: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds of a batch.")] = 0.5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
) -> None:
    """Answer over HTTP, as text-embeddings-inference, OpenAI and Cohere do."""
    from modernbert.serving.serve import ServeConfig, run

    # The library takes an empty variable for none: a secret that was not set would open the server.
    api_key = os.environ.get("MODERNBERT_API_KEY") if api_key is None else api_key
    run(
        ServeConfig(
            model, host, port, api_key, budget_tokens, queue_tokens, max_requests, max_bytes, timeout, wait,
            batch_seconds, device, dtype, engine,
        )
    )  # fmt: skip


@app.command()
@_told()
def classify(
    model: Model,
    texts: Texts = None,
    file: TextFile = None,
    text_field: TextField = "text",
    pair_field: Annotated[
        str | None, typer.Option(help="The field with the second text, for a model that reads pairs.")
    ] = None,
    on_error: OnError = "fail",
    top_k: Annotated[int, typer.Option(min=1, help="Labels a text.")] = 1,
    json_lines: Json = False,
    overflow: Overflow = "error",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
) -> None:
    """Print the labels of texts, with their probabilities."""
    from modernbert.inference.classify_texts import ClassifyConfig, run

    run(
        ClassifyConfig(
            model, texts or [], file, text_field, pair_field, on_error, top_k, json_lines, overflow, device, dtype,
            engine,
        )
    )  # fmt: skip


@app.command()
@_told()
def tag(
    model: Model,
    texts: Texts = None,
    file: TextFile = None,
    text_field: TextField = "text",
    on_error: OnError = "fail",
    json_lines: Json = False,
    overflow: Overflow = "error",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
) -> None:
    """Print the spans a tagger finds in texts."""
    from modernbert.inference.tag_texts import TagConfig, run

    run(TagConfig(model, texts or [], file, text_field, on_error, json_lines, overflow, device, dtype, engine))


@app.command()
@_told()
def rerank(
    model: Model,
    query: Annotated[str, typer.Argument(help="What is asked.")],
    texts: Texts = None,
    file: TextFile = None,
    text_field: TextField = "text",
    on_error: OnError = "fail",
    top_k: Annotated[int | None, typer.Option(min=1, help="The best so many; else all.")] = None,
    json_lines: Json = False,
    overflow: Overflow = "error",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
) -> None:
    """Print texts in the order in which they answer a query."""
    from modernbert.inference.rerank_texts import RerankConfig, run

    run(
        RerankConfig(
            model, query, texts or [], file, text_field, on_error, top_k, json_lines, overflow, device, dtype, engine
        )
    )  # fmt: skip


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


def _end_at_once() -> None:
    """Spare the end its search for garbage, half a second among what torch made and the process needs no longer."""
    if "triton" not in sys.modules:  # it counts what is left of its objects, and complains of every one
        gc.freeze()


def main() -> None:
    """Run a verb."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Other libraries' chatter is not ours to print.
    for name in ("httpx", "huggingface_hub", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A request to end is an exit like any other: what was begun is cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(_end_at_once)
    # Around the verbs too: an interrupt may come before one has begun.
    with _told():
        app()


if __name__ == "__main__":
    main()
