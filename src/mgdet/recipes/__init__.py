"""The experiments by name. The paper's table is this folder."""

from __future__ import annotations

import importlib

from mgdet.config import Config
from mgdet.errors import UserError, nearest
from mgdet.recipes import demo, retinanet
from mgdet.recipes.base import Recipe

__all__ = ["RECIPES", "Recipe", "load_recipe"]

RECIPES: dict[str, Recipe] = {
    "retinanet_x101_to_r50": Recipe(
        build=retinanet.retinanet_x101_to_r50,
        student="RetinaNet R50",
        teacher="RetinaNet X101-64x4d (3x, box 41.6)",
        baseline="box 37.4",
        distilled="box 41.0",
        original="retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco",
        checkpoint=retinanet.TEACHER_3X,
    ),
    "retinanet_x101_1x_to_r50": Recipe(
        build=retinanet.retinanet_x101_1x_to_r50,
        student="RetinaNet R50",
        teacher="RetinaNet X101-64x4d (1x, box 41.0)",
        baseline="box 37.4",
        distilled="box 41.0",
        original="retina_rx101_64x4d_distill_retina_r50_fpn_2x_coco",
        checkpoint=retinanet.TEACHER_1X,
    ),
    "retinanet_r50": Recipe(
        build=retinanet.retinanet_r50,
        student="RetinaNet R50",
        baseline="box 37.4",
        original="retinanet_r50_fpn_2x_coco",
        checkpoint="retinanet_r50_fpn_2x_coco_20200131-fdb43119.pth",
    ),
    "retinanet_x101_64x4d": Recipe(
        build=retinanet.retinanet_x101_64x4d,
        student="RetinaNet X101-64x4d",
        baseline="box 41.6",
        original="retinanet_x101_64x4d_fpn_mstrain_640-800_3x_coco",
        checkpoint=retinanet.TEACHER_3X,
    ),
    "demo_teacher": Recipe(build=demo.demo_teacher, student="RetinaNet, large"),
    "demo_student": Recipe(build=demo.demo_student, student="RetinaNet, small"),
    "demo_distilled": Recipe(build=demo.demo_distilled, student="RetinaNet, small", teacher="RetinaNet, large"),
}


def load_recipe(name: str) -> Config:
    """A fresh config of a shipped recipe, or of a user's own, named `module:function`.

    Raises:
        UserError: no such recipe, module or function; the message names the nearest.
    """
    if ":" in name:
        return _own_recipe(name)
    if name not in RECIPES:
        raise UserError(f"there is no recipe '{name}'{nearest(name, RECIPES)}")
    return RECIPES[name].build()


def _own_recipe(name: str) -> Config:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"recipe '{name}': Python finds no module '{error.name}' (is it on PYTHONPATH?)") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"recipe '{name}': no function '{function_name}' there{nearest(function_name, functions)}")
    config = function()
    if not isinstance(config, Config):
        raise UserError(f"recipe '{name}' returned {type(config).__name__}, not mgdet.config.Config")
    return config
