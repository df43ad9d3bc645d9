"""The task `places`: its questions, solutions and captions agree with what the pixels show."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from support.commands import ROOT

from dapo_stages.config import load_config
from dapo_stages.data.embedded import places
from dapo_stages.data.embedded.questions import Question
from dapo_stages.data.embedded.tasks import captions
from dapo_stages.errors import ConfigError

MANY = [places.question(5, index) for index in range(600)]
PLACES = ("top left", "top right", "bottom left", "bottom right")


def colors_of(image: Any) -> np.ndarray:
    """Colors as they look, not as they were drawn: `red` … for each pixel, "" for gray and black: [height, width]."""
    pixels = np.asarray(image, dtype=int)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    high = pixels.max(-1)
    names = np.select(
        [
            (high - pixels.min(-1)) <= 70,
            (blue == high),
            (np.minimum(red, green) - blue > 70) & (abs(red - green) < 85),
            (red == high),
        ],
        ["", "blue", "yellow", "red"],
        "green",
    )
    return np.asarray(names)


def cells(image: Any) -> dict[str, str]:
    """Place -> color of the object there, by pixels; empty cells are left out."""
    colors = colors_of(image)
    found: dict[str, str] = {}
    for number, place in enumerate(PLACES):
        row, column = divmod(number, 2)
        seen = colors[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28]
        names, counts = np.unique(seen[seen != ""], return_counts=True)
        if counts.sum() > 40:
            assert counts.max() > 0.8 * counts.sum(), "an object reaches into another cell"
            found[place] = str(names[counts.argmax()])
    return found


def read_off(asked: Question) -> str:
    """The answer to a question, from its wording and the pixels of its image."""
    shown, text = cells(asked.image), asked.problem.partition("\n")[0]
    place = next((place for place in PLACES if place in text), None)
    if place is not None:
        return shown[place]
    colour = next(word for word in ("red", "green", "blue", "yellow") if f" {word} " in text)
    if text.startswith(("How many", "Count")):
        return ("none", "one", "two", "three", "four")[list(shown.values()).count(colour)]
    (at,) = (place for place, name in shown.items() if name == colour)
    if "beside" in text:
        row, column = divmod(PLACES.index(at), 2)
        return shown[PLACES[row * 2 + 1 - column]]
    return at


def test_the_image_gives_the_answer_to_every_question() -> None:
    for asked in MANY:
        assert read_off(asked) == asked.answer, asked.problem
        assert f"{asked.solution}. {asked.answer}" in asked.problem.splitlines()


def test_what_a_right_completion_says_is_to_be_seen() -> None:
    beside = [asked for asked in MANY if asked.kind == "beside"]
    assert len(beside) > 100
    for asked in beside:
        said = re.search(r": (\w+) (\w+ \w+)\. (\w+ \w+) (\w+)\. So", asked.completion(asked.answer, 0))
        shown = cells(asked.image)
        assert said and shown[said[2]] == said[1] and shown[said[3]] == said[4] == asked.answer


def test_captions_say_what_is_at_each_place_and_where_each_color_is() -> None:
    both = [places.caption(5, index) for index in range(200)]
    for caption in both:
        said = caption.completion.removesuffix(".").split(". ")
        shown = cells(caption.image)
        if caption.problem == "What is at each place?":
            assert sorted(said) == sorted(f"{place} {shown.get(place, 'nothing')}" for place in PLACES)
        else:
            assert caption.problem == "Where is each colour?"
            assert sorted(said) == sorted(f"{colour} {place}" for place, colour in shown.items())
    assert 70 < sum(caption.problem.startswith("What") for caption in both) < 130
    orders = {tuple(re.findall("top left|top right|bottom left|bottom right", c.completion)) for c in both}
    assert len(orders) > 24  # all orders of four places, and those of fewer


def test_a_dark_frame_of_two_pixels_is_round_every_image() -> None:
    for image in (MANY[0].image, MANY[1].image, places.caption(5, 0).image):
        pixels = np.asarray(image)
        inner = pixels[2:-2, 2:-2]
        assert pixels.shape == (56, 56, 3) and pixels.sum() == inner.sum()
        assert inner.reshape(-1, 3).sum(1).min() > 0


def test_words_say_nothing_about_the_answer() -> None:
    shares = {kind: np.mean([q.answer == q.usual for q in MANY if q.kind == kind]) for kind in places.USUAL}
    assert all(abs(shares[kind] - 1 / 4) < 0.12 for kind in ("at", "place", "count"))
    assert abs(shares["beside"] - 1 / 3) < 0.12  # no color is there twice, so three are left
    violating = np.mean([asked.slice.startswith("prior-violating") for asked in MANY])
    assert abs(violating - (3 * 3 / 4 + 2 / 3) / 4) < 0.06
    assert {asked.slice.partition(", ")[2] for asked in MANY} == {"at", "place", "count", "beside"}


def test_a_bias_makes_the_usual_answer_as_frequent_as_it_says() -> None:
    drawn = [places.question(5, index, biased=0.8) for index in range(400)]
    assert abs(np.mean([asked.slice.startswith("prior-consistent") for asked in drawn]) - 0.8) < 0.07
    assert all(read_off(asked) == asked.answer for asked in drawn[:100])


def test_a_habit_is_another_answer_for_every_subject() -> None:
    for kind, usual in places.USUAL.items():
        assert sorted(usual.values()) == sorted(set(usual.values())) and len(usual) == 4
        assert all(usual[subject] in places.options(kind, subject) for subject in usual)


def test_what_does_not_fit_the_task_is_refused() -> None:
    file = ROOT / "pipelines/places.yaml"
    with pytest.raises(ConfigError, match=r"data\.synthetic: shuffled is true, but the options of task places have a"):
        load_config(file, ["data.synthetic.shuffled=true"])
    with pytest.raises(ConfigError, match=r"warm_up\.captions is 0\.5, but task colours has no captions"):
        load_config(file, ["data.synthetic.task=colours", "warm_up.captions=0.5"])
    with pytest.raises(ValueError, match="fixed order"):
        places.question(1, 1, shuffled=True)
    assert captions("places") is places.caption and captions("colours") is None
