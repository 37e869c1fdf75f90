"""Command-line parsers generated from option classes, with help texts, shell completion and one-line errors."""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from modernbert.cli.option_names import spell_options
from modernbert.cli.verbs import GROUPS, SECTIONS, TASKS, VERBS, Verb
from modernbert.errors import InputError
from modernbert.option_types import FileOrUrl
from modernbert.options import MISSING, Option, did_you_mean, kind_of, option_name, options_of, plain_kind

__all__ = ["VerbCommand", "VerbGroup", "identifier", "option_row", "shell_lines"]

_SHORT = {"input": "-i", "output": "-o"}
# The default of an option whose value is None: "Maximum tokens of a text; from the model, by default."
_DEFAULT_IN_WORDS = re.compile(r"; ([^;]+), by default\.$")
_METAVARS: dict[Any, str] = {str: "TEXT", Path: "PATH", FileOrUrl: "PATH", int: "INT", float: "NUMBER"}


class VerbGroup(click.Group):
    """Commands of one or two words, each imported when it is called."""

    def __init__(self, name: str, prefix: str = "", **settings: Any) -> None:
        super().__init__(name, no_args_is_help=True, **settings)
        self.prefix = prefix

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Raises: SystemExit, as rich does, if its output is closed; click would hide the cause."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            sys.exit(1)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command. Raises: InputError for an unknown one, with the most similar name."""
        known = self.list_commands(ctx)
        if not args[0].startswith("-") and args[0].replace("_", "-") not in known and not ctx.resilient_parsing:
            raise InputError(f"Unknown command {args[0]}.{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        words = [verb.removeprefix(self.prefix).split()[0] for verb in VERBS if verb.startswith(self.prefix)]
        return [*dict.fromkeys(words), *self.commands]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command, made of the class of its options."""
        if not self.prefix and name in GROUPS:
            return VerbGroup(name, prefix=f"{name} ", help=GROUPS[name])
        verb = VERBS.get(f"{self.prefix}{name}")
        return VerbCommand(name, verb) if verb else self.commands.get(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands under its headings, without an import of one."""
        own = [(each.name or "", each.get_short_help_str(100)) for each in self.commands.values()]
        for heading in SECTIONS:
            chosen = {name: verb for name, verb in VERBS.items() if verb.section == heading}
            rows = [(name, verb.summary) for name, verb in chosen.items() if name.startswith(self.prefix)]
            rows += own if heading == SECTIONS[-1] else []
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class VerbCommand(click.Command):
    """A command whose parameters are the fields of its option class."""

    def __init__(self, name: str, verb: Verb) -> None:
        self.verb = verb
        self.extra = [
            click.Option(["--config"], metavar="FILE", help="YAML file with options, or the name of a shipped config."),
            click.Option(
                ["--print", "print_config"], is_flag=True, help="Print all options with their values, and stop."
            ),
        ]
        note = f"The tasks embed and late have other options: modernbert {name} --task embed --help lists them."
        settings = {"allow_extra_args": True}  # reported below, with the option that takes them
        super().__init__(name, settings, callback=self._run, epilog=note if verb.by_task else None)
        self._use(verb.load_options())

    def _use(self, schema: type, task: str | None = None) -> None:
        self.examples = self.verb.examples_for(task)
        self.schema, self.help = schema, (inspect.getdoc(schema) or "").replace("`", "")
        self.options = list(options_of(schema))
        self.params = [_parameter(each) for each in self.options if "NAME" not in each.key.split(".")]
        self.params += self.extra

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the options that belong to mappings, such as `--phases.adapt.tokens 5`, then parse the others."""
        if self.verb.by_task and (task := _task_in(args)):
            self._use(self.verb.load_options(task), task)
        rest: list[str] = []
        ctx.meta["given"] = given = {}
        words = iter(args)
        for word in words:
            name, equals, text = word.partition("=")
            if word == "--":
                rest += [word, *words]
            elif (key := self._key_in_mapping(name)) is None:
                rest.append(word)
            else:
                value = text if equals else next(words, None)
                if value is None:
                    raise click.UsageError(f"Option {name} needs a value.")
                if key in given:
                    raise _repeated(name)
                given[key] = _value(kind_of(self.schema, key), value, name)
        try:
            self._refuse_repeated(ctx, rest)
            super().parse_args(ctx, rest)
        except click.NoSuchOption as error:
            raise self._unknown(error.option_name, args) from None
        if ctx.args and not ctx.resilient_parsing:
            raise self._unexpected(ctx.args[0])
        return ctx.args

    def _refuse_repeated(self, ctx: click.Context, args: list[str]) -> None:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for parameter, number in Counter(given).items():
            if number > 1 and isinstance(parameter, click.Option) and not parameter.multiple:
                raise _repeated(parameter.opts[0])

    def _unexpected(self, word: str) -> InputError:
        """Return the error for an argument too many, with the option that takes files."""
        keys = {option.key for option in self.options if not option.positional}
        key = next((each for each in ("input", "train", "text") if each in keys), None)
        hint = f"; pass files with {option_name(key)}, as in {option_name(key)} {word}" if key else ""
        return InputError(f"{word}: is an argument too many, expected options{hint}.")

    def _unknown(self, name: str, args: list[str]) -> InputError:
        """Return the error for an unknown option: it may belong to another task, or be misspelt."""
        for option in self.options:
            if option.positional and option_name(option.key) == name:
                return InputError(f"{name}: is an argument, not an option; write its value without {name}.")
        for other in TASKS if self.verb.by_task else ():
            if any(option_name(each.key) == name for each in options_of(self.verb.load_options(other))):
                task = _task_in(args)
                return InputError(
                    f"{name}: is an option of --task {other}, found {f'--task {task}' if task else 'no --task'}."
                )
        group = ".".join(name.split(".")[1:2]) or "NAME"
        known = [option_name(each.key.replace("NAME", group)) for each in self.options if not each.positional]
        return InputError(f"Unknown option {name}.{did_you_mean(name, [*known, '--config', '--print', '--help'])}")

    def _key_in_mapping(self, name: str) -> str | None:
        """Return the path of the field for an option such as `--phases.adapt.max-len`; None for other options."""
        given = name.removeprefix("--").split(".")
        for option in self.options if name.startswith("--") else ():
            parts = option.key.split(".")
            if "NAME" not in parts:
                continue
            if len(given) == len(parts):
                # The keys of a mapping of any values are names of fields.
                kept = "" if option.kind is Any else "NAME"
                key = [
                    each if part == kept else each.replace("-", "_") for part, each in zip(parts, given, strict=True)
                ]
                if all(part in ("NAME", each) for part, each in zip(parts, key, strict=True)):
                    return ".".join(key)
        return None

    def _run(self, config: str | None, print_config: bool, **values: Any) -> None:
        from modernbert.config_files import nested, resolve, to_yaml

        given = click.get_current_context().meta["given"]
        for option in self.options:
            value = values.get(identifier(option.key))
            if value is not None and value != ():
                given[option.key] = list(value) if isinstance(value, tuple) else value
        names = {option.key: option.key.upper() for option in self.options if option.positional}
        try:
            resolved: Any = resolve(self.schema, nested(given), config, lambda key: names.get(key) or option_name(key))
            if print_config:
                click.echo(to_yaml(resolved), nl=False)
            else:
                self.verb.load_function()(resolved)
        except InputError as error:
            raise InputError(spell_options(str(error), self.options)) from error

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description, then the examples."""
        super().format_help_text(ctx, formatter)
        with formatter.section("Example" if len(self.examples) == 1 else "Examples"):
            for example in self.examples:
                for line in shell_lines(example, formatter.width - 2):
                    formatter.write(f"  {line}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments, then options by section, each with its default; groups such as `checkpoint` come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in sorted(self.options, key=lambda each: "." in each.key):
            heading = "Arguments" if option.positional else option.section.replace("`", "") or "Options"
            sections.setdefault(heading, []).append(option_row(option))
        general = [*self.extra, self.get_help_option(ctx)]
        sections["General"] = [row for each in general if each and (row := each.get_help_record(ctx))]
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def shell_lines(command: str, width: int) -> list[str]:
    """Return a command line that can be pasted, broken before options where it is longer than `width`."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(f"{lines[-1]} {part} \\") > width:
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines


def _repeated(name: str) -> InputError:
    return InputError(f"{name}: was given twice, expected once.")


def _task_in(args: Sequence[str]) -> str | None:
    """Return the task that a command line, or the config file that it names, asks for."""
    found: dict[str, str] = {}
    for word, after in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--task", "--config"):
            found[name] = value if equals else after
    if "--task" in found or "--config" not in found:
        return found.get("--task")
    from modernbert.config_files import value_of

    return value_of("task", found["--config"])


class _Type(click.ParamType[Any]):
    """Text that is checked later, with the config as a whole; a shell completes its choices, or files."""

    name = "value"

    def __init__(self, option: Option) -> None:
        self.kind, self.option = _item_kind(option.kind), option_name(option.key)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of text, or a value as it is."""
        return _value(self.kind, value, self.option) if isinstance(value, str) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the choices that begin with a text, or ask the shell for files."""
        if get_origin(self.kind) is Literal:
            return [CompletionItem(each) for each in get_args(self.kind) if each.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file")]


def _parameter(option: Option) -> click.Parameter:
    several = get_origin(plain_kind(option.kind)) in (list, Sequence)
    name = identifier(option.key)
    if option.positional:
        return click.Argument(
            [name], type=_Type(option), nargs=-1 if several else 1, required=False, metavar=_metavar(option)
        )
    flag = option_name(option.key)
    if plain_kind(option.kind) is bool:
        return click.Option([f"{flag}/--no-{flag.removeprefix('--')}", name], default=None)
    spellings = [flag, name, *([_SHORT[option.key]] if option.key in _SHORT else [])]
    return click.Option(spellings, type=_Type(option), multiple=several)


def _value(kind: Any, text: str, option: str) -> Any:
    """Return the value of one word: None for null where that is allowed, a number where any value is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{option}: {text.encode(errors='replace').decode()} is not UTF-8 text.") from None
    if text == "null" and kind is not str and "null" not in get_args(plain_kind(kind)):
        return None
    if plain_kind(kind) is not Any:
        return text
    for convert in ({"true": True, "false": False}.__getitem__, int, float):
        try:
            return convert(text)
        except (KeyError, ValueError):
            continue
    return text


def identifier(key: str) -> str:
    """Return the name of the parameter of an option."""
    return f"_{key.replace('.', '__')}"


def _item_kind(kind: Any) -> Any:
    """Return the type of one value of an option."""
    plain = plain_kind(kind)
    if get_origin(plain) in (list, Sequence):
        return get_args(plain)[0]
    return plain if plain is not str or kind is str else kind


def _metavar(option: Option) -> str:
    if option.positional:
        several = get_origin(plain_kind(option.kind)) in (list, Sequence)
        name = f"{option.key.upper()}{'...' if several else ''}"
        return name if option.default is MISSING else f"[{name}]"
    kind = plain_kind(_item_kind(option.kind))
    return "|".join(map(str, get_args(kind))) if get_origin(kind) is Literal else _METAVARS.get(kind, "VALUE")


def option_row(option: Option) -> tuple[str, str]:
    """Return the name of an option as the help shows it, and its text with the default."""
    default = option.default
    if default is MISSING:
        shown = "[required]"
    elif default is None or default in ((), [], {}, ""):
        shown = ""
    else:
        items = default if isinstance(default, list | tuple) else [default]
        shown = f"[default: {', '.join(str(each).lower() if isinstance(each, bool) else str(each) for each in items)}]"
    # A group of options may have another default than its class.
    said = _DEFAULT_IN_WORDS.sub("." if shown else r". [default: \1]", option.help.replace("`", ""))
    text = " ".join(filter(None, (said, shown)))
    if option.positional:
        return _metavar(option), text
    name = option_name(option.key)
    if plain_kind(option.kind) is bool:
        return f"{name} / --no-{name.removeprefix('--')}", text
    return f"{_SHORT[option.key] + ', ' if option.key in _SHORT else ''}{name} {_metavar(option)}", text
