"""What goes into each matrix while llama.cpp computes: sums of squares per column, by tensor.

ggml's tensors are read through a layout of ours, which is compared with ggml's own functions on
tensors made for that purpose before it is trusted. Their data is only ever copied by ggml.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import llama_cpp.llama_cpp as api
import numpy as np

from ..importance import add_dense, add_experts
from .llama_cpp import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)

_F32, _I32 = 0, 26
_MOST_OPS = 48
"""An operation's number is looked for below this; ggml has about twice as many."""

_ARENA = 1 << 16


class Tensor(ctypes.Structure):
    """The start of ggml's ``struct ggml_tensor``, as far as it is read here."""

    _fields_: ClassVar = [
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class _Arena(ctypes.Structure):
    """ggml's ``struct ggml_init_params``."""

    _fields_: ClassVar = [("size", c_size_t), ("memory", c_void_p), ("no_alloc", c_bool)]


class Ggml:
    """The functions of ggml that are needed, and proof that its tensors are laid out as here.

    Args:
        layout: How tensors are laid out.

    Raises:
        EngineError: A function is missing, or the tensors of this build are laid out otherwise.
    """

    def __init__(self, layout: type[Tensor] = Tensor) -> None:
        self._layout = layout
        self.nbytes = _function("ggml_nbytes", c_size_t, c_void_p)
        self.copy = _function(
            "ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t
        )
        self._op_name = _function("ggml_op_name", c_char_p, c_int)
        self._op_desc = _function("ggml_op_desc", c_char_p, c_void_p)
        self._type_name = _function("ggml_type_name", c_char_p, c_int)
        self._get_name = _function("ggml_get_name", c_void_p, c_void_p)
        self._get_data = _function("ggml_get_data", c_void_p, c_void_p)
        self._nelements = _function("ggml_nelements", c_int64, c_void_p)
        self._overhead = _function("ggml_tensor_overhead", c_size_t)
        self.none = self._op("NONE")
        self.mul_mat = self._op("MUL_MAT")
        self.mul_mat_id = self._op("MUL_MAT_ID")
        self._verify()

    def at(self, address: int) -> Tensor:
        """View the tensor at an address that ggml gave."""
        return self._layout.from_address(address)

    def _op(self, name: str) -> int:
        # From 0 on, because ggml looks a number up without asking whether it has so many.
        for number in range(_MOST_OPS):
            if self._op_name(number) == name.encode():
                return number
        raise EngineError(f"importance cannot be measured: this build of ggml has no {name}")

    def _verify(self) -> None:
        init = _function("ggml_init", c_void_p, _Arena)
        free = _function("ggml_free", None, c_void_p)
        arena = init(_Arena(_ARENA, None, False))
        if not arena:
            raise EngineError("importance cannot be measured: ggml cannot take 64 KiB of memory")
        try:
            wrong = self._differences(arena)
        finally:
            free(arena)
        if wrong:
            raise EngineError(
                "importance cannot be measured: this build's tensors are laid out otherwise than"
                f" those of llama-cpp-python 0.3.36 ({', '.join(sorted(wrong))})"
            )

    def _differences(self, arena: int) -> set[str]:
        """Name the fields in which our layout and ggml differ, over tensors of every use."""
        if self._overhead() < ctypes.sizeof(self._layout):
            return {"size"}
        if self._type_name(_F32) != b"f32" or self._type_name(_I32) != b"i32":
            return {"type numbers"}
        flat = _function("ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
        deep = _function("ggml_new_tensor_3d", c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64)
        product = _function("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
        chosen = _function("ggml_mul_mat_id", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
        view = _function("ggml_view_tensor", c_void_p, c_void_p, c_void_p)
        name = _function("ggml_set_name", c_void_p, c_void_p, c_char_p)
        weight, rows = flat(arena, _F32, 32, 3), flat(arena, _F32, 32, 5)
        experts, tokens = deep(arena, _F32, 32, 3, 4), deep(arena, _F32, 32, 2, 5)
        ids = flat(arena, _I32, 2, 5)
        made = {
            weight: (_F32, (32, 3, 1, 1), self.none, (), 0),
            rows: (_F32, (32, 5, 1, 1), self.none, (), 0),
            experts: (_F32, (32, 3, 4, 1), self.none, (), 0),
            tokens: (_F32, (32, 2, 5, 1), self.none, (), 0),
            ids: (_I32, (2, 5, 1, 1), self.none, (), 0),
            product(arena, weight, rows): (
                *(_F32, (3, 5, 1, 1), self.mul_mat),
                *((weight, rows), 0),
            ),
            chosen(arena, experts, tokens, ids): (
                *(_F32, (3, 2, 5, 1), self.mul_mat_id),
                *((experts, tokens, ids), 0),
            ),
            view(arena, weight): (_F32, (32, 3, 1, 1), None, None, weight),
        }
        wrong: set[str] = set()
        for number, (address, (kind, shape, op, sources, viewed)) in enumerate(made.items()):
            label = f"blk.{number}.probe.weight".encode()
            name(address, label)
            seen = self.at(address)
            strides = [4 * int(np.prod(shape[:i])) for i in range(4)]
            offset = getattr(self._layout, "name").offset  # noqa: B009  (mypy knows no such field)
            found = {
                "type": seen.type == kind,
                "buffer": seen.buffer is None,
                "ne": tuple(seen.ne) == shape,
                "nb": list(seen.nb) == strides,
                "op": op is None or seen.op == op,
                "src": sources is None
                or tuple(seen.src) == (*sources, *[None] * (10 - len(sources))),
                "view_src": (seen.view_src or 0) == viewed,
                "data": bool(seen.data) and seen.data == self._get_data(address),
                "name": address + offset == self._get_name(address) and seen.name == label,
                "nelements": self._nelements(address) == np.prod(shape),
                "nbytes": self.nbytes(address) == 4 * np.prod(shape),
            }
            if op not in {None, self.none} and found["op"]:
                found["op"] = self._op_desc(address) == self._op_name(op)
            wrong.update(field for field, same in found.items() if not same)
        return wrong


def _function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Find a function of ggml through the library that links it, so that it is the one in use."""
    library = api._lib  # noqa: SLF001  (the handle has no other name)
    try:
        return ctypes.CFUNCTYPE(result, *arguments)((name, library))
    except AttributeError:
        raise EngineError(
            f"importance cannot be measured: this build of llama.cpp does not export {name}"
        ) from None


class Collector:
    """Sums the squares of what each weight matrix is multiplied with, column by column.

    ``callback`` goes to ``context(on_node=...)``. What goes wrong inside it cannot be raised there,
    since llama.cpp is in between; it is kept, and ``check`` raises it.

    Only matrices of the repeating layers count, as in llama.cpp's own tool: neither the output nor
    the embedding.

    Attributes:
        sums: By the tensor's name, float64 of shape (matrices, columns). A tensor of experts has as
            many matrices as experts, any other mostly one.
        counts: How many rows were added to each matrix's sums, int64 of shape (matrices,).

    Raises:
        EngineError: The tensors of this build cannot be read.
    """

    def __init__(self) -> None:
        self._ggml = Ggml()
        self._error: BaseException | None = None
        self._memory = np.empty(0, dtype=np.uint8)
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.callback = api.ggml_backend_sched_eval_callback(self._on_node)

    def check(self) -> None:
        """Raise what went wrong inside the callback, if anything did."""
        if self._error is not None:
            raise self._error

    def _on_node(self, address: int, ask: bool, _user_data: object) -> bool:
        if self._error is not None:
            return False
        try:
            node = self._ggml.at(address)
            name = self._weight_of(node)
            if name and not ask:
                self._add(name, node)
        except BaseException as error:  # noqa: BLE001  (ctypes would print and forget it)
            self._error = error
            return False
        return bool(name)

    def _weight_of(self, node: Tensor) -> str:
        """Name the weight that a node multiplies with; empty if it is no such node."""
        if node.op not in {self._ggml.mul_mat, self._ggml.mul_mat_id}:
            return ""
        weight = self._ggml.at(node.src[0])
        if weight.op != self._ggml.none or weight.view_src:
            return ""
        name = tensor_name(weight.name)
        if not (name.startswith("blk.") and name.endswith(".weight")):
            return ""
        rows = self._ggml.at(node.src[1])
        if rows.type != _F32:
            raise EngineError(
                f"importance cannot be measured: {name} is multiplied with values of ggml's type"
                f" {rows.type}, and only float32 ({_F32}) can be read"
            )
        return name

    def _add(self, name: str, node: Tensor) -> None:
        weight = self._ggml.at(node.src[0])
        values = self._read(node.src[1], name, np.float32).copy()
        experts = node.op == self._ggml.mul_mat_id
        matrices = int(weight.ne[2] * weight.ne[3])
        columns = values.shape[3]
        if columns != weight.ne[0]:
            raise _unreadable(name, f"{columns} values meet rows of {weight.ne[0]}")
        sums = self.sums.setdefault(name, np.zeros((matrices, columns)))
        counts = self.counts.setdefault(name, np.zeros(matrices, dtype=np.int64))
        if sums.shape != (matrices, columns):
            raise _unreadable(name, f"its shape was {sums.shape}, now it is {matrices, columns}")
        if experts:
            chosen = self._read(node.src[2], name, np.int32)[0, 0]
            if len(chosen) != len(values[0]) or chosen.min() < 0 or chosen.max() >= matrices:
                raise _unreadable(
                    name,
                    f"experts {chosen.min()} to {chosen.max()} of {matrices} are chosen for"
                    f" {len(chosen)} of {len(values[0])} tokens",
                )
            add_experts(sums, counts, values[0], chosen)
        else:
            add_dense(sums, counts, values, int(weight.ne[2]))

    def _read(self, address: int, name: str, kind: type[_Scalar]) -> NDArray[_Scalar]:
        """Let ggml copy a tensor's values, and view the copy, last dimension first.

        The view is valid until the next call.
        """
        tensor = self._ggml.at(address)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        size = int(self._ggml.nbytes(address))
        if min(shape) < 1 or not tensor.data:
            raise _unreadable(name, "what it is multiplied with has no values")
        wanted = _I32 if kind is np.int32 else _F32
        span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 4
        if tensor.type != wanted or span != size:
            raise _unreadable(name, f"{shape} values take {span} bytes, ggml says {size}")
        holder = self._ggml.at(tensor.view_src) if tensor.view_src else tensor
        if not holder.buffer:
            raise _unreadable(name, "what it is multiplied with is in no buffer")
        if len(self._memory) < size:
            self._memory = np.empty(size, dtype=np.uint8)
        self._ggml.copy(address, self._memory.ctypes.data, 0, size)
        return np.ndarray(shape, kind, self._memory.data, strides=strides)


def _unreadable(name: str, what: str) -> EngineError:
    return EngineError(f"importance cannot be measured at {name}: {what}")


def tensor_name(raw: bytes) -> str:
    """Read a tensor's name; the copy on another device is ``DEVICE#name#number``.

    Raises:
        EngineError: It is no text.
    """
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(
            f"importance cannot be measured: a tensor's name is no text ({raw[:32]!r})"
        ) from error
    return name.split("#")[1] if "#" in name else name
