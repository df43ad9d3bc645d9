"""Every text of every error in one list: it names a file or a key, what is wrong with it, and what to do.

The package's source is read, not run: each raise of one of our errors is followed to the texts that it can have,
through names, branches, helpers and their callers. `‹…›` stands for what is only known when it happens.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from support.commands import ROOT

from dapo_stages.config import load_config
from dapo_stages.errors import ConfigError

PACKAGE = ROOT / "dapo_stages"
IN_PARTS = {"DataError", "EngineError", "RefusedError", "HaltedError"}  # where, problem, advice
IN_ONE = {"ConfigError", "ModelError", "RankError", "HubError", "LockedError", "DapoStagesError"}
# PeerError quotes another process, InterruptedStage is no error. Calls of these names build a text elsewhere checked.
VERBS = {
    "Add", "Ask", "Change", "Check", "Choose", "Compare", "Convert", "Copy", "Correct", "Delete", "Download",
    "Evaluate", "Export", "Fix", "Free", "Give", "Grant", "Increase", "Install", "Launch", "Leave", "Let", "Lower",
    "Make", "Merge", "Move", "Name", "Pass", "Pick", "Quote", "Raise", "Reduce", "Remove", "Rename", "Repeat",
    "Replace", "Report", "Rerun", "Resize", "Restart", "Restore", "Run", "Save", "Score", "See", "Serve", "Set",
    "Shorten", "Start", "Stop", "Try", "Unset", "Update", "Upgrade", "Use", "Wait", "Write",
}  # fmt: skip
TEXT = re.compile(r"(?P<where>[^:].*?): (?P<problem>.+?)[.?] (?P<advice>[A-Z‹].*)", re.S)
FORMULA = re.compile(r"^(?:.*: )?found\b|; ?(?:needed|expected)|\bneeded:|\b[Mm]end(?:ed|s)?\b", re.S)
UNKNOWN = re.compile(r"‹[^›]*›")


@dataclass(frozen=True)
class Raised:
    """One construction of an error, with every text that each of its arguments can have."""

    where: str
    kind: str
    arguments: tuple[tuple[str, ...], ...]


class Module:
    """The names of a source file, and what they can be."""

    def __init__(self, path: Path) -> None:
        self.path, self.tree = path, ast.parse(path.read_text(encoding="utf-8"))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        functions = (n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        self.functions = {function.name: function for function in functions}

    def raised(self) -> Iterator[Raised]:
        for node in ast.walk(self.tree):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in IN_PARTS | IN_ONE and isinstance(node, ast.Call):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                place = f"{self.path.relative_to(ROOT)}:{node.lineno}"
                yield Raised(place, name, tuple(tuple(dict.fromkeys(self.texts(one))) for one in given))

    def texts(self, node: ast.AST, depth: int = 0) -> list[str]:
        """What an expression can be, as far as the source says."""
        unknown = [f"‹{ast.unparse(node)}›"]
        if depth > 8:
            return unknown
        match node:
            case ast.Constant(value=str(value)):
                return [value]
            case ast.JoinedStr(values=parts):
                return ["".join(one) for one in product(*(self._piece(part, depth) for part in parts))]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return ["".join(one) for one in product(self.texts(left, depth + 1), self.texts(right, depth + 1))]
            case ast.IfExp(body=body, orelse=orelse):
                return [*self.texts(body, depth + 1), *self.texts(orelse, depth + 1)]
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.texts(value, depth + 1)]
            case ast.Subscript(value=ast.Name(id=name)):
                return self._of_table(name, depth) or unknown
            case ast.Subscript(value=ast.Dict(values=values)):
                return [text for value in values for text in self.texts(value, depth + 1)]
            case ast.Call(func=ast.Attribute(value=inner, attr="format" | "replace")):
                return self.texts(inner, depth + 1)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                return self._returned(name, depth) or unknown
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if name in self.functions:
                return self._returned(name, depth) or unknown
            case ast.Name(id=name):
                return self._named(node, name, depth) or unknown
        return unknown

    def _piece(self, part: ast.AST, depth: int) -> list[str]:
        """A part of an f-string; names that are texts are followed, the rest is only known when it happens."""
        if not isinstance(part, ast.FormattedValue):
            return self.texts(part, depth + 1)
        if isinstance(part.value, ast.Name) and part.value.id in {"advice", "problem", "expected", "kept", "_SLOWER"}:
            return self.texts(part.value, depth + 1)
        return [f"‹{ast.unparse(part.value)}›"]

    def _of_table(self, name: str, depth: int) -> list[str]:
        for node in self.tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    return [text for value in node.value.values for text in self.texts(value, depth + 1)]
        return []

    def _returned(self, name: str, depth: int) -> list[str]:
        returns = (node for node in ast.walk(self.functions[name]) if isinstance(node, ast.Return))
        return [text for node in returns if node.value for text in self.texts(node.value, depth + 1)]

    def _named(self, node: ast.AST, name: str, depth: int) -> list[str]:
        """What was assigned to a name in the functions around it or in the module, or given for it by callers."""
        around = [*self._around(node), self.tree]
        for scope in around:
            if assigned := list(self._assigned(scope, name, depth)):
                return assigned
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [argument.arg for argument in scope.args.args if argument.arg not in ("self", "cls")]
                if name in names:
                    return list(self._given(scope.name, names.index(name), name, depth))
        return []

    def _around(self, node: ast.AST) -> Iterator[ast.AST]:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    def _assigned(self, scope: ast.AST, name: str, depth: int) -> Iterator[str]:
        for node in ast.walk(scope):
            if not isinstance(node, ast.Assign) or (scope is self.tree and self.parents[node] is not self.tree):
                continue
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == name:
                    yield from self.texts(node.value, depth + 1)
                elif isinstance(target, ast.Tuple):
                    ids = [one.id if isinstance(one, ast.Name) else "" for one in target.elts]
                    for value in _alternatives(node.value):
                        if name in ids and isinstance(value, ast.Tuple):
                            yield from self.texts(value.elts[ids.index(name)], depth + 1)

    def _given(self, function: str, index: int, name: str, depth: int) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function:
                by_name = [keyword.value for keyword in node.keywords if keyword.arg == name]
                for value in by_name or node.args[index : index + 1]:
                    yield from self.texts(value, depth + 1)


def _alternatives(node: ast.AST) -> list[ast.AST]:
    return [*_alternatives(node.body), *_alternatives(node.orelse)] if isinstance(node, ast.IfExp) else [node]


@cache
def everything() -> tuple[Raised, ...]:
    return tuple(one for path in sorted(PACKAGE.rglob("*.py")) for one in Module(path).raised())


def complaints(raised: Raised) -> list[str]:
    """What an error's texts lack; empty if nothing."""
    if raised.kind in IN_ONE:
        return [why for text in raised.arguments[0] for why in _lacks(text)]
    if len(raised.arguments) != 3:
        return [f"{len(raised.arguments)} parts, expected where, problem and advice"]
    where, problem, advice = raised.arguments
    said = [f"no place: {text!r}" for text in where if not text.strip()]
    said += [f"not a clause that says what is wrong: {text!r}" for text in problem if not _is_problem(text)]
    return [*said, *(f"no advice: {text!r}" for text in advice if not _is_advice(text))]


