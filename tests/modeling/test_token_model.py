"""The stage's network against the slow reference, its causality, and one gradient for every parameter."""

import math

import pytest
import torch
from reference_model import ReferenceModel
from tiny_models import TINY, tiny_config, tiny_model, tiny_streams

from hafm_lightning.modeling import attention
from hafm_lightning.modeling.decoding import generate
from hafm_lightning.modeling.sampling import SamplingOptions
from hafm_lightning.modeling.token_model import CACHED_LENGTHS, TokenModel, TokenModelConfig
from hafm_lightning.tokens import BEGIN, NULL

pytestmark = pytest.mark.usefixtures("kernels")
PATTERNS = ("flattened", "delay", "parallel", "nonautoregressive")
AUTOREGRESSIVE = PATTERNS[:3]
STAGES = {
    "semantic": (("vocal_semantic",), "instrumental_semantic", 4),
    "coarse": (("vocal_semantic", "instrumental_semantic"), "instrumental_coarse", 6),
    "fine": (("instrumental_coarse",), "instrumental_fine", 6),
}


def step_of(pattern: str, codebooks: int, codebook: int, frame: int) -> int:
    return {"flattened": frame * codebooks + codebook, "delay": frame + codebook, "parallel": frame}[pattern]


# --- against the reference --------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative_position", ["time", "index"])
@pytest.mark.parametrize("stage", STAGES)
def test_golden_forward_pass_of_each_stage_of_the_paper(stage, relative_position):
    conditions, target, frames = STAGES[stage]
    config = tiny_config(relative_position=relative_position, conditions=conditions, target=target)
    model = tiny_model(config)
    streams = tiny_streams(config.layout, frames)
    logits = model(streams)
    expected = ReferenceModel(model).logits(streams)
    assert logits.shape == (2, config.layout.target.codebooks, frames, config.layout.target.vocabulary)
    assert expected.std() > 0.5  # a silent network would prove nothing
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_with_rich_conditions_matches_the_reference(pattern, conditioning, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 16)  # several blocks, the last one ragged
    config = tiny_config(pattern, conditioning, prefix_mask="bidirectional", look_ahead_s=0.04, look_behind_s=0.03)
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 6)
    streams["style"][0] = NULL  # a dropped token among known ones
    torch.testing.assert_close(model(streams).double(), ReferenceModel(model).logits(streams), atol=1e-5, rtol=1e-5)


def test_index_bias_and_causal_prefix_of_a_delayed_target_match_the_reference():
    config = tiny_config("delay", relative_position="index")
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 6)
    torch.testing.assert_close(model(streams).double(), ReferenceModel(model).logits(streams), atol=1e-5, rtol=1e-5)


def test_a_clip_longer_than_the_far_buckets_matches_the_reference():
    config = tiny_config(conditions=("vocal_semantic",), target="instrumental_semantic")
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 160, batch=1)  # 3.2 s: past 128 steps and past 2.56 s
    torch.testing.assert_close(model(streams).double(), ReferenceModel(model).logits(streams), atol=2e-5, rtol=2e-5)


def test_mixed_precision_trains_towards_the_same_place():
    config = tiny_config("flattened")
    gradients = []
    for mixed in (False, True):
        model, streams = tiny_model(config).train(), tiny_streams(config.layout, 6)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = model(streams)
            loss = logits.float().log_softmax(-1).gather(-1, streams["instrumental_coarse"][..., None]).mean()
        loss.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


# --- causality --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", AUTOREGRESSIVE)
def test_a_target_token_reaches_later_steps_only(pattern, conditioning):
    config = tiny_config(pattern, conditioning)
    model, frames, books = tiny_model(config), 6, 4
    streams = tiny_streams(config.layout, frames, batch=1)
    with torch.no_grad():
        before = model(streams)
        for codebook, frame in [(0, 0), (1, 2), (3, 2), (2, 4)]:
            changed = dict(streams)
            changed["instrumental_coarse"] = streams["instrumental_coarse"].clone()
            changed["instrumental_coarse"][0, codebook, frame] += 1
            changed["instrumental_coarse"] %= 1024
            moved = (model(changed) - before).abs().amax(-1)[0]  # [K, T]
            written = step_of(pattern, books, codebook, frame)
            for k in range(books):
                for t in range(frames):
                    if step_of(pattern, books, k, t) <= written:
                        assert moved[k, t] == 0, (codebook, frame, k, t)
                    else:
                        assert moved[k, t] > 1e-5, (codebook, frame, k, t)


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
def test_a_nonautoregressive_codebook_reaches_all_frames_of_higher_codebooks_only(conditioning):
    config = tiny_config("nonautoregressive", conditioning)
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 6, batch=1)
    with torch.no_grad():
        before = model(streams)
        streams["instrumental_coarse"][0, 1, 3] = (streams["instrumental_coarse"][0, 1, 3] + 1) % 1024
        moved = (model(streams) - before).abs().amax(-1)[0]
    assert (moved[:2] == 0).all()
    assert (moved[2:] > 1e-6).all()


def test_one_codebook_of_the_nonautoregressive_pattern_alone():
    config = tiny_config("nonautoregressive")
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 6)
    together = model(streams)
    for codebook in range(4):
        torch.testing.assert_close(model(streams, codebook)[:, 0], together[:, codebook])


