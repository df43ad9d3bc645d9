"""docs/results.md from planted result files, with figures worked by hand (planted.py)."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from study.planted import DESIGN, every_run, pilot, plant, result

from dapo_stages.errors import DataError
from pipelines.study.contrasts import mean_up_to
from pipelines.study.design import Name, next_rate
from pipelines.study.page import write
from pipelines.study.pilot import Pilot
from pipelines.study.result_files import Machine, read_results


def page(folder: Path) -> str:
    write(DESIGN, read_results(folder), folder.parent / "results.md")
    return (folder.parent / "results.md").read_text(encoding="utf-8")


def cells(text: str, *first: str) -> list[str]:
    """The cells after the first ones of the only row of a table that begins with these."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(first)} |"))
    return [cell.strip().replace("\\", "") for cell in line.strip("|").split("|")][len(first) :]


def part(text: str, heading: str) -> str:
    """A section up to the next heading."""
    return text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]


def test_the_answer_is_that_of_the_differences_by_seed(tmp_path: Path) -> None:
    answer = part(page(plant(tmp_path / "results", pilot() + every_run())), "## Answer")
    assert "a - uniform on `places`, prior-violating accuracy over the run: **+0.110 [+0.047, +0.173]**" in answer
    assert "**higher**. With the image blanked, a goes from 0.250 to 0.290, uniform from 0.250 to 0.290." in answer
    assert "n = 10: **higher**." in answer and "Holm's correction over these 2 together" in answer
    # Holm of .02 and 1: twice .02, and 1.
    assert cells(answer, "c", "places")[:4] == ["+0.100", "[+0.020, +0.180]", "0.020", "0.040"]
    assert cells(answer, "c", "places")[4:] == ["0.250 to 0.290", "1.00 ×", "higher"]
    assert cells(answer, "b", "places")[2:] == ["1.000", "1.000", "0.250 to 0.290", "1.00 ×", "no difference shown"]


def test_the_answer_says_what_a_scheme_costs(tmp_path: Path) -> None:
    runs = [
        # Half of the seeds with 7.5 seconds of an iteration instead of 5, the others with 10: 1.5 and 2 times as much.
        result(one.scheme, one.seed, 0.5, seconds={"rollout": dict.fromkeys(range(1, 9), 7.5 if one.seed % 2 else 10)})
        if one.scheme == "c"
        else one
        for one in every_run()
    ]
    assert cells(part(page(plant(tmp_path / "results", pilot() + runs)), "## Answer"), "c", "places")[-2] == "1.75 ×"


def test_a_table_of_dependence_is_linked_where_there_is_one(tmp_path: Path) -> None:
    folder = plant(tmp_path / "results", pilot())
    assert "dependence.md" not in page(folder)
    (folder / "places/dependence").mkdir(parents=True)
    (folder / "places/dependence/dependence.md").touch()
    assert "](results/places/dependence/dependence.md)" in page(folder)


def test_the_answer_is_drawn(tmp_path: Path) -> None:
    answer = part(page(plant(tmp_path / "results", pilot() + every_run())), "## Answer")
    assert "![Differences from uniform by scheme and task](results-differences.svg)" in answer
    svg = ET.fromstring((tmp_path / "results-differences.svg").read_text(encoding="utf-8"))
    of = {"s": "http://www.w3.org/2000/svg"}
    rows = {row.findall("s:text", of)[0].text: row for row in svg.findall("s:g", of)}
    assert [(name, row.get("class")) for name, row in rows.items()] == [("a", "higher"), ("b", "no"), ("c", "higher")]
    assert [row.findall("s:text", of)[1].text for row in rows.values()] == [
        "+0.110, higher (primary)",
        "+0.000, no difference shown",
        "+0.100, higher",
    ]
    dots = {name: float(row.find("s:circle", of).get("cx")) for name, row in rows.items()}  # type: ignore[union-attr, arg-type]
    zero = next(float(line.get("x1", "")) for line in svg.findall("s:line", of) if line.get("class") == "zero")
    # On one scale: b at 0, and a as far from it as .11 is in c's .1.
    assert dots["b"] == zero and dots["a"] - zero == pytest.approx(1.1 * (dots["c"] - zero), abs=0.2)


