"""Look up the recipe for a name, a file, a precision or an object; list the registered recipes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from edgekit.errors import (
    InvalidFileError,
    PluginError,
    UnknownPrecisionError,
    UnknownRecipeError,
    UsageError,
    near_names,
    option,
)
from edgekit.files.foreign import read_toml
from edgekit.plugin._registry import Registration, manager
from edgekit.precision import Precision, find_precision, limits
from edgekit.precision import catalogue as precisions
from edgekit.recipe import Clause, Recipe, Rules, Uniform

#: A recipe, a precision, the name of either, or the path of a TOML file.
AnyRecipe = str | os.PathLike[str] | Precision | Recipe
SUFFIX = ".toml"
_KEYS = ("name", "base", "tensors")


def find_recipe(recipe: AnyRecipe, format_name: str, to: Path | None = None) -> Recipe:
    """Return the recipe of that name for the format, else one with the precision of that name for every weight matrix.

    Args:
        recipe: a name, upper and lower case alike; a path that ends in ``.toml`` (`read_recipe`); or an object; names
            in its rules are looked up.
        format_name: of the target.
        to: the target, for messages.

    Raises:
        UnknownRecipeError: neither a recipe nor a precision.
        UsageError: the object is not a recipe.
        InvalidFileError, MissingFileError: about the file.
    """
    if isinstance(recipe, os.PathLike) or (isinstance(recipe, str) and recipe.lower().endswith(SUFFIX)):
        recipe = read_recipe(recipe)
    if isinstance(recipe, Rules):
        return recipe.resolved(
            lambda name: target_precision(name, format_name), lambda base: find_recipe(base, format_name, to)
        )
    if isinstance(recipe, Precision):
        return Uniform(recipe)
    if isinstance(recipe, str):
        return _named(recipe, format_name, to)
    if not (hasattr(recipe, "name") and callable(getattr(recipe, "plan", None))):
        raise UsageError(
            f"{recipe!r:.80} is not a recipe; give the name of a recipe (Q4_K_M) or of a precision (ggml:Q4_0), "
            'or make one with edgekit.Recipe.of({"*": "Q4_0"})'
        )
    return recipe


def _named(name: str, format_name: str, to: Path | None) -> Recipe:
    suited = {r.name: r for r in manager().all("recipes") if _suits(r, format_name)}
    match = name if name in suited else next((known for known in suited if _folded(known) == _folded(name)), None)
    if match is not None:
        loaded: Recipe = manager().load("recipes", match)
        return loaded
    try:
        return Uniform(target_precision(name, format_name))
    except UnknownPrecisionError as error:
        raise UnknownRecipeError(_unknown(name, list(suited), format_name, to, error)) from error


def _suits(registration: Registration, format_name: str) -> bool:
    return format_name in registration.options.get("formats", (format_name,))


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")


def target_precision(name: str, format_name: str) -> Precision:
    """Return the precision of that name; a short name is looked up in the target format's conventions first.

    Raises:
        UnknownPrecisionError: no convention has it, or several do and none is the format's.
    """
    conventions = getattr(manager().load("formats", format_name), "conventions", ())
    for convention in conventions if ":" not in name else ():
        try:
            return find_precision(f"{convention}:{name}")
        except UnknownPrecisionError:
            continue
    return find_precision(name)


def _unknown(name: str, suited: list[str], format_name: str, to: Path | None, error: Exception) -> str:
    meant = "" if to is None or to.suffix else f" ({to} has no suffix, which means a directory of format {format_name})"
    elsewhere = [r for r in manager().all("recipes") if _folded(r.name) == _folded(name)]
    ambiguous = "ambiguous" in str(error)
    if elsewhere and not ambiguous:
        formats = [each for r in elsewhere for each in r.options.get("formats", ())]
        return (
            f"{elsewhere[0].name} is a recipe for {' and '.join(formats)}, and the target's format is {format_name}"
            f"{meant}; {' or '.join(map(_how_to_choose, formats))}"
        )
    if ambiguous:
        return f"{name!r} is not a recipe for {format_name}{meant}, and as a {error}"
    others = [r.name for r in manager().all("recipes")]
    names = [*suited, *(p.name for p in precisions()), *others]
    near = near_names(name, (n.partition(":")[2] or n for n in reversed(names)))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    hint = (f"; {limits(name)}" if limits(name) else "") + hint
    return (
        f"{name!r} is neither a recipe for {format_name}{meant} nor a precision{hint} "
        f"(`edgekit recipes --format {format_name}` and `edgekit precisions` list all)"
    )


def _how_to_choose(format_name: str) -> str:
    """Return how to select a format for the target: by suffix if it has one, else by option."""
    suffixes = next((r.options.get("suffixes") for r in manager().all("formats") if r.name == format_name), ())
    by_suffix = f"name a file that ends in {suffixes[0]}, or say " if suffixes else "say "
    return by_suffix + option("format", format_name)


def read_recipe(path: str | os.PathLike[str]) -> Rules:
    r"""Read a recipe from a TOML file.

    The table ``tensors`` holds the rules, in order: a pattern of tensor names and a precision. ``base`` names the
    recipe or the precision for what no pattern matches, ``name`` is the recipe's name; the default is the file's.

    Raises:
        MissingFileError: it cannot be read.
        InvalidFileError: it is not TOML, or has unknown keys or wrong types; names them.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("mine.toml").write_text('base = "Q4_K_M"\n[tensors]\n"*attn_v*" = "Q8_0"\n')
        >>> read_recipe("mine.toml").rules[0].shown
        '*attn_v*=Q8_0'
    """
    file = Path(path)
    data = read_toml(file, "a recipe")
    for key in data:
        if key not in _KEYS:
            raise InvalidFileError(f"{file}: key {key!r}; a recipe has {', '.join(_KEYS)}")
    for key in ("name", "base"):
        if not isinstance(data.get(key, ""), str):
            raise InvalidFileError(f"{file}: {key} is {data[key]!r:.80}; write a string")
    base = data.get("base") or None
    if base is not None and base.lower().endswith(SUFFIX):
        raise InvalidFileError(
            f"{file}: base is the file {base}; name a recipe or a precision, and write the rules here"
        )
    try:
        return Recipe.of(data.get("tensors", {}), base, name=data.get("name") or file.stem)
    except UsageError as error:
        raise InvalidFileError(f"{file}: table tensors: {error}") from error


def recipe_toml(recipe: Rules) -> str:
    r"""A recipe as the text of a TOML file, which `read_recipe` reads again.

    Raises:
        UsageError: its base is an object without a name that is looked up.

    Example:
        >>> print(recipe_toml(Recipe.of({"*attn_v*": "Q8_0"}, "Q4_K_M", name="better values")))
        name = "better values"
        base = "Q4_K_M"
        <BLANKLINE>
        [tensors]
        "*attn_v*" = "Q8_0"
        <BLANKLINE>
    """
    base = recipe.base.name if isinstance(recipe.base, Precision) else recipe.base
    if not (base is None or isinstance(base, str)):
        raise UsageError(f"recipe {recipe.name!r}: its base is an object, which a file cannot hold; give its name")
    lines = [f"name = {_quoted(recipe.name)}", *([f"base = {_quoted(base)}"] if base else []), "", "[tensors]"]
    return "\n".join([*lines, *(f"{_quoted(r.pattern)} = {_quoted(str(r.precision))}" for r in recipe.rules)]) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@attrs.frozen
class Listed:
    """A registered recipe, as `edgekit recipes` shows it.

    Attributes:
        name: by which it is selected.
        formats: that it applies to; ``*`` for all.
        distribution: that registers it.
        clauses: its rules in words; empty if it describes none.
        error: why it cannot be loaded; empty otherwise.
    """

    name: str
    formats: tuple[str, ...]
    distribution: str
    clauses: tuple[Clause, ...]
    error: str = ""


def list_recipes(format_name: str | None = None) -> Iterator[Listed]:
    """Return all registered recipes, or those of one format; a recipe that does not load is listed with its error."""
    for registration in manager().all("recipes"):
        if format_name is None or _suits(registration, format_name):
            yield _listed(registration)


def _listed(registration: Registration) -> Listed:
    formats = tuple(registration.options.get("formats", ("*",)))
    try:
        recipe = registration.load()
        clauses = tuple(recipe.describe()) if hasattr(recipe, "describe") else ()
    except PluginError as error:
        return Listed(registration.name, formats, registration.distribution, (), str(error))
    return Listed(registration.name, formats, registration.distribution, clauses)


__all__ = ["AnyRecipe", "Listed", "find_recipe", "list_recipes", "read_recipe", "recipe_toml", "target_precision"]
