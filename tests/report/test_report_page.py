"""The page in a real browser: what a reader sees, finds and does with the keyboard."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import run
from chromium import Opened, executable, opened, started
from playwright.sync_api import Browser
from small_project import HOSTILE, Project, data_of, make

from codegen.comparison.lineage import WHY
from codegen.discovery import discover
from codegen.emit import manifest
from codegen.generation import module_path
from codegen.report.gather import gather
from codegen.report.page import render
from codegen.report.snapshot import on_disk
from codegen.review import coverage_rows, rule_list
from codegen.source import installed
from codegen.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"
SHOWN = ("llama", "mixtral", "bart")  # whose variants the page of all families holds
UPSTREAM = "models/llama/modeling_llama.py"
REFUSED = "bamba"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as found:
        yield found


@pytest.fixture(scope="module")
def whole(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every type of the mapping with its status; the variants of a few."""
    tree = on_disk(GENERATED)
    few = tuple(c if {f.model_type for f in c.generated} & set(SHOWN) else replace(c, text=None) for c in tree.compiled)
    page = tmp_path_factory.mktemp("whole") / "report.html"
    page.write_text(render(gather(replace(tree, compiled=few), installed(), None, 1)), "utf-8")
    return page


@pytest.fixture(scope="module")
def project(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def compared(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("compared") / "report.html"
    assert run("report", "--against", "HEAD", "--base", project.old, *project.options(page)).code == 0
    return page


@pytest.fixture
def tab(browser: Browser, whole: Path) -> Iterator[Opened]:
    with opened(browser, whole) as found:
        yield found


@pytest.fixture
def since(browser: Browser, compared: Path) -> Iterator[Opened]:
    with opened(browser, compared) as found:
        yield found


def _states(target: str) -> dict[str, str]:
    return {row.family: row.state.value for row in coverage_rows(GENERATED)[target]}


# ------------------------------------------------------------------------------------------------------------- the list


def test_every_type_is_listed(tab: Opened) -> None:
    types = sorted(f.model_type for f in discover(installed()))
    assert len(types) > 150 and tab.rows() == types
    assert tab.page.text_content("#count") == f"{len(types)} families"
    for family in types[::10]:
        row = tab.page.text_content(f'tr[data-family="{family}"]') or ""
        assert all(_states(target)[family] in row for target in TARGETS)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("mixtral", {"mixtral"}),
        ("MixtralAttention", {"mixtral"}),
        ("qeffmixtralsparse", set()),
        ("modeling_llama.py", {"llama", "code_llama"}),
        ("qeff/expert-loop", {"mixtral"}),
        ("attention_interface: Callable", {"llama", "code_llama", "mixtral", "bart"}),
        ('"last_token(hidden_states, position_ids)" embed', set()),
        ('"last_token(hidden_states, position_ids)"', {"llama", "code_llama", "mixtral", "bart"}),
        ("bart expert", set()),
        ("zzz nothing has this", set()),
    ],
)
def test_search(tab: Opened, query: str, expected: set[str]) -> None:
    tab.page.fill("#search", query)
    found = set(tab.rows())
    if query == "mixtral":
        assert "mixtral" in found and len(found) < 5
    elif query == "bart expert" or query.startswith("qeffmixtral"):
        assert not found & {"mixtral"}
    else:
        assert found == expected
    assert ("No family fits" in (tab.page.text_content("main") or "")) == (not found)
    tab.page.click("#reset")
    assert len(tab.rows()) > 150 and tab.page.input_value("#search") == ""


def test_search_finds_diagnostics_and_counts_lines(tab: Opened) -> None:
    tab.page.fill("#search", "has_previous_state")
    assert REFUSED in tab.rows() and "llama" not in tab.rows()
    tab.page.fill("#search", "comp_ctx_lengths")
    assert "changed line" in (tab.page.text_content('tr[data-family="llama"]') or "")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("state", ["verified", "refused"])
