"""Click commands out of option dataclasses: the options of a command are the fields of its request, written once there.

    @command(SearchRequest)                 click options by section, parsed by the fields' kinds
    def command(request: SearchRequest)     the request, built and checked

Options that several commands share are the functions at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import click
from click.core import ParameterSource

from longrope.options import TEXT, Kind, Option, Section, build, declared, model_name, option

Request = TypeVar("Request")
SECTIONS: tuple[Section, ...] = get_args(Section)
HELP_SECTION: Section = "Output"
FactorSetsWish = Literal["auto", "single", "dual"]
Isolate = Literal["auto", "on", "off"]


def _policy(value: object, folder: Path) -> str:
    """The name of a preset, or the path of a file, which is taken from the folder of the file that names it."""
    from converters.policy import PRESETS

    if not value:
        raise ValueError(value)
    return value if isinstance(value, str) and value in PRESETS else model_name(value, folder)


PolicyName = Annotated[str, Kind("NAME|FILE", "the name of a policy, or a file", _policy, TEXT.schema)]


class Value(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """A kind of value as click's type."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.kind.parse(value, Path())
        except ValueError:
            self.fail(f"expected {self.kind.expected}, got {value!r}", param, ctx)


class SectionedOption(click.Option):
    """An option that knows its section, and what its default is called."""

    def __init__(self, declared: Option, names: Sequence[str], **settings: Any) -> None:
        super().__init__(names, **settings)
        self.declared = declared

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        names, text = super().get_help_record(ctx) or ("", "")
        return names, text + self._remark()

    def _remark(self) -> str:
        default, unset = self.declared.default, self.declared.about.unset
        if default is MISSING:
            return "  [required]"
        if default is None or default == ():
            return f"  [default: {unset}]" if unset else ""
        if isinstance(default, bool):
            return f"  [default: {self.declared.key}]" if default else ""
        return f"  [default: {shown(default)}]"


class SectionedArgument(click.Argument):
    """An argument that has a line in the help's first section."""

    def __init__(self, declared: Option, **settings: Any) -> None:
        super().__init__([declared.name], **settings)
        self.declared = declared

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.name.upper() if self.name else "", str(self.declared.about.help)


