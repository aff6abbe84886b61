"""The documents: what the method's page says of options is so, and what they link is there."""

import re
from pathlib import Path

import pytest

from MAPSegLib import config
from MAPSegLib.config import ARCHITECTURES, EMA_SCHEDULES, RECIPES

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "Benchmarks" / "README.md",
    ROOT / "Resources" / "Models" / "README.md",
    *sorted((ROOT / "Docs").glob("*.md")),
]
PAGE = ROOT / "Docs" / "method.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = {
    "PretrainingOptions": "pretrain",
    "TrainingOptions": "train",
    "AdaptationOptions": "adapt",
    "CentralisedOptions": "adapt",
}


def table(name: str) -> list[list[str]]:
    """Cells of a table between its marks, without backticks; the heading is the first row."""
    (body,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", TEXT, re.S)
    rows = [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in body.splitlines()]
    return [rows[0], *rows[2:]]


def flags(command: str) -> set[str]:
    from typer.main import get_command

    from MAPSegLib.cli import app

    return {option for parameter in get_command(app).commands[command].params for option in parameter.opts}


def default(name: str, field: str) -> str:
    value = getattr(config, name).model_fields[field].default
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("row", table("options")[2:], ids=lambda row: f"{row[0]} {row[2]}")
def test_options_have_the_defaults_that_the_page_states(row):
    classes = table("options")[0][4:]
    assert set(classes) == set(COMMANDS)
    _, _, field, flag, *cells = row
    told = 0
    for name, cell in zip(classes, cells, strict=True):
        if cell == "–":
            assert field not in getattr(config, name).model_fields, name
        elif cell:
            assert cell == default(name, field), name
            assert not flag or flag in flags(COMMANDS[name]), name
            told += 1
    assert told


def test_sizes_are_those_of_the_presets():
    (_, _, *presets), *rows = table("sizes")
    assert set(presets) == set(ARCHITECTURES)
    for _, field, *cells in rows:
        assert cells == [str(getattr(ARCHITECTURES[preset], field)) for preset in presets], field


def test_other_options_have_the_defaults_that_the_page_states():
    for _, option, value, flag in table("others")[1:]:
        assert value == default(*option.split(".")), option
        if flag:
            wanted, rest = flag.split(" of ")
            assert all(wanted in flags(command) for command in re.findall(r"mapseg (\w+)", rest))


def test_schedules_and_recipes_are_those_that_the_page_states():
    assert [(until, share) for until, share in EMA_SCHEDULES["small"][:2]] == [(1000, 0.99), (3000, 0.999)]
    assert EMA_SCHEDULES["large"][0] == (1000, 0.999)
    assert EMA_SCHEDULES["small"][-1][1] == EMA_SCHEDULES["large"][-1][1] == 0.9999
    for name, recipe in RECIPES.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", TEXT, re.M)[:1]
        weights = [f"{views.plain:g}, {views.masked:g}" for views in (recipe.source, recipe.target)]
        contrasts = "source and student" if recipe.strong else "as they are"
        assert row.endswith("| " + " | ".join([*weights, contrasts]) + " |")


def test_the_score_and_the_verdict_have_the_numbers_that_the_page_states():
    from MAPSegLib import quality, shapes
    from MAPSegLib.tasks.training import TRUST_DRAWS

    section = " ".join(TEXT[TEXT.index("\n## 5.") : TEXT.index("\n## 6.")].split())
    room = quality.trust_limits([{"agreement": 1.0, "shape_deviation": 0.0}])
    for told in (
        f"score = agreement − {quality.PLAUSIBILITY_WEIGHT:g} × shape deviation "
        f"+ {quality.BORDER_WEIGHT:g} × border contrast",
        f"turned by {quality.TURN:g}° about the axis from back to front and made smaller by {quality.SHRINK:g}",
        f"({shapes.NARROWEST:g} at least), at most {shapes.FURTHEST:g} each",
        f"where {shapes.MANY} structures or more are found",
        f"up to a factor of {shapes.LARGER:g}",
        f"the worst of {TRUST_DRAWS} draws of its own scans",
        f"a slack of {1 - room['agreement']:g} in agreement and {room['shape_deviation']:g} in shape deviation",
        f"never below {quality.LOWEST:g} or above {quality.HIGHEST:g}",
    ):
        assert told in section
    assert quality.FEWEST_SCANS == 5 and "where five scans or more are adapted to together" in section


def headings(page: Path) -> set[str]:
    """What links of a page's sections end in."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for file, section in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), file
        assert not section or section in headings(target), f"{file}#{section}"


def test_every_page_can_be_reached_from_the_first_one():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", page.read_text(encoding="utf-8"))
        ahead += {(page.parent / link).resolve() for link in links} - reached
    assert reached >= set(PAGES)


def test_every_picture_is_shown_and_small():
    shown = set(re.findall(r"figures/([\w-]+\.png)", TEXT))
    pictures = list((PAGE.parent / "figures").glob("*.png"))
    assert shown == {path.name for path in pictures}
    assert all(path.stat().st_size < 200_000 for path in pictures)


def test_the_command_of_the_pictures_draws_all_of_them():
    source = (PAGE.parent / "figures.py").read_text(encoding="utf-8")
    drawn = re.search(r"^PICTURES.*?^}", source, re.M | re.S).group()
    assert set(re.findall(r"figures/([\w-]+)\.png", TEXT)) == set(re.findall(r'"([\w-]+)": ', drawn))


def test_the_page_on_clusters_states_the_defaults():
    from MAPSegLib.domains import PREPARED

    text = " ".join((ROOT / "Docs" / "cluster.md").read_text(encoding="utf-8").split())
    assert f"a pretraining up to {PREPARED} prepared scans" in text
    for name in ("TrainingOptions", "PretrainingOptions"):
        assert f"`checkpoint_every` steps are lost ({default(name, 'checkpoint_every')} by default" in text
    assert all(default(name, "accumulate") == "1" for name in COMMANDS)
    assert "`accumulate` of them (an option, 1 by default)" in text


def test_commands_to_install_are_quoted_as_every_shell_takes_it():
    """To that of Windows, single quotes are letters."""
    texts = [*PAGES, *(ROOT / "MAPSegLib").rglob("*.py")]
    found = {
        path.name: re.findall(r"pip install.*'\S*\[", path.read_text(encoding="utf-8")) for path in texts
    }
    assert {name: commands for name, commands in found.items() if commands} == {}
