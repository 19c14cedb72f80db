"""The stable API: parity with the commands, frozen signatures, imports, errors, and one run from end to end."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from e3d_deploy import api, runtime
from e3d_deploy.cli import main
from tests.api_signatures import FILE, described

TAKES: dict[str, tuple[Callable[..., Any], ...]] = {
    "benchmark": (api.benchmark,),
    "build": (api.build, api.EngineConfig, api.EngineCache),
    "cache ls": (api.EngineCache,),
    "cache rm": (api.EngineCache,),
    "cache verify": (api.EngineCache,),
    "data inspect": (api.inspect_data, api.Form),
    "diff": (api.diff,),
    "doctor": (api.examine, api.find_faults, api.examine_bundle),
    "evaluate": (api.evaluate, api.evaluate_streaming, api.import_checkpoint),
    "export": (api.export,),
    "import": (api.import_checkpoint, api.compare_outputs, api.save_model),
    "inspect": (api.inspect,),
    "join": (api.join_parts,),
    "pack": (api.pack, api.write_repository, api.Serving),
    "predict": (api.predict,),
    "profile": (api.profile,),
    "refit": (api.refit,),
    "serve": (api.serving, api.ServerSettings, api.open_predictor),
    "stream": (api.open_predictor, api.Watch, api.FeedOptions, api.Selection),
    "train": (api.train, api.ModelConfig, api.TrainConfig, api.Machine, api.configs),
    "unpack": (api.unpack,),
    "verify": (api.verify,),
}
"""Functions and settings of the API that do the work of each command."""
RENAMED = {
    ("benchmark", "latency_goal"): "latency_goal_ms",
    ("build", "cache_folder"): "folder",
    ("build", "cache_limit_gb"): "limit_bytes",
    ("build", "workspace_mb"): "workspace_bytes",
    ("cache ls", "cache_folder"): "folder",
    ("cache rm", "cache_folder"): "folder",
    ("cache verify", "cache_folder"): "folder",
    ("data inspect", "source_"): "source",
    ("export", "model"): "model_path",
    ("import", "output"): "path",
    ("doctor", "bundle"): "path",
    ("pack", "triton"): "output",
    ("refit", "source_"): "source",
    ("serve", "bundle"): "path",
    ("serve", "idle_timeout"): "idle_timeout_s",
    ("serve", "max_upload"): "max_upload_bytes",
    ("serve", "memory_limit"): "memory_limit_bytes",
    ("serve", "sources"): "offers",
    ("serve", "tls_cert"): "certificate",
    ("serve", "tls_key"): "key",
    ("stream", "model"): "path",
    ("stream", "reset_on"): "reset_on_cut",
    ("stream", "sources"): "source",
    ("train", "output"): "run",
    ("train", "parts_every"): "parts_every_s",
    ("train", "time_limit"): "time_limit_s",
    ("unpack", "archive"): "path",
    ("unpack", "limit_mb"): "most_bytes",
}
"""Parameters whose name says more than the option, such as the unit, by command and option."""
SHOWN = "decides only what is printed"
WRITES = "`Watch` yields each picture with its forecast, and a program writes them itself"
EXCUSED = {
    ("cache rm", "all_"): "`EngineCache.keys` lists the keys",
    ("cache rm", "keys"): "argument of `EngineCache.remove`",
    ("demo", "full"): "shows the package",
    ("demo", "output"): "shows the package",
    ("diff", "exit_code"): SHOWN,
    ("evaluate", "streaming"): "`evaluate_streaming` is a function of its own",
    ("help", "topic"): SHOWN,
    ("import", "overwrite"): "`save_model` replaces a file",
    ("import", "reference"): "`compare_outputs` is a function of its own",
    ("profile", "top"): SHOWN,
    ("serve", "token_file"): "a program reads the token itself",
    ("train", "resume_or_new"): "a program looks for `last.ckpt` in the run folder and gives `resume`",
    **{("stream", name): WRITES for name in ("output", "push", "raw_output", "jsonl", "zoom")},
    ("stream", "raw"): "a program pushes raw pictures into a stream",
}
"""Options without a parameter, by command and option, with the reason."""


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the commands with their names, such as `cache ls`."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


OPTIONS = [
    (name, option.name)
    for name, command in commands(main)
    for option in command.params
    if option.name not in ("json_", "help", "help_all")
]


def parameters(command: str) -> set[str]:
    return {name for one in TAKES.get(command, ()) for name in inspect.signature(one).parameters} | {
        name for one in TAKES.get(command, ()) if one is api.configs for name in ("recipe", "preset")
    }


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_each_option_of_a_command_is_a_parameter_of_the_api(command: str, option: str) -> None:
    if (command, option) in EXCUSED:
        assert option not in parameters(command), "remove it from EXCUSED"
    else:
        assert RENAMED.get((command, option), option) in parameters(command)


def test_no_entry_of_the_tables_is_left_over() -> None:
    assert sorted({*RENAMED, *EXCUSED} - set(OPTIONS)) == []  # type: ignore[type-var]


def test_signatures_change_only_on_purpose() -> None:
    """If this fails, the change breaks programs, or is new: `python -m tests.api_signatures` writes the file again."""
    assert described().splitlines() == FILE.read_text().splitlines()


def test_each_name_has_a_docstring_of_its_own() -> None:
    for name in api.__all__:
        text = inspect.getdoc(getattr(api, name)) or ""
        assert not text.startswith(f"{name}("), f"{name}: dataclasses makes this text"
        assert len(text) > 20, name


def test_the_page_on_the_api_lists_each_name_once() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    table = page.partition("## Names by task")[2].partition("\nEach command")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(api.__all__)


def test_type_checkers_see_the_same_names_as_programs() -> None:
    tree = ast.parse(Path(api.__file__).read_text())
    (block,) = (one for one in tree.body if isinstance(one, ast.If))
    seen = {alias.asname: one.module for one in block.body if isinstance(one, ast.ImportFrom) for alias in one.names}
    assert seen == api.LAZY


def test_the_api_contains_all_names_of_the_runtime() -> None:
    assert set(runtime.__all__) <= set(api.__all__)
    assert all(getattr(api, name) is getattr(runtime, name) for name in runtime.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'forecast_all'"):
        api.forecast_all  # noqa: B018
    assert "forecast_all" not in dir(api)
    assert "predict" in dir(api)


def test_the_import_needs_no_library() -> None:
    code = "import sys; import e3d_deploy.api; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"numpy", "torch", "onnx", "onnxruntime", "openvino", "click", "rich", "lightning", "av", "tensorrt"}
    assert not heavy & set(ast.literal_eval(done.stdout))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: api.Bundle.open(3), "bundle: got 3"),  # type: ignore[arg-type]
        (lambda: api.build(None), "bundle: got None"),  # type: ignore[arg-type]
        (lambda: api.refit("none.e3d", 3, "tensorrt"), "no such"),  # type: ignore[arg-type]
        (lambda: api.pack(3, "a.zip"), "bundle: got 3"),  # type: ignore[arg-type]
        (lambda: api.unpack("a.zip", 3), "output: got 3"),  # type: ignore[arg-type]
        (lambda: api.export(3, "a.e3d"), "model_path: got 3"),  # type: ignore[arg-type]
        (lambda: api.export("a.safetensors", "a.e3d", calibration=3), "calibration: got 3"),  # type: ignore[arg-type]
        (lambda: api.export("a.safetensors", "a.e3d", layout="THW"), "--layout requires"),
        (lambda: api.export("a.safetensors", "a.e3d", calibration="c"), "calibration: not used with precision fp32"),
        (lambda: api.profile("a.e3d", steps=0), "steps: got 0"),
        (lambda: api.inspect(3), "path: got 3"),  # type: ignore[arg-type]
        (lambda: api.diff("a.e3d", 3), "other: got 3"),  # type: ignore[arg-type]
        (lambda: api.load(3), "path: got 3"),  # type: ignore[arg-type]
        (lambda: api.predict(3, "clip.npy"), "path: got 3"),  # type: ignore[arg-type]
        (lambda: api.predict("a.e3d", 3), "clip: got 3"),  # type: ignore[arg-type]
        (lambda: api.predict("a.e3d", "clip.npy", every=2, resample=5), "every, resample: got both"),
        (lambda: api.predict("a.e3d", "clip.npy", horizon=0), "horizon: got 0, expected a whole number of 1 or more"),
        (
            lambda: api.predict("a.e3d", "clip.npy", "out.npz", zoom=2),
            "zoom: got 2, but no video or picture",
        ),
        (lambda: api.predict("a.e3d", "clip.npy", start=-1), "start: got -1, expected a whole number of 0 or more"),
        (lambda: api.evaluate("a.e3d", context_length=0), "context_length: got 0"),
        (lambda: api.evaluate("a.e3d", most=True), "most: got True"),
        (lambda: api.evaluate_streaming("a.e3d", horizon=2.5), "horizon: got 2.5"),  # type: ignore[arg-type]
        (lambda: api.verify("a.e3d", steps=0), "steps: got 0"),
        (lambda: api.verify("a.e3d", against="mine"), "against: got 'mine'"),  # type: ignore[arg-type]
        (lambda: api.benchmark("a.e3d", repeats=1), "repeats: got 1, expected a whole number of 5 or more"),
        (lambda: api.benchmark("a.e3d", seconds=float("nan")), "seconds: got nan"),
        (lambda: api.benchmark("a.e3d", streams=[0]), "streams: got 0"),
        (lambda: api.evaluate(3), "model: got 3"),  # type: ignore[arg-type]
        (lambda: api.evaluate("a.e3d", convention="mine"), "convention: got 'mine'"),  # type: ignore[arg-type]
        (lambda: api.evaluate_streaming(3), "model: got 3"),  # type: ignore[arg-type]
        (lambda: api.verify("none.e3d"), "no such"),
        (lambda: api.benchmark("none.e3d", "torch"), "backends: got 'torch', expected a list"),
        (lambda: api.benchmark("none.e3d", streams=4), "streams: got 4, expected a list"),  # type: ignore[arg-type]
        (lambda: api.benchmark("none.e3d", latency_goal_ms="33ms"), "latency_goal_ms: got '33ms'"),  # type: ignore[arg-type]
        (lambda: api.benchmark("none.e3d", latency_goal_ms=33, fps=0), "fps: got 0, expected a finite number above 0"),
        (lambda: api.benchmark("none.e3d", baseline="a.json", tolerance=-1), "tolerance: got -1"),
        (lambda: api.evaluate("a.e3d", split="trian"), "split: got 'trian', expected one of train, valid, test"),  # type: ignore[arg-type]
        (lambda: api.evaluate_streaming("a.e3d", split="all"), "split: got 'all'"),  # type: ignore[arg-type]
        (lambda: api.evaluate_streaming("a.e3d", renewals="none"), "renewals: got 'none', expected a list"),
        (lambda: api.evaluate_streaming("a.e3d", ages=["5"]), "ages: got '5'"),  # type: ignore[list-item]
        (lambda: api.predict("a.e3d", "clip.npy", resample="5"), "resample: got '5'"),  # type: ignore[arg-type]
        (lambda: api.FeedOptions(queue_length="3"), "queue_length: got '3'"),  # type: ignore[arg-type]
        (lambda: api.FeedOptions(silence_s=None), "silence_s: got None"),  # type: ignore[arg-type]
        (lambda: api.FeedOptions(attempts=1.5), "attempts: got 1.5"),  # type: ignore[arg-type]
        (lambda: api.Watch("a.e3d", "film.mp4"), "predictor: got 'a.e3d'"),  # type: ignore[arg-type]
        (lambda: api.write_repository("a.e3d", "models"), "bundles: got 'a.e3d', expected a list"),
        (lambda: api.write_repository(["none.e3d"], "models"), "no such"),
        (lambda: api.configs("smal"), "preset: got 'smal', expected one of tiny"),
        (lambda: api.configs("tiny", horizont=20), "horizont: is no field"),
        (lambda: api.TrainConfig(steps="4"), "steps: got '4', expected a whole number"),  # type: ignore[arg-type]
        (lambda: api.TrainConfig(steps=4.5), "steps: got 4.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda: api.TrainConfig(learning_rate="1"), "learning_rate: got '1', expected a number"),  # type: ignore[arg-type]
        (lambda: api.TrainConfig(average=1), "average: got 1, expected true or false"),  # type: ignore[arg-type]
        (lambda: api.train({}, {}, "run"), "model_config: got {}, expected ModelConfig"),  # type: ignore[arg-type]
        (lambda: api.train(api.ModelConfig(), api.TrainConfig(), "run", data="clips/"), "data: got 'clips/', expected"),  # type: ignore[arg-type]
        (lambda: api.train(api.ModelConfig(), api.TrainConfig(), "run", data=[]), r"data: got \[\], expected"),
        (lambda: api.export("a.safetensors", "a.e3d", horizon=2.5), "horizon: got 2.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda: api.export("a.safetensors", "a.e3d", precision="int8", budget=0.01), "budget: got 0.01"),  # type: ignore[arg-type]
        (lambda: api.Budget(dssim="0.01"), "budget: got '0.01' for dssim"),  # type: ignore[arg-type]
        (lambda: api.examine_bundle("a.e3d", fps=0), "fps: got 0"),
        (lambda: api.inspect_data(3, api.Form(image_size=(8, 8), channels=1)), "source: got 3"),  # type: ignore[arg-type]
        (lambda: api.join_parts("parts", "a.safetensors"), "parts: got 'parts', expected a list"),
        (lambda: api.train(api.ModelConfig(), api.TrainConfig(), 3), "run: got 3"),  # type: ignore[arg-type]
        (lambda: api.import_checkpoint(3), "path: got 3"),  # type: ignore[arg-type]
        (lambda: api.load_model(3), "path: got 3"),  # type: ignore[arg-type]
        (lambda: api.open_predictor(3), "path: got 3"),  # type: ignore[arg-type]
        (lambda: api.EngineCache(3), "folder: got 3"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_raises_an_error_of_the_library(call: Callable[[], object], named: str) -> None:
    with pytest.raises(api.E3DError, match=named):
        call()


def test_an_unknown_target_or_backend_is_an_error_that_lists_the_known_ones(exported: Path) -> None:
    with pytest.raises(api.ConfigError, match="target: got 'tensorrt-rx', expected one of tensorrt"):
        api.build(exported / "tiny.e3d", "tensorrt-rx")  # type: ignore[arg-type]
    with pytest.raises(api.ConfigError, match=r"backend: got \['openvino'\], expected one of auto"):
        api.verify(exported / "tiny.e3d", ["openvino"])  # type: ignore[arg-type]
    with pytest.raises(api.ConfigError, match=r"^threads: got '2', expected a whole number"):
        api.verify(exported / "tiny.e3d", threads="2")  # type: ignore[arg-type]


def test_the_settings_of_a_source_are_checked_before_it_is_opened(exported: Path) -> None:
    with api.load(exported / "tiny.e3d", "onnxruntime") as predictor:
        for name in ("options", "selection"):
            with pytest.raises(api.ConfigError, match=f"{name}: got 2, expected"):
                api.open_feed(predictor, "none.mp4", **{name: 2})  # type: ignore[arg-type]


def test_an_opened_bundle_is_accepted_wherever_its_path_is(exported: Path, tmp_path: Path) -> None:
    bundle, clip = api.Bundle.open(exported / "tiny.e3d"), exported / "clip.npy"
    for function in (api.load, api.open_predictor):
        with function(bundle, "onnxruntime") as predictor:
            assert predictor.identity == bundle.identity
    by_path = api.predict(bundle.path, clip, backend="onnxruntime", context_length=4, horizon=1)
    by_value = api.predict(bundle, clip, backend="onnxruntime", context_length=4, horizon=1)
    np.testing.assert_array_equal(by_value.frames, by_path.frames)
    assert isinstance(api.inspect(bundle), api.BundleContents)
    (model,) = api.write_repository([bundle], str(tmp_path / "models"))
    assert model.bundle is bundle


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Write three clips of a bright square that moves over a dark picture."""
    clips = np.zeros((3, 10, 16, 24, 1), np.uint8)
    for number, clip in enumerate(clips):
        for frame, picture in enumerate(clip):
            picture[3 * number : 3 * number + 6, 2 * frame : 2 * frame + 5] = 200
    np.save(tmp_path / "clips.npy", clips)
    return tmp_path / "clips.npy"


