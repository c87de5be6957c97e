"""Train the target of the demo pair: a deep and thin Llama that writes short code, arithmetic and chat answers.

The data is JSON lines, plain or `.xz`, of conversations:

    {"source": "gsm8k_train", "finished": true,
     "messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Training runs in two stages, so that most tokens are seen in short blocks (attention is what costs on a CPU) by a model
of two thirds of the layers, and the model still learns to write answers as long as the second block size. Between them
it grows: behind every second layer comes a copy of it that at first adds nothing (block expansion, LLaMA Pro,
https://huggingface.co/papers/2401.02415), so that nothing is unlearned:

    python scripts/train_demo_target.py stage1 --data train.jsonl.xz --tokenizer TOKENIZER --output runs/target
    python scripts/train_demo_target.py stage2 --data train.jsonl.xz --tokenizer TOKENIZER --output runs/target

`mix` instead of a stage writes the conversations that are trained as `mix.jsonl`, or with `--domain` those of one
domain; the head's answers are made from their prompts (docs/training.md). A stage that was interrupted goes on from its
newest checkpoint when it is started again.
`--size large` trains the 24-layer, 256-wide model with the wide mix instead, which is meant for a GPU. Stage 1 of
`--size assistant` trains two layers with about as many parameters as the demo's head has: the small draft model of
ordinary assisted decoding, which the head is compared with (docs/performance.md).

On two AMD EPYC cores with bfloat16 instructions stage 1 took about 2 h 24 min, stage 2 an hour, with other work beside
them and with glibc told to keep its memory (see docs/training.md). On a GPU it was not timed.
"""

import argparse
import copy
import json
import lzma
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint


# Only sources whose licences are permissive (Apache-2.0, MIT, CC0, CC-BY): no share-alike text goes into the weights.
NARROW_MIX = {"mbxp", "mathqa_code", "thirty_seconds_js", "gsm8k_train", "oasst_model_eval", "self_instruct_seed_user"}
WIDE_MIX = NARROW_MIX | {"math_train"}


@dataclass(frozen=True)
class Size:
    hidden_size: int
    num_hidden_layers: int  # a multiple of 3; the first stage trains two of three
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    sources: frozenset[str]
    max_chat_chars: int


SIZES = {
    "small": Size(192, 24, 448, 3, 1, frozenset(NARROW_MIX), max_chat_chars=900),
    "large": Size(256, 24, 704, 4, 2, frozenset(WIDE_MIX), max_chat_chars=4000),
    "assistant": Size(128, 3, 320, 2, 1, frozenset(NARROW_MIX), max_chat_chars=900),
}


@dataclass(frozen=True)
class Stage:
    block_size: int
    tokens_per_step: int
    max_steps: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: int


STAGES = {
    "stage1": Stage(256, 8192, 4500, 2e-3, "constant_with_warmup", 200),
    "stage2": Stage(512, 8192, 1000, 2e-3, "linear", 20),
}


def read_conversations(path: Path, size: Size, domain: str | None = None) -> list[list[dict[str, str]]]:
    """
    Read the conversations of the mix, or those of one domain: complete answers, chat in ASCII and not longer than the
    model can learn.
    """
    conversations = []
    with lzma.open(path, "rt") if path.suffix == ".xz" else open(path) as lines:
        for line in lines:
            row = json.loads(line)
            if row["source"] not in size.sources or row.get("finished") is False or domain not in (None, row["domain"]):
                continue
            text = "".join(message["content"] for message in row["messages"])
            if row["domain"] == "chat" and (len(text) > size.max_chat_chars or not text.isascii()):
                continue
            conversations.append(row["messages"])
    return conversations


def deepen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same function with half as many layers more: behind every second one a copy of it that adds nothing yet."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = model.config.num_hidden_layers * 3 // 2
    deeper = LlamaForCausalLM(config)
    sources = [layer for layer in range(model.config.num_hidden_layers) for _ in range(1 + layer % 2)]
    for index, source in enumerate(sources):
        deeper.model.layers[index].load_state_dict(model.model.layers[source].state_dict())
        if index and sources[index - 1] == source:
            torch.nn.init.zeros_(deeper.model.layers[index].self_attn.o_proj.weight)
            torch.nn.init.zeros_(deeper.model.layers[index].mlp.down_proj.weight)
    rest = {name: weight for name, weight in model.state_dict().items() if not name.startswith("model.layers.")}
    deeper.load_state_dict(rest, strict=False)
    return deeper


