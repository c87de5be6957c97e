"""The page of `eagle-hf app`, made of Gradio's parts."""

import os
import queue
import threading
import time
from collections.abc import Iterator
from html import escape
from typing import Any

import torch


# Before Gradio is imported: nothing is fetched from, or sent to, anybody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402

from ..draft_options import DraftOptions  # noqa: E402
from ..visualization import TextPicture, draw_text, draw_tree  # noqa: E402
from .demo import PROMPTS  # noqa: E402
from .figures import speed_line  # noqa: E402
from .pair import Pair, Run  # noqa: E402
from .step_streamer import StepStreamer  # noqa: E402


REFRESH = 0.1  # seconds between two states of a text
MAX_TREE_STEPS = 200  # of which the trees are kept in the page


class Comparison:
    """
    Generates without and with the draft, one after the other, and yields what the page shows meanwhile.

    Args:
        pair ([`Pair`]): Target and draft.
    """

    def __init__(self, pair: Pair):
        self.pair = pair
        self._is_warm = False

    def run(
        self, prompt: str, num_tokens: int, temperature: float, seed: int, nodes: int, depth: int, width: int
    ) -> Iterator[tuple[str, str, str, list[str]]]:
        """
        Generates with and without the draft.

        Yields:
            `tuple[str, str, str, list[str]]`: HTML of the plain text, of EAGLE's text, of the figures, and of the trees
            of every step (only the last time).
        """
        if not prompt.strip():
            raise gr.Error("The prompt is empty.")
        own = DraftOptions.from_generation_config(self.pair.draft.generation_config, self.pair.draft.device.type)
        options = DraftOptions(
            draft_tree="dynamic" if own.draft_tree == "static" else own.draft_tree,
            num_assistant_tokens=int(nodes),
            draft_depth=int(depth),
            draft_width=int(width),
            draft_threshold=own.draft_threshold,
            output_draft_trees=True,
        )
        yield from self._run(self.pair.encode(prompt), int(num_tokens), float(temperature), int(seed), options)

    def _run(
        self, input_ids: torch.Tensor, num_tokens: int, temperature: float, seed: int, options: DraftOptions
    ) -> Iterator[tuple[str, str, str, list[str]]]:
        settings: dict[str, Any] = {"max_new_tokens": num_tokens, "do_sample": temperature > 0, "seed": seed}
        if temperature > 0:
            settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        if not self._is_warm:
            yield "", "", _figures("Warming up ..."), []
            for with_draft in (False, True):
                drafting = options.to_keywords() if with_draft else {}
                self.pair.run(input_ids, with_draft, max_new_tokens=8, do_sample=False, **drafting)
            self._is_warm = True
        plain_text = eagle_text = ""
        runs = []
        for with_draft in (False, True):
            drafting = options.to_keywords() if with_draft else {}
            for shown in self._stream(input_ids, with_draft, settings | drafting):
                if isinstance(shown, Run):
                    runs.append(shown)
                elif with_draft:
                    eagle_text = shown
                else:
                    plain_text = shown
                yield plain_text, eagle_text, _figures("Generating ..."), []
        plain, eagle = runs
        same = "The same token ids" if plain.tokens == eagle.tokens else "DIFFERENT token ids"
        figures = (
            f"{same}: {len(plain.tokens)} and {len(eagle.tokens)} tokens. {speed_line([plain], [eagle])} "
            "(one run each, while the page was drawn)"
        )
        yield plain_text, eagle_text, _figures(figures), self._trees(eagle)

    def _stream(self, input_ids: torch.Tensor, with_draft: bool, settings: dict[str, Any]) -> Iterator[str | Run]:
        """Yields the text so far as HTML, again and again; last the [`Run`]."""
        messages: queue.Queue[Run | BaseException | None] = queue.Queue()
        streamer = StepStreamer(self.pair.target, lambda tokens: messages.put(None))

        def generate() -> None:
            try:
                with streamer:
                    messages.put(self.pair.run(input_ids, with_draft, streamer=streamer, **settings))
            except BaseException as error:
                messages.put(error)

        threading.Thread(target=generate, daemon=True).start()
        shown_at = time.perf_counter()
        while (message := messages.get()) is None:
            if time.perf_counter() - shown_at > REFRESH:
                shown_at = time.perf_counter()
                steps = list(streamer.steps)
                lengths = [len(step) for step in steps[1:]] if with_draft else None
                yield self._text([token for step in steps for token in step], lengths).to_html(legend=False)
        if isinstance(message, BaseException):
            raise gr.Error(str(message))
        yield self._text(message.tokens, message.acceptance_lengths if with_draft else None).to_html()
        yield message

    def _text(self, tokens: list[int], acceptance_lengths: list[int] | None) -> TextPicture:
        return draw_text(self.pair.tokenizer, tokens, acceptance_lengths, skip_special_tokens=True)

    def _trees(self, run: Run) -> list[str]:
        trees = run.output.draft_trees if run.output is not None else None
        return [
            draw_tree(tree, self.pair.tokenizer, paths[0])._repr_html_()
            for tree, paths in (trees or [])[:MAX_TREE_STEPS]
        ]


