"""Writing: what the system refuses is one sentence, nothing is left behind, and one process at a time writes a folder."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tamperfuse.records.errors import UserError
from tamperfuse.records.files import (
    beside,
    check_fresh,
    check_output_file,
    is_device,
    locked_output,
    output_folder,
    staged,
    write_json,
    write_text,
)


def fill(out: Path) -> None:
    with output_folder(out) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "table").write_text("x")
        write_json(staging / "result.json", 1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_appears_whole_and_its_lock_goes(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "out")
    assert names(tmp_path / "a") == {"out"}
    assert names(tmp_path / "a" / "out") == {"sub", "result.json"}


def test_the_current_directory_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for out in (Path("."), Path("")):
        fill(out)
        assert names(Path.cwd()) == {"sub", "result.json"} and names(tmp_path) == {"run"}
        with pytest.raises(UserError, match="not empty"):
            fill(out)
        subprocess.run(["rm", "-r", "sub", "result.json"], check=True)
    assert beside(Path("."), "unfinished") == tmp_path / "run" / "unfinished"


def test_a_folder_below_a_link_that_leads_nowhere_yet(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("disk")
    write_text(tmp_path / "out" / "nodes" / "x", "x")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "nodes" / "x").read_text() == "x"


@pytest.mark.parametrize("target_exists", [True, False])
def test_a_link_to_a_folder_stays_a_link(target_exists: bool, tmp_path: Path) -> None:
    if target_exists:
        (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and names(tmp_path / "disk") == {"sub", "result.json"}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(out)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield out
    subprocess.run(["umount", str(out)], check=True)


def test_a_mount_point_is_filled(mount: Path) -> None:
    fill(mount)
    assert names(mount) == {"sub", "result.json"}
    with staged(mount, directory=True) as staging:  # as `pair` does, which may replace earlier pairs
        (staging / "sub").mkdir()
    assert names(mount) == {"sub"} and not names(mount / "sub")


def test_a_folder_mounted_from_the_same_disk_is_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").mkdir()
    if subprocess.run(
        ["mount", "--bind", str(tmp_path / "real"), str(tmp_path / "out")], capture_output=True
    ).returncode:
        pytest.skip("mounting needs root")
    try:
        fill(tmp_path / "out")
        assert names(tmp_path / "real") == {"sub", "result.json"}
        assert not [name for name in names(tmp_path) if name.startswith(".")]
    finally:
        subprocess.run(["umount", str(tmp_path / "out")], check=True)


def test_a_full_disk_leaves_nothing(mount: Path) -> None:
    with (
        pytest.raises(UserError, match=r"The disk that holds .* is full: free some space"),
        output_folder(mount) as staging,
    ):
        (staging / "big").write_bytes(b"x" * 200_000)
    assert names(mount) == set()
    with pytest.raises(UserError, match="is full"):
        write_text(mount / "page.html", "x" * 200_000)
    assert names(mount) == set()


def test_a_read_only_disk(mount: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
    for write in (lambda: fill(mount / "new"), lambda: write_text(mount / "page.html", "x")):
        with pytest.raises(UserError, match=r"cannot be written .*read-only file system"):
            write()


def test_an_immutable_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("the attribute needs root and a file system that has it")
    try:
        for write in (lambda: fill(folder / "out"), lambda: write_text(folder / "page.html", "x")):
            with pytest.raises(UserError, match=r"cannot be written .*not permitted"):
                write()
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 300, "too long"),
        ("file/out", "leads through a file"),
        ("loop/out", "loop of symbolic links"),
        ("loop", "loop of symbolic links"),
        ("file", "not empty"),
    ],
)
def test_impossible_places(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    before = names(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        fill(tmp_path / name)
    assert len(str(error.value)) < 500
    assert names(tmp_path) == before


def test_a_folder_where_a_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written \(it is a folder"):
        write_text(tmp_path / "report.html", "x")
    assert names(tmp_path) == {"report.html"}


def test_a_file_is_written_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("text")
    for content in ("a", "b"):
        write_text(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "text").read_text() == content


def test_pipes_and_devices_are_written_into_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        write_text(pipe, "through")
        assert reader.communicate(timeout=30)[0] == "through"
    with pytest.raises(UserError, match="is no regular file: name a file to write"), staged(pipe):
        pass
    assert is_device(pipe) and names(tmp_path) == {"pipe"}


def test_a_stream_gets_the_text(tmp_path: Path) -> None:
    code = "from pathlib import Path; from tamperfuse.records.files import write_text; write_text(Path('/dev/stdout'), 'x')"
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert piped.stdout == "x"
    (tmp_path / "out").write_text("before ")
    with (tmp_path / "out").open("a") as out:
        for _ in range(2):
            subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before xx", "as a CI service's summary, to which steps append"


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("x")
    (tmp_path / "link").symlink_to("input")
    for name in ("input", "link"):
        with pytest.raises(UserError, match="is an input of this command"):
            check_output_file(tmp_path / name, [tmp_path / "absent", tmp_path / "input"])
    check_output_file(tmp_path / "other", [tmp_path / "input"])
    (tmp_path / "nodes" / "key").mkdir(parents=True)
    for place in (tmp_path / "nodes" / "key" / "node.json", tmp_path / "key" / ".." / "nodes" / "page.html"):
        with pytest.raises(UserError, match="is an input of this command"):
            check_output_file(place, [tmp_path / "nodes"])


def test_an_error_about_something_else_does_not_blame_the_destination(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), staged(tmp_path / "out", directory=True):
        (tmp_path / "absent").read_text()
    with pytest.raises(ConnectionError), staged(tmp_path / "out", directory=True):
        raise ConnectionError(errno.ECONNREFUSED, "refused")
    with pytest.raises(UserError, match="cannot be written completely"), staged(tmp_path / "out"):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1792 vs 1686")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("exists", [True, False])
def test_two_processes_do_not_write_one_folder(exists: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    with (
        locked_output(out),
        pytest.raises(UserError, match=r"Another run is using .*wait for it to end, or name another folder"),
    ):
        fill(out)
    fill(out)
    assert names(tmp_path) == {"out"}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".tmp-out-0123abcd", ".tmp-out-0123abcd-old", ".tmp-out-more-0123abcd", "other"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "out")
    assert names(tmp_path) == {"out", ".tmp-out-more-0123abcd", "other"}


def test_brackets_in_a_name_are_characters(tmp_path: Path) -> None:
    fill(tmp_path / "[ab]")
    (tmp_path / ".tmp-[ab]-0123abcd").mkdir()
    subprocess.run(["rm", "-r", str(tmp_path / "[ab]")], check=True)
    fill(tmp_path / "[ab]")
    assert names(tmp_path) == {"[ab]"}


def test_a_new_disk_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    check_fresh(tmp_path)
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match="not empty"):
        check_fresh(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder needs root")
def test_a_parent_that_may_not_be_written(tmp_path: Path) -> None:
    """As an ordinary user: the folder exists and is the user's, its parent is not."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(0o755)
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", 65534, 65534)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            fill(tmp_path / "out")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert names(tmp_path / "out") == {"sub", "result.json"}


def test_an_interrupt_between_the_two_renames_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", os.replace
    out.mkdir()
    (out / "result").write_text("old")

    def interrupted(source: Path, destination: Path) -> None:
        if destination == out and not str(source).endswith("-old"):
            raise KeyboardInterrupt
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr("tamperfuse.records.files.os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt), locked_output(out), staged(out, directory=True) as staging:
            (staging / "result").write_text("new")
    assert (out / "result").read_text() == "old" and names(tmp_path) == {"out"}


def test_a_kill_between_the_two_renames_keeps_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for suffix in ("", "-old"):
        (tmp_path / f".tmp-out-0123abcd{suffix}").mkdir()
    (tmp_path / ".tmp-out-0123abcd-old" / "result").write_text("old")
    with locked_output(out):
        assert (out / "result").read_text() == "old"
    assert names(tmp_path) == {"out"}
