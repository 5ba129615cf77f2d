"""The experiments by name. The paper's table is this folder."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys

from mgdet.config import Config
from mgdet.errors import UserError, nearest
from mgdet.recipes import cascade_mask_rcnn, demo, faster_rcnn, mask_rcnn, pair, reppoints, retinanet, solo
from mgdet.recipes.base import Recipe

__all__ = ["RECIPES", "Recipe", "load_recipe", "published_ap"]

RECIPES: dict[str, Recipe] = {
    **retinanet.RECIPES,
    **cascade_mask_rcnn.RECIPES,
    **faster_rcnn.RECIPES,
    **mask_rcnn.RECIPES,
    **reppoints.RECIPES,
    **solo.RECIPES,
    **pair.RECIPES,
    **demo.RECIPES,
}


def load_recipe(name: str) -> Config:
    """A fresh config of a shipped recipe, or of a user's own, named `module:function`.

    The module is looked for in the working folder too.

    Raises:
        UserError: no such recipe, module or function; the message names the nearest.
    """
    if ":" in name:
        return _own_recipe(name)
    if name not in RECIPES:
        raise UserError(f"there is no recipe '{name}'{nearest(name, RECIPES)}")
    return RECIPES[name].build()


def published_ap(config: Config) -> float | None:
    """The published AP of a run's teacher on COCO's val2017, in [0, 1]: of masks where the run measures them first.

    None where nobody published one for this file at this image size.
    """
    for recipe in RECIPES.values():
        if config.teacher is None or not recipe.checkpoint or not config.teacher.weights.endswith(recipe.checkpoint):
            continue
        own = recipe.build()
        sizes = [(data.long_edge, data.short_edge[1], data.square) for data in (config.data, own.data)]
        if own.teacher is not None and sizes[0] == sizes[1] and config.teacher.backbone == own.teacher.backbone:
            kind = "mask" if config.train.metrics[0] == "segm" else "box"
            found = re.search(rf"{kind} ([\d.]+)", recipe.teacher)
            return float(found[1]) / 100 if found else None
    return None


def _own_recipe(name: str) -> Config:
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"recipe '{name}' is incomplete; give MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"recipe '{name}': Python finds no module '{error.name}' (is it on PYTHONPATH?)") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name
        ]
        raise UserError(f"recipe '{name}': no function '{function_name}' there{nearest(function_name, functions)}")
    if any(p.default is p.empty for p in inspect.signature(function).parameters.values()):
        raise UserError(f"recipe '{name}' takes arguments; give a function without any that returns a Config")
    config = function()
    if not isinstance(config, Config):
        raise UserError(f"recipe '{name}' returned {type(config).__name__}, not mgdet.config.Config")
    return config
