"""What images with unknown labels add to an optimiser step, on a network of one layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.arrays import Ints
from assay.errors import TrainingError
from assay.images.augment import Augment
from assay.images.cache import build
from assay.images.decode import Resize
from assay.labels.space import Head, LabelSpace
from assay.metrics.metrics import probabilities_of
from assay.models.backbones import evaluating
from assay.models.decision_rule import DecisionRule
from assay.progress import NoProgress
from assay.training.devices import Hardware
from assay.training.fit_task import Batch, FitTask
from assay.training.loop import fit
from assay.training.losses import ByHead, head_losses
from assay.training.objective import Objective, Targets, counts, dense
from assay.training.processes import Machine, SingleProcess
from assay.training.sampling import Shuffled
from assay.training.semi_supervised import Consistency, PseudoLabelSelector, UnlabelledSettings, Views
from factories import read_folder
from test_loop import COURSE, SPACE, One, job_of, network, same, trained

N = 20
FIX = UnlabelledSettings(threshold=0.5, ratio=2, weight=0.7)
FLEX = UnlabelledSettings(method="flexmatch", threshold=0.6, ratio=2)
KIND, TAGS = SPACE.heads


@dataclass
class Shifted:
    """Twenty images of four numbers; a strong view is a weak one with a little added."""

    inputs: Tensor
    asked: list[tuple[int, list[int], bool]]
    seed: int = 3
    step: int = 1

    @property
    def ids(self) -> list[str]:
        return [f"u{row}.png" for row in range(len(self.inputs))]

    def images(self, number: int, rows: Ints, *, strong: bool) -> Tensor:
        self.asked.append((number, rows.tolist(), strong))
        return self.inputs[rows] + (0.3 if strong else 0.0)


def codes_of_unlabelled() -> list[np.ndarray]:
    """Half of the images have a kind; a tag is known here and there."""
    generator = np.random.default_rng(4)
    kind = np.where(generator.random(N) < 0.5, generator.integers(0, 3, N), -1)
    return [kind, np.where(generator.random((N, 2)) < 0.3, generator.integers(0, 2, (N, 2)), -1)]


def beside(model: nn.Module, settings: UnlabelledSettings = FIX, **changes: Any) -> Consistency:
    """The unlabelled side of a fit of this network."""
    generator = torch.Generator().manual_seed(1)
    views = Shifted(4 * torch.randn(N, 4, generator=generator), [])
    known = [np.array([0, 1, 2]), np.array([[0, 1], [1, 0]])]
    judges = [PseudoLabelSelector(*given, settings) for given in zip(SPACE, known, codes_of_unlabelled(), strict=True)]
    weights = torch.rand(N, 2, generator=generator) + 0.5
    objective = Objective(SPACE, head_losses(SPACE, ByHead()), (1.0, 2.0))
    made = Consistency(model, views, judges, weights, objective, DecisionRule.plain(SPACE), settings, 4)  # type: ignore[arg-type]
    return replace(made, **changes)


def alone() -> Machine:
    return Machine(SingleProcess(), Hardware())


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    return found


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def followed(side: Consistency, count: int = 8, machine: Machine | None = None) -> list[list[str]]:
    """Take one optimiser step's losses downhill; the images of each."""
    shown = []
    for loss, names in side.losses(count, side.network, machine or alone()):
        loss.backward()
        shown.append(names)
    return shown


def plain_fixmatch(side: Consistency, rows: Ints) -> Tensor:
    """The loss as the paper has it, cell by cell."""
    weak, strong = side.network(side.views.inputs[rows]), side.network(side.views.inputs[rows] + 0.3)  # type: ignore[attr-defined]
    kind, tags = codes_of_unlabelled()
    losses, unknown = {0: [], 1: []}, {0: 0.0, 1: 0.0}
    for place, row in enumerate(rows):
        if kind[row] < 0:
            weight = side.weights[row, 0]
            unknown[0] += weight
            p = weak[place, :3].softmax(dim=0)
            if p.max() >= 0.5:
                losses[0].append(weight * F.cross_entropy(strong[place, :3], p.argmax()))
        for tag in np.flatnonzero(tags[row] < 0):
            weight = side.weights[row, 1]
            unknown[1] += weight
            p = weak[place, 3 + tag].sigmoid().detach()
            target = (p >= 0.5).float()  # one half is the threshold: every tag is sure of either
            losses[1].append(weight * F.binary_cross_entropy_with_logits(strong[place, 3 + tag], target))
    heads = [factor * sum(losses[i]) / unknown[i] for i, factor in enumerate((1.0, 2.0))]
    return 0.7 * sum(heads)


