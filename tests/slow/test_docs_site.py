"""The documentation as a site: builds without a warning, is whole, asks nothing of a network."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import yaml

import drift
from drift.config import GROUPS
from drift.config.compose import CONF
from scripts.docs import hooks, pictures, reference, structure
from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

MKDOCS = ROOT / "scripts" / "docs" / "mkdocs.yml"
ASKS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """As .ci/run does it. Not with --quiet, which also silences --strict."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = ["mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(MKDOCS, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Html(HTMLParser):
    """What a page loads, links to, and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ASKS and (address := given.get(ASKS[tag])):
            self.loads.append(address)
        if tag == "a" and (address := given.get("href")):
            self.links.append(address)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(path: Path) -> Html:
    return Html(path.read_text(encoding="utf-8"))


def pages_of(node: object) -> list[str]:
    """The files that a nav names."""
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    assert isinstance(children, list | type({}.values()))
    return [page for child in children for page in pages_of(child)]


def test_every_page_of_docs_is_in_the_navigation_and_in_the_site(site: Path) -> None:
    nav = MKDOCS.read_text(encoding="utf-8").partition("\nnav:")[2].partition("\n")[2]
    named = pages_of(yaml.safe_load(nav))
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(written | set(hooks.PAGES))
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    reports = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.html")}
    assert built - reports == {str(Path(page).with_suffix(".html")) for page in [*named, "404.md"]}


def test_no_page_asks_anything_of_a_network(site: Path) -> None:
    for path in site.rglob("*.html"):
        for address in read(path).loads:
            assert not re.match(r"(https?:)?//", address), f"{path.name}: {address}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//", text), path.name


def test_what_a_page_links_to_is_in_the_site(site: Path) -> None:
    """Also in what mkdocs does not check: pages from outside docs/, and what is made."""
    for path in site.glob("*.html"):
        if path.name == "404.html":  # its links begin with /
            continue
        for link in read(path).links:
            if not re.match(r"[a-z]+:", link):
                assert (path.parent / link.partition("#")[0]).exists(), f"{path.name}: {link}"


@pytest.mark.parametrize(
    "wrong", ["[x](nowhere.md)", "[x](lab.md#nowhere)", "[x](../drift/nowhere.py)"]
)
def test_a_wrong_link_or_anchor_stops_the_build(wrong: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "metrics.md").open("a", encoding="utf-8") as file:
        file.write(wrong)
    text = MKDOCS.read_text(encoding="utf-8").replace("docs_dir: ../../docs", "docs_dir: docs")
    config = tmp_path / "mkdocs.yml"
    config.write_text(text.replace("[hooks.py]", f"[{ROOT}/scripts/docs/hooks.py]"))
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert "'metrics.md' contains a link" in line


def test_links_out_of_docs_become_pages_or_words() -> None:
    text = "[a](../data/README.md#x) [drift/__main__.py](../drift/__main__.py) [b](../nothing.md)"
    assert hooks.relink(text, "docs/lab.md", "lab.md") == (
        "[a](data.md#x) `drift/__main__.py` [b](../nothing.md)"
    )
    assert hooks.relink("![c](docs/lab.png)", "README.md", "index.md") == "![c](lab.png)"
    assert hooks.relink("[d](../lab.md)", "docs/more/e.md", "more/e.md") == "[d](../lab.md)"
    for kept in (
        "[e](https://e.org)",
        "[f](#f)",
        "`[g](../drift/common/types.py)`",
        "```\n[h](x)\n```",
    ):
        assert hooks.relink(kept, "docs/lab.md", "lab.md") == kept


def test_a_list_behind_a_line_of_text_is_a_list() -> None:
    text = "Words\n- one\n  more\n- two\n```\ncode\n- no\n```\n- three\n"
    assert hooks.loosen_lists(text) == (
        "Words\n\n- one\n  more\n- two\n```\ncode\n- no\n```\n\n- three\n"
    )


def leaves(schema: type, prefix: str = "") -> list[str]:
    """The settings of a schema that are no part with settings of its own."""
    names: list[str] = []
    kinds = reference.typing.get_type_hints(schema)
    for name, kind in ((field.name, kinds[field.name]) for field in dataclasses.fields(schema)):
        if dataclasses.is_dataclass(kind) and name not in GROUPS:
            names += leaves(kind, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        elif name not in GROUPS:
            names.append(prefix + name)
    return names


def test_every_setting_is_in_the_reference_with_a_meaning(site: Path) -> None:
    words = set(read(site / "configuration.html").words)
    assert "rollout.block_length" in words
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \| (.*) \| (.*) \|$", reference.reference(), re.M)
    meanings = {key: meaning for key, _, _, meaning in rows}
    wanted = [
        f"{g}.{key}" for g, kinds in GROUPS.items() for k in kinds.values() for key in leaves(k)
    ]
    for path in CONF.glob("*.yaml"):
        if path.stem != "base":
            schema = reference.read(path).schema
            assert schema is not None
            wanted += [key for key in leaves(schema) if key != "output_dir"]
    assert [key for key in wanted if key not in meanings] == []
    assert [key for key in wanted if len(meanings[key]) < 5] == []
    assert [key for key in wanted if key not in words] == []


def test_the_settings_that_the_docs_set_exist() -> None:
    keys = set(re.findall(r"^\| `([\w.]+)` \| ", reference.reference(), re.MULTILINE))
    free = ("task.options.", "task.settings.")
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "data" / "README.md"]:
        for key in re.findall(r"\b([a-z]+\.[a-z_.]+)=", path.read_text(encoding="utf-8")):
            if key.partition(".")[0] in GROUPS and not key.startswith(free):
                assert key in keys, f"{path.name}: {key}"


def test_a_setting_has_its_choices_default_and_meaning() -> None:
    page = reference.reference()
    for row in (
        "| `rollout.gen_length` | integer | `${task.gen_length}` | tokens of the canvas: "
        "the most that a completion has |",
        "| `dataset` | `gsm8k`, `math`, `math500`, `mbpp`, `humaneval`, `countdown`, `sudoku` "
        "| to be given | which one: data/README.md has their sources |",
        "| `model.path` | text | by option | a folder, or a name on the Hugging Face hub |",
        "| `optim.lr` | number | `${model.lr}` | learning rate |",
        "| `masking.ratio` | number | `0.3` | share of the tokens that a view hides and scores |",
        "| `random` | Hide and score a random share of the tokens |  |",
    ):
        assert row in page.splitlines()


def test_every_option_is_in_the_reference() -> None:
    page = reference.reference()
    for path in CONF.glob("*/*.yaml"):
        section = page.partition(f"\n### {path.parent.name}\n")[2].partition("\n### ")[0]
        assert f"\n| `{path.stem}` | " in section


@pytest.mark.parametrize("name", sorted(GROUPS["masking"]))
def test_the_pictures_are_those_that_the_code_draws(name: str) -> None:
    """Remake them with `python scripts/docs/pictures.py` and look at them."""
    path = pictures.FOLDER / f"masking_{name}.svg"
    assert path.read_text(encoding="utf-8") == pictures.draw(name)
    assert path.stat().st_size < 60_000
    page = (ROOT / "docs" / "masking.md").read_text(encoding="utf-8")
    assert f"## `{name}`\n![Views of masking={name}](images/{path.name})" in page


def test_the_picture_of_the_folders_is_what_the_imports_say() -> None:
    """Remake it with `python scripts/docs/structure.py` and look at it."""
    assert structure.PICTURE.read_text(encoding="utf-8") == structure.draw()
    assert len(structure.layers()) <= 10
    assert all(len(structure.files_of(part)) <= 20 for row in structure.layers() for part in row)


def test_the_pictures_answer_is_the_checkpoints() -> None:
    """In each state of the trace the policy gives its tokens the log-probs of pictures.LOGP."""
    policy = drift.load_policy(str(ROOT / "data" / "tiny-countdown"))
    chat = f"<|user|>{pictures.PROMPT}<|eot_id|><|assistant|>"
    prompt = policy.tokenizer(chat)["input_ids"]
    row = policy.tokenizer.convert_tokens_to_ids(pictures.TOKENS)
    steps = torch.tensor(pictures.STEPS)
    for step in range(max(pictures.STEPS) + 1):
        hidden = (steps >= step) | (steps < 0)
        canvas = torch.tensor(row).masked_fill(hidden, policy.special.mask)
        ids = torch.cat([torch.tensor(prompt), canvas])[None]
        with torch.no_grad():
            logp = policy.logits(ids)[0, len(prompt) :].log_softmax(-1)
        for i in (steps == step).nonzero().flatten().tolist():
            assert logp[i, row[i]].item() == pytest.approx(pictures.LOGP[i], abs=0.02)


def test_the_cosines_of_the_maskings_are_the_labs() -> None:
    rows = re.compile(r"^\| (\w+) \| (\d\.\d) \| (\d\.\d\d) \|$", re.MULTILINE)
    said = rows.findall((ROOT / "docs" / "masking.md").read_text(encoding="utf-8"))
    lab = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert [name for name, _, _ in said] == ["sequential", "random", "coupled", "all"]
    for name, forwards, cosine in said:
        (row,) = re.findall(rf"^\| {name} \| {forwards} \| (.*) \|$", lab, re.MULTILINE)
        assert row.split(" | ")[5] == cosine


@pytest.mark.browser
def test_a_browser_shows_the_page_with_its_pictures_and_asks_for_nothing_else(
    site: Path, page: "Page"
) -> None:
    page.goto((site / "masking.html").as_uri())
    assert page.locator("h1").inner_text().startswith("The four ways of masking")
    pictures_shown = page.locator("article img")
    assert pictures_shown.count() == len(GROUPS["masking"])
    assert pictures_shown.evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 700)")
    page.get_by_role("link", name="Configuration", exact=True).first.click()
    page.wait_for_url("**/configuration.html")
    page.get_by_text("rollout.block_length", exact=True).first.wait_for()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
