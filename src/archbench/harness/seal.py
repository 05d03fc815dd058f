"""What a contender must leave as it found it: it shares its process with the baseline, the gate and the clock.

The seal is put on when the baseline is ready and nothing of the contender is imported. It remembers the switches of
torch, every function and constant of the harness, the clock and the track, and those functions of torch, numpy, the
builtins and ``time`` that these name. Whoever replaces one of them and leaves it replaced is found out. Who puts it
back in time, or patches what has no name in Python, is not: a contender runs where it is timed.
"""

from __future__ import annotations

import builtins
import copy
import inspect
import sys
import time
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from archbench.checks import Wrong

OURS = (
    "archbench.harness",
    "archbench.checks",
    "archbench.hardware.clock",
    "archbench.hardware.timers",
    "archbench.stats",
)
_PARTS = ("__code__", "__defaults__", "__kwdefaults__")
_ABSENT = object()


def settings() -> dict[str, Any]:
    """The global switches of torch by name; empty where torch is not loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    backends, cuda = torch.backends, torch.backends.cuda
    found = {
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_num_interop_threads()": torch.get_num_interop_threads(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_default_device()": torch.get_default_device(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.mkldnn.enabled": backends.mkldnn.enabled,
        "torch.backends.cudnn.enabled": backends.cudnn.enabled,
        "torch.backends.cudnn.benchmark": backends.cudnn.benchmark,
        "torch.backends.cudnn.allow_tf32": backends.cudnn.allow_tf32,
        "reduced-precision sums in fp16": cuda.matmul.allow_fp16_reduced_precision_reduction,
        "reduced-precision sums in bf16": cuda.matmul.allow_bf16_reduced_precision_reduction,
    }
    for backend in ("flash", "mem_efficient", "math", "cudnn"):
        found[f"the {backend} backend of SDPA"] = getattr(cuda, f"{backend}_sdp_enabled")()
    for device in ("cpu", "cuda"):
        found[f"autocast on {device}"] = torch.is_autocast_enabled(device)
    return found


class Seal:
    """Remembers everything at once; ``check`` raises Wrong with what was changed since."""

    def __init__(self, *packages: str) -> None:
        """``packages``: the track's and the baseline's, watched like the harness's own modules."""
        self._settings = settings()
        watched = [
            module
            for name, module in sys.modules.items()
            if any(name == one or name.startswith(f"{one}.") for one in (*OURS, *packages))
        ]
        self._namespaces = [(module, set(vars(module))) for module in watched]
        used = {name for module in watched for code in _codes(module) for name in _named(code)}
        names = {name for name in used if not name.startswith("__")}
        self._modules: dict[str, ModuleType] = {
            name: sys.modules[name] for name in ("torch", "numpy", "time") if name in sys.modules
        }
        self._kept = [entry for module in watched for entry in _contents(module, module.__name__)]
        for owner, label in _foreign():
            for name in names & set(dir(owner)):
                value = inspect.getattr_static(owner, name, _ABSENT)
                if value is not _ABSENT and not isinstance(value, ModuleType):
                    self._kept.append((owner, name, value, None, f"{label}.{name}"))

    def check(self) -> None:
        """Raises Wrong."""
        now = settings()
        changed = [f"{k} from {value} to {now.get(k)}" for k, value in self._settings.items() if now.get(k) != value]
        if changed:
            raise Wrong(f"changed a global setting: {', '.join(changed)}")
        replaced: list[str] = [name for name, module in self._modules.items() if sys.modules.get(name) is not module]
        for module, names in self._namespaces:  # a global named like a builtin is taken for it
            added = {name for name in vars(module).keys() - names if hasattr(builtins, name)}
            # A contender's file may be named like one: importing it leaves its module in the package.
            replaced += [f"{module.__name__}.{name}" for name in added if type(getattr(module, name)) is not ModuleType]
        replaced += [label for owner, name, value, data, label in self._kept if not _is_still(owner, name, value, data)]
        if replaced:
            more = f" and {len(replaced) - 3} more" if len(replaced) > 3 else ""
            raise Wrong(f"replaced {', '.join(replaced[:3])}{more}")


# owner, name of the attribute, its value, a copy of it where it is data or code, and what a reader calls it
_Entry = tuple[Any, str, Any, Any, str]


def _contents(owner: Any, label: str) -> Iterator[_Entry]:
    """What the namespace of a module, class or frozen object of ours holds, and what is inside of that.

    Of a module's data only constants count, by their names: what else it keeps, a cache for one, may change.
    """
    in_module = isinstance(owner, ModuleType)
    for name, value in list(vars(owner).items()):
        constant = name.isupper() if in_module else not isinstance(owner, type)
        if isinstance(value, ModuleType) or not (callable(value) or constant or _wrapped(value)):
            continue
        path = f"{label}.{name}"
        yield owner, name, value, copy.deepcopy(value) if constant and _is_plain(value) else None, path
        inner = value.__func__ if _wrapped(value) else value
        if isinstance(inner, FunctionType):
            for part in _PARTS:
                yield inner, part, getattr(inner, part), None, path
        of_ours = isinstance(value, type) and value.__module__ == getattr(owner, "__name__", "")
        if in_module and (of_ours or _is_frozen(value)):
            yield from _contents(value, path)


def _wrapped(value: Any) -> bool:
    return isinstance(value, (staticmethod, classmethod))


def _is_plain(value: Any) -> bool:
    """Whether a value is data all through, so that a copy can be compared with it."""
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, bytes, FunctionType, type))


def _is_frozen(value: Any) -> bool:
    """Whether a value is an object of a frozen dataclass, a track for one."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen) and hasattr(value, "__dict__")


def _is_still(owner: Any, name: str, value: Any, data: Any) -> bool:
    if name in _PARTS:
        return getattr(owner, name) is value
    now = inspect.getattr_static(owner, name, _ABSENT)
    if data is None:
        return now is value
    return type(now) is type(data) and bool(now == data)


def _codes(module: ModuleType) -> Iterator[CodeType]:
    for _, _, value, _, _ in _contents(module, ""):
        if isinstance(value, CodeType):
            yield value


def _named(code: CodeType) -> Iterator[str]:
    """Every global and attribute a function and the functions inside of it name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named(constant)


def _foreign() -> Iterable[tuple[Any, str]]:
    """Namespaces of others whose functions the harness, the track and the baseline call."""
    yield builtins, "builtins"
    yield time, "time"
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        yield numpy, "numpy"
        yield numpy.linalg, "numpy.linalg"
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        yield torch, "torch"
        yield torch.Tensor, "torch.Tensor"
        yield torch.autograd, "torch.autograd"
        yield torch.nn.functional, "torch.nn.functional"