def test_the_loss_is_that_of_the_paper_for_all_heads_and_half_labelled_images() -> None:
    model = network()
    side = beside(model)
    shown = followed(side)
    found = gradient(model)
    rows = np.random.default_rng([3, 1, 0]).permutation(N)[:16]
    plain_fixmatch(side, rows).backward()
    torch.testing.assert_close(found, gradient(model))
    assert max(map(len, shown)) <= 4  # never more than a batch at once


@pytest.mark.parametrize("settings", [FIX, FLEX], ids=["fixmatch", "flexmatch"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_have_together_the_gradient_of_one(settings: UnlabelledSettings, ranks: int) -> None:
    model = network()
    whole, one = beside(model, settings), []
    logits = []
    for _ in range(3):
        answered = whole._logits
        whole._logits = lambda *given, of=answered: (logits.append(of(*given)), logits[-1])[1]  # type: ignore[method-assign]
        followed(whole)
        whole._logits = answered  # type: ignore[method-assign]
        one.append(gradient(model))
    sides = [beside(model, settings) for _ in range(ranks)]
    for step, expected in enumerate(one):
        parts, backward = [], set()
        for rank, side in enumerate(sides):
            machine = Machine(One(rank, ranks), Hardware())
            machine.sum = lambda values, of=logits[step]: of  # type: ignore[method-assign]
            backward.add(len(followed(side, machine=machine)))
            parts.append(gradient(model))
        assert len(backward) == 1
        torch.testing.assert_close(torch.stack(parts).mean(dim=0), expected)
    for side in sides:
        assert alike(side.state(), whole.state())


def test_the_parts_of_weak_logits_are_the_whole() -> None:
    side = beside(network())
    rows = np.arange(N)
    parts = []
    for rank in range(3):
        machine = Machine(One(rank, 3), Hardware())
        machine.sum = lambda values: values  # type: ignore[method-assign]
        parts.append(side._logits(rows, machine))
    torch.testing.assert_close(sum(parts), side._logits(rows, alone()))


def test_images_without_a_sure_answer_are_not_shown_strongly() -> None:
    side = beside(network(), FIX.model_copy(update={"threshold": 0.9}))
    shown = [name for names in followed(side) for name in names]
    strong = [row for _, rows, is_strong in side.views.asked if is_strong for row in rows]  # type: ignore[attr-defined]
    assert [f"u{row}.png" for row in strong] == shown
    assert 0 < len(shown) == side.confident < side.drawn == 16


def test_rounds_show_every_image_and_none_twice_in_an_optimiser_step() -> None:
    side = beside(network(), FIX.model_copy(update={"ratio": 1}))
    seen: dict[int, list[int]] = {}
    for _ in range(8):
        before = len(side.views.asked)  # type: ignore[attr-defined]
        followed(side, 5)
        weak = [(number, row) for number, rows, strong in side.views.asked[before:] if not strong for row in rows]  # type: ignore[attr-defined]
        assert len(set(weak)) == len(weak) == 5
        for number, row in weak:
            seen.setdefault(number, []).append(row)
    assert [sorted(rows) for rows in seen.values()] == [list(range(N))] * 2
    assert seen[0] != seen[1]


def test_an_optimiser_step_asks_for_no_more_than_there_are() -> None:
    side = beside(network())
    followed(side, 500)
    assert side.drawn == N


def test_weak_views_are_answered_without_dropout_and_parts_stay_in_their_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, SPACE.width), nn.BatchNorm1d(SPACE.width))
    model.train()
    model[2].eval()
    side = beside(model)
    assert torch.equal(side._logits(np.arange(N), alone()), side._logits(np.arange(N), alone()))
    assert [module.training for module in model] == [True, True, False]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model] == [True, True, False]


def test_a_label_is_what_the_model_would_answer_under_class_weights() -> None:
    shift = np.array([0, 0, 50, 0, 0], np.float32)
    side = beside(network(), rule=replace(DecisionRule.plain(SPACE), shift=shift))
    followed(side, 40)
    assert side.used[0][2] == 0
    plain = beside(network())
    followed(plain, 40)
    assert plain.used[0][2] > 0


