"""inspect: one completion in full, with its image and its tokens colored by weight."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dapo_stages.terminal.options import Json, RunFolder

if TYPE_CHECKING:
    from rich.text import Text

    from dapo_stages.reporting.iteration.search import Hit, Ranked
    from dapo_stages.runs.run_folder import Run

_FURTHER = 5  # ids listed after the one that --find shows
_SIGNS = {True: "✓", False: "✗"}


def main(
    folder: RunFolder,
    completion_id: Annotated[str | None, typer.Argument(help="Id of the completion.", metavar="COMPLETION_ID")] = None,
    find: Annotated[
        Literal["worst", "best", "disagree", "guessed"] | None,
        typer.Option("--find", help="By reward, or by how answer and attention go together (see above)."),
    ] = None,
    number: Annotated[
        int | None, typer.Option("-n", min=1, help="List this many that --find finds.", metavar="N")
    ] = None,
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=0, help="Where --find searches; default: the latest with weights.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the list as CSV on stdout.")] = False,
    as_json: Json = False,
) -> None:
    """Show one completion: its image, where it looked, its answer, its tokens by weight, rewards, and where its prompt
    is stored.

    --find searches the latest iteration that has weights. `disagree` ranks right answers by how little they looked at
    the image (a high VGR), and wrong ones by how much; well-formed ones come first. `guessed`: well-formed, with an
    answer and not cut off, right or wrong; those that looked at the image least come first.

    Example: dapo-stages inspect --run training_logs/demo --find guessed -n 20 --csv
    """
    from dapo_stages.reporting.iteration import search
    from dapo_stages.runs.run_folder import Run
    from dapo_stages.terminal.console import answer
    from dapo_stages.terminal.safe_text import one_line

    if (completion_id is None) == (find is None):
        raise typer.BadParameter("pass either a completion id or --find worst|best|disagree|guessed.")
    if find is None and (number or as_csv):
        raise typer.BadParameter("-n and --csv list what --find finds: pass --find.")
    if as_csv and as_json:
        raise typer.BadParameter("pass either --csv or --json.")
    run = Run(folder)
    ranked = search.rank(run, find, iteration) if find else None
    if ranked and not ranked.ids:
        raise typer.BadParameter("there is no completion to choose from.")
    if ranked and (number or as_csv):
        _list(run, ranked, number, as_csv, as_json)
        return
    hit = search.find(run, ranked.ids[0] if ranked else completion_id or "")
    further = ranked.ids[1 : 1 + _FURTHER] if ranked else []
    if as_json:
        answer({**_result(hit), "further": further})
        return
    _show(hit)
    if further:
        print(f"\nNext after it: {', '.join(map(one_line, further))}")


def _list(run: Run, ranked: Ranked, number: int | None, as_csv: bool, as_json: bool) -> None:
    """The first of what was found: as CSV, as JSON, or as a table without texts."""
    from dapo_stages.reporting.iteration import listing
    from dapo_stages.terminal.console import answer
    from dapo_stages.terminal.printed_table import Table, print_table
    from dapo_stages.terminal.safe_text import number as digits

    rows = listing.listed(ranked.iteration, run.sources(ranked.iteration), ranked.ids[:number])
    if as_csv:
        print(listing.as_csv(rows), end="")
    elif as_json:
        answer({"iteration": ranked.iteration, "found": rows})
    else:
        headers = ["completion", "slice", "", "answer", "solution", "VGR", "reward", "question"]
        cells = [
            [
                row["completion_id"],
                row["slice"],
                _SIGNS[row["right"]],
                _short(row["answer"] or "–"),
                _short(row["solution"]),
                digits(row["vgr"]),
                digits(row["reward"]),
                _short(row["question"]),
            ]
            for row in rows
        ]
        print_table(Table(headers, cells), {_SIGNS[True]: "green", _SIGNS[False]: "red"})


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _result(hit: Hit) -> dict[str, Any]:
    prompt = {name: hit.prompt[name] for name in ("group_id", "prompt_id", "slice", "problem", "solution")}
    place = {"shard": str(hit.shard), "row": hit.row, "images": hit.images}
    return {"iteration": hit.iteration, **hit.completion, "prompt": {**prompt, **place}}


def _show(hit: Hit) -> None:
    from dapo_stages.terminal.console import painted, tell
    from dapo_stages.terminal.safe_text import number, one_line, signed, visible

    one, prompt = hit.completion, hit.prompt
    sizes = ["unreadable" if size is None else f"{size[0]}×{size[1]}" for size in hit.images] or ["none"]
    slice_ = f", slice {one_line(prompt['slice'])}" if prompt["slice"] else ""
    about = f"(iteration {hit.iteration}, prompt {one_line(prompt['prompt_id'])}{slice_})"
    print(f"{painted(one_line(one['completion_id']), 'bold')}  {about}")
    tell(f"prompt     {hit.shard}, row {hit.row}")
    names = [f" {one_line(image['path'])}" if image["path"] else "" for image in prompt["images"] or [{"path": None}]]
    print(f"image      {', '.join(size + name for size, name in zip(sizes, names, strict=True))}")
    _print_images(hit)
    print("question   " + visible(prompt["problem"]).replace("\n", "\n           "))
    print(f"solution   {one_line(prompt['solution'])}")
    print(f"answer     {_answer(one)}")
    parts = ", ".join(f"{one_line(name)} {number(value, 2)}" for name, value in one["rewards"].items())
    print(f"reward     {number(one['reward'])} ({parts})")
    print(f"advantage  {signed(one['advantage'])}{_loss(one)}")
    print(f"VGR        {number(one['vgr'])}")
    print(f"finish     {one_line(one['finish_reason'])}, {len(one['tokens'])} tokens\n")
    _print_tokens(one)


def _answer(one: dict[str, Any]) -> str:
    """`✓ A, right (in <answer>)`, in green; in red if it is wrong."""
    from dapo_stages.reporting.iteration.samples import READ_FROM
    from dapo_stages.terminal.console import painted
    from dapo_stages.terminal.safe_text import one_line

    right = one["rewards"].get("accuracy") == 1
    if one["answer"] is not None:
        said = f" {one_line(one['answer'])},"
        how = f" ({READ_FROM.get(one['read_from'], one_line(one['read_from'] or ''))})"
    else:
        said, how = "", " (not recorded)" if one["read_from"] is None else " (no answer found)"
    text = f"{_SIGNS[right]}{said} {'right' if right else 'wrong'}{how}"
    return painted(text, "green" if right else "red")


def _print_images(hit: Hit) -> None:
    """Draw the images and where the completion looked, if the terminal has color."""
    from rich.console import Console

    from dapo_stages.reporting.iteration.terminal_images import blocks
    from dapo_stages.terminal.console import colorful
    from dapo_stages.terminal.safe_text import percent

    if not colorful(sys.stdout) or not hit.prompt["images"]:
        return
    console, look = Console(highlight=False), hit.look()
    for index, image in enumerate(hit.shown):
        if (text := blocks(image["bytes"], look.shades[index] if look else None, console.width)) is not None:
            console.print(text, end="", soft_wrap=True)
    if look:
        print(
            f"looked     {percent(look.seen)} of its attention was on the image; yellow: {look.times:.1f} times the "
            "average cell, unpainted: the average or less"
        )


def _loss(one: dict[str, Any]) -> str:
    from dapo_stages.terminal.safe_text import one_line

    if one["in_loss"] is not False:
        return ""
    return f" (not in the loss{': ' + one_line(one['why']) if one['why'] else ''})"


def _print_tokens(one: dict[str, Any]) -> None:
    """Colored on a terminal; elsewhere word(weight), or the plain text if there are no weights."""
    from dapo_stages.reporting.documents.markdown import weighted_tokens
    from dapo_stages.terminal.console import colorful
    from dapo_stages.terminal.safe_text import visible

    if colorful(sys.stdout):
        from rich.console import Console

        Console(highlight=False).print(colored(one["tokens"], one["token_weights"]))
    elif one["token_weights"]:
        print(weighted_tokens(one["tokens"], one["token_weights"]))
    else:
        print(visible(one["text"]))


def colored(tokens: list[str], weights: list[float]) -> Text:
    """Tokens on a background from white (lowest weight of the completion) to blue (highest), never parsed as markup."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    from dapo_stages.terminal.safe_text import visible

    text = Text()
    low, high = min(weights, default=1.0), max(weights, default=1.0)
    for index, token in enumerate(tokens):
        if index >= len(weights) or high <= low:
            text.append(visible(token))
            continue
        shade = (weights[index] - low) / (high - low)
        red, green, blue = (round(255 + shade * (end - 255)) for end in (11, 83, 148))
        ink = Color.parse("#ffffff" if shade > 0.5 else "#000000")
        text.append(visible(token), Style(color=ink, bgcolor=Color.from_rgb(red, green, blue)))
    return text
