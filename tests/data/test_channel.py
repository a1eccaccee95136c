"""What a channel consists of: no file, column or row of a table is passed over without a word."""

import logging
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_channels import csv_text, judged, write

from lorry.config import PairOptions
from lorry.data.pairs import read_channel
from lorry.errors import UserError


@pytest.fixture(autouse=True)
def _all_messages(caplog):
    caplog.set_level(logging.INFO, "lorry")


def whole(folder, **options):
    (pairs,) = read_channel(folder, PairOptions(**options)).values()
    return pairs


def refused(folder, **options):
    with pytest.raises(UserError) as error:
        read_channel(folder, PairOptions(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


EXAMPLES = "query,product_id,product_locale,label\n" + "".join(f"q{n // 2},{n},us,{n % 2}\n" for n in range(40))
PRODUCTS = "product_id,product_locale,title\n" + "".join(f"{n},us,title {n}\n" for n in range(40))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes_txt", "query,title,label\n", "of another format, .txt"),
        ("more_xlsx", b"PK\x03\x04", "of another format, .xlsx"),
        ("_more_csv", csv_text(judged(4)), "hidden by its name"),
        ("sources_csv", "source,date\nx,1\n", "no column is recognised as label or query or product text"),
        ("clicks_csv", "query,clicks\nq,1\n", "no column is recognised as label or product text"),
        ("products_csv", PRODUCTS, "the judged pairs have the product text themselves"),
        ("queries_csv", "query_id,query\n1,q\n", "the judged pairs have the query themselves"),
    ],
)
def test_a_file_that_is_not_read_is_named_with_the_reason(tmp_path, caplog, name, content, reason):
    write(tmp_path, pairs_csv=judged(4))
    path = tmp_path / name.removeprefix("_").replace("_", ".")
    path = path.with_name("_" + path.name) if name.startswith("_") else path
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    pairs = whole(tmp_path)
    assert (len(pairs), pairs.health.unused) == (4, {path.name: reason})
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == f"{tmp_path}: {path.name} is not read: {reason}"


def test_a_broken_file_that_is_not_read_does_no_harm(tmp_path):
    write(tmp_path, pairs_csv=judged(4), notes_csv='day,note\n1,"never closed\n2,b\n', words_csv="note\n" + '"a\n' * 40)
    pairs = whole(tmp_path)
    assert (len(pairs), set(pairs.health.unused)) == (4, {"notes.csv", "words.csv"})


def test_a_folder_within_is_named_and_not_searched(tmp_path, caplog):
    write(tmp_path, pairs_csv=judged(4))
    write(tmp_path / "more.csv", part_csv=judged(8))
    assert len(whole(tmp_path)) == 4
    assert f"{tmp_path}: more.csv is not read: a folder" in caplog.messages


@pytest.mark.parametrize(
    ("header", "lacks"),
    [
        ("query,title,lable", "label"),
        ("qeury,title,label", "query"),
        ("query,titel,label", "product text"),
        ("query,product_id,title,lable", "label"),
        ("qeury,product_id,title,label", "query"),
        ("query_id,query,product_id,title,lable", "label"),
    ],
)
def test_a_file_that_looks_like_pairs_is_refused(tmp_path, header, lacks):
    write(tmp_path, a_csv=judged(4), b_csv=csv_text([["x"] * (header.count(",") + 1)], header))
    said = refused(tmp_path)
    assert f"b.csv of {tmp_path} looks like judged pairs, but no column is recognised as {lacks}: it has " in said
    assert header.split(",")[-1] in said


def test_a_file_that_shares_columns_with_the_pairs_looks_like_pairs(tmp_path):
    header = "example_id,query,title,label,small_version"
    write(tmp_path, a_csv=csv_text([(1, "q", "t", 1, 1), (2, "q", "u", 0, 1)], header))
    write(tmp_path, b_csv="example_id,qeury,titel,lable,small_version\n1,q,t,1,1\n")
    assert "b.csv" in refused(tmp_path)
    write(tmp_path, b_csv="example_id,source\n1,web\n")
    assert len(whole(tmp_path)) == 2


@pytest.mark.parametrize("shared", [("id", "created_at", "updated_at"), ("", "index"), ("Unnamed: 0", "Unnamed: 0.1")])
def test_columns_that_any_table_may_have_make_no_pairs(tmp_path, shared):
    pairs = [(*range(len(shared)), *row) for row in judged(4)]
    write(tmp_path, a_csv=csv_text(pairs, ",".join([*shared, "query", "title", "label"])))
    write(tmp_path, raters_csv=csv_text([range(len(shared) + 1)], ",".join([*shared, "email"])))
    assert whole(tmp_path).health.unused == {"raters.csv": "no column is recognised as label or query or product text"}


