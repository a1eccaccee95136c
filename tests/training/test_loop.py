"""The loop's promises: the right gradients however a batch is cut, the right rate, adapters alone, every precision."""

import logging
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_encoder import padded_embeddings, plain
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lorry.config import TrainConfig
from lorry.data.pairs import read_channel
from lorry.data.sampler import BatchSampler
from lorry.errors import UserError
from lorry.hardware import make_accelerator
from lorry.model.embedding import embed_all
from lorry.model.encoder import Encoder
from lorry.model.pretrained import find_pretrained
from lorry.model.tokens import tokenize
from lorry.training import loop
from lorry.training.batches import make_batch
from lorry.training.loop import fit, learning_rate
from lorry.training.mining import mine
from lorry.training.objective import batch_loss
from lorry.training.progress import TrainingLog
from lorry.training.selection import CRITERION
from lorry.training.update import Trainer

LOSSES = [
    *("infonce", "ranknet", "lambda", "listnet", "cosent", "bce", "cosine", "contrastive", "online_contrastive"),
    "infonce+5*ranknet+0.2*cosent",
]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lorry"), "handlers", [logging.NullHandler()])


class Ground:
    """A tiny model, its pairs and their tokens."""

    def __init__(self, folder, model, write_pairs):
        self.base = find_pretrained(str(model))
        self.pairs = read_channel(write_pairs(folder / "train"), TrainConfig())["all"]
        self.texts = tokenize(self.pairs, self.base)

    def encoder(self, config):
        encoder = Encoder(self.base, "fp32" if config.precision == "auto" else config.precision, CPU)
        encoder.add_lora(
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_targets,
            seed=config.seed,
        )
        return encoder

    def batch(self, rows):
        return make_batch(self.texts, self.pairs, np.asarray(rows), CPU)

    def trainer(self, encoder, config):
        AcceleratorState._reset_state(True)  # as in a process of its own
        accelerator, _ = make_accelerator(encoder.precision)
        return Trainer(encoder, self.texts, config, accelerator, config.micro_batch_tokens or None)

    def backward(self, encoder, batch, config, step=0):
        """Return (loss, gradients) of one batch."""
        for weight in encoder.trainable().values():
            weight.grad = None
        loss = self.trainer(encoder, config).backward(batch, step)
        return float(loss), {name: weight.grad.clone() for name, weight in encoder.trainable().items()}

    def fit(self, encoder, config):
        sampler = BatchSampler(self.pairs.query, config.batch_size, config.epochs, config.seed)
        training_log = TrainingLog(sampler.steps)
        trainer = self.trainer(encoder, config)
        progress = fit(trainer, self.pairs, sampler, training_log, validate=rising())
        return progress, [line for line in training_log.lines if "loss" in line]


def scored(scores):
    """Return a function that gives these scores as those of validation, one a call."""
    found = iter(scores)
    return lambda: (0.0, dict.fromkeys(CRITERION, next(found)))


def rising():
    return scored(count())


@pytest.fixture(scope="module")
def ground(tmp_path_factory, tiny_model, shop_pairs):
    return Ground(tmp_path_factory.mktemp("ground"), tiny_model("bert"), shop_pairs)


def moved(encoder):
    """Move B away from zero, so that the gradients of A are not all zero."""
    torch.manual_seed(5)
    for name, weight in encoder.trainable().items():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    return encoder


