"""One label far outside the scale is refused, and honest scales are not."""

import pytest
from small_channels import write

from lorry.config import PairOptions, TrainConfig
from lorry.data.pairs import read_channel, read_splits
from lorry.errors import UserError


def channel(folder, labels):
    rows = [(f"query {row // 5}", f"title {row}", label) for row, label in enumerate(labels)]
    return write(folder, pairs_csv=rows)


def refused(folder, **options):
    with pytest.raises(UserError) as error:
        read_channel(folder, PairOptions(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


BINARY, FIVE, MEANS = (
    ["0", "1"] * 72,
    ["0", "1", "2", "3", "4", "5"] * 25,
    ["1", "1.33", "1.67", "2", "2.33", "2.67", "3"] * 20,
)
HUNDRED = [str(number) for number in range(101)]


@pytest.mark.parametrize(
    ("others", "outlier", "rest"),
    [
        (BINARY, "11", "0 to 1"), (BINARY, "-999", "0 to 1"), (["-1", "1"] * 72, "11", "-1 to 1"),
        (FIVE, "-999", "0 to 5"), (FIVE, "99", "0 to 5"), (FIVE, "33", "0 to 5"),
        (MEANS, "23", "1 to 3"), (MEANS, "267", "1 to 3"), (MEANS, "-1000", "1 to 3"),
        (HUNDRED * 2, "-999", "0 to 100"), (["0", "1", "2", "3"] * 5, "33", "0 to 3"),
        (["0", "1"] * 5, "5", "0 to 1"), ([*["0", "1"] * 4, "0"], "11", "0 to 1"),
    ],
)  # fmt: skip
def test_a_label_far_from_all_others_is_refused_with_its_line(tmp_path, others, outlier, rest):
    said = refused(channel(tmp_path, [*others[:7], outlier, *others[7:]]))
    assert f"pairs.csv line 9: the label '{outlier}' is far from nearly all others, {rest}" in said
    shown = ",".join(f"{label}={label}" for label in sorted({*others, outlier}, key=float))
    end = f": --label_map{'=' if shown[0] == '-' else ' '}{shown}" if others[:101] != HUNDRED else "judged the pair."
    assert said.endswith(end)


@pytest.mark.parametrize(
    ("others", "outliers"),
    [
        (["0", "1"] * 71, ["11"] * 2), (["0", "1"] * 71, ["11"] * 7), (["0", "1"] * 71, ["-999"] * 7),
        (["0", "1"] * 71, ["3"] * 7), (["0", "1"] * 71, ["-2"] * 3), (["-1", "1"] * 71, ["5"] * 7),
        (["1", "2", "3"] * 20, ["9"]), (["1", "2", "3"] * 20, ["9"] * 3), (["0.1", "0.2", "0.3"] * 20, ["0.9"]),
        (FIVE, ["99"] * 3), (FIVE, ["-999"] * 2), (["0", "1"] * 30, ["3"]), (["0", "1"] * 71, ["11", "99"]),
        (["0"] * 600 + ["1"] * 400, ["11"] * 50), (["0", "1"] * 30, ["2", "11"]),
    ],
)  # fmt: skip
def test_a_few_labels_far_from_all_others_are_refused_as_well(tmp_path, others, outliers):
    said = refused(channel(tmp_path, [*others, *outliers]))
    assert "is far from nearly all others" in said
    assert f"the label '{outliers[0]}'" in said or f"the label '{outliers[-1]}'" in said


@pytest.mark.parametrize(
    ("others", "outliers", "said"),
    [
        (BINARY, ["2"], "'2' may be a mistake: only 1 of 145 rows has it, and nearly all others are 0 and 1."),
        (BINARY, ["-1"], "'-1' may be a mistake: only 1 of 145 rows has it, and nearly all others are 0 and 1."),
        (["0", "1"] * 500, ["-1"] * 8, "'-1' may be a mistake: only 8 of 1,008 rows have it, and nearly all others"),
        (["-1", "1"] * 72, ["2"], "only 1 of 145 rows has it, and nearly all others are -1 and 1."),
        (["0", "1"] * 300, ["2", "4"], "'2' may be a mistake: only 1 of 602 rows has it"),
        (["true", "false"] * 30, ["2"], "give the grade of every label: --label_map false=0,true=1,2=2"),
        (["0"] * 600 + ["1"], ["-0.1"], "only 1 of 602 rows has it, and nearly all others are 0."),
        (["0", "1"] * 9, ["1"], None), (["0", "1"] * 10, ["2"], "nearly all others are 0 and 1"),
    ],
)  # fmt: skip
def test_a_number_that_is_only_very_rare_is_not_called_far(tmp_path, others, outliers, said):
    folder = channel(tmp_path, [*others, *outliers])
    if said:
        message = refused(folder)
        assert said in message
        assert "is far from" not in message
    else:
        read_channel(folder, PairOptions())


@pytest.mark.parametrize(
    ("others", "high", "said"),
    [
        (HUNDRED * 2, ["1e6"], "csv line 204: the label '1e6' is far from nearly all others, 0 to 100; one very "),
        ([str(1 + 400 // row) for row in range(4, 60)] * 5, ["380", "9000"], "the label '9000' is far from"),
        (["0", "0.01", "0.02"] * 300 + [f"0.0{number}" for number in range(3, 30)], ["1.0"] * 4, "the label '1.0' is"),
    ],
)  # fmt: skip
def test_the_long_tail_of_many_numbers_is_read_and_told_of(tmp_path, caplog, others, high, said):
    """No label_map can name so many labels, and clicks are like that."""
    (pairs,) = read_channel(channel(tmp_path, [*others, *high]), PairOptions()).values()
    assert len(pairs) == len(others) + len(high)
    (told,) = [message for message in caplog.messages if "makes all others small" in message]
    assert said in told
    assert told.endswith("cap it, or put the numbers into a few grades")


@pytest.mark.parametrize("number", ["1e39", "-1e39", "1e400", "9" * 400, "3.5e38"])
@pytest.mark.parametrize("others", [BINARY, FIVE, ["7"]])
def test_a_number_beyond_float32_is_refused(tmp_path, number, others):
    said = refused(channel(tmp_path, [number, *others]))
    assert "pairs.csv line 2: the label" in said
    assert "is a larger number than Lorry can compute with" in said
    assert "--label_map" not in said  # which has no such numbers
    assert len(said) < 500


@pytest.mark.parametrize(
    "labels",
    [
        BINARY, ["-1", "1"] * 72, FIVE, MEANS, HUNDRED, ["3"] * 200, ["0", "50", "100"] * 40, ["0", "1", "11"],
        ["0"] * 500 + ["1"] * 3, ["1"] * 500 + ["0"], ["0"] * 500 + ["100"], ["0", "1"] * 72 + ["0.5"],
        ["0"] * 400 + ["1"] * 80 + ["2"] * 16 + ["3"] * 5, ["1"] * 300 + ["2", "3", "4", "5"],
        ["5"] * 300 + ["4", "3", "2", "1"], ["0", "1", "3", "7", "15"] * 30, ["-2", "-1", "0", "1", "2"] * 30,
        ["0", "0.5", "1"] * 50, [f"{number / 997:.4f}" for number in range(997)], ["0", "1", "2"] * 40 + ["x"],
        ["0", "10", "20", "30"] * 30 + ["100"], ["E", "S", "C", "I"] * 40, ["0", "1"] * 5 + ["2"],
        ["0", "1"] * 4 + ["11"], ["0", "1"] * 60 + ["2"] * 3, ["0", "1"] * 60 + ["-1"] * 3,
        ["0"] * 800 + ["1"] * 150 + ["2"] * 40 + ["3"] * 10, ["0"] * 700 + ["1"] * 270 + ["2"] * 30,
        ["0"] * 700 + ["1"] * 293 + ["2"] * 4 + ["3"] * 3, ["0"] * 800 + ["1"] * 160 + ["3"] * 30 + ["7"] * 8 + ["15"],
        ["0", "1"] * 60 + ["3"] * 8, ["0", "1"] * 60 + ["2", "3"], ["1", "2", "3"] * 20 + ["8"],
        ["-1", "1"] * 60 + ["2", "3"], ["-1", "0", "1"] * 60 + ["2"], ["0"] * 900 + ["1"] * 95 + ["2"] * 5,
        ["0", "1"] * 500 + ["2"] * 8, ["0", "1"] * 30 + ["2"] * 2, ["-1", "1"] * 500 + ["2"] * 2,
        ["4", "5"] * 20 + ["1"], ["5"] * 700 + ["4"] * 295 + ["0"] * 5, ["4.5", "5", "4"] * 100 + ["1"] * 2,
        [str(number) for number in range(80, 101)] * 40 + ["0"] * 5, ["0.8", "0.85", "0.9"] * 100 + ["0.0"] * 2,
    ],
)  # fmt: skip
def test_honest_scales_are_read(tmp_path, labels):
    read_channel(channel(tmp_path, labels), PairOptions())


def test_a_label_map_says_that_it_is_right(tmp_path):
    folder = channel(tmp_path, [*BINARY, "11"])
    (pairs,) = read_channel(folder, PairOptions(label_map="0=0,1=1,11=11")).values()
    assert len(pairs) == 145


@pytest.mark.parametrize("number", ["1e39", "inf", "nan"])
def test_a_label_map_has_no_such_numbers(tmp_path, number):
    assert f"label_map has '1={number}'" in refused(channel(tmp_path, BINARY), label_map=f"0=0,1={number}")


def test_an_outlier_of_the_test_pairs_is_refused_as_well(tmp_path):
    config = TrainConfig(
        train=str(channel(tmp_path / "train", FIVE)), test=str(channel(tmp_path / "test", [*FIVE, "-999"]))
    )
    with pytest.raises(UserError, match=r"pairs\.csv line 152: the label '-999' is far from"):
        read_splits(config)
    words = TrainConfig(train=config.train, test=str(channel(tmp_path / "words", ["x"] * 5)))
    with pytest.raises(UserError, match="5 unknown label"):
        read_splits(words)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["0", "1", "2", "3"] * 40, ["0"] * 14 + ["1"] * 10 + ["3"]),
        (["0", "1", "2"] * 40, ["0", "1"] * 20 + ["2"]),
        (["-2", "-1", "0", "1", "2"] * 30, ["1", "2"] * 20 + ["-2"]),
        ([f"{number / 100}" for number in range(-50, 50)] * 2, ["0.3", "0.31", "0.32"] * 10 + ["-0.495"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("purpose", ["validation", "test"])
def test_a_label_on_the_scale_of_the_training_pairs_is_no_outlier(tmp_path, purpose, train, test):
    """Their scale is given then, so that nothing can move it."""
    folders = {"train": str(channel(tmp_path / "train", train)), purpose: str(channel(tmp_path / "other", test))}
    assert len(read_splits(TrainConfig(**folders))[purpose]) == len(test)


def test_an_outlier_of_the_test_pairs_is_no_reason_for_a_label_map_of_these_alone(tmp_path):
    test = channel(tmp_path / "test", ["0", "1"] * 20 + ["99"])
    with pytest.raises(UserError, match=r"those for training included: --label_map$"):
        read_splits(TrainConfig(train=str(channel(tmp_path / "train", FIVE)), test=str(test)))


def test_only_rows_that_are_used_count(tmp_path):
    rows = [(f"q{row // 2}", f"t{row}", row % 2, "us") for row in range(144)] + [("q", "t", 99, "es")]
    text = "query,title,label,locale\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    assert len(read_channel(write(tmp_path, pairs_csv=text), PairOptions(locale="us"))["all"]) == 144


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            ["1"] * 8 + ["0"] * 192,
            "only 8 of the 200 training pairs are relevant: those with the label 1 or a better one (0/1)",
        ),
        (["0"] * 150 + ["1"] * 42 + ["2"] * 2 + ["3"] * 6, "only 8 of the 200 training pairs are relevant: those with "
         "the label 2 or a better one (grades 0..3)"),
        (["1"] * 150 + ["2"] * 42 + ["3"] * 8, "the label 2.33 or a better one (grades 1..3)"),
        (["C"] * 192 + ["S"] * 8, "the label S or a better one (ESCI)"),
        (["0", "1"] * 100, None),
        (["1"] * 10 + ["0"] * 190, None),
    ],
)  # fmt: skip
def test_few_relevant_pairs_are_told_of(tmp_path, caplog, labels, said):
    config = {"validation": str(channel(tmp_path / "validation", [*labels[:3], *labels[-3:]]))}
    read_splits(TrainConfig(train=str(channel(tmp_path / "train", labels)), **config))
    told = [message for message in caplog.messages if "are relevant" in message]
    assert len(told) == bool(said)
    assert not said or said in told[0]
    assert not told or told[0].endswith("; --positive_threshold sets another limit")
