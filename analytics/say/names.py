"""Names of configurations in words: the kind of work, such as `tiny`, and what differs, such as `2 devices, bf16`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from analytics.quantities import CATALOGUE, quantity
from analytics.runs.frame import measured_commands, of_tables, piece, telling, work_arguments
from analytics.runs.recost import sites
from analytics.runs.selection import TOGETHER
from analytics.say.blocks import command
from analytics.text import counted, interval, printable, scale
from bench.errors import UserError
from bench.figures.flags import PUBLISH_REPEATS, PUBLISH_SECONDS
from bench.record import Status
from bench.schema import AXES, COMMAND, MEASURE, program_name
from bench.suites.load import SITE_OPTIONS, load_suite
from bench.workloads.command import CommandArgs

_NAMED = ("preset", "architecture", "pretrained", "objective", "data", "text", "mix", "argv", "name")
"""Last parts of fields whose values go without the name of the field."""
_WORKLOADS = {"decoder_lm": "decoder LM", "lstm_lm": "LSTM", "text_cnn": "text CNN"}
_PHRASES = {
    "devices": ("1 device", "{} devices"),
    "num_nodes": ("1 node", "{} nodes"),
    "threads_per_device": ("1 thread per device", "{} threads per device"),
    "batch_size_per_device": ("batch 1 per device", "batch {} per device"),
    "global_batch_size": ("batch 1", "batch {}"),
    "gradient_accumulation_steps": ("no accumulation", "{} accumulation steps"),
    "measure_steps": ("1 step", "{} steps"),
    "measure_seconds": ("window of 1 s", "window of {} s"),
    "inference_seconds": ("1 s of inference", "{} s of inference"),
}
"""Numbers in words: 1, and any other."""
_VALUES = {
    "parallelism": {
        "single": "no parallelism",
        "zero1": "ZeRO-1",
        "fsdp2": "FSDP2",
        "fsdp_tp": "FSDP with tensor parallelism",
        "tp": "tensor parallelism",
        "pp": "pipeline parallelism",
        "cp": "context parallelism",
        **{name: name.upper() for name in ("ddp", "hsdp")},
    },
    "memory": {"none": "no recompute", "selective": "selective recompute"},
    "compile": {"eager": "not compiled", "default": "compiled"},
    "finetune": {"full": "all weights trained", "lora": "LoRA", "last_layers": "last layers only", "ia3": "IA3"},
    "device_type": {"cpu": "CPU", "gpu": "GPU"},
    "workload": _WORKLOADS,
}
_EQUAL = " (fix: equal training, or a target)"
_CODES = {
    "the candidate": "new",
    "the baseline": "base",
    "BASE": "base",
    "NEW": "new",
    "quality is that after": "after",
    "it is that after": "after",
    ": give all the same measure_steps and batch, or a target that all reach": _EQUAL,
    ": give both the same measure_steps and batch, or a target": _EQUAL,
    "the interval holds the limit": "the interval includes the limit",
    "noisy_host": "a busy host",
    "throttled": "throttled clocks",
    "shared_gpu": "a shared GPU",
}
_CODE = re.compile(
    "|".join(rf"(?<![/.\w-])\b{c}(?![\w/])" if c[0].isalpha() else c for c in sorted(_CODES, key=len)[::-1])
)
"""What texts of comparisons call sides and flags, and what people do."""
_RANGE = re.compile(r"([\d,.]*\d) to ([\d,.]*\d)")
_ABSENT = {"needs": "from scratch", "batch_size_per_device": "batch left open"}
"""What it means that a field has no value, where others have one."""
_MEASURE_FLAGS = {"measure_seconds": "--seconds", "measure_steps": "--steps", "warmup_steps": "--warmup-steps"}
_MEASURE_FLAGS |= {
    f"workload_args.{name}": f"--{name.replace('_', '-')}"
    for name in ("step_pattern", "steps_per_line", "samples_per_step", "tokens_per_step")
}
_COMMAND_FIELDS = {f"workload_args.{name}" for name in CommandArgs.model_fields}
_USUAL = {"--warmup-steps": 3}
_COMMANDS = 3
"""So many commands are printed to be pasted."""
START, UP_TO = "start", "… + "
_SHORT = {"d": "devices", "b": "batch_size_per_device", "batch": "global_batch_size"}
_SHORT |= {"accumulation": "gradient_accumulation_steps", "threads": "threads_per_device"}
_SHORT |= {"implementation": "optimizer.implementation"}
_LABEL, _OPTION = re.compile(r"\bd\d+ b\d+ "), re.compile(r"-(?=[a-z_]+=)")
"""Where devices and batch stand in a label, and where an option follows a name: `adamw-learning_rate=0.001`."""
_FIELD = re.compile(r"(?<!--set )(?<![\w.])([a-z][\w.]*)=([^\s,;:()]+)")
_ALLOCATION = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)")
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_PATTERNS = {
    "saves": "saves {}",
    "needs": "from {}",
    "optimizer.implementation": "{} optimizer",
    "compile": "compiled ({})",
    "attention": "{} attention",
    "schedule": "{} schedule",
    "pruning": "{} pruning",
    "quantization": "{} quantization",
    "distillation": "{} distillation",
}


def joined(words: Sequence[str]) -> str:
    """Join words: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def word(column: str, value: Any) -> str:
    """Put one field of a configuration into words: `2 devices`, `bf16`, `tiny`, `sparsity 0.8`, `no pruning`.

    Returns nothing for an absent value.
    """
    if pd.isna(value):
        return ""
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value)) if whole else f"{value:g}" if isinstance(value, float) else printable(value, 60)
    text = f"{int(text):,}" if text.isdigit() and len(text) > 4 else text
    if column in _PHRASES:
        return _PHRASES[column][text != "1"].format(text)
    if text in _VALUES.get(column, {}):
        return _VALUES[column][text]
    if column in (*AXES, *_PATTERNS, "workload"):
        return f"no {column}" if text == "none" else _PATTERNS.get(column, "{}").format(text.replace("_", " "))
    name = printable(column.rpartition(".")[2], 40).replace("_", " ")
    if name in _NAMED:
        return text
    if text in ("True", "False"):
        return name if text == "True" else f"no {name}"
    if text.replace(",", "").isdigit() and re.search(r"[^s]s$", name):
        return f"{text} {name[:-1] if text == '1' else name}"
    return f"{name} {text}"


