"""Finding the network in a PyTorch file that also contains wrappers and tensors of the training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from e3d_deploy import checkpoint
from e3d_deploy.config import ModelConfig
from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.importing import import_checkpoint, openstl
from e3d_deploy.model import E3DLSTM
from tests.tools import e3d

Tensors = dict[str, Tensor]
SETTINGS = ModelConfig(image_size=(8, 8), hidden=(4, 4), kernel_size=3, semantics="openstl", layer_norm=False)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    torch.manual_seed(0)
    names = openstl.names_of(SETTINGS)
    return {names[ours]: weight.detach() for ours, weight in E3DLSTM(SETTINGS).state_dict().items()}


def before(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def other(tensors: Tensors) -> Tensors:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def saved(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "m.pth")
    return tmp_path / "m.pth"


def imported(path: Path, **options: Any) -> Tensors:
    """Import a file; return the weights under OpenSTL's names."""
    names = openstl.names_of(SETTINGS)
    return {names[ours]: weight for ours, weight in import_checkpoint(path, **options).model.state_dict().items()}


def same(found: Tensors, expected: Tensors) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


ALONE: dict[str, Callable[[Tensors], Any]] = {
    "compiled": lambda one: before("_orig_mod.", one),
    "compiled in DDP": lambda one: before("module._orig_mod.", one),
    "compiled cells": lambda one: {name.replace("conv3d.", "conv3d._orig_mod."): value for name, value in one.items()},
    "sharded": lambda one: before("_fsdp_wrapped_module.model.", one),
    "model": lambda one: {"model": one, "epoch": 3, "args": {"lr": 0.1}},
    "net in DDP": lambda one: {"net": before("module.", one)},
    "params": lambda one: {"params": one},
    "nested": lambda one: {"checkpoint": {"model_state_dict": before("model.", one)}},
    "shapes of DeepSpeed": lambda one: {
        "module": one,
        "param_shapes": [{name: tensor.shape for name, tensor in one.items()}],
    },
    "compiled copy": lambda one: {"state_dict": before("model.", one) | before("fast._orig_mod.", one)},
}


@pytest.mark.parametrize("kind", ALONE)
def test_a_network_is_found_in_its_wrappers(kind: str, tmp_path: Path, tensors: Tensors) -> None:
    assert same(imported(saved(tmp_path, ALONE[kind](tensors))), tensors)


