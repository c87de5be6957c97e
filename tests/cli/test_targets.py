"""Every command on what people have: images, windows, half precision, adapters, no chat template."""

import json

import pytest
import torch
from architectures import tiny_target
from chat_tokenizers import chat_tokenizer, chatty_target
from conftest import use_options
from doubles import letter_tokenizer, random_draft
from multimodal_targets import IMAGE, multimodal_target
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM

from eagle_hf.cli import values
from eagle_hf.cli.main import main
from eagle_hf.loading import load_target


pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what PEFT asks


def save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or letter_tokenizer()).save_pretrained(folder)
    return folder


def windowed_and_tied(folder):
    config = tiny_target("gemma3-mixed").config
    config.tie_word_embeddings = True
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save(folder, AutoModelForCausalLM.from_config(config))


def adapted(folder):
    save(folder.with_name("base"), tiny_target("llama"))
    base = AutoModelForCausalLM.from_pretrained(folder.with_name("base"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)
    return folder


QWEN = chat_tokenizer("qwen_like")
KINDS = {
    "images": lambda folder: save(folder, multimodal_target("qwen2_vl").to(torch.bfloat16)),
    "adapter": adapted,
    "windows, tied": windowed_and_tied,
    "bfloat16": lambda folder: save(folder, tiny_target("qwen3", dtype=torch.bfloat16)),
    "float16": lambda folder: save(folder, tiny_target("llama", dtype=torch.float16)),
    "learned positions": lambda folder: save(folder, tiny_target("gpt2-learned-positions")),
    "chat template": lambda folder: save(
        folder, chatty_target(chat_tokenizer("qwen_like")), chat_tokenizer("qwen_like")
    ),
}
CHEAP = ("images", "adapter")


@pytest.mark.parametrize(
    "kind", [kind if kind in CHEAP else pytest.param(kind, marks=pytest.mark.sweep) for kind in KINDS]
)
def test_every_command_takes_the_target(tmp_path, capsys, kind):
    target = KINDS[kind](tmp_path / "target")
    letters = "abcdefghijklmnopqrstuvwxyz"
    prompts = [{"prompt": letters[i : i + 6]} for i in range(12)]
    prompts_file = tmp_path / "prompts.jsonl"
    prompts_file.write_text("\n".join(map(json.dumps, prompts)))
    answers, output, head = tmp_path / "answers.jsonl", tmp_path / "out", tmp_path / "out" / "head"
    pair = ["--target", str(target), "--draft", str(head), "--threads", "1"]
    commands = [
        ["prepare", *pair[:2], "--data", str(prompts_file), "--output", str(answers), "--max_new_tokens", "6"],
        ["train", *pair[:2], "--data", str(answers), "--output_dir", str(output), "--use_cpu", "--report_to", "none",
         "--max_steps", "2", "--per_device_train_batch_size", "4", "--num_unrolls", "2", "--disable_tqdm", "True",
         "--feature_layer_ids", "0", "1", "2", "--save_strategy", "no"],
        ["generate", *pair, "abc", "--max_new_tokens", "10", "--compare", "--dtype", "fp32"],
        ["bench", *pair, "--tasks", str(prompts_file), "--max_prompts", "1", "--temperatures", "0", "--dtype", "fp32",
         "--max_new_tokens", "6", "--repeats", "1", "--no_metrics", "--output", str(tmp_path / "bench")],
    ]  # fmt: skip
    for command in commands:
        assert main(command) == 0, (command[0], capsys.readouterr())
    assert "tokens equal to plain generate: yes" in capsys.readouterr().out.replace("\n", " ")
    # A head after two steps knows nothing, which is status 2; what matters is that it was measured.
    assert main(["inspect", str(head), *pair[:2], "--max_new_tokens", "8", "--depth", "2", "--prompt", "abc"]) in (0, 2)
    assert "greedy chains" in capsys.readouterr().out


def llava(folder, template):
    """A LLaVA whose words are letters and an image, and its processor."""
    from transformers import LlavaProcessor
    from transformers.models.clip import CLIPImageProcessorPil

    tokenizer = letter_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), IMAGE)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert tokenizer.convert_tokens_to_ids("<image>") == IMAGE
    tokenizer.chat_template = template
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    target = multimodal_target("llava")
    target.lm_head.weight.data[len(tokenizer) :] = target.lm_head.weight.data[5]
    target.save_pretrained(folder / "target")
    processor.save_pretrained(folder / "target")
    use_options(random_draft(target), num_assistant_tokens=5, draft_depth=3, draft_width=2).save_pretrained(
        folder / "draft"
    )
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (20, 16), colour).save(folder / f"{name}.png")
    return ["--target", str(folder / "target"), "--draft", str(folder / "draft"), "--max_new_tokens", "12"]


PARTS = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}b"
)


