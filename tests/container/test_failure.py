"""The failure file: the hint is always in it, and every error ends as one that the toolkit reports."""

import errno

import pytest

from lorry.container.channels import find_model
from lorry.container.failure import failure_text, recorded, remove_failure
from lorry.errors import UserError
from lorry.logs import OutputClosedError


def failed_with(error, root):
    """Let a block fail; return the error as it comes out, and the failure file's text."""
    with pytest.raises(Exception) as caught, recorded(root):  # noqa: PT011 (which it is, is what the tests are about)
        raise error
    return caught.value, (root / "output" / "failure").read_text()


def test_a_long_cause_never_pushes_the_hint_out():
    text = failure_text(UserError("column " * 500, "Rename it."))
    assert len(text) == 1024
    assert text.startswith("column column")
    assert text.endswith("… Rename it.")


def test_a_long_hint_is_cut_too():
    text = failure_text(UserError("column " * 500, "rename " * 500))
    assert len(text) == 1024
    assert text.startswith("column column")
    assert "rename rename" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such column", "Name one."), "no such column. Name one."),
        (MemoryError(), "out of memory. Lower batch_size or micro_batch_tokens, or take a larger machine."),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "/tmp/x: No space left on device. Check"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied. Change its permissions, or"),
        (OSError("odd"), "the system: odd. Check"),
        (KeyboardInterrupt(), "interrupted by a second Ctrl-C. Run it again"),
    ],
)
def test_what_the_user_can_fix_is_one_line(tmp_path, error, said):
    raised, text = failed_with(error, tmp_path)
    assert isinstance(raised, UserError)
    assert text == str(raised)
    assert text.startswith(said)


def test_closed_output_is_told_in_the_file(tmp_path):
    error = OutputClosedError()
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    raised, text = failed_with(error, tmp_path)
    assert raised is error
    assert "standard output cannot be written: [Errno 28] No space left on device." in text


def test_a_crash_names_exception_and_place(tmp_path):
    with pytest.raises(AttributeError), recorded(tmp_path):
        find_model(None)
    text = (tmp_path / "output" / "failure").read_text()
    assert text.startswith("AttributeError: ")
    assert " (at container/channels.py:" in text
    assert "in find_model" in text
    assert len(failed_with(ValueError("x" * 5000), tmp_path)[1]) == 1024


def test_a_panic_of_a_rust_library_is_no_success(tmp_path):
    panic = type("PanicException", (BaseException,), {})
    raised, text = failed_with(panic("index out of bounds"), tmp_path)
    assert isinstance(raised, RuntimeError)
    assert text.startswith("RuntimeError: PanicException: index out of bounds (at ")


def test_an_exit_is_no_failure(tmp_path):
    with pytest.raises(SystemExit), recorded(tmp_path):
        raise SystemExit(0)
    assert not (tmp_path / "output").exists()


def test_the_file_of_an_earlier_run_is_removed(tmp_path):
    remove_failure(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "failure").touch()
    remove_failure(tmp_path)
    assert not (tmp_path / "output" / "failure").exists()


@pytest.mark.parametrize("given", [True, False])
def test_a_file_that_cannot_be_written_is_told_where_one_is_expected(tmp_path, lines, given):
    if given:
        (tmp_path / "output" / "failure").mkdir(parents=True)
    else:
        tmp_path = tmp_path / "file"
        tmp_path.touch()
    with pytest.raises(UserError), recorded(tmp_path):
        raise UserError("no such column", "Name one.")
    assert lines() == ([f"{tmp_path}/output/failure cannot be written: Is a directory"] if given else [])
