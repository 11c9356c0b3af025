"""How to load what was exported: programs that run as they stand, for the report and for the model card."""

import json
import re
from collections.abc import Iterator

from libs.tiny import BASE

from .documents import base_revision
from .markdown import code, text
from .run import Run
from .wording import block

CHAT_TEMPLATE = "chat_template.jinja"
PLAIN_NAME = re.compile(r"[A-Za-z0-9./~][A-Za-z0-9._/~-]{0,299}")
"""Can stand in a command or in Python as it is."""
_IN_A_CHAT = (
    'asked = [{"role": "user", "content": "Hello! Who are you?"}]',
    'inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt").to(model.device)',
)
_IN_PLAIN_TEXT = ('inputs = tokenizer("Once upon a time", return_tensors="pt").to(model.device)',)
_ASKED = (
    'said = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=64, do_sample=False)',
    'print(tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
)


def adapter(run: Run) -> Iterator[str]:
    if run.tuning.smoke:
        yield (
            f"The adapter is of a smoke run: it belongs to a tiny random model that was made for the run (`base_config.json` tells its sizes) and is not kept. On "
            f"{text(run.tuning.base_model)} **it doesn't load**."
        )
        if not run.merged:
            yield 'Export it with `{"merged": true}` to get a whole model that loads.'
        return
    if run.tuning.ancestors:
        yield from _on_top(run)
        return
    base = run.tuning.base_model if PLAIN_NAME.fullmatch(run.tuning.base_model) else "BASE_MODEL"
    found = base_revision(run)
    revision = f"revision={json.dumps(found)}, " if PLAIN_NAME.fullmatch(found) else ""
    commit = f" at commit {text(found)}" if found else ""
    yield f"Put the files of this export into a folder `adapter`. The base model, {text(run.tuning.base_model)}{commit}, is not part of the export."
    if run.tuning.base_model == BASE:
        yield (
            "It is the tiny model with random weights that ships with this platform, made by whoever trains it, and on no hub: give its folder in place of its name "
            "(`models/tiny-llama-1` in the platform's home, or wherever TRAINYARD_MODELS_FOLDER says)."
        )
    yield block(
        "python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("adapter")',
        f'base = AutoModelForCausalLM.from_pretrained("{base}", {revision}dtype="auto")',
        'model = PeftModel.from_pretrained(base, "adapter")',
        *_question(run),
    )
    rank = f" --max-lora-rank {run.tuning.lora_r}" if run.tuning.lora_r > 16 else ""
    yield block("sh", f"vllm serve {base} --enable-lora{rank} --lora-modules adapter=./adapter")
    if not run.merged:
        yield (
            'To have it merged, export it with `{"merged": true}`. To merge it yourself, load the base in 16 bits, as above, and call '
            "`model.merge_and_unload(safe_merge=True)`. Never merge onto a quantised base: rounding takes away a part of what was learned."
        )


def _on_top(run: Run) -> Iterator[str]:
    """Of a base that was trained here too: on the hub's model alone the adapter would load, and say something else."""
    below, root = run.tuning.ancestors, run.tuning.root
    yield (
        f"Put the files of this export into a folder `adapter`. Its base model, {text(run.tuning.base_model)}, was trained on this platform and is on no hub, so "
        "**peft alone can't load it by its name**, and on the model that it was trained from it would load without a word and be wrong."
    )
    if not run.merged:
        yield 'Export it with `{"merged": true}` to get one model that loads anywhere.'
    parts = [f"{'all weights' if one.method == 'full' else 'the adapter'} of the run {code(one.job_id)}, of project {code(one.project_id)}" for one in below]
    made = [f"{text(root)}{f' at commit {text(run.tuning.root_revision)}' if run.tuning.root_revision else ''}", *parts] if root else parts
    yield f"The base is made of {'; then '.join(made)}. Exported from there, they are put together like this:"
    revision = f"revision={json.dumps(run.tuning.root_revision)}, " if PLAIN_NAME.fullmatch(run.tuning.root_revision) else ""
    start = (root if PLAIN_NAME.fullmatch(root) else "BASE_MODEL") if root else f"export-of-{below[0].job_id}"
    yield block(
        "python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("adapter")',
        f'base = AutoModelForCausalLM.from_pretrained("{start}", {revision}dtype="auto")',
        *(f'base = PeftModel.from_pretrained(base, "export-of-{one.job_id}").merge_and_unload()' for one in below if one.method != "full"),
        'model = PeftModel.from_pretrained(base, "adapter")',
        *_question(run),
    )


def whole(run: Run, folder: str) -> Iterator[str]:
    if run.merged:
        yield f"The folder `{folder}` of this export is the whole model: it needs no peft and no other model."
    else:
        yield f"Put the files of this export into a folder `{folder}`. They are the whole model: all of its weights were trained, so that there is nothing to merge."
    yield block(
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        f'model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")',
        *_question(run),
    )
    yield block("sh", f"vllm serve ./{folder}")


def _question(run: Run) -> tuple[str, ...]:
    return ("", *(_IN_A_CHAT if CHAT_TEMPLATE in run.completed.artifacts else _IN_PLAIN_TEXT), *_ASKED)
