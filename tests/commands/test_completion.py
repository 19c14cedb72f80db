"""Completion of `e3d` in shells."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from e3d_deploy.cli import COMPLETE, main
from e3d_deploy.commands.help import SHELLS
from e3d_deploy.runtime.backends.specs import BACKENDS
from tests.tools import e3d

CLASSES: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run `e3d` as a shell does to complete a word."""
    return subprocess.run(
        [sys.executable, "-m", "e3d_deploy"], env=variables, capture_output=True, text=True, check=False, cwd=ROOT
    )


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_script_and_its_completions(shell: str) -> None:
    script = CLASSES[shell](main, {}, "e3d", COMPLETE).source()
    if shell == "bash":  # click checks the version of bash before it prints the script
        assert "_e3d_completion" in script
    else:
        assert run(**{COMPLETE: f"{shell}_source"}).stdout == script
    word = {"bash": "1", "zsh": "1", "fish": "ver"}[shell]
    found = run(**{COMPLETE: f"{shell}_complete", "COMP_WORDS": "e3d ver", "COMP_CWORD": word})
    assert (found.returncode, found.stderr) == (0, "")
    assert "verify" in found.stdout
    assert "doctor" not in found.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_help_names_the_line_of_each_shell(shell: str) -> None:
    file, line = SHELLS[shell]
    text = e3d("help", "completion").stdout
    assert f"{shell}, in {file}" in text
    assert line in text
    assert f"{COMPLETE}={shell}_source" in line


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_a_zsh_that_refuses_the_line_is_told_what_must_precede_it() -> None:
    script, needed = ZshComplete(main, {}, "e3d", COMPLETE).source(), "autoload -Uz compinit && compinit"

    def refusal(lines: str) -> str:
        return subprocess.run(["zsh", "-f", "-c", lines], capture_output=True, text=True, check=False).stderr

    assert "command not found: compdef" in refusal(script)
    assert refusal(f"{needed} -D\n{script}") == ""
    text = " ".join(e3d("help", "completion").stdout.split())
    assert f"If zsh prints `command not found: compdef`, put `{needed}` above the line." in text


def completions(*words: str) -> list[tuple[str, str]]:
    shell = BashComplete(main, {}, "e3d", COMPLETE)
    return [(one.type, one.value) for one in shell.get_completions(list(words[:-1]), words[-1])]


def test_options_backends_and_paths_are_completed() -> None:
    assert ("plain", "--backend") in completions("verify", "x.e3d", "--b")
    assert completions("verify", "--backend", "openv") == [("plain", "openvino")]
    assert {name for _, name in completions("verify", "--backend", "")} == {"auto", *BACKENDS}
    assert ("plain", "auto") not in completions("profile", "--backend", "")
    assert completions("verify", "sma") == [("file", "sma")]


def test_former_names_of_options_print_no_warning_during_completion() -> None:
    words = {"COMP_WORDS": "e3d benchmark x.e3d --target-p99 33ms --re", "COMP_CWORD": "5"}
    found = run(**{COMPLETE: "bash_complete", **words})
    assert found.stderr == ""
    assert "--renewal" in found.stdout


def test_completion_imports_no_library() -> None:
    code = f"""
import os, sys
os.environ.update({{{COMPLETE!r}: "bash_complete", "COMP_WORDS": "e3d stream --", "COMP_CWORD": "2"}})
from e3d_deploy.__main__ import main
try:
    main()
finally:
    print(sorted({{"numpy", "torch", "onnxruntime", "openvino", "av", "rich"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.strip() == "[]"
    assert "--backend" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes_commands(tmp_path: Path) -> None:
    program = tmp_path / "e3d"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m e3d_deploy "$@"\n')
    program.chmod(0o755)
    line = f"""
PATH={shlex.quote(str(tmp_path))}:$PATH
{SHELLS["bash"][1]}
COMP_WORDS=(e3d doc); COMP_CWORD=1
_e3d_completion e3d doc e3d
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("doctor\n", "")
