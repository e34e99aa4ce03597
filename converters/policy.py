"""Policies: which checks count, and which limits measured values have to keep. Data only; `judging` applies them.

strict | default | quantized | FILE ──read_policy──► Policy ──► judge(validation, policy)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from converters.check_table import ids_of, names_a_check
from converters.registry import formats
from longrope.errors import InputError, choices
from longrope.files import json_text
from longrope.options import build, declared, option, read_table, schema_of
from longrope.reading import as_object, printable, read_json, read_toml, read_yaml, shown

Level = Literal["off", "warn", "error"]
Compared = Literal["runtime", "rounding", "inside", "beyond", "passkey"]
# A statistic that has to be as large as its limit; all others have to be as small.
AT_LEAST = "top1_agreement"
# What products are computed in, from what loses nothing to what loses most; and where windows lie.
ARITHMETICS = ("same", "f32", "f16", "bf16", "int8")
REGIMES = ("short", "long", "crossing")
_STATISTIC = "Largest %s; null lifts a limit that a rule before it sets."


@dataclass(frozen=True)
class Limits:
    """What measured values have to keep; None where nothing is asked. Of means, medians and 99th percentiles, of top-1 and
    of the change of perplexity, a limit is broken where the whole interval of 95 % lies beyond it.
    """

    kl_mean: float | None = option(None, minimum=0, help=_STATISTIC % "mean KL(reference || artifact), nats per token")
    kl_median: float | None = option(None, minimum=0, help=_STATISTIC % "median KL over positions, nats")
    kl_p99: float | None = option(None, minimum=0, help=_STATISTIC % "99th percentile of KL over positions, nats")
    kl_max: float | None = option(None, minimum=0, help=_STATISTIC % "KL of any position, nats")
    ppl_delta_percent: float | None = option(
        None, minimum=0, help=_STATISTIC % "change of perplexity either way, percent"
    )
    top1_agreement: float | None = option(
        None,
        minimum=0,
        maximum=1,
        help="Smallest share of positions with the same likeliest token, of those that are not tied in the reference.",
    )
    max_logit_diff: float | None = option(None, minimum=0, help=_STATISTIC % "difference of any logit")
    logit_diff_median: float | None = option(
        None, minimum=0, help=_STATISTIC % "median over positions of the largest logit difference"
    )
    ppl_rise_percent: float | None = option(
        None, minimum=0, help=_STATISTIC % "rise of perplexity above the original's or a method's, percent"
    )
    passkey_drop: float | None = option(
        None,
        minimum=0,
        maximum=1,
        help=_STATISTIC % "drop of the share of passkeys found, from the original's inside its window",
    )


@dataclass(frozen=True)
class Rule:
    """Limits, and what they are for. Patterns may hold `*` and `?`; of several rules, later ones win by statistic."""

    compare: Compared = option(
        help="`runtime`: artifact against the reference with its weights; `rounding`: that against the original; "
        "`inside`, `beyond`: the extended model against the original one, and against other methods; `passkey`."
    )
    weights: str = option("*", help="Pattern of weight types, such as q4_*: what `weights.name` of the result says.")
    arithmetic: str = option("*", help="Pattern of what the runtime multiplies in: same, f32, f16, bf16, int8.")
    regime: str = option("*", help="Pattern of regimes: short, long, crossing.")

    def fits(self, compare: str, weights: str, arithmetic: str, regime: str) -> bool:
        """Whether the limits are for this."""
        pairs = ((weights, self.weights), (arithmetic, self.arithmetic), (regime, self.regime))
        return compare == self.compare and all(fnmatchcase(name, pattern) for name, pattern in pairs)


STATISTICS = tuple(each.name for each in dataclasses.fields(Limits))
# Statistics of an extension, whatever the artifact: what is compared → those that are measured. The rest is of artifacts.
OF_QUALITY: Mapping[str, tuple[str, ...]] = {
    "inside": ("ppl_rise_percent", "kl_mean"),
    "beyond": ("ppl_rise_percent",),
    "passkey": ("passkey_drop",),
}
_REGIMES_OF_QUALITY: Mapping[str, tuple[str, ...]] = {"inside": ("short",), "beyond": ("long",), "passkey": ("long",)}
# Characters of a pattern of check ids.
_LONGEST_PATTERN = 200
# Types of GGUF files, which mix types of weights: q4_k_m is made of q4_k and q6_k.
_TYPE_OF_FILE = re.compile(r"q\d_k_[a-z]+")
_OF_ARTIFACTS = tuple(name for name in STATISTICS if name not in ("ppl_rise_percent", "passkey_drop"))


@dataclass(frozen=True)
class Policy:
    """What a validation has to keep.

    Args:
        name: for reports.
        levels: pattern of check ids → what a failure or a warning counts; later ones win. `error` fails for both, `warn`
            warns of both, `off` leaves the check out. What no pattern fits counts as it was found.
        limits: rule → values by statistic; None lifts one.
        fail_if_not_run: patterns of check ids: one that was skipped fails, and so does a pattern that no check fits.
        given: the table of the file that it was read from; None for a preset.
    """

    name: str = "default"
    levels: Mapping[str, Level] = dataclasses.field(default_factory=dict)
    limits: tuple[tuple[Rule, Mapping[str, float | None]], ...] = ()
    fail_if_not_run: tuple[str, ...] = ()
    given: Mapping[str, Any] | None = None

    def to_json(self) -> Any:
        """What a run records: a preset's name, or a file's name and what stood in it."""
        return self.name if self.given is None else {"name": self.name, **self.given}

    def level(self, id: str) -> Level | None:
        """What a check's failure counts; None for what was found."""
        fitting = [level for pattern, level in self.levels.items() if fnmatchcase(id, pattern)]
        return fitting[-1] if fitting else None

    def has_rule(self, compare: Compared, weights: str, arithmetic: str, regime: str) -> bool:
        """Whether anything is said of this, be it that nothing limits it."""
        return any(rule.fits(compare, weights, arithmetic, regime) for rule, _ in self.limits)

    def limits_for(self, compare: Compared, weights: str, arithmetic: str, regime: str) -> dict[str, float]:
        """Limits by statistic."""
        found: dict[str, float | None] = {}
        for rule, values in self.limits:
            if rule.fits(compare, weights, arithmetic, regime):
                found |= values
        return {name: value for name, value in found.items() if value is not None}


