"What no notebook can show: the wheel, the requirements against Colab's, the layout, and facts that must agree."

import ast, configparser, dataclasses, importlib, importlib.util, importlib.metadata as metadata, json, os, re, subprocess, sys
from pathlib import Path
import nbformat, pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import rerun
import sync

NBS = ROOT / "nbs"
NOTEBOOKS = [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
EXPERIMENTS = [p for p in NOTEBOOKS if p.parent == NBS / "experiments"]
TUTORIALS = [p for p in NOTEBOOKS if p.parent == NBS / "tutorials"]
FLOORS = {  # the rooms of each in their order: a room uses those before it and those of the floors below
    "data": "whole lock labels images decode png files layout blocks cache table pictures hub sources split loader",
    "method": "policy augment encoder heads losses correlation propagate adapter memory schedule normalise pseudo "
    "module weights load recipe",
    "run": "values identity progress threads budget metrics evaluate engine features sight readers rounds "
    "finetune config choose expect task build machine track record checkpoints callbacks train folder "
    "answer pace compare confidence core write fit command",
    "use": "predictor predict export suggest audit decisions asking learn learner talk widget labeller loop classifier page",
    "many": "example style files tiles curves confusion correlations trust figures rows tables paired grid state "
    "attempt results work arms ray colab command report",
}
MODULE_NOTEBOOKS = [p for p in NOTEBOOKS if p.parent.name in FLOORS and p.parent.parent == NBS]
MODULES = [f"{floor}.{room}" for floor, rooms in FLOORS.items() for room in rooms.split()]


def name(path: Path) -> str:
    return path.relative_to(NBS).as_posix()


def module_of(path: Path) -> str:
    return f"{path.parent.name}.{path.stem}"


def file_of(module: str) -> Path:
    return ROOT / "semissl" / (module.replace(".", "/") + ".py")


def read(path: Path):
    return nbformat.read(path, as_version=4)


def default_exp(path: Path) -> list[str]:
    "What the notebook says it exports to."
    return re.findall(
        r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in read(path).cells if c.cell_type == "code"), re.M
    )


def settings() -> configparser.ConfigParser:
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read_string((ROOT / "settings.ini").read_text(encoding="utf-8"))
    return config


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def requirements() -> list[str]:
    return lines(settings()["package"]["requirements"])


# ---- requirements -------------------------------------------------------------------------------------------------


def colab() -> tuple[str, dict[str, Version]]:
    "Colab's Python and the version of everything that is installed there."
    text = (ROOT / "tests/colab-versions.txt").read_text(encoding="utf-8")
    python = re.search(r"^# python (\S+)$", text, re.M)[1]
    pairs = (line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    return python, {canonicalize_name(dist): Version(version) for dist, version in pairs}


def conflicts(required: list[str], there: dict[str, Version], python: str) -> tuple[list[str], set[str]]:
    "What an install of `required` would have to replace there (each with its reason), and what it would add."
    environment = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python, "extra": ""}
    todo, seen, wrong = [("semissl", Requirement(r)) for r in required], set(), []
    while todo:
        by, r = todo.pop()
        dist = canonicalize_name(r.name)
        if dist in there and not r.specifier.contains(there[dist], prereleases=True):
            wrong.append(f"{by} wants {r}, Colab has {there[dist]}")
        if dist in there or (dist, tuple(sorted(r.extras))) in seen:
            continue
        seen.add((dist, tuple(sorted(r.extras))))
        for needed in metadata.requires(dist) or []:
            needed = Requirement(needed)
            if needed.marker is None or any(
                needed.marker.evaluate({**environment, "extra": e}) for e in {"", *r.extras}
            ):
                todo.append((f"{dist} {metadata.version(dist)}", needed))
    return wrong, {dist for dist, _ in seen}


def test_colab_survives_an_install():
    python, there = colab()
    wrong, added = conflicts(requirements(), there, python)
    assert not wrong
    assert {"pytorch-lightning", "papermill"} <= added and not {"torch", "numpy", "wandb", "pandas"} & added
    assert len(added) <= 8, f"expected an install in Colab to add few packages, got {sorted(added)}"


