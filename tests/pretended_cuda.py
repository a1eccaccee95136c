"""A pretended CUDA device: what a GPU would refuse is refused here too, on a machine that has none.

    with cuda(capability=(7, 5)):     # a T4: fp16 and no bf16
        pipeline.run(config)

A tensor on "cuda" is a `CudaTensor`, which wraps a CPU tensor and computes on it. Every operation goes through
`_compute`, which applies CUDA's own rule: no operation takes tensors of both devices, with the exceptions that PyTorch
makes (copies between devices, CPU scalars of no dimension, index tensors of the CPU). Such a tensor's `device` reads
"meta", so code under test must ask the run's own device, not a tensor's.

`waits` counts what makes the CPU wait for the device: numbers and tensors that are read back, and results whose size
the device alone knows. `pageable` counts copies to the device from memory that is not pinned, for which it waits, too.

A CUDA graph is a list of operations on fixed memory: what was computed while it was captured is computed again, from
what is in that memory now. While one is captured, everything is refused that CUDA then refuses.
"""

import contextlib
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from lorry.model import encoder

adam = sys.modules["torch.optim.adam"]  # torch.optim hides the module
aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
SUBMIT = ThreadPoolExecutor.submit
INDEXING = (aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
            aten._index_put_impl_.default)  # fmt: skip
JOINING = (aten.cat.default, aten.stack.default)
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.is_nonzero.default,
           aten.equal.default, aten.repeat_interleave.Tensor, aten.bincount.default, aten._unique2.default)  # fmt: skip
waits: Counter[str] = Counter()
pageable: Counter[str] = Counter()
graphs: list["Graph"] = []  # all that were captured: forward and backward in turn
_capturing: list["Graph"] = []  # the one that is being captured


class CudaTensor(torch.Tensor):
    """A tensor that is on the pretended device; `cpu_tensor` holds its numbers."""

    @staticmethod
    def __new__(cls, cpu_tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, cpu_tensor.size(), strides=cpu_tensor.stride(), dtype=cpu_tensor.dtype, device="meta"
        )

    def __init__(self, cpu_tensor):
        self.cpu_tensor = cpu_tensor

    def __repr__(self):
        return f"CudaTensor({self.cpu_tensor!r})"

    def data_ptr(self):
        return self.cpu_tensor.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


def _check_devices(function, args, kwargs):
    """Raise what CUDA raises where one operation gets tensors of both devices."""
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
    here = [item for item in tensors if not isinstance(item, CudaTensor)]
    if not here or len(here) == len(tensors) or function is aten.copy_.default:
        return
    if function in INDEXING:  # indices may be on the CPU; what is indexed and the values put there may not
        values = [item for item in args[2:3] if isinstance(item, torch.Tensor)]
        mixed = any(not isinstance(item, CudaTensor) and (item is args[0] or item.dim()) for item in (args[0], *values))
    else:
        mixed = function in JOINING or any(item.dim() for item in here)
    if mixed:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({function})")


def _count(function, args, on_cuda):
    """Count a wait or a pageable copy; `on_cuda` says where the result is."""
    read = any(isinstance(item, CudaTensor) for item in tree_leaves(args))
    copied = args[1] if function is aten.copy_.default else args[0] if function is aten._to_copy.default else None
    by_mask = function in INDEXING and any(item is not None and item.dtype == torch.bool for item in args[1])
    if read and (function in WAITING or by_mask or (isinstance(copied, CudaTensor) and not on_cuda)):
        _refuse_in_capture()
        waits[f"{function}{' by a mask' if by_mask else ''}"] += 1
    if function in INDEXING and on_cuda:
        pageable["index"] += sum(item is not None and not isinstance(item, CudaTensor) for item in args[1])
    if copied is not None and on_cuda and not isinstance(copied, CudaTensor):
        _refuse_in_capture()
    if copied is not None and on_cuda and not isinstance(copied, CudaTensor) and copied.dim():
        pageable[str(function)] += not getattr(copied, "pinned", False)


def _compute(function, args, kwargs):
    if function is aten._fused_sdp_choice.default:
        return 0  # the plain arithmetic: there are no CUDA kernels
    _check_devices(function, args, kwargs)
    if function is aten.copy_.default:
        on_cuda = isinstance(args[0], CudaTensor)
    else:
        on_cuda = any(isinstance(item, CudaTensor) for item in tree_leaves((args, kwargs)))
    if kwargs.get("device") is not None:
        on_cuda = torch.device(kwargs["device"]).type in ("cuda", "meta")
        kwargs = {**kwargs, "device": torch.device("cpu")}
        kwargs.pop("pin_memory", None)
    _count(function, args, on_cuda)
    known = {id(item.cpu_tensor): item for item in tree_leaves((args, kwargs)) if isinstance(item, CudaTensor)}
    args, kwargs = tree_map(lambda item: item.cpu_tensor if isinstance(item, CudaTensor) else item, (args, kwargs))
    result = function(*args, **kwargs)
    if not on_cuda:
        return result
    if _capturing:
        _capturing[0].operations.append((function, args, kwargs, result))

    def wrapped(item):
        if not isinstance(item, torch.Tensor) or isinstance(item, CudaTensor):
            return item
        return known[id(item)] if id(item) in known else CudaTensor(item)  # known: changed in place

    return tree_map(wrapped, result)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


