"""mkdocs hook: links from pyproject.toml, the changelog page, pages named as nbdev links them, links between notebooks."""

import logging, posixpath, re, sys
from pathlib import Path
from mkdocs.plugins import CombinedEvent, event_priority
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
from sync import facts


def page_of(path) -> Path:
    "The page of a notebook: nbdev's rule, without its number."
    path = Path(path)
    return path.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.name.lower())).with_suffix(".html")


log = logging.getLogger("mkdocs.hooks.site")


def on_config(config):
    f = facts()
    config.site_url, config.site_description = f["site"], f["description"]
    config.repo_url, config.repo_name = f["repository"], f["slug"]
    return config


@event_priority(100)  # before mkdocs-jupyter
def add_changelog(files, config):
    files.append(File.generated(config, "CHANGELOG.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    return files


@event_priority(-100)  # after it
def name_pages(files, config):
    "01_augment.ipynb becomes augment.html, as nbdev's index and the `Docs:` line of each module say."
    for file in files:
        if file.src_uri.endswith(".ipynb"):
            file.dest_uri = file.url = page_of(file.src_uri).as_posix()
            file.abs_dest_path = str(Path(config.site_dir) / file.dest_uri)
    return files


on_files = CombinedEvent(add_changelog, name_pages)


def on_page_content(html, page, config, files):
    "Links to notebooks go to their pages, other links to files of the repository go there; a dead one is a warning."

    def target(match):
        path, anchor = match[1], match[2] or ""
        source = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
        found = files.get_file_from_path(source if source != "../CHANGELOG.md" else "CHANGELOG.md")
        if found:
            return f'href="{found.url_relative_to(page.file)}{anchor}"'
        if (ROOT / "nbs" / source).exists():
            return f'href="{config.repo_url}/blob/main/{posixpath.normpath("nbs/" + source)}{anchor}"'
        log.warning("%s links to %s, which is not there", page.file.src_uri, path)
        return match[0]

    return re.sub(r'href="(?![a-z]+:|/|#)([^"#]+\.(?:ipynb|md|cff|py|ini|toml))(#[^"]*)?"', target, html)


def on_post_build(config):
    "Beside each page its markdown, `augment.html.md`: what the `Docs:` lines link to."
    nbs = Path(config.docs_dir)
    for path in (p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        page = Path(config.site_dir) / page_of(path.relative_to(nbs))
        text, resources = MarkdownExporter().from_filename(
            str(path), resources={"output_files_dir": page.stem + "_files"}
        )
        page.with_name(page.name + ".md").write_text(text, encoding="utf-8")
        for name, data in resources["outputs"].items():
            (page.parent / name).parent.mkdir(exist_ok=True)
            (page.parent / name).write_bytes(data)
