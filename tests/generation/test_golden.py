"""Whole generations against the reference implementation: its trees, its acceptance lengths, its tokens."""

import json

import pytest
import torch
from conftest import GOLDEN, golden_draft, use_options
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def paths_of(tokens: list[int], parents: list[int]) -> set[tuple[int, ...]]:
    """All root-to-node token paths of a tree."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append(((*paths[parent], token)) if parent >= 0 else (token,))
    return set(paths)


def generate(target, draft, prompt, **kwargs):
    return target.generate(
        torch.tensor(prompt).view(1, -1),
        assistant_model=draft,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        **kwargs,
    )


def test_greedy_tokens_acceptance_lengths_and_trees_are_the_references(golden_target, golden_case):
    draft = golden_draft(golden_case.draft)
    draft.generation_config = golden_case.options.to_generation_config()
    expected, tensors = golden_case.json, golden_case.tensors
    output = generate(golden_target, draft, expected["prompt"], max_new_tokens=96)

    assert output.sequences[0, -96:].tolist() == expected["vanilla_tokens_96"]
    num_steps = min(len(expected["accept_lengths"]), len(output.acceptance_lengths[0]) - 1)  # the last one is cut
    assert [n - 1 for n in output.acceptance_lengths[0]][:num_steps] == expected["accept_lengths"][:num_steps]
    first, _ = output.draft_trees[0]
    assert torch.equal(first.tokens, tensors["tree.draft_tokens"])
    assert torch.equal(first.parents[0], tensors["tree.parents"])
    assert torch.equal(first.depths[0], tensors["tree.tree_position_ids"])
    assert torch.equal(first.ancestor_mask()[:, None], tensors["tree.tree_mask"].bool())
    compared = 0
    for (tree, _), tokens, parents in zip(
        output.draft_trees, tensors["steps.draft_tokens"], tensors["steps.parents"], strict=False
    ):
        if tree.num_nodes < len(tokens):
            break  # near the length limit we draft no deeper than can be used; the reference does not care
        ours = paths_of(tree.tokens[0].tolist(), tree.parents[0].tolist())
        assert ours == paths_of(tokens.tolist(), parents.tolist())
        compared += 1
    assert compared >= len(tensors["steps.draft_tokens"]) - 3


def test_static_tree_runs_as_the_references(golden_target):
    expected = json.loads((GOLDEN / "static_tree" / "A_eagle1.json").read_text())
    draft = use_options(golden_draft("A_eagle1"), draft_tree="static", output_draft_trees=True)
    new_tokens = len(expected["eagenerate_tokens"])
    output = generate(golden_target, draft, expected["prompt"], max_new_tokens=new_tokens)
    assert output.sequences[0, -new_tokens:].tolist() == expected["eagenerate_tokens"]
    num_steps = len(expected["accept_lengths"]) - 1
    assert [n - 1 for n in output.acceptance_lengths[0]][:num_steps] == expected["accept_lengths"][:num_steps]
    tree, _ = output.draft_trees[0]
    buffers = expected["verify_buffers"]
    assert tree.depths[0].tolist() == buffers["tree_position_ids"]
    assert tree.ancestor_mask()[0].int().tolist() == buffers["tree_attn_mask"]


def test_static_tree_from_explicit_paths_is_the_default_one(golden_target):
    expected = json.loads((GOLDEN / "static_tree" / "A_eagle1.json").read_text())
    default = generate(
        golden_target, use_options(golden_draft("A_eagle1"), draft_tree="static"), expected["prompt"], max_new_tokens=24
    )
    paths = generate(
        golden_target,
        use_options(golden_draft("A_eagle1"), draft_tree="static", draft_tree_paths=expected["tree_choices"]),
        expected["prompt"],
        max_new_tokens=24,
    )
    assert default.acceptance_lengths == paths.acceptance_lengths


class ReferenceRule:
    """
    The reference's recursive rejection on recorded uniforms, in place of a chooser: with our trees and our forwards it
    must emit the reference's tokens. Its warpers run in the order temperature, top-p, top-k.
    """

    def __init__(self, sequences, sampling, uniforms, num_steps):
        self.sequences, self.sampling, self.uniforms = sequences, sampling, iter(uniforms)
        self.steps_left = num_steps + 1  # and the prefill

    def noise_ahead(self, num_tokens):
        return None  # the reference drafts the likeliest tokens

    def probs(self, logits):
        logits = TemperatureLogitsWarper(self.sampling.get("temperature", 1.0))(None, logits[None].float())
        if "top_p" in self.sampling:
            logits = TopPLogitsWarper(self.sampling["top_p"])(None, logits)
        if "top_k" in self.sampling:
            logits = TopKLogitsWarper(self.sampling["top_k"])(None, logits)
        return logits[0].double().softmax(-1)

    def next_uniform(self, kind):
        recorded_kind, value = next(self.uniforms)
        assert recorded_kind == kind
        return value

    def multinomial(self, p):
        return int((p.cumsum(0) / p.sum() > self.next_uniform("m")).nonzero()[0])

    def advance(self, logits, tree):
        tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        path, emitted = [0], []
        while True:
            p = self.probs(logits[0, path[-1]])
            for child in [node for node, parent in enumerate(parents) if parent == path[-1]]:
                if self.next_uniform("r") <= p[tokens[child]]:
                    path.append(child)
                    emitted.append(tokens[child])
                    break
                p[tokens[child]] = 0
                p = p / p.sum()
            else:
                emitted.append(self.multinomial(p))
                path = path[: self.sequences.append_rows([emitted])[0]]
                self.steps_left -= 1
                self.sequences.finished[0] = self.steps_left == 0
                return [path]

    def rows_without_last_token(self):
        return []

    def finish(self):
        pass


@pytest.mark.parametrize("name", [path.stem for path in sorted((GOLDEN / "sampling").glob("*.json"))])
def test_sampled_generation_replays_the_references(golden_target, monkeypatch, name):
    expected = json.loads((GOLDEN / "sampling" / f"{name}.json").read_text())
    draft = use_options(
        golden_draft(expected["draft"].removeprefix("drafts/")),
        num_assistant_tokens=expected["total_token"] - 1,
        draft_depth=expected["depth"] + 1,
        draft_width=expected["top_k"],
        output_draft_trees=True,
    )
    monkeypatch.setattr(
        "eagle_hf.generation.decoding.open_chooser",
        lambda sequences, *args: ReferenceRule(
            sequences, expected["sampling"], expected["uniforms"], len(expected["accept_lengths"])
        ),
    )
    # The length limit is far away, so that it cuts no tree.
    output = generate(golden_target, draft, expected["prompt"], max_new_tokens=len(expected["tokens"]) + 32)
    new_tokens = output.sequences[0, len(expected["prompt"]) :].tolist()
    assert new_tokens[: len(expected["tokens"])] == expected["tokens"]
    assert [n - 1 for n in output.acceptance_lengths[0]] == expected["accept_lengths"]
    assert output.draft_trees[0][0].tokens[0].tolist() == expected["first_tree"]["draft_tokens"]


@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_a_threshold_changes_the_work_and_not_the_text(golden_target, threshold, do_sample):
    draft = golden_draft("A_eagle3")
    prompt = torch.tensor([[17, 204, 51, 130, 9], [0, 0, 33, 8, 250]])
    options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 40, "do_sample": do_sample, "pad_token_id": 0}
    outputs, forwards = [], []
    for assistant, least in ((None, 0.0), (draft, 0.0), (draft, threshold)):
        use_options(draft, draft_threshold=least)
        torch.manual_seed(3)
        output = golden_target.generate(prompt, assistant_model=assistant, return_dict_in_generate=True, **options)
        outputs.append((output.sequences, torch.get_rng_state()))
        forwards.append(getattr(output, "draft_forwards", 0))
    for sequences, state in outputs[1:]:
        assert torch.equal(sequences, outputs[0][0])
        assert torch.equal(state, outputs[0][1])
    assert forwards[2] < forwards[1]
