"""First words of docstrings: each first line stands alone, as a verb phrase or a noun phrase."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = {
    "benchmarks": (
        "__init__ any_batch burn_in clip digits engines export gpu loader naive peers precision renewal streaming "
        "young_ring"
    ),
    "e3d_deploy": (
        "__init__ __main__ card checkpoint cli config contract doctor files inspect inventory "
        "json_values libraries operators parts progress step tensorrt_library tensors tf32 training "
        "turns "
    ),
    "e3d_deploy/bundle": "__init__ folder manifest pack schema sidecar",
    "e3d_deploy/commands": (
        "__init__ _aging _engines _open _options build cache demo diff doctor evaluate export import_ inspect join "
        "pack predict refit stream train unpack"
    ),
    "e3d_deploy/data": "__init__ datasets moving_mnist pictures rate",
    "e3d_deploy/demo": "__init__",
    "e3d_deploy/evaluation": "renewals samples streaming",
    "e3d_deploy/export": "__init__ bundle plan",
    "e3d_deploy/export/engines": "__init__ build install plan",
    "e3d_deploy/export/graph": "__init__ to_onnx",
    "e3d_deploy/export/precision": "__init__",
    "e3d_deploy/importing": "__init__",
    "e3d_deploy/measure": "__init__ live plots results",
    "e3d_deploy/runtime": "__init__ aged predictor renewal snapshot",
    "e3d_deploy/runtime/backends": (
        "__init__ cuda device device_states entries lifetime onnxruntime onnxruntime_cuda registry "
        "rollout spec specs tensorrt tensorrt_engine torch_cuda_graph torch_eager torch_ring "
        "torch_ring_states "
    ),
    "e3d_deploy/runtime/streams": "__init__",
    "tests": (
        "fake_cuda fake_tensorrt_runtime fake_torch_gpu kill_builds manifests reference test_card "
        "test_checkpoint test_cli test_config test_diff test_docstrings test_frames test_imports "
        "test_inspect test_metrics test_parts test_turns test_window tools toy_backend "
    ),
    "tests/benchmarks": (
        "test_digits test_gpu_call test_gpu_flop test_gpu_pack test_gpu_plan test_gpu_run test_gpu_script"
    ),
    "tests/bundle": "test_manifest test_old_bundle",
    "tests/commands": "__init__ test_json test_options test_verify",
    "tests/data": "test_data test_rate test_sources",
    "tests/demo": "test_demo",
    "tests/evaluation": "test_decay test_evaluate",
    "tests/export": "test_export",
    "tests/export/engines": "test_build test_cache test_refit",
    "tests/export/precision": "test_precision",
    "tests/importing": "test_import",
    "tests/measure": "test_benchmark",
    "tests/runtime": "test_renewal test_runtime test_snapshot test_verify test_young_ring",
    "tests/runtime/backends": "conftest test_contract test_onnxruntime_cuda test_tensorrt test_torch_backends",
    "tests/runtime/streams": "test_streams test_streams_isolated",
    "tests/training": "test_burn_in test_pace test_passes test_recipes test_training",
}
"""Files, without .py, and folders with all their files that keep the rule, by parent; new ones are added here."""
DECODED = frozenset({"What", "Of", "Whether", "How", "Who", "As", "That", "Where", "Which"})
"""First words that make sense only beside the line above."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings of modules, classes, functions and fields."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def offenders(source: str) -> list[int]:
    """Return the lines of docstrings that begin with a word that none may begin with."""
    return [line for line, text in docstrings(source) if text.split()[:1] and text.split()[0].rstrip(",.:") in DECODED]


def files() -> list[Path]:
    paths = [ROOT / folder / name for folder, names in CHECKED.items() for name in names.split()]
    return [
        file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")])
    ]


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_docstring_begins_with_a_word_that_leans_on_another_line(file: Path) -> None:
    assert offenders(file.read_text()) == []


def test_docstrings_are_found_wherever_they_stand() -> None:
    source = (
        '"""What is."""\nclass A:\n    """As B."""\n    x = 1\n    """Which."""\n    def f(self):\n        "Whatever"'
    )
    assert offenders(source) == [1, 3, 5]
