"""
`custom_generate=eagle_hf.decode`, and as a folder: the text of plain `generate` with no method of `transformers`
replaced, and no argument of a call dropped in silence.
"""

import inspect

import pytest
import torch
from conftest import GOLDEN, golden_draft
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)
from transformers.generation import GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

import eagle_hf
from eagle_hf import DraftOptions, EagleGenerateOutput
from eagle_hf.generation import custom, seam
from eagle_hf.hub.publishing import write_custom_generate
from eagle_hf.versions import CACHE


PROMPT = torch.tensor([[17, 104, 9, 33, 50]])
RAGGED = {
    "inputs": torch.tensor([[17, 104, 9, 33, 50], [0, 0, 3, 71, 8], [0, 40, 41, 9, 2]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]),
}
CALL = {"max_new_tokens": 16, "eos_token_id": None, "return_dict_in_generate": True, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def nothing_is_replaced():
    seam.uninstall()
    yield
    seam.install()


@pytest.fixture(scope="module")
def target():
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "targets" / "A").eval()


@pytest.fixture(scope="module")
def draft():
    return golden_draft("A_eagle3")


class Recorder(BaseStreamer):
    def __init__(self):
        self.puts, self.ended = [], 0

    def put(self, value):
        self.puts.append(value.tolist())

    def end(self):
        self.ended += 1


class Biased(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores + torch.linspace(0, 2, scores.shape[-1]).roll(int(input_ids[0, -1]))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Every token is a character of its own."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())[:128]
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(characters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def stop_string(target, tokenizer) -> str:
    """What plain `generate` writes after some tokens."""
    new = target.generate(PROMPT, **CALL).sequences[0, 5:]
    return next(text for i in range(6, 14) if (text := tokenizer.convert_ids_to_tokens(new[i : i + 1].tolist())[0]))


def both(target, draft, inputs=PROMPT, plain=None, **kwargs):
    """Outputs of plain `generate` and with the callable, and the states in which they left the generator."""
    settings = CALL | ({"inputs": inputs} if isinstance(inputs, torch.Tensor) else inputs)
    outputs, states = [], []
    for more in (plain or {}, {"custom_generate": eagle_hf.decode, "eagle_draft": draft} | kwargs):
        torch.manual_seed(3)
        outputs.append(target.generate(**settings | more))
        states.append(torch.get_rng_state())
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert torch.equal(*states)
    return outputs


def test_no_method_is_replaced(target, draft):
    for name, method in vars(GenerationMixin).items():
        assert not getattr(method, "__module__", "").startswith("eagle_hf"), name
    both(target, draft)
    assert "generate" not in vars(target)


@pytest.mark.parametrize("inputs", [PROMPT, RAGGED], ids=["single", "ragged"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
def test_the_text_is_that_of_plain_generate(target, draft, inputs, do_sample):
    same = {"do_sample": do_sample, "output_scores": True}
    plain, ours = both(target, draft, inputs, plain=same, **same)
    assert isinstance(ours, EagleGenerateOutput)
    assert isinstance(plain, GenerateDecoderOnlyOutput)
    assert ours.target_forwards < 16  # drafts were accepted
    for expected, got in zip(plain.scores, ours.scores, strict=True):
        torch.testing.assert_close(expected, got, atol=1e-4, rtol=1e-4)


def test_without_a_dictionary_the_tokens_are_returned(target, draft):
    settings = {"max_new_tokens": 8, "do_sample": False}
    drafted = target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, **settings)
    assert torch.equal(drafted, target.generate(PROMPT, **settings))


def test_options_are_keywords_or_in_the_config(target, draft):
    own = both(target, draft, output_draft_trees=True)[1].draft_trees
    assert max(tree.num_nodes for tree, _ in own) > 4
    _, ours = both(target, draft, num_assistant_tokens=3, output_draft_trees=True)
    assert max(tree.num_nodes for tree, _ in ours.draft_trees) == 4
    config = GenerationConfig(num_assistant_tokens=3, output_draft_trees=True, **CALL)
    ours = target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, generation_config=config)
    assert max(tree.num_nodes for tree, _ in ours.draft_trees) == 4


def test_it_works_where_the_methods_are_wrapped_as_well(target, draft):
    seam.install()
    both(target, draft)


# How a call may name each argument of `generate`: what is equal to plain `generate` with the same, with another name
# of ours, or refused with a message that says so. `transformers` takes any other keyword for one of the target, or
# refuses it, before the callable is asked.
PROCESSORS = LogitsProcessorList([Biased()])
SAME = {
    "inputs": {},
    "generation_config": {"generation_config": GenerationConfig(**CALL, do_sample=False)},
    "logits_processor": {"logits_processor": PROCESSORS},
    "stopping_criteria": {
        "stopping_criteria": StoppingCriteriaList([lambda ids, scores, **_: ids[:, -1] % 5 == 0]),
    },
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(20 + batch, 60))},
    "negative_prompt_ids": {"negative_prompt_ids": PROMPT + 1, "guidance_scale": 1.4},
    "negative_prompt_attention_mask": {
        "negative_prompt_ids": PROMPT + 1,
        "negative_prompt_attention_mask": torch.ones_like(PROMPT),
        "guidance_scale": 1.4,
    },
    "custom_generate": {},
    "kwargs": {"attention_mask": torch.ones_like(PROMPT), "num_return_sequences": 2, "do_sample": True, "top_k": 7},
}
REFUSED = {
    "assistant_model": "`eagle_draft`",
    "streamer": "`eagle_streamer`",
    "synced_gpus": "`eagle_synced_gpus`",
}


