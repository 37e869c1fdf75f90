"""`modernbert VERB ...`: the entry point, its errors and exit statuses.

Exit statuses are 0, 2 for an error that the user can fix, printed as one line, and 130 for an interrupt.
"""

import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

import click
from click.shell_completion import get_completion_class

from modernbert.cli.parser import VerbGroup
from modernbert.errors import InputError, exit_on_error

__all__ = ["cli", "exit_status", "main", "run"]


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"modernbert {metadata.version('modernbert')}, torch {metadata.version('torch')}")
        ctx.exit()


cli = VerbGroup(
    "modernbert",
    help="Train and use ModernBERT encoders.",
    epilog="modernbert COMMAND --help shows examples and all options of a command.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
    params=[
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
                     help="Print the versions of modernbert and torch, and stop."),
    ],
)  # fmt: skip


@cli.command(short_help="Print a completion script for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell: eval "$(modernbert completion bash)"."""
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(cli, {}, "modernbert", "_MODERNBERT_COMPLETE").source())


def run(words: Sequence[str] | None = None) -> None:
    """Run a command, with errors as exceptions; `words` is `sys.argv[1:]` by default."""
    try:
        cli.main(list(words) if words is not None else None, "modernbert", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
    except click.NoSuchOption as error:
        raise InputError(f"Unknown option {error.option_name}.") from None
    except click.ClickException as error:
        raise InputError(error.format_message()) from None
    except click.Abort as error:
        raise error.__cause__ or KeyboardInterrupt from None


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn exceptions into one line and an exit status."""
    try:
        with exit_on_error("modernbert"):
            yield
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        print("; ".join(["modernbert: interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(130)
    except (BrokenPipeError, SystemExit) as end:
        # The reader of the output may have closed it, as `head` does.
        if not isinstance(end, BrokenPipeError) and not isinstance(end.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _skip_garbage_collection() -> None:
    """Skip the garbage collection at exit, which takes half a second after torch was imported."""
    if "triton" not in sys.modules:  # triton reports objects that are left
        gc.freeze()


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "huggingface_hub", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # SIGTERM is an exit like any other, so that temporary files are deleted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(_skip_garbage_collection)
    with exit_status():
        run()


if __name__ == "__main__":
    main()
