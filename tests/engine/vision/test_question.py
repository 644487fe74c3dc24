"""Which text a text-guided method reads."""

from __future__ import annotations

from types import SimpleNamespace

from thriftree.plugins.engine.vision.question import MOST, questions, says_something, special_ids

IMAGE, START, END, CLOSE, OPEN = 90, 91, 92, 98, 99
SPECIAL = {START, END, CLOSE, OPEN}
FRAME = (START, END)


def asked(*tokens: int) -> list[tuple[int, ...]]:
    return questions(tokens, IMAGE, SPECIAL, FRAME)


def test_the_text_after_the_image_up_to_the_end_of_its_turn() -> None:
    assert asked(OPEN, 1, START, IMAGE, END, 5, 6, CLOSE, 2, OPEN, 3) == [(5, 6)]


def test_an_image_at_the_end_of_its_turn_goes_by_what_leads_to_it() -> None:
    assert asked(OPEN, 5, 6, START, IMAGE, END, CLOSE, 2, OPEN, 3) == [(5, 6)]


def test_images_that_touch_share_their_question() -> None:
    assert asked(OPEN, START, IMAGE, END, START, IMAGE, END, 7, CLOSE) == [(7,), (7,)]


def test_text_between_images_is_the_first_ones() -> None:
    assert asked(OPEN, IMAGE, 4, IMAGE, 5, CLOSE) == [(4,), (5,)]


def test_a_later_turn_changes_nothing() -> None:
    first = (OPEN, IMAGE, 4, CLOSE)
    assert asked(*first, OPEN, 8, 9, CLOSE)[0] == asked(*first)[0] == (4,)


def test_no_text_in_the_turn() -> None:
    assert asked(OPEN, START, IMAGE, END, CLOSE) == [()]
    assert asked(1, 2, 3) == []


def test_long_texts_are_cut() -> None:
    assert len(asked(IMAGE, *[1] * (MOST + 9))[0]) == MOST


def test_marks_of_turns_are_special() -> None:
    marks = {257: SimpleNamespace(special=True), 300: SimpleNamespace(special=False)}
    assert special_ids(SimpleNamespace(all_special_ids=[256], added_tokens_decoder=marks)) == {256, 257}
    assert special_ids(SimpleNamespace(all_special_ids=[256])) == {256}


def test_a_template_alone_says_nothing() -> None:
    assert not any(says_something(text) for text in ("", "user\n", "\nASSISTANT:", " ?\n"))
    assert all(says_something(text) for text in ("user\nWhat is it?", "was?", "何ですか", "the user"))
