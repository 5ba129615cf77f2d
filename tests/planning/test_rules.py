"""The stated rules: image size, batch and schedule from the numbers of a data set."""

from __future__ import annotations

import numpy as np
import pytest

from mgdet.config import DataConfig, ScheduleConfig
from mgdet.planning.rules import Edges, at_scale, epochs_for, evaluation_interval, fitting_batch, stretched, within

PUBLISHED = Edges(1333, (800, 800))


def sizes(*pairs: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([w for w, _ in pairs]), np.array([h for _, h in pairs])


class TestImageSize:
    def test_small_images_are_not_enlarged(self):
        assert within(PUBLISHED, *sizes((640, 480), (480, 640))) == Edges(640, (480, 480))

    def test_edges_are_multiples_of_32_that_hold_the_image(self):
        assert within(PUBLISHED, *sizes((500, 333))) == Edges(512, (352, 352))

    def test_large_images_keep_the_wanted_size(self):
        assert within(PUBLISHED, *sizes((4000, 3000))) == PUBLISHED

    def test_one_large_image_among_many_decides_nothing(self):
        pairs = [(320, 240)] * 19 + [(4000, 3000)]
        assert within(PUBLISHED, *sizes(*pairs)) == Edges(320, (256, 256))

    def test_a_range_keeps_its_ratio(self):
        assert within(Edges(640, (480, 640)), *sizes((320, 320))) == Edges(320, (256, 320))

    def test_the_shorter_edge_is_never_the_longer_one(self):
        edges = within(Edges(640, (480, 640)), *sizes(*[(640, 100)] * 9, (100, 640)))
        assert edges.short[1] <= edges.long

    def test_a_teachers_scale_takes_the_recipes_range(self):
        assert at_scale(DataConfig(), 1333, 800) == PUBLISHED
        pair = DataConfig(long_edge=640, short_edge=(480, 640))
        assert at_scale(pair, 1333, 800) == Edges(1333, (608, 800))

    def test_an_edge_that_is_no_multiple_stays(self):
        assert at_scale(DataConfig(), 1000, 600) == Edges(1000, (600, 600))


class TestBatch:
    def test_it_is_halved_until_it_fits(self):
        assert fitting_batch(16, 100_000, together=1, fits=lambda images: images <= 5) == 4

    def test_one_image_is_the_last_try(self):
        assert fitting_batch(16, 100_000, together=1, fits=lambda images: False) == 1

    def test_few_images_take_more_steps_instead(self):
        # 300 epochs of 200 images are 60,000 images: 16 to a step would be 3,750 steps.
        assert fitting_batch(16, 200, together=1, fits=lambda images: True) == 8
        assert fitting_batch(16, 214, together=1, fits=lambda images: True) == 16
        assert fitting_batch(8, 214, together=2, fits=lambda images: True) == 8
        assert fitting_batch(8, 200, together=2, fits=lambda images: True) == 4

    def test_not_below_two_for_that(self):
        assert fitting_batch(16, 3, together=1, fits=lambda images: True) == 2

    def test_a_limit_that_is_no_power_of_two(self):
        assert fitting_batch(6, 100_000, together=1, fits=lambda images: True) == 4


class TestSchedule:
    @pytest.mark.parametrize(
        "steps, epochs",
        [(7330, 24), (167, 24), (166, 25), (63, 64), (14, 286), (10, 300), (1, 300)],
    )
    def test_at_least_4000_steps_at_most_300_epochs_and_never_fewer_than_the_recipe(self, steps, epochs):
        assert epochs_for(24, steps) == epochs

    def test_a_recipe_that_is_longer_than_the_cap_stays(self):
        assert epochs_for(500, 1) == 500

    def test_drops_keep_their_shares(self):
        recipe = ScheduleConfig(epochs=24, drops=(16, 22))
        assert stretched(recipe, 24, 7330) == recipe
        assert stretched(recipe, 300, 14).drops == (200, 275)
        assert stretched(recipe, 3, 1000).drops == (2,)
        assert stretched(recipe, 1, 1000).drops == ()

    def test_the_warmup_is_an_eighth_at_most(self):
        recipe = ScheduleConfig(epochs=24, drops=(16, 22))
        assert stretched(recipe, 24, 1000).warmup_steps == 500
        assert stretched(recipe, 3, 16).warmup_steps == 6

    def test_as_many_evaluations_as_in_the_recipe(self):
        assert evaluation_interval(24, 24) == evaluation_interval(24, 3) == 1
        assert evaluation_interval(24, 300) == 12