def test_filters(tab: Opened, target: str, state: str) -> None:
    tab.page.select_option("#filter-target", target)
    tab.page.select_option("#filter-state", state)
    assert tab.rows() == [family for family, found in _states(target).items() if found == state]
    other = next(name for name in TARGETS if name != target)
    assert other not in (tab.page.text_content("thead") or "")
    tab.page.select_option("#filter-rule", "recognize/cache-use")
    rows = coverage_rows(GENERATED)[target]
    refused = [r.family for r in rows if any(d.rule == "recognize/cache-use" for d in r.diagnostics)]
    assert tab.rows() == (refused if state == "refused" else [])


def test_counts_are_filters(tab: Opened) -> None:
    button = tab.page.locator(".summary button", has_text="refused").first
    number = int((button.text_content() or "").split()[0])
    button.click()
    assert len(tab.rows()) == number == sum(state == "refused" for state in _states("qeff").values())
    assert tab.page.input_value("#filter-state") == "refused" and tab.focused() == tab.rows()[0]


def test_sorting(tab: Opened) -> None:
    tab.page.click("thead [data-sort='qeff error']")
    assert tab.page.get_attribute("th:has([data-sort='qeff error'])", "aria-sort") == "descending"
    errors = {
        row.family: max(row.record.errors.values()) if row.record is not None else -1.0
        for row in coverage_rows(GENERATED)["qeff"]
    }
    listed = tab.rows()
    assert [errors[name] for name in listed] == sorted(errors.values(), reverse=True)
    tab.page.click("thead [data-sort='qeff error']")
    assert tab.page.get_attribute("th:has([data-sort='qeff error'])", "aria-sort") == "ascending"
    assert [errors[name] for name in tab.rows()] == sorted(errors.values())
    tab.page.click("thead [data-sort='name']")
    assert tab.rows() == sorted(tab.rows())


# --------------------------------------------------------------------------------------------------------- the keyboard


FOCUSED_CHANGE = "[...document.querySelectorAll('[data-change]')].indexOf(document.activeElement)"


def test_a_walk_without_a_mouse(tab: Opened) -> None:
    tab.press("/")
    assert tab.focused() == "search"
    tab.page.keyboard.type('"modeling_llama.py"')
    assert tab.rows() == ["code_llama", "llama"]
    tab.press("Enter")
    assert tab.focused() == "code_llama"
    tab.press("j")
    assert tab.focused() == "llama"
    tab.press("j")
    assert tab.focused() == "llama", "the last one stays"
    tab.press("k", "j", "o")
    assert tab.family() == "llama" and tab.focused() == "name"
    assert tab.page.evaluate("location.hash") == "#/llama"

    changes = tab.page.locator("[data-change]").count()
    assert changes > 10
    seen = []
    for _ in range(changes + 2):
        tab.press("n")
        seen.append(
            tab.page.evaluate("[...document.querySelectorAll('[data-change]')].indexOf(document.activeElement)")
        )
    assert seen == [*range(changes), changes - 1, changes - 1], "each change once, in order"
    assert tab.page.evaluate("document.activeElement.getBoundingClientRect().top") < 900
    tab.press("p")
    assert tab.page.text_content("#count") == f"change {changes - 1} of {changes}"

    tab.press("k")
    assert tab.family() == "code_llama"
    tab.press("j")
    assert tab.family() == "llama"
    tab.press("t")
    tab.page.wait_for_selector("#tab-rmpad[aria-selected=true]")
    assert tab.page.evaluate("location.hash") == "#/llama/rmpad"
    tab.press("Escape")
    tab.page.wait_for_selector("tr[data-family]")
    assert tab.focused() == "llama" and tab.rows() == ["code_llama", "llama"]
    tab.press("/", "Escape")
    assert tab.page.input_value("#search") == "" and len(tab.rows()) > 150
    tab.press("Escape")
    assert tab.focused() == "BODY"