def test_everything_else_of_a_complete_study(tmp_path: Path) -> None:
    text = page(plant(tmp_path / "results", pilot() + every_run()))
    # 8 iterations of 5 seconds; from .1 to .4 in 20 seconds, to .6 in 20 more: (.25 + .5) / 2 of uniform.
    assert cells(part(text, "### Equal compute"), "uniform") == ["40", "0.375 ± 0.000", "–"]
    assert cells(part(text, "### By kind of question"), "a") == ["+0.110 [+0.047, +0.173]"]
    every = cells(text, "a-101")
    assert every == ["0.0003", "0.250", "0.290", "0.100", "0.700", "0.600", "0.300", "0.600", "16.0"]
    assert "Complete: 10 of 10 seeds. 40 runs. Machines: Abacus, 2 cores, 1 thread." in text
    drawn = (tmp_path / "results-places-violating.svg").read_text(encoding="utf-8")
    assert ET.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg" and "iteration 8: uniform 60.0%" in drawn


def test_the_pilot_is_shown_with_what_it_decides(tmp_path: Path) -> None:
    shown = part(page(plant(tmp_path / "results", pilot())), "### Pilot")
    assert cells(shown, "a") == ["0.510", "0.610", "0.510", "0.0003"]
    # √(.001 / 3) = .0183; ten seeds are enough for .05.
    assert "s = 0.018 (3 degrees of freedom)" in shown and "0.018 with 10 seeds, 0.014 with 15 seeds" in shown
    assert "there are 10 test seeds" in shown


def test_the_number_of_seeds_follows_the_spread() -> None:
    # Seeds of `b` that differ by d have squares d²/2; with the others' .0002, s = √((d²/2 + .0002) / 3).
    for d, number in ((0.11, 10), (0.14, 15), (0.17, 20), (0.5, 20)):
        rest = [one for one in pilot() if one.scheme != "b" or one.learning_rate != 0.0003]
        ends = [result("b", seed, 0.5 + d * (seed - 1), pilot=True) for seed in (1, 2)]
        assert Pilot(DESIGN, "places", rest + ends).seeds == number


def test_a_best_rate_at_the_edge_asks_for_further_runs() -> None:
    high = {("a", 0.001): 0.7}
    wanted = [Name("places", seed, "a", 0.003) for seed in (1, 2)]
    assert Pilot(DESIGN, "places", pilot(high)).missing == wanted
    further = [result("a", seed, 0.6, pilot=True, learning_rate=0.003) for seed in (1, 2)]
    settled = Pilot(DESIGN, "places", pilot(high) + further)
    assert not settled.missing and settled.tried["a"].best == 0.001
    assert [one.rate for one in Pilot(DESIGN, "places", pilot({("c", 0.0001): 0.7})).missing] == [0.00003] * 2
    some = Pilot(DESIGN, "places", pilot()[1:])
    (missing,) = some.missing  # nothing is chosen meanwhile, and half a rate is not compared
    assert some.spread is None and missing.rate not in some.tried[missing.scheme].measures


@pytest.mark.parametrize(
    ("rates", "best", "further"),
    [
        ([1e-4, 3e-4, 1e-3], 1e-3, 3e-3),
        ([1e-4, 3e-4, 1e-3, 3e-3], 3e-3, 1e-2),
        ([1e-4, 3e-4, 1e-3], 1e-4, 3e-5),
        ([3e-5, 1e-4, 3e-4, 1e-3], 3e-5, 1e-5),
        ([1e-4, 3e-4, 1e-3], 3e-4, None),
    ],
)
def test_the_grid_of_learning_rates(rates: list[float], best: float, further: float | None) -> None:
    assert next_rate(rates, best) == further


def test_an_incomplete_study_claims_nothing_and_then_shows_the_same(tmp_path: Path) -> None:
    at_once = page(plant(tmp_path / "one/results", pilot() + every_run()))
    other = tmp_path / "other/results"
    plant(other, pilot() + every_run()[:13])  # three seeds and a run of the fourth
    text = page(other)
    assert "The study is not complete." in text and "Complete: 3 of 10 seeds. 13 runs." in text
    assert "p, Holm" not in text and "higher" not in text and "Equal compute" not in text and "| a-101 |" not in text
    plant(other, every_run()[:12:-1])
    assert page(other) == at_once