def test_a_safetensors_file_of_openstl_is_imported(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "m.safetensors"
    save_file(before("module.", tensors), path, metadata={"format": "pt"})
    assert same(imported(path), tensors)
    e3d("import", path, "-o", tmp_path / "ours.safetensors", "--fit", "pad")
    assert checkpoint.read_card(tmp_path / "ours.safetensors").fit == "pad"
    with pytest.raises(CheckpointError, match="is already a model of e3d_deploy"):
        import_checkpoint(tmp_path / "ours.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is damaged"):
        import_checkpoint(path)


BESIDE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "loss": (lambda one: one | {"loss.vgg.0.weight": torch.zeros(3)}, "ignored loss (1 tensor)"),
    "lpips": (
        lambda one: {"state_dict": before("model.", one) | {"lpips.lin0.weight": torch.zeros(1)}},
        "imported state_dict.model; ignored state_dict.lpips (1 tensor)",
    ),
    "losses in words": (
        lambda one: one | {"VGGLoss.0.weight": torch.zeros(3), "percep.0": torch.zeros(1), "disc.0": torch.zeros(1)},
        "ignored VGGLoss (1 tensor), percep (1 tensor), disc (1 tensor)",
    ),
    "measures": (
        lambda one: one | {"val_mse.total": torch.zeros(1), "ssim.window": torch.zeros(1)},
        "ignored val_mse (1 tensor), ssim (1 tensor)",
    ),
    "beneath": (
        lambda one: {"state_dict": before("model.", one | {"lpips.lin0.weight": torch.zeros(1)})},
        "imported state_dict.model; ignored state_dict.model.lpips (1 tensor)",
    ),
    "optimizer": (
        lambda one: {"model": one, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.ones(1)}}}},
        "imported model; ignored optimizer (2 tensors)",
    ),
    "optimizer by names": (
        lambda one: {"model": one, "exp_avg": other(one), "optim": {"state": other(one)}},
        "imported model; ignored exp_avg (17 tensors), optim (17 tensors)\n",
    ),
    "averages": (
        lambda one: {"params": one, "params_ema": other(one)},
        "imported params; ignored params_ema; `e3d import --ema` imports the moving averages",
    ),
    "averages alone": (
        lambda one: {"model_ema": one},
        "imported model_ema, the only network; its name shows that it is a moving average",
    ),
    "average count": (lambda one: before("module.", one) | {"n_averaged": torch.ones(1)}, "ignored n_averaged"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_tensors_next_to_a_network_are_named(
    kind: str, tmp_path: Path, tensors: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    content, remark = BESIDE[kind]
    assert same(imported(saved(tmp_path, content(tensors))), tensors)
    assert remark in caplog.text


def test_one_of_several_networks_has_to_be_named(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, {"first": tensors, "second": other(tensors)})
    with pytest.raises(CheckpointError, match="holds several networks, first, second; choose one with"):
        import_checkpoint(path)
    assert same(imported(path, part="second"), other(tensors))
    with pytest.raises(ConfigError, match=r"part: got 'third', but .* holds first, second"):
        import_checkpoint(path, part="third")
    with pytest.raises(ConfigError, match="no moving averages; omit --ema"):
        import_checkpoint(path, ema=True)


def test_a_network_without_its_upper_layers_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    content = {"state_dict": before("model.", tensors), "hyper_parameters": {"num_hidden": "4, 4"}}
    assert same(imported(saved(tmp_path, content)), tensors)
    content["state_dict"] = {
        name: tensor for name, tensor in content["state_dict"].items() if "cell_list.1" not in name
    }
    with pytest.raises(CheckpointError, match="holds layers of 4, but Lightning stored num_hidden 4, 4"):
        import_checkpoint(saved(tmp_path, content))
    content["state_dict"] |= before("other.", tensors)  # the settings may be those of the other network
    assert len(imported(saved(tmp_path, content), part="state_dict.model")) < len(tensors)


def test_moving_averages_can_be_imported(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, {"state_dict": tensors, "ema_state_dict": other(tensors)})
    assert same(imported(path, ema=True), other(tensors))


def test_ema_is_refused_for_a_part_that_is_not_an_average(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, {"model": tensors, "model_ema": other(tensors)})
    with pytest.raises(
        ConfigError, match=r"ema: the name model in .*m\.pth is not that of a moving average; give only"
    ):
        import_checkpoint(path, part="model", ema=True)
    assert same(imported(path, part="model_ema", ema=True), other(tensors))


NAMELESS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "list": (lambda one: {"model": one, "ema": {"shadow_params": list(one.values())}}, r"ema \(17 tensors\)"),
    "callback": (
        lambda one: {"state_dict": one, "optimizer_states": [{"ema": tuple(one.values())}]},
        r"optimizer_states \(17 tensors\)",
    ),
    "flattened": (
        lambda one: one | {f"ema.{name.replace('.', '_')}": tensor for name, tensor in one.items()},
        r"ema \(17 tensors\)",
    ),
}


@pytest.mark.parametrize("kind", NAMELESS)
def test_averages_under_other_names_are_reported(kind: str, tmp_path: Path, tensors: Tensors) -> None:
    content, named = NAMELESS[kind]
    with pytest.raises(
        ConfigError, match=rf"m\.pth holds {named}, whose names differ from those of the weights, so they"
    ):
        import_checkpoint(saved(tmp_path, content(tensors)), ema=True)


def test_a_network_with_a_count_of_averages_is_called_an_average(tmp_path: Path, tensors: Tensors) -> None:
    with pytest.raises(ConfigError, match=r"which is already an average \(it has n_averaged\); omit --ema"):
        import_checkpoint(saved(tmp_path, before("module.", tensors) | {"n_averaged": torch.ones(1)}), ema=True)


KERNEL = "cell_list.0.conv_h.0.conv3d.weight"
ODD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "beyond float32": (
        lambda one: one.double() * 1e300,
        r"holds a weight of .*e\+2\d\d, expected at most 3\.40282e\+38",
    ),
    "float8": (lambda one: one.to(torch.float8_e4m3fn), "is float8_e4m3fn, expected dense floats"),
    "sparse": (lambda one: one.to_sparse(), "is sparse_coo, expected dense floats"),
    "meta": (lambda one: one.to("meta"), r"is without values \(on meta\), expected dense floats"),
    "complex": (lambda one: one.to(torch.complex64), "is complex64, expected dense floats"),
}


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_not_float32_are_named(kind: str, copies: bool, tmp_path: Path, tensors: Tensors) -> None:
    change, message = ODD[kind]
    odd = tensors | {KERNEL: change(tensors[KERNEL])}
    path = saved(tmp_path, {"model": odd, "fast": odd} if copies else odd)
    with pytest.raises(CheckpointError, match=f"m.pth: {KERNEL} {message}" if not copies else "m.pth: "):
        import_checkpoint(path)