def test_tabs_are_moved_with_arrows(tab: Opened) -> None:
    tab.go("#/llama/qeff")
    tab.page.focus("#tab-qeff")
    tab.press("ArrowRight")
    tab.page.wait_for_selector("#tab-rmpad[aria-selected=true]")
    assert tab.focused() == "tab-rmpad"
    assert tab.page.get_attribute("#panel", "aria-labelledby") == "tab-rmpad"


def test_target_in_the_list(tab: Opened) -> None:
    tab.press("j", "j", "t")
    assert tab.page.input_value("#filter-target") == "qeff" and tab.focused() == tab.rows()[1]
    tab.press("t", "t")
    assert tab.page.input_value("#filter-target") == ""


def test_help(tab: Opened) -> None:
    tab.press("?")
    assert tab.page.is_visible("dialog#help") and "previous change" in (tab.page.text_content("#help") or "")
    tab.press("j", "Escape")
    assert not tab.page.is_visible("dialog#help") and tab.rows()
    tab.press("Tab")
    assert tab.page.evaluate("document.activeElement.matches(':focus-visible')")


def test_letters_are_text_in_the_search_box(tab: Opened) -> None:
    tab.press("/")
    tab.page.keyboard.type("jnpt?o")
    assert tab.page.input_value("#search") == "jnpt?o" and not tab.page.is_visible("dialog#help")


def test_history(tab: Opened) -> None:
    tab.go("#/llama")
    tab.page.go_back()
    tab.page.wait_for_selector("tr[data-family]")
    assert tab.focused() == "llama"


# ---------------------------------------------------------------------------------------------------- upstream, variant

SIDES = """() => [...document.querySelectorAll('section.class')].map(section => ({
  title: section.querySelector('h4').textContent,
  rows: [...section.querySelectorAll('tr:not(.fold)')].filter(r => r.querySelector('td')).map(row => {
    const cells = [...row.cells];
    return {kind: row.className, left: [cells[0].textContent, cells[1].textContent],
            right: [cells[2].textContent, cells[3].textContent]};
  })}))"""


@pytest.mark.parametrize("target", TARGETS)
def test_both_sides_are_the_real_texts(tab: Opened, target: str) -> None:
    tab.go(f"#/llama/{target}")
    folded = tab.page.locator("tr.fold").count()
    assert folded and "unchanged lines" in (tab.page.text_content("tr.fold") or "")
    tab.press("x")
    assert tab.page.locator("tr.fold").count() == 0
    upstream = installed().text(UPSTREAM).split("\n")
    variant = (GENERATED / target / "modeling_llama.py").read_text("utf-8").split("\n")
    runtime = (ROOT / "runtime/qeff/attention.py").read_text("utf-8").split("\n")
    prefix = TARGETS[target].prefix
    attention = 0
    for section in tab.page.evaluate(SIDES):
        written = runtime if "runtime." in section["title"] else variant
        shown: list[int] = []
        for row in section["rows"]:
            for side, text in ((row["left"], upstream), (row["right"], written)):
                if side[0]:
                    assert side[1] == text[int(side[0]) - 1]
            shown += [int(row["right"][0])] if row["right"][0] else []
            if row["kind"] == "same":
                assert row["left"][1] == row["right"][1]
        if f"{prefix}LlamaAttention" in section["title"]:
            attention = len(shown)
            assert shown == list(range(shown[0], shown[-1] + 1)), "every line of the method"
            assert variant[shown[0] - 1].startswith("    def forward(")
    assert attention > 30
    tab.press("x")
    assert tab.page.locator("tr.fold").count() == folded


