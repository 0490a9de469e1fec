"""Logical axes of the parameters of known families, by their checkpoints' own names.

Each row is a pattern and two names, (what products sum over, what they make); a vector has the
second. Which axis of a stored weight is which is read from its sites, not from its name:
converted dense weights are stored [in, out], PyTorch's are [out, in], a table of embeddings is
picked along its first axis. ``rules.LOGICAL`` says over which mesh axis each name is split.

Covered: BERT (RoBERTa, MiniLM ...), ViT (transformers', timm's), Llama (Mistral, Qwen),
GPT-2, Mixtral, as transformers and timm name them.
"""

from __future__ import annotations

import re
from typing import Any

from jaxinfer.core.errors import InputError
from jaxinfer.sharding._auto_read import Reading
from jaxinfer.sharding.rules import Rule

Table = tuple[tuple[str, str, str], ...]

BERT: Table = (
    (r"word_embeddings\.weight$", "vocab", "embed"),
    (r"position_embeddings\.weight$", "positions", "embed"),
    (r"attention\.(self\.|attention\.)?(query|key|value)\.(weight|bias)$", "embed", "heads"),
    (r"attention\.output\.dense\.weight$", "heads", "embed"),
    (r"intermediate\.dense\.(weight|bias)$", "embed", "mlp"),
    (r"(?<!attention\.)output\.dense\.weight$", "mlp", "embed"),
)
VIT: Table = (
    (r"blocks\.\d+\.attn\.proj\.weight$", "heads", "embed"),
    (r"blocks\.\d+\.mlp\.fc1\.(weight|bias)$", "embed", "mlp"),
    (r"blocks\.\d+\.mlp\.fc2\.weight$", "mlp", "embed"),
)
LLAMA: Table = (
    (r"embed_tokens\.weight$", "vocab", "embed"),
    (r"lm_head\.weight$", "embed", "vocab"),
    (r"self_attn\.q_proj\.(weight|bias)$", "embed", "heads"),
    (r"self_attn\.(k|v)_proj\.(weight|bias)$", "embed", "kv_heads"),
    (r"self_attn\.o_proj\.weight$", "heads", "embed"),
    (r"mlp\.(gate|up)_proj\.weight$", "embed", "mlp"),
    (r"mlp\.down_proj\.weight$", "mlp", "embed"),
)
GPT2: Table = (
    (r"wte\.weight$", "vocab", "embed"),
    (r"attn\.c_proj\.weight$", "heads", "embed"),
    (r"mlp\.c_fc\.(weight|bias)$", "embed", "mlp"),
    (r"mlp\.c_proj\.weight$", "mlp", "embed"),
)
MIXTRAL: Table = (
    (r"experts\.(\d+\.)?(w1|w3|gate_up_proj)(\.weight)?$", "embed", "mlp"),
    (r"experts\.(\d+\.)?(w2|down_proj)(\.weight)?$", "mlp", "embed"),
)
FAMILIES: dict[str, Table] = {
    "bert": BERT,
    "vit": VIT,
    "llama": LLAMA,
    "gpt2": GPT2,
    "mixtral": MIXTRAL,
}
"""Rows by family; a model may match several (Mixtral has Llama's attention)."""


def family_rules(reading: Reading) -> list[Rule]:
    """Return one rule for each leaf of a known family, its axes by their sites.

    Raises:
      InputError: no leaf has a known name.
    """
    rules = []
    for path, leaf in reading.leaves.items():
        row = next((r for table in FAMILIES.values() for r in table if re.search(r[0], path)), None)
        if row is not None:
            rules.append(Rule(f"^{re.escape(path)}$", _axes(reading, path, leaf, row[1], row[2])))
    if not rules:
        raise InputError(
            f"logical: no parameter has a name of the families {', '.join(FAMILIES)}; give rules, "
            "or 'auto', which goes by the program and not by names"
        )
    return rules


def _axes(reading: Reading, path: str, leaf: Any, summed: str, made: str) -> tuple[Any, ...]:
    names: list[Any] = [None] * len(leaf.shape)
    sites = reading.sites.get(path, ())
    if not sites and len(names) == 1:
        return (made,)
    for site in sites[:1]:
        first = {*site.contracting, *site.indexed}
        experts = {a for a in site.indexed if len(leaf.shape) > 2}
        for axis in site.seen:
            names[axis] = "experts" if axis in experts else summed if axis in first else made
        for axis in range(len(names)):
            factor = reading.leading(path, axis)
            if factor and "experts" in reading.dimensions[factor].kinds:
                names[axis] = "experts"
    return tuple(names)
