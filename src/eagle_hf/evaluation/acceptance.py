"""
Acceptance, as the EAGLE papers count it.

```text
verification      1            2       3
text              a b c d      e f     g           the first token, from the prompt, belongs to none
added             4            2       1           acceptance lengths: drafted tokens accepted, and the target's own
```

* **tau**, the acceptance length, is the mean of what verifications add: per verification over all prompts (7 / 3 here),
  or first over the verifications of each prompt and then over prompts. The former says how many forwards are saved.
* **n-alpha** (EAGLE-1) is the share of chains whose token `n + 1` is accepted, among those whose first `n` tokens were:
  0-alpha rests on true features alone, n-alpha on `n` features of the head's own. Measured with chains, not trees.
* **calibration** (EAGLE-2) compares the probability that the head gives to a token with how often the target accepts
  it, for the tokens whose parents were accepted.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..tree import DraftTree


Step = tuple[DraftTree, list[list[int]]]  # a tree, and the accepted nodes of every row
Bins = list[list[float]]  # per bin: tokens, sum of their confidences, how many were accepted

NUM_BINS = 10


def summarize_lengths(by_prompt: Sequence[Sequence[int]]) -> dict[str, Any]:
    """
    Returns the acceptance of several prompts.

    Args:
        by_prompt (`Sequence[Sequence[int]]`): Acceptance lengths of every prompt.

    Returns:
        `dict`: `tau` per verification, `tau_mean_over_prompts`, how many `verifications`, the share `accepted_at_depth`
        1, 2, ... (that accept at least so many drafted tokens), and `lengths`, how many verifications by their length.
    """
    by_prompt = [lengths for lengths in by_prompt if lengths]  # a text of one token has no verification
    everything = [length for lengths in by_prompt for length in lengths]
    if not everything:
        return {"tau": None, "tau_mean_over_prompts": None, "verifications": 0, "accepted_at_depth": [], "lengths": {}}
    steps = len(everything)
    means = [sum(lengths) / len(lengths) for lengths in by_prompt]
    return {
        "tau": round(sum(everything) / steps, 4),
        "tau_mean_over_prompts": round(sum(means) / len(means), 4),
        "verifications": steps,
        "accepted_at_depth": [
            round(sum(length > depth for length in everything) / steps, 4) for depth in range(1, max(everything))
        ],
        "lengths": {str(length): count for length, count in sorted(Counter(everything).items())},
    }


def _decided(steps: Sequence[Step]) -> Sequence[Step]:
    """Returns all but the last verification: there the text may have ended before the path did."""
    return steps[:-1]


def chain_trials(steps: Sequence[Step], depth: int) -> list[list[int]]:
    """
    Returns the trials of n-alpha in the verifications of one text that was drafted with chains (batch size 1).

    Returns:
        `list[list[int]]`: For `n` from 0 to `depth - 1`, how many chains had `n` tokens accepted and one more to offer,
        and in how many of them it was accepted.
    """
    trials = [[0, 0] for _ in range(depth)]
    for tree, paths in _decided(steps):
        accepted = len(paths[0]) - 1
        for n in range(min(accepted + 1, tree.num_nodes - 1, depth)):
            trials[n][0] += 1
            trials[n][1] += accepted > n
    return trials


def n_alpha(trials: Iterable[Sequence[Sequence[int]]]) -> list[dict[str, float]]:
    """Sums the trials of several texts: `n`, `trials` and `alpha` for every `n` that was tried."""
    columns = zip(*trials, strict=True)
    totals = [(sum(pair[0] for pair in column), sum(pair[1] for pair in column)) for column in columns]
    return [{"n": n, "trials": t, "alpha": round(hits / t, 4)} for n, (t, hits) in enumerate(totals) if t]


def confidence_bins(steps: Sequence[Step]) -> Bins:
    """
    Returns the confidence against acceptance in the verifications of one text (batch size 1), for the nodes whose
    parents were accepted. The confidence of a node is the probability that the head gives to its token after its
    parent.

    Returns:
        `list[list[float]]`: `NUM_BINS` bins of equal width from 0 to 1.
    """
    bins: Bins = [[0, 0.0, 0] for _ in range(NUM_BINS)]
    for tree, paths in _decided(steps):
        path = set(paths[0])
        parents, scores = tree.parents[0].tolist(), tree.scores[0].tolist()
        for node in range(1, tree.num_nodes):
            if parents[node] in path and math.isfinite(scores[node]):
                confidence = min(math.exp(scores[node] - scores[parents[node]]), 1.0)
                chosen = bins[min(int(confidence * NUM_BINS), NUM_BINS - 1)]
                chosen[0] += 1
                chosen[1] += confidence
                chosen[2] += node in path
    return bins


def calibration(bins: Iterable[Bins]) -> dict[str, Any]:
    """
    Sums the bins of several texts.

    Returns:
        `dict`: `bins` with `tokens`, mean `confidence` and `acceptance` of each that is not empty, and the
        `calibration_error`, the mean distance of both over all tokens (expected calibration error).
    """
    sums = [[sum(values) for values in zip(*column, strict=True)] for column in zip(*bins, strict=True)]
    total = sum(tokens for tokens, _, _ in sums)
    if not total:
        return {"tokens": 0, "calibration_error": None, "bins": []}
    error = sum(abs(confidence - accepted) for _, confidence, accepted in sums) / total
    rows = [
        {
            "from": round(i / NUM_BINS, 4),
            "tokens": int(tokens),
            "confidence": round(confidence / tokens, 4),
            "acceptance": round(accepted / tokens, 4),
        }
        for i, (tokens, confidence, accepted) in enumerate(sums)
        if tokens
    ]
    return {"tokens": int(total), "calibration_error": round(error, 4), "bins": rows}
