import io

import pytest
import torch
from doubles import letter_tokenizer
from rich.console import Console

from eagle_hf import DraftTree
from eagle_hf.visualization import drafted_tokens, draw_text, draw_tree, token_pieces


def shown(renderable) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(renderable)
    return file.getvalue().rstrip()


def test_a_tree_shows_tokens_probabilities_and_the_accepted_path():
    tree = DraftTree.from_paths(3, [[4, 5], [4, 6], [7]])  # a: b (c, d), e
    tree.scores[0, 1:] = torch.tensor([0.5, 0.25, 0.2, 0.05]).log()
    assert shown(draw_tree(tree, letter_tokenizer(), accepted=[0, 1, 4])).splitlines() == [
        "'a' (root)",
        "├── 'b' 50% ✓",
        "│   ├── 'c' 20%",
        "│   └── 'd' 5% ✓",
        "└── 'e' 25%",
    ]


def test_markup_in_tokens_is_text():
    class Markup:
        def decode(self, tokens):
            return "[bold]"

    assert shown(draw_tree(DraftTree.from_paths(1, [[2]]), Markup())).startswith("'[bold]' (root)")


def test_which_tokens_were_drafted():
    assert drafted_tokens([3, 1, 2]) == [False, True, True, False, False, True, False]
    assert drafted_tokens([]) == [False]


def test_text_is_coloured_by_token_not_by_searching_it():
    text = draw_text(letter_tokenizer(), [3, 3, 3, 3], [3])
    assert text.plain == "aaaa"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(1, 2, "green"), (2, 3, "green")]


@pytest.mark.parametrize("text", ["héllo", "日本語", "👩‍👩‍👧 ok", "שלום", "a b\n\n c"])
def test_pieces_of_byte_level_tokens_join_to_the_text(text):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokens = fast(text).input_ids
    pieces = token_pieces(fast, tokens)
    assert "".join(pieces) == text
    assert len(pieces) == len(tokens)
    assert "\ufffd" not in "".join(pieces)
