"""Write every fact that has its home elsewhere: links, the version, the parameters of train.ipynb, the accuracies that a
run is told to expect, README.md and its figure.

Links come from [project.urls] in pyproject.toml and the version from semissl/__init__.py; they are written into
CITATION.cff and the notebooks. The parameters, with their reasons, are the fields of TrainConfig in semissl/run/config.py.
The accuracies are means over the rows in nbs/experiments/results. README.md is nbs/index.ipynb through nbconvert;
its figure is the first one in the outputs of label_efficiency.ipynb.

    python .ci/sync.py            write
    python .ci/sync.py --check    write nothing; name the files that differ and exit with 1

After a change of owner: edit pyproject.toml, run this, then `nbdev-export`.
"""

import ast, base64, csv, io, json, posixpath, re, sys, tomllib
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]


def facts(root: Path = ROOT) -> dict:
    "The package's name, links and version."
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'^__version__ = "(.+)"$', (root / "semissl/__init__.py").read_text(encoding="utf-8"), re.M)[1]
    repository = project["urls"]["Repository"].rstrip("/")
    return dict(
        name=project["name"],
        description=project["description"],
        version=version,
        repository=repository,
        slug=repository.removeprefix("https://github.com/"),
        site=project["urls"]["Documentation"],
    )


def link(text: str, f: dict) -> str:
    "`text` with every link to the repository, its files at a tag, and the site as `f` has them."
    name = re.escape(f["name"])
    text = re.sub(rf"(/github/|github\.com/|githubusercontent\.com/)[\w.-]+/{name}\b", rf"\g<1>{f['slug']}", text)
    text = re.sub(
        rf"({re.escape(f['slug'])}(?:\.git)?(?:/blob/|/raw/|/tree/|@|/))v\d+(?:\.\d+)+", rf"\g<1>v{f['version']}", text
    )
    return re.sub(rf"https://[\w.-]+\.github\.io/{name}\b/?", f["site"], text)


def cite(text: str, f: dict) -> str:
    "CITATION.cff with the links and the version of `f`."
    return re.sub(r"^version: .*$", f"version: {f['version']}", link(text, f), flags=re.M)


