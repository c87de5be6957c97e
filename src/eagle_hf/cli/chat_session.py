"""A chat in a terminal: what is typed, the commands, and the answers."""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.markup import escape

from ..draft_options import DraftOptions
from .answer_view import AnswerView
from .demo import PROMPTS
from .pair import Pair
from .step_streamer import StepStreamer


EXAMPLES = dict(zip(("code", "math", "guitar"), PROMPTS, strict=True))
HELP = """\
[bold]!help[/]            shows this help
[bold]!clear[/]           begins a new conversation
[bold]!status[/]          shows the models and all settings
[bold]!example NAME[/]    asks an example in a new conversation: {examples}
[bold]!set A=1 B=2[/]     changes options of generate, such as max_new_tokens=100 do_sample=true temperature=0.7,
                 and of the draft tree: {options}
[bold]!save FILE[/]       saves the conversation and the settings as JSON; without a name, to {folder}
[bold]!exit[/]            ends the chat. Ctrl-C stops an answer.

Drafted tokens are [green underline]green and underlined[/], the target's own [bold]bold[/]."""


class ChatSession:
    """
    Holds a conversation in the terminal, and answers its commands.

    Args:
        pair ([`Pair`]): Target and draft. The target needs a chat template.
        console ([`~rich.console.Console`]): The terminal.
        name (`str`): Name of the model.
        user (`str`): Name of the user.
        system_prompt (`str`, *optional*): First message of every conversation.
        save_folder (`Path`): Where `!save` writes.
        examples (`Mapping[str, str]`): Prompts by name.

    Raises:
        `ValueError`: if the target has no chat template.
    """

    def __init__(
        self,
        pair: Pair,
        console: Console,
        name: str,
        user: str,
        system_prompt: str | None,
        save_folder: Path,
        examples: Mapping[str, str],
    ):
        if pair.tokenizer.chat_template is None:
            raise ValueError(
                f"The tokenizer of {name} has no chat template, so that it cannot chat. Take a chat model, or complete "
                "texts with `eagle-hf generate --raw`."
            )
        self.pair = pair
        self.console = console
        self.name = name
        self.user = user
        self.system_prompt = system_prompt
        self.save_folder = save_folder
        self.examples = examples
        self.generation_config = copy.deepcopy(pair.target.generation_config)
        if self.generation_config.max_new_tokens is None:
            self.generation_config.max_new_tokens = 256
        self.messages = self._new_conversation()
        self.figures = ""

    def _new_conversation(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []

    def run(self) -> None:
        """Reads what is typed until `!exit` or the end of the input."""
        self.console.print(
            f"[bold]{escape(self.name)}[/] with its draft. [bold]!help[/] shows the commands, [bold]!exit[/] ends."
        )
        while True:
            try:
                typed = self.console.input(f"\n[bold red]<{escape(self.user)}>[/]\n").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if typed == "!exit":
                return
            if typed.startswith("!"):
                self._command(typed)
            elif typed:
                self._ask(typed)

    # ------------------------------------------------------------------ commands

    def _command(self, typed: str) -> None:
        command, *words = typed.split()
        if command == "!help" and not words:
            self._help()
        elif command == "!clear" and not words:
            self.messages = self._new_conversation()
            self.console.clear()
        elif command == "!status" and not words:
            self._status()
        elif command == "!set" and words:
            try:
                self.set_flags(parse_flags(words))
            except ValueError as error:
                self._complain(str(error))
        elif command == "!save" and len(words) < 2:
            self._save(Path(words[0]) if words else None)
        elif command == "!example" and len(words) == 1:
            if words[0] in self.examples:
                self.messages = self._new_conversation()
                self.console.print(f"[bold red]<{escape(self.user)}>[/]\n{escape(self.examples[words[0]])}")
                self._ask(self.examples[words[0]])
            else:
                self._complain(f"There is no example {words[0]!r}. Known: {', '.join(self.examples)}.")
        else:
            self._complain(f"{typed!r} is not a command.")
            self._help()

    def _help(self) -> None:
        self.console.print(
            HELP.format(
                examples=", ".join(map(escape, self.examples)),
                options=", ".join(DraftOptions.__dataclass_fields__),
                folder=escape(str(self.save_folder)),
            ),
            soft_wrap=True,
        )

    def _status(self) -> None:
        target, draft = self.pair.target, self.pair.draft
        self.console.print(
            f"target  {escape(self.name)}, {target.num_parameters() / 1e6:,.1f}M parameters, {target.dtype}\n"
            f"draft   EAGLE-{draft.config.eagle_version}, {draft.num_parameters() / 1e6:,.1f}M parameters\n"
            f"last    {self.figures or 'no answer yet'}\n"
            f"generate  {escape(json.dumps(self.settings()['generation_config']))}\n"
            f"draft tree  {escape(json.dumps(self.settings()['draft']))}",
            soft_wrap=True,
        )

    def settings(self) -> dict[str, Any]:
        """Returns the names of the models and what was set, for `!status` and `!save`."""
        draft = self.pair.draft
        options = DraftOptions.from_generation_config(draft.generation_config, draft.device.type)
        return {
            "model_id": self.name,
            "generation_config": self.generation_config.to_diff_dict(),
            "draft": {name: getattr(options, name) for name in DraftOptions.__dataclass_fields__},
        }

    def set_flags(self, flags: Mapping[str, Any]) -> None:
        """
        Changes options of `generate` and of the draft: all of them, or none.

        Raises:
            `ValueError`: if an option does not exist or has a wrong value.
        """
        drafting = {name: value for name, value in flags.items() if name in DraftOptions.__dataclass_fields__}
        generation_config = copy.deepcopy(self.generation_config)
        unknown = generation_config.update(**{name: value for name, value in flags.items() if name not in drafting})
        if unknown:
            raise ValueError(f"Neither generate nor the draft has an option {', '.join(map(repr, unknown))}.")
        draft_config = copy.deepcopy(self.pair.draft.generation_config)
        for name, value in drafting.items():
            setattr(draft_config, name, value)
        DraftOptions.from_generation_config(draft_config)
        self.generation_config, self.pair.draft.generation_config = generation_config, draft_config

    def _save(self, path: Path | None) -> None:
        if path is None:
            path = self.save_folder / self.name / f"chat_{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
        content = {"settings": self.settings(), "chat_history": self.messages}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            self._complain(f"Not saved: {error}")
        else:
            self.console.print(f"Saved to {escape(str(path))}", style="green", soft_wrap=True)

    def _complain(self, message: str) -> None:
        self.console.print(escape(message), style="bold red", soft_wrap=True)

    # ------------------------------------------------------------------ answers

    def _ask(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})
        input_ids = self.pair.encode_messages(self.messages)
        answer: list[int] = []
        while True:
            self.console.print(f"\n[bold blue]<{escape(self.name)}>[/]")
            try:
                tokens, was_stopped = self._generate(input_ids)
            except ValueError as error:  # an option that generate refuses, such as a negative temperature
                self._complain(str(error))
                self.messages.pop()
                return
            answer += tokens
            if was_stopped or not self._reached_limit(tokens) or not self._wants_more():
                break
            input_ids = torch.cat([input_ids, input_ids.new_tensor([tokens])], dim=1)
        content = self.pair.tokenizer.decode(answer, skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": content})

    def _generate(self, input_ids: torch.Tensor) -> tuple[list[int], bool]:
        """Returns new tokens, and whether the user stopped them."""
        was_stopped = False
        with AnswerView(self.console, self.pair.tokenizer) as view:
            with StepStreamer(self.pair.target, view.add_step) as streamer:
                try:
                    self.pair.target.generate(
                        input_ids,
                        attention_mask=torch.ones_like(input_ids),
                        generation_config=self.generation_config,
                        assistant_model=self.pair.draft,
                        streamer=streamer,
                    )
                except KeyboardInterrupt:
                    was_stopped = True
            self.figures = view.figures()
        self.console.print(f"{self.figures}{', stopped' if was_stopped else ''}", style="dim")
        return streamer.tokens, was_stopped

    def _reached_limit(self, tokens: Sequence[int]) -> bool:
        ends = self.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return len(tokens) == self.generation_config.max_new_tokens and tokens[-1] not in ends

    def _wants_more(self) -> bool:
        try:
            typed = self.console.input("[yellow]The answer reached max_new_tokens. Continue? (y/N) [/]")
        except (EOFError, KeyboardInterrupt):
            return False
        return typed.strip().lower() in {"y", "yes"}


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """
    Returns `NAME=VALUE` words as a dictionary: `none`, booleans, numbers and lists (without spaces) as such, all else
    as text.

    Raises:
        `ValueError`: if a word is of another form.
    """
    flags = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"{word!r} is not of the form NAME=VALUE, such as max_new_tokens=100.")
        try:
            flags[name] = yaml.safe_load("null" if value == "None" else value)
        except yaml.YAMLError as error:
            raise ValueError(f"The value of {word!r} is neither a number, a boolean, a list nor a text.") from error
    return flags


def read_examples(path: Path) -> dict[str, str]:
    """
    Returns the prompts by name, from a YAML file that holds what `transformers chat` expects: `name: {text: ...}`.

    Raises:
        `ValueError`: if the file holds anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(x, dict) and "text" in x for x in content.values()):
        raise ValueError(f"{path} must be a mapping of names to examples, such as `llama: {{text: Why?}}`.")
    return {str(name): str(example["text"]) for name, example in content.items()}