@pytest.mark.parametrize("family", SHOWN)
@pytest.mark.parametrize("target", TARGETS)
def test_beside_each_change_is_its_rule_and_why(tab: Opened, family: str, target: str) -> None:
    tab.go(f"#/{family}/{target}")
    found = tab.page.evaluate(
        """() => { const result = []; for (const body of document.querySelectorAll('section.class tbody')) {
          let cell = null, left = 0;
          for (const row of body.rows) {
            const own = row.querySelector('td.by'); if (own) { cell = own; left = own.rowSpan; }
            if (row.className === 'changed') result.push(left > 0 ? [...cell.querySelectorAll('p')].map(p =>
              [p.querySelector('.rule').textContent, p.querySelector('.why').textContent]) : []);
            left--;
          } } return result; }"""
    )
    reasons = WHY | {rule.id: rule.why for rule in rule_list(None)}
    assert len(found) > 10 and all(found)
    assert all(why == reasons[rule] for row in found for rule, why in row)
    remembered = manifest.read(GENERATED / manifest.NAME)
    assert remembered is not None
    (one,) = (
        e.compiled
        for e in remembered.entries.values()
        if e.compiled.target == target and family in {f.model_type for f in e.compiled.generated}
    )
    assert {rule for _, rules in one.rules for rule in rules} == {
        rule for row in found for rule, _ in row if rule not in WHY
    }
    assert module_path(one) in (tab.page.text_content("main") or "")


def test_a_reason_that_is_cut_off_is_shown_when_focused(tab: Opened) -> None:
    tab.go("#/llama/qeff")
    box = tab.page.locator(".made[tabindex]").first
    before = box.bounding_box()
    box.focus()
    after = box.bounding_box()
    assert before is not None and after is not None and after["height"] >= before["height"]
    assert box.evaluate("e => e.scrollHeight <= e.clientHeight + 1"), "nothing is hidden any more"


@pytest.mark.parametrize("target", TARGETS)
def test_a_refused_family_says_why(tab: Opened, target: str) -> None:
    tab.go(f"#/{REFUSED}/{target}")
    (row,) = (row for row in coverage_rows(GENERATED)[target] if row.family == REFUSED)
    shown = tab.page.locator(".diagnostic")
    assert shown.count() == len(row.diagnostics)
    for number, diagnostic in enumerate(row.diagnostics):
        text = shown.nth(number).text_content() or ""
        for part in (diagnostic.rule, str(diagnostic.span), diagnostic.expected, diagnostic.found, diagnostic.help):
            assert part in text
        line = installed().text(diagnostic.span.path).split("\n")[diagnostic.span.line - 1]
        assert shown.nth(number).locator("tr.here td.code").text_content() == line


def test_an_excerpt_that_begins_in_a_docstring(tab: Opened) -> None:
    """What follows the docstring is code, and coloured so."""
    tab.go(f"#/{REFUSED}/qeff")
    excerpt = tab.page.locator("table.excerpt", has=tab.page.locator("td.code", has_text="No need for zeroing")).first
    assert excerpt.locator("tr", has_text="1. Cached forward").locator(".s").count() == 1
    assert excerpt.locator("tr.here .k").all_text_contents()[:1] == ["if"]


def test_an_address_that_is_cut_off(browser: Browser, whole: Path) -> None:
    with opened(browser, whole, "#/llama%2") as tab:
        assert len(tab.rows()) > 150


def test_figures(tab: Opened) -> None:
    tab.go("#/llama/qeff")
    (row,) = (row for row in coverage_rows(GENERATED)["qeff"] if row.family == "llama")
    assert row.record is not None
    text = tab.page.text_content("#panel") or ""
    assert f"Parity: {row.record.cases} cases, torch error " in text
    assert f"{row.record.errors['kv']:.1e}".replace("e-0", "e\N{MINUS SIGN}") in text


def test_what_was_searched_for_is_marked_in_the_family(tab: Opened) -> None:
    tab.page.fill("#search", "last_token(hidden_states")
    tab.press("Enter", "Enter")
    tab.page.wait_for_selector("h2#name")
    marked = tab.page.evaluate("[...CSS.highlights.get('search')].map(range => range.toString())")
    assert marked and set(marked) == {"last_token(hidden_states"}


