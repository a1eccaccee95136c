"""What training minimises, as an option says it: a sum of losses with weights, over some dimensions."""

from __future__ import annotations

import math

from lorry.errors import UserError, nearest

LOSSES = (
    "infonce", "ranknet", "lambda", "listnet", "cosent", "bce", "cosine", "contrastive", "online_contrastive",
    "margin_mse", "kl",
)  # fmt: skip
TEACHER_LOSSES = ("margin_mse", "kl")  # learn from the column of a teacher's scores
# Options that only some losses use.
LOSS_OPTIONS = {
    "temperature": ("infonce",),
    "scale": ("ranknet", "lambda", "listnet", "cosent", "bce", "kl"),
    "hard_negatives": ("infonce",),
    "teacher_column": TEACHER_LOSSES,
}


def loss_terms(loss: str) -> dict[str, float]:
    """Return the weight of every loss in a sum such as `0.3*infonce+2*ranknet+2*cosent`.

    Raises:
        UserError: A part is not a loss or the product of a number and one, or a loss is there twice.
    """
    terms: dict[str, float] = {}
    for part in loss.replace(" ", "").split("+"):
        factor, _, name = part.rpartition("*")
        try:
            weight = float(factor or 1)
        except ValueError:
            weight = -1.0
        if name not in LOSSES or not 0 < weight < math.inf or name in terms:
            guess = nearest(name, LOSSES)
            raise UserError(
                f"loss is {loss!r}, and {part!r} is {'there twice' if name in terms else 'no part of a loss'}",
                f"Did you mean {guess}?"
                if guess and guess != name
                else f"Give a sum of {', '.join(LOSSES)}, e.g. infonce+5*ranknet.",
            )
        terms[name] = weight
    return terms


def dims_of(text: str) -> tuple[int, ...]:
    """Return the dimensions in a list such as `256,128,64`.

    Raises:
        UserError: It holds something else.
    """
    try:
        dims = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        dims = (0,)
    if any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
        raise UserError(f"matryoshka_dims is {text!r}", "Give different whole numbers, e.g. 256,128,64.")
    return dims