def flat(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double()


def detached(encoder):
    return {name: weight.detach().clone() for name, weight in encoder.trainable().items()}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_in_parts_makes_the_update_of_the_whole_batch(ground, loss):
    config = TrainConfig(loss=loss)
    encoder, batch = moved(ground.encoder(config)), ground.batch(range(0, 60))
    whole_loss, whole = ground.backward(encoder, batch, config)
    part_loss, parts = ground.backward(encoder, batch, replace(config, micro_batch_tokens=60))
    assert len(encoder.passes(ground.texts.lengths_of(batch.rows), 60)) > 5
    assert part_loss == pytest.approx(whole_loss, rel=1e-6)
    assert flat(whole).norm() > 0
    assert float((flat(parts) - flat(whole)).norm() / flat(whole).norm()) < 1e-6


@pytest.mark.parametrize("max_tokens", [0, 60], ids=["whole", "in parts"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["cosine", "infonce+cosent"])
def test_gradients_are_the_slope_of_the_loss(ground, loss, dropout, max_tokens):
    """Seen from outside, by moving the weights: with dropout this holds only if both passes drop the same."""
    config = TrainConfig(loss=loss, lora_dropout=dropout, micro_batch_tokens=max_tokens)
    encoder, batch = moved(ground.encoder(config)), ground.batch(range(0, 60))
    _, gradient = ground.backward(encoder, batch, config, step=3)
    start = detached(encoder)
    length, around = 2e-3 / flat(gradient).norm().item(), []
    for side in (-1, 1):
        for name, weight in encoder.trainable().items():
            weight.data = start[name] + side * length * gradient[name]
        around.append(ground.backward(encoder, batch, config, step=3)[0])
    slope = (around[1] - around[0]) / (2 * length)
    assert slope == pytest.approx(float(flat(gradient).square().sum()), rel=2e-3)


def test_dropout_changes_from_step_to_step_but_not_between_runs(ground):
    config = TrainConfig(lora_dropout=0.3)
    encoder, batch = moved(ground.encoder(config)), ground.batch(range(0, 30))
    first, again, other = (ground.backward(encoder, batch, config, step)[0] for step in (3, 3, 4))
    assert first == again
    assert first != other
    torch.manual_seed(99)
    assert ground.backward(encoder, batch, config, 3)[0] == first


def test_the_loss_curve_is_that_of_a_padded_loop(ground):
    """Packing, fused adapters and unique texts change nothing: step by step the loss of plain transformers and PEFT."""
    config = TrainConfig(batch_size=40, epochs=3, lr=0.01, log_every=1)
    encoder = ground.encoder(config)
    targets = encoder.model.peft_config["default"].target_modules
    model = plain(ground.base.folder, targets, {"rank": config.lora_rank, "alpha": config.lora_alpha})
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, weight in encoder.trainable().items():
        weights[name].data.copy_(weight)
    _, lines = ground.fit(encoder, config)

    sampler = BatchSampler(ground.pairs.query, config.batch_size, config.epochs, config.seed)
    optimizer = torch.optim.AdamW(weights.values(), lr=config.lr, weight_decay=config.weight_decay)
    losses = []
    for step in range(sampler.steps):
        batch = ground.batch(sampler.batch(step))
        texts = [ground.texts.take(np.array([row])).ids.astype(np.int64) for row in batch.rows]
        query, text = padded_embeddings(model, texts, "mean").split([batch.queries, len(texts) - batch.queries])
        loss = batch_loss(config, query, text, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(step, sampler.steps, config)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < 0.9 * losses[0]


def with_room_for(encoder, max_tokens):
    """Let the encoder run out of memory, as a GPU says it, above `max_tokens`; return the sizes that were tried."""
    embed, tried = encoder.embed_inputs, []

    def limited(inputs, **options):
        tried.append(sum(int(layout.lengths.sum()) for _, layout in inputs.passes))
        if tried[-1] > max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return embed(inputs, **options)

    encoder.embed_inputs = limited
    return tried


def test_where_memory_runs_out_the_update_is_the_same_in_smaller_parts(ground, watch, caplog):
    config = TrainConfig()
    encoder, batch = moved(ground.encoder(config)), ground.batch(range(0, 60))
    whole_loss, whole = ground.backward(encoder, batch, config)
    for weight in encoder.trainable().values():
        weight.grad = None
    tokens = int(ground.texts.lengths_of(batch.rows).sum())
    tried = with_room_for(encoder, tokens // 3)
    logging.getLogger("lorry").addHandler(caplog.handler)
    trainer = ground.trainer(encoder, config)
    loss = trainer.step(batch, 0, config.lr)
    assert float(loss) == pytest.approx(whole_loss, rel=1e-6)
    [parts] = watch.grads
    whole = [grad / max(1.0, float(flat(whole).norm())) for grad in whole.values()]  # clipped, as the step does
    assert all(torch.allclose(*both, rtol=1e-4, atol=1e-7) for both in zip(parts, whole, strict=True))
    assert trainer.max_tokens == tokens // 4
    assert tried[0] == tokens
    assert "out of memory" in caplog.text
    tried.clear()
    trainer.step(batch, 1, config.lr)
    assert trainer.max_tokens == tokens // 4
    assert max(tried) <= tokens // 4, "the next step does not try again what failed"


def test_no_memory_for_one_text_is_an_error_and_other_errors_stay_what_they_are(ground):
    config = TrainConfig()
    encoder, batch = ground.encoder(config), ground.batch(range(0, 60))
    trainer = ground.trainer(encoder, config)
    with_room_for(encoder, 2)
    with pytest.raises(UserError, match=r"not enough memory for one text of \d+ tokens\. Lower max_length"):
        trainer.step(batch, 0, config.lr)

    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    encoder.embed_inputs = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.step(batch, 0, config.lr)


def test_a_batch_holds_each_text_once_and_pairs_point_at_their_own(ground):
    batch = ground.batch([0, 1, 2, 7, 3])
    pairs, labels = ground.pairs, batch.labels
    assert len(set(batch.rows.tolist())) == len(batch.rows)
    assert batch.queries == 2
    assert batch.pairs == 5
    assert (batch.rows[: batch.queries] < ground.texts.queries).all()
    assert batch.rows[labels.query_B].tolist() == pairs.query[[0, 1, 2, 7, 3]].tolist()
    texts = batch.rows[batch.queries :] - ground.texts.queries
    assert texts[labels.text_B].tolist() == pairs.text[[0, 1, 2, 7, 3]].tolist()
    assert labels.gain_B.tolist() == pairs.gain[[0, 1, 2, 7, 3]].tolist()
    assert labels.relevant_B.tolist() == pairs.relevant[[0, 1, 2, 7, 3]].tolist()


def test_the_rate_rises_over_the_warm_up_and_falls_to_the_end():
    config = TrainConfig(lr=1.0, warmup=0.2)
    rates = [learning_rate(step, 10, config) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


@pytest.mark.parametrize(
    ("steps", "warmup", "rates"),
    [(1, 0.1, [1]), (4, 0.0, [1, 0.75, 0.5, 0.25]), (3, 1.0, [0.25, 0.5, 0.75]), (2, 0.5, [0.5, 1])],
)
def test_the_rate_at_the_edges(steps, warmup, rates):
    config = TrainConfig(lr=0.5, warmup=warmup)
    assert [learning_rate(step, steps, config) for step in range(steps)] == pytest.approx([rate / 2 for rate in rates])


class Watch:
    """Weights, gradients and rate as every optimizer step found them."""

    def __init__(self):
        self.weights, self.grads, self.rates = [], [], []

    def __call__(self, optimizer, *_):
        params = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.weights.append([weight.detach().clone() for weight in params])
        self.grads.append([weight.grad.detach().clone() for weight in params])
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.fixture
def watch():
    watch = Watch()
    handle = register_optimizer_step_pre_hook(watch)
    yield watch
    handle.remove()


def test_every_step_starts_from_no_gradient(ground, watch):
    """The original script added each step's gradients to those of all steps before."""
    config = TrainConfig(batch_size=40, lr=0.01, max_grad_norm=1e9)
    ground.fit(ground.encoder(config), config)
    encoder, sampler = ground.encoder(config), BatchSampler(ground.pairs.query, 40, 1, config.seed)
    for step in (0, 3, 5):
        for weight, value in zip(encoder.trainable().values(), watch.weights[step], strict=True):
            weight.data = value.clone()
        _, alone = ground.backward(encoder, ground.batch(sampler.batch(step)), config, step)
        assert all(torch.equal(*both) for both in zip(alone.values(), watch.grads[step], strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_scaled_down_to_the_largest_norm(ground, watch, precision):
    """In fp16 they arrive multiplied by the scaler: clipped before they are divided again, nothing would be left."""
    config = TrainConfig(batch_size=40, epochs=2, max_grad_norm=0.01, precision=precision)
    ground.fit(ground.encoder(config), config)
    norms = [torch.cat([grad.flatten() for grad in grads]).norm().item() for grads in watch.grads]
    assert len(norms) > 5
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_the_learning_rate_has_an_effect(ground, watch, lr):
    """The original script never used it. Adam's first step is the rate itself, whatever the gradient."""
    config = TrainConfig(batch_size=240, lr=lr, weight_decay=0.0)
    encoder = ground.encoder(config)
    before = flat(detached(encoder))
    ground.fit(encoder, config)
    assert watch.rates == [lr]
    assert float((flat(detached(encoder)) - before).abs().max()) == pytest.approx(lr, rel=1e-3)


def test_the_optimizer_gets_the_rate_of_each_step(ground, watch):
    config = TrainConfig(batch_size=24, lr=0.01, warmup=0.2)
    ground.fit(ground.encoder(config), config)
    assert watch.rates == pytest.approx([learning_rate(step, 10, config) for step in range(10)])
    assert len(set(watch.rates)) > 5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", ["infonce+cosent", "cosine"])
def test_every_precision_lowers_the_loss_and_changes_adapters_alone(ground, watch, precision, loss):
    config = TrainConfig(batch_size=40, epochs=8, lr=0.01, log_every=6, precision=precision, loss=loss)
    encoder = ground.encoder(config)
    named = dict(encoder.model.named_parameters())
    frozen = {name: weight.detach().clone() for name, weight in named.items() if name not in encoder.trainable()}
    adapters = detached(encoder)
    progress, lines = ground.fit(encoder, config)
    assert len(lines) == 8
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert {weight.dtype for weight in encoder.trainable().values()} == {torch.float32}
    assert {grad.dtype for grads in watch.grads for grad in grads} == {torch.float32}
    assert frozen
    assert all(torch.equal(named[name], weight) for name, weight in frozen.items())
    assert all(not torch.equal(named[name], weight) for name, weight in adapters.items())
    assert all("lora_" in name for name in adapters)
    assert (progress.step, progress.pairs, progress.stopped) == (48, 8 * 240, False)
    assert progress.tokens > 0
    assert progress.seconds > 0


def test_half_precision_scales_its_gradients_back_before_they_are_used(ground, watch):
    """Left scaled, fp16 gradients would be tens of thousands of times too long."""
    last = []
    for precision in ("fp32", "fp16"):
        config = TrainConfig(batch_size=240, epochs=6, precision=precision, lr=1e-9, max_grad_norm=1e9)
        ground.fit(ground.encoder(config), config)
        last.append(torch.cat([grad.flatten() for grad in watch.grads[-1]]))
    exact, half = last
    assert float((half - exact).norm() / exact.norm()) < 0.02


def test_the_posts_loss_is_logged_as_the_mean_since_the_last_line(ground):
    config = TrainConfig(batch_size=40, lr=1e-9, loss="cosine", log_every=1)
    _, each = ground.fit(ground.encoder(config), config)
    _, thirds = ground.fit(ground.encoder(config), replace(config, log_every=4))
    assert [line["step"] for line in thirds] == [4, 6]
    assert thirds[0]["loss"] == pytest.approx(np.mean([line["loss"] for line in each[:4]]), rel=1e-6)
    assert thirds[1]["loss"] == pytest.approx(np.mean([line["loss"] for line in each[4:]]), rel=1e-6)


def epochs(ground, config, scores):
    """Train with these scores of validation; return (encoder, progress, weights after each epoch)."""
    encoder = ground.encoder(config)
    sampler = BatchSampler(ground.pairs.query, config.batch_size, config.epochs, config.seed)
    validate, after = scored(scores), []

    def watched():
        after.append(detached(encoder))
        return validate()

    trainer = ground.trainer(encoder, config)
    progress = fit(trainer, ground.pairs, sampler, TrainingLog(sampler.steps), validate=watched)
    return encoder, progress, after


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def test_the_weights_are_those_of_the_best_epoch(ground):
    config = TrainConfig(batch_size=80, epochs=3, lr=0.01)
    encoder, progress, after = epochs(ground, config, [0.5, 0.7, 0.6])
    assert len(after) == 3
    assert equal(after[1], detached(encoder))
    assert not equal(after[1], after[2])
    assert progress.step == 9


def test_the_first_of_equal_epochs_is_the_best(ground):
    encoder, _, after = epochs(ground, TrainConfig(batch_size=80, epochs=2, lr=0.01), [0.5, 0.5])
    assert equal(after[0], detached(encoder))


def test_without_best_epoch_the_weights_are_those_of_the_last(ground):
    config = TrainConfig(batch_size=80, epochs=2, lr=0.01, best_epoch=False)
    encoder, _, after = epochs(ground, config, [0.7, 0.5])
    assert equal(after[1], detached(encoder))


@pytest.mark.parametrize(("patience", "steps"), [(0, 15), (1, 9), (2, 12)])
def test_training_ends_when_no_epoch_was_better_for_so_long(ground, patience, steps):
    config = TrainConfig(batch_size=80, epochs=5, lr=0.01, patience=patience)
    encoder, progress, after = epochs(ground, config, [0.5, 0.7, 0.6, 0.6, 0.6])
    assert progress.step == steps
    assert equal(after[1], detached(encoder))


@pytest.mark.parametrize("max_tokens", [None, 20], ids=["whole", "in parts"])
def test_queries_alone_are_trained_beside_fixed_products(ground, max_tokens):
    """The gradients are those of the queries' side; products enter as they are given."""
    config = TrainConfig(batch_size=80)
    encoder, batch = moved(ground.encoder(config)), ground.batch(range(0, 60))
    fixed = torch.nn.functional.normalize(torch.randn(len(ground.pairs.texts), encoder.width), dim=-1)
    trainer = ground.trainer(encoder, config)
    trainer.documents_TD, trainer.max_tokens = fixed, max_tokens
    assert len(encoder.passes(ground.texts.lengths_of(trainer.encoded(batch)), max_tokens)) > (1 if max_tokens else 0)
    loss = trainer.backward(batch, 0)
    found = {name: weight.grad.clone() for name, weight in encoder.trainable().items()}
    for weight in encoder.trainable().values():
        weight.grad = None
    queries = encoder.embed(ground.texts.take(batch.rows[: batch.queries]))
    products = fixed[torch.from_numpy(batch.rows[batch.queries :] - ground.texts.queries)]
    expected = batch_loss(config, queries, products, batch.labels)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    assert all(torch.allclose(weight.grad, found[name], atol=1e-7) for name, weight in encoder.trainable().items())
    assert trainer.encoded(batch).tolist() == batch.rows[: batch.queries].tolist()


MINING = TrainConfig(batch_size=80, epochs=2, lr=0.01, hard_negatives=6)


def test_every_epoch_learns_from_negatives_mined_before_it(ground, monkeypatch):
    """By the weights of that moment; each batch has those of its queries."""
    mined, batches = [], []

    def watched_mine(*arguments):
        mined.append(mine(*arguments))
        return mined[-1]

    def watched_batch(texts, pairs, chosen, device, negatives):
        batches.append((chosen, make_batch(texts, pairs, chosen, device, negatives)))
        return batches[-1][1]

    monkeypatch.setattr(loop, "mine", watched_mine)
    monkeypatch.setattr(loop, "make_batch", watched_batch)
    encoder, pairs, queries = ground.encoder(MINING), ground.pairs, ground.texts.queries
    before = [embed_all(encoder, ground.texts, side=side) for side in ("query", "document")]
    progress, _ = ground.fit(encoder, MINING)
    assert len(mined) == 2
    assert np.array_equal(mined[0], mine(*before, pairs, 6))
    assert not np.array_equal(*mined)
    assert np.array_equal(progress.negatives, mined[1])
    added = 0
    for step, (chosen, batch) in enumerate(batches):
        asked = set(pairs.query[chosen].tolist())
        wanted = {int(text) for query in asked for text in mined[step // 3][query]} - {-1}
        assert set(batch.rows[batch.queries :] - queries) == wanted | set(pairs.text[chosen].tolist())
        added += len(batch.rows) - len(ground.batch(chosen).rows)
    assert added > 0