def work_fields(table: pd.DataFrame) -> set[str]:
    """Return the fields of a table that say what is trained, not how."""
    return {"workload", "dataset", *work_arguments(table)}


def named(table: pd.DataFrame, bases: pd.Series | None = None) -> pd.DataFrame:
    """Name configurations, one a row with the fields of a RunSpec, by what varies among them, on the index of `table`.

    Column `work` is the kind of work: `tiny`, `decoder LM, 2 layers`. Column `change` is all else that tells them apart,
    without what an axis does by default: `2 devices, bf16`. With `bases`, the label of the row that each is compared with, it
    is what differs from these, and empty for a base itself. The steps of a ladder (column `ladder`) are named by what each
    adds: `start`, `… + bf16`.
    """
    columns, steps = telling(table), "ladder" in table and table["ladder"].nunique() == len(table) > 1
    kinds = work_fields(table)
    works = [c for c in columns if c in kinds] or [c for c in ("workload", "workload_args.preset") if c in table]
    others = [c for c in columns if c not in works] or ["devices"]
    if steps:
        order = table["ladder"].sort_values().index
        bases = pd.Series([pd.NA, *order[:-1]], index=order, dtype="object").reindex(table.index)
    pairs, rows = [], table[[*works, *others]].to_dict("records")
    places = {label: place for place, label in enumerate(table.index)}
    programs = table["workload_args.argv"] if "workload_args.argv" in table else pd.Series(index=table.index, dtype=str)
    for place, row in enumerate(rows):
        work = ", ".join(filter(None, (word(c, row[c]) for c in works)))
        if work == COMMAND and pd.notna(argv := programs.iloc[place]):
            work = printable(program_name(str(argv)), 40)
        change = [word(c, row[c]) for c in others if piece(c, row[c])]
        if bases is not None and pd.notna(bases.iloc[place]):
            base = rows[places[bases.iloc[place]]]
            differ = [c for c in others if str(row[c]) != str(base[c])]
            change = [_ABSENT.get(c, "") if pd.isna(row[c]) else word(c, row[c]) for c in differ]
            change = [UP_TO + ", ".join(filter(None, change))] if steps else change
        elif steps:
            change = [START]
        pairs.append((work, ", ".join(filter(None, change)) or ("default" if bases is None else "")))
    return pd.DataFrame(pairs, index=table.index, columns=["work", "change"], dtype="str")


