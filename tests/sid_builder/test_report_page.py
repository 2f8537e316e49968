"""The report's page: one file, nothing loaded from elsewhere, titles never become markup."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from sid_builder.catalog import Catalog
from sid_builder.errors import InputError
from sid_builder.interactions import Interactions
from sid_builder.quantizers.rq_kmeans import RQKMeans, RQKMeansConfig
from sid_builder.report import ReportConfig, quality_report, write_report
from sid_builder.report.charts import code_grid, line_chart, usage_line
from sid_builder.report.item_table import TITLE_LENGTH
from sid_builder.semantic_ids import SemanticIds

EVIL = "</script><script>window.broken = 1</script><img src=x onerror=alert(1)> & \"quoted\" 'title'"


class Page(HTMLParser):
    """Tags with their attributes, visible text, and the content of every script and style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.raw, self._inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if self._inside:
            self.raw.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            attrs, text = self.raw[-1]
            self.raw[-1] = (attrs, text + data)
        else:
            self.text.append(data)

    def items(self):
        return json.loads(next(text for attrs, text in self.raw if attrs.get("id") == "items"))

    def words(self):
        return " ".join(" ".join(self.text).split())

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]


def shop(num_items, title="thing", domains=1, seed=0):
    """(catalogue, interactions, embeddings) with two items of the same text among the first."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 5, num_items)
    kinds[:2] = 0
    rows = [
        {
            "item_id": str(n),
            "title": f"{title} {0 if n < 2 else n}",
            "categories": ["shop", f"kind <{kind}>"],
            "domain": f"d{n % domains}",
        }
        for n, kind in enumerate(kinds)
    ]
    embeddings_ND = (np.eye(5, 12)[kinds] + rng.normal(scale=0.3, size=(num_items, 12))).astype(np.float32)
    embeddings_ND[1] = embeddings_ND[0]
    sequences = [rng.integers(0, num_items, 6).astype(np.int32) for _ in range(30)]
    interactions = Interactions.leave_one_out([str(u) for u in range(30)], sequences)
    return Catalog.from_rows(rows), interactions, embeddings_ND


def written(directory, data, levels=2, codes=4, quantized=True, config=None, **sections):
    catalog, interactions, embeddings_ND = data
    quantizer = RQKMeans(RQKMeansConfig(levels=levels, codes_per_level=codes))
    quantizer.fit(embeddings_ND)
    sids = SemanticIds(quantizer.encode(embeddings_ND), quantizer.level_sizes)
    given = (embeddings_ND, quantizer) if quantized else (None, None)
    report = quality_report(sids, interactions, catalog, *given) | sections
    write_report(directory, report, catalog, sids, given[0], config)
    return (directory / "report.html").read_text(encoding="utf-8")


REPAIR = {"policy": "none", "items_moved": 0, "collision_rate_before": 0.25}
SOURCE = {"name": "test", "num_sequences": 30, "has_repeats": True, "ceiling": {"hr@10": 0.5}, "files": []}
CHECKS = [
    {"name": "max_collision_rate", "measured": 0.5, "limit": 0.0, "passed": False},
    {"name": "min_co_click_lift", "measured": None, "limit": 2.0, "passed": False},
    {"name": "max_gini", "measured": 0.2, "limit": 0.5, "passed": True},
]


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory):
    directory = tmp_path_factory.mktemp("page")
    data = shop(60, EVIL, domains=2)
    text = written(directory, data, repair=REPAIR, source=SOURCE, thresholds=CHECKS)
    return text, directory


def test_nothing_is_loaded_from_elsewhere(evil_page):
    page = Page(evil_page[0])
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img"), tag
        assert "src" not in attrs and "srcset" not in attrs
        assert attrs.get("href", "#").startswith("#")
    styles = "".join(text for _, text in page.raw)
    assert "@import" not in styles and not re.search(r"url\(|fetch\(|XMLHttpRequest|https?://", styles)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_titles_never_become_markup(evil_page):
    text = evil_page[0]
    page = Page(text)
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["application/json", None]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "<img" not in text.lower() and "window.broken = 1</script>" not in text
    # It is there as text: in the lists and, cut, in the table.
    assert any(EVIL in piece for piece in "".join(page.text).split("\n"))
    assert page.items()["titles"][0].startswith(EVIL[:60])
    assert "innerHTML" not in page.raw[-1][1]


def test_anchors_and_ids_fit(evil_page):
    page = Page(evil_page[0])
    ids = page.ids()
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert {"thresholds", "places", "collisions"} <= targets <= set(ids)
    script = page.raw[-1][1]
    assert set(re.findall(r'\$\("(\w+)"\)', script)) <= set(ids)
    assert page.tags[0] == ("html", {"lang": "en"})


def test_the_page_says_what_was_measured(evil_page):
    text, directory = evil_page
    words = Page(text).words()
    report = json.loads((directory / "report.json").read_text())
    assert "Semantic IDs of 60 items" in words and "2 of 3 thresholds missed" in words
    assert "not measurable" in words and "at most 0.5" in words
    group = report["collisions"]["largest_groups"][0]
    assert group["sid"] in words and f"{group['size']} items" in words
    assert "2 items in 1 groups have the same embedding" in words
    assert f"{report['reconstruction']['error']:.1%}" in words
    assert f"{report['co_click'][0]['lift']:.1f}× chance" in words
    assert "Domains that share the codebooks" in words and "Prefixes and category 2" in words
    assert "ceiling hr@10 0.5" in words and "has repeats yes" in words and "files none" in words


def test_the_table_holds_every_item(evil_page):
    items = Page(evil_page[0]).items()
    assert items["total"] == len(items["ids"]) == len(items["map"]["x"]) == 60
    assert len(items["codes"]) == 120 and items["depth"] == 2
    kinds, domains = items["labels"]
    assert kinds["name"] == "category 2" and domains["values"] == ["d0", "d1"]
    assert max(len(title) for title in items["titles"]) <= TITLE_LENGTH
    low, high = min(items["map"]["x"] + items["map"]["y"]), max(items["map"]["x"] + items["map"]["y"])
    assert low == 0 and high == 4095
    # Items 0 and 1 have one embedding and stand on one point.
    assert items["map"]["x"][0] == items["map"]["x"][1] and items["map"]["y"][0] == items["map"]["y"][1]


def test_without_embeddings_and_without_collisions(tmp_path):
    data = shop(60)
    text = written(tmp_path, data, levels=3, codes=16, quantized=False)
    page = Page(text)
    words = page.words()
    assert page.items()["map"] is None and "places" not in page.ids() and "map" not in page.ids()
    assert "there is no quantizer to ask" in words and "no thresholds set" in words
    assert "in train" in words and "there are no embeddings to measure nearness by" in words


def test_the_same_input_gives_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert written(tmp_path / "a", shop(80)) == written(tmp_path / "b", shop(80))
    assert (tmp_path / "a" / "report.json").read_bytes() == (tmp_path / "b" / "report.json").read_bytes()


def test_a_sample_is_shown_of_many_items(tmp_path):
    text = written(tmp_path, shop(300), config=ReportConfig(page_items=50))
    items = Page(text).items()
    assert items["total"] == 300 and len(items["ids"]) == len(items["map"]["x"]) == 50
    assert "Drawn from a sample of 50 items" in text
    for wrong in (0, 20_001):
        with pytest.raises(InputError, match=rf"report\.page_items: {wrong} is outside 1\.\.20000"):
            ReportConfig(page_items=wrong)


def test_twelve_thousand_items_stay_small(tmp_path):
    text = written(
        tmp_path, shop(12_000, "a title of about the usual length for a product, 8 ounces"), codes=64
    )
    assert len(text.encode()) < 3_000_000


def test_short_sids_and_few_items(tmp_path):
    catalog, interactions, embeddings_ND = shop(5)
    interactions = Interactions.leave_one_out(["u"], [np.array([0, 2, 4], dtype=np.int32)])
    codes = np.array([[0, -1], [0, -1], [1, 0], [1, 1], [2, -1]], dtype=np.int32)
    sids = SemanticIds(codes, (3, 2))
    report = quality_report(sids, interactions, catalog, embeddings_ND)
    write_report(tmp_path, report, catalog, sids, embeddings_ND)
    items = Page((tmp_path / "report.html").read_text(encoding="utf-8")).items()
    assert items["codes"] == codes.ravel().tolist() and items["map"]["method"] == "PCA"


def test_pictures():
    grid = code_grid([0, 1, 100, 0, 25, 0, 0, 0])
    assert 'aria-label="3 of 8 codes used"' in grid and len(re.findall(r"M\d", grid)) == 8
    assert grid.count('class="s0"') == 1 and re.search(r'class="s5" d="M2 0h', grid)
    assert len(re.findall(r"M\d", code_grid([1] * 10_000))) <= 4096
    chart = line_chart([usage_line("<one>", [0, 8, 0, 0], 9)], "x", "y & z")
    assert 'class="line c1"' in chart and "&lt;one&gt;" in chart and "y &amp; z" in chart
    # All on one of four codes: four times even use, the height of the picture, then nothing.
    points = re.search(r'points="([^"]+)"', chart).group(1).split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[0] < 30 and heights[1:] == [230.0] * 3
    # A level that no SID reaches.
    assert 'points="' in line_chart([usage_line("empty", [0, 0], 0)], "x", "y")


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_draws_tree_and_map(evil_page, tmp_path):
    """Opened from disk without network: the script runs, and no title does."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    )
    flags += " --disable-component-update --disable-sync --virtual-time-budget=3000 --window-size=900,900"
    path = evil_page[1] / "report.html"
    done = subprocess.run(
        [BROWSER, *flags.split(), f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{path}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    drawn = Page(done.stdout)
    cells = [attrs for tag, attrs in drawn.tags if tag == "button" and "px" in (attrs.get("style") or "")]
    assert len(cells) == 4  # the first codes
    assert sum(int(re.search(r"(\d+) items", cell["title"]).group(1)) for cell in cells) == 60
    options = [attrs for tag, attrs in drawn.tags if tag == "option" and attrs.get("value", "").isdigit()]
    assert len(options) >= 4
    canvas = next(attrs for tag, attrs in drawn.tags if tag == "canvas")
    assert int(canvas["width"]) > 300  # set when the map was drawn
    assert not [tag for tag, _ in drawn.tags if tag == "img"] and "window.broken" not in drawn.raw[-1][1]
