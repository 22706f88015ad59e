"""Compiled vector code against PyTorch: exponentials, products, transposition, and what threads share."""

import ctypes
import math
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from hafm_lightning.kernels.cpu import codegen
from hafm_lightning.kernels.cpu.codegen import machine_code, products, vector_code
from hafm_lightning.kernels.cpu.codegen.vector_code import FLOAT, VectorCode, long

pytestmark = pytest.mark.cpu
SHAPES = [(4, 2), (4, 4), (8, 2), (16, 4)]


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]} lanes, {shape[1]} vectors")
def any_vectors(request, monkeypatch):
    """The vectors of this and of other processors, which LLVM makes of those that there are."""
    monkeypatch.setattr(vector_code, "vector_shape", lambda: request.param)


@pytest.mark.usefixtures("any_vectors")
def test_powers_of_two_are_right_to_2e_7_and_nothing_below_the_smallest_normal_number():
    code = VectorCode("powers", ["source", "target", "count"])
    source, target = code.pointer("source"), code.pointer("target")
    code.vectors_of(
        code.value("count"), lambda n: code.store(code.exp2(code.load(code.at(source, n))), code.at(target, n))
    )
    special = torch.tensor([0.0, -0.5, 0.5, -125.99999, -126.0, -1e30, -math.inf, math.nan])
    x = torch.cat((special, torch.linspace(-130, 20, 2**16 - len(special))))
    found = torch.full_like(x, -1.0)
    code.compiled().run([x.data_ptr(), found.data_ptr(), len(x)], 1)
    expected = torch.where(x > -126, x.double().exp2(), 0.0).where(~x.isnan(), math.nan)
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=2e-7, equal_nan=True)
    assert found[0] == 1
    assert (found[4:7] == 0).all()


@pytest.mark.usefixtures("any_vectors")
@pytest.mark.parametrize("size", [(8, 16, 4), (12, 32, 20), (4, 48, 64), (64, 80, 8)])
def test_products_equal_matrix_products_and_may_carry_a_maximum(size):
    height, width, depth = size
    left, right, begun = torch.randn(height, depth), torch.randn(depth, width), torch.randn(height, width)
    code = VectorCode("product", "abcm")
    a, b, c, most = map(code.pointer, code.names)
    write = products.storing(code, c, width)

    def finish(row, column, sums, *held):
        write(row, column, sums)
        found = list(held)
        for values in sums:
            found = [code.larger(value, before) for value, before in zip(values, found, strict=True)]
        return found

    products.product(code, (a, depth, 1), (b, width), size, products.adding(code, c, width), finish, most)
    found, largest = begun.clone(), torch.full((width,), -1.0)
    code.compiled().run([x.data_ptr() for x in (left, right, found, largest)], 1)
    expected = begun.double() + left.double() @ right.double()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(largest, found.amax(0).clamp(min=-1))


@pytest.mark.usefixtures("any_vectors")
def test_transposition_is_exact():
    source, target = torch.randn(32, 48), torch.empty(48, 32)
    code = VectorCode("transposed", ["source", "target"])
    products.transpose(code, code.pointer("source"), code.pointer("target"), (32, 48), code.constant(2.0))
    code.compiled().run([source.data_ptr(), target.data_ptr()], 1)
    assert torch.equal(target, 2 * source.t())


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_task_is_taken_once_whatever_the_number_of_threads(count, openmp, monkeypatch):
    if not openmp:
        monkeypatch.setattr(machine_code, "openmp", lambda: None)
    code = VectorCode("tasks", ["task", "taken"])
    taken = code.pointer("taken")

    def task(number):
        place = code.at(taken, number)
        code.builder.store(code.builder.fadd(code.builder.load(place), FLOAT(1.0)), place)

    code.tasks(long(1000), task)
    found = torch.zeros(1001)
    code.compiled().run([0, found.data_ptr()], count)
    assert (found[:1000] == 1).all()
    assert found[1000] == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to list what is loaded")
def test_threads_are_those_of_the_openmp_library_that_pytorch_has_loaded():
    """What the process has mapped decides, not what :mod:`machine_code` finds."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {Path(line.split(maxsplit=5)[5]) for line in lines if "/" in line}
    folder = (Path(torch.__file__).parent / "lib").resolve()
    bundled = [path for path in loaded if path.parent == folder and path.name.startswith("libgomp")]
    parallel, team = machine_code.openmp(), []
    assert (parallel is not None) == bool(bundled)
    if parallel is not None:
        note = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: team.append(threading.get_native_id()))
        parallel(ctypes.cast(note, ctypes.c_void_p).value, None, 2)
        assert threading.get_native_id() in team  # the caller is one of the team, as OpenMP has it
        assert 1 <= len(team) <= 2


@pytest.fixture
def nothing_known():
    """Whether functions can be compiled is found out in this test, and again after it."""
    codegen.available.cache_clear()
    yield
    codegen.available.cache_clear()


@pytest.mark.usefixtures("nothing_known")
def test_without_llvmlite_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(codegen, "find_spec", lambda name: None)
    assert not codegen.available()


@pytest.mark.usefixtures("nothing_known")
def test_where_nothing_can_be_compiled_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(machine_code.llvm, "create_mcjit_compiler", Mock(side_effect=RuntimeError("unknown target")))
    with pytest.warns(UserWarning, match="unknown target") as warned:
        found = codegen.available(), codegen.available()
    assert found == (False, False)
    assert len(warned) == 1