class TestImages:
    @pytest.mark.parametrize(
        ("template", "sampling"), [(PARTS, []), (None, ["--temperature", "0.9"])], ids=["chat template", "sampled"]
    )
    def test_the_text_behind_an_image_is_that_of_plain_generate(self, tmp_path, capsys, template, sampling):
        pair = llava(tmp_path, template)
        texts = []
        for images in (["red"], ["blue"], ["red", "blue"]):
            options = [word for name in images for word in ("--image", str(tmp_path / f"{name}.png"))]
            assert main(["generate", *pair, "abc", *options, *sampling, "--compare"]) == 0
            printed = capsys.readouterr().out.replace("\n", " ")
            assert "tokens equal to plain generate: yes" in printed
            texts.append(printed.partition("tokens equal")[0])
        assert len(set(texts)) == 3  # the target has seen them

    def test_a_prompt_without_images_reaches_a_template_of_parts(self, tmp_path, capsys):
        """Given as a string, such a template leaves it out, and the answer would be to nothing."""
        pair = llava(tmp_path, PARTS)
        for prompt in ("abc", "xyz"):
            assert main(["generate", *pair, prompt]) == 0
        first, second = capsys.readouterr().out.split("tokens per verification")[:2]
        assert first.split("12 tokens")[0] != second.split("12 tokens")[0]

    def test_images_are_refused_by_name_for_targets_of_text(self, tmp_path, capsys):
        save(tmp_path / "target", tiny_target("llama"))
        Image.new("RGB", (8, 8)).save(tmp_path / "red.png")
        pair = ["--target", str(tmp_path / "target"), "--draft", "unused"]
        assert main(["generate", *pair, "abc", "--image", str(tmp_path / "red.png")]) == 1
        said = capsys.readouterr().err
        assert "LlamaForCausalLM" in said
        assert "reads no images" in said

    def test_nothing_is_fetched_and_a_missing_file_is_named(self, capsys):
        command = ["generate", "--target", "t", "--draft", "d", "abc", "--image"]
        with pytest.raises(SystemExit):
            main([*command, "https://example.org/cat.png"])
        assert main([*command, "nothing.png"]) == 1
        said = capsys.readouterr().err
        assert "https://example.org/cat.png: images are read from files" in said
        assert "there is no file nothing.png" in said


def test_a_head_is_trained_and_used_behind_an_adapter(tmp_path):
    """The negative control of the chain above: the adapter is there, and changes what the target writes."""
    adapted(tmp_path / "target")
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = [load_target(tmp_path / name)(prompt).logits for name in ("target", "base")]
    assert not torch.allclose(*logits, atol=1e-2)


WRONG = [
    (["--temperature", "-1"], "no temperature"),
    (["--temperature", "nan"], "no temperature"),
    (["--top_p", "0"], "no probability"),
    (["--max_new_tokens", "0"], "at least 1"),
    (["--threads", "0"], "at least 1"),
    (["--dtype", "flaot16"], "Did you mean 'float16'"),
    (["--max_memory", "20GiB"], "0=20GiB"),
    (["--device_map", "{cpu"], "no JSON"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_wrong_values_are_refused_before_anything_is_loaded(capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--target", "nowhere", "--draft", "nowhere", "abc", *options])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_devices_and_memory_are_read_as_transformers_takes_them():
    assert values.max_memory("0=20GiB, cpu=60GiB") == values.max_memory('{"0": "20GiB", "cpu": "60GiB"}')
    assert values.max_memory("0=20GiB,cpu=60GiB") == {0: "20GiB", "cpu": "60GiB"}
    assert values.device_map("auto") == "auto"
    assert values.device_map('{"": "cpu"}') == {"": "cpu"}


def test_a_swapped_pair_is_told_before_any_weights(tmp_path, capsys):
    target = save(tmp_path / "target", tiny_target("llama"))
    random_draft(tiny_target("llama")).save_pretrained(tmp_path / "draft")
    for command in (["generate", "abc"], ["chat"], ["bench", "--profile"]):
        assert main([*command, "--target", str(tmp_path / "draft"), "--draft", str(target)]) == 1
        said = capsys.readouterr().err
        assert "swap --target and --draft" in said.lower()
        assert len(said) < 500


@pytest.mark.parametrize(
    ("module", "extra"), [("gradio", "demo"), ("datasets", "train"), ("rich", "viz"), ("peft", "peft")]
)
def test_the_extra_that_brings_a_missing_package_is_named(monkeypatch, capsys, module, extra):
    from eagle_hf.cli.main import COMMANDS

    def run(args):
        raise ModuleNotFoundError(f"No module named '{module}.part'", name=f"{module}.part")

    monkeypatch.setattr(COMMANDS["app"], "run", run)
    assert main(["app"]) == 1
    assert f"eagle-hf[{extra}]'" in capsys.readouterr().err
