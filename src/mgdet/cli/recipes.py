"""`mgdet recipes`"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from mgdet.cli.parsing import parse, say
from mgdet.recipes import RECIPES, Recipe

RECIPE_KINDS = {
    "distillation": "Teacher -> student: the config is the original MGD's, the checkpoint is the teacher's",
    "student": "Students alone: the config and the checkpoint are MMDetection's",
    "teacher": "Teachers to train: the config and the checkpoint are MMDetection's",
    "any": "Any teacher -> any student, on your own data",
    "demo": "What mgdet demo trains",
}


@dataclass(kw_only=True)
class RecipesArguments:
    """List what can be trained, and what is published about it."""


def run(arguments: list[str]) -> int:
    """`mgdet recipes`"""
    parse(RecipesArguments, arguments, "recipes")
    console = Console(soft_wrap=True, highlight=False)
    for kind, title in RECIPE_KINDS.items():
        console.print(f"{title}\n", style="bold underline", markup=False)
        for name, recipe in RECIPES.items():
            if recipe.kind == kind:
                console.print(f"{name:<47}{_published(recipe)}".rstrip(), style="bold", markup=False)
                console.print("\n".join(f"    {line}" for line in _description(recipe)), end="\n\n", markup=False)
    say("mAP on COCO val2017 as published, in percent. A recipe of your own is MODULE:FUNCTION.")
    return 0


def _published(recipe: Recipe) -> str:
    return f"{recipe.baseline} -> {recipe.distilled} with MGD" if recipe.distilled else recipe.baseline


def _description(recipe: Recipe) -> list[str]:
    lines = [f"{recipe.teacher} -> {recipe.student}" if recipe.teacher else recipe.student]
    lines += [f"config      {recipe.original}"] if recipe.original else []
    lines += [f"checkpoint  {recipe.checkpoint}"] if recipe.checkpoint else []
    return lines