def test_metrics_count_what_was_used_and_begin_anew() -> None:
    side = beside(network(), FLEX)
    for _ in range(3):
        followed(side)
    share, shown = side.above_threshold, side.drawn
    assert 0 < share * shown == side.confident
    metrics = side.end_epoch()
    assert {"kind/a", "tags/x absent", "tags/x present", "threshold of kind/a"} <= metrics.keys()
    assert sum(metrics[f"kind/{name}"] for name in "abc") > 0
    assert (side.drawn, side.confident, side.above_threshold) == (0, 0, 0.0)
    assert not any(own.any() for own in side.used)


@pytest.mark.parametrize("settings", [FIX, FLEX], ids=["fixmatch", "flexmatch"])
def test_what_is_put_back_goes_on_as_it_would_have(settings: UnlabelledSettings) -> None:
    model = network()
    whole = beside(model, settings)
    for _ in range(3):
        followed(whole)
    state = {name: value.clone() for name, value in whole.state().items()}
    again = beside(model, settings)
    again.restore(state)
    model.zero_grad()
    for _ in range(3):
        assert followed(whole) == followed(again)
    assert alike(whole.state(), again.state())


def test_nothing_sure_trains_as_without(tmp_path: Path) -> None:
    nothing = FIX.model_copy(update={"threshold": 0.9999999})
    one, two = (job_of(model=network(0.5)) for _ in range(2))
    done, found, _ = trained(tmp_path / "with", replace(one, unlabelled=quiet(one.network, nothing)))
    _, wanted, _ = trained(tmp_path / "without", two)
    assert same(found, wanted)
    assert [row["training"]["above_threshold"] for row in done.history] == [0.0, 0.0]


def quiet(model: nn.Module, settings: UnlabelledSettings) -> Consistency:
    """A side whose images are grey: no answer is surer than the bias makes it."""
    side = beside(model, settings)
    side.views.inputs.zero_()  # type: ignore[attr-defined]
    return side


@pytest.mark.parametrize("method", ["fixmatch", "flexmatch"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("batch", "accumulate"), [(3, 2), (2, 3)])
def test_accumulated_parts_are_one_large_batch(
    batch: int, accumulate: int, mixed: bool, method: str, tmp_path: Path
) -> None:
    settings = FLEX.model_copy(update={"method": method})
    weights, histories = [], []
    for name, sizes in {"whole": (batch * accumulate, 1), "parts": (batch, accumulate)}.items():
        job = job_of(mixed=mixed)
        side = beside(job.network, settings, batch=sizes[0])
        done, after, _ = trained(
            tmp_path / name, replace(job, unlabelled=side), batch=sizes[0], accumulate=sizes[1], clip=1.0, ema=0.9
        )
        weights.append(after)
        histories.append([row["unlabelled"] for row in done.history])
    assert same(*weights, tolerance=1e-6)
    assert histories[0] == histories[1]


def test_the_history_and_the_line_tell_the_share(tmp_path: Path) -> None:
    class Listening(NoProgress):
        lines: list[str] = []  # noqa: RUF012
        metrics: list[Any] = []  # noqa: RUF012

        def line(self, text: str) -> None:
            self.lines.append(text)

        def advance(self, count: int, metrics: Any = None) -> None:
            self.metrics.append(metrics)

    job = job_of()
    progress = Listening()
    job = replace(job, unlabelled=beside(job.network))
    done = fit(job, COURSE, machine=alone(), checkpoint=tmp_path / "c", progress=progress)
    shares = [row["training"]["above_threshold"] for row in done.history]
    assert all(0 < share <= 1 for share in shares)
    for share, line in zip(shares, progress.lines, strict=True):
        assert f"above threshold {share:.4f}" in line
    assert progress.metrics[-1]["above threshold"] == shares[-1]


def test_a_loss_that_is_not_finite_names_the_images(tmp_path: Path) -> None:
    job = job_of()
    side = beside(job.network)
    shown = side.views.images
    side.views.images = lambda *given, strong: shown(*given, strong=strong) / (0.0 if strong else 1.0)  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"not finite \(epoch 1, optimiser step 1\).*Lower lr.*\bu\d+\.png"):
        trained(tmp_path, replace(job, unlabelled=side))


