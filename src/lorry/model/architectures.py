"""What Lorry must know of an architecture that its configuration does not say: one table, one line each.

To add an architecture, add its `model_type` here and to KINDS in tests/conftest.py: the tests hold its forward pass and
its gradients to those of transformers and PEFT. An architecture that is not listed works too, padded.
"""

from __future__ import annotations

from dataclasses import dataclass

_BERT = ("query", "key", "value")
_DECODER = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Architecture:
    """Facts about one `model_type` of transformers."""

    query_key_value: tuple[str, ...]
    """Last part of the names of the modules that project to query, key and value, or to all three at once."""
    packs: bool = True
    """Whether attention goes through transformers' AttentionInterface, or has a version of Lorry's, and nothing else
    looks at other tokens than a text's own: then many texts can share one row of tokens. Otherwise texts are padded."""
    reserved_positions: int = 0
    """Rows at the start of the position table that no token uses: models from fairseq count from `pad_token_id + 1`."""
    own_attention: bool = False
    """Whether attention does not go through AttentionInterface, and Lorry has a version for packed texts (mpnet.py)."""


ARCHITECTURES = {
    "bert": Architecture(_BERT),
    "roberta": Architecture(_BERT, reserved_positions=2),
    "xlm-roberta": Architecture(_BERT, reserved_positions=2),
    "camembert": Architecture(_BERT, reserved_positions=2),
    "distilbert": Architecture(("q_lin", "k_lin", "v_lin")),
    "modernbert": Architecture(("Wqkv",)),
    "nomic_bert": Architecture(_DECODER),
    "qwen2": Architecture(_DECODER),
    "qwen3": Architecture(_DECODER),
    "llama": Architecture(_DECODER),
    "mistral": Architecture(_DECODER),
    "mpnet": Architecture(("q", "k", "v"), reserved_positions=2, own_attention=True),
}
_OTHERS = (
    *("q_lin", "k_lin", "v_lin", "q", "k", "v", "query_proj", "key_proj", "value_proj"),
    *("Wqkv", "qkv_proj", "query_key_value", "c_attn"),
)
UNLISTED = Architecture((*_BERT, *_DECODER, *_OTHERS), packs=False)


def architecture_of(model_type: str) -> Architecture:
    """Return the facts about a `model_type`, as config.json names it."""
    return ARCHITECTURES.get(model_type, UNLISTED)
