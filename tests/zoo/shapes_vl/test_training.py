"""The recipe: it learns, it can be cut, and what it saves is a checkpoint of the right shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thriftree.zoo import cache
from thriftree.zoo.cpu_wheels import repair
from thriftree.zoo.shapes_vl import lessons, make, pool, save, words
from thriftree.zoo.shapes_vl.losses import answer_logits
from thriftree.zoo.shapes_vl.scenes import CHARACTERS, COLOURS, SHAPES
from thriftree.zoo.shapes_vl.timetable import Timetable
from thriftree.zoo.shapes_vl.train import Course, Recipe

COLOURS_OF = ("", *COLOURS)
WHAT = ("", *SHAPES, *CHARACTERS)
SMALL = Recipe(scenes=4, see_steps=16, see_batch=4, answer_steps=24, answer_batch=4, each=4)


@pytest.fixture(autouse=True, scope="module")
def mended() -> None:
    repair()


def quiet(line: str) -> None:
    pass


def test_both_losses_fall(tmp_path: Path) -> None:
    course = Course(SMALL, tmp_path / "notebook", quiet)
    course.once()
    seen = course.losses[0]
    while course.part == "seeing":
        course.once()
    course.once()
    said = course.losses[1]
    while course.step < course.steps:
        course.once()
    assert course.losses[0] < 0.8 * seen
    assert course.losses[1] < 0.8 * said


def test_a_cut_course_ends_where_an_uncut_one_does(tmp_path: Path) -> None:
    recipe = replace(SMALL, see_steps=3, answer_steps=3)
    whole = Course(recipe, tmp_path / "whole", quiet)
    assert whole.run()
    for step in range(whole.steps):
        part = Course(recipe, tmp_path / "cut", quiet)
        assert part.step == step
        part.once()
        part.save()
    for name, weight in whole.model.state_dict().items():
        assert (part.model.state_dict()[name] == weight).all(), name
    with pytest.raises(cache.ZooError, match="another recipe"):
        Course(SMALL, tmp_path / "cut", quiet)
    (tmp_path / "cut").write_bytes(b"no notebook")
    with pytest.raises(cache.ZooError, match="is damaged"):
        Course(recipe, tmp_path / "cut", quiet)


def test_interrupted_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(SMALL, see_steps=2, answer_steps=2)
    plain = Course._answer

    def interrupted(self: Course) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Course, "_answer", interrupted)
    with pytest.raises(cache.ZooError, match="interrupted at step 2 of 4"):
        make.make(tmp_path / "model", recipe, quiet)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(Course, "_answer", plain)
    lines: list[str] = []
    folder = make.make(tmp_path / "model", recipe, lines.append)
    assert any("goes on at step 2" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]
    assert make.make(folder, recipe, quiet) == folder


def test_a_question_sees_its_picture_and_itself_only() -> None:
    """The packed row gives each question the logits that it has alone."""
    import torch

    course = Course(SMALL, Path("never written"), quiet)
    writer = lessons.Writer(course.tokenizer)
    drawn = pool.draw(2)
    batch = writer.batch(drawn.scenes, drawn.shown, 3, np.random.default_rng(0), 0.3, chained=0.0)
    features = torch.randn(2, 145, 128)
    with torch.no_grad():
        together, label = answer_logits(course.model, features, batch.on("cpu"))
        start = int((batch.block[0] == -1).sum())
        where = 0
        for row in range(2):
            for number in range(3):
                mine = batch.block[row] == number
                alone = lessons.Batch(
                    *(
                        np.concatenate([part[row, :start], part[row][mine]])[None]
                        for part in (batch.ids, batch.position, batch.block, batch.label)
                    ),
                    rows=batch.rows[row : row + 1],
                    chained=batch.chained[row : row + 1],
                )
                assert (alone.position[0] == np.arange(alone.position.shape[1])).all()
                logits, expected = answer_logits(course.model, features[row : row + 1], alone.on("cpu"))
                count = len(expected)
                assert (label[where : where + count] == expected).all()
                assert (together[where : where + count] - logits).abs().max() < 1e-5
                where += count
    assert where == len(label)


def test_dropped_rows_are_ground_only() -> None:
    shown = pool.draw(6).shown
    for share in (0.0, 0.4, 1.0):
        rows = lessons.visible(shown, share, np.random.default_rng(1))
        for row, one in zip(rows, shown, strict=True):
            assert (np.diff(row) > 0).all()
            assert set(np.flatnonzero(one)) <= set(row)
    assert rows.shape[1] == 144


def test_the_template_and_the_lessons_agree() -> None:
    tokenizer = words.tokenizer()
    writer = lessons.Writer(tokenizer)
    drawn = pool.draw(4)
    batch = writer.batch(drawn.scenes[3:], drawn.shown[3:], 2, np.random.default_rng(0), 1.0, chained=1.0)
    texts = [tokenizer.decode([t for t in batch.ids[0][batch.block[0] == n] if t > 262 or t < 256]) for n in (0, 1)]
    ids = [list(batch.ids[0][batch.block[0] == n]) for n in (0, 1)]
    questions = [text.split("?")[0] + "?" for text in texts]
    answers = [text.split("?")[1] for text in texts]
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": questions[0]}]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": questions[1]},
        {"role": "assistant", "content": answers[1]},
    ]
    text = tokenizer.apply_chat_template(talk, tokenize=False).replace("<image>", "<image>" * 144)
    assert tokenizer(text, add_special_tokens=False).input_ids == [
        *batch.ids[0][batch.block[0] == -1],
        *ids[0],
        *ids[1],
    ]
    asked = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith(f"{questions[0]}<|assistant|>")
    assert tokenizer.decode(tokenizer("Größe: 3 €?").input_ids) == "Größe: 3 €?"


def test_many_scenes_are_drawn_by_several_processes() -> None:
    count = pool._INLINE + 1
    drawn = pool.draw(count)
    assert [scene.seed for scene in drawn.scenes] == list(range(count)) and len(drawn.shown) == count
    for seed in (0, pool._PART, count - 1):
        alone = lessons.lesson(seed)
        assert (drawn.labels.pixels[seed].numpy() == alone.pixels).all()
        assert (drawn.labels.patches["where"][seed].numpy() == alone.patches["where"]).all()


def test_questions_written_ahead_are_those_of_the_step() -> None:
    """By other processes, and from the middle on, as on a GPU."""
    recipe = replace(SMALL, see_steps=2, answer_steps=4)
    course = Course(recipe, Path("never written"), quiet)
    table = Timetable(recipe, pool.draw(recipe.scenes), course.writer)
    ahead = list(table.from_step(1, beside=True))
    assert len(ahead) == 5 and ahead[0][1] is None
    for step, (rows, written) in enumerate(ahead, 1):
        expected, questions = table[step]
        assert (rows == expected).all()
        if written is not None and questions is not None:
            assert (written.ids == questions.ids).all() and (written.rows == questions.rows).all()
    assert [written is None for _, written in ahead] == [True, False, False, False, False]


def test_names_of_weights() -> None:
    assert save.renamed("model.vision_tower.embeddings.class_embedding").startswith("vision_tower.vision_model.embed")
    assert save.renamed("lm_head.weight") == "language_model.lm_head.weight"
    with pytest.raises(ValueError, match=r"no LLaVA-1\.5 name for heads"):
        save.renamed("heads.what.0.weight")


def test_tokens_are_pulled_towards_the_words_for_what_they_show() -> None:
    """The loss is that of guessing for an untrained model, and near none where each token is its own word."""
    import torch

    course = Course(SMALL, Path("never written"), quiet)
    some = pool.draw(4).labels
    features = torch.randn(4, 145, 128)
    guessing = 2 * (np.log(len(COLOURS)) + np.log(len(SHAPES))) + np.log(len(CHARACTERS))
    with torch.no_grad():
        assert abs(float(course.naming.loss(course.model, features, some)) - guessing) < 0.1
    shown = torch.zeros(4, 145, 192)
    embedded, said = course.model.model.language_model.embed_tokens.weight, course.model.lm_head.weight
    with torch.no_grad():
        for row in range(4):
            labels = zip(some.patches["what"][row].tolist(), some.patches["colour"][row].tolist(), strict=True)
            for patch, (what, colour) in enumerate(labels):
                names = [word for word, has in ((COLOURS_OF[colour], colour), (WHAT[what], what)) if has]
                for word in names:
                    for table, text in ((embedded, f" {word}"), (said, word)):
                        shown[row, patch + 1] += 2000 * table[course.writer.ids(text)[0]]
        course.model.model.multi_modal_projector = torch.nn.Identity()
        assert float(course.naming.loss(course.model, shown, some)) < 0.1