def _figures(text: str) -> str:
    return f'<p role="status"><strong>{escape(text)}</strong></p>'


def make_page(pair: Pair) -> gr.Blocks:
    """
    Returns the page, to be served by `.launch()`.

    Args:
        pair ([`Pair`]): Target and draft.

    Returns:
        `gradio.Blocks`
    """
    comparison = Comparison(pair)
    options = DraftOptions.from_generation_config(pair.draft.generation_config, pair.draft.device.type)
    with gr.Blocks(title="EAGLE in generate", analytics_enabled=False) as page:
        gr.Markdown(
            "# The same text, from fewer forwards\n"
            f"A target of {pair.target.num_parameters() / 1e6:,.1f}M parameters on {pair.target.device}, alone and "
            f"with its EAGLE-{pair.draft.config.eagle_version} draft of {pair.draft.num_parameters() / 1e6:,.1f}M. "
            "Drafted tokens are green and underlined, the target's own bold."
        )
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(PROMPTS[0], label="Prompt", lines=3, elem_id="prompt")
                gr.Examples([[text] for text in PROMPTS], prompt)
            with gr.Column(scale=2):
                num_tokens = gr.Slider(8, 1024, 128, step=8, label="New tokens, at most")
                temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature (0: greedy)")
                seed = gr.Number(0, label="Seed", precision=0)
                with gr.Accordion("Draft tree", open=False):
                    nodes = gr.Slider(1, 64, options.num_assistant_tokens, step=1, label="Nodes")
                    depth = gr.Slider(1, 12, options.draft_depth, step=1, label="Depth")
                    width = gr.Slider(1, 10, options.draft_width, step=1, label="Width")
        button = gr.Button("Generate twice", variant="primary", elem_id="generate")
        figures = gr.HTML(elem_id="figures")
        with gr.Row():
            with gr.Column():
                gr.Markdown("### Plain `generate`")
                plain = gr.HTML(elem_id="plain", container=True)
            with gr.Column():
                gr.Markdown("### With the draft")
                eagle = gr.HTML(elem_id="eagle", container=True)
        trees = gr.State([])
        step = gr.Slider(1, 2, 1, step=1, label="Draft tree of step", visible=False, elem_id="step")
        tree = gr.HTML(elem_id="tree")

        def show_trees(pictures: list[str]) -> tuple[Any, str]:
            if not pictures:
                return gr.update(visible=False), ""
            return gr.update(visible=len(pictures) > 1, maximum=max(len(pictures), 2), value=1), pictures[0]

        def show_tree(pictures: list[str], number: float) -> str:
            return pictures[min(int(number), len(pictures)) - 1] if pictures else ""

        button.click(
            comparison.run,
            [prompt, num_tokens, temperature, seed, nodes, depth, width],
            [plain, eagle, figures, trees],
            concurrency_limit=1,
        ).then(show_trees, trees, [step, tree])
        step.change(show_tree, [trees, step], tree)
    return page
