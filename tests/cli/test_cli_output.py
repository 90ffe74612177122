"""Tables, JSON and progress: foreign text is shown as it is."""

import io
import json

import pytest
from rich.console import Console

from gptoss_export.cli.plain import say
from gptoss_export.cli.progress import TerminalProgress
from gptoss_export.cli.tables import make_table, print_json, print_tables, readable
from gptoss_export.shown_text import plain, size

Shown = tuple[TerminalProgress, io.StringIO]
MARKUP = "[bold]x[/] [link=http://a]b :smile:"


def test_foreign_text_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table((MARKUP, "n"), [(MARKUP, "[/]")], title=MARKUP, caption=MARKUP, numbers_from=1)
    print_tables([table])
    out = capsys.readouterr().out
    assert out.count(MARKUP) == 4 and "[/] │" in out


STEERING = "a\x1b]8;;http://x\x07b\x1b[31m\x9b2J\r\u202ec\udce9\x7f"
WRITTEN_OUT = r"a\x1b]8;;http://x\x07b\x1b[31m\x9b2J\r\u202ec\udce9\x7f"


def test_foreign_text_does_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain(STEERING) == WRITTEN_OUT
    assert plain("line\n\ttab é日😀") == "line\n\ttab é日😀"
    print_tables([make_table((STEERING,), [(STEERING,)], title=STEERING, caption=STEERING)])
    shown = capsys.readouterr().out
    assert shown.count(WRITTEN_OUT) == 4 and "\x1b" not in shown
    file = io.StringIO()
    console = Console(file=file, width=500, force_terminal=False)
    progress = TerminalProgress(console, console.status(""))
    progress.note(STEERING)
    progress.facts("facts", {STEERING: STEERING})
    with progress.stage(STEERING):
        pass
    assert file.getvalue().count(WRITTEN_OUT) == 4 and "\x1b" not in file.getvalue()
    say(STEERING)
    say(STEERING, err=True)
    assert tuple(capsys.readouterr()) == (WRITTEN_OUT + "\n", WRITTEN_OUT + "\n")


def test_the_spinner_shows_text(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True)
    status = console.status("")
    TerminalProgress(console, status).update("[/b] gpt[oss] \\")
    console.print(status.renderable)
    assert "[/b] gpt[oss] \\" in file.getvalue()


def test_json_has_no_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), 1.5, {"c": (-float("inf"), "NaN")}]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5, {"c": [None, "NaN"]}]}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (98_400, "98.4 KB"), (2.4e6, "2.4 MB"), (7.1e12, "7100.0 GB")],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "default"), (True, "yes"), (False, "no"), ([16, 64], "16, 64"), ((), "none"), (0, "0"), ("sm_90", "sm_90")],
)
def test_readable(value: object, text: str) -> None:
    assert readable(value) == text


@pytest.fixture
def shown() -> Shown:
    """A progress on a terminal of 60 columns, and what it printed."""
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=False)
    return TerminalProgress(console, console.status("")), file


def test_progress_prints_a_line_for_each_stage(shown: Shown) -> None:
    progress, file = shown
    name = f"compile {MARKUP} " + "long " * 20
    progress.facts("build", {"target": "aoti", "prefill_chunks": [16, 64], MARKUP: None})
    with progress.stage(name):
        progress.update(MARKUP)
        progress.note(f"a copy of {MARKUP}")
    with pytest.raises(ValueError, match="broken"), progress.stage("fails"):
        raise ValueError("broken")
    lines = file.getvalue().splitlines()
    assert lines[0] == "build:"
    assert [line.split() for line in lines[1:3]] == [["target", "aoti"], ["prefill_chunks", "16,", "64"]]
    assert lines[3].strip() == f"{MARKUP}  default"
    assert lines[4] == f"note: a copy of {MARKUP}"
    seconds, _, rest = lines[5].strip().partition(" s  ")
    assert rest == name.strip() and float(seconds) < 60
    assert len(lines) == 6
    assert progress.seconds.keys() == {name}
