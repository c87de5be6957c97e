"""
Runs heads in vLLM, and writes what they draft. It runs in an environment of its own, without eagle_hf, and knows of a
head what a user would say: `python run_vllm.py JOBS`, where JOBS/jobs.json lists folders of heads. A head whose result
is there already is left out, so that a run that was ended by a head can be started again.
"""

import contextlib
import gc
import json
import sys
import time
import traceback
from pathlib import Path

import torch
import vllm
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer


drafted: list[list[int]] = []
_propose = SpecDecodeBaseProposer.propose


def _keep(self, *args, **kwargs):
    drafts = _propose(self, *args, **kwargs)
    drafted.append(drafts[0].tolist())  # one text at a time
    return drafts


SpecDecodeBaseProposer.propose = _keep


def run(job: dict, target: str, prompts: list[list[int]], num_tokens: int) -> list[dict[str, list]]:
    """Texts and drafts of one head."""
    length = job["max_model_len"]
    llm = LLM(
        model=target, dtype="float32", enforce_eager=True, enable_prefix_caching=False, async_scheduling=False,
        max_model_len=length, max_num_batched_tokens=length, max_num_seqs=1,
        speculative_config={"model": job["folder"], "num_speculative_tokens": 3, **job["speculative_config"]},
    )  # fmt: skip
    found = []
    for prompt in prompts:
        drafted.clear()
        options = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        (output,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], options, use_tqdm=False)
        found.append({"tokens": list(output.outputs[0].token_ids), "steps": [list(drafts) for drafts in drafted]})
    with contextlib.suppress(AttributeError):
        llm.llm_engine.engine_core.shutdown()
    del llm
    return found


def main(folder: Path) -> None:
    """All heads that have no result yet."""
    work = json.loads((folder / "jobs.json").read_text())
    for job in work["jobs"]:
        result = folder / "results" / f"{job['id']}.json"
        if result.exists():
            continue
        # Written before, so that a head that ends the process is not tried again.
        result.write_text(json.dumps({"error": "the process ended"}))
        began = time.monotonic()
        try:
            answer = {"answers": run(job, work["target"], job["prompts"], job["num_tokens"])}
        except Exception as error:  # of any kind, from any depth of the engine: it is what is asked for
            chain = [error, *iter_causes(error)]
            answer = {"error": str(chain[-1]).strip().splitlines()[0] if str(chain[-1]).strip() else repr(chain[-1])}
            answer["traceback"] = traceback.format_exc()
        answer |= {"vllm": vllm.__version__, "torch": torch.__version__, "seconds": time.monotonic() - began}
        result.write_text(json.dumps(answer))
        print(job["id"], answer.get("error", "ran"), f"{answer['seconds']:.1f} s", flush=True)  # noqa: T201
        cleanup_dist_env_and_memory()
        gc.collect()


def iter_causes(error: BaseException):
    """What an error was raised from, innermost last."""
    while (error := error.__cause__ or error.__context__) is not None:
        yield error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