def _rule(compare: Compared, limits: Mapping[str, float | None], **patterns: str) -> tuple[Rule, dict[str, Any]]:
    return Rule(compare=compare, **patterns), dict(limits)


# What runtimes lose by their arithmetic alone, with the weights they have: what is beyond is a fault. docs/validation.md
# says what was measured, benchmarks/validation.md the distributions.
_RUNTIME = (
    _rule(
        "runtime",
        {"kl_mean": 0.0, "ppl_delta_percent": 0.0, "top1_agreement": 1.0, "max_logit_diff": 0.0},
        arithmetic="same",
    ),
    _rule("runtime", {"kl_mean": 1e-6, "ppl_delta_percent": 0.01, "top1_agreement": 0.999}, arithmetic="f32"),
    # From here on a router of experts may flip where it is nearly undecided, which moves means and no medians.
    *(
        _rule(
            "runtime",
            {"kl_median": median, "kl_mean": mean, "ppl_delta_percent": percent, "top1_agreement": share},
            arithmetic=arithmetic,
        )
        for arithmetic, median, mean, percent, share in (
            ("f16", 2e-5, 1e-3, 0.1, 0.99),
            ("bf16", 1e-3, 2e-2, 0.5, 0.97),
            ("int8", 1e-2, 5e-2, 1.0, 0.95),
        )
    ),
)
# Weight types by pattern → largest mean KL and change of perplexity in percent that rounding to them may cost.
_EIGHT_BITS, _SIX_BITS, _FOUR_BITS = ("q8*", "int8"), ("q6*", "q5*"), ("q4*", "iq4*", "mxfp4", "int4")
_FEWER_BITS = ("q3*", "q2*", "iq3*", "iq2*", "iq1*", "tq*")
Cost = tuple[float | None, float | None]


