"""Are files written whole or not at all, one or several?"""

import pytest

from experiments.common import files


def test_a_file_that_could_not_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        files.replace(path, lambda temporary: temporary.write_text(str(1 / 0)))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.md", "old")]
    assert files.replace(path, lambda temporary: temporary.write_text("new")) == path
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_a_file_may_be_named_after_its_content(tmp_path):
    path = files.replace(tmp_path / "a.md", lambda new: new.write_text("word"), lambda new: f"{new.read_text()}.md")
    assert [path] == list(tmp_path.iterdir())
    assert path.name == "word.md"


@pytest.mark.parametrize("failing", ["a.md", "b.png", "c.pdf"])
def test_several_files_change_together_or_not_at_all(failing, tmp_path):
    paths = [tmp_path / name for name in ("a.md", "b.png", "c.pdf")]
    old = {tmp_path / name: f"old {name}" for name in ("a.md", "c.pdf")}
    for path, text in old.items():
        path.write_text(text)

    def write(temporary, lacking=None):
        for path in paths:
            # A file that was not written cannot be moved, wherever it stands in the order.
            if path.name != lacking:
                temporary[path].write_text("new")

    with pytest.raises(FileNotFoundError):
        files.replace_all(paths, lambda temporary: write(temporary, failing))
    assert {path: path.read_text() for path in tmp_path.iterdir()} == old
    files.replace_all(paths, write)
    assert {path: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(paths, "new")


def test_a_folder_in_the_place_of_a_file_changes_no_other_file(tmp_path):
    paths = [tmp_path / "a.md", tmp_path / "b.png"]
    paths[0].write_text("old")
    paths[1].mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace_all(paths, lambda temporary: [path.write_text("new") for path in temporary.values()])
    assert (sorted(tmp_path.iterdir()), paths[0].read_text()) == (paths, "old")