def test_every_argument_of_generate_is_known():
    named = set(inspect.signature(GenerationMixin.generate).parameters) - {"self"}
    assert named == set(SAME) | set(REFUSED)


@pytest.mark.parametrize("name", SAME)
def test_arguments_mean_what_they_mean(target, draft, name):
    both(target, draft, plain=SAME[name], **SAME[name])


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_are_dropped_on_the_way_are_refused(target, draft, name):
    value = {"assistant_model": target, "streamer": Recorder(), "synced_gpus": False}[name]
    with pytest.raises(ValueError, match=rf"Got `{name}`, which `transformers` does not hand on.*{REFUSED[name]}"):
        target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, **{name: value}, **CALL)


def test_a_callable_of_ones_own_around_it_changes_nothing(target, draft):
    def mine(*args, **kwargs):
        return eagle_hf.decode(*args, eagle_draft=draft, **kwargs)

    ours = target.generate(PROMPT, custom_generate=mine, **CALL)
    assert torch.equal(ours.sequences, target.generate(PROMPT, **CALL).sequences)
    with pytest.raises(ValueError, match="`eagle_streamer`"):
        target.generate(PROMPT, custom_generate=mine, streamer=Recorder(), **CALL)


def test_streamers_get_what_they_get_elsewhere(target, draft):
    recorders = [Recorder(), Recorder()]
    both(target, draft, plain={"streamer": recorders[0]}, eagle_streamer=recorders[1])
    assert recorders[0].puts == recorders[1].puts
    assert recorders[0].ended == recorders[1].ended == 1