class _NumberDevices(TorchFunctionMode):
    """Write "cuda" as "cuda:0": without a number PyTorch asks the driver, which is not there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def numbered(item):
            return DEVICE if item in ("cuda", "cuda:0") or item == torch.device("cuda") else item

        def only_devices(item):
            return numbered(item) if isinstance(item, str | torch.device) else item

        args, kwargs = tree_map(only_devices, args), tree_map(only_devices, kwargs or {})
        if function is torch.tensor and kwargs.get("device") == DEVICE:  # which no dispatch mode sees
            return function(*args, **{**kwargs, "device": None}).to(DEVICE)
        return function(*args, **kwargs)


def _outside(function):
    """Let a function work as if there were no pretended device: transformers loads models on devices of its own."""

    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


def _submit(executor, function, *args, **kwargs):
    """Let a thread of an executor see the pretended device: modes belong to the thread that entered them."""

    def call():
        with _Dispatch(), _NumberDevices():
            return function(*args, **kwargs)

    return SUBMIT(executor, call)


def _refuse_in_capture():
    if _capturing:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Graph:
    """A pretended `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.operations, self.replays, self.pool = [], 0, None

    @contextlib.contextmanager
    def captured(self, pool):
        """Take the place of `torch.cuda.graph`."""
        self.pool = pool
        graphs.append(self)
        _capturing.append(self)
        try:
            yield
        finally:
            _capturing.clear()

    def replay(self):
        """Compute again. A backward pass finds what its forward pass has kept, if no other graph was replayed since."""
        _refuse_in_capture()
        self.replays += 1
        place = graphs.index(self)
        if place % 2:
            assert self.pool["last"] is graphs[place - 1], "another graph of the pool has overwritten this one's memory"
        self.pool["last"] = self
        for function, args, kwargs, result in self.operations:
            memory = {
                item.untyped_storage().data_ptr() for item in tree_leaves((args, kwargs)) if torch.is_tensor(item)
            }
            results = [item for item in tree_leaves(result) if torch.is_tensor(item)]
            if function._schema.is_mutable:
                function(*args, **kwargs)
            elif not any(item.untyped_storage().data_ptr() in memory for item in results):  # else a view: nothing to do
                found = [item for item in tree_leaves(function(*args, **kwargs)) if torch.is_tensor(item)]
                for old, new in zip(results, found, strict=True):
                    old.copy_(new)


def _pin_memory(tensor):
    _refuse_in_capture()
    pinned = tensor.clone()
    pinned.pinned = True
    return pinned


@contextlib.contextmanager
def cuda(capability=(7, 5), memory=16 << 30):
    """Pretend that there is one GPU of this compute capability and memory, in bytes."""
    properties = SimpleNamespace(
        name="Pretended GPU", major=capability[0], minor=capability[1], total_memory=memory, multi_processor_count=40
    )
    answers = {
        "_lazy_init": None, "init": None, "is_available": True, "device_count": 1, "current_device": 0,
        "set_device": None, "get_device_capability": capability, "get_device_properties": properties,
        "get_device_name": properties.name, "mem_get_info": (memory - (1 << 30), memory), "memory_reserved": 0,
        "memory_allocated": 0, "max_memory_allocated": 1 << 30, "empty_cache": None, "synchronize": None,
        "is_bf16_supported": True, "manual_seed": None, "manual_seed_all": None, "_is_in_bad_fork": False,
        "is_current_stream_capturing": False,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, mock.Mock(return_value=answer)))
        # a tensor that wraps another cannot be an inference tensor
        for name, stand_in in {
            "CUDAGraph": Graph, "graph": Graph.captured, "graph_pool_handle": dict, "Stream": mock.Mock,
            "current_stream": mock.Mock, "stream": lambda _: contextlib.nullcontext(),
        }.items():  # fmt: skip
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.callback(graphs.clear)
        stack.enter_context(mock.patch.object(torch, "inference_mode", torch.no_grad))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pin_memory))
        stack.enter_context(mock.patch.object(adam, "_device_dtype_check_for_fused"))  # it reads "meta"
        stack.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", _submit))
        stack.enter_context(mock.patch.object(encoder, "load_model", _outside(encoder.load_model)))
        stack.enter_context(_Dispatch())
        stack.enter_context(_NumberDevices())
        yield