def _rounding(eight: Cost, six: Cost, four: Cost, fewer: Cost) -> Iterable[tuple[Rule, dict[str, Any]]]:
    for name, median, mean, change, share in (("f16", 2e-5, 5e-3, 0.1, 0.99), ("bf16", 1e-3, 2e-2, 0.5, 0.97)):
        limits = {"kl_median": median, "kl_mean": mean, "ppl_delta_percent": change, "top1_agreement": share}
        yield _rule("rounding", limits, weights=name)
    costs = {_EIGHT_BITS: eight, _SIX_BITS: six, _FOUR_BITS: four, _FEWER_BITS: fewer}
    for patterns, (kl, percent) in costs.items():
        for pattern in patterns:
            yield _rule("rounding", {"kl_mean": kl, "ppl_delta_percent": percent}, weights=pattern)


# What an extension may cost, and that it is to be no worse than what needs no search.
_QUALITY = (
    _rule("inside", {"ppl_rise_percent": 10.0}),
    _rule("beyond", {"ppl_rise_percent": 0.0}),
    _rule("passkey", {"passkey_drop": 0.1}),
)
_WARNED: Mapping[str, Level] = dict.fromkeys(("quality.inside.*", "quality.beyond.*", "quality.passkey.*"), "warn")
_FIXED = (*_RUNTIME, *_QUALITY)
PRESETS: Mapping[str, Policy] = {
    "default": Policy(
        "default", _WARNED, limits=(*_FIXED, *_rounding((0.02, 2.0), (0.2, 5.0), (0.5, 25.0), (1.5, 100.0)))
    ),
    "quantized": Policy(
        "quantized", _WARNED, limits=(*_FIXED, *_rounding((0.05, 5.0), (0.4, 15.0), (0.8, 50.0), (None, None)))
    ),
    "strict": Policy(
        "strict",
        levels={"*": "error"},
        limits=(*_FIXED, *_rounding((0.01, 1.0), (0.03, 2.0), (0.1, 10.0), (0.1, 10.0))),
        fail_if_not_run=("*.readable", "*.loads", "*.parity.*", "*.own_weights", "*.weights"),
    ),
}


def read_policy(given: str) -> Policy:
    """A preset by its name, or a policy of a YAML, TOML or JSON file.

    Raises:
        InputError: no such file or preset, an unknown key, with the nearest known one, a value of another kind, or a pattern
            that nothing can fit.
    """
    if given in PRESETS:
        return PRESETS[given]
    path = Path(given)
    if not path.is_file():
        raise InputError(f"policy {given}: no such file; {choices(given, PRESETS)}, or a YAML, TOML or JSON file")
    return policy_of(_READERS.get(path.suffix.lower(), read_yaml)(path), given)


_READERS: Mapping[str, Any] = {".json": read_json, ".toml": read_toml}
KEYS = {
    "extends": "Preset that it starts from.",
    "checks": "Pattern of check ids: what a failure or a warning counts. Later ones win.",
    "fail_if_not_run": "Patterns of check ids. One that was skipped fails, and so does a pattern that no check fits.",
    "limits": "Rules; later ones win by statistic.",
}


def policy_of(data: Any, name: str) -> Policy:
    """The policy that a table describes. Raises as `read_policy`."""
    table = as_object(data, name)
    for key in table:
        if key not in KEYS:
            raise InputError(f"{name}: unknown key {printable(str(key))}; {choices(key, KEYS)}")
    base = PRESETS[_one_of(table.get("extends", "default"), PRESETS, f"{name}: extends")]
    levels = as_object(table.get("checks", {}), f"{name}: checks")
    required = _list(table.get("fail_if_not_run", list(base.fail_if_not_run)), f"{name}: fail_if_not_run")
    return Policy(
        name=Path(name).name if Path(name).name not in PRESETS else f"the file {Path(name).name}",
        levels={
            **base.levels,
            **{_ids(id, f"{name}: checks"): _level(level, f"{name}: checks: {id}") for id, level in levels.items()},
        },
        limits=(*base.limits, *_rules(_list(table.get("limits", []), f"{name}: limits"), name)),
        fail_if_not_run=tuple(_ids(pattern, f"{name}: fail_if_not_run") for pattern in required),
        given=table,
    )