@pytest.mark.parametrize("pattern", AUTOREGRESSIVE)
def test_conditions_are_heard_exactly_as_far_ahead_as_stated(pattern):
    # equal rates, so that a frame of the condition is a frame of the target: 0.04 s of 75 Hz are 3 frames
    config = tiny_config(pattern, "aligned", conditions=("instrumental_fine",), look_ahead_s=0.04, look_behind_s=0.03)
    model, frames, changed = tiny_model(config), 12, 7
    streams = tiny_streams(config.layout, frames, batch=1)
    with torch.no_grad():
        before = model(streams)
        streams["instrumental_fine"][0, :, changed] = (streams["instrumental_fine"][0, :, changed] + 1) % 1024
        moved = (model(streams) - before).abs().amax(-1)[0] > 0  # [K, T]
    # a delayed codebook k is written k steps later, and hears k frames more
    first = [changed - 3 - (k if pattern == "delay" else 0) for k in range(4)]
    for k in range(4):
        assert not moved[k, : first[k]].any()
        assert moved[k, first[k] :].all()


def test_a_prefix_condition_reaches_the_whole_target():
    config = tiny_config("flattened", "prefix")
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 6, batch=1)
    before = model(streams)
    streams["vocal_semantic"][0, 0, -1] = (streams["vocal_semantic"][0, 0, -1] + 1) % 500
    assert ((model(streams) - before).abs().amax(-1) > 0).all()


def test_a_clip_does_not_depend_on_its_batch():
    config = tiny_config("flattened", "aligned")
    model = tiny_model(config)
    streams = tiny_streams(config.layout, 6, batch=3)
    together = model(streams)
    for clip in range(3):
        alone = model({name: ids[clip : clip + 1] for name, ids in streams.items()})
        torch.testing.assert_close(alone[0], together[clip], atol=1e-5, rtol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["prefix", "aligned"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_parameter_gets_a_gradient_as_ddp_needs(pattern, conditioning):
    model = TokenModel(tiny_config(pattern, conditioning))
    streams = tiny_streams(model.layout, 6)
    for codebook in range(4) if pattern == "nonautoregressive" else [None]:
        model.zero_grad(set_to_none=True)
        model(streams, codebook).square().mean().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_what_generation_keeps_serves_training_afterwards():
    config = tiny_config("delay", conditions=("vocal_semantic", "instrumental_semantic"))
    model, streams = tiny_model(config), tiny_streams(config.layout, 9)
    with torch.inference_mode():  # plan and geometry of this length are first made here
        generate(model, streams, SamplingOptions(), [0, 1])
        model(streams)
    model(streams).mean().backward()
    fresh = tiny_model(config)  # another network, the same kept plan
    fresh(streams).mean().backward()
    assert fresh.place.weight.grad is not None


def test_a_network_measured_on_the_meta_device_leaves_no_trace():
    config = tiny_config("parallel", conditions=("instrumental_semantic",))
    with torch.device("meta"):
        config.layout.plan(15)
    model = tiny_model(config)
    assert model(tiny_streams(config.layout, 15)).isfinite().all()


def test_few_biases_are_cached():
    model = tiny_model(tiny_config("parallel", conditions=("vocal_semantic",)))
    for frames in range(3, 33, 3):
        model(tiny_streams(model.layout, frames))
    assert len(model._biases) == CACHED_LENGTHS


def test_a_new_network_predicts_almost_uniformly():
    torch.manual_seed(0)
    config = TokenModelConfig(conditions=("vocal_semantic",), target="instrumental_semantic", backbone=TINY)
    model = TokenModel(config)
    log_probabilities = model(tiny_streams(config.layout, 8)).log_softmax(-1)
    assert (log_probabilities + math.log(500)).abs().max() < 1


# --- refusals ---------------------------------------------------------------------------------------------------


def test_streams_that_do_not_fit_are_refused_by_name():
    model = tiny_model(tiny_config())
    streams = tiny_streams(model.layout, 6)
    with pytest.raises(ValueError, match="target 'instrumental_coarse' is missing"):
        model({name: ids for name, ids in streams.items() if name != "instrumental_coarse"})
    with pytest.raises(ValueError, match="condition 'style' is missing"):
        model({name: ids for name, ids in streams.items() if name != "style"})
    with pytest.raises(ValueError, match=r"'vocal_semantic' must be \[B, 1, 4\]"):
        model({**streams, "vocal_semantic": streams["vocal_semantic"][..., :3]})
    with pytest.raises(ValueError, match=r"must be \[B, 4, T\]"):
        model({**streams, "instrumental_coarse": streams["instrumental_coarse"][:, :2]})
    with pytest.raises(ValueError, match="predicts all codebooks"):
        model(streams, codebook=0)


@pytest.mark.parametrize("poison", [NULL, BEGIN, 1024])
def test_ids_that_must_not_stand_in_a_target_fail(poison):
    model = tiny_model(tiny_config("flattened"))
    streams = tiny_streams(model.layout, 6)
    streams["instrumental_coarse"][0, 1, 2] = poison
    with pytest.raises(IndexError):
        model(streams)


def test_config_travels_as_plain_values():
    config = tiny_config("delay", "aligned", "index", prefix_mask="bidirectional", look_ahead_s=0.2)
    plain = config.as_dict()
    assert isinstance(plain["conditions"], list)
    assert isinstance(plain["backbone"], dict)
    assert TokenModelConfig.from_dict(plain) == config


def test_config_names_the_settings_that_do_not_fit():
    plain = tiny_config().as_dict()
    with pytest.raises(ValueError, match="unknown model settings rotary"):
        TokenModelConfig.from_dict(plain | {"rotary": True})
    for key in ("target", "backbone"):
        with pytest.raises(ValueError, match=f"missing.*{key}"):
            TokenModelConfig.from_dict({name: value for name, value in plain.items() if name != key})