class SectionedCommand(click.Command):
    """A command whose help has the options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                rows[_section(parameter)].append(record)
        for section, found in rows.items():
            if found:
                with formatter.section(section):
                    formatter.write_dl(found)


def _section(parameter: click.Parameter) -> Section:
    if isinstance(parameter, SectionedArgument):
        return SECTIONS[0]
    section: Section = parameter.declared.about.section if isinstance(parameter, SectionedOption) else HELP_SECTION
    return section


def command(
    request: type[Request],
    *,
    name: str | None = None,
    group: click.Group | None = None,
    more: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> Callable[[Callable[[Request], int]], click.Command]:
    """A click command that takes the options of a dataclass and runs a function on what they make.

    Args:
        request: the dataclass.
        name: of the command; None for the function's.
        group: that the command belongs to.
        more: makes the values of those that were given, such as a recipe's; None takes them as they are. The function
            finds them by key in `click.get_current_context().obj`.
    """

    def decorate(function: Callable[[Request], int]) -> click.Command:
        def run(**values: Any) -> int:
            context = click.get_current_context()
            given = {key: values[each.name] for key, each in options.items() if _is_given(context, each)}
            made = context.obj = more(given) if more else given
            _require(options.values(), made, context)
            return function(build(request, made))

        options = {each.key: each for each in declared(request)}
        parameters = [_parameter(each) for each in options.values()]
        settings = {"help_option_names": ["-h", "--help"]}
        made = SectionedCommand(
            name or "command", callback=run, params=parameters, help=function.__doc__, context_settings=settings
        )
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def _is_given(context: click.Context, each: Option) -> bool:
    return context.get_parameter_source(each.name) not in (None, ParameterSource.DEFAULT)


def _require(options: Any, values: Mapping[str, Any], context: click.Context) -> None:
    """Refuse a call that leaves something required out, as click does."""
    parameters = {parameter.name: parameter for parameter in context.command.params}
    for each in options:
        if each.default is MISSING and values.get(each.key) in (None, ()):
            raise click.MissingParameter(ctx=context, param=parameters[each.name])


def _parameter(each: Option) -> click.Parameter:
    about = each.about
    if about.argument:
        return SectionedArgument(
            each, required=each.default is MISSING, nargs=-1 if each.many else 1, type=Value(each.kind)
        )
    names = [f"--{each.key}", *([f"-{about.short}"] if about.short else []), each.name]
    if each.is_switch and each.default is False:
        return SectionedOption(each, names, help=about.help, is_flag=True)
    if each.is_switch:
        names[0] = f"--{each.key}/--no-{each.key}"
        return SectionedOption(each, names, help=about.help, default=each.default)
    settings: dict[str, Any] = {"multiple": True} if each.many else {}
    if each.kind.parts > 1:
        settings |= {"nargs": each.kind.parts, "type": click.UNPROCESSED, "callback": _together(each.kind)}
    else:
        settings["type"] = Value(each.kind)
    if about.alone is not None:
        settings |= {"is_flag": False, "flag_value": about.alone}
    return SectionedOption(each, names, help=about.help, metavar=about.metavar or each.kind.name, **settings)


def _together(kind: Kind) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """What makes one value of several words."""

    def convert(ctx: click.Context, param: click.Parameter, values: Any) -> Any:
        return tuple(Value(kind).convert(value, param, ctx) for value in values)

    return convert


def shown(value: Any) -> str:
    """A default as a user would write it."""
    return (
        ",".join(map(shown, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# -- options that several commands share, each worded once


def texts(*, required: bool) -> Any:
    """`--text`, repeatable."""
    default = MISSING if required else ()
    return option(
        default,
        name="text",
        section="Input",
        help="UTF-8 file, or folder of .txt, .md and .jsonl files (field text); repeatable.",
    )


def test_texts() -> Any:
    """`--test-text`, repeatable."""
    return option(
        (),
        name="test-text",
        section="Input",
        unset="a part of --text",
        help="Held-out text to measure on; repeatable.",
    )


def original() -> Any:
    """`--original`."""
    return option(
        None,
        unset="the released window",
        help="Window to extend from, in tokens: that before the publisher's rescaling, which is then taken out, or a shorter "
        "one than config.json says.",
    )


def output(help: str, *, required: bool = True) -> Any:
    """`-o/--output`."""
    return option(MISSING if required else None, short="o", section="Output", help=help)


def overwrite() -> Any:
    """`--overwrite`."""
    return option(False, section="Output", once=True, help="Replace the output if it exists.")


def resume(help: str) -> Any:
    """`--resume`."""
    return option(False, section="Output", once=True, help=help)


def plan(help: str) -> Any:
    """`--plan`."""
    return option(False, section="Output", once=True, help=help)


def factor_sets() -> Any:
    """`--factor-sets`."""
    return option(
        "auto",
        section="Factors",
        help="Factor sets to embed: auto (dual in GGUF, single in HF and ONNX), dual, or single, which is right everywhere.",
    )


def crossing(default: bool | None = True, *, unset: str | None = None) -> Any:
    """`--crossing/--no-crossing`; None lets the command decide, as `unset` says."""
    return option(default, unset=unset, help="Decode across the original window through the cache.")


def isolate() -> Any:
    """`--isolate`."""
    return option(
        "auto",
        section="Machine",
        help="Open the artifact in a process with limits on memory and time: auto (all but Hugging Face folders), on, off.",
    )


def policy(section: Section = "Expert") -> Any:
    """`--policy`, of `validate` and `extend`."""
    return option(
        "default",
        section=section,
        help="What counts, and limits: strict, default, quantized, or a YAML, TOML or JSON file.",
    )


def windows(help: str) -> Any:
    """`--windows`, of `validate` and `extend`."""
    return option((), section="Output", unset="original, target", help=help)


def windows_per_length(default: int | None = 4, *, unset: str | None = None) -> Any:
    """`--windows-per-length`; None lets the command decide, as `unset` says."""
    return option(default, minimum=1, unset=unset, help="Largest number of windows measured at each length.")


def json_file() -> Any:
    """`--json FILE`, `-` or nothing for standard output."""
    return option(
        None,
        name="json",
        section="Output",
        metavar="FILE",
        alone="-",
        help="Write the result as JSON to a file, or to standard output for - or no name.",
    )
