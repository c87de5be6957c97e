"""
Letting the target write the answers that a head is trained on.

A head learns what its target writes, so training on answers that the target wrote itself gives longer acceptance than
training on those of people or other models. Every turn of the assistant is written again, in order: later turns see the
earlier answers of the target. A conversation ends where an answer did not come to its end, and where a tool was called,
because the results that follow belong to another call.
"""

import hashlib
import json
import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data import frozen_clock
from ..data.chat_text import ChatText, NotRenderable
from ..data.conversations import Row, RowReader, RowReport
from ..data.data_files import Data
from ..data.dialogue import Dialogue
from ..target.config import TargetConfig
from .run_identity import identity_of_weights


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class AnswerSettings:
    """
    Says how answers are written. A run that goes on must have the settings it began with, the same prompts and target,
    and renders them at the time at which it began. What is not set here, such as a repetition penalty, is that of
    `target.generation_config`.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 1024): Most tokens of an answer.
        max_length (`int`, *optional*):
            Most tokens of prompt and answer; longer prompts are left out. By default what the target has positions for.
        temperature (`float`, *optional*, defaults to 0.0): 0 is greedy.
        top_p (`float`, *optional*, defaults to 1.0): Sample from the likeliest tokens up to this probability.
        top_k (`int`, *optional*, defaults to 0): Sample from this many likeliest tokens; 0 for all.
        seed (`int`, *optional*, defaults to 0): For sampling and the order of the prompts.
        batch_size (`int`, *optional*, defaults to 8): Conversations that are answered at once.
        turns (`str`, *optional*, defaults to `"all"`):
            Whether every turn of the assistant is written again (`"all"`) or the first of a conversation (`"first"`).
        num_prompts (`int`, *optional*): Answer so many prompts, chosen at random, instead of all.
        chat_template_kwargs (`dict`, *optional*): Variables of the chat template.
    """

    max_new_tokens: int = 1024
    max_length: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch_size: int = 8
    turns: Literal["all", "first"] = "all"
    num_prompts: int | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("max_new_tokens", "batch_size", "max_length", "num_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, and must be at least 1.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature is {self.temperature}, top_p {self.top_p} and top_k {self.top_k}: needed are temperature "
                ">= 0, 0 < top_p <= 1 and top_k >= 0."
            )
        if self.turns not in ("all", "first"):
            raise ValueError(f"turns is {self.turns!r}, and must be 'all' or 'first'.")

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings as `generate` takes them."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


@dataclass
class AnswerReport:
    """
    Counts what was written.

    Args:
        rows ([`RowReport`]): The rows that were read.
        num_prompts (`int`): Conversations to answer.
        num_repeated (`int`): Rows whose prompt occurred before; a prompt is answered once.
        num_too_long (`int`): Prompts that leave no room for an answer.
        num_resumed (`int`): Answers that an earlier run had written.
        num_answers (`int`): Answers that this run wrote.
        num_unfinished (`int`): Those of them that were cut at `max_new_tokens` or `max_length`.
        num_tokens (`int`): Their tokens.
        seconds (`float`): Time of this run.
    """

    rows: RowReport = field(default_factory=RowReport)
    num_prompts: int = 0
    num_repeated: int = 0
    num_too_long: int = 0
    num_resumed: int = 0
    num_answers: int = 0
    num_unfinished: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return "\n".join(
            [
                str(self.rows),
                f"{self.num_prompts} prompts; left out: {self.num_repeated} repeated, {self.num_too_long} too long",
                f"{self.num_answers} answers of {self.num_tokens} tokens in {self.seconds:.0f} s "
                f"({self.num_tokens / max(self.seconds, 1e-9):.0f} tokens/s), {self.num_unfinished} of them "
                f"unfinished; {self.num_resumed} answers were there already",
            ]
        )