def _rules(items: list[Any], name: str) -> Iterable[tuple[Rule, dict[str, float | None]]]:
    patterns, statistics = declared(Rule), declared(Limits)
    for number, item in enumerate(items):
        where = f"{name}: limits[{number}]"
        table = as_object(item, where)
        lifted = {key for key, value in table.items() if value is None and key in STATISTICS}
        given = {key: value for key, value in table.items() if key not in lifted}
        values = read_table((*patterns, *statistics), given, where, Path())
        if "compare" not in values:
            raise InputError(f"{where}: compare: expected one of {', '.join(get_args(Compared))}, found none")
        _require_measured(values["compare"], table, where)
        rule = build(Rule, {key: values[key] for key in values if key in {each.key for each in patterns}})
        _require_fitting(rule, where)
        if not lifted and not any(each.key in values for each in statistics):
            raise InputError(
                f"{where}: expected a limit, such as {OF_QUALITY.get(rule.compare, _OF_ARTIFACTS)[0]}: 0.1"
            )
        found = {each.name: values[each.key] for each in statistics if each.key in values}
        yield rule, {**dict.fromkeys(lifted), **found}


def _require_measured(compare: str, keys: Iterable[str], where: str) -> None:
    """Refuse limits of statistics that what the rule compares does not have, and patterns that nothing of it fits."""
    measured = OF_QUALITY.get(compare, _OF_ARTIFACTS)
    patterns = ("weights", "arithmetic") if compare in OF_QUALITY else ()
    for name in (key.replace("-", "_") for key in keys):
        if name in patterns or (name in STATISTICS and name not in measured):
            raise InputError(f"{where}: {name}: `{compare}` has none; it has {', '.join(measured)}")


def _require_fitting(rule: Rule, where: str) -> None:
    """Refuse patterns that nothing can fit."""
    regimes = _REGIMES_OF_QUALITY.get(rule.compare, REGIMES)
    for name, pattern, known in (("regime", rule.regime, regimes), ("arithmetic", rule.arithmetic, ARITHMETICS)):
        if not any(fnmatchcase(each, pattern) for each in known):
            raise InputError(f"{where}: {name}: got {shown(pattern)}; {choices(pattern, known)}")
    if rule.weights != rule.weights.lower() or _TYPE_OF_FILE.fullmatch(rule.weights):
        raise InputError(
            f"{where}: weights: got {shown(rule.weights)}; expected a pattern of the coarsest type of weights in small "
            "letters, such as q4_k, which a q4_k_m file has"
        )


def _level(value: Any, where: str) -> Level:
    # YAML 1.1 reads the word off as false.
    return _one_of("off" if value is False else value, get_args(Level), where)  # type: ignore[return-value]


def _one_of(value: Any, known: Iterable[str], where: str) -> str:
    if not isinstance(value, str) or value not in set(known):
        raise InputError(f"{where}: got {shown(value)}; {choices(value, known)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, got {shown(value)}")
    return value


def _ids(value: Any, where: str) -> str:
    """A pattern that a check's id can fit."""
    if not isinstance(value, str) or len(value) > _LONGEST_PATTERN:
        raise InputError(f"{where}: expected patterns of check ids, got {shown(value)}")
    if not names_a_check(value, formats()):
        near = get_close_matches(value, ids_of(formats()), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{where}: {shown(value)}: no check is called so; {hint}docs/checks.md lists them")
    return value


def schema_text() -> str:
    """docs/policy.schema.json; `make schema` writes it."""
    return json_text(policy_schema())


def policy_schema() -> dict[str, Any]:
    """JSON Schema of policy files, for editors."""
    limits = schema_of((*declared(Rule), *declared(Limits)), required=("compare",), underscores=True)
    for name in STATISTICS:
        limits["properties"][name]["type"] = ["number", "null"]
    kinds: Mapping[str, dict[str, Any]] = {
        "extends": {"enum": list(PRESETS), "default": "default"},
        "checks": {"type": "object", "additionalProperties": {"enum": list(get_args(Level))}},
        "fail_if_not_run": {"type": "array", "items": {"type": "string"}},
        "limits": {"type": "array", "items": limits},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Policy of longrope-export validate",
        "type": "object",
        "properties": {key: {"description": KEYS[key], **kind} for key, kind in kinds.items()},
        "additionalProperties": False,
    }
