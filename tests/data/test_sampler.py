"""The order of images: groups, whole steps, any start, any split over processes."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mgdet.data import sampler as samplers

PORTRAIT = [i % 3 == 0 for i in range(23)]  # 8 portrait, 15 landscape


def make(
    batch=2, accumulate=1, rank=0, world_size=1, seed=0, start_step=0, flip=0.5, portrait=PORTRAIT, low=640, edge_step=1
):
    return samplers.TrainSampler(
        portrait,
        batch=batch,
        accumulate=accumulate,
        rank=rank,
        world_size=world_size,
        seed=seed,
        long_edge=1333,
        short_edge=(low, 800),
        short_edge_step=edge_step,
        flip=flip,
        start_step=start_step,
    )


def take(sampler, num_batches):
    return list(islice(sampler, num_batches))


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 16, 40])
def test_an_epoch_holds_every_image_in_steps_of_one_orientation(batch):
    sampler = make(batch)
    assert sampler.steps_per_epoch == int(np.ceil(8 / batch) + np.ceil(15 / batch))
    steps = take(sampler, sampler.steps_per_epoch)
    assert all(len({PORTRAIT[view.index] for view in step}) == 1 for step in steps)
    assert all(len(step) == batch for step in steps)
    times = Counter(view.index for step in steps for view in step)
    assert set(times) == set(range(23))
    for portrait in (True, False):  # filled up evenly
        group = [times[i] for i in range(23) if PORTRAIT[i] == portrait]
        assert max(group) - min(group) <= 1


@pytest.mark.parametrize("start", [1, 5, 12, 13, 30])
def test_any_step_can_be_the_first(start):
    whole = take(make(accumulate=2), 2 * 40)
    assert take(make(accumulate=2, start_step=start), 2 * 10) == whole[2 * start : 2 * start + 20]


@pytest.mark.parametrize(("batch", "accumulate", "world_size"), [(4, 1, 2), (2, 1, 4), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_every_split_draws_the_same_views(batch, accumulate, world_size):
    steps = 11
    expected = [Counter(step) for step in take(make(8), steps)]
    ranks = [take(make(batch, accumulate, rank, world_size), steps * accumulate) for rank in range(world_size)]
    for k in range(steps):
        drawn = Counter(v for rank in ranks for micro in rank[k * accumulate : (k + 1) * accumulate] for v in micro)
        assert drawn == expected[k]


def test_epochs_and_seeds_differ():
    steps = make().steps_per_epoch
    first, second = take(make(), 2 * steps)[:steps], take(make(), 2 * steps)[steps:]
    assert first != second
    assert first != take(make(seed=1), steps)
    assert second != take(make(seed=1), steps)
    assert Counter(PORTRAIT[step[0].index] for step in first) == Counter(PORTRAIT[step[0].index] for step in second)


def test_orientations_alternate_at_random():
    sampler = make(batch=4)
    kinds = [PORTRAIT[step[0].index] for step in take(sampler, 10 * sampler.steps_per_epoch)]
    epochs = {tuple(kinds[i : i + sampler.steps_per_epoch]) for i in range(0, len(kinds), sampler.steps_per_epoch)}
    assert len(epochs) > 3


def test_edges_and_flips_are_drawn_over_their_whole_range():
    views = [view for batch in take(make(8, low=798), 200) for view in batch]
    assert Counter(view.short_edge for view in views).keys() == {798, 799, 800}
    assert {view.long_edge for view in views} == {1333}
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6
    assert not any(view.flip for batch in take(make(flip=0.0), 50) for view in batch)
    assert all(view.flip for batch in take(make(flip=1.0), 50) for view in batch)


def test_edges_in_steps_start_at_the_lowest_and_never_pass_the_highest():
    for step, expected in ((32, {640, 672, 704, 736, 768, 800}), (100, {640, 740}), (200, {640})):
        views = [view for batch in take(make(8, edge_step=step), 200) for view in batch]
        assert {view.short_edge for view in views} == expected


def test_one_orientation_alone():
    assert {view.index for batch in take(make(portrait=[True, True, True]), 2) for view in batch} == {0, 1, 2}


def test_every_image_has_one_test_view():
    views = samplers.test_views(7, 1333, 800)
    assert [view.index for view in views] == list(range(7))
    assert {(v.long_edge, v.short_edge, v.flip) for v in views} == {(1333, 800, False)}


def test_groups_are_of_one_size_and_full_but_for_the_last():
    items = [(i, (32, 64) if i % 3 else (64, 32)) for i in range(11)]
    groups = list(samplers.by_size(items, lambda item: item[1], 3))
    assert [[i for i, _ in group] for group in groups] == [[1, 2, 4], [0, 3, 6], [5, 7, 8], [9], [10]]
    impatient = samplers.by_size(items, lambda item: item[1], 8, most=4)
    assert [[i for i, _ in group] for group in impatient] == [[0, 3], [1, 2, 4, 5], [6, 9], [7, 8, 10]]
