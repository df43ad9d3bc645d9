"""The process that compares expressions, runs plug-ins or renders chat templates: JSON lines from stdin to stdout.

It is run by its path and imports nothing of this package, so it starts fast and can be killed at any time. The kernel
ends it when its parent dies; if the kernel cannot, an alarm ends a request that never returns.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Any, TextIO

MEMORY = 2 * 1024**3  # bytes for expressions and templates; a tower of powers would use all memory
GRACE = 2.0  # seconds for the parent to notice a timeout before the alarm ends the process
LARGEST = 3.4028234e38  # largest float32, the type of a reward's column
LONGEST = 300  # characters of an error message
_PR_SET_PDEATHSIG = 1

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    """Report `ready`, then answer requests with the function that `sys.argv[1]` names, each within its `limit` (s)."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and closes our stdin
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # nothing that a library prints may reach the replies
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the locale
    try:
        answers: dict[str, Callable[[], Answer]] = {"symbolic": symbolic, "plugins": plugins, "templates": templates}
        answers |= {"schemes": schemes, "advantages": advantages}
        answer = answers[sys.argv[1] if len(sys.argv) > 1 else "symbolic"]()
    except Failure as failure:
        _reply(replies, {"ready": False, **failure.args[0]})
        return
    _reply(replies, {"ready": True})
    for line in requests:
        request = json.loads(line, object_hook=_bytes)
        _alarm(request["limit"] + GRACE)
        reply = answer(request)
        _alarm(0)
        _reply(replies, reply)


class Failure(Exception):
    """Why there is no answer; its only argument is added to the reply."""


# ---- symbolic answers


def symbolic() -> Answer:
    """Answers {solution, answer} with {equal}."""
    logging.disable(logging.CRITICAL)
    _loaded("math_verify")

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"equal": compare(request["solution"], request["answer"])}
        except Exception:  # RecursionError, MemoryError, or whatever hostile LaTeX leads to: not equal
            return {"equal": False}

    return answer


def compare(solution: str, answer: str) -> bool:
    """Whether math-verify finds the two LaTeX expressions equal, each parsed as a single expression.

    Its own timeouts are off: they are SIGALRM handlers in Python, which do not run while C code does.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    reading = [LatexExtractionConfig()]
    gold, given = (
        parse(f"${text}$", reading, fallback_mode="no_fallback", parsing_timeout=None) for text in (solution, answer)
    )
    return bool(gold and given and verify(gold, given, timeout_seconds=None))


# ---- chat templates


def templates() -> Answer:
    """Answers {template, values, conversation, longest} with {text}, {characters} if it is longer, or {refused}.

    Renders as transformers does, in jinja's sandbox, which limits neither time nor memory.
    """
    library = _loaded("transformers.utils.chat_template_utils")

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        try:
            (text,), _ = library.render_jinja_template(
                [request["conversation"]],
                chat_template=request["template"],
                add_generation_prompt=True,
                **request["values"],
            )
            text.encode()  # a template may split surrogate pairs
        except Exception as error:  # a template can raise anything
            return {"refused": " ".join(f"{type(error).__name__}: {error}"[:LONGEST].split())}
        return {"text": text} if len(text) <= request["longest"] else {"characters": len(text)}

    return answer


# ---- plug-ins


def plugins() -> Answer:
    """Answers {name, completions, row, columns} with {values}, or {found, index}: what is wrong, and with which value.

    `sys.argv[2]` maps names to functions, {name: [file, function]}; each file is run once. If one cannot be loaded, the
    reply has its `name`, and `missing` if the file has no such function.
    """
    modules: dict[str, object] = {}
    functions: dict[str, Callable[..., object]] = {}
    for name, (path, function) in json.loads(sys.argv[2]).items():
        try:
            modules[path] = modules.get(path) or _module(path)
        except BaseException as error:
            raise Failure({"name": name, "error": _said(error)}) from None
        functions[name] = getattr(modules[path], function, None)  # type: ignore[assignment]
        if not callable(functions[name]):
            raise Failure({"name": name, "missing": True})

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        completions = request["completions"]
        rows = [request["row"] | extra for extra in request["columns"]]
        try:
            result = functions[request["name"]](completions, rows)
        except BaseException as error:  # sys.exit() included
            return {"found": _said(error), "index": _culprit(error, completions)}
        try:
            return {"values": _values(result, len(completions))}
        except Failure as failure:
            return dict(failure.args[0])

    return answer


def schemes() -> Answer:
    """Answers {columns, tokens} with {values}, NaN and None where there is none, or {found, index}: what is wrong."""
    return _of_columns(_array, lambda result, request: _raw_weights(result, request["tokens"]))


def advantages() -> Answer:
    """Answers {columns, sizes} with {values}, a list per group, or {found, group, index}: what is wrong."""
    return _of_columns(
        lambda groups: [_array(values) for values in groups],
        lambda result, request: _advantages(result, request["sizes"]),
    )


def _of_columns(read: Callable[[Any], object], checked: Callable[[object, dict[str, Any]], object]) -> Answer:
    """Answers {columns} with the {values} that a function of the user's gives, as far as they are valid.

    `sys.argv[2]` is {name: [file, function]}, with one entry. Columns are passed by name; a request without them is
    answered with {parameters}, the names of the function's parameters.
    """
    import inspect

    ((name, (path, said)),) = json.loads(sys.argv[2]).items()
    try:
        function = getattr(_module(path), said, None)
    except BaseException as error:
        raise Failure({"name": name, "error": _said(error)}) from None
    if not callable(function):
        raise Failure({"name": name, "missing": True})

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["columns"] is None:
            return {"parameters": list(inspect.signature(function).parameters)}
        try:
            given = {key: read(value) for key, value in request["columns"].items()}
            return {"values": checked(function(**given), request)}
        except Failure as failure:
            return dict(failure.args[0])
        except BaseException as error:  # sys.exit() included
            return {"found": _said(error), "index": None}

    return answer


def _array(values: Any) -> Any:
    """A column as an array, or as it is if it is of texts."""
    import numpy as np

    is_text = isinstance(values, list) and values and isinstance(values[0], str)
    return values if is_text else np.asarray(values)


def _advantages(result: object, sizes: list[int]) -> list[list[float]]:
    """Advantages as lists for JSON: a number of float32 for each completion of each group."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise Failure({"found": f"the result {_described(result)} instead of a list of arrays", "index": None})
    if len(result) != len(sizes):
        raise Failure({"found": f"{len(result)} arrays", "index": None})
    found: list[list[float]] = []
    for group, (values, size) in enumerate(zip(result, sizes, strict=True)):
        try:
            numbers = _values(values, size)
            if None in numbers:
                raise Failure({"found": "None", "index": numbers.index(None)})
        except Failure as failure:
            raise Failure({**failure.args[0], "group": group}) from None
        found.append([number for number in numbers if number is not None])
    return found


