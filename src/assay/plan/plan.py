"""The plan of a run: read, checked and written back.

A plan is YAML text. It becomes a `Document`, values with their lines; `--set` changes the document; then
every part is checked by its settings class, and all problems are reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.json_schema import models_json_schema

from assay.errors import DataError, PlanError
from assay.files import RunFolder
from assay.images.streamed import CacheSettings
from assay.labels.label_files import way_of
from assay.labels.paths import require_source, source_name
from assay.labels.readers.formats import form_of
from assay.labels.readers.read import DataSettings, audit_folder, resolve_paths
from assay.labels.readers.table_files import is_table
from assay.labels.shards import absolute_addresses, address, is_address, names_shards
from assay.metrics.metrics import PlanMetric
from assay.models.backbones import Features
from assay.models.classifier import AUTO, ModelSettings
from assay.plan.checks import Check, StepTable, without_effect
from assay.plan.overrides import override
from assay.plan.problems import refuse, value_text
from assay.plan.recipes import recipe_text
from assay.plan.sweep_settings import SweepSettings
from assay.plan.yaml_lines import Document, KeyPath, dots, read, write
from assay.settings import Choice, Settings, with_parts, with_sources
from assay.steps.base import StepPlan
from assay.training.devices import HardwareSettings

PLANS = frozenset({".yaml", ".yml"})


class Plan(Settings):
    """All that decides a run: the data, the model, and the steps in order."""

    data: DataSettings = Field(description="Where images and labels are, and how they are split.")
    model: ModelSettings = Field(default_factory=ModelSettings, description="The backbone and the head on it.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Where every random draw starts from.")
    hardware: HardwareSettings | None = Field(
        default=None, description="Precision and memory layout; timed and chosen where nothing is said."
    )
    cache: CacheSettings | None = Field(default=None, description="The disk that decoded images may take.")
    track: Track = Field(
        default=(), description="Where every epoch is logged: `tensorboard`, `mlflow`, `wandb`, or a list of these."
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Minutes that the whole command may take; the steps are chosen by them as it goes.",
    )
    steps: tuple[StepPlan, ...] = Field(
        default=(),
        description="What to do, in order; where there are none, steps are chosen that suit the data.",
    )
    repairs: bool = Field(
        default=True,
        description="Whether steps that are chosen may change labels, add some, or weigh classes. A plan that names "
        "its steps leaves out those that it does not want.",
    )
    take: Literal["best_step", "last_step"] = Field(
        default="last_step",
        description="Whose model is handed on: of the last step, or of an earlier one that validates better beyond "
        "chance. A plan that names no steps takes the best.",
    )
    metric: PlanMetric | None = Field(
        default=None,
        description="What the model is to be best at: it sums the run up, `take` compares it, and it decides class "
        "weights, prior, monitor and thresholds where steps do not say. By default accuracy, or micro F1 where all "
        "heads are tags, sums up, and nothing is decided by it.",
    )
    sweep: SweepSettings | None = Field(
        default=None, description="A search over values of this plan, for `assay sweep` to carry out."
    )

    def require_consistent(self) -> None:
        if self.minutes is not None and self.steps:
            raise ValueError(
                "minutes chooses the steps, and the plan names its own; drop minutes, or take the plan without steps"
            )
        if not self.repairs and self.steps:
            raise ValueError(
                "repairs: false is for steps that are chosen, and the plan names its own; drop repairs, and those of "
                "the steps that change labels (`assay ablate` runs a plan without each of its repairs)"
            )
        if self.sweep is not None and self.model.backbone == AUTO:
            raise ValueError(f"backbone: {AUTO} in a search: list the backbones under sweep.over.model.backbone")


@dataclass(frozen=True)
class LoadedPlan:
    """A plan, and where it came from."""

    plan: Plan
    base: Path  # relative paths in the plan start from here
    source_name: str  # of the plan file, the folder or the table, without its suffix
    later: tuple[str, ...] = ()  # KEY=VALUE for steps that are not chosen yet


CHOOSING = ("minutes", "repairs")
"""Keys of a plan that say how its steps are chosen; a plan whose steps are chosen has them no more."""


def step_table() -> StepTable:
    """Return the settings of every kind of step."""
    from assay.steps import STEPS

    return {name: step.settings for name, step in STEPS.items()}


def parse(text: str, name: str, *, overrides: Sequence[str] = (), steps: StepTable | None = None) -> Plan:
    """Return the plan in a text; `name` stands before line numbers in messages. `overrides` are KEY=VALUE.

    Raises PlanError that lists what is wrong, by line and key path.
    """
    return _plan(read(text, name), overrides, steps or step_table())


def load(path: Path, *, overrides: Sequence[str] = (), steps: StepTable | None = None) -> LoadedPlan:
    """Return the plan in a file."""
    return _loaded(_read_file(path), path, overrides, steps)


def from_source(
    source: Path,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    steps: StepTable | None = None,
) -> LoadedPlan:
    """Return the plan for a folder, a table, or a YAML file with `data:` in it.

    A recipe adds the keys that the source does not have. Without any steps, `plan.steps` is empty and the values to
    set in them wait in `later`; see `complete`. Raises PlanError, or DataError where there is nothing at
    `source`.
    """
    document = _document(source)
    if recipe is not None:
        document = _joined(document, read(recipe_text(recipe), f"recipe {recipe}"))
    return _loaded(document, source, overrides, steps)


def complete(
    loaded: LoadedPlan,
    chosen: Sequence[Mapping[str, Any]],
    *,
    steps: StepTable | None = None,
    unfinished: bool = False,
) -> LoadedPlan:
    """Return the plan with steps chosen for it, each `{kind: settings}`, and the values in `later` set.

    Of an `unfinished` plan the last steps are not chosen yet.
    """
    given = {"take": "best_step"} | {name: value for name, value in plain(loaded.plan).items() if name not in CHOOSING}
    whole = Document({**given, "steps": [dict(step) for step in chosen]}, "the default plan")
    plan = _plan(whole, loaded.later, steps or step_table(), unfinished=unfinished)
    return replace(loaded, plan=plan, later=())


def with_backbone(loaded: LoadedPlan, backbone: str) -> LoadedPlan:
    """Return the plan with a backbone wherever it says `auto`."""
    return replace(loaded, plan=with_parts(loaded.plan, ModelSettings, lambda model: model.chosen(backbone)))


def with_features(loaded: LoadedPlan, features: Features) -> LoadedPlan:
    """Return the plan with these features of its model, where it names none."""

    def change(model: ModelSettings) -> ModelSettings:
        given = "features" in model.model_fields_set
        return model if given else model.model_copy(update={"features": features})

    return replace(loaded, plan=with_parts(loaded.plan, ModelSettings, change))


def for_one_run(loaded: LoadedPlan) -> LoadedPlan:
    """Return the plan. Raises PlanError where it is a search, which is many runs."""
    if loaded.plan.sweep is not None:
        raise PlanError(
            f"{loaded.source_name}: the plan is a search (sweep:), many runs. Carry it out with `assay sweep`, or "
            "train the plan without it: --set sweep=null."
        )
    return loaded


def without_search(plan: Plan) -> Plan:
    """Return the plan without its search."""
    kept = {name: getattr(plan, name) for name in Plan.model_fields if name != "sweep"}
    return Plan.model_construct(plan.model_fields_set - {"sweep"}, **kept)


def anchored(loaded: LoadedPlan) -> Plan:
    """Return the plan with absolute paths to data, weights and other runs: a copy elsewhere means the same."""
    data, base = loaded.plan.data, loaded.base
    plan = with_sources(loaded.plan, lambda source, path: os.path.abspath(base / path))
    update: dict[str, object] = {**resolve_paths(data, base=base), "shards": absolute_addresses(data.shards, base)}
    if data.audit is not None:
        update["audit"] = data.audit.model_copy(update={"folder": audit_folder(data.audit, base=base)})
    return plan.model_copy(update={"data": data.model_copy(update=update)})


def to_yaml(plan: Plan, *, full: bool = False) -> str:
    """Return a plan as YAML that `parse` reads back as an equal plan.

    It holds what was set and what differs from the defaults, or, with `full`, every value that is not
    empty: that still means the same when a default has changed.
    """
    return write(plain(plan, full=full))


def plain(settings: BaseModel, *, full: bool = False) -> Any:
    """Return settings as mappings, lists and scalars, as a plan spells them."""
    if isinstance(settings, StepPlan):
        return {settings.kind: plain(settings.settings, full=full)}
    values = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        is_kind = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        is_set = name in settings.model_fields_set or value != field.get_default(call_default_factory=True)
        is_empty = value is None or value in ((), [], {})
        if is_set or is_kind or (full and not is_empty):
            values[field.alias or name] = _plain(value, full)
    return values["kind"] if isinstance(settings, Choice) and set(values) == {"kind"} else values


def json_schema(*, steps: StepTable | None = None) -> dict[str, object]:
    """Return the JSON Schema of a plan, for editors that complete and check it."""
    table = steps or step_table()
    models: list[type[BaseModel]] = list(dict.fromkeys([Plan, *table.values()]))
    refs, definitions = models_json_schema([(model, "validation") for model in models])
    schema = definitions["$defs"]
    kinds = {name: refs[settings, "validation"] for name, settings in table.items()}
    schema["StepPlan"] = {
        "description": "One step: its kind, and its settings.",
        "anyOf": [
            {"type": "string", "enum": [name for name in table if not _required(table[name])]},
            *(_single_key(name, kinds[name], table[name]) for name in table),
        ],
    }
    whole = schema.pop("Plan")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A plan of Assay"}
    return {**whole, **head, "$defs": schema}


def _plan(document: Document, overrides: Sequence[str], table: StepTable, *, unfinished: bool = False) -> Plan:
    if not isinstance(document.value, dict) or not document.value:
        holds = "is empty" if not document.value else f"holds {value_text(document.value)}"
        raise PlanError(
            f"{document.name} {holds}; a plan is a mapping with at least `data:` in it. "
            "Begin with `data: {folder: photos/}`; `assay recipes` lists plans to start from."
        )

    def schema() -> Mapping[str, Any]:  # a plan that is right needs none
        return _schema_of(tuple(table.items()))

    for text in overrides:
        document = override(document, text, schema())
    check = Check(table, schema)
    plan = check.settings(Plan, document, ())
    problems = check.problems
    if plan is not None:
        problems = list(without_effect(plan.steps, ("steps",), learnt_later=unfinished))
    if plan is None or problems:
        raise refuse(document, problems)
    return plan


@lru_cache(maxsize=4)
def _schema_of(kinds: tuple[tuple[str, type[Settings]], ...]) -> Mapping[str, Any]:
    """Return the schema of a plan with these kinds of steps; it takes a tenth of a second, once."""
    return json_schema(steps=dict(kinds))


def _loaded(document: Document, source: Path, overrides: Sequence[str], table: StepTable | None) -> LoadedPlan:
    given = any(text.partition("=")[0].strip() == "steps" for text in overrides)
    waits = isinstance(document.value, dict) and not document.value.get("steps") and not given
    later = tuple(text for text in overrides if waits and text.startswith("steps."))
    plan = _plan(document, [text for text in overrides if text not in later], table or step_table())
    path = Path(os.path.abspath(source))  # `photos/..` has a name too
    is_plan = not path.is_dir() and not is_table(path)
    if later and plan.minutes is not None:
        raise PlanError(
            f"--set {later[0]}: minutes chooses the steps as it goes, so there are none to change. Drop one."
        )
    return LoadedPlan(
        plan,
        base=path.parent if is_plan else Path.cwd(),
        source_name=source_name(source),
        later=later,
    )


def _document(source: Path) -> Document:
    """Return the plan file of a source, or for other data a plan with the data alone."""
    require_source(source)
    if names_shards(source):
        return Document({"data": {"shards": absolute_addresses([address(source)], Path.cwd())[0]}}, address(source))
    if is_address(str(source)) and is_table(source):
        return Document({"data": {"table": address(source)}}, address(source))
    if RunFolder(source).is_read:
        raise PlanError(f"{source}: is the folder of a run, not of images. Give its plan: {RunFolder(source).plan}")
    form = form_of(source) or ("folder" if source.is_dir() else "table" if is_table(source) else None)
    if form:
        return Document({"data": {form: str(source.absolute())}}, str(source))
    if (way := way_of(source)) is not None:
        raise DataError(way)
    if source.suffix.lower() in PLANS:
        return _read_file(source)
    raise PlanError(
        f"{source}: is no folder of images, no table (.csv, .tsv, .parquet) and no plan (.yaml). "
        "To label single images, use `assay predict`."
    )


def _read_file(path: Path) -> Document:
    try:
        return read(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise PlanError(f"{path}: the plan cannot be read ({reason}). Check the path.") from error


def _joined(document: Document, recipe: Document) -> Document:
    """Return a document with the keys of a recipe added. Raises PlanError where both have the same key."""
    if not isinstance(document.value, dict) or not isinstance(recipe.value, dict):
        return document
    for key, value in recipe.value.items():
        inside = document.value.get(key)
        both = key == "data" and isinstance(value, dict) and isinstance(inside, dict)
        paths: list[KeyPath] = [(key, name) for name in value] if both else [(key,)]
        for path in paths:
            if path[-1] in document.at(path[:-1]):
                raise PlanError(
                    f"{document.where(path)}: {dots(path)} is set there and in {recipe.name}. "
                    "Remove it from the plan, or leave out --recipe."
                )
            document = document.put(path, recipe.at(path), source=recipe.part(path))
    return document


def _plain(value: Any, full: bool) -> Any:
    if isinstance(value, BaseModel):
        return plain(value, full=full)
    if isinstance(value, Mapping):
        return {str(key): _plain(inside, full) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inside, full) for inside in value]
    return str(value) if isinstance(value, Path) else value


def _required(kind: type[Settings]) -> bool:
    return any(field.is_required() for field in kind.model_fields.values())


def _single_key(name: str, reference: Mapping[str, Any], kind: type[Settings]) -> Mapping[str, Any]:
    """Return the schema of `name: settings`; the settings may be left empty where none is required."""
    value = reference if _required(kind) else {"anyOf": [reference, {"type": "null"}]}
    about = (kind.__doc__ or "").strip().split("\n")[0]
    return {
        "type": "object",
        "description": about,
        "properties": {name: {"description": about, **value}},
        "required": [name],
        "additionalProperties": False,
    }


Tracker = Literal["tensorboard", "mlflow", "wandb"]


Track = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value,
        json_schema_input_type=Tracker | tuple[Tracker, ...],
    ),
]
"""One tracker or a list of them."""
