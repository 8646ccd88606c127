"""The reference sampler against stock transformers: same log-probs, same greedy choice, less computation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.hf_sampler import HFSampler, _sample
from agents.qwen_vl import QwenVL
from agents.sampling import Prompt, SamplingParameters
from agents.tiny_model import PIXEL_BOUNDS
from agents.types import Action, Budget, History, Message
from mimgenv.types import Image

SAMPLED, GREEDY = SamplingParameters(1.0, 10), SamplingParameters(0.0, 10)
PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=PIXEL_BOUNDS[0], max_pixels=PIXEL_BOUNDS[1])


def picture(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


def prompt(qwen: QwenVL, text: str, *images: Image) -> Prompt:
    markers = "".join(f"Image-{number}: <image>\n" for number in range(1, len(images) + 1))
    return qwen.chat.prompt(History("task", (), Message(markers + text, images), Budget(1, 64, 1)))


def mixed(qwen: QwenVL) -> list[Prompt]:
    """Prompts with 0 to 3 images of several sizes, two of them equal."""
    small, wide, tall = picture(28, 28, 1), picture(56, 112, 2), picture(84, 56, 3)
    return [
        prompt(qwen, "Find the red circle.", small, wide),
        prompt(qwen, "How many?"),
        prompt(qwen, "Which one is different?", tall, small, small),
        prompt(qwen, "Find the red circle.", small, wide),
        prompt(qwen, "Where is the cube in Image-1?", picture(84, 84, 4)),
    ]


def biased(make_qwen: Callable[..., QwenVL], bias: dict[int, float]) -> QwenVL:
    """A tiny model that is fond of some tokens."""
    qwen = make_qwen()
    tied = qwen.model.lm_head.weight.detach()
    qwen.model.lm_head = torch.nn.Linear(tied.shape[1], tied.shape[0])
    with torch.no_grad():
        qwen.model.lm_head.weight.copy_(tied)
        qwen.model.lm_head.bias.zero_()
        for index, value in bias.items():
            qwen.model.lm_head.bias[index] = value
    return qwen


def stock_inputs(qwen: QwenVL, given: Prompt, said: Sequence[int] = ()) -> dict[str, Any]:
    """What a stock model is called with: placeholders repeated by the grids of the stock image processor."""
    image_id = qwen.chat.image_id
    ids: list[int] = list(given.ids)
    inputs: dict[str, Any] = {}
    if given.images:
        made = PROCESSOR(images=list(given.images), return_tensors="pt")
        inputs = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
        ids = [copy for index in ids for copy in ([index] * next(counts) if index == image_id else [index])]
    full = torch.tensor([[*ids, *said]])
    return {"input_ids": full, "mm_token_type_ids": (full == image_id).int(), **inputs}


def teacher_forced(qwen: QwenVL, stock: Any, given: Prompt, action: Action, temperature: float) -> torch.Tensor:
    """The log-probs of a completion in one pass of a stock model, media and role tokens taken out."""
    with torch.no_grad():
        logits = stock(**stock_inputs(qwen, given, action.ids)).logits[0, -len(action.ids) - 1 : -1] / temperature
    logits[:, sorted(qwen.codec.banned_ids)] = float("-inf")
    return logits.log_softmax(-1).gather(1, torch.tensor(action.ids)[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_log_probs_are_those_of_a_teacher_forced_pass_of_the_stock_model(
    qwen: QwenVL, stock: Any, temperature: float
) -> None:
    prompts = mixed(qwen)
    actions = HFSampler(qwen, seed=1).sample(prompts, SamplingParameters(temperature, 12))
    for given, action in zip(prompts, actions, strict=True):
        assert len(action.logprobs) == len(action.ids) == 12
        expected = teacher_forced(qwen, stock, given, action, temperature)
        assert max(abs(a - b) for a, b in zip(action.logprobs, expected.tolist(), strict=True)) < 1e-4


def test_the_images_are_in_the_log_probs(qwen: QwenVL, stock: Any) -> None:
    given = mixed(qwen)[0]
    (action,) = HFSampler(qwen, seed=1).sample([given], SAMPLED)
    swapped = Prompt(given.ids, (given.images[0], picture(56, 112, 99)))
    expected = teacher_forced(qwen, stock, swapped, action, 1.0)
    assert max(abs(a - b) for a, b in zip(action.logprobs, expected.tolist(), strict=True)) > 1e-2


def test_greedy_is_what_the_stock_model_generates(qwen: QwenVL, stock: Any) -> None:
    prompts = mixed(qwen)
    actions = HFSampler(qwen).sample(prompts, GREEDY)
    for given, action in zip(prompts, actions, strict=True):
        inputs = stock_inputs(qwen, given)
        generated = stock.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=10,
            suppress_tokens=sorted(qwen.codec.banned_ids),
            eos_token_id=list(qwen.codec.end_ids),
        )
        assert list(action.ids) == generated[0, inputs["input_ids"].shape[1] :].tolist()
    assert len({action.ids for action in actions}) == 4


def test_greedy_log_probs_are_those_at_temperature_one(qwen: QwenVL, stock: Any) -> None:
    given = mixed(qwen)[0]
    (action,) = HFSampler(qwen).sample([given], GREEDY)
    expected = teacher_forced(qwen, stock, given, action, 1.0)
    assert list(action.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("parameters", [SAMPLED, GREEDY])
@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|vision_start|>"])
def test_media_and_role_tokens_are_never_sampled_however_likely(
    make_qwen: Callable[..., QwenVL], token: str, parameters: SamplingParameters
) -> None:
    fond = make_qwen().codec.tokenizer.token_to_id(token)
    qwen = biased(make_qwen, {fond: 50.0})
    prompts = mixed(qwen)
    banned = qwen.codec.banned_ids
    for action in HFSampler(qwen).sample(prompts, parameters):
        assert not set(action.ids) & banned
        assert all(math.isfinite(value) for value in action.logprobs)
    qwen._banned = torch.tensor([], dtype=torch.long)  # without the ban it would be nothing else
    first = HFSampler(qwen).sample(prompts, SamplingParameters(parameters.temperature, 1))
    assert {action.ids for action in first} == {(fond,)}


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(qwen: QwenVL) -> None:
    def sampled(seed: int) -> list[Action]:
        return HFSampler(qwen, seed).sample(mixed(qwen), SAMPLED)

    assert sampled(5) == sampled(5)
    assert [action.ids for action in sampled(5)] != [action.ids for action in sampled(6)]


def test_the_generator_can_be_set_back(qwen: QwenVL) -> None:
    sampler = HFSampler(qwen, 5)
    state = sampler.generator.get_state()
    first = sampler.sample(mixed(qwen), SAMPLED)
    assert sampler.sample(mixed(qwen), SAMPLED) != first
    sampler.generator.set_state(state)
    assert sampler.sample(mixed(qwen), SAMPLED) == first


def test_sampling_does_not_touch_the_global_random_state(qwen: QwenVL) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    HFSampler(qwen).sample(mixed(qwen)[:1], SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)


def test_completions_come_in_the_order_of_the_prompts(qwen: QwenVL) -> None:
    prompts = mixed(qwen)
    together = [action.ids for action in HFSampler(qwen).sample(prompts, GREEDY)]
    alone = [HFSampler(qwen).sample([given], GREEDY)[0].ids for given in prompts]
    assert together == alone
    backwards = [action.ids for action in HFSampler(qwen).sample(prompts[::-1], GREEDY)]
    assert backwards[::-1] == together


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows_at_a_time_give_the_same(qwen: QwenVL, rows: int) -> None:
    prompts = mixed(qwen)
    expected = HFSampler(qwen).sample(prompts, GREEDY)
    actions = HFSampler(qwen, rows=rows).sample(prompts, GREEDY)
    for action, other in zip(actions, expected, strict=True):
        assert action.ids == other.ids
        assert action.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_no_prompt_is_no_completion(qwen: QwenVL) -> None:
    assert HFSampler(qwen).sample([], SAMPLED) == []


class Counted:
    """Counts rows and tokens that go through a model, and the images encoded."""

    def __init__(self, qwen: QwenVL) -> None:
        self.images: list[int] = []
        self.steps: list[tuple[int, int]] = []
        hidden, features = qwen.hidden_states, qwen.model.model.get_image_features

        def hidden_states(ids: Any, *rest: Any) -> Any:
            self.steps.append(tuple(ids.shape))
            return hidden(ids, *rest)

        def get_image_features(pixels: Any, thw: Any, **more: Any) -> Any:
            self.images.append(len(thw))
            return features(pixels, thw, **more)

        qwen.hidden_states = hidden_states  # type: ignore[method-assign]
        qwen.model.model.get_image_features = get_image_features


def test_equal_prompts_of_one_call_share_their_computation(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    counted = Counted(qwen)
    group, other = mixed(qwen)[0], mixed(qwen)[1]
    actions = HFSampler(qwen).sample([group] * 6 + [other] * 2, SAMPLED)
    assert counted.images == [2]
    prefill, *steps = counted.steps
    assert prefill[0] == 2
    assert steps == [(8, 1)] * 9
    assert len({action.ids for action in actions}) == 8


def test_prompts_with_equal_ids_and_other_images_do_not_share(qwen: QwenVL, stock: Any) -> None:
    given = mixed(qwen)[4]
    other = Prompt(given.ids, (picture(84, 84, 5),))
    for chosen, action in zip([given, other], HFSampler(qwen).sample([given, other], SAMPLED), strict=True):
        expected = teacher_forced(qwen, stock, chosen, action, 1.0)
        assert list(action.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_completion_ends_with_its_first_end_token_or_at_its_length(
    make_qwen: Callable[..., QwenVL], stock: Any
) -> None:
    ends = make_qwen().codec.end_ids
    qwen = biased(make_qwen, dict.fromkeys(ends, 3.5))
    given = mixed(qwen)[0]
    actions = HFSampler(qwen, 0).sample([given] * 60, SAMPLED)
    stopped = [action for action in actions if action.finish_reason == "stop"]
    running = [action for action in actions if action.finish_reason == "length"]
    assert len(stopped) > 10
    assert len(running) > 3
    assert {action.ids[-1] for action in stopped} == set(ends)
    assert len({len(action.ids) for action in stopped}) > 4
    for action in stopped:
        assert not set(action.ids[:-1]) & set(ends)
    for action in running:
        assert len(action.ids) == 10
        assert not set(action.ids) & set(ends)


def test_sampling_stops_when_all_have_ended(make_qwen: Callable[..., QwenVL]) -> None:
    end = make_qwen().codec.end_ids[0]
    qwen = biased(make_qwen, {end: 60.0})
    counted = Counted(qwen)
    actions = HFSampler(qwen).sample([mixed(qwen)[1]] * 3, SAMPLED)
    assert actions == [Action((end,), (0.0,), "stop")] * 3
    assert len(counted.steps) == 1


def test_no_more_tokens_than_asked_for(qwen: QwenVL) -> None:
    (action,) = HFSampler(qwen).sample([mixed(qwen)[1]], SamplingParameters(1.0, 1))
    assert (len(action.ids), action.finish_reason) == (1, "length")


def test_changed_weights_are_used_at_once(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    sampler, given = HFSampler(qwen), mixed(qwen)[0]
    (before,) = sampler.sample([given], GREEDY)
    with torch.no_grad():
        qwen.model.model.visual.patch_embed.proj.weight.mul_(-1)
    (after,) = sampler.sample([given], GREEDY)
    assert before.logprobs != after.logprobs


# ---------------------------------------------------------------- drawing a token


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    probabilities = torch.tensor([0.0, 0.4, 0.0, 0.05, 0.25, 0.3, 0.0])
    drawn = _sample(probabilities.expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=7)
    possible = probabilities > 0
    expected = 20_000 * probabilities[possible]
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    assert statistic < 16.27  # chi-squared with 3 degrees of freedom exceeds this once in a thousand
    assert int(counts[~possible].sum()) == 0


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("size", [7, 1000, 150_000])
def test_a_token_without_probability_is_never_drawn_whatever_the_random_number(
    monkeypatch: pytest.MonkeyPatch, size: int, uniform: float
) -> None:
    logits = torch.randn(64, size, generator=torch.Generator().manual_seed(size))
    logits[:, :2] = logits[:, -2:] = float("-inf")
    probabilities = logits.softmax(-1)
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: torch.full(shape, uniform))
    drawn = _sample(probabilities, torch.Generator())
    assert float(probabilities.gather(1, drawn[:, None]).min()) > 0


def test_each_row_is_drawn_from_its_own_distribution() -> None:
    certain = torch.eye(5)[[3, 0, 4, 1]]
    assert _sample(certain, torch.Generator().manual_seed(0)).tolist() == [3, 0, 4, 1]
