"""A recipe in words and as a table, for a reader who does not know the option names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from icrl.config import EvaluateConfig, Recipe, SourceConfig
from icrl.recipe_json import recipe_to_json

MAX_OPTION_LENGTH = 200


def options_text(options: Mapping[str, Any]) -> str:
    """``height 9, horizon 20``; long values are cut."""
    return ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in options.items())


def recipe_words(recipe: Recipe) -> str:
    """What the run did, in a paragraph."""
    family, collect, model, train = recipe.family, recipe.collect, recipe.model, recipe.train
    family_options = f" ({options_text(family.options)})" if family.options else ""
    steps = collect.num_histories * collect.steps_per_history
    return (
        f"Tasks come from the family {family.name}{family_options}. {_sources_words(collect.sources)} left "
        f"{collect.num_histories:,} histories of {collect.steps_per_history:,} steps each on training tasks ({steps:,} steps in all). "
        f"A transformer of {model.num_layers} layers and width {model.width} reads a window of {model.window:,} tokens and "
        f"{_objective_words(recipe)}. It was trained for {train.steps:,} steps on batches of {train.batch_size} windows; the checkpoint "
        f"was chosen on validation tasks. Each evaluation below says which tasks it is on; the weights are frozen in all of them."
    )


def evaluation_words(config: EvaluateConfig | Mapping[str, Any]) -> str:
    """How an evaluation was played, in a phrase."""
    get = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name)
    if get("mode") == "offline":
        context = "uniformly random" if get("context") == "random" else "expert"
        return f"offline, a fixed context of {get('context_size'):,} {context} transitions"
    episodes = get("episodes")
    grows = "grows between the episodes" if get("append") == "episode" else "grows"
    return f"online, an empty context that {grows} over {episodes:,} episode{'s' if episodes != 1 else ''}"


def _sources_words(sources: Sequence[SourceConfig]) -> str:
    """The source agents with their options."""
    names = []
    for source in sources:
        details = options_text(source.options) + (" on scattered states" if source.scattered else "")
        names.append(f"{source.name}{f' ({details.strip()})' if details else ''}")
    kind = "The source agent" if len(names) == 1 else "The source agents"
    return f"{kind} {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}"


def _objective_words(recipe: Recipe) -> str:
    """What the policy is trained to predict."""
    if recipe.objective.name == "dpt":
        return "learns the optimal action for every prefix of the context (Decision-Pretrained Transformer)"
    thinned = (
        f", of which every {recipe.objective.keep_every}th episode is kept" if recipe.objective.keep_every > 1 else ""
    )
    return f"learns to predict the source's own actions from its history{thinned} (Algorithm Distillation)"


def recipe_rows(recipes: Sequence[Recipe]) -> tuple[tuple[str, ...], ...]:
    """One row per option, one column per recipe; the evaluations are described elsewhere."""
    flat = [flatten({k: v for k, v in recipe_to_json(r).items() if k != "evaluations"}) for r in recipes]
    names = list(dict.fromkeys(name for options in flat for name in options))
    return tuple((name, *(options.get(name, "–") for options in flat)) for name in names)


def differing(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """The rows whose values are not all equal."""
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def flatten(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        items = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        items = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {name: _short(value)}
    return {key: text for prefix, item in items for key, text in flatten(item, prefix).items()}


def _short(value: Any) -> str:
    """A value as text: no quotes, no braces, thousands apart, cut where long."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:,g}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(map(_short, value)) or "none"
    else:
        text = "none" if value == {} else str(value)
    return text if len(text) <= MAX_OPTION_LENGTH else text[: MAX_OPTION_LENGTH - 1] + "…"
