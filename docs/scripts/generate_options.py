"""Writes docs/options.md, the table of all options, from the comments in the config files.

    python docs/scripts/generate_options.py

The meaning of a field is the comment directly above it or after it on the same line. The values
come from the configs themselves. A test compares the committed page with the output of `make_page`.
"""

import ast
import importlib
import inspect
import io
import pathlib
import tokenize
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from configs import stage1, stage2
from invnext_jax.checkpointing import run_metadata
from invnext_jax.training import recipe

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs/options.md"
STAGES = {"Stage 1": stage1, "Stage 2": stage2}
INTRO = """\
# Options

Every option of a pretraining run is a field of its config. Set any of them on the command line:

```
python launch/main.py --config=configs/stage1.py:base --workdir=runs/s1 \\
    --config.optimizer.learning_rate=1e-3
```

A field that does not exist is an error. `base` and `tiny` are variants of the model, chosen with
the config file (`configs/stage1.py:tiny`); the last table lists what `large` and `1b` change. Where
the stages differ, a cell has both values. Defaults are in [common.py](../configs/common.py);
[stage1.py](../configs/stage1.py) and [stage2.py](../configs/stage2.py) set what differs by stage.
The last column says whether a run may resume with another value
([checkpoints.md](checkpoints.md)).
This page is generated from the comments in these files: `python docs/scripts/generate_options.py`.
"""
RECIPE = f"""\
## Steps and learning rates

If `total_steps`, `optimizer.warmup_steps`, `optimizer.learning_rate` or
`optimizer.min_learning_rate` is -1, it follows from epochs and base rates
([recipe.md](recipe.md)). With {recipe.PAPER_VIDEOS:,} videos, as in the paper:
"""
EVALUATION = (
    "The section `data` is the one above; 0 in `data.size`, `data.frames` and `data.short_side` "
    "selects the values of the encoder."
)

Configs = Mapping[str, Mapping[str, Any]]  # variant -> stage -> config


class Section(NamedTuple):
    """Documented fields of a config file or of one of its sections."""

    about: str
    fields: dict[str, str]  # name -> meaning


class ConfigComments:
    """Reads the comments of a config file.

    Args:
      path: the file.
    """

    def __init__(self, path: pathlib.Path):
        source = path.read_text()
        self._lines = source.splitlines()
        self._tree = ast.parse(source)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = (token for token in tokens if token.type == tokenize.COMMENT)
        self._comments = {token.start[0]: token.string.lstrip("# ") for token in comments}

    def sections(self) -> dict[str, Section]:
        """Returns the documented sections by name; "" holds the fields at the top level."""
        found = {"": Section("", {})}
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
                continue
            target, name = node.targets[0].value, node.targets[0].attr
            if isinstance(target, ast.Attribute):  # config.data.root = ...
                target, name = target.value, f"{target.attr}.{name}"
            if not isinstance(target, ast.Name) or target.id != "config":
                continue
            about = self._comment(node)
            value = node.value
            is_call = isinstance(value, ast.Call)
            if is_call and isinstance(value.func, ast.Name):  # config.data = data()
                found[name] = self._function(value.func.id)
            elif (
                is_call and value.args and isinstance(value.args[0], ast.Dict)
            ):  # config.mask = ConfigDict({...})
                found[name] = Section(about, dict(self._fields(value.args[0])))
            elif about:
                found[""].fields.setdefault(name, about)
        return found

    def _function(self, name: str) -> Section:
        """Reads the section that a function of the file returns and describes in its docstring."""
        functions = (n for n in self._tree.body if isinstance(n, ast.FunctionDef))
        function = next(node for node in functions if node.name == name)
        dicts = (node for node in ast.walk(function) if isinstance(node, ast.Dict))
        about = " ".join((ast.get_docstring(function) or "").split())
        about = about.removeprefix("Returns the ")
        return Section(about[:1].upper() + about[1:], dict(self._fields(next(dicts))))

    def _fields(self, tree: ast.Dict) -> Iterator[tuple[str, str]]:
        for key, value in zip(tree.keys, tree.values, strict=True):
            if isinstance(key, ast.Constant):
                yield key.value, self._comment(key)
            elif isinstance(value, ast.Subscript):  # **TABLE["key"]
                yield from self._fields(self._table_entry(value.value.id, value.slice.value))

    def _table_entry(self, table: str, entry: str) -> ast.Dict:
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and node.targets[0].id == table:
                keys = [key.value for key in node.value.keys]
                return node.value.values[keys.index(entry)]
        raise ValueError(f"the config file has no table {table!r}")

    def _comment(self, node: ast.AST) -> str:
        """Returns the comment lines directly above a node and the comment after its first line."""
        parts, line = [], node.lineno - 1
        while line in self._comments and self._lines[line - 1].lstrip().startswith("#"):
            parts.insert(0, self._comments[line])
            line -= 1
        if node.lineno in self._comments:
            parts.append(self._comments[node.lineno])
        return " ".join(parts)