def test_colab_check_can_fail():
    python, there = colab()
    wrong, _ = conflicts(requirements() + ["wandb>=0.31"], there, python)
    assert wrong == [f"semissl wants wandb>=0.31, Colab has {there['wandb']}"]
    lacking = {dist: version for dist, version in there.items() if dist != "wandb"} | {"protobuf": Version("3.20")}
    wrong, added = conflicts(requirements(), lacking, python)
    # found one level down
    assert "wandb" in added and any(w.startswith("wandb ") and "protobuf" in w for w in wrong)


def test_colab_python_is_allowed():
    python, _ = colab()
    assert Version(python) >= Version(settings()["package"]["min_python"])


@pytest.mark.parametrize("required", requirements() + [r for t in settings()["extras"].values() for r in lines(t)])
def test_requirement_is_a_lower_bound(required):
    assert [s.operator for s in Requirement(required).specifier] == [">="], f"expected name>=version, got {required}"


def test_numpy_is_left_alone():
    assert "numpy" not in {canonicalize_name(Requirement(r).name) for r in requirements()}


# ---- the wheel ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> dict[str, Path]:
    "A source archive, and a wheel built from that archive alone."
    out, env = tmp_path_factory.mktemp("dist"), {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    source = tmp_path_factory.mktemp("source")
    for item in [
        "settings.ini",
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "nbs/experiments/train.ipynb",
    ]:
        (source / item).parent.mkdir(parents=True, exist_ok=True)
        (source / item).write_bytes((ROOT / item).read_bytes())
    for path in (ROOT / "semissl").rglob("*.py"):
        (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (source / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        cwd=out,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    unknown = [
        line
        for line in (run.stdout + run.stderr).splitlines()
        if "not listed in `dynamic`" in line or "defined outside of" in line
    ]
    assert not unknown, unknown
    site = tmp_path_factory.mktemp("elsewhere")
    (wheel,) = out.glob("*.whl")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
        env=env,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    return dict(wheel=wheel, site=site, archive=next(out.glob("*.tar.gz")))


def elsewhere(site: Path, code: str) -> str:
    "Run `code` with the installed wheel and without the checkout; what it prints."
    setup = f"""
import sys
root, site = {str(ROOT)!r}, {str(site)!r}
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path[:] = [site] + [p for p in sys.path if p and p != root]
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", setup + code],
        cwd=site.parent,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_every_module_imports_from_the_wheel(built):
    code = """
import importlib, json, pkgutil, semissl
found = sorted(m.name.removeprefix("semissl.") for m in pkgutil.walk_packages(semissl.__path__, "semissl.") if not m.ispkg and not m.name.split(".")[-1].startswith("_"))
for m in found:
    path = importlib.import_module(f"semissl.{m}").__file__
    assert path.startswith(site), f"expected a module under {site}, got {path}"
print(json.dumps([semissl.__version__, found]))
"""
    version, found = json.loads(elsewhere(built["site"], code).splitlines()[-1])
    assert version == sync.facts()["version"]
    assert found == sorted(m for p in MODULE_NOTEBOOKS for m in default_exp(p))
    assert set(MODULES) <= set(found), f"missing: {sorted(set(MODULES) - set(found))}"


def test_a_module_missing_from_the_wheel_is_noticed(built, tmp_path):
    "The check above does fail when the checkout has a module and the wheel has not."
    import shutil

    site = tmp_path / "site"
    shutil.copytree(built["site"], site)
    (site / "semissl" / "method" / "heads.py").unlink()
    with pytest.raises(AssertionError, match="No module named 'semissl.method.heads'"):
        elsewhere(site, "import semissl.method.heads")


def test_light_modules_stay_light(built):
    "Reading results needs no torch; data needs no lightning, wandb or timm."
    elsewhere(built["site"], "import semissl.many.report; assert 'torch' not in sys.modules, 'report imports torch'")
    elsewhere(
        built["site"],
        "import semissl.data.sources; assert not {'pytorch_lightning', 'wandb', 'timm', 'datasets'} & set(sys.modules)",
    )


def test_help_is_answered_at_once(built):
    "Neither torch nor papermill is loaded by `--help`, nor by a slip that no table is asked about."
    elsewhere(
        built["site"],
        "from semissl.run.command import parse\nfrom semissl.many.command import parser\n"
        "try: parse(['--help'])\nexcept SystemExit: pass\n"
        "try: parse(['--imagesize', '8'])\nexcept SystemExit: pass\n"
        "parser().format_help()\n"
        "assert not {'torch', 'papermill', 'pandas', 'wandb', 'pytorch_lightning'} & set(sys.modules)",
    )


def test_a_batch_needs_no_clone(built):
    "train.ipynb comes with the wheel, and is what a batch executes where no other is named."
    told = elsewhere(
        built["site"],
        "from semissl.many.command import main, own_notebook; assert own_notebook().startswith(site), own_notebook(); "
        "main(['data=digits', 'seeds=2', '--dry-run', '--root', 'batch'])",
    )
    assert told.count("waiting") == 2, told


def test_metadata_is_complete(built):
    "Nothing that setup.py gives is dropped on the way into the wheel."
    dist = metadata.Distribution.at(next(built["site"].glob("semissl-*.dist-info")))
    meta, config = dist.metadata, settings()
    assert meta["License-Expression"] == config["package"]["license"] == "Apache-2.0"
    assert any(str(f).endswith("licenses/LICENSE") for f in dist.files)
    assert meta["Requires-Python"] == ">=" + config["package"]["min_python"]
    assert config["package"]["author"] in (meta["Author"] or meta["Author-email"])
    assert meta["Keywords"].split(",") == [k.strip() for k in config["package"]["keywords"].split(",")]
    assert meta.get_all("Classifier") == lines(config["package"]["classifiers"])
    assert set(meta.get_all("Provides-Extra")) == set(config["extras"])
    assert [r for r in dist.requires if "extra ==" not in r] == requirements()
    assert (meta["Description"] or meta.get_payload()).strip() == (ROOT / "README.md").read_text(
        encoding="utf-8"
    ).strip()
    f = sync.facts()
    assert {u.split(", ")[1] for u in meta.get_all("Project-URL")} == {f["repository"], f["site"]}
    assert [(e.name, e.value) for e in dist.entry_points if e.group == "nbdev"] == [("semissl", "semissl._modidx:d")]
    scripts = [f"{e.name} = {e.value}" for e in dist.entry_points if e.group == "console_scripts"]
    assert sorted(scripts) == sorted(lines(config["package"]["console_scripts"]))


def test_archive_holds_what_setup_reads(built):
    import tarfile

    with tarfile.open(built["archive"]) as tar:
        names = {n.split("/", 1)[1] for n in tar.getnames() if "/" in n}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "semissl/__init__.py"} <= names


# ---- notebooks ----------------------------------------------------------------------------------------------------


def written(nb) -> str:
    "Everything in a notebook that somebody reads as text: sources and outputs, no images."
    parts = []
    for cell in nb.cells:
        parts.append(cell.source)
        for out in cell.get("outputs", []):
            parts += [out.get("text", ""), "\n".join(out.get("traceback", []))]
            parts += [
                v if isinstance(v, str) else json.dumps(v)
                for k, v in out.get("data", {}).items()
                if not k.startswith("image/png")
            ]
    return "\n".join(parts)


MACHINE = re.compile(r"(?<![\w.:/])/(?:work|tmp|root|home(?!/me/)|Users|mnt|opt|private|var)/|\.\./shared|[A-Z]:\\\\")
SECRET = re.compile(
    r"\bwandb_v\d+_\w{16,}|\blocal-[0-9a-f]{40}\b|WANDB_API_KEY['\"]?\]?\s*[=:,]\s*['\"][\w-]{20,}|wandb\.login\(\s*(?:key\s*=\s*)?['\"]"
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_clean(path):
    nb = read(path)
    nbformat.validate(nb)
    assert nb.nbformat == 4 and nb.metadata.get("kernelspec", {}).get("name") == "python3"
    first = nb.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n+> .+", first.source), (
        "expected '# title' and '> one line' first"
    )
    text = written(nb)
    assert not (found := MACHINE.search(text)), (
        f"a path of one machine: {text[max(0, found.start() - 40) : found.end() + 40]!r}"
    )
    assert not SECRET.search(text), "a key"
    assert not re.search(r"\b[0-9a-f]{40}\b", "\n".join(c.source for c in nb.cells)), (
        "40 hexadecimal digits in a source: a key?"
    )
    assert not [o for c in nb.cells for o in c.get("outputs", []) if o.output_type == "error"], "an output is an error"


def test_the_search_for_keys_and_paths_can_fail():
    for text in [f"saved to /{'work'}/x/runs", "'/home/ann/x.zip'", "../shared/data"]:
        assert MACHINE.search(text), text
    for text in [
        "/content/drive/MyDrive",
        "/home/me/photos.zip",
        "https://example.org/home/x",
        "a/tmp/b",
        "runs/digits",
    ]:
        assert not MACHINE.search(text), text
    for text in [
        f"WANDB_API_KEY = '{'0' * 40}'",
        f'os.environ["WANDB_API_KEY"] = "{"a1" * 20}"',
        "wandb.login(key='abc')",
        "local-" + "0" * 40,
    ]:
        assert SECRET.search(text), text
    for text in ['os.environ.get("WANDB_API_KEY")', 'userdata.get("WANDB_API_KEY")', "wandb.login()"]:
        assert not SECRET.search(text), text


@pytest.mark.parametrize("path", MODULE_NOTEBOOKS, ids=name)
def test_module_notebook(path):
    "One module each, named like the notebook; executed, with a picture, and small enough to open anywhere."
    nb = read(path)
    assert default_exp(path) == [module_of(path)]
    assert file_of(module_of(path)).exists()
    assert any(c.get("outputs") for c in nb.cells), "expected an executed notebook, got no output"
    assert any("image/png" in o.get("data", {}) for c in nb.cells for o in c.get("outputs", [])), (
        "expected a picture, got none"
    )
    assert path.stat().st_size < 600_000, f"expected under 600 kB, got {path.stat().st_size:,} bytes"
    assert "widgets" not in nb.metadata and not any(
        "widget-view" in mime for c in nb.cells for o in c.get("outputs", []) for mime in o.get("data", {})
    ), "expected no progress bar in the outputs: execute with TQDM_DISABLE=1"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_what_a_notebook_imports_of_ours_is_there(path):
    "Experiments are not run as tests: a name that has moved would be found by a stranger."
    code = "\n".join(c.source for c in read(path).cells if c.cell_type == "code")
    plain = re.sub(r"^( *)[%!].*", r"\1pass", code, flags=re.M)
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "semissl":
            room = importlib.import_module(node.module)
            missing = [a.name for a in node.names if a.name != "*" and not has(room, a.name)]
            assert not missing, f"expected {missing} in {node.module}"


def has(room, name: str) -> bool:
    "Whether a module has a name, or a module of that name in it."
    return hasattr(room, name) or importlib.util.find_spec(f"{room.__name__}.{name}") is not None


@pytest.mark.parametrize("path", MODULE_NOTEBOOKS, ids=name)
def test_cells_and_rooms_are_short(path):
    "An exported cell has 40 lines at most, a line 120 columns, a room 400 lines."
    code = [c.source.splitlines() for c in read(path).cells if c.cell_type == "code"]
    exported = [lines for lines in code if lines and lines[0].startswith("#| export")]
    assert max(map(len, exported), default=0) <= 41, "expected at most 40 lines and the word export in a cell"
    assert max(len(line) for lines in code for line in lines) <= 120
    assert len(file_of(module_of(path)).read_text(encoding="utf-8").splitlines()) <= 400


def test_modules_and_notebooks_agree():
    exported = {
        p.relative_to(ROOT / "semissl").with_suffix("").as_posix().replace("/", ".")
        for p in (ROOT / "semissl").rglob("*.py")
        if not p.stem.startswith("_")
    }
    assert exported == {module_of(p) for p in MODULE_NOTEBOOKS} == set(MODULES)


def test_experiments_exist_and_are_not_run_as_tests():
    assert (NBS / "experiments/train.ipynb") in EXPERIMENTS and (NBS / "experiments/.notest").exists()


def test_every_notebook_is_on_the_site():
    "mkdocs --strict says so too, after minutes."
    listed = set(re.findall(r"\S+\.ipynb", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {
        p.relative_to(NBS).as_posix() for p in [NBS / "index.ipynb", *MODULE_NOTEBOOKS, *EXPERIMENTS, *TUTORIALS]
    }


@pytest.mark.parametrize("path", EXPERIMENTS + TUTORIALS, ids=name)
def test_one_parameters_cell(path):
    "papermill needs exactly one; each line is `name = literal  # reason`, which papermill and Colab's forms both read."
    tagged = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0].cell_type == "code", (
        f"expected one code cell tagged parameters, got {len(tagged)}"
    )
    source = tagged[0].source
    for node in ast.parse(source).body:
        assert isinstance(node, (ast.Assign, ast.AnnAssign)), f"expected assignments only, got {ast.unparse(node)}"
        ast.literal_eval(node.value)
        line = source.splitlines()[node.end_lineno - 1]
        assert re.search(r"#\s*\S", line), f"expected a reason on the line, got {line!r}"
        assert line.count("=") == 1, (
            f"expected one equals sign, for papermill leaves out a line with more, got {line!r}"
        )


@pytest.mark.parametrize("path", EXPERIMENTS + TUTORIALS, ids=name)
def test_what_is_shown_is_what_was_run(path):
    "Nobody executes these in the gate: their outputs are those of their code and of the rows that are there."
    nb = read(path)
    assert nb.metadata.get("executed") == rerun.stamp(path), (
        f"code, rows or outputs have changed since: run `python .ci/rerun.py {path.relative_to(ROOT).as_posix()}`"
    )
    shown = [o for c in nb.cells for o in c.get("outputs", [])]
    assert any({"image/png", "text/markdown", "text/html"} & set(o.get("data", {})) for o in shown)
    assert not any(o.get("name") == "stderr" for o in shown), "a warning or a progress bar"
    assert "widgets" not in nb.metadata and not any("widget-view" in m for o in shown for m in o.get("data", {}))


def test_a_notebook_that_was_not_run_again_is_noticed(tmp_path):
    "The stamp is another one after a change of code, of rows or of outputs; comments and links may change."
    path = NBS / "experiments/ablation.ipynb"

    def changed(change) -> bool:
        nb = read(path)
        change(next(c for c in nb.cells if c.cell_type == "code" and c.outputs), nb)
        nbformat.write(nb, tmp_path / path.name)
        return rerun.stamp(tmp_path / path.name) != rerun.stamp(path)

    def more(text):
        return lambda cell, nb: cell.update(source=cell.source + text)

    assert changed(more("\nx = 1")) and changed(lambda cell, nb: cell.update(outputs=[]))
    assert not changed(more("  # why\n\n")) and not changed(lambda cell, nb: nb.cells[0].update(source="# other\n"))
    linked = path.read_text(encoding="utf-8").replace(f"/v{sync.facts()['version']}/", "/v9.8.7/")
    (tmp_path / path.name).write_text(linked, encoding="utf-8")
    assert "v9.8.7/nbs" in linked and rerun.stamp(tmp_path / path.name) == rerun.stamp(path)
    code = "\n".join(c.source for c in read(path).cells if c.cell_type == "code")
    assert [p.name for p in rerun.rows_read(code)] == sorted(
        p.name for p in (NBS / "experiments/results").glob("*-ablation.json")
    )
    assert rerun.rows_read("from semissl.run.expect import expected") == [rerun.EXPECTED]


def test_the_rows_are_part_of_the_stamp(tmp_path, monkeypatch):
    path = NBS / "experiments/ablation.ipynb"
    for file in rerun.ROWS.glob("*-ablation.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = rerun.stamp(path)
    monkeypatch.setattr(rerun, "ROWS", tmp_path)
    assert rerun.stamp(path) == before
    (tmp_path / "digits-ablation.json").write_text("[]", encoding="utf-8")
    assert rerun.stamp(path) != before


def test_train_notebook():
    from semissl.run.config import TrainConfig

    nb = read(NBS / "experiments/train.ipynb")
    (cell,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    given = [
        t.id for n in ast.parse(cell.source).body for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
    ]
    assert given == [f.name for f in dataclasses.fields(TrainConfig)]
    assert nb.metadata.accelerator == "GPU"
    assert nb.metadata.colab == {"gpuType": "T4", "provenance": [], "toc_visible": True}


# ---- layout -------------------------------------------------------------------------------------------------------


def imports(path: Path) -> tuple[set[str], set[str], bool]:
    "(modules of ours, other top-level packages, whether anything is star-imported) of a Python file, at any depth."
    ours, others, star = set(), set(), False
    package = (
        ["semissl", *path.parent.relative_to(ROOT / "semissl").parts]
        if path.is_relative_to(ROOT / "semissl")
        else ["semissl"]
    )

    def add(module: str):
        (
            ours.add(module.removeprefix("semissl").lstrip("."))
            if module.split(".")[0] == "semissl"
            else others.add(module.split(".")[0])
        )

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            star |= any(alias.name == "*" for alias in node.names)
            base = (
                ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            if base in ("semissl", "semissl.method", "semissl.run"):
                for alias in node.names:
                    add(f"{base}.{alias.name}")
            else:
                add(base)
    return ours, others, star


@pytest.mark.parametrize("path", MODULE_NOTEBOOKS, ids=name)
def test_imports(path):
    """A room imports only rooms before it, by name; views, encoders, heads and losses stand alone; nothing below the
    step knows Lightning; figures and tables need no torch."""
    module = module_of(path)
    n, (ours, others, star) = MODULES.index(module), imports(file_of(module))
    ours -= {"", "__version__"}  # the package itself, for its version
    assert not star
    assert ours <= set(MODULES[:n]), f"expected rooms before {module}, got {sorted(ours - set(MODULES[:n]))}"
    assert not {"fcntl", "msvcrt"} & others, "expected locks by way of data.lock, which Windows has too"
    if module in ("method.policy", "method.encoder", "method.heads", "method.losses", "run.metrics"):
        assert not ours, f"expected nothing of ours, got {sorted(ours)}"
    if n < MODULES.index("method.schedule"):
        assert not {"pytorch_lightning", "lightning"} & others
    if module.startswith("many."):
        assert not {"torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning"} & others


def test_imports_are_read_at_any_depth(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(
        "import torch.nn\nfrom .data import x\ndef f():\n    from semissl.method.losses import y\n    import "
        "semissl.run.features\n    from os import *\n"
    )
    assert imports(path) == ({"data", "method.losses", "run.features"}, {"torch", "os"}, True)


# ---- facts that must agree ----------------------------------------------------------------------------------------


def test_links_version_and_readme_are_in_step():
    stale = [p.relative_to(ROOT).as_posix() for p, content in sync.wanted().items() if p.read_bytes() != content]
    assert not stale, f"run `python .ci/sync.py`: {stale}"


def test_results_in_the_readme_are_made_from_the_rows():
    import pandas as pd
    from semissl.many.paired import gain_words, paired_gain
    from semissl.many.rows import results_table
    from semissl.many.tables import summary_table

    text, results = (ROOT / "README.md").read_text(encoding="utf-8"), NBS / "experiments/results"
    photos, speed, *shown = [
        o["data"]["text/markdown"]
        for c in read(NBS / "index.ipynb").cells
        if "hide-input" in c.metadata.get("tags", [])
        for o in c.outputs
    ]
    for n in ("clothes", "cifar10"):
        rows = pd.DataFrame(json.loads((results / f"{n}-photos.json").read_text()))
        for k, right in rows[rows["arm"] == "method"].groupby("labels_per_class")["test_accuracy"]:
            assert f"| {n} | {k} | {100 * right.mean():.1f} ± {100 * right.std():.1f} % |" in photos
    scale = [
        row
        for row in json.loads((results / "scale.json").read_text())
        if row["part"] == "look" and row["encoder"] == "tf_efficientnet_lite0"
    ]
    assert (
        f"{pd.Series([row['plain_loop'] / row['look'] for row in scale]).median():.1f} times as many as a plain loop"
        in speed
    )
    runs = results_table(sorted(map(str, results.glob("*-label-efficiency.json"))))
    assert shown[0] == summary_table(runs[runs["arm"] == "stages 1+2+3"], by=("name", "labels_per_class"))
    *tables, gpu = shown
    assert len(tables) == 4 and all(table in text for table in tables)
    speed, accuracy = (
        json.loads((results / f"proof-{part}-gpu.json").read_text(encoding="utf-8")) for part in ("speed", "accuracy")
    )
    (step,) = [row for row in speed if row["what"] == "whole step of stage 3"]
    assert f"{step['views_per_second']:,} views a second" in gpu and gpu.split("(")[0] in text
    assert (
        f"and {accuracy[0]['metrics']['test_accuracy']:.0%} of CIFAR-10's test images right after "
        f"{accuracy[0]['seconds']:.0f} seconds" in text
    )
    gains = paired_gain(runs[runs["name"] == "cifar10-cpu"], "stages 1+2+3", "stage 1", 25)
    assert f"- cifar10-cpu, 25 labels a class: {gain_words(gains)}" in shown[1]
    for name, k in (("digits", 1), ("digits", 4), ("cifar10-cpu", 25), ("cifar10-curve", 400)):
        worth = paired_gain(
            pd.DataFrame(json.loads((results / f"{name}-ablation.json").read_text())), "base", "no class correlation", k
        )
        assert (
            f"- {name}, {k} label{'s' * (k > 1)} a class: {gain_words(worth)}"
            in shown[1].split("class correlation by itself")[1]
        )
    choices = pd.concat(
        [pd.DataFrame(json.loads((results / f"{n}-label-choice.json").read_text())) for n in ("clothes", "cifar10-cpu")]
    )
    assert shown[2] == summary_table(
        choices, by=("name", "labels", "choice"), columns=("test_accuracy",), method="test accuracy"
    )
    for row in json.loads((results / "speed-cpu.json").read_text()):
        if row["measure"] == "later_epoch":
            assert f"{row['ratio']:.3g} ({row['ratio_min']:.3g} to {row['ratio_max']:.3g})" in shown[3]


def mean_and_half(rows, arm: str, other: str, k: int) -> str:
    "A gain as the notebooks write it."
    from semissl.many.paired import gain_words, paired_gain

    return gain_words(paired_gain(rows, arm, other, k)).split(" points")[0]


@pytest.mark.parametrize(
    "notebook,file,arm,other,k",
    [
        ("method/losses", "digits", "VICReg", "base", 1),
        *(("method/losses", "digits", f"Barlow Twins, lambd x dim {n}", "base", 1) for n in (1, 8, 40)),
        ("method/correlation", "digits", "no class correlation", "base", 1),
        ("method/correlation", "digits", "no class correlation", "base", 4),
        ("method/correlation", "cifar10-cpu", "no class correlation", "base", 25),
        ("method/module", "digits", "no stage 3", "base", 1),
        ("method/module", "digits", "no stage 3", "base", 4),
        ("method/module", "cifar10-cpu", "stage 1 only", "base", 25),
        ("method/module", "digits", "no stage 3", "stage 1 only", 1),
        ("method/module", "digits", "no stage 3", "stage 1 only", 4),
    ],
)
def test_what_a_room_says_of_the_ablation_is_in_its_rows(notebook, file, arm, other, k):
    import pandas as pd

    rows = pd.DataFrame(json.loads((NBS / f"experiments/results/{file}-ablation.json").read_text()))
    said = read(NBS / f"{notebook}.ipynb").cells[0].source
    assert mean_and_half(rows, arm, other, k) in said and "(../experiments/ablation.ipynb)" in said


def test_what_came_out_is_in_the_rows():
    "The numbers at the head of label_efficiency.ipynb and of peers.ipynb."
    import pandas as pd

    read_rows = lambda n: pd.DataFrame(json.loads((rerun.ROWS / f"{n}-label-efficiency.json").read_text()))
    digits, photos = read_rows("digits"), read_rows("cifar10-curve")

    def means(rows, arm: str, column: str = "test_accuracy") -> list[str]:
        part = rows[rows["arm"] == arm].groupby("labels_per_class")[column]
        return [f"{100 * mean:.1f}" for mean in part.mean()]

    words = lambda numbers: f"{', '.join(numbers[:-1])} and {numbers[-1]} %"
    heads = {n: read(NBS / f"experiments/{n}.ipynb").cells[0].source for n in ("label_efficiency", "peers")}
    ours = means(digits, "stages 1+2+3")
    for column in ("test", "labels_only_test", "ssl_then_probe_label_propagation"):
        assert words(means(digits, "stages 1+2+3", f"{column}_accuracy")) in heads["label_efficiency"], column
    assert words(means(photos, "stages 1+2+3")) in heads["label_efficiency"]
    of_peers = [means(digits, f"{peer} (re-implementation)") for peer in ("FixMatch", "FreeMatch")]
    for told in (*of_peers, means(digits, "pixels, our label propagation"), ours[:2]):
        assert words(told) in heads["peers"]
    for told in (
        f"FixMatch has {means(photos, 'FixMatch (re-implementation)')[0]} %",
        f"the method {means(photos, 'stages 1+2+3')[1]} %",
    ):
        assert told in heads["peers"]
    for rows in (digits, photos, read_rows("cifar10-cpu")):
        mean = (
            rows[~rows["arm"].isin(["stage 1", "stages 1+2"])]
            .groupby(["labels_per_class", "arm"])["test_accuracy"]
            .mean()
        )
        assert set(mean.unstack().idxmax(axis=1)) == {"stages 1+2+3"}


def test_how_long_the_defaults_take_is_in_the_rows():
    "Seconds of a run with its baselines, for each image seen, times the images that the defaults see."
    rows = [
        row
        for row in json.loads((rerun.ROWS / "digits-label-efficiency.json").read_text())
        if (row["arm"], row["labels_per_class"]) == ("stages 1+2+3", 4)
    ]
    from semissl.run.config import TrainConfig

    steps = TrainConfig().epochs * (rows[0]["train_images"] // TrainConfig().batch_size)
    seen = steps * (TrainConfig().batch_size + TrainConfig().labelled_batch_size)
    minutes = round(sum(r["seconds"] for r in rows) / sum(r["image_passes"] for r in rows) * seen / 60)
    for path in (NBS / "experiments/train.ipynb", NBS / "index.ipynb"):
        assert f"about {minutes} minutes on one CPU core without bfloat16" in written(read(path)), path


def test_a_change_of_owner_is_one_edit_and_a_command():
    f = {
        **sync.facts(),
        "slug": "someone/semissl",
        "repository": "https://github.com/someone/semissl",
        "site": "https://someone.github.io/semissl/",
        "version": "9.8.7",
    }
    index = sync.link((NBS / "index.ipynb").read_text(encoding="utf-8"), f)
    assert (
        "github/someone/semissl/blob/v9.8.7/nbs/experiments/train.ipynb" in index and sync.facts()["slug"] not in index
    )
    citation = sync.cite((ROOT / "CITATION.cff").read_text(encoding="utf-8"), f)
    assert "someone/semissl" in citation and "version: 9.8.7" in citation and sync.facts()["slug"] not in citation


def test_owner_is_written_only_where_the_script_looks():
    "Outside pyproject.toml: what .ci/sync.py writes, and what nbdev-export writes."
    slug = sync.facts()["slug"]
    made = {*sync.wanted(), ROOT / "pyproject.toml", *(ROOT / "semissl").rglob("*.py"), NBS / "llms.txt"}
    # tmp*: of a notebook that is being tested
    roots = [p for p in ROOT.iterdir() if p.is_file()] + [
        p
        for d in (".ci", ".github", "tests", "nbs")
        for p in (ROOT / d).rglob("*")
        if not any(part.startswith("tmp") for part in p.relative_to(ROOT).parts) and p.is_file()
    ]
    texts = [
        p
        for p in roots
        if p.suffix in {".md", ".cff", ".ini", ".py", ".toml", ".yml", ".yaml", ".in", ".ipynb", ".txt", ".json", ""}
    ]
    found = [
        p.relative_to(ROOT).as_posix()
        for p in texts
        if p not in made
        and ".ipynb_checkpoints" not in p.parts
        and slug in p.read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found, found


def test_version_is_told_once():
    version = sync.facts()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert "version" not in settings()["package"]


def test_readme_begins_with_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", readme, re.M | re.S)
    named = dict(re.findall(r"^<!-- ([\w-]+) -->\n```bash\n(.*?)^```", readme, re.M | re.S))
    assert [("bash", code) for code in named.values()] == blocks[:2]
    run, test = named["install-and-run"], named["install-and-test"]
    assert "nbs/experiments/train.ipynb" in run and "papermill" in run and "-m pytest" in test
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert set(re.findall(r"readme ([\w-]+)$", gate, re.M)) == set(named)
    for block in (run, test):
        assert block.startswith("python3 -m venv .venv") and "pip install -e" in block
    for code in (code for language, code in blocks if language == "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=["x"])
                for alias in node.names:
                    assert hasattr(module, alias.name), f"README imports {alias.name} from {node.module}"