def test_a_safetensors_file_of_float8_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="is float8_e4m3fn, expected dense floats"):
        import_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "zero", ["cell_list.0.conv_x.0.conv3d.weight", "cell_list.1.conv_last.conv3d.weight", "conv_last.weight"]
)
def test_a_network_that_is_blind_to_its_input_is_named(
    zero: str, tmp_path: Path, tensors: Tensors, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, tensors | {zero: torch.zeros_like(tensors[zero])})
    model = import_checkpoint(path).model
    first, second = torch.rand(2, 1, 3, 1, 8, 8)
    assert torch.equal(model(first, 2), model(second, 2))
    assert f"{zero} contains only zeros, so the model predicts the same frames for every input" in caplog.text
    caplog.clear()
    import_checkpoint(saved(tmp_path, tensors))
    assert "zeros" not in caplog.text


def test_patches_of_two_sizes_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, tensors | {"conv_last.weight": torch.ones(17, 4, 2, 1, 1)})
    with pytest.raises(CheckpointError, match=r"conv_x.* takes patches of 16 .*conv_last\.weight gives 17"):
        import_checkpoint(path)


def test_a_bundle_in_place_of_a_checkpoint_is_called_a_bundle(bundle_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it is a bundle, or a part of one, and needs no import"):
        import_checkpoint(bundle_path)


def test_errors_for_folders_and_lists_of_shards_suggest_a_file(tmp_path: Path, tensors: Tensors) -> None:
    def refusal(name: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            import_checkpoint(tmp_path / name)
        return str(caught.value)

    for name in ("hf", "run/checkpoints", "shards", "dcp"):
        (tmp_path / name).mkdir(parents=True)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "config.json").write_text("{}")
    assert refusal("hf").endswith(f"(no file ends in .index); give {tmp_path}/hf/model.safetensors")
    for name in ("best.ckpt", "last.ckpt"):
        torch.save(tensors, tmp_path / "run" / "checkpoints" / name)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert refusal("run").endswith(f"give one of its 2 files of PyTorch, such as {last}")
    save_file(tensors, tmp_path / "shards" / "model-00001-of-00002.safetensors")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text("{}")
    assert "holds the shards of a model; load all of them" in refusal("shards")
    assert "lists the shards of a model; load all of them" in refusal("shards/model.safetensors.index.json")
    (tmp_path / "dcp" / ".metadata").touch()
    assert f"dcp_to_torch {tmp_path}/dcp FILE.pth" in refusal("dcp")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert refusal("lfs.pth").endswith("is a Git LFS pointer, not the file; run `git lfs pull` in its repository")


def test_the_file_that_is_read_is_not_replaced(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, tensors)
    (tmp_path / "link.safetensors").symlink_to(path)
    content = path.read_bytes()
    for name, reason in {
        "m.pth": "is an input and would be overwritten",
        "link.safetensors": "is an input and would be overwritten",
        "other.pth": "got a .pth file, expected .safetensors",
        "none/m.safetensors": "its folder does not exist",
        ".": "is a folder",
    }.items():
        assert reason in e3d("import", path, "-o", tmp_path / name, "--overwrite", code=2).stderr
    assert path.read_bytes() == content


def test_a_version_in_a_name_is_not_a_suffix(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, tensors)
    result = e3d("import", path, "-o", tmp_path / "model_v1.2")
    assert (tmp_path / "model_v1.2").is_file()
    assert "model_v1.2.e3d" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one | {"encoder.weight": torch.zeros(3)}, "holds encoder.weight, which no E3D-LSTM"),
        (
            lambda one: one | before("module.", other(one)),
            "twice in the network without a prefix, with different values",
        ),
        (lambda one: one | {"cell_list.0.scale": 3.0}, "cell_list.0.scale is a float, expected a tensor"),
        (
            lambda one: one | {"conv_last.weight": one["conv_last.weight"] / 0},
            "conv_last.weight holds 128 of 128 values",
        ),
    ],
)
def test_unusable_tensors_are_named(
    change: Callable[[Tensors], Any], message: str, tmp_path: Path, tensors: Tensors
) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(saved(tmp_path, change(tensors)))


def test_a_model_file_with_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = E3DLSTM(SETTINGS)
    model.cells[1].merge.weight.data[0, 0] = torch.inf
    checkpoint.save(model, tmp_path / "m.safetensors")
    line = e3d("export", tmp_path / "m.safetensors", "-o", tmp_path / "m.e3d", code=5).stderr
    assert "m.safetensors: cells.1.merge.weight holds" in line
    assert "values that are NaN or infinite" in line


def test_a_foreign_checkpoint_has_to_be_imported_before_it_predicts(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, tensors)
    line = e3d("predict", path, tmp_path / "clip.npy", "-o", tmp_path / "o.npz", code=5).stderr
    assert f"got a third-party checkpoint; import it first: `e3d import {path} -o MODEL.safetensors`" in line
