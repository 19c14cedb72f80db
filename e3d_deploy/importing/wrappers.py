"""Find the OpenSTL network in the content of a PyTorch file, and name the tensors that are not imported."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e3d_deploy.errors import CheckpointError, ConfigError
from e3d_deploy.importing.fit import is_plain, listed

log = logging.getLogger(__name__)

WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Name components that torch.compile, DistributedDataParallel, FSDP and checkpointing insert, and that are removed."""
ROOTS = ("cell_list", "conv_last")
"""First components of the names of a network's tensors. Every network has at least one tensor in `cell_list`."""
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|avg|shadow|teacher)(_|$)")
"""Pattern in the name of a copy of the network whose weights are moving averages."""
COUNT = "n_averaged"
"""Last component of the name of the counter that torch.optim.swa_utils stores with averaged weights."""
BESIDE = re.compile(
    r"(^|_)loss(?!less)|loss(es|fn)?(_|$)|_mae$"
    r"|(^|_)(criterion\w*|lpips|vgg\d*|percep(tual\w*)?|metrics?|ssim|psnr|mse|disc|discriminator|critic|net_?d"
    r"|optimizers?|schedulers?|ema|swa|n_averaged)(_|$)"
)
"""Pattern in the names of tensors that belong to the training and not to the network, such as losses."""
OPTIMIZER = re.compile(r"(^|_)(optim|optimizers?|optimizer_states?|exp_avg|momentum_buffer)(_|$)")
"""Pattern in the names of an optimizer's state, which may repeat the name of every tensor of the network."""
DEEPEST = 8
"""Maximum depth to which nested dictionaries and lists are searched."""


@dataclass(frozen=True)
class Network:
    """The tensors of one network in a file."""

    part: str
    """Prefix of the names of the tensors in the file, such as `model.state_dict`; empty if the names have none."""
    tensors: Mapping[str, Tensor]
    """Tensors by their names within the network."""

    @property
    def averaged(self) -> bool:
        """True if the prefix shows that the tensors are moving averages."""
        return _is_average(self.part)


def network_in(content: Mapping[Any, Any], *, part: str | None, ema: bool, source: str) -> Network:
    """Return the network in the content of a file; log which networks and tensors are ignored.

    Args:
        part: prefix of the network to return if the file contains several.
        ema: return the moving averages in place of the network that they average.
        source: name of the file in messages.

    Raises:
        CheckpointError: the file contains several different networks, two different tensors of one name, tensors that
            OpenSTL's E3D-LSTM does not have, or a value other than a tensor in place of a tensor.
        ConfigError: the file contains no network `part`, or no moving averages.
    """
    leaves = dict(_leaves(content, (), DEEPEST))
    networks, others = _networks(leaves, source)
    if not networks:
        if part is not None or ema:
            raise ConfigError(
                f"{source}: contains no OpenSTL network, and --part and --ema apply only to OpenSTL networks; omit them"
            )
        return Network("", _tensors(leaves, source))
    taken = _chosen(networks, others, part=part, ema=ema, source=source)
    known, unknown = _sorted_out(others, taken.part)
    if unknown:
        raise CheckpointError(
            f"{source}: holds {listed(unknown)}, which no E3D-LSTM of OpenSTL has; it contains a different network"
        )
    left = [one for one in networks if one is not taken]
    if left or known:
        averages = any(one.averaged for one in left) and not ema
        hint = "; `e3d import --ema` imports the moving averages" if averages else ""
        summary = ", ".join([*(_called(one.part) for one in left), *_groups(known, taken.part)])
        log.warning("%s: imported %s; ignored %s%s", source, _called(taken.part), summary, hint)
    elif taken.averaged and not ema:
        log.warning("%s: imported %s, the only network; its name shows that it is a moving average", source, taken.part)
    return taken


