"""What a bundle or a model file holds, for `e3d inspect`."""

from pathlib import Path
from typing import Any

from e3d_deploy import contract
from e3d_deploy.config import ModelConfig
from e3d_deploy.runtime.bundle import Bundle


def inspect_model(path: Path) -> dict[str, Any]:
    """Config and size of a model file.

    Raises:
        CheckpointError: it is not one.
    """
    from e3d_deploy import checkpoint

    model = checkpoint.load(path)
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "model": {"file": path.name, "parameters": parameters, "bytes": path.stat().st_size, **_state(model.config)},
        "config": model.config.to_dict(),
    }


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Config, graphs, engines and verification of a bundle; its hashes are checked on the way.

    Raises:
        BundleError: it is damaged, incomplete or too new.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    return {
        "bundle": {
            "name": manifest["name"],
            "digest": bundle.digest[:16],
            "created": manifest["created"],
            "context": bundle.context_length,
            "horizon": bundle.horizon,
            "batch": bundle.batch,
            "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            "history": f"exact for {manifest['history']['exact_for_steps']} steps, then {manifest['history']['then']}",
            **{f"made by {name}": version for name, version in manifest["producer"].items()},
            **_state(bundle.config),
        },
        "config": bundle.config.to_dict(),
        "graph": {
            name: {
                "file": graph["file"],
                "nodes": graph["nodes"],
                "opset": graph["opset"],
                "precision": graph["precision"],
            }
            for name, graph in manifest["graphs"].items()
        },
        "step input": {
            tensor["name"]: {"shape": tensor["shape"], "dtype": tensor["dtype"]}
            for tensor in manifest["graphs"]["step"]["inputs"]
        },
        "engine": {
            name: {key: engine[key] for key in ("builder", "compute_capability", "bytes", "build_seconds", "created")}
            for name, engine in manifest["engines"].items()
        },
        "verified": {
            name: {
                "against": report["yardstick"],
                "largest difference": report["worst"],
                "passed": report["passed"],
            }
            for name, report in manifest["verification"].items()
        },
    }


def _state(config: ModelConfig) -> dict[str, int]:
    return {"state of a stream, bytes": sum(tensor.nbytes for tensor in contract.states(config))}