def test_stop_strings_stop(target, draft):
    tokenizer = character_tokenizer()
    stop = stop_string(target, tokenizer)
    names = {"stop_strings": [stop], "tokenizer": tokenizer}
    _, ours = both(target, draft, plain=names, eagle_stop_strings=[stop], eagle_tokenizer=tokenizer)
    assert ours.sequences.shape[1] < 5 + 16
    with pytest.raises(ValueError, match="tokenizer"):  # by `transformers`, which keeps the tokenizer to itself
        target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, **names, **CALL)
    with pytest.raises(ValueError, match="without `eagle_tokenizer`"):
        target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, eagle_stop_strings="x", **CALL)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 2}, "beam"),
        ({"use_mtp": True}, "`use_mtp`"),
        ({"assistant_ensemble_weight": 0.5}, "`assistant_ensemble_weight`"),
        ({"speculation_type": "dflash"}, "`speculation_type`"),
        ({"use_cache": False}, "`use_cache=False`"),
        ({"draft_dept": 3}, "draft_dept"),
        ({"eagle_strings": 3}, "eagle_strings"),
        ({"draft_depth": 0}, "`draft_depth` must be"),
        ({"eagle_draft": None}, "eagle_draft=EagleDraftModel.from_pretrained"),
        ({"eagle_draft": "org/head"}, "Load the head first"),
    ],
    ids=str,
)
def test_what_cannot_be_drafted_is_refused(target, draft, asked, message):
    with pytest.raises(ValueError, match=message):
        target.generate(PROMPT, **{"custom_generate": eagle_hf.decode, "eagle_draft": draft, **CALL} | asked)


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_that_share_weights_run_in_step_unless_told_otherwise(target, draft, size, monkeypatch):
    seen = []
    monkeypatch.setattr(custom, "is_fsdp_managed_module", lambda model: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
    monkeypatch.setattr(custom, "eagle_decoding", lambda *args, synced_gpus, **kwargs: seen.append(synced_gpus))
    for asked in ({}, {"eagle_synced_gpus": False}):
        target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, **asked, **CALL)
    assert seen == [size > 1, False]


class TestFolder:
    """A `custom_generate` folder gets all arguments by the names of `generate`."""

    @pytest.fixture(autouse=True)
    def modules(self, tmp_path, monkeypatch):
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        write_custom_generate(tmp_path, str(GOLDEN / "drafts" / "A_eagle3"))
        self.call = CALL | {"custom_generate": str(tmp_path), "trust_remote_code": True}

    @pytest.mark.parametrize("in_config", [False, True], ids=["keyword", "config"])
    def test_everything_goes_by_its_usual_name(self, target, in_config):
        tokenizer, recorders, outputs = character_tokenizer(), [Recorder(), Recorder()], []
        stop = [stop_string(target, tokenizer)]
        for call, recorder in zip((CALL, self.call), recorders, strict=True):
            config = GenerationConfig(stop_strings=stop) if in_config else None
            named = {} if in_config else {"stop_strings": stop}
            outputs.append(
                target.generate(
                    PROMPT, streamer=recorder, tokenizer=tokenizer, generation_config=config, synced_gpus=False,
                    logits_processor=LogitsProcessorList(), **named, **call,
                )
            )  # fmt: skip
            assert config is None or config.stop_strings == stop
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)
        assert outputs[1].sequences.shape[1] < 5 + 16
        assert outputs[1].draft_forwards > 0
        assert recorders[0].puts == recorders[1].puts
        assert recorders[1].ended == 1

    def test_another_assistant_is_refused(self, target):
        with pytest.raises(ValueError, match="Got `assistant_model`"):
            target.generate(PROMPT, assistant_model=target, **self.call)

    def test_a_target_with_such_a_folder_generates_by_it(self, target, tmp_path):
        folder = tmp_path / "target"
        target.save_pretrained(folder)
        write_custom_generate(folder, str(GOLDEN / "drafts" / "A_eagle3"))
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        output = loaded.generate(PROMPT, **CALL)
        assert output.draft_forwards > 0
        assert torch.equal(output.sequences, target.generate(PROMPT, **CALL).sequences)


def test_a_cache_goes_on_over_turns(target, draft):
    cache = DynamicCache(config=target.config)
    first = target.generate(PROMPT, custom_generate=eagle_hf.decode, eagle_draft=draft, **CALL, **{CACHE: cache})
    longer = torch.cat([first.sequences, PROMPT], dim=1)
    second = target.generate(longer, custom_generate=eagle_hf.decode, eagle_draft=draft, **CALL, **{CACHE: cache})
    assert torch.equal(second.sequences, target.generate(longer, **CALL).sequences)


def test_options_of_the_head_are_in_the_signature():
    assert set(DraftOptions.__dataclass_fields__) <= set(inspect.signature(eagle_hf.decode).parameters)