def test_seeds_of_two_machines_are_joined(tmp_path: Path) -> None:
    elsewhere = {"machine": Machine(processor="Pascaline", cores=8, threads=2, gpus=("H100", "H100"))}
    runs = [one.model_copy(update=elsewhere if one.seed > 105 else {}) for one in every_run()]
    text = page(plant(tmp_path / "results", pilot() + runs))
    assert "**+0.110 [+0.047, +0.173]**" in text
    assert "Machines: Abacus, 2 cores, 1 thread; Pascaline, 8 cores, 2 threads, 2 × H100." in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start": "another"}, "differ in their starting policies: places/a-101.json has start of 101, "),
        ({"data": "another"}, "differ in their questions"),
        ({"machine": Machine(processor="Pascaline", cores=2, threads=1)}, "machines: places/a-101.json has Abacus, "),
        ({"versions": {"python": "3.12.1", "torch": "2.13.0"}}, "differ in their versions"),
        ({"evaluated": [0, 8], "curves": {"all": {0: 0.3, 8: 0.5}}}, "differ in their evaluations"),
    ],
)
def test_a_seed_of_two_kinds_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    folder = plant(tmp_path, [result("a", 101, 0.5), result("b", 101, 0.5).model_copy(update=change)])
    with pytest.raises(DataError, match=said):
        read_results(folder)


def test_a_file_that_is_another_runs_or_none_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, [result("a", 101, 0.5)])
    (tmp_path / "places/a-101.json").rename(tmp_path / "places/a-102.json")
    with pytest.raises(DataError, match=r"a-102\.json: holds the result of places/a-101\.json"):
        read_results(tmp_path)
    (tmp_path / "places/a-102.json").write_text(json.dumps({"task": "places"}))
    with pytest.raises(DataError, match=r"a-102\.json: not a valid result file"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"curves": {}}, "curves.all: expected values after iterations [0, 4, 8]"),
        ({"curves": {"all": {0: 0.3, 4: 0.5}}}, "curves.all: expected"),
        ({"curves": {"all": {0: 0.3, 4: 0.5, 8: 0.5}, "violating": {0: 0.1}}}, "curves.violating: expected"),
        ({"curves": {}, "broke_down": "the log-ratio is 9"}, "curves.all: expected values after iterations [0]"),
        ({"evaluated": [0]}, "evaluated"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"machine": {"processor": "Abacus"}}, "machine.cores"),
    ],
)
def test_a_file_that_no_table_could_be_made_from_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    values = result("a", 101, 0.5).model_dump(mode="json") | change
    (tmp_path / "places").mkdir()
    (tmp_path / "places/a-101.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"not a valid result file \(.*{re.escape(said)}.*Restore the file"):
        read_results(tmp_path)


def test_text_that_was_sent_in_is_no_markup(tmp_path: Path) -> None:
    machine = Machine(processor="<img src=x> [a](b)", cores=2, threads=1)
    sent = result("a", 101, 0.5).model_copy(update={"task": "<b>", "machine": machine})
    text = page(plant(tmp_path / "results", [sent]))
    assert "## \\<b\\>" in text and "\\<img src=x\\> \\[a\\](b), 2 cores" in text


def test_a_run_that_broke_down_counts_with_its_last_evaluation(tmp_path: Path) -> None:
    curves = {"all": {0: 0.3, 4: 0.4}, "violating": {0: 0.1, 4: 0.2}, "blank": {0: 0.25}}
    broken = result("a", 101, 0.5, curves=curves, broke_down="the log-ratio is 9")
    assert broken.measure() == pytest.approx(0.2) and broken.curve("violating")[8] == 0.2
    assert broken.at("blank", end=True) == 0.25
    assert "a-101 (the log-ratio is 9)" in page(plant(tmp_path / "results", [broken]))


def test_curves_over_cost_worked_by_hand() -> None:
    points = [(0.0, 0.1), (10.0, 0.5), (20.0, 0.5)]
    assert mean_up_to(points, 15.0) == pytest.approx((10 * 0.3 + 5 * 0.5) / 15)
    assert mean_up_to(points, 5.0) == pytest.approx(0.2)  # .1 to .3
    assert mean_up_to(points, 40.0) == pytest.approx((3 + 30 * 0.5) / 40)  # the last value is kept


def test_a_model_of_ones_own_has_a_section_of_its_own(tmp_path: Path) -> None:
    own = [
        result(
            scheme, seed, 0.5 + difference, task="mine", evaluated=[0, 8], curves={"all": {0: 0.3, 8: 0.5 + difference}}
        )
        for seed in (1, 2, 3)
        for scheme, difference in (("uniform", 0.0), ("a", 0.1 * seed))
    ]
    section = page(plant(tmp_path / "results", own)).split("## mine")[1]
    # .1, .2, .3: mean .2, half 4.3027 · .1 / √3 = .2484
    assert cells(section, "a") == ["3", "–", "–", "0.700 ± 0.100", "+0.200 [-0.048, +0.448]"]