# --------------------------------------------------------------------------------------------------- against a revision


def test_what_changed_is_listed_first(since: Opened) -> None:
    assert since.rows() == ["glm", "llama", "phi"]
    cells = {name: since.page.text_content(f'tr[data-family="{name}"]') or "" for name in since.rows()}
    assert "lost" in cells["glm"] and "newly refused" in cells["glm"]
    assert "semantic" in cells["llama"] and "changed" in cells["llama"]
    assert "spelling only" in cells["phi"] and "unchanged" in cells["phi"]
    assert "1.0.0 → 2.0.0, against HEAD" in (since.page.text_content("header") or "")
    since.page.select_option("#filter-outcome", "newly refused")
    assert since.rows() == ["glm"]
    since.page.select_option("#filter-outcome", "")
    since.page.select_option("#filter-drift", "spelling only")
    assert since.rows() == ["phi"]


def test_a_family_that_changed(since: Opened) -> None:
    since.go("#/llama/rmpad")
    upstream = since.page.locator("section", has=since.page.locator("h3#upstream"))
    assert upstream.locator("details > summary").first.text_content() == "semantic LlamaAttention.forward"
    assert "unchanged" in (upstream.text_content() or "") and "LlamaModel.forward" in (upstream.text_content() or "")
    imported = upstream.locator("details", has_text="changed in other files").last.text_content() or ""
    assert "semantic masking_utils.py:causal_mask_function" in imported
    variant = since.page.locator("section", has=since.page.locator("h3#since"))
    gone = variant.locator("td.code.gone").all_text_contents()
    come = variant.locator("td.code.come").all_text_contents()
    assert "            scaling=self.scaling," in gone and f"        {HOSTILE}" in come
    assert variant.locator("h4").first.text_content() == "RmpadLlamaAttention.forward"
    since.press("n")
    assert since.page.evaluate("document.activeElement.closest('section').querySelector('h3').id") == "upstream"


def test_a_family_that_is_newly_refused(since: Opened) -> None:
    since.go("#/glm/qeff")
    text = since.page.text_content("#panel") or ""
    assert "newly refused" in text and "Refused: " in text and "`past_key_values.has_previous_state`" in text
    assert "generated → refused" in " ".join(text.split())


@pytest.mark.parametrize("place", ["#/", "#/llama/qeff", "#/llama/rmpad"])
def test_hostile_text_is_text(browser: Browser, compared: Path, place: str) -> None:
    assert any(line.strip() == HOSTILE for line in data_of(compared)["lines"])
    with opened(browser, compared, place) as tab:
        tab.page.fill("#search", "window.hacked")
        assert tab.rows() == ["llama"]
        tab.press("Enter", "Enter")
        tab.page.wait_for_selector("h2#name")
        assert tab.page.locator("td.code", has_text=HOSTILE.split("\u2028")[0]).count() > 0
        assert tab.page.evaluate("window.hacked") is None
        assert tab.page.locator("#app img, #app script, #app b:has-text('b')").count() == 0
        assert tab.page.locator("script").count() == 2