def test_queries_with_their_count_are_no_pairs_for_a_row_number(tmp_path):
    write(tmp_path, a_csv=csv_text([(1, "q", "t", 1), (2, "q", "u", 0)], ",query,title,label"))
    write(tmp_path, counts_csv=",query,count\n0,q,2\n")
    assert set(whole(tmp_path).health.unused) == {"counts.csv"}


@pytest.mark.parametrize("column", ["label", "grade"])
def test_a_label_that_a_table_of_products_has_may_be_renamed(tmp_path, column):
    products = PRODUCTS.replace("product_locale", column, 1)
    write(tmp_path, examples_csv=EXAMPLES, products_csv=products)
    said = refused(tmp_path)
    assert "products.csv" in said
    assert said.endswith(f"or rename its column {column} if it means something else.")
    write(tmp_path, products_csv=products.replace(column, "colour", 1))
    assert len(whole(tmp_path)) == 40


def test_names_of_brands_are_no_texts_of_products(tmp_path):
    """A column `id` is the product's id only where no table has a column `product_id`."""
    rows = [(f"q{row // 2}", row, row % 2) for row in range(40)]
    write(tmp_path, judgements_csv=csv_text(rows, "query,product_id,label"))
    write(tmp_path, products_csv=csv_text([(row, f"title {row}") for row in range(38)], "product_id,title"))
    write(tmp_path, brands_csv=csv_text([(row, f"brand {row}") for row in range(30, 60)], "id,name"))
    pairs = whole(tmp_path)
    assert pairs.health.bad == {"unknown product": 2}
    assert not [text for text in pairs.texts.to_pylist() if "brand" in text]
    reason = "its column id is not taken for the product's id, as another table has a surer column"
    assert pairs.health.unused == {"brands.csv": reason}


def test_products_of_a_channel_of_ids_are_no_pairs(tmp_path):
    write(
        tmp_path,
        examples_csv=EXAMPLES,
        products_csv=PRODUCTS,
        colours_csv="product_id,product_locale,colour\n1,us,red\n",
    )
    pairs = whole(tmp_path)
    assert len(pairs) == 40
    assert pairs.health.unused == {"colours.csv": "no column is recognised as label or query"}


@pytest.mark.parametrize(
    ("header", "note"),
    [
        ("query,product_title,title,label", "the product text is read from column product_title, not from title"),
        ("query,title,label,esci_label", "the label is read from column esci_label, not from label"),
        ("query,search_term,title,label", "the query is read from column query, not from search_term"),
        ("query,title,brand.name,text,label", "the product text is read from column title, not from brand.name, text"),
    ],
)
def test_a_column_that_is_passed_over_for_a_surer_one_is_named(tmp_path, caplog, header, note):
    rows = [[f"{name} {row}" if "label" not in name else row % 2 for name in header.split(",")] for row in range(4)]
    write(tmp_path, a_csv=csv_text(rows, header), b_csv=csv_text(rows, header))
    taken = re.search(r"column (\S+),", note)[1]
    pairs = whole(tmp_path)
    if "label" not in taken:
        assert (pairs.queries if taken == "query" else pairs.texts)[0].as_py() == f"{taken} 0"
    assert caplog.messages.count(f"{tmp_path}: {note}") == 1  # though two files have it


@pytest.mark.parametrize(
    ("header", "what", "hint"),
    [
        ("query,title,name,label", "product text: title, name", "Name one: --text_columns NAME"),
        ("query,product_title,product_name,label", "product text: product_title, product_name", "--text_columns"),
        ("query,title,label,relevance", "label: label, relevance", "Name one: --label_column NAME"),
        ("search_term,query_text,title,label", "query: search_term, query_text", "--query_column"),
        ("query,title,Title,label", "product text: title, Title", "--text_columns"),
        ("query,title,title,label", "product text: title, title", "Rename all but one."),
        ("query,title,label,label", "label: label, label", "Rename all but one."),
    ],
)
def test_columns_that_are_as_sure_as_each_other_are_refused(tmp_path, header, what, hint):
    write(tmp_path, a_csv=csv_text([["x"] * (header.count(",") + 1)], header))
    said = refused(tmp_path)
    assert f"a.csv of {tmp_path} has several columns that may be the {what}" in said
    assert hint in said


