import numpy as np
import pytest
from PIL import Image

from dreamgym.errors import InvalidInputError
from dreamgym.evaluate import Score
from dreamgym.plots import plot_fidelity, plot_scores


def rounds(*means):
    return [Score.of([mean - 1, mean, mean + 1], [1, 1, 1]).as_dict() for mean in means]


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB")).astype(int)


def pixels(image, colour):
    return int((np.abs(image - colour).max(-1) < 12).sum())


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)

MEASURED = {
    "code_accuracy": [0.9, 0.8, 0.7],
    "code_accuracy_1": 0.9,
    "recall_lost": 0.6,
    "recall_lost_0_5": 0.9,
    "recall_lost_5_10": 0.5,
    "recall_won": 0.1,
    "recall_won_5_10": 0.1,
}


def test_every_run_is_drawn_beside_the_random_score(tmp_path):
    one = picture(plot_scores(tmp_path / "new" / "one.png", {"seed 0": rounds(-20, -10, 0)}))
    two = picture(
        plot_scores(tmp_path / "two.png", {"seed 0": rounds(-20, -10, 0), "seed 1": rounds(-20, -15)}, random=-20.4)
    )

    assert pixels(one, BLUE) > 100 and pixels(one, ORANGE) == 0
    assert pixels(two, BLUE) > 100 and pixels(two, ORANGE) > 100
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["one.png"]


def test_scores_are_drawn_over_real_steps_and_beside_published_ones(tmp_path):
    by_round = picture(plot_scores(tmp_path / "a.png", {"run": rounds(1, 2)}))
    by_steps = picture(plot_scores(tmp_path / "b.png", {"run": rounds(1, 2)}, interactions=[100, 5000]))
    published = picture(plot_scores(tmp_path / "c.png", {"run": rounds(1, 2)}, published=11.8, title="Pong"))

    assert (by_round != by_steps).any()
    assert (by_round != published).any()


def test_a_run_of_one_round_shows_its_interval(tmp_path):
    wide = picture(plot_scores(tmp_path / "a.png", {"run": rounds(1)}))

    assert pixels(wide, BLUE) > 20


def test_scores_without_a_round_or_without_their_steps_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="runs"):
        plot_scores(tmp_path / "a.png", {})
    with pytest.raises(InvalidInputError, match="runs"):
        plot_scores(tmp_path / "a.png", {"run": []})
    with pytest.raises(InvalidInputError, match="interactions"):
        plot_scores(tmp_path / "a.png", {"run": rounds(1, 2)}, interactions=[100])
    with pytest.raises(InvalidInputError, match="png"):
        plot_scores(tmp_path / "a.svg", {"run": rounds(1)})


def test_fidelity_is_drawn_by_step_for_every_measurement(tmp_path):
    one = picture(plot_fidelity(tmp_path / "one.png", {"round 1": MEASURED}))
    two = picture(plot_fidelity(tmp_path / "two.png", {"round 1": MEASURED, "round 2": MEASURED}, title="Pong"))

    left, right = np.array_split(one, 2, axis=1)
    assert pixels(left, BLUE) > 50 and pixels(right, BLUE) > 50
    assert pixels(one, ORANGE) == 0 < pixels(two, ORANGE)


def test_fidelity_without_events_is_drawn_without_recall(tmp_path):
    image = picture(plot_fidelity(tmp_path / "one.png", {"round 1": {"code_accuracy": [0.9, 0.8]}}))

    assert pixels(np.array_split(image, 2, axis=1)[1], BLUE) == 0


def test_no_fidelity_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="measured"):
        plot_fidelity(tmp_path / "one.png", {})