def full_names(names: pd.DataFrame) -> list[str]:
    """Join the kind of work, where there are several, and the change of `named`."""
    several = names["work"].nunique() > 1
    return [", ".join(filter(None, (work * several, change))) for work, change in names.to_numpy()]


def grouped(texts: Iterable[tuple[str, Iterable[str]]]) -> Iterator[tuple[str, str]]:
    """Yield each text of some configurations (name, texts) with those it holds for: `all`, a few names, or `4 of 6`."""
    count, groups = 0, dict[str, list[str]]()
    for name, own in texts:
        count += 1
        for text in own:
            groups.setdefault(text, []).append(name)
    for text, names in groups.items():
        listed = "; ".join(names)
        yield text, "all" if len(names) == count > 1 else listed if len(listed) <= 50 else f"{len(names)} of {count}"


def spoken(text: str) -> str:
    """Put short names and labels of configurations into words: `tiny 2 devices bf16` of `preset=tiny d=2 bf16`."""
    if "<" in text:  # markup is no name: it is shown as it is
        return text
    text = _OPTION.sub(" ", re.sub(r"\bdecoder_lm (?:gpt2 )?", "", text))
    text = re.sub(r"(?<= )default\b", "compiled", text) if _LABEL.search(text) else text
    text = re.sub(r"\b([db])(\d+)\b", r"\1=\2", text)
    return _FIELD.sub(lambda field: word(_SHORT.get(field[1], field[1]), field[2]), text)


def repeat_command(
    suite: object, runs: pd.DataFrame, *options: str, store: str | None = None, file: str | None = None
) -> str:
    """Return the command that runs a suite with options where and at the site of its `runs`.

    Where the file of the suite is not in place, say so. Suites of `bench measure` have no file: see `measured_again`.
    """
    path = Path(file or f"suites/{suite}.yaml")
    if not path.is_file():
        return f"run it with {' '.join(options)}"
    own: dict[str, Any] = {}
    with suppress(UserError, OSError):
        own = load_suite(path).model_dump()
    launchers = {str(name) for name in runs["launcher"].dropna()} if "launcher" in runs else set()
    nodes = launchers & {"ray", "slurm"} - {own.get("launcher")}
    where = ["--launcher", *nodes] if len(nodes) == 1 else []
    return command("run", str(path), *where, *options, *site_words(runs, own), store=store)


def site_words(runs: pd.DataFrame, own: Mapping[str, Any] | None = None) -> list[str]:
    """Return the options of region, PUE and prices that runs have, but for those of a suite (`own`).

    A field is left out where runs disagree on it, and all prices where some rented their devices and others owned them.
    """
    values = {field: {site[field] for site in sites(runs) if field in site} for field in SITE_OPTIONS}
    prices = [field for field in values if field.startswith("usd") and values[field]]
    mixed = any(len(values[field]) > 1 for field in prices) or ("usd_per_device_hour" in prices and len(prices) > 1)
    words: list[str] = []
    for field, of_runs in values.items():
        if len(of_runs) != 1 or (mixed and field not in ("region", "pue")) or of_runs == {(own or {}).get(field)}:
            continue
        text = _typed(next(iter(of_runs)))
        factor = text.endswith(" g/kWh")
        words += ["--carbon-intensity", text.replace(" g/kWh", "g")] if factor else [SITE_OPTIONS[field], text]
    return words


def run_again(
    suite: object,
    runs: pd.DataFrame,
    repeats: int | None,
    *options: str,
    store: str | None = None,
    file: str | None = None,
) -> str:
    """Say how runs of a suite are repeated so many times more, or with options, by what they are."""
    if of_tables(runs).all():
        return f"import a table with {counted(repeats or PUBLISH_REPEATS, 'more row')} of each configuration"
    if measured_commands(runs):
        return measured_again(repeats)
    return repeat_command(suite, runs, *options, store=store, file=file)


