import pytest

from kshot.runtime.lines import LiveLines


def test_of_lines_in_quick_succession_only_those_that_must_be_seen_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("kshot.runtime.lines.time.monotonic", lambda: clock[0])
    written: list[str] = []
    lines = LiveLines(written.append)
    for second in (0.5, 1.5, 2.5, 3.0, 5.0):
        clock[0] = second
        lines.log_sparingly(lambda second=second: f"at {second}")
    lines.log("end")
    clock[0] = 6.0
    lines.log_sparingly(lambda: "too soon")
    assert written == ["at 2.5", "at 5.0", "end"]


def test_a_name_in_a_line_is_written_harmlessly() -> None:
    written: list[str] = []
    LiveLines(written.append).log("class \x1b[31mred\r is hard")
    assert written == [r"class \x1b[31mred\r is hard"]
