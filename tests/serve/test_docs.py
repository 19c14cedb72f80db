"""Compare the tables of docs/serve.md with the code."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from fastapi.openapi.utils import get_openapi

from e3d_deploy.runtime import Predictor
from e3d_deploy.serve import protocol
from e3d_deploy.serve.app import create_app
from e3d_deploy.serve.metrics import Metrics
from e3d_deploy.serve.protocol import Open, SetHorizon, ViewerCommand
from tests.serve.conftest import Serve, Viewer, settings_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text()
CLOSED_BY_UVICORN = {1009}
HIDDEN = {"type"}


def table(title: str) -> list[list[str]]:
    """Return the cells of each row of the table whose first column has a title."""
    lines = PAGE.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def words(cell: str) -> set[str]:
    """Return the words that a cell has in code quotes."""
    return set(re.findall(r"`([^`]+)`", cell))


def calls(name: str) -> Iterator[ast.Call]:
    """Yield the calls of a function or class in the code of the server."""
    for path in sorted((ROOT / "e3d_deploy" / "serve").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name:
                yield node


def texts(node: ast.expr) -> set[str]:
    """Return the string values that an expression may have."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_messages_of_clients_are_described() -> None:
    described = {kind: words(row[1]) for row in table("client → server") for kind in words(row[0])}
    models = {"open": Open, "horizon": SetHorizon} | dict.fromkeys(
        get_args(ViewerCommand.model_fields["type"].annotation), ViewerCommand
    )
    assert described == {kind: set(model.model_fields) - HIDDEN for kind, model in models.items()}


def test_messages_of_the_server_are_described() -> None:
    described = {kind: words(row[1]) for row in table("server → client") for kind in words(row[0])}
    found = {kind: {one.arg for one in call.keywords} for call in calls("text_message") for kind in texts(call.args[0])}
    assert described == found


def test_fields_of_a_picture_are_described(serve: Serve) -> None:
    with Viewer(serve()) as viewer:
        viewer.open()
        viewer.show(1)
        header, _ = viewer.pictures()
    assert [name for row in table("field") for name in re.findall(r"`([^`]+)`", row[0])] == list(header)


def test_close_codes_and_their_errors_are_described() -> None:
    found: dict[int, set[str]] = defaultdict(set)
    for call in calls("Refused"):
        code = getattr(call.args[0], "attr", None) or getattr(call.args[0], "id", None)
        found[getattr(protocol, str(code))] |= texts(call.args[1])
    described = {int(row[0]): words(row[1]) for row in table("close code")}
    assert {code: errors for code, errors in described.items() if errors} == found
    codes = {value for value in vars(protocol).values() if type(value) is int and value in range(1000, 5000)}
    assert described.keys() == (codes | CLOSED_BY_UVICORN) - {protocol.MAX_TEXT}


def test_codes_of_errors_are_described() -> None:
    described = {
        (int(status), code) for row in table("status") for status in row[0].split(", ") for code in words(row[1])
    }
    found = {
        (call.args[0].value, code)
        for call in calls("Problem")
        if isinstance(call.args[0], ast.Constant)
        for code in texts(call.args[1])
    }
    assert found <= described


def test_requests_are_described(predictor: Predictor) -> None:
    app = create_app(predictor, settings_of())
    app.state.service.close()
    paths = get_openapi(title="", version="", routes=app.routes)["paths"]
    found = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert {word for row in table("request") for word in words(row[0])} - {"GET /", "/page/…"} == found


def test_metrics_are_described() -> None:
    found = {}
    for metric in Metrics(name="a", backend="b", precision="c").registry.collect():
        labels = ",".join(name for name in metric.samples[0].labels if name != "le") if metric.samples else "code"
        name = metric.name + {"counter": "_total", "info": "_info"}.get(metric.type, "")
        found[f"{name}{{{labels}}}" if labels else name] = "gauge" if metric.type == "info" else metric.type
    described = {word: row[1] for row in table("metric") for word in words(row[0])}
    assert described == found
