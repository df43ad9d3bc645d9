"""What becomes of a prompt's images in the second pass: by hand, and the same wherever they are drawn."""

from __future__ import annotations

import io
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from support.prompts import image

from dapo_stages.config.attention import BlankKind
from dapo_stages.data.blanks import Blank, Blanks, ImageMarks, OtherImages, blanked, without_images
from dapo_stages.data.images import decode, encode
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row

MARKS = ImageMarks(start=90, image=91, end=92)


def row(group: str, *images: Image.Image) -> Row:
    shown = [{"bytes": encode(one), "path": None} for one in images]
    return {"group_id": group, "images": shown, "prompt_ids": [1, 90, 91, 91, 92, 2], "image_grid_thw": [[1, 4, 2]]}


def rollout(*sizes: tuple[int, int]) -> list[Row]:
    return [row(f"g{number}", image(*size, number)) for number, size in enumerate(sizes)]


def pixels(changed: Row) -> list[Any]:
    return [np.asarray(decode(one)) for one in changed["images"]]


def test_gray_is_what_evaluate_shows() -> None:
    given = row("g", image(30, 20, 0), image(7, 9, 1))
    assert Blanks(Blank(), 1)(given) == blanked(given)
    assert [(one.shape, one.min(), one.max()) for one in pixels(blanked(given))] == [
        ((20, 30, 3), 127, 127),
        ((9, 7, 3), 127, 127),
    ]


def test_patches_are_blackened_square_by_square_as_papo_does() -> None:
    """Its loop (verl/trainer/papo_utils.py), one draw per square from the left and the top, with our generator."""
    given, blank = row("g", image(40, 33, 0)), Blank("patches", 0.6, 14)
    (found,) = pixels(Blanks(blank, 5)(given, draw=2))
    (want,) = (np.array(one) for one in pixels(given))
    for candidate in range(1 << 9):  # 3 × 3 squares
        black = [(candidate >> place) & 1 for place in range(9)]
        tried = want.copy()
        for place, (y, x) in enumerate((y, x) for y in range(0, 33, 14) for x in range(0, 40, 14)):
            if black[place]:
                tried[y : min(y + 14, 33), x : min(x + 14, 40)] = 0
        if np.array_equal(tried, found):
            break
    else:
        pytest.fail("no choice of squares gives this image")
    assert 0 < sum(black) < 9


@pytest.mark.parametrize(("share", "least", "most"), [(0.6, 0.57, 0.63), (0.1, 0.08, 0.12), (1.0, 1.0, 1.0)])
def test_the_share_of_black_squares_is_the_one_asked_for(share: float, least: float, most: float) -> None:
    white = Image.new("RGB", (400, 400), "white")
    (found,) = pixels(Blanks(Blank("patches", share, 4), 0)(row("g", white)))
    assert least <= (found == 0).mean() <= most  # of 10 000; ± 6 standard deviations


def test_noise_has_the_size_and_uniform_channels() -> None:
    (found,) = pixels(Blanks(Blank("noise"), 0)(row("g", Image.new("RGB", (300, 200)))))
    assert found.shape == (200, 300, 3)
    counts = np.bincount(found.ravel(), minlength=256)
    assert counts.min() > 180_000 / 256 * 0.8 and counts.max() < 180_000 / 256 * 1.2


def test_removed_images_leave_no_token_and_no_mark() -> None:
    given = row("g", image(30, 20, 0))
    changed = Blanks(Blank("removed"), 0, MARKS)(given)
    assert (changed["prompt_ids"], changed["images"], changed["image_grid_thw"]) == ([1, 2], [], [])
    assert without_images([5, 90, 91, 92, 90, 91, 91, 92, 6], MARKS) == [5, 6]
    assert without_images([5, 91, 91, 6], MARKS) == [5, 6]  # a template without marks
    assert without_images([90, 92, 5, 90], MARKS) == [90, 92, 5, 90]  # marks without an image are not ours


def test_exchanged_images_are_of_other_prompts_and_fit() -> None:
    rows = rollout((30, 20), (20, 30), (28, 28), (30, 20))
    blanks = Blanks(Blank("exchanged"), 3, others=OtherImages(rows, "rollouts"))
    for given in rows:
        own, others = pixels(given)[0], [other for other in rows if other is not given]
        fitted = [np.asarray(decode(o["images"][0]).resize(own.shape[1::-1], 3)) for o in others]
        drawn = [pixels(blanks(given, draw))[0] for draw in range(3)]
        places = [next(n for n, one in enumerate(fitted) if np.array_equal(one, found)) for found in drawn]
        assert sorted(places) == [0, 1, 2]  # each of the others once before any comes again
        assert np.array_equal(pixels(blanks(given, 3))[0], drawn[0])


def test_several_images_become_as_many_different_ones() -> None:
    rows = [row("a", image(8, 8, 0), image(9, 9, 1))]
    rows += [row("b", image(8, 8, 2)), row("c", image(8, 8, 3)), row("d", image(8, 8, 0))]
    found = pixels(Blanks(Blank("exchanged"), 3, others=OtherImages(rows, "rollouts"))(rows[0]))
    want = {pixels(one)[0].tobytes() for one in rows[1:3]}  # d shows what a has itself
    assert found[1].shape == (9, 9, 3)
    assert found[0].tobytes() in want


def test_what_is_drawn_depends_on_seed_group_and_draw_but_not_on_order() -> None:
    rows = rollout(*[(12, 12)] * 12)
    for kind in get_args(BlankKind):
        forth, back = (
            Blanks(Blank(kind, patch=3), 7, MARKS, OtherImages(order, "rollouts")) for order in (rows, rows[::-1])
        )
        found = [forth(one) for one in rows]
        assert found[::-1] == [back(one) for one in rows[::-1]]
        if kind not in ("gray", "removed"):
            others = Blanks(Blank(kind, patch=3), 8, MARKS, OtherImages(rows, "rollouts"))
            assert found != [others(one) for one in rows]
            assert forth(rows[0], 1) != found[0]
            assert forth(rows[0] | {"group_id": "another"}) != found[0] or kind == "exchanged"


def test_without_images_there_is_nothing_to_change() -> None:
    given = row("g") | {"images": None}
    for kind in get_args(BlankKind):
        assert Blanks(Blank(kind), 0, MARKS, OtherImages([given], "rollouts"))(given) == given


def test_a_rollout_with_a_single_image_cannot_exchange_it() -> None:
    same = image(8, 8, 0)
    with pytest.raises(DataError, match="a prompt has the only image of the rollout"):
        OtherImages([row("a", same), row("b", same)], "rollouts")
    both = row("c", same, image(8, 8, 1))
    with pytest.raises(DataError, match="a prompt has all 2 images of the rollout"):
        OtherImages([row("a", same), both], "rollouts")


def test_images_are_kept_as_png() -> None:
    (found,) = Blanks(Blank("noise"), 0)(row("g", image(8, 8, 0)))["images"]
    with Image.open(io.BytesIO(found["bytes"])) as opened:
        assert (opened.format, opened.mode, found["path"]) == ("PNG", "RGB", None)