def _lacks(text: str) -> list[str]:
    if text in PASSED_ON:
        return []
    if UNKNOWN.fullmatch(text):
        return [f"a text that cannot be followed: {text}"]
    match = TEXT.fullmatch(text)
    if match is None:
        return [f"not `where: what is wrong. What to do.`: {text!r}"]
    if not _is_problem(match["problem"]):
        return [f"not a clause that says what is wrong: {text!r}"]
    return [] if _is_advice(match["advice"]) else [f"no advice: {text!r}"]


def _is_problem(text: str) -> bool:
    return bool(text) and not text.endswith(".") and not FORMULA.search(text)


def _is_advice(text: str) -> bool:
    """Whether one of its sentences says what to do, and the last one ends."""
    if UNKNOWN.fullmatch(text):
        return text in PASSED_ON
    sentences = re.split(r"(?<=\.) ", text)
    starts = (sentence.split(" ")[0].rstrip(",:") for sentence in sentences)
    return text.endswith(".") and any(start in VERBS for start in starts) and not FORMULA.search(text)


# Parts that come whole from elsewhere, and what checks them there.
PASSED_ON = {
    "‹damage.advice›": "another DataError's",
    "‹own›: ‹error›. Fix it.": "the problem is maths/policy_averages.py's (tests/tools/test_merge.py)",
    "‹'\\n'.join([*lines, 'Fix the file, or the --set option, and run the command again.'])›": "a line for each key "
    "(test_each_key_of_a_configuration_that_is_refused_is_explained)",
}


def test_every_error_says_where_what_is_wrong_and_what_to_do() -> None:
    wrong = [f"{raised.where} {raised.kind}: {why}" for raised in everything() for why in complaints(raised)]
    assert not wrong, f"{len(wrong)} of the texts of {len(everything())} errors:\n" + "\n".join(wrong)


def test_no_error_is_overlooked() -> None:
    """As many as a plain search finds; and each of the classes is among them or a base of others."""
    raised = re.compile(rf"(?<!class )\b(?:{'|'.join(sorted(IN_PARTS | IN_ONE))})\(")
    plain = sum(len(raised.findall(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py"))
    assert len(everything()) == plain > 150


@pytest.mark.parametrize("override", ["sede=1", "train.beta=-1", "train.betas=[0.9]", "model.dtype=int4"])
def test_each_key_of_a_configuration_that_is_refused_is_explained(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "pipelines/smoke.yaml", [override])
    line, do = str(caught.value).split("\n")
    assert TEXT.fullmatch(f"{line} {do}") or TEXT.fullmatch(f"{line}. {do}"), line


@pytest.mark.parametrize(
    "text",
    [
        "run.yaml: expected keys and values, got a list.",
        "run.yaml: expected keys and values, got a list. It is a list.",
        "expected keys and values, got a list. Fix the file.",
        "run.yaml: expected keys and values, got a list. Fix the file",
        "run.yaml: found a list, expected keys and values. Fix the file.",
        "run.yaml: a list; needed keys and values. Fix the file.",
        "run.yaml: expected keys and values, got a list. Mend the file.",
    ],
)
def test_a_text_without_one_of_its_parts_is_noticed(text: str) -> None:
    assert complaints(Raised("here", "ConfigError", ((text,),)))
    whole = "run.yaml: expected keys and values, got a list. Fix the file."
    assert not complaints(Raised("here", "ConfigError", ((whole,),)))


@pytest.mark.parametrize(
    "parts",
    [
        ("a.json", "the file is missing"),
        ("a.json", "the file is missing", "It is not there."),
        ("a.json", "the file is missing", "Run it again"),
        ("a.json", "the file is missing", "Mend it. Run it again."),
        ("a.json", "", "Run it again."),
        ("", "the file is missing", "Run it again."),
        ("a.json", "found nothing", "Run it again."),
        ("a.json", "the file is missing.", "Run it again."),
    ],
)
def test_parts_that_lack_something_are_noticed(parts: tuple[str, ...]) -> None:
    assert complaints(Raised("here", "DataError", tuple((part,) for part in parts)))
    assert not complaints(Raised("here", "DataError", (("a.json",), ("the file is missing",), ("Run it again.",))))
