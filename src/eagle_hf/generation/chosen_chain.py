"""
Choosing the tokens of a chain that the decoding loop of `transformers` verifies. Where the text is sampled, that loop
takes a draft `x` with a probability of `min(1, p(x) / q(x))`, and otherwise a token from what `p` has above `q`
(https://huggingface.co/papers/2211.17192). So drafts are sampled from `q`, and `q` is what is returned.
"""

import math

import torch
import torch.nn.functional as F
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList

from ..draft_options import DraftOptions


class ChoiceOfTokens:
    """
    Says how the tokens of a call's chains are chosen.

    Args:
        generation_config ([`~transformers.GenerationConfig`]): As prepared by `generate`.
        processors ([`~transformers.LogitsProcessorList`]): Likewise.
        target_ids (`torch.LongTensor` of shape `(draft_vocab_size,)`, *optional*):
            Target ids of the draft vocabulary; `None` where both vocabularies are the same.
        options ([`DraftOptions`]): Say how unlikely chains may become.
    """

    def __init__(
        self,
        generation_config: GenerationConfig,
        processors: LogitsProcessorList,
        target_ids: torch.Tensor | None,
        options: DraftOptions,
    ):
        self.do_sample = bool(generation_config.do_sample)
        eos_tokens = getattr(generation_config, "_eos_token_tensor", None)
        self.eos_tokens: set[int] = set() if eos_tokens is None else set(eos_tokens.flatten().tolist())
        self.processors, self.target_ids, self.threshold = processors, target_ids, options.draft_threshold


class ChosenChain:
    """
    Chooses the tokens of one chain. Nothing is read back from the device before it is complete, unless there is a
    threshold.

    Args:
        choice ([`ChoiceOfTokens`]): How they are chosen.
        input_ids (`torch.LongTensor` of shape `(1, length)`): The text.
        vocab_size (`int`): Tokens of the target.
    """

    def __init__(self, choice: ChoiceOfTokens, input_ids: torch.Tensor, vocab_size: int):
        self._choice, self._text, self._ids = choice, input_ids, input_ids
        self._vocab_size = vocab_size
        self._scores: list[torch.Tensor] = []  # each of shape (1, vocab_size)
        self._are_possible: list[torch.Tensor] = []  # each of shape (1,)
        self._log_prob = 0.0

    @torch.inference_mode(False)  # processors may keep what they see
    @torch.no_grad()
    def choose(self, logits: torch.Tensor) -> torch.Tensor | None:
        """
        Chooses the next token.

        Args:
            logits (`torch.Tensor` of shape `(1, draft_vocab_size)`): Of the head.

        Returns:
            `torch.LongTensor` of shape `(1,)`, or `None` where the chain ends.
        """
        choice = self._choice
        scores = choice.processors(self._ids, self._of_the_target(logits.clone()))
        if choice.do_sample:
            probs = scores.softmax(-1)
            # As `torch.multinomial` samples; that reads its input back, to check it.
            tokens = (probs / torch.empty_like(probs).exponential_()).argmax(-1)
            prob = probs.gather(1, tokens[:, None])[:, 0]
            is_possible = prob.isfinite() & (prob > 0)
        else:
            tokens = scores.argmax(-1)
            is_possible = scores.gather(1, tokens[:, None])[:, 0].isfinite()
        ends = self._ends_with(scores, tokens)
        if ends and not choice.do_sample:
            return None
        self._scores.append(scores)
        self._are_possible.append(is_possible)
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        # A sampled token stays: to leave it out for what it is would change the distribution of the text.
        return None if ends else tokens

    def _ends_with(self, scores: torch.Tensor, tokens: torch.Tensor) -> bool:
        """Returns whether the path is less likely than the threshold."""
        threshold = self._choice.threshold
        if threshold <= 0:
            return False
        self._log_prob += float(scores.log_softmax(-1)[0, tokens[0]])
        return self._log_prob < math.log(threshold)

    def _of_the_target(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns logits of the draft vocabulary as such of the target's, float32, of shape `(1, vocab_size)`."""
        logits = logits.to(device=self._text.device, dtype=torch.float32)
        ids = self._choice.target_ids
        if ids is None:
            return F.pad(logits, (0, self._vocab_size - logits.shape[-1]), value=-torch.inf)
        scores = logits.new_full((1, self._vocab_size), -torch.inf)
        return scores.index_copy_(1, ids.to(logits.device), logits)

    def candidates(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns what [`EagleCandidateGenerator.get_candidates`] does."""
        length = self._text.shape[1]
        tokens = self._ids[0, length:]
        are_possible = torch.cat([tokens, *self._are_possible]).tolist()  # one synchronisation
        drafted, possible = are_possible[: len(tokens)], are_possible[len(tokens) :]
        count = 0
        for token, is_possible in zip(drafted, possible, strict=True):
            if not is_possible:  # the head is broken, or knows nothing that the processors allow
                break
            count += 1
            if token in self._choice.eos_tokens:
                break
        if count == 0:
            return self._text, None
        return self._ids[:, : length + count], torch.stack(self._scores[:count], dim=1)