def write_answers(
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    output: str | Path,
    settings: AnswerSettings | None = None,
    draft: PreTrainedModel | None = None,
    max_malformed: float = 0.01,
    split: str = "train",
) -> AnswerReport:
    """
    Lets the target answer the prompts of `data`, one JSON line per answer.

    A line holds `messages` up to and including the answer (`prompt` and `completion` for rows of text) to be read, the
    exact tokens `prompt_ids` and `answer_ids` to be trained, and `finished`, which is false where the answer was cut.
    [`make_samples`] takes the file as it is.

    It may be interrupted at any moment and started again: what was written is kept, a torn batch is dropped and written
    again, and the file ends up the same, token for token, as that of a run that never stopped.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        data: Rows in any form that [`RowReader`] takes; answers are not needed, and ignored.
        output (`str` or `Path`): The file. `<output>.settings.json` beside it records the settings.
        settings ([`AnswerSettings`], *optional*): How answers are written.
        draft ([`EagleDraftModel`], *optional*): A head that makes it faster; it does not change what is written.
        max_malformed (`float`, *optional*, defaults to 0.01): Share of malformed rows above which this fails.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset that has several.

    Returns:
        [`AnswerReport`]

    Raises:
        `ValueError`: if too many rows are malformed, or `output` was begun with other settings, data or target.
    """
    settings = settings if settings is not None else AnswerSettings()
    output = Path(output)
    report, start = AnswerReport(), time.perf_counter()
    begun = _read_settings(output)
    rendered_at = begun.get("rendered_at") or frozen_clock.now()  # a run of several days renders the date it began with
    chat_text = ChatText(
        tokenizer, chat_template_kwargs=settings.chat_template_kwargs, rendered_at=rendered_at, needs_offsets=False
    )
    reader = RowReader(data, need_answers=False, max_malformed=max_malformed, split=split)
    max_length = settings.max_length or _max_positions(target)
    prompts, fingerprint = _read_prompts(reader, chat_text, settings, max_length, report)
    batches = _batches(prompts, settings)
    record = asdict(settings) | {
        "target": identity_of_weights(target),
        "generation_config": _identity_of_generation(target),
        "prompts": fingerprint,
        "rendered_at": rendered_at,
    }
    first, report.num_resumed = _resume(output, begun, record)
    report.num_prompts = len(prompts)
    stop_ids = _stop_ids(target, tokenizer)
    bar = logging.tqdm(total=len(prompts), initial=sum(map(len, batches[:first])), unit="prompt", desc="Answers")
    with open(output, "a", encoding="utf-8") as file:
        for number, batch in enumerate(batches[first:], start=first):
            lines = _answer(target, batch, number, settings, max_length, stop_ids, draft)
            for i, line in enumerate(lines):
                line |= {"batch": number, "left_in_batch": len(lines) - 1 - i}
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            report.num_answers += len(lines)
            report.num_unfinished += sum(not line["finished"] for line in lines)
            report.num_tokens += sum(len(line["answer_ids"]) for line in lines)
            bar.update(len(batch))
    bar.close()
    report.seconds = time.perf_counter() - start
    logger.info(str(report))
    return report


def _read_prompts(
    reader: RowReader, chat_text: ChatText, settings: AnswerSettings, max_length: int | None, report: AnswerReport
) -> tuple[list[tuple[int, Dialogue]], str]:
    """Returns the dialogues to begin, with the tokens of their first prompt, and a digest of them all."""
    prompts: list[tuple[int, Dialogue]] = []
    seen: set[bytes] = set()
    fingerprint = hashlib.sha256()
    for row in reader:
        dialogue = _begin(reader, row, chat_text, settings.turns)
        if dialogue is None:
            continue
        digest = hashlib.sha256(dialogue.prompt_key.encode()).digest()
        if digest in seen:
            report.num_repeated += 1
            continue
        seen.add(digest)
        try:
            ids = dialogue.prompt_ids()
        except NotRenderable as error:
            reader.reject("the chat template cannot take it", str(error))
            continue
        if max_length is not None and len(ids) >= max_length:
            report.num_too_long += 1
            continue
        fingerprint.update(digest + repr(ids).encode())
        prompts.append((len(ids), dialogue))
    report.rows = reader.report
    if not prompts:
        raise ValueError(
            f"No prompt to answer: {report.num_too_long} leave no room in {max_length} tokens.\n{reader.report}"
        )
    return prompts, fingerprint.hexdigest()


def _begin(reader: RowReader, row: Row, chat_text: ChatText, turns: str) -> Dialogue | None:
    if row.get("answer_ids") is not None:
        reader.reject("answered already: it has `answer_ids`")
        return None
    if row.get("messages") is None and row.get("prompt") is None:
        reader.reject("plain text holds no prompt to answer")
        return None
    dialogue = Dialogue(reader.report.num_rows - 1, row, chat_text, turns)
    if not dialogue.turns:
        reader.reject("nothing to answer: no message before a turn of the assistant")
        return None
    return dialogue


def _batches(prompts: list[tuple[int, Dialogue]], settings: AnswerSettings) -> list[list[Dialogue]]:
    """Returns dialogues of like length together, which saves padding, in random order: a part is like the whole."""
    generator = random.Random(settings.seed)
    if settings.num_prompts is not None and settings.num_prompts < len(prompts):
        prompts[:] = generator.sample(prompts, settings.num_prompts)
    prompts.sort(key=lambda prompt: (prompt[0], prompt[1].number))
    dialogues = [dialogue for _, dialogue in prompts]
    batches = [dialogues[i : i + settings.batch_size] for i in range(0, len(dialogues), settings.batch_size)]
    generator.shuffle(batches)
    return batches


