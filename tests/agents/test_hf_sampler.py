"""The reference sampler against stock transformers: same log-probs, same greedy choice, less computation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from agents.hf_sampler import HFSampler, _legal, _sample
from agents.qwen_vl import QwenVL
from agents.sampling import Prompt, SamplingParameters, legal_ids
from agents.tiny_model import mergers, tiny_qwen_vl, whisper
from agents.types import Action, Budget, History, Message, Turn
from mimgenv.codec import default_codec
from mimgenv.grammar import TurnLimits
from mimgenv.tools import TOOLS
from mimgenv.turn_rules import TurnRules
from mimgenv.types import Image

SAMPLED, GREEDY = SamplingParameters(1.0, 10), SamplingParameters(0.0, 10)


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


def processor(qwen: QwenVL) -> Any:
    """The stock image processor, as the model wants its images."""
    patcher, vision = qwen.patcher, qwen.model.config.vision_config
    return Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        min_pixels=patcher.min_pixels,
        max_pixels=patcher.max_pixels,
        image_mean=patcher.mean.tolist(),
        image_std=patcher.std.tolist(),
    )


def stock_inputs(qwen: QwenVL, given: Prompt, said: Sequence[int] = ()) -> dict[str, Any]:
    """What a stock model is called with: placeholders repeated by the grids of the stock image processor."""
    image_id = qwen.chat.image_id
    ids: list[int] = list(given.ids)
    inputs: dict[str, Any] = {}
    if given.images:
        made = processor(qwen)(images=list(given.images), return_tensors="pt")
        inputs = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist())
        ids = [copy for index in ids for copy in ([index] * next(counts) if index == image_id else [index])]
    full = torch.tensor([[*ids, *said]])
    return {"input_ids": full, "mm_token_type_ids": (full == image_id).int(), **inputs}


def teacher_forced(qwen: QwenVL, stock: Any, given: Prompt, action: Action, temperature: float) -> torch.Tensor:
    """The log-probs of a completion in one pass of a stock model, among the legal ids: media and role tokens never."""
    with torch.no_grad():
        logits = stock(**stock_inputs(qwen, given, action.ids)).logits[0, -len(action.ids) - 1 : -1] / temperature
    logits[:, sorted(qwen.codec.banned_ids)] = float("-inf")
    if action.walk is not None:
        logits[torch.from_numpy(~legal_ids(action))] = float("-inf")
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


# ---------------------------------------------------------------- turn after turn

TOOL_IMAGES = ((84, 28), (56, 84), None, (28, 28), (56, 56))
"""What a tool returns, by turn and row; None for an error text."""
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


def stock_of(qwen: QwenVL) -> Any:
    """The same weights in an untouched model."""
    from transformers import AutoModelForImageTextToText

    stock = AutoModelForImageTextToText.from_config(qwen.model.config)
    if qwen.model.lm_head.bias is not None:
        stock.lm_head = copy.deepcopy(qwen.model.lm_head)
    stock.load_state_dict(qwen.model.state_dict())
    return stock.eval()


def make_family(family: str) -> QwenVL:
    """A tiny model of a family that sees its images."""
    qwen = tiny_qwen_vl(0, family)
    for merger in mergers(qwen.model):
        whisper(merger, 6.0)
    return qwen


def answered(history: History, action: Action, number: int) -> History:
    """The history after a turn, with what a tool returned or an error."""
    size = TOOL_IMAGES[number % len(TOOL_IMAGES)]
    message = Message("Error: no such image.", ())
    if size is not None:
        message = Message(f"Image-{len(history.images) + 1}: <image>", (picture(*size, 100 + number),))
    return History("task", (*history.turns, Turn(history.message, action, None)), message, history.budget)


def first_message(text: str, *images: Image) -> History:
    markers = "".join(f"Image-{number}: <image>\n" for number in range(1, len(images) + 1))
    return History("task", (), Message(markers + text, images), Budget(3, 512, 8))


def turns_of(
    qwen: QwenVL, sampler: HFSampler, parameters: SamplingParameters, turns: int = 3
) -> Iterator[list[tuple[Prompt, Action]]]:
    """The prompts and completions of each turn of two groups and a single; one episode after another begins anew."""
    small, wide, tall = picture(28, 28, 1), picture(56, 112, 2), picture(84, 56, 3)
    first = first_message("Find the red circle.", small, wide)
    histories = [first, first_message("How many?"), first, first_message("Which?", tall, small, small), first]
    for turn in range(turns):
        prompts = [qwen.chat.prompt(history) for history in histories]
        actions = sampler.sample(prompts, parameters)
        yield list(zip(prompts, actions, strict=True))
        numbered = enumerate(zip(histories, actions, strict=True), 3 * turn)
        histories = [answered(history, action, number) for number, (history, action) in numbered]
        histories[turn] = first_message(f"A new one: {turn}", tall, wide)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_later_turns_are_those_of_a_teacher_forced_pass(family: str, temperature: float) -> None:
    qwen = biased(partial(make_family, family), dict.fromkeys(default_codec().end_ids, 4.5))
    stock, lengths = stock_of(qwen), set()
    for played in turns_of(qwen, HFSampler(qwen, 5), SamplingParameters(temperature, 10)):
        for given, action in played:
            expected = teacher_forced(qwen, stock, given, action, temperature)
            assert list(action.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)
            lengths.add(len(action.ids))
    assert len(lengths) > 3


def test_what_is_kept_changes_no_token(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = biased(make_qwen, dict.fromkeys(default_codec().end_ids, 3.0))
    rooms = {"all": 2**30, "some": 200_000, "none": 0}

    def played(room: int, parameters: SamplingParameters) -> list[tuple[int, ...]]:
        turns = turns_of(qwen, HFSampler(qwen, 5, kept_bytes=room), parameters)
        return [action.ids for turn in turns for _, action in turn]

    greedy = {name: played(room, GREEDY) for name, room in rooms.items()}
    assert greedy["all"] == greedy["some"] == greedy["none"]
    drawn = {name: played(room, SAMPLED) for name, room in rooms.items()}
    for name in ("all", "some"):  # a draw on the very border of two tokens may fall to either side
        assert sum(a != b for a, b in zip(drawn[name], drawn["none"], strict=True)) <= 1


def test_a_few_rows_at_a_time_go_on_from_what_was_kept(qwen: QwenVL, stock: Any) -> None:
    for played in turns_of(qwen, HFSampler(qwen, 5, rows=2), SAMPLED):
        for given, action in played:
            expected = teacher_forced(qwen, stock, given, action, 1.0)
            assert list(action.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_later_turn_computes_only_what_is_new(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    sampler = HFSampler(qwen, 5)
    history = first_message("Find the red circle.", picture(84, 84, 1), picture(84, 84, 2))
    actions = sampler.sample([qwen.chat.prompt(history)] * 3, SAMPLED)
    assert len({action.ids for action in actions}) == 3
    later = [qwen.chat.prompt(answered(history, action, 0)) for action in actions]
    counted = Counted(qwen)
    sampler.sample(later, SAMPLED)
    rows, tokens = counted.steps[0]
    whole = len(stock_inputs(qwen, later[0])["input_ids"][0])
    assert (rows, tokens) == (3, 1 + whole - len(stock_inputs(qwen, qwen.chat.prompt(history))["input_ids"][0]) - 10)
    assert counted.images == [1]


def test_equal_completions_go_on_as_one_row(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    sampler, history = HFSampler(qwen), first_message("How many?", picture(28, 28, 1))
    action = sampler.sample([qwen.chat.prompt(history)] * 4, GREEDY)[0]
    counted = Counted(qwen)
    sampler.sample([qwen.chat.prompt(answered(history, action, 0))] * 4, GREEDY)
    assert counted.steps[0][0] == 1
    assert counted.steps[1][0] == 4


def test_a_row_is_not_gone_on_from_with_other_images(qwen: QwenVL, stock: Any) -> None:
    sampler, history = HFSampler(qwen), first_message("How many?", picture(28, 28, 1))
    (action,) = sampler.sample([qwen.chat.prompt(history)], SAMPLED)
    other = qwen.chat.prompt(answered(first_message("How many?", picture(28, 28, 2)), action, 0))
    assert other.ids == qwen.chat.prompt(answered(history, action, 0)).ids
    (later,) = sampler.sample([other], SAMPLED)
    expected = teacher_forced(qwen, stock, other, later, 1.0)
    assert list(later.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("synced", [True, False])
def test_changed_weights_need_a_sync(make_qwen: Callable[..., QwenVL], synced: bool) -> None:
    qwen = make_qwen()
    sampler, history = HFSampler(qwen), first_message("How many?", picture(56, 56, 1))
    (action,) = sampler.sample([qwen.chat.prompt(history)], SAMPLED)
    with torch.no_grad():
        for parameter in qwen.model.model.language_model.layers.parameters():
            parameter.mul_(1.2)
    if synced:
        sampler.sync()
    later = qwen.chat.prompt(answered(history, action, 0))
    (after,) = sampler.sample([later], SAMPLED)
    expected = teacher_forced(qwen, stock_of(qwen), later, after, 1.0)
    worst = max(abs(a - b) for a, b in zip(after.logprobs, expected.tolist(), strict=True))
    assert worst < 1e-4 if synced else worst > 1e-2


def test_a_sync_forgets_the_features_of_images(make_qwen: Callable[..., QwenVL]) -> None:
    qwen, told = make_qwen(), []
    qwen.weights_changed = lambda: told.append(True)  # type: ignore[method-assign]
    HFSampler(qwen).sync()
    assert told == [True]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_no_more_bytes_are_kept_than_there_is_room_for(qwen: QwenVL, share: float) -> None:
    whole = HFSampler(qwen, 5)
    list(turns_of(qwen, whole, SAMPLED, turns=2))
    room = int(whole._kept.nbytes * share)
    sampler = HFSampler(qwen, 5, kept_bytes=room)
    list(turns_of(qwen, sampler, SAMPLED, turns=2))
    assert sampler._kept.nbytes <= room
    assert len(sampler._kept) in {0.0: [0], 0.3: [1, 2], 0.7: [3, 4], 1.0: [5]}[share]


def test_what_was_kept_lives_for_one_call(qwen: QwenVL) -> None:
    sampler = HFSampler(qwen, 5)
    assert [len(sampler._kept) for _ in turns_of(qwen, sampler, SAMPLED)] == [5, 5, 5]


# ---------------------------------------------------------------- legal ids only

ALL_TOOLS = {name: make() for name, make in TOOLS.items()}


def ruled(qwen: QwenVL, given: Prompt, **budget: int) -> Prompt:
    rules = TurnRules(qwen.codec, ALL_TOOLS, "pixel", TurnLimits(20, 10, 10), 64)
    left = {"turns": 3, "tokens": 512, "images": 2} | budget
    return Prompt(given.ids, given.images, partial(rules.turn, rules.extents(given.images), "grounding", **left))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probs_are_those_among_the_legal_ids(qwen: QwenVL, stock: Any, temperature: float) -> None:
    given = mixed(qwen)[0]
    prompts = [ruled(qwen, given), given, ruled(qwen, given), ruled(qwen, given, turns=1)]
    actions = HFSampler(qwen, 1).sample(prompts, SamplingParameters(temperature, 64))
    for prompt_, action in zip(prompts, actions, strict=True):
        assert action.walk is prompt_.walk
        expected = teacher_forced(qwen, stock, prompt_, action, temperature or 1.0)
        assert list(action.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)
    free = actions[1]
    assert (free.finish_reason, len(free.ids)) == ("length", 64)
    for action in (actions[0], *actions[2:]):
        assert action.finish_reason == "stop"
        assert qwen.codec.decode_turn(action.ids).startswith("<think>")
        unmasked = teacher_forced(qwen, stock, given, Action(action.ids), temperature or 1.0)
        assert sum(action.logprobs) > float(unmasked.sum()) + 5


def test_equal_prompts_with_walks_of_their_own_share_their_computation(make_qwen: Callable[..., QwenVL]) -> None:
    qwen = make_qwen()
    given, counted = mixed(qwen)[0], Counted(qwen)
    prompts = [ruled(qwen, given), given, ruled(qwen, given, turns=1)]
    HFSampler(qwen).sample(prompts, SamplingParameters(1.0, 3))
    assert [rows for rows, _ in counted.steps] == [1, 3, 3]


def test_sampling_stops_when_all_walks_are_complete(qwen: QwenVL) -> None:
    actions = HFSampler(qwen).sample([ruled(qwen, mixed(qwen)[0])] * 5, SamplingParameters(1.0, 500))
    assert len({len(action.ids) for action in actions}) > 1
    assert {action.finish_reason for action in actions} == {"stop"}


def test_a_row_is_bound_while_its_turn_is_written_only(qwen: QwenVL) -> None:
    walk = ruled(qwen, mixed(qwen)[0]).walk
    assert walk is not None
    begun, over = walk(), walk()
    while not over.complete:
        over.write(int(np.argmax(over.mask)))
    legal = _legal([begun, None, over], qwen.codec.vocab_size + 3)
    assert legal[0].tolist() == [*begun.mask.tolist(), False, False, False]
    assert bool(legal[1:].all())


def test_a_walk_that_is_cut_short_says_so(qwen: QwenVL) -> None:
    (action,) = HFSampler(qwen).sample([ruled(qwen, mixed(qwen)[0])], SamplingParameters(1.0, 5))
    assert (len(action.ids), action.finish_reason) == (5, "length")
    assert len(legal_ids(action)) == 5


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