def test_a_program_gets_from_training_to_an_archive_with_engines(clips: Path, tmp_path: Path, rtx: Any) -> None:
    folder = clips.parent
    model_config = api.ModelConfig(image_size=(16, 24), patch_size=4, hidden=(4, 6), kernel_size=3, history_length=4)
    train_config = api.TrainConfig(context_length=4, horizon=3, steps=2, batch_size=2, validate_every=2)
    machine = api.Machine(measure_decay=False, progress=False)
    model = api.train(model_config, train_config, folder / "run", data=[(clips, 1.0)], machine=machine)
    bundle = api.export(model, folder / "a.e3d", reference=clips)

    engines = api.build(bundle, "tensorrt-rtx", graphs=["step"])
    assert engines["step"].precision.proved == "fp32"

    verified = api.verify(bundle, "onnxruntime")
    assert verified.passed in (True, None), "two steps of training may leave nothing to compare"
    assert verified.to_json()["backend"] == "onnxruntime"

    evaluated = api.evaluate(api.Bundle.open(bundle), clips, split="train", backend="onnxruntime")
    assert evaluated.model == str(folder / "a.e3d")
    assert evaluated.results.context_length == 4
    assert evaluated.results.overall("openstl", "mse") > 0

    timed = api.benchmark(bundle, ["onnxruntime"], seconds=0.01, memory=False)
    assert timed.rows[0].timing.median_ms > 0
    assert api.profile(bundle, steps=1, roofline=False).step_ms > 0

    forecasts = api.predict(bundle, clips, folder / "forecast.npz", backend="onnxruntime")
    assert forecasts.frames.shape == (3, 3, 1, 16, 24)
    assert forecasts.backend == "onnxruntime"
    alone = api.predict(bundle, np.load(clips)[0], backend="onnxruntime")
    np.testing.assert_array_equal(alone.frames, forecasts.frames[:1])

    archive = api.pack(bundle, folder / "a.e3d.zip", engines=True)
    unpacked, dropped = api.unpack(archive, folder / "b.e3d")
    assert dropped == ["step.tensorrt-rtx"], "the engine was packed, although the bundle was exported before it"
    contents = api.inspect(unpacked.path)
    assert isinstance(contents, api.BundleContents)
    assert not contents.engines
    assert "weights" not in api.diff(bundle, unpacked.path)["differs_in"]
    with api.load(unpacked.path, "onnxruntime") as predictor:
        stream = predictor.stream()
        stream.push(np.load(clips)[0, 0])
        assert stream.predict(horizon=2).shape == (2, 16, 24, 1)


def test_an_array_with_a_wrong_rank_or_options_for_files_is_refused(exported: Path) -> None:
    pictures = np.load(exported / "clip.npy")
    with pytest.raises(api.ShapeError, match=r"clip: got \[16, 24, 1\], expected pictures of one clip"):
        api.predict(exported / "tiny.e3d", pictures[0])
    with pytest.raises(api.ConfigError, match="slice the array"):
        api.predict(exported / "tiny.e3d", pictures, every=2)
    with pytest.raises(api.ConfigError, match="loop: yielded no context"):
        api.predict(exported / "tiny.e3d", pictures, loop=lambda _: ())
    with pytest.raises(api.ShapeError, match="expected"):
        api.predict(exported / "tiny.e3d", pictures[:, :8])


def test_results_are_values_that_cannot_be_changed() -> None:
    for name in ("BenchmarkResult", "EvaluationReport", "Forecasts", "StreamingReport", "Verification"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            object.__new__(getattr(api, name)).backend = "torch"