class PackedConversations(Dataset):
    """Whole conversations packed into blocks of `block_size` tokens, best fit first; longer ones are cut at the end."""

    def __init__(self, conversations: list[list[dict[str, str]]], tokenizer, block_size: int, seed: int):
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
        token_ids = [ids[:block_size] for ids in tokenizer(texts, add_special_tokens=False).input_ids]
        random.Random(seed).shuffle(token_ids)
        token_ids.sort(key=len, reverse=True)  # stable: equal lengths stay shuffled
        blocks_by_room: list[list[list[int]]] = [[] for _ in range(block_size + 1)]
        for ids in token_ids:
            room = next((room for room in range(len(ids), block_size) if blocks_by_room[room]), block_size)
            block = blocks_by_room[room].pop() if room < block_size else []
            block.extend(ids)
            blocks_by_room[block_size - len(block)].append(block)
        blocks = [block for room in blocks_by_room for block in room]
        self.num_tokens = sum(len(block) for block in blocks)
        self.labels = torch.full((len(blocks), block_size), -100)  # (num_blocks, block_size)
        for row, block in zip(self.labels, blocks, strict=True):
            row[: len(block)] = torch.tensor(block)
        self.input_ids = self.labels.masked_fill(self.labels == -100, tokenizer.pad_token_id)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "mix"])
    parser.add_argument(
        "--data", type=Path, required=True, help="training conversations, JSON lines (.jsonl or .jsonl.xz)"
    )
    parser.add_argument("--tokenizer", help="folder of the tokenizer, with its chat template")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the trained model")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--domain", choices=["chat", "code", "math"], help="mix: conversations of this domain only")
    parser.add_argument("--max_steps", type=int, help="fewer steps than the recipe's, for trials")
    parser.add_argument("--batch_size", type=int, help="blocks per step, instead of the recipe's tokens per step")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile the model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    size = SIZES[args.size]
    if args.stage == "mix":
        args.output.mkdir(parents=True, exist_ok=True)
        with open(args.output / "mix.jsonl", "w") as file:
            for messages in read_conversations(args.data, size, args.domain):
                file.write(json.dumps({"messages": messages}) + "\n")
        return
    if args.tokenizer is None:
        parser.error(f"{args.stage} needs --tokenizer")
    stage = STAGES[args.stage]
    on_gpu = torch.cuda.is_available()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    dataset = PackedConversations(read_conversations(args.data, size), tokenizer, stage.block_size, args.seed)
    print(f"{len(dataset)} blocks of {stage.block_size}, {dataset.num_tokens / 1e6:.1f}M tokens an epoch")

    if args.stage == "stage1":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_hidden_layers * 2 // 3,
            intermediate_size=size.intermediate_size,
            num_attention_heads=size.num_attention_heads,
            num_key_value_heads=size.num_key_value_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config)
    else:
        model = deepen(LlamaForCausalLM.from_pretrained(args.output / "stage1", dtype=torch.float32))
    print(f"{model.num_parameters() / 1e6:.2f}M parameters")

    output = args.output / args.stage
    batch_size = args.batch_size or stage.tokens_per_step // stage.block_size
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=args.max_steps or stage.max_steps,
            per_device_train_batch_size=batch_size,
            learning_rate=stage.learning_rate,
            lr_scheduler_type=stage.lr_scheduler_type,
            warmup_steps=stage.warmup_steps,
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            bf16=True,
            torch_compile=args.compile,
            use_cpu=not on_gpu,
            logging_steps=50,
            save_steps=500,
            save_total_limit=2,
            dataloader_drop_last=True,
            seed=args.seed,
            report_to="none",
        ),
        train_dataset=dataset,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)
    model.config.use_cache = True  # training had turned it off
    trainer.save_model(str(output))
    if args.stage == "stage2":  # half the size; `config.dtype` still says float32, which is what it is loaded as
        weights = {name: w.bfloat16() for name, w in model.state_dict().items() if name != "lm_head.weight"}  # tied
        model.save_pretrained(output, state_dict=weights)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
