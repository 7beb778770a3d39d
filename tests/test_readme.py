"""The README: its examples run as they stand, and its two commands are the ones that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    examples = fenced("python")
    assert len(examples) >= 8
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


def test_commands_are_marked_for_ci() -> None:
    marked = re.findall(r"^<!-- command: (\w+) -->\n```sh\n(.+?)\n```$", README, flags=re.MULTILINE)
    assert [name for name, _ in marked] == ["demo", "test"]
    script = (ROOT / ".ci" / "run").read_text()
    for name, command in marked:
        assert f"<!-- command: {name} -->" in script
        assert command.startswith("python3 -m venv .venv")


def test_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