def readme(index: str) -> str:
    "README.md from the text of nbs/index.ipynb: nbconvert's markdown, with links that start at the root."
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    hide = {"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}}
    text, _ = MarkdownExporter(config=Config(hide)).from_notebook_node(nbformat.reads(index, as_version=4))
    text = re.sub(r"\]\((?![a-z]+:|#|/)([^)\s]+)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])}", text)
    return "<!-- made from nbs/index.ipynb by .ci/sync.py: edit that notebook -->\n\n" + text.strip() + "\n"


def groups_of(module: str) -> dict[str, list[tuple[str, str, str]]]:
    "Heading of each group of fields of TrainConfig -> name, default and reason of each, in the text of its module."
    groups = re.findall(r'^class \w+Fields:\n    "([^"\n]+)\."\n(.*?)\n\n', module, re.M | re.S)
    return {head: re.findall(r"^    (\w+): \w+ = (.+?) +# (.+)$", body, re.M) for head, body in groups}


def fields_of(module: str) -> list[tuple[str, str, str]]:
    "Name, default and reason of the fields of TrainConfig."
    return [field for group in groups_of(module).values() for field in group]


def parameters(train: str, module: str) -> str:
    "The notebook train.ipynb with the fields of TrainConfig, in their groups, as its parameters."
    nb = json.loads(train)
    (cell,) = (c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", []))
    lines = [
        "\n".join([f"# {head}", *(f"{name} = {value}  # {reason}" for name, value, reason in fields)])
        for head, fields in groups_of(module).items()
    ]
    cell["source"] = "\n\n".join(lines).splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


# in the table anyway, or no choice of the method
TOLD = "confidence_threshold data test_data labels_per_class epochs budget seed baselines run_dir wandb_project".split()
BEFORE = {"cutmix": "off", "refit": False, "propagate": 0}  # what rows did that are older than these fields


def expected(module: str, results: Path) -> str:
    "The table of what committed runs of the method came to, by data, labels and budget, as a CSV."
    runs, defaults = {}, {name: ast.literal_eval(value) for name, value, _ in fields_of(module)}
    for path in sorted(results.glob("*-label-efficiency.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["arm"] == "stages 1+2+3":
                data = row["name"].split("-")[0]
                beside = [*TOLD, *["cutmix"] * (data == "digits")]  # digits are not mixed
                changed = [
                    f"{name}={value}"
                    for name, default in defaults.items()
                    if name not in beside and (value := row.get(name, BEFORE.get(name, default))) != default
                ]
                runs.setdefault(
                    (data, row["labels_per_class"], row["epochs"], row["budget"], row["device"], ", ".join(changed)), []
                ).append(row)
    for path in sorted(results.glob("*-photos.json")):  # on features: load, look and learn
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["arm"] == "method":
                took = dict(training_seconds=row["load_seconds"] + row["look_seconds"] + row["seconds"], image_passes=0)
                runs.setdefault(
                    (
                        row["name"],
                        row["labels_per_class"],
                        0,
                        "",
                        row["device"],
                        f"on features of {row['encoder']} at {row['size']} px",
                    ),
                    [],
                ).append(row | took)

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow("data labels_per_class seconds images accuracy deviation runs device beside".split())
    for (data, k, _, _, device, beside), rows in sorted(runs.items()):
        took, images, accuracy = (
            [r[name] for r in rows] for name in ("training_seconds", "image_passes", "test_accuracy")
        )
        spread = stdev(accuracy) if len(rows) > 1 else 0.0
        about = f"{mean(took):.0f}", f"{mean(images):.0f}", f"{mean(accuracy):.4f}", f"{spread:.4f}", len(rows)
        writer.writerow([data, k, *about, device, beside])
    return table.getvalue()


def still(notebook: str) -> str:
    "A notebook without widgets and their state, which `nbdev-clean` keeps."
    if "widget" not in notebook:
        return notebook
    nb, view = json.loads(notebook), "application/vnd.jupyter.widget-view+json"
    nb["metadata"].pop("widgets", None)
    for cell in nb["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if view not in o.get("data", {})]
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def picture(notebook: str) -> bytes:
    "The first picture among the outputs of a notebook, a PNG."
    outputs = [o for c in json.loads(notebook)["cells"] for o in c.get("outputs", [])]
    return base64.b64decode(next(o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})))


def wanted(root: Path = ROOT) -> dict[Path, bytes]:
    "Each file this script answers for, with the content it should have."
    f, files = facts(root), {}
    # and no others: a notebook under test makes notebooks in a folder beside it
    for path in sorted([*(root / "nbs").glob("*.ipynb"), *(root / "nbs").glob("[a-z]*/*.ipynb")]):
        files[path] = still(link(path.read_text(encoding="utf-8"), f))
    train = root / "nbs/experiments/train.ipynb"
    exported = (root / "semissl/run/config.py").read_text(encoding="utf-8")
    files[train] = parameters(files[train], exported)
    files[root / "semissl/run/expected.csv"] = expected(exported, root / "nbs/experiments/results")
    files[root / "CITATION.cff"] = cite((root / "CITATION.cff").read_text(encoding="utf-8"), f)
    files[root / "README.md"] = readme(files[root / "nbs/index.ipynb"])
    files = {path: text.encode() for path, text in files.items()}
    curves = root / "nbs/experiments/label_efficiency.ipynb"
    return files | {curves.with_suffix(".png"): picture(files[curves])}


def main() -> int:
    stale = {p: content for p, content in wanted().items() if not p.exists() or p.read_bytes() != content}
    check = sys.argv[1:] == ["--check"]
    for path, content in stale.items():
        print("differs:" if check else "wrote:", path.relative_to(ROOT))
        if not check:
            path.write_bytes(content)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