def test_too_little_memory_names_the_batch_to_try(tmp_path: Path) -> None:
    job = job_of()
    side = beside(job.network)

    def greedy(*given: Any, strong: bool) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    side.views.images = greedy  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"does not fit.*batch: 2 and accumulate: 2"):
        trained(tmp_path, replace(job, unlabelled=side))


@pytest.mark.parametrize("method", ["fixmatch", "flexmatch"])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_clusters_are_found_from_two_labels_each(kind: str, method: str, tmp_path: Path) -> None:
    """Two clouds in ten dimensions: a line through four points errs; what all points show puts it right."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(400) % 2
    points = torch.randn(400, 10, generator=generator)
    points[:, 0] += 4.0 * truth - 2
    head = Head("cloud", ("left", "right")) if kind == "multiclass" else Head("cloud", ("right",), "multilabel")
    codes = truth if kind == "multiclass" else truth[:, None]
    space = LabelSpace((head,))
    objective = Objective(space, head_losses(space, ByHead()))

    class Points:
        ids = ("0", "1", "2", "3")

        def expect(self, epoch: int, batches: Iterable[tuple[Ints, Ints]]) -> None:
            pass

        def batch(self, epoch: int, rows: Ints, partners: Ints) -> Batch:
            return Batch(points[rows], (self.truth(rows),))

        def counts(self, epoch: int, rows: Ints, partners: Ints) -> Tensor:
            return counts([self.truth(rows)])

        def truth(self, rows: Ints) -> Targets:
            return Targets(*dense(space, [codes[rows]]), torch.ones(len(rows), 1))

    class Noisy(Shifted):
        def images(self, number: int, rows: Ints, *, strong: bool) -> Tensor:
            noise = torch.randn(len(rows), 10, generator=torch.Generator().manual_seed(number))
            return self.inputs[rows] + (noise if strong else 0.0)

    def accuracy(learns: bool) -> float:
        torch.manual_seed(1)
        model = nn.Linear(10, space.width)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.3, "top_lr": 0.3}])
        settings = UnlabelledSettings(method=method, threshold=0.8, ratio=20)
        unknown = head.unknown(396)
        judge = PseudoLabelSelector(head, codes[:4].numpy(), unknown, settings)
        views: Any = Noisy(points[4:], [])
        side = Consistency(
            model, views, [judge], torch.ones(396, 1), objective, DecisionRule.plain(space), settings, batch=100
        )
        job = FitTask(
            network=model,
            optimizer=optimizer,
            source=Points(),
            order=Shuffled(4, seed=7),
            objective=objective,
            to_training_mode=lambda: None,
            evaluate=lambda rows, logits: {"validation": {}},
            save=lambda which: None,
            unlabelled=side if learns else None,
        )
        trained(tmp_path / f"{learns}", job, epochs=30, width=space.width)
        answered = probabilities_of(space, model(points[4:]).detach().numpy())
        said = answered.argmax(axis=1) if kind == "multiclass" else answered[:, 0] >= 0.5
        return float((said == truth[4:].numpy()).mean())

    alone_, together = accuracy(False), accuracy(True)
    assert alone_ < 0.92
    assert together > 0.95


def test_weak_and_strong_views_are_drawn_apart_and_by_image(colours: Path, tmp_path: Path) -> None:
    samples = read_folder(colours)
    hashes = [None] * len(samples)
    cache, _ = build(samples.ids, samples.paths, hashes=hashes, size=24, resize=Resize(), folder=tmp_path)
    settings = UnlabelledSettings()
    weak, strong = settings.views(Augment(crop=(0.5, 1.0)))
    views = Views(samples.ids, cache, 24, weak, strong, seed=0, step=1, hardware=Hardware())
    rows = np.array([3, 8, 5])
    one, other = views.images(0, rows, strong=False), views.images(0, rows, strong=True)
    assert one.shape == other.shape == (3, 3, 24, 24)
    assert not torch.equal(one, other)
    assert not torch.equal(one, views.images(1, rows, strong=False))
    assert torch.equal(one[[2, 0]], views.images(0, rows[[2, 0]], strong=False))
    assert torch.equal(other[[2, 0]], views.images(0, rows[[2, 0]], strong=True))