def test_the_policy_lets_nothing_out_or_in(browser: Browser, whole: Path) -> None:
    """The page's own script asks for nothing; neither could another."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(whole.as_uri())
    said: list[Any] = []
    page.on("console", lambda message: said.append(message.text))
    page.evaluate(
        """() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1';
        document.body.append(s); const i = new Image(); i.src = 'https://example.org/x.png'; }"""
    )
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in said)
    context.close()


# ------------------------------------------------------------------------------------------------------------ the looks

CONTRAST = """(selectors) => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const ground = rgba(getComputedStyle(e).backgroundColor);
      if (ground[3] === 255) return ground;
    }
    throw new Error('nothing is behind it');
  };
  const worst = {};
  for (const selector of selectors) for (const element of document.querySelectorAll(selector)) {
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    worst[selector] = Math.min(worst[selector] ?? 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser: Browser, compared: Path, scheme: Any) -> None:
    """Contrast of text as accessibility guidelines ask for: 4.5."""
    grounds = set()
    with opened(browser, compared) as tab:
        tab.page.emulate_media(color_scheme=scheme)
        found = tab.page.evaluate(CONTRAST, [".chip", "tbody a", ".by", ".look", ".come", ".gone", "th button"])
        tab.go("#/llama/qeff")
        code = [f".code .{kind}" for kind in "ksncfdv"]
        found |= tab.page.evaluate(
            CONTRAST, [".code", *code, ".no", ".rule", ".why", ".place", ".button", "h2", "summary"]
        )
        tab.page.evaluate(
            """() => {
              for (const side of ['left', 'right']) for (const kind of 'ksncfdv') {
                const [line, token] = [document.createElement('p'), document.createElement('span')];
                line.className = `code ${side}`;
                token.className = `${kind} em`;
                line.append(token);
                document.querySelector('main').append(line);
              }
            }"""
        )
        found |= tab.page.evaluate(
            CONTRAST, [f".{side} .{kind}.em" for side in ("left", "right") for kind in "ksncfdv"]
        )
        assert len(found) > 30
        assert not {selector: ratio for selector, ratio in found.items() if ratio < 4.5}
        grounds.add(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_was_found_can_be_read(tab: Opened, scheme: Any) -> None:
    """Whatever colour the text has where it is not marked."""
    tab.page.emulate_media(color_scheme=scheme)
    style = tab.page.evaluate(
        "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body, '::highlight(search)'))"
    )
    assert style == ["rgb(29, 33, 41)", "rgb(255, 224, 102)"], "dark on light in both schemes"


def test_narrow_rows_are_whole(browser: Browser, compared: Path, whole: Path) -> None:
    """The list is not cut at the right, and a number stands beside its sign, four digits included."""
    with opened(browser, compared, width=700) as tab:
        assert "newly refused" in (tab.page.text_content("table.families") or "")
        assert tab.page.eval_on_selector(".scroll", "box => box.scrollWidth <= box.clientWidth")
    with opened(browser, whole, "#/bart/qeff", width=700) as tab:
        numbers = tab.page.eval_on_selector_all(
            "td.no.gone, td.no.come",
            """cells => cells.map((cell) => {
              const text = document.createRange();
              text.selectNodeContents(cell);
              return [cell.textContent, text.getBoundingClientRect().top - cell.getBoundingClientRect().top];
            })""",
        )
        assert any(len(number) == 4 for number, _ in numbers)
        assert all(0 <= below < 9 for _, below in numbers), "on the first line of its cell"


@pytest.mark.parametrize("place", ["#/", "#/llama/qeff", f"#/{REFUSED}"])
def test_narrow(browser: Browser, whole: Path, place: str) -> None:
    with opened(browser, whole, place, width=420) as tab:
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways for"
        if "llama" in place:
            left, right = (tab.page.locator(f"tr.changed td.code.{side}").first for side in ("gone", "come"))
            boxes = left.bounding_box(), right.bounding_box()
            assert all(box is not None and box["width"] > 300 for box in boxes), "one above the other"
            tab.press("n")
            assert tab.page.evaluate("document.activeElement.hasAttribute('data-change')")


def test_print(tab: Opened) -> None:
    tab.go("#/llama/qeff")
    tab.page.emulate_media(media="print")
    assert not tab.page.is_visible("#search") and tab.page.is_visible("td.code.come")
    assert tab.page.locator("tr.fold").count() > 0
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.page.locator("tr.fold").count() == 0, "paper has no buttons"
    assert len(tab.page.pdf()) > 10_000


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are left out, but not where everything has to be tested."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make browser"):
        executable()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="make browser"):
        executable()