def _answer(
    target: PreTrainedModel,
    batch: Sequence[Dialogue],
    number: int,
    settings: AnswerSettings,
    max_length: int | None,
    stop_ids: set[int],
    draft: PreTrainedModel | None,
) -> list[dict[str, Any]]:
    """Returns the lines of all answers of a batch, turn after turn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        # Every batch has its own seed: batches that an earlier run has written need not be drawn again.
        torch.manual_seed(random.Random(f"{settings.seed}, batch {number}").getrandbits(60))
        while True:
            waiting = []
            for dialogue in batch:
                ids = dialogue.next_prompt(max_length)
                if ids is not None:
                    waiting.append((dialogue, ids))
            if not waiting:
                return [line for dialogue in batch for line in dialogue.lines]
            answers = _generate(target, [ids for _, ids in waiting], settings, max_length, stop_ids, draft)
            for (dialogue, ids), answer in zip(waiting, answers, strict=True):
                dialogue.take(ids, answer, stop_ids)


@torch.no_grad()
def _generate(
    target: PreTrainedModel,
    prompts: list[list[int]],
    settings: AnswerSettings,
    max_length: int | None,
    stop_ids: set[int],
    draft: PreTrainedModel | None,
) -> list[list[int]]:
    """Returns new tokens of each prompt, up to and including the one at which the target stopped."""
    width = max(map(len, prompts))
    filler = min(stop_ids, default=0)  # behind an answer it is cut, before a prompt it is masked
    input_ids = torch.tensor([[filler] * (width - len(ids)) + ids for ids in prompts])
    attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    room = settings.max_new_tokens if max_length is None else min(settings.max_new_tokens, max_length - width)
    output = target.generate(
        input_ids.to(target.device),
        attention_mask=attention_mask.to(target.device),
        max_new_tokens=room,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=filler,
        assistant_model=draft,
        **settings.sampling,
    )
    answers = []
    for row in output[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))
        answers.append(row[:end])
    return answers


def _side_file(output: Path) -> Path:
    return output.with_name(output.name + ".settings.json")


def _read_settings(output: Path) -> dict[str, Any]:
    """Returns what an earlier run recorded; nothing if there was none."""
    side_file = _side_file(output)
    return json.loads(side_file.read_text(encoding="utf-8")) if side_file.exists() else {}


def _identity_of_generation(target: PreTrainedModel) -> str | None:
    """Returns a digest of the target's generation configuration, which decides what [`AnswerSettings`] leaves open."""
    if target.generation_config is None:
        return None
    settings = target.generation_config.to_diff_dict()
    for name in ("transformers_version", "_from_model_config"):
        settings.pop(name, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _resume(output: Path, known: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[int, int]:
    """
    Checks the settings of an earlier run, or records those of this one, and drops what that run left incomplete.

    Args:
        output (`Path`): The file of answers.
        known (`dict`): What the earlier run recorded; empty if there was none.
        record (`dict`): The settings of this run.

    Returns:
        `tuple[int, int]`: The batch to go on with, and the number of answers that are there.
    """
    side_file = _side_file(output)
    if known:
        differences = [
            f"{name} was {known.get(name)!r} and is {record.get(name)!r}"
            for name in sorted(set(known) | set(record))
            if known.get(name) != record.get(name)
        ]
        if differences:
            raise ValueError(
                f"{output} was begun with other settings: {'; '.join(differences)}. Go on with those of "
                f"{side_file.name}, or choose another output."
            )
    elif output.exists():
        raise ValueError(
            f"{output} exists, but {side_file.name}, which tells how it was written, does not. It is not touched: "
            "choose another output."
        )
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = side_file.with_name(side_file.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, side_file)
    if not output.exists():
        return 0, 0
    first, num_answers, size, position, num_lines = 0, 0, 0, 0, 0
    with open(output, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            num_lines += 1
            row = json.loads(line)
            if row["left_in_batch"] == 0:
                first, num_answers, size = row["batch"] + 1, num_lines, position
    os.truncate(output, size)
    return first, num_answers


def _stop_ids(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns the tokens at which the target stops."""
    ids = target.generation_config.eos_token_id if target.generation_config is not None else None
    if ids is None:
        ids = tokenizer.eos_token_id
    return set(_as_list(ids))


def _as_list(ids: Any) -> list[int]:
    if ids is None:
        return []
    return [int(token) for token in ids] if isinstance(ids, Iterable) else [int(ids)]


def _max_positions(target: PreTrainedModel) -> int | None:
    """Returns the positions that the target has, if its configuration tells."""
    return TargetConfig(target.config).num_positions
