from dreamgym.evaluate import Score
from dreamgym.fidelity_table import fidelity_table, fidelity_tables, ranking_table
from dreamgym.ranking import Ranking

MEASURED = {
    "code_accuracy_1": 0.91,
    "code_accuracy_25": 0.62,
    "code_nll_25": 1.234,
    "code_nll_marginal": 2.386,
    "recall_lost": 0.5,
    "recall_lost_15_25": 0.25,
    "recall_15_25": 0.375,
    "reward_ratio": 0.8125,
    "end_calibration_error": 0.214,
    "events_lost": 289.0,
    "events_won": 11.0,
}


def line(text, label):
    (found,) = [row for row in text.splitlines() if row.strip().startswith(label)]
    return found


def ranking(*means):
    scores = tuple(Score.of([mean, mean], [100, 100]) for mean in means)
    return Ranking.of(tuple(f"policy {index}" for index in range(len(means))), scores, scores).as_dict()


def test_numbers_stand_below_their_steps():
    text = fidelity_table(MEASURED)

    steps, accuracy = line(text, "at step of the dream"), line(text, "code accuracy")
    assert accuracy.split()[2:7] == ["0.910", "-", "-", "-", "0.620"]
    assert steps.index("25") + 2 == accuracy.index("0.620") + 5
    ranges, lost = line(text, "recall, by steps"), line(text, "rewards below 0")
    assert ranges.index("15-25") == lost.index("0.250")
    assert lost.endswith("of 289 that happened")
    assert line(text, "rewards of both signs").endswith("of 300 that happened")


def test_every_number_is_explained_and_what_is_good_stands_beside_it():
    text = fidelity_table(MEASURED)

    assert "2.386" in line(text, "-log p of a code, nats")
    assert line(text, "recall, steps 15-25").split()[3:6] == ["0.375", ">=", "0.75"]
    assert "0.812 0.8-1.2" in text
    assert len(max(text.splitlines(), key=len)) <= 140


def test_a_ranking_shows_every_policy_and_the_interval():
    text = ranking_table(ranking(-3, -2, -1))

    assert "Spearman 1.000, 95 % 1.00 to 1.00" in text
    assert line(text, "policy 1").split()[2:] == ["-2.00", "-0.02000", "-0.02000"]
    assert "2 real episodes and 2 dreams" in text


def test_a_ranking_of_equals_has_no_correlation():
    assert "Spearman -; " in ranking_table(ranking(1, 1, 1))


def test_what_could_not_be_measured_is_said():
    played = {"episodes": 4, "steps": 12}

    short = fidelity_tables({"held_out": played, "fidelity": {}})
    both = fidelity_tables({"held_out": played, "fidelity": MEASURED, "ranking": ranking(1, 2, 3)})

    assert "4 of these real episodes (12 steps)" in short and "shorter than the first frames" in short
    assert "code accuracy" in both and "Spearman" in both and "Spearman" not in short