def test_named_columns_leave_no_doubt_unless_there_are_two(tmp_path):
    rows = [["q", "t", "n", 1], ["q", "u", "o", 0]]
    write(tmp_path, a_csv=csv_text(rows, "query,title,name,label"))
    assert whole(tmp_path, text_columns="name").texts.to_pylist() == ["n", "o"]
    write(tmp_path, a_csv=csv_text(rows, "query,name,name,label"))
    assert "several columns that may be the product text: name, name" in refused(tmp_path, text_columns="name")


def test_an_unused_column_may_occur_twice(tmp_path):
    write(tmp_path, a_csv=csv_text([["q", "t", "n", "m", 1], ["q", "u", "o", "p", 0]], "query,title,note,note,label"))
    assert whole(tmp_path).texts.to_pylist() == ["t", "u"]


def test_a_product_with_several_texts_is_counted(tmp_path):
    write(tmp_path, examples_csv=EXAMPLES, products_csv=PRODUCTS + "7,us,another title\n8,us,title 8\n9,es,título\n")
    pairs = whole(tmp_path)
    assert pairs.health.bad == {"ambiguous product": 1}  # twice the same text, or another locale, is no matter
    assert pairs.health.examples["ambiguous product"] == [
        "examples.csv line 9: query 'q3', text 'title 7' (one of several of id '7 us'), label '1'"
    ]
    assert (len(pairs), "title 7" in pairs.texts.to_pylist()) == (39, False)
    write(tmp_path, products_csv=PRODUCTS + "".join(f"{n},us,other\n" for n in range(5)))
    said = refused(tmp_path)
    assert "5 of 40 rows" in said
    assert "5 ambiguous product (examples.csv line 2: query 'q0', text 'title 0' (one of several of id '0 us')" in said
    assert "Keep one text for each id (and locale) in the table of products." in said


def test_a_query_with_several_texts_is_counted(tmp_path):
    judgements = "query_id,title,label\n" + "".join(f"{n // 2},title {n},{n % 2}\n" for n in range(40))
    queries = "query_id,query\n" + "".join(f"{n},query {n}\n" for n in range(20))
    write(tmp_path, a_csv=judgements, b_csv=queries + "3,query three\n")
    assert whole(tmp_path).health.bad == {"ambiguous query id": 2}


def test_unknown_ids_are_named(tmp_path):
    products = PRODUCTS.replace("7,us,title 7\n", "7,es,title 7\n").replace("\n9,us", "\n,us")
    write(tmp_path, examples_csv=EXAMPLES, products_csv=products)
    assert whole(tmp_path).health.examples["unknown product"] == [
        "examples.csv line 9: query 'q3', text of the unknown id '7 us', label '1'",
        "examples.csv line 11: query 'q4', text of the unknown id '9 us', label '1'",
    ]
    write(tmp_path, examples_csv=EXAMPLES.replace("q3,7,us", "q3,,us"))
    assert "text of the unknown id missing" in whole(tmp_path).health.examples["unknown product"][0]


def test_whole_numbers_that_pandas_wrote_as_floats_are_the_same_ids(tmp_path):
    floats = "query,product_id,label\n" + "".join(f"q{n // 2},{n}.0,{n % 2}\n" for n in range(40))
    write(tmp_path, examples_csv=floats, products_csv=PRODUCTS)
    assert (len(whole(tmp_path)), whole(tmp_path).health.bad) == (40, {})


def test_ids_that_pandas_made_doubles_join(tmp_path):
    """As 1.23456789012e+11 they would be other ids than those of the products."""
    ids = [123456789012.0 + n for n in range(20)]
    judged_ids = pa.table(
        {"query": [f"q {n // 2}" for n in range(21)], "product_id": [*ids, None], "label": [0, 1, 0] * 7}
    )
    pq.write_table(judged_ids, tmp_path / "judged.parquet")
    write(tmp_path, products_csv="product_id,title\n" + "".join(f"{number:.0f},title {number:.0f}\n" for number in ids))
    pairs = whole(tmp_path)
    assert pairs.texts.to_pylist() == [f"title {number:.0f}" for number in ids]
    assert pairs.health.bad == {"unknown product": 1}


def test_rows_that_all_have_a_wrong_number_of_cells_are_no_empty_channel(tmp_path):
    write(tmp_path, p_csv=csv_text([(*row, "") for row in judged(20)]))
    said = refused(tmp_path)
    assert "has no rows: 20 were left out for a wrong number of cells " in said
    assert "(p.csv line 2: 4 cells instead of 3: 'query 0,title 0,1,')" in said
    assert "Let the header have a name for every cell of a row" in said