def measured_again(repeats: int | None = None) -> str:
    """Say how a command is measured again: so many times more, or well enough to be published."""
    if repeats is not None:
        return f"repeat the bench measure command with --repeats {repeats}; it adds to the name"
    return f"let it run for {PUBLISH_SECONDS:g} s or longer, with --repeats {PUBLISH_REPEATS}"


def measure_commands(sides: Iterable[pd.DataFrame], repeats: int, store: str | None = None) -> list[str]:
    """Return the commands that add so many repeats to names of `bench measure`; nothing where one is unknown, or of many."""
    parts = [runs for side in sides for _, runs in side.groupby(["suite", "config_id"], sort=False)]
    lines = [_measure_command(runs, repeats, store) for runs in parts]
    return list(dict.fromkeys(lines)) if len(lines) <= _COMMANDS and all(lines) else []


def _measure_command(runs: pd.DataFrame, repeats: int, store: str | None) -> str:
    """Return the command that measured the last of some runs, at the site of all.

    Nothing for one without a name, or with words that were not kept.
    """
    row = runs.iloc[-1]
    argv, suite = str(row["workload_args.argv"]), str(row["suite"])
    fields = {flag: row.get(name) for name, flag in _MEASURE_FLAGS.items()}
    own = [name for name in map(str, row.index) if name.startswith("workload_args.") and name not in _COMMAND_FIELDS]
    words = ["--name", suite, "--repeats", str(repeats)]
    words += [
        word
        for flag, value in fields.items()
        if pd.notna(value) and value != _USUAL.get(flag)
        for word in (flag, _typed(value))
    ]
    words += ["--no-hooks"] * (str(row.get("workload_args.hooks")) == "False")
    for name in own:
        words += ["--set", f"{name.partition('.')[2]}={_typed(row[name])}"] if pd.notna(row[name]) else []
    words += site_words(runs)
    known = suite != MEASURE and TOGETHER not in suite and printable(argv, 1000) == argv
    if not known or "***" in " ".join((argv, *words)):
        return ""
    return f"{command('measure', *words, store=store)} -- {argv.replace('{{', '{').replace('}}', '}')}"


def _typed(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def why_ended(status: str, reasons: Iterable[str | float]) -> str:
    """Say how runs ended that did not end well, and why; of memory, how much more was asked for."""
    texts = [str(reason) for reason in dict.fromkeys(reasons) if pd.notna(reason)]
    sizes = [float(found[1]) * _BYTES[found[2]] for text in texts for found in _ALLOCATION.finditer(text)]
    how = status.replace("_", " ")
    if sizes and status == Status.OUT_OF_MEMORY:
        divisor, unit = scale(max(sizes), "B")
        ends = dict.fromkeys(interval(size / divisor) for size in (min(sizes), max(sizes)))
        return f"{how}: another {' to '.join(ends)} {unit} did not fit"
    listed = [printable(text, 160) for text in texts[:3]] + ["..."] * (len(texts) > 3)
    return f"{how}: {'; '.join(listed) or 'no reason was recorded'}"


def metric_name(metric: str, *, mark: bool = False) -> str:
    """Name a metric inside a sentence: `tokens/s`, `peak memory`, `J/token`; with `mark` ~ follows what is estimated."""
    known = quantity(metric)
    title = known.title.replace("_", " ")
    title = title[:1].lower() + title[1:] if title[1:2].islower() else title
    return printable(title + "~" * (mark and known.estimated))


def plain(text: str) -> str:
    """Replace the codes of metrics, flags and sides in a text by words; fields of a suite stay as they are typed."""
    text = _CODE.sub(lambda m: _CODES[m[0]], text)
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda m: metric_name(m[0]) if m[0] in CATALOGUE else m[0], text)


def ranged(texts: Iterable[str]) -> list[str]:
    """Join texts that differ in ranges `A to B` alone into one with the widest range; others stay, each once."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(_RANGE.sub("#", text), []).append(text)
    return [_widest(alike) for alike in groups.values()]


def _widest(texts: Sequence[str]) -> str:
    pairs = [pair for text in texts for pair in _RANGE.findall(text)]
    if not pairs:
        return texts[0]
    low, high = ([end.replace(",", "") for end in ends] for ends in zip(*pairs, strict=True))
    widest = f"{pairs[low.index(min(low, key=float))][0]} to {pairs[high.index(max(high, key=float))][1]}"
    return _RANGE.sub(widest, texts[0])
