"""What README, CONTRIBUTING and docs say is so: tables are those of the results files; commands and paths exist."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import evidence
import quality
import records
import scale
import speed_tables
import t4_on_paper
from command import lorry
from lorry.instances import INSTANCES
from lorry.planning import cost
from lorry.planning.plan import prices

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
TABLES = {"evidence": evidence.tables, "quality": quality.table_texts, "scale": scale.table,
          "throughput": speed_tables.tables, "throughput-amx": speed_tables.tables}  # fmt: skip
FOLDERS = (".ci", "benchmarks", "docker", "docs", "examples", "locks", "src", "tests")
ROOT_FILE = r"[A-Za-z_]+\.(?:md|toml|sh|txt)|Makefile|Dockerfile|LICENSE"
# Options in running text that belong to other programs.
OTHERS = {"--gpus": "docker run", "--build-arg": "docker build", "--user": "docker run"}


def read(name):
    return (ROOT / name).read_text("utf-8")


def blocks(text):
    """Return the code blocks of a document, continued lines joined."""
    return [block.replace("\\\n", " ") for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)]


def prose(text):
    """Return a document without its code blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def spans(text):
    """Return the code in running text and tables."""
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose(text))]


def command_lines(text):
    return [line.split(" #")[0] for code in (*blocks(text), *spans(text)) for line in code.splitlines()]


@cache
def options_of(*command):
    """Return the options that `lorry COMMAND` or a benchmark takes, as its --help lists them."""
    if command[0].endswith(".py"):
        done = subprocess.run([sys.executable, ROOT / command[0], "--help"], capture_output=True, text=True, check=True)
        printed = done.stdout
    else:
        result = lorry(*command, "--help")
        assert result.code == 0, f"there is no command `lorry {' '.join(command)}`"
        printed = result.output
    return set(re.findall(r"--[a-z][\w-]*", printed))


def commands(text):
    """Yield (command, options) of every command line that calls `lorry` or a benchmark."""
    for line in command_lines(text):
        words = shlex.split(line) if line.count("'") % 2 == 0 else line.split()
        for at, word in enumerate(words):
            if word.startswith("benchmarks/") and word.endswith(".py"):
                command = (word,)
            elif word in ("lorry", ".venv/bin/lorry") and re.fullmatch("[a-z]+", " ".join(words[at + 1 : at + 2])):
                command = tuple(words[at + 1 : at + (3 if words[at + 1] == "jobs" else 2)])
            else:
                continue
            yield command, [item.partition("=")[0] for item in words[at:] if item.startswith("--")]
            break


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_results_files(name):
    record = records.load(ROOT / "benchmarks" / "results" / f"{name}.json")
    tables = [part for part in TABLES[name](record).split("\n\n") if part.startswith("|")]
    assert len(tables) == {"evidence": 4, "throughput": 4, "throughput-amx": 2, "quality": len(record)}.get(name, 1)
    benchmarks = read("docs/benchmarks.md")
    for table in tables:
        assert f"\n\n{table}\n\n" in benchmarks
    dates = (
        {row["date"] for rows in record.values() for row in rows.values()} if name == "quality" else {record["date"]}
    )
    assert all(date in benchmarks for date in dates)


def test_the_plan_is_what_the_code_prints():
    """Home Depot with the default; squares of lengths count for little there."""
    model = cost.ModelCost(frozen=10_616_832, adapters=663_552, attention=6 * 384, layers=6, width=384)
    steps, evaluation = [cost.Tokens(1_177_624 // 573, 0)] * 573, cost.Tokens(2_504_216, 0)
    times = {instance: cost.seconds(instance, model, steps, evaluation) for instance in INSTANCES}
    assert prices(times, 112.4e12, cost.assumptions(model)) in read("docs/benchmarks.md")


def test_the_t4_on_paper_is_what_the_code_prints():
    assert t4_on_paper.table() in read("docs/benchmarks.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_exists(name):
    rules = re.findall(r"^([a-z][a-z -]*):", read("Makefile"), re.MULTILINE)  # a rule may have several targets
    targets = set(" ".join(rules).split())
    named = {word for line in command_lines(read(name)) for word in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    assert named <= targets
    assert named or name in ("docs/decisions.md", "docs/options.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_exists_and_takes_its_options(name):
    for command, options in commands(read(name)):
        assert set(options) <= options_of(*command), command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_option_in_the_text_exists(name):
    commands = ("train", "submit", "evaluate")
    known = set().union(*map(options_of, commands)) | {"--help", "--show"} | OTHERS.keys()
    named = {word for span in spans(read(name)) for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert named <= known


def test_commands_are_found_in_the_documents():
    found = [command for name in DOCUMENTS for command, _ in commands(read(name))]
    assert {("train",), ("plan",), ("evaluate",), ("submit",), ("jobs", "fetch")} <= set(found)
    assert ("benchmarks/quality.py",) in found


def anchors(text):
    """Return the anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_of_the_repository_that_is_named_exists(name):
    named = []
    for line in command_lines(read(name)):
        for word in re.findall(r"[\w./-]+", line):
            path = word.removeprefix("./").rstrip(".")
            if path.split("/")[0] in FOLDERS or (re.fullmatch(ROOT_FILE, path) and path == word.removeprefix("./")):
                named.append(path)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_code_map_names_every_module():
    code_map = read("README.md").partition("## Code map")[2].partition("\n## ")[0]
    named = {cell for row in re.findall(r"^\| (`.*?) \|", code_map, re.MULTILINE) for cell in spans(row)}
    package = ROOT / "src" / "lorry"
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == packages | {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
