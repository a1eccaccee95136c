"""Models as transformers and PEFT compute them, padded, to hold the packed encoder to; and texts to compare them on."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from lorry.model.encoder import Encoder
from lorry.model.packing import TokenSequences
from lorry.model.pretrained import find_pretrained

CPU = torch.device("cpu")
LONGEST = 64
# One token, only the special tokens (two, or one), the longest, and both many and few texts of a length.
LENGTHS = np.array([12, 1, 64, 2, 30, 7, 7, 7, 33, 64, 6, 1, 61, 5, 20, 7])
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": "", "seed": 0}


def encoder_of(folder, precision="fp32", max_length=0, device=CPU):
    return Encoder(find_pretrained(str(folder), max_length), precision, device)


def some_texts(encoder, lengths=LENGTHS, seed=0):
    """Token ids as a tokenizer gives them: special tokens at the ends, no padding token inside."""
    config = encoder.model.config
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(5, config.vocab_size, length) for length in lengths]
    first, last = config.bos_token_id, config.eos_token_id
    for text in tokens:
        if last is not None:
            text[-1] = last
        if first is not None and len(text) > 1:
            text[0] = first
    return tokens


def packed_of(texts):
    return TokenSequences(np.concatenate(texts), np.array([len(text) for text in texts]))


def fill(weights, seed=1, scale=0.1):
    """Give every adapter weight numbers of its own: B begins at zero, where half of the gradients vanish.

    Not too large ones: with 0.3, transformers' own gradients in fp32 are 3e-5 off those in fp64.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(weights):
            weights[name].copy_(torch.randn(weights[name].shape, generator=random) * scale)


def plain(folder, targets=None, lora=LORA):
    """The same model as transformers and PEFT make it, with ordinary attention."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    if targets is not None:
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="FEATURE_EXTRACTION", r=lora["rank"], lora_alpha=lora["alpha"], target_modules=list(targets)
            ),
        )
    return model.eval()


def padded_embeddings(model, texts, pooling, normalize=True):
    """Every text padded to the longest, one forward pass, pooled by the book."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
        mask[row, : len(text)] = 1
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    if pooling == "cls":
        pooled = hidden[:, 0]
    elif pooling == "lasttoken":
        pooled = hidden[torch.arange(len(texts)), mask.sum(1) - 1]
    else:
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled


def direction(shape, seed=2):
    """Weights for a sum of all embeddings, so that every number of them has a gradient of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(embeddings, weights, device=CPU):
    names = sorted(weights)
    total = (embeddings * direction(embeddings.shape).to(device)).sum()
    found = torch.autograd.grad(total, [weights[name] for name in names])
    return {name: gradient.cpu() for name, gradient in zip(names, found, strict=True)}


def adapted_pair(folder, lora=LORA, targets=None, precision="fp32", device=CPU):
    """An encoder with LoRA, the plain model with LoRA, both with the same numbers in A and B."""
    encoder = encoder_of(folder, precision, device=device)
    encoder.add_lora(**lora)
    targets = encoder.model.peft_config["default"].target_modules if targets is None else targets
    model = plain(folder, targets, lora)
    mine = encoder.trainable()
    theirs = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert sorted(mine) == sorted(theirs)
    fill(mine)
    fill(theirs)
    return encoder, model, mine, theirs


def assert_equal_gradients(mine, theirs, tolerance):
    for name, expected in theirs.items():
        size = expected.abs().max()
        assert size > 1e-4, f"{name} has no gradient to compare"
        apart = (mine[name] - expected).abs().max().item()
        assert apart <= tolerance * max(1.0, size.item()), f"{name}: {apart} of {size.item()}"