def _leaves(value: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value that is not a dictionary or list, with its path, in which names are split at their dots."""
    if depth and isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, (*path, *str(name).split(".")), depth - 1)
    elif depth and isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _leaves(one, (*path, str(number)), depth - 1)
    else:
        yield path, value


def _networks(leaves: Mapping[tuple[str, ...], Any], source: str) -> tuple[list[Network], list[str]]:
    """Return the networks among the leaves, and the names of the other tensors."""
    found: dict[str, dict[str, Tensor]] = {}
    odd: dict[str, str] = {}
    others: list[str] = []
    for path, leaf in leaves.items():
        words = tuple(word for word in path if word not in WRAPPERS)
        root = next((words.index(name) for name in ROOTS if name in words), None)
        if root is None or any(OPTIMIZER.search(word.lower()) for word in words):
            others += [".".join(words)] if isinstance(leaf, Tensor) else []
            continue
        part, name = ".".join(words[:root]), ".".join(words[root:])
        if not isinstance(leaf, Tensor):
            odd.setdefault(part, f"{'.'.join(path)} is a {type(leaf).__name__}")
            continue
        tensors = found.setdefault(part, {})
        if name in tensors and not _same(tensors[name], leaf):
            raise CheckpointError(
                f"{source}: holds {name} twice in {_called(part)}, with different values; save only one network"
            )
        tensors[name] = leaf
    for part in found:
        if part in odd:  # prefixes without tensors are ignored; under such prefixes DeepSpeed stores shapes
            raise CheckpointError(f"{source}: {odd[part]}, expected a tensor")
    networks = [Network(part, tensors) for part, tensors in found.items()]
    whole = [one for one in networks if any(name.startswith(ROOTS[0]) for name in one.tensors)]
    others += [name for one in networks if one not in whole for name in _full(one)]
    return whole, others


def _chosen(networks: Sequence[Network], others: Sequence[str], *, part: str | None, ema: bool, source: str) -> Network:
    """Return the network that the options select.

    Without `part`, moving averages are selected only if `ema` is set, or if all networks in the file are moving
    averages. Equal networks count as one.
    """
    names = ", ".join(_called(one.part) for one in networks)
    if part is not None:
        named = [one for one in networks if one.part == part]
        if not named:
            raise ConfigError(f"part: got {part!r}, but {source} holds {names}; give one of them")
        if ema and not named[0].averaged:
            raise ConfigError(
                f"ema: the name {part} in {source} is not that of a moving average; give only --part or only --ema"
            )
        return named[0]
    meant = [one for one in networks if one.averaged == ema]
    if ema and not meant:
        if nameless := [name for name in others if _is_average(name)]:
            raise ConfigError(
                f"ema: {source} holds {', '.join(_groups(nameless, ''))}, whose names differ from those of the "
                "weights, so they cannot be matched; rename them like the weights, or omit --ema"
            )
        if any(name.split(".")[-1] == COUNT for name in others):
            raise ConfigError(f"ema: {source} holds {names}, which is already an average (it has {COUNT}); omit --ema")
        raise ConfigError(f"ema: {source} holds {names}, but no moving averages; omit --ema")
    meant = meant or list(networks)
    if any(not _equal(meant[0], other) for other in meant[1:]):
        raise CheckpointError(f"{source}: holds several networks, {names}; choose one with `e3d import --part NAME`")
    return meant[0]


def _equal(one: Network, other: Network) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        _same(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return is_plain(one) and is_plain(other) and one.dtype == other.dtype and torch.equal(one, other)


def _sorted_out(others: Sequence[str], part: str) -> tuple[list[str], list[str]]:
    """Return the tensors that do not belong to the network `part`, and the tensors that may belong to it."""
    inside = [name for name in others if not part or name.startswith(f"{part}.")]
    beneath = {name: name.removeprefix(f"{part}.") if part else name for name in inside}
    unknown = [name for name in inside if not any(map(_is_beside, beneath[name].split(".")))]
    return [name for name in others if name not in set(unknown)], unknown


def _is_average(name: str) -> bool:
    words = name.lower().split(".")
    return words[-1] != COUNT and any(map(AVERAGED.search, words))


def _is_beside(word: str) -> bool:
    return bool(BESIDE.search(word.lower()) or OPTIMIZER.search(word.lower()))


def _tensors(leaves: Mapping[tuple[str, ...], Any], source: str) -> dict[str, Tensor]:
    """Return all leaves as tensors, by their names."""
    tensors = {}
    for path, leaf in leaves.items():
        if not isinstance(leaf, Tensor):
            raise CheckpointError(f"{source}: {'.'.join(path)} is a {type(leaf).__name__}, expected a tensor")
        tensors[".".join(path)] = leaf
    return tensors


def _full(network: Network) -> list[str]:
    return [f"{network.part}.{name}" if network.part else name for name in network.tensors]


def _called(part: str) -> str:
    return part or "the network without a prefix"


def _groups(names: Sequence[str], part: str) -> list[str]:
    """Group names by their components up to the first that differs from `part`; format each group with its size."""
    own = part.split(".")

    def group(words: Sequence[str]) -> str:
        differs = next(
            (place for place, (one, other) in enumerate(zip(words, own, strict=False)) if one != other), len(own)
        )
        return ".".join(words[: differs + 1])

    counts = Counter(group(name.split(".")) for name in names)
    return [f"{first} ({count} tensor{'s' * (count > 1)})" for first, count in counts.items()]
