import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from doubles import letter_tokenizer
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eagle_hf import DraftTree
from eagle_hf.visualization import draw_text, draw_tree
from eagle_hf.visualization.tokens import token_kinds, token_pieces


def shown(renderable, **console) -> str:
    file = io.StringIO()
    Console(file=file, width=80, **console).print(renderable)
    return file.getvalue().rstrip()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, as byte-level tokenizers have for rare characters."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Words:
    """A tokenizer of given words."""

    def __init__(self, *words: str):
        self.words = words

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(self.words[token] for token in tokens)


class PageText(HTMLParser):
    """What a browser shows of a page, and by which class of element."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.parts, self.tags = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
        self.parts.append((self.tags[-1][1].get("class"), data))


@pytest.fixture
def tree():
    tree = DraftTree.from_paths(3, [[4, 5], [4, 6], [7]])  # a: b (c, d), e
    tree.scores[0, 1:] = torch.tensor([0.5, 0.25, 0.2, 0.05]).log()
    return tree


# ---------------------------------------------------------------------------- trees


LINES = [
    "'a' (root)",
    "├── 'b' 50% ✓",
    "│   ├── 'c' 20%",
    "│   └── 'd' 5% ✓",
    "└── 'e' 25%",
]


def test_a_tree_shows_tokens_probabilities_and_the_accepted_path(tree):
    picture = draw_tree(tree, letter_tokenizer(), accepted=[0, 1, 4])
    assert str(picture).splitlines() == repr(picture).splitlines() == LINES
    assert shown(picture).splitlines() == LINES  # the same without colour
    coloured = shown(picture, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m'd' 5% ✓" in coloured
    assert "\x1b[1;32m'c'" not in coloured


def test_padding_of_a_tree_is_left_out(tree):
    assert str(draw_tree(tree.padded(9), letter_tokenizer(), accepted=[0, 1, 4])).splitlines() == LINES
    assert str(draw_tree(tree.padded(9), letter_tokenizer(), accepted=[0, 8])).endswith("'a' 0% ✓")


def test_a_tree_of_one_node_and_of_another_row(tree):
    assert str(draw_tree(DraftTree.root_only(torch.tensor([3])), letter_tokenizer())) == "'a' (root)"
    rows = DraftTree(*(torch.cat([x, x + 1]) for x in (tree.tokens,)), *(
        torch.cat([x, x]) for x in (tree.parents, tree.depths, tree.scores)
    ), max_depth=2)  # fmt: skip
    assert str(draw_tree(rows, letter_tokenizer(), row=1)).startswith("'b' (root)\n├── 'c' 50%\n")


def test_markup_in_tokens_is_text():
    words = Words("[bold]", "<b>&", "\n\t", "\x1b[2J", "\u202e")
    tree = DraftTree.from_paths(0, [[1], [2], [3], [4]])
    picture = draw_tree(tree, words)
    assert shown(picture).startswith("'[bold]' (root)\n├── '<b>&' 100%\n├── '\\n\\t' 100%\n├── '\\x1b[2J' 100%")
    assert "'\\u202e' 100%" in str(picture)  # what turns the direction of a line is escaped
    texts = [
        element.text for element in ElementTree.fromstring(picture.to_svg()).iter() if element.tag.endswith("text")
    ]
    assert {"'[bold]'", "'<b>&'", "'\\n\\t'"} <= set(texts)


def test_right_to_left_tokens_are_isolated_and_broken_ones_have_their_id():
    tokenizer = byte_tokenizer()
    [half, _] = tokenizer("é").input_ids
    assert str(draw_tree(DraftTree.from_paths(half, []), tokenizer)) == f"'\ufffd' #{half} (root)"
    assert str(draw_tree(DraftTree.from_paths(0, []), Words("שלום"))) == "\u2068'שלום'\u2069 (root)"


def test_the_svg_of_a_tree_is_sound(tree):
    page = draw_tree(tree, letter_tokenizer(), accepted=[0, 1, 4])._repr_html_()
    svg = ElementTree.fromstring(re.search("<svg.*</svg>", page, flags=re.DOTALL).group())
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in svg.iter(f"{space}text")]
    assert texts == ["'a'", "root", "'b'", "50% ✓", "'e'", "25%", "'c'", "20%", "'d'", "5% ✓"]
    assert svg.find(f"{space}desc").text == "\n".join(LINES)
    assert svg.get("role") == "img"
    width, height = float(svg.get("width")), float(svg.get("height"))
    boxes = [
        {name: float(box.get(name)) for name in ("x", "y", "width", "height", "stroke-width")}
        for box in svg.iter(f"{space}rect")
        if box.get("x")
    ]
    assert len(boxes) == tree.num_nodes == len(list(svg.iter(f"{space}path"))) + 1
    for box in boxes:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
    assert [box["stroke-width"] for box in boxes] == [1, 3, 1, 1, 3]  # accepted ones by their frame, too
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            apart = abs(box["y"] - other["y"]) >= box["height"] or box["x"] >= other["x"] + other["width"]
            assert apart, (box, other)


def test_wide_letters_and_long_tokens_fit_their_boxes():
    svg = draw_tree(DraftTree.from_paths(0, [[1]]), Words("日本語の言葉", "x" * 200)).to_svg()
    root, child = (float(width) for width in re.findall(r'<rect x="[^"]+" y="[^"]+" width="([0-9.]+)"', svg))
    assert root >= 12 * 7.5
    assert child < 250
    assert "x…<" in svg


# ---------------------------------------------------------------------------- texts


def test_which_tokens_were_drafted():
    first, drafted, bonus = "first", "drafted", "bonus"
    steps = [(drafted, 1), (drafted, 1), (bonus, 1), (bonus, 2), (drafted, 3), (bonus, 3)]
    assert token_kinds([3, 1, 2]) == [(first, 0), *steps]
    assert token_kinds([]) == [(first, 0)]


def test_text_is_coloured_by_token_not_by_searching_it():
    picture = draw_text(letter_tokenizer(), [3, 3, 3, 3], [3])
    assert [(span.text, span.kind, span.step, span.tokens) for span in picture.spans] == [
        ("a", "first", 0, [3]),
        ("aa", "drafted", 1, [3, 3]),
        ("a", "bonus", 1, [3]),
    ]
    assert picture.plain == "aaaa"
    assert str(picture) == repr(picture) == "a‹aa›a"
    assert shown(picture) == "aaaa"
    assert shown(picture, force_terminal=True, color_system="standard") == (
        "\x1b[3ma\x1b[0m\x1b[4;32maa\x1b[0m\x1b[1ma\x1b[0m"  # italic, underlined, bold: readable without green
    )


def test_without_acceptance_lengths_the_text_is_as_it_is():
    picture = draw_text(letter_tokenizer(), [3, 4])
    assert str(picture) == shown(picture, force_terminal=True) == "ab"
    assert PageText(picture._repr_html_()).text == "ab"
    assert draw_text(letter_tokenizer(), [], []).plain == ""


def test_padding_is_left_out_and_a_mismatch_is_named():
    assert draw_text(letter_tokenizer(), torch.tensor([3, 4, 0, 0]), [1]).plain == "ab"
    with pytest.raises(ValueError, match="Got 2 tokens, but the acceptance lengths tell of 6"):
        draw_text(letter_tokenizer(), [3, 4], [2, 3])


def test_special_tokens_can_be_left_out():
    tokenizer = letter_tokenizer()
    assert draw_text(tokenizer, [3, 2], [1]).plain == "a</s>"
    assert draw_text(tokenizer, [3, 2], [1], skip_special_tokens=True).plain == "a"


@pytest.mark.parametrize(
    "text",
    ["<b>&amp;</b> **bold** [x](y) $a$ `c`\n# no heading", "<script>alert(1)</script>", "שלום עולם!", "a\x1b[31mb\x00"],
)
def test_html_shows_the_text_and_nothing_else(text):
    tokenizer = byte_tokenizer()
    tokens = tokenizer(text).input_ids
    lengths = [3] * ((len(tokens) - 1) // 3) + [1] * ((len(tokens) - 1) % 3)
    picture = draw_text(tokenizer, tokens, lengths)
    page = PageText(picture.to_html(legend=False))
    assert page.text == text.replace("\x1b", "␛").replace("\x00", "␀")
    assert [kind for kind, _ in page.parts] == [span.kind for span in picture.spans if span.text]
    assert {tag for tag, _ in page.tags} == {"div", "span"}
    assert page.tags[1][1]["dir"] == "auto"
    assert "tex2jax_ignore" in page.tags[0][1]["class"]  # $a$ is no formula
    assert "\x1b" not in shown(picture)  # a text cannot move the cursor


def test_the_legend_explains_the_styles_that_occur():
    tokenizer = letter_tokenizer()
    assert "drafted, accepted by the target" in PageText(draw_text(tokenizer, [3, 3, 3], [2]).to_html()).text
    assert "drafted" not in PageText(draw_text(tokenizer, [3, 3], [1]).to_html()).text


@pytest.mark.parametrize(
    "text",
    [
        "héllo",
        "日本語",
        "👩‍👩‍👧 ok",
        "🇫🇷🇩🇪",
        "👍🏽!",
        "e\u0301a\u0300",
        "שלום",
        "نص عربي",
        "a b\n\n c",
        "\r\n",
        "\ufffd!",
        "",
    ],
)
def test_pieces_of_byte_level_tokens_join_to_the_text(text):
    tokenizer = byte_tokenizer()
    tokens = tokenizer(text).input_ids
    pieces = token_pieces(tokenizer, tokens)
    assert "".join(pieces) == text
    assert len(pieces) == len(tokens)


def test_pieces_of_long_texts_join_to_the_text():
    text = "Ünï 👩‍👩‍👧 日本 🇫🇷 שלום e\u0301, " * 12

    class FirstSpaceDropped(Words):  # as sentencepiece does
        def decode(self, tokens, skip_special_tokens=False):
            return super().decode(tokens).removeprefix(" ")

    byte_level, pieced = byte_tokenizer(), FirstSpaceDropped(" a", " bc", "d", " ", "\n")
    for tokenizer, tokens in ((byte_level, byte_level(text).input_ids), (pieced, [0, 1, 2, 0, 3, 4, 1, 2, 2] * 20)):
        pieces = token_pieces(tokenizer, tokens)
        assert "".join(pieces) == tokenizer.decode(tokens)
        assert len(pieces) == len(tokens)
    assert pieces[90:99] == [" a", " bc", "d", " a", " ", "\n", " bc", "d", "d"]


@pytest.mark.parametrize("character", ["é", "語", "👩‍👩‍👧", "🇫🇷", "👍🏽", "e\u0301"])
def test_a_character_belongs_to_the_token_that_completes_it(character):
    tokenizer = byte_tokenizer()
    inside = tokenizer(character).input_ids
    pieces = token_pieces(tokenizer, tokenizer(f"a{character}b").input_ids)
    assert pieces == ["a", *[""] * (len(inside) - 1), character, "b"]


def test_pieces_of_a_text_cut_inside_a_character_join_to_the_text():
    tokenizer = byte_tokenizer()
    tokens = tokenizer("a👩").input_ids[:-1]
    assert token_pieces(tokenizer, tokens) == ["a", "", "", "\ufffd"]
    assert "".join(token_pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_pieces_join_where_the_tokenizer_changes_what_went_before():
    class CleaningUp(Words):
        def decode(self, tokens, skip_special_tokens=False):
            return super().decode(tokens).replace(" .", ".").replace(" n't", "n't")

    tokenizer = CleaningUp("do ", " n't", " .", "x")
    for tokens in ([0, 1, 2, 3], [3, 2, 2], [0, 0, 2]):
        assert "".join(token_pieces(tokenizer, tokens)) == tokenizer.decode(tokens)