def read_sections() -> dict[str, Section]:
    """Returns the sections of a run's config, with the comments of all three config files."""
    sections = ConfigComments(ROOT / "configs/common.py").sections()
    for name in ("stage1", "stage2"):
        for section, more in ConfigComments(ROOT / f"configs/{name}.py").sections().items():
            if section and section in sections:
                more = Section(more.about, {**sections[section].fields, **more.fields})
            if section:
                sections[section] = more
    return sections


def make_page() -> str:
    """Returns the text of docs/options.md."""
    variants = ("base", "tiny", "large", "1b")
    configs = {
        variant: {stage: module.get_config(variant) for stage, module in STAGES.items()}
        for variant in variants
    }
    sections = read_sections()
    parts = [INTRO]
    for name, section in sections.items():
        parts.append(_format_section(f"## {name or 'Top level'}", name, section, configs))
    parts.append(_format_recipes(configs))
    parts.append(_format_large(sections, configs))
    for path in sorted((ROOT / "configs/eval").rglob("[a-z]*.py"), key=lambda path: path.stem):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        # The other configs only set options of these.
        if inspect.signature(module.get_config).parameters:
            parts += _format_evaluation(path, module)
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def _format_section(title: str, name: str, section: Section, configs: Configs) -> str:
    """Formats a title, the text about the section, and a table with a row for each field."""
    lines = [title, "", *([section.about, ""] if section.about else [])]
    resumable = not title.startswith("## Evaluation")
    columns = ["option", "base", "tiny", "meaning", *(["on resume"] if resumable else [])]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for field, meaning in section.fields.items():
        option = f"{name}.{field}" if name else field
        base, tiny = (_cell(configs[variant], option) for variant in ("base", "tiny"))
        row = f"| `{option}` | {base} | {tiny} | {_escape(meaning)} |"
        lines.append(row + (f" {run_metadata.resume_rule(option)} |" if resumable else ""))
    return "\n".join(lines)


def _format_recipes(configs: Configs) -> str:
    """Formats a table of the steps and rates of all variants for the paper's number of videos."""
    lines = ["| run | batch | steps | warm-up steps | peak rate | final rate |"]
    lines.append("|---" * 6 + "|")
    for variant, stages in configs.items():
        for stage, config in stages.items():
            found = recipe.resolve(config, recipe.PAPER_VIDEOS)
            rates = map(_format, (found.learning_rate, found.min_learning_rate))
            counts = (found.batch_size, found.total_steps, found.warmup_steps)
            cells = [f"{stage} {variant}", *(f"{count:,}" for count in counts), *rates]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([RECIPE, *lines])


def _format_large(sections: Mapping[str, Section], configs: Configs) -> str:
    """Formats a table of the options that the large variants change."""
    lines = ["## Large and 1B", "", "| option | base | large | 1b |", "|---|---|---|---|"]
    for name, section in sections.items():
        for field in section.fields:
            option = f"{name}.{field}" if name else field
            cells = [_cell(configs[variant], option) for variant in ("base", "large", "1b")]
            if len(set(cells)) > 1 and option != "variant":
                lines.append(f"| `{option}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_evaluation(path: pathlib.Path, module: types.ModuleType) -> Iterator[str]:
    """Formats the sections of a config in configs/eval/."""
    configs = {variant: {"": module.get_config(variant)} for variant in ("base", "tiny")}
    for name, section in ConfigComments(path).sections().items():
        title = f"## Evaluation: {path.stem}{f', {name}' if name else ''}"
        about = section.about if name else f"Fields of `{path.relative_to(ROOT)}`. {EVALUATION}"
        yield _format_section(title, name, section._replace(about=about), configs)


def _cell(configs: Mapping[str, Any], name: str) -> str:
    """Formats the default of a field, with both values if the stages differ."""
    texts = {}
    for stage, config in configs.items():
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if value is not None else None
        if value is not None:
            texts[stage] = _format(value)
    if len(texts) == len(configs) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{stage}: {text}" for stage, text in texts.items())


def _format(value: Any) -> str:
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        pairs = (f"{key}: {_format(value[key])}" for key in value)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple):
        inner = ", ".join(_format(part) for part in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    return str(value)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(make_page())
    print(f"Wrote {PAGE}")
