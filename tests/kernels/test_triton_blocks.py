"""Which tiles a chip gets, and what stands in where kernels cannot be built; without Triton."""

import warnings

import pytest
import torch
from attention_cases import gradients, plain_attention, setting

from hafm_lightning.kernels.cuda import CudaBackend, triton_attention, triton_trial
from hafm_lightning.kernels.cuda.triton_attention import Settings, TritonBias, TritonRelativePosition
from hafm_lightning.kernels.cuda.triton_blocks import SIZES, Blocks, Chip, Setting, padded
from hafm_lightning.modeling.relative_position import StepPositions

H200 = Chip("H200", 232_448, (9, 0))
SMALL = Chip("a chip with 100 kB", 101_376, (8, 6))
TINY = Chip("a chip with 1 kB", 1024, (8, 0))
OLD = Chip("a V100", 98_304, (7, 0))
UNKNOWN = Chip("a chip of next year", 232_448, (13, 7))


@pytest.fixture
def chip(monkeypatch):
    """Puts a chip in the place of this machine's; ``fails`` says which settings cannot be built there, and why."""

    def put(chip, fails=lambda setting: None):
        tried = []

        def failure(setting, device, dtype, width):
            del device, dtype, width
            tried.append(setting)
            return fails(setting)

        monkeypatch.setattr(triton_attention, "unusable", lambda device: None)
        monkeypatch.setattr(triton_attention, "first_failure", failure)
        monkeypatch.setattr(triton_attention, "settings", Settings(chip_of=lambda device: chip))
        return tried

    return put


def setting_on(dtype=torch.float16, width=64, training=True):
    return triton_attention.settings.of(torch.device("cpu"), dtype, width, training)


def test_no_tile_needs_more_shared_memory_than_the_chip_has():
    for chip in (H200, SMALL):
        for width in (16, 32, 64, 128):
            for element_bytes in (2, 4):
                setting = Setting.largest(chip, width, element_bytes, training=True)
                assert not setting.exhausted
                for kernel, blocks in setting.tiles.items():
                    assert blocks.shared_bytes(kernel, width, element_bytes) <= chip.shared_bytes


def test_a_large_chip_gets_the_first_tiles_and_a_small_one_smaller_ones():
    assert Setting.largest(H200, 64, 2, training=True) == Setting(0, 0, 0)
    small = Setting.largest(SMALL, 128, 4, training=True)
    assert all(place > 0 for place in small.places.values())
    assert list(Setting.largest(SMALL, 64, 2, training=False).places) == ["forward"]


def test_tiles_suit_the_kernels_and_shrink():
    for kernel, tiles in SIZES.items():
        needs = [blocks.shared_bytes(kernel, 64, 2) for blocks in tiles]
        assert needs == sorted(set(needs), reverse=True)
        for blocks in tiles:
            assert min(blocks.queries, blocks.keys) >= 16
            assert all(size & (size - 1) == 0 for size in (blocks.queries, blocks.keys, blocks.warps))


def test_the_need_counts_every_tile_that_is_loaded_ahead():
    """Its own tiles, two of the other side for each stage (for keys also two numbers of each query), weights."""
    row, pairs = 64 * 2, 128 * 64
    blocks = Blocks(128, 64, 4, 3)
    assert blocks.shared_bytes("forward", 64, 2) == 128 * row + 3 * 2 * 64 * row + pairs * 2
    assert blocks.shared_bytes("query_gradient", 64, 2) == 2 * 128 * row + 3 * 2 * 64 * row + pairs * 2
    assert blocks.shared_bytes("key_gradient", 64, 2) == 2 * 64 * row + 3 * 2 * 128 * (row + 4) + pairs * 2
    with_biases = Blocks(128, 64, 4, 1, lookup_stages=2)
    assert with_biases.shared_bytes("forward", 64, 2) == 128 * row + 2 * (2 * 64 * row + pairs * 2) + pairs * 2


@pytest.mark.parametrize(("width", "expected"), [(8, 16), (16, 16), (24, 32), (64, 64), (65, 128)])
def test_widths_are_padded_to_powers_of_two(width, expected):
    assert padded(width) == expected


@pytest.mark.parametrize("known", [H200, SMALL, UNKNOWN])
def test_what_fits_is_tried_once_and_nothing_is_said(known, chip):
    tried = chip(known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = setting_on()
        assert setting_on() == first
    assert tried == [first]


def test_a_kernel_that_fails_all_the_same_gives_way_to_smaller_tiles_with_one_line(chip):
    out = "out of resource: shared memory, Required: 245760, Hardware limit: 232448"
    tried = chip(H200, lambda setting: ("key_gradient", out) if setting.key_gradient < 2 else None)
    with pytest.warns(UserWarning, match="falls back to") as warned:
        assert setting_on() == Setting(0, 0, 2)
    assert len(tried) == 3
    (line,) = [str(warning.message) for warning in warned]
    assert "H200" in line
    assert f"key_gradient tiles of {SIZES['key_gradient'][2]}" in line
    assert out in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("known", "fails", "reason"),
    [
        (TINY, lambda setting: None, "1024 bytes of shared memory are too few"),
        (OLD, lambda setting: None, "compute capability 7.0, the kernels need 8.0"),
        (UNKNOWN, lambda setting: ("forward", "PTXAS error: sm_137 is not defined"), "sm_137 is not defined"),
    ],
    ids=["too little memory", "too old", "unknown architecture"],
)
@pytest.mark.parametrize("training", [True, False])
def test_where_no_kernel_runs_plain_attention_stands_in_and_says_so(known, fails, reason, training, chip):
    chip(known, fails)
    module, positions, qkv = setting("causal-prefix-time", width=16)
    bias = TritonBias.of(module, positions)
    expected = plain_attention(qkv, module, positions)
    with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(training):
        warnings.simplefilter("always")
        for _ in range(2):
            output = bias.attend(*qkv, module.table())
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    (line,) = [str(warning.message) for warning in caught]
    assert known.name in line
    assert reason in line
    assert ("FlexAttention" if training else "PyTorch's operations") in line
    if training:
        for found, true in zip(gradients(output, qkv, module), gradients(expected, qkv, module), strict=True):
            torch.testing.assert_close(found, true, atol=2e-5, rtol=1e-4)


def test_other_errors_are_raised(monkeypatch):
    def breaks(*_):
        raise ZeroDivisionError("a mistake in the kernel")

    monkeypatch.setattr(triton_attention, "unusable", lambda device: None)
    monkeypatch.setattr(triton_attention, "settings", Settings())
    monkeypatch.setattr(triton_trial, "forward_pass", breaks)
    with pytest.raises(ZeroDivisionError):
        setting_on(torch.float32, 16)


def test_sequences_of_another_length_are_refused():
    module, positions, qkv = setting("causal", frames=21)
    with pytest.raises(ValueError, match=r"these biases are for 24 steps, not for 21"):
        TritonBias.of(module, positions).attend(*qkv[..., 3:, :], module.table())


def test_the_cuda_backend_gives_these_kernels_to_training_and_to_inference(tiny):
    model, positions = tiny
    for prepared in (lambda: CudaBackend().for_training(model), lambda: CudaBackend().for_inference(model, "fp32")):
        prepared()
        assert type(model.relative_position) is TritonRelativePosition
        assert isinstance(model.relative_position.sequence_bias(positions), TritonBias)


@pytest.fixture
def tiny():
    from tiny_models import tiny_config, tiny_model

    model = tiny_model(tiny_config("flattened"), kernels="none")
    return model, StepPositions.of(model.layout.plan(3), "cpu")