def _raw_weights(result: object, tokens: int) -> list[float | None]:
    """Raw weights as a list for JSON: numbers of float32 that are not negative, NaN or None."""
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise Failure({"found": f"the result {_described(result)} instead of an array", "index": None})
    if len(result) != tokens:
        raise Failure({"found": f"{len(result)} values", "index": None})
    values = [value if value != value else _value(value, index) for index, value in enumerate(result)]
    for index, value in enumerate(values):
        if value is not None and value < 0:
            raise Failure({"found": f"the value {value:g}", "index": index})
    return values


def _module(path: str) -> object:
    import hashlib
    from importlib.util import module_from_spec, spec_from_file_location

    name = f"dapo_stages_plugin_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the parent has checked that it ends in .py
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up their module there
    spec.loader.exec_module(module)
    return module


def _values(result: object, count: int) -> list[float | None]:
    """The rewards as a list for JSON; arrays and tuples are accepted, strings and mappings are not."""
    if hasattr(result, "tolist"):  # numpy, torch, pandas
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise Failure({"found": f"the result {_described(result)} instead of a list", "index": None})
    if len(result) != count:
        raise Failure({"found": f"{len(result)} values", "index": None})
    return [_value(value, index) for index, value in enumerate(result)]


def _value(value: object, index: int) -> float | None:
    from numbers import Real

    if value is None:
        return None
    if hasattr(value, "item"):  # a zero-dimensional array
        value = value.item()
    if isinstance(value, Real):
        with suppress(OverflowError):  # a huge integer
            number = float(value)
            if abs(number) <= LARGEST:  # false for NaN and infinity
                return number
    raise Failure({"found": f"the value {_described(value)}", "index": index})


def _described(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except Exception:  # the repr of a huge integer, or of a user's own class
        return f"of type {type(value).__name__}"


def _said(error: BaseException) -> str:
    """The exception, and the last line of a user's file in its traceback."""
    try:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
    except Exception:
        said = type(error).__name__
    lines = [
        line for frame, line in _frames(error) if frame.f_globals.get("__name__", "").startswith("dapo_stages_plugin")
    ]
    return f"{said} (line {lines[-1]})" if lines else said


def _culprit(error: BaseException, completions: list[str]) -> int | None:
    """Index of the completion that the function had in a variable, innermost call first; None if that is ambiguous."""
    index = {id(text): place for place, text in enumerate(completions)}
    for frame, _ in reversed(_frames(error)):
        held = {index[id(value)] for value in frame.f_locals.values() if id(value) in index}
        if len(held) == 1:
            return held.pop()
    return None


def _frames(error: BaseException) -> list[tuple[Any, int]]:
    found, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found


# ---- the process


def _reply(replies: TextIO, values: dict[str, object]) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


def _bytes(value: dict[str, Any]) -> object:
    if value.keys() != {"__bytes__"}:
        return value
    import base64

    return base64.b64decode(value["__bytes__"])


def _end_with_parent() -> None:
    """Let the kernel kill this process with its parent (Linux). stdin ends, too, but is not read during a request."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _loaded(library: str) -> Any:
    """Import a module, then limit memory. Raises Failure if it is not installed."""
    try:
        found = import_module(library)
    except ImportError as error:
        raise Failure({"error": str(error)}) from None
    _limit_memory()
    return found


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, OSError, ValueError):  # not supported here: the timeout remains
        pass


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
